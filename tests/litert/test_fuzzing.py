import tracemalloc

import keras
import numpy as np
import pytest

from keras_pruner import model_file
from keras_pruner.litert import flatbuffer, sparse_tensors
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.inspection import inspect
from keras_pruner.litert.micro import export_micro, run_micro
from keras_pruner.litert.vela import ethos_u
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import load_sparse, save_sparse

pytestmark = pytest.mark.backend_free
COUNTS = [100, pytest.param(2000, marks=pytest.mark.slow)]
MEMORY = 1 << 28  # bytes that reading a file of a few kilobytes may take


def mutations(content, count, seed=0):
    """Truncated, flipped, overwritten and inflated copies."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        data = bytearray(content)
        kind = i % 4
        if kind == 0:
            data = data[: rng.integers(0, len(data))]
        elif kind == 1:
            for _ in range(rng.integers(1, 8)):
                data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        elif kind == 2:
            place = int(rng.integers(0, len(data) - 4))
            data[place : place + 4] = (2**31 - 1 - int(rng.integers(0, 3))).to_bytes(4, "little")
        else:
            place = int(rng.integers(0, len(data)))
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        yield bytes(data)


def read_all(tmp_path, content, count, read, check, suffix="", errors=ValueError):
    """Every mutation gives an error of a kind, or something that passes `check`.

    Returns the share of those that were refused.
    """
    path = tmp_path / f"mutated{suffix}"
    tracemalloc.start()
    refused = 0
    for data in mutations(content, count):
        path.write_bytes(data)
        try:
            result = read(path)
        except errors:
            refused += 1
        else:
            check(result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    return refused / count


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_sparse_files(tmp_path, count):
    def small():
        return keras.Sequential([keras.Input((24,)), keras.layers.Dense(16, name="d")])

    model, other = small(), small()
    kernel = np.random.default_rng(0).normal(size=(24, 16)).astype("float32")
    kernel[np.abs(kernel) < 1] = 0
    model.layers[0].kernel.assign(kernel)
    save_sparse(model, tmp_path / "w.safetensors")

    def unchanged(_):
        loaded = keras.ops.convert_to_numpy(other.layers[0].kernel.value)
        np.testing.assert_array_equal(loaded, kernel)

    content = (tmp_path / "w.safetensors").read_bytes()
    refused = read_all(tmp_path, content, count, lambda path: load_sparse(other, path), unchanged)
    assert refused > 0.9


def sound(contents):
    assert all(0 <= w.sparsity <= 1 for w in contents.weights)
    str(contents)


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_tflite_files_of_weights(tmp_path, count):
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    from test_flatbuffer import model_of, weight_of

    weights = [(weight_of((6, 8)), e) for e in (None, sparse_tensors.csr, sparse_tensors.blocks)]
    flatbuffer.write(model_of(*weights), tmp_path / "m.tflite")
    content = (tmp_path / "m.tflite").read_bytes()
    assert read_all(tmp_path, content, count, inspect, sound) > 0.3


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small MobileNet of real operators, each kind of weight sparse, as bytes."""
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
    image = keras.Input((8, 8, 3))
    x = keras.layers.ZeroPadding2D(1)(image)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu6")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Conv2D(16, 1, activation="relu6")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(64)(keras.layers.Dense(16)(x)))
    for layer in model.layers[3:]:
        if layer.weights:
            kernel = np.random.default_rng(0).normal(size=layer.kernel.shape)
            kernel[np.abs(kernel) < 1.5] = 0
            layer.kernel.assign(kernel)
    model.layers[-1].kernel.assign(np.eye(16, 64) * 3)
    path = tmp_path_factory.mktemp("converted") / "m.tflite"
    export_litert(model, path)
    encodings = {w.encoding for w in inspect(path).weights}
    assert {"dense", "csr"} <= encodings
    return path.read_bytes()


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_tflite_files_of_operators(tmp_path, count, converted):
    assert flatbuffer_operators(tmp_path, converted) > 4
    assert read_all(tmp_path, converted, count, inspect, sound) > 0.3


def test_strides_of_zero_are_refused(tmp_path, converted):
    path = tmp_path / "m.tflite"
    path.write_bytes(converted)
    model = flatbuffer.read(path)
    options = [operator.builtinOptions for operator in model.subgraphs[0].operators]
    depthwise = next(each for each in options if hasattr(each, "depthMultiplier"))
    depthwise.strideH = 0
    flatbuffer.write(model, path)
    with pytest.raises(ValueError, match=r"is damaged: .* has strides of \(0, 1\)"):
        inspect(path)


def flatbuffer_operators(tmp_path, content):
    (tmp_path / "m.tflite").write_bytes(content)
    return len(flatbuffer.read(tmp_path / "m.tflite").subgraphs[0].operators)


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_keras_files(tmp_path, count):
    model = keras.Sequential([keras.Input((24,)), keras.layers.Dense(16, name="d")])
    save_compressed(model, tmp_path / "small.keras")
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel.value)

    def the_same(loaded):
        its = keras.ops.convert_to_numpy(loaded.layers[0].kernel.value)
        np.testing.assert_array_equal(its, kernel)

    content = (tmp_path / "small.keras").read_bytes()
    refused = read_all(
        tmp_path, content, count, model_file.load, the_same, ".keras", model_file.FileError
    )
    assert refused > 0.5


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    """A file of integers only, and the one of it for TensorFlow Lite Micro, as bytes."""
    for package in ("ai_edge_litert", "tensorflow", "tflite_micro"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("integers")
    layers = [keras.layers.Dense(48, activation="relu"), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((48,)), *layers])
    rng = np.random.default_rng(0)
    model.layers[0].kernel.assign(rng.normal(size=(48, 48)) * (rng.random((48, 48)) < 0.2))
    x = rng.normal(size=(40, 48)).astype("float32")
    options = {"weights": "int8", "activations": "int8", "samples": x, "progress": False}
    export_litert(model, folder / "plain.tflite", **options)
    done = export_micro(model, folder / "micro.tflite", samples=x, progress=False)
    assert "bits and values" in {row.form for row in done.weights}
    return [(folder / name).read_bytes() for name in ("plain.tflite", "micro.tflite")]


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_files_for_micro(tmp_path, integers, count):
    assert read_all(tmp_path, integers[1], count, inspect, sound) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_mutated_files_in_the_interpreter_of_micro(tmp_path, integers, which):
    """A file that TensorFlow Lite Micro does not take, or that crashes it, is said to be such."""
    inputs = [np.zeros((2, 1, 48), np.int8)]
    path, refused = tmp_path / "mutated.tflite", 0
    for data in mutations(integers[which], 500):
        path.write_bytes(data)
        try:
            found, outputs = run_micro([path], inputs)
        except (ValueError, RuntimeError):
            refused += 1
        else:
            assert found["arena"][0] > 0
            assert len(outputs) == 1
    assert 0.2 < refused / 500 < 1


@pytest.mark.slow
def test_mutated_files_in_the_compiler_for_npus(tmp_path, integers):
    """A file that Vela does not take, or that crashes it, is said to be such."""
    pytest.importorskip("ethosu", reason='needs pip install "keras-pruner[ethos-u]"')
    path, refused = tmp_path / "mutated.tflite", 0
    for data in mutations(integers[0], 500):
        path.write_bytes(data)
        try:
            str(ethos_u(path))
        except (ValueError, RuntimeError):
            refused += 1
    assert 0.2 < refused / 500 < 1
