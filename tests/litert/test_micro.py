"""Files for TensorFlow Lite Micro, run in its own interpreter."""

import re
import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from models import drawn

import keras_pruner as kp
from keras_pruner.litert import flatbuffer, micro
from keras_pruner.litert.export import export_litert

pytestmark = pytest.mark.one_backend

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
X = np.random.default_rng(1).normal(size=(24, 12, 12, 4)).astype("float32")


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("tflite_micro", reason='needs pip install "keras-pruner[tflm]"')


def small_cnn():
    """A network with a large layer, whose unpacking takes RAM, and a small one, where none does."""
    layers = [
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="first"),
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise"),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu", name="second"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu", name="wide"),
        keras.layers.Dense(10, name="head"),
    ]
    model = drawn(keras.Sequential([keras.Input((12, 12, 4), name="image"), *layers]))
    kp.prune(model, 0.85, allocation="uniform")
    return model


@pytest.fixture(scope="module")
def pruned():
    return small_cnn()


def check_that_it_compiles(header):
    """As C and as C++, where there is a compiler."""
    for language, standard in (("c", "c11"), ("c", "c17"), ("c++", "c++11"), ("c++", "c++17")):
        if compiler := shutil.which("g++" if language == "c++" else "gcc"):
            command = [compiler, "-x", language, f"-std={standard}", "-fsyntax-only", "-Wall"]
            child = subprocess.run(
                [*command, "-"],
                input=f'#include "{header}"\nint first(void) {{ return net[0] + (int)net_len; }}',
                capture_output=True,
                text=True,
                check=False,
            )
            assert child.returncode == 0, child.stderr


def test_flash_is_smaller_and_every_bit_of_the_outputs_is_equal(tmp_path, pruned):
    done = kp.litert.export_micro(
        pruned, tmp_path / "m.tflite", samples=X, header=tmp_path / "net.h", progress=False
    )
    assert done.flash == (tmp_path / "m.tflite").stat().st_size < done.plain_flash / 1.5
    assert done.arena > done.plain_arena > 12 * 12 * 32
    assert done.compared_on == 16
    assert done.export.error < 0.1
    forms = {row.name.split("/")[1]: row.form for row in done.weights}
    assert [form for name, form in forms.items() if "wide" in name] == ["bits and values"]
    assert {"AddConv2D", "AddDecode", "AddFullyConnected"} <= set(done.operators)
    text = (tmp_path / "net.h").read_text()
    stored = bytes(int(number, 16) for number in re.findall(r"0x(\w\w)", text))
    assert stored == (tmp_path / "m.tflite").read_bytes()
    assert f"net_len = {done.flash};" in text
    assert "alignas(16) static const unsigned char net[]" in text
    assert "times as large; time" in str(done)
    assert "Pass ram=" in str(done)
    check_that_it_compiles(tmp_path / "net.h")
    assert "2025-10-23" in str(done)


@pytest.mark.tensorflow
class TestLimits:
    def test_weights_whose_unpacking_does_not_fit_stay_plain(self, tmp_path, pruned):
        free = micro.export_micro(pruned, tmp_path / "a.tflite", samples=X, progress=False)
        limit = free.plain_arena + 700  # the pointers of DECODE take some
        tight = micro.export_micro(
            pruned, tmp_path / "b.tflite", samples=X, ram=limit, progress=False
        )
        assert tight.arena <= limit < free.arena
        assert free.flash < tight.flash < tight.plain_flash
        assert {row.reason for row in tight.weights} >= {"", "left plain by the limits"}

    def test_a_large_layer_is_computed_in_parts_where_ram_is_short(self, tmp_path):
        layers = [keras.layers.Dense(203, activation="relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((200,)), *layers])
        kp.prune(model, 0.9, allocation="uniform")
        x = np.random.default_rng(1).normal(size=(24, 200)).astype("float32")
        free = micro.export_micro(model, tmp_path / "a.tflite", samples=x, progress=False)
        limit = free.plain_arena + 16_000
        done = micro.export_micro(
            model, tmp_path / "b.tflite", samples=x, ram=limit, progress=False
        )
        assert done.arena <= limit < free.arena
        assert done.flash < 1.2 * free.flash + 2000
        assert "AddConcatenation" in done.operators
        parts = [row for row in done.weights if "rows" in row.name]
        assert sum(row.shape[0] for row in parts) == 203
        assert {row.form for row in parts} == {"bits and values"}

    def test_no_more_is_encoded_than_the_flash_asks_for(self, tmp_path, pruned):
        free = micro.export_micro(pruned, tmp_path / "a.tflite", samples=X, progress=False)
        for limit in (free.plain_flash, free.plain_flash - 1, free.flash + 3000, free.flash):
            done = micro.export_micro(
                pruned, tmp_path / "b.tflite", samples=X, flash=limit, progress=False
            )
            assert done.flash <= limit
            assert done.arena <= free.arena
        assert done.flash == free.flash

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            (
                {"flash": 5000},
                r"not fit. Received: flash=5,000. The largest weight is \S*second",
            ),
            ({"ram": 2000}, r"`ram` must be at least [\d,]+ bytes"),
            ({"ram": 0}, "`ram` must be"),
            ({"activations": "float32"}, '`activations` must be "int8" or "int16"'),
            ({"header": "net.c"}, r"must end with '.h'"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_said_and_nothing_is_written(
        self, tmp_path, pruned, limits, message
    ):
        with pytest.raises(ValueError, match=message):
            micro.export_micro(pruned, tmp_path / "m.tflite", samples=X, progress=False, **limits)
        assert list(tmp_path.iterdir()) == []

    def test_int16_activations_run_too(self, tmp_path, pruned):
        done = micro.export_micro(
            pruned, tmp_path / "m.tflite", samples=X, activations="int16", progress=False
        )
        assert done.export.error < 0.03
        assert done.flash < done.plain_flash

    def test_few_values_are_stored_as_tables(self, tmp_path):
        layers = [keras.layers.Dense(256, name="wide"), keras.layers.Dense(4, name="head")]
        model = keras.Sequential([keras.Input((256,)), *layers])
        model.layers[0].kernel.assign(np.random.default_rng(0).integers(-1, 2, (256, 256)) / 8)
        x = np.random.default_rng(1).normal(size=(24, 256))
        done = micro.export_micro(model, tmp_path / "m.tflite", samples=x, progress=False)
        (wide,) = [row for row in done.weights if "wide" in row.name or row.shape == (256, 256)]
        assert wide.form == "table of 3"
        assert wide.stored_bytes < 0.27 * wide.plain_bytes + 800

    def test_outputs_that_differ_are_refused(self, tmp_path, pruned, monkeypatch):
        def wrong(weight):
            found = micro.Encoded("bits and values", *_right(weight))
            return micro.Encoded(found.form, bytes([found.data[0] ^ 255]) + found.data[1:],
                                 found.ancillary + bytes(8))  # fmt: skip

        right = micro.pruned
        _right = lambda weight: (right(weight).data, right(weight).ancillary)  # noqa: E731
        monkeypatch.setattr(micro, "pruned", wrong)
        with pytest.raises(RuntimeError, match="outputs with DECODE differ"):
            micro.export_micro(pruned, tmp_path / "m.tflite", samples=X, progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_an_operator_that_micro_lacks_is_named_with_its_layer(self, tmp_path):
        words = keras.Input((6,), dtype="int32", name="words")
        x = keras.layers.Flatten()(keras.layers.Embedding(50, 8, name="table")(words))
        model = keras.Model(words, keras.layers.Dense(4)(x))
        samples = np.random.default_rng(0).integers(0, 50, (30, 6))
        with pytest.raises(RuntimeError, match=r"no operator for SELECT \(layer 'table'\)"):
            micro.export_micro(model, tmp_path / "m.tflite", samples=samples, progress=False)

    def test_a_file_of_micro_can_be_inspected(self, tmp_path, pruned):
        micro.export_micro(pruned, tmp_path / "m.tflite", samples=X, progress=False)
        plain = export_litert(
            pruned, tmp_path / "p.tflite", weights="int8", activations="int8", samples=X,
            progress=False,
        )  # fmt: skip
        found = kp.litert.inspect(tmp_path / "m.tflite")
        zeros = sum(round(w.sparsity * w.size) for w in found.weights)
        assert zeros == plain.zeros[1]
        assert "bits and values" in {w.encoding for w in found.weights}


# ---------------------------------------------------------------------- the encodings


def decoded(found, shape, dtype, axis=None):
    """The weight, as TFLM's sources describe it: one value after the other."""
    values = np.frombuffer(found.ancillary[16:], dtype)
    bits = np.unpackbits(np.frombuffer(found.data, np.uint8))
    assert found.ancillary[1] == found.ancillary[4] == 1
    if found.ancillary[0] == 2:
        flat, rest = np.zeros(np.prod(shape), dtype), list(values)
        for i in range(flat.size):
            flat[i] = rest.pop(0) if bits[i] else 0
        assert rest == []
        return flat.reshape(shape)
    width, stride = found.ancillary[5] & 7, found.ancillary[6]
    flat = np.zeros(np.prod(shape), dtype)
    channel_of = np.zeros(shape, int) if axis is None else np.indices(shape)[axis]
    for i, channel in enumerate(channel_of.reshape(-1)):
        index = int("".join(map(str, bits[i * width : (i + 1) * width])), 2)
        flat[i] = values[channel * stride + index]
    return flat.reshape(shape)


@pytest.mark.backend_free
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 3, 3, 4), (1, 3, 3, 7), (2, 129)])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_what_is_encoded_is_decoded(shape, dtype):
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 3, shape).astype(dtype) * (rng.random(shape) < 0.5)
    np.testing.assert_array_equal(decoded(micro.pruned(weight), shape, dtype), weight)
    for axis in (None, 0, len(shape) - 1):
        found = micro.table(weight, axis)
        np.testing.assert_array_equal(decoded(found, shape, dtype, axis), weight)


@pytest.mark.backend_free
def test_a_table_has_at_most_128_values():
    assert micro.table(np.arange(-64, 64, dtype=np.int8)[None], None).form == "table of 128"
    assert micro.table(np.arange(-64, 65, dtype=np.int8)[None], None) is None


@pytest.mark.backend_free
def test_a_file_for_micro_is_not_for_an_npu(tmp_path):
    pytest.importorskip("ethosu", reason='needs pip install "keras-pruner[ethos-u]"')
    schema = flatbuffer.schema()
    content, code = schema.ModelT(), schema.OperatorCodeT()
    code.customCode = b"TFLM_DECODE"
    content.version, content.operatorCodes = 3, [code]
    content.subgraphs, content.buffers = [schema.SubGraphT()], [schema.BufferT()]
    flatbuffer.write(content, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match=r"export_micro wrote it\. For an NPU compile the file of"):
        kp.litert.ethos_u(tmp_path / "m.tflite")


@pytest.mark.backend_free
def test_nothing_is_inserted_without_a_choice(tmp_path):
    schema = flatbuffer.schema()
    content = schema.ModelT()
    micro.insert(content, {})
    assert content.operatorCodes is None


@pytest.mark.backend_free
def test_the_missing_package_is_named(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras-pruner\[tflm\]"'):
        kp.litert.export_micro(model, tmp_path / "m.tflite", samples=X)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, "needs `samples`: typical inputs"),
        (X[:, :5], r"of shape \(12, 12, 4\) for 'image'. Received: shape \(24, 5, 12, 4\)"),
        (np.ones_like(X), "samples of the constant 1"),
        (np.full_like(X, np.nan), "must be finite"),
        (X[:0], "at least 1 of shape"),
        (X[..., 0], "The first axis numbers"),
    ],
    ids=["none", "shape", "constant", "nan", "empty", "axis"],
)
def test_samples_that_give_no_ranges_are_refused(tmp_path, pruned, samples, message):
    with pytest.raises(ValueError, match=message):
        micro.export_micro(pruned, tmp_path / "m.tflite", samples=samples, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_shapes_that_are_not_known_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match=r"which is not known. Pass `input_signature"):
        micro.export_micro(model, tmp_path / "m.tflite", samples=X, progress=False)


@pytest.mark.backend_free
def test_a_file_of_another_producer_is_read_and_run():
    """The file that comes with tflite-micro, which its own tools made."""
    from importlib.util import find_spec

    folder = find_spec("tflite_micro").submodule_search_locations[0]
    (path,) = Path(folder).rglob("sine_float.tflite")
    assert kp.litert.inspect(path).weights
    found, outputs = micro.run_micro([path], [np.zeros((1, 1, 1), "float32")])
    assert found["arena"][0] > 0
    assert len(outputs) == 1
    if find_spec("ethosu"):
        assert "No operator runs on the NPU" in str(kp.litert.ethos_u(path))


@pytest.mark.backend_free
def test_a_file_that_micro_cannot_run_is_said_to_be_such(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"is no \.tflite file"):
        micro.run_micro([tmp_path / "m.tflite"], [np.zeros((1, 1), "float32")])
