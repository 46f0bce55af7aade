"""What LiteRT computes wrongly or refuses, and models and files that do not fit."""

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.cli import commands
from keras_pruner.litert import convert, flatbuffer

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
tensorflow = pytest.importorskip(
    "tensorflow", reason='needs pip install "keras-pruner[tensorflow]"'
)
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion runs on TensorFlow either way", allow_module_level=True)

BLOCKS = {"unstructured": (1, 1), "blocks of 4": (4, 1), "blocks of 16": (16, 1)}
# Few enough that it runs densified; so many that layers as small as these gain.
ZEROS = {"unstructured": 0.8, "blocks of 4": 0.95, "blocks of 16": 0.95}


def stack(block, sparsity=None, convolution=True, seed=0):
    """A convolution and two Dense layers with zeros in blocks of inputs."""
    layers = [keras.layers.Conv2D(64, 1, activation="relu")] if convolution else []
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(96, activation="relu")]
    model = keras.Sequential([keras.Input((6, 6, 64)), *layers, keras.layers.Dense(48)])
    rng = np.random.default_rng(seed)
    sparsity = ZEROS[block] if sparsity is None else sparsity
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            weight = rng.normal(size=variable.shape).astype("float32") / 4
            height = BLOCKS[block][0]
            zero = rng.random((weight.shape[-2] // height, weight.shape[-1])) < sparsity
            weight[..., np.repeat(zero, height, 0)] = 0
            variable.assign(weight)
    return model


# One row for each line of LiteRT's traps: what is stored, where it runs, and that it computes
# what the model does. By itself, LiteRT gives NaN or crashes for float16 with blocks of 4, wrong
# outputs for int8 with blocks of 16, and does not run the other kinds of int8 with zeros.
TRAPS = [
    ("float32", "unstructured", {"densified"}, 1e-5),
    ("float32", "blocks of 4", {"native sparse"}, 1e-5),
    ("float32", "blocks of 16", {"native sparse"}, 1e-5),
    ("float16", "unstructured", {"densified"}, 5e-3),
    ("float16", "blocks of 4", {"densified"}, 5e-3),
    ("float16", "blocks of 16", {"densified"}, 5e-3),
    ("int8", "unstructured", {"dense"}, 5e-2),
    ("int8", "blocks of 4", {"dense"}, 5e-2),
    ("int8", "blocks of 16", {"dense"}, 5e-2),
]


@pytest.mark.parametrize(("weights", "block", "execution", "tolerance"), TRAPS)
@pytest.mark.parametrize("runtime", ["litert-x86", "litert-wasm"])
def test_every_combination_comes_out_correct(
    tmp_path, weights, block, execution, tolerance, runtime
):
    path = tmp_path / "m.tflite"
    done = kp.export_litert(stack(block), path, weights=weights, runtime=runtime)
    assert done.difference < tolerance
    contents = kp.litert.inspect(path)
    assert {w.execution for w in contents.weights if len(w.shape) == 2} == execution
    assert contents.sparsity == pytest.approx(ZEROS[block], abs=0.05)


@pytest.mark.parametrize("sparsity", [0.5, 0.6])
def test_int8_with_few_zeros_is_no_larger_than_dense(tmp_path, sparsity):
    model = stack("unstructured", sparsity)
    done = kp.export_litert(model, tmp_path / "m.tflite", weights="int8")
    assert done.size <= done.dense_size + 64 * len(done.weights)  # alignment


def test_a_model_quantized_by_keras_is_refused(tmp_path):
    model = stack("blocks of 16", convolution=False)
    model.quantize("int8", filters=["dense"])
    with pytest.raises(ValueError, match=r"'dense\w*' is quantized by Keras \(int8\).*weights="):
        kp.export_litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_a_model_that_computes_in_half_precision_is_refused(tmp_path, policy):
    layers = [keras.layers.Dense(4, dtype=policy, name="half"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    with pytest.raises(ValueError, match=r"'half' computes in b?float16.*set_dtype_policy"):
        kp.export_litert(model, tmp_path / "m.tflite")


@pytest.mark.parametrize("block", ["unstructured", "blocks of 4"])
def test_sparse_files_of_the_converter_itself_are_read(tmp_path, block):
    model, path = stack(block, convolution=False), tmp_path / "m.tflite"
    sparsity = tensorflow.lite.Optimize.EXPERIMENTAL_SPARSITY
    signature = [keras.InputSpec("float32", (1, 6, 6, 64))]
    model.export(
        path, format="litert", input_signature=signature, verbose=False, optimizations=[sparsity]
    )
    found = {(w.encoding, w.execution) for w in kp.litert.inspect(path).weights}
    native = block == "blocks of 4"
    assert found == {("block 1x4", "native sparse") if native else ("csr", "densified")}
    assert kp.litert.inspect(path).sparsity == pytest.approx(ZEROS[block], abs=0.05)


def test_a_graph_of_unknown_operators_is_read(tmp_path):
    model, path = stack("unstructured"), tmp_path / "m.tflite"
    kp.export_litert(model, path)
    content = flatbuffer.read(path)
    for code in content.operatorCodes:
        code.builtinCode, code.customCode = 32, b"SomebodysOwn"
    flatbuffer.write(content, path)
    contents = kp.litert.inspect(path)
    assert contents.sparsity == pytest.approx(ZEROS["unstructured"], abs=0.05)
    assert not contents.xnnpack.eligible


@keras.saving.register_keras_serializable("tests")
class Unsupported(keras.layers.Layer):
    def call(self, x):
        return keras.ops.erfinv(keras.ops.tanh(x))


def test_an_operator_that_litert_lacks_is_named(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Unsupported()])
    model.add(keras.layers.Dense(3))
    message = (
        r"LiteRT has no operator for Erfinv \(layer 'unsupported/erfinv'\)\. Replace the layer"
    )
    with pytest.raises(RuntimeError, match=message):
        kp.export_litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    model, path = stack("unstructured"), tmp_path / "m.tflite"
    model.save(tmp_path / "m.keras")
    path.write_text("what was there")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flatbuffer, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        kp.export_litert(model, path)
    assert commands.main(["export", str(tmp_path / "m.keras"), str(path), "--force"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == "what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.keras", "m.tflite"]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("ModuleNotFoundError: No module named 'tensorflow'", r'"keras-pruner\[tensorflow\]"'),
        ("TypeError: Could not locate class 'Mine'", "move them to a module"),
        ("TypeError: Could not locate function 'mine'", "move them to a module"),
        ("error: op is neither a custom op nor a flex op", "LiteRT has no operator for one of its"),
        (
            'fused["MaxPool3D:", "functional_1/pool_1/MaxPool3D@x"]: error: \'tf.MaxPool3D\' op is '
            "neither a custom op nor a flex op",
            r"no operator for MaxPool3D \(layer 'pool'\).*select operators\) is not offered here",
        ),
    ],
)
def test_what_the_converter_says_is_shown_with_what_to_do(said, hint):
    explained = convert._explain(said)
    assert said in explained
    with pytest.raises(RuntimeError, match=hint):
        raise RuntimeError(explained)


@pytest.mark.backend_free
def test_the_converters_listing_of_the_model_is_left_out():
    said = (
        "error: failed while converting: 'main':\n"
        "<unknown>:0: note: see current operation:\n"
        '"func.func"() <{function_type = ...}> ({\n'
        "^bb0(%arg0: tensor<1xf32>):\n"
        '  %14 = "tfl.relu"(%13)\n'
        '  "func.return"(%14) : (tensor<1xf32>) -> ()\n'
        "}) {tf.entry_function = {}}\n"
    )
    explained = convert._explain(said)
    assert explained.endswith("said:\nerror: failed while converting: 'main':")
