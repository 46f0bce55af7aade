"""Files of integers only, and Ethos-U NPUs, which run them."""

import keras
import numpy as np
import pytest
from models import drawn

import keras_pruner as kp
from keras_pruner.litert import agreement
from keras_pruner.litert.export import export_litert

pytestmark = pytest.mark.one_backend

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
INTEGERS = {"weights": "int8", "activations": "int8", "progress": False}
X = np.random.default_rng(1).normal(size=(30, 8, 8, 3)).astype("float32")


def small_cnn(filters=64):
    layers = [
        keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name="first"),
        keras.layers.BatchNormalization(),
        keras.layers.Conv2D(filters, 3, strides=2, padding="same", name="second"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10, name="head"),
    ]
    return drawn(keras.Sequential([keras.Input((8, 8, 3), name="image"), *layers]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dense file and one of the same model with 80 % zeros, with their reports."""
    directory, model = tmp_path_factory.mktemp("integers"), small_cnn()
    dense = export_litert(model, directory / "dense.tflite", samples=X, **INTEGERS)
    kp.prune(model, 0.8)
    pruned = export_litert(model, directory / "pruned.tflite", samples=X, **INTEGERS)
    return dense, pruned


def test_zeros_stay_zeros_and_the_outputs_agree(files):
    for done in files:
        assert done.error < 0.05
        assert done.same_largest > 0.9
        assert done.size < 0.4 * 4 * (3 * 3 * 3 * 64 + 3 * 3 * 64 * 64 + 640)
    _, pruned = files
    in_model, in_file = pruned.zeros
    assert in_model > 0.79 * (3 * 3 * 3 * 64 + 3 * 3 * 64 * 64 + 640)
    assert in_model <= in_file < 1.05 * in_model
    assert "relative error" in str(pruned)
    assert "Compared on 30 samples." in str(pruned)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("options", "types"),
    [
        ({}, ("int8", "int8")),
        ({"float_interface": True}, ("float32", "float32")),
        ({"activations": "int16"}, ("int16", "int16")),
    ],
    ids=str,
)
def test_inputs_and_outputs_have_the_type_asked_for(tmp_path, options, types):
    from keras_pruner.litert import interpreter

    path = tmp_path / "m.tflite"
    done = export_litert(small_cnn(8), path, samples=X, **{**INTEGERS, **options})
    assert done.error < (0.02 if "activations" in options else 0.1)
    runner = interpreter.load(path)
    details = runner.get_input_details()[0], runner.get_output_details()[0]
    assert tuple(np.dtype(d["dtype"]).name for d in details) == types


@pytest.mark.tensorflow
def test_a_file_that_is_too_far_off_is_refused_with_its_worst_layers(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"0\.0001 is allowed\. The layers that differ most: \w+ \(\d"
    ):
        export_litert(small_cnn(8), tmp_path / "m.tflite", samples=X, tolerance=1e-4, **INTEGERS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorflow
def test_several_inputs_are_calibrated_by_name(tmp_path):
    b, a = keras.Input((8,), name="b"), keras.Input((5,), name="a", dtype="int32")
    words = keras.layers.Flatten()(keras.layers.Embedding(50, 2, name="words")(a))
    model = keras.Model([b, a], keras.layers.Dense(4)(keras.layers.Concatenate()([b, words])))
    rng = np.random.default_rng(0)
    samples = [100 * rng.normal(size=(30, 8)), rng.integers(0, 50, (30, 5))]
    done = export_litert(model, tmp_path / "m.tflite", samples=samples, **INTEGERS)
    assert done.error < 0.1
    assert "Lite Micro has no operator for SELECT (layer 'words')" in str(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": "int4"}, '`activations` must be "float32", "int8" or "int16"'),
        ({"weights": "float32"}, 'needs weights="int8". Received: weights=.float32'),
        ({"samples": None}, "needs `samples`: typical inputs"),
        ({"samples": np.full_like(X, np.nan)}, "must be finite"),
        ({"samples": np.ones_like(X)}, "samples of the constant 1"),
        ({"samples": X[:, :4]}, r"shape \(8, 8, 3\) for 'image'. Received: shape \(30, 4, 8, 3\)"),
        ({"activations": "float32", "float_interface": True}, "is for integer activations"),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_is_right(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_litert(
            small_cnn(8), tmp_path / "m.tflite", **{**INTEGERS, "samples": X, **arguments}
        )


@pytest.mark.backend_free
def test_the_layer_of_an_operator_is_found_by_its_name():
    names = ["conv", "dense", "dense_1"]
    for tensor, layer in {
        "functional_1/conv_1/Relu;functional_1/bn_1/add": "conv",
        "sequential/dense_1_1/MatMul": "dense_1",
        "dense/MatMul": "dense",
        "StatefulPartitionedCall_1:0": None,
    }.items():
        assert agreement.layer_of(tensor, names) == layer


# ----------------------------------------------------------------------------------- Ethos-U


@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_zeros_make_the_compiled_file_smaller(files, accelerator, tmp_path):
    pytest.importorskip("ethosu", reason='needs pip install "keras-pruner[ethos-u]"')
    dense, pruned = (done.path for done in files)
    found = kp.litert.ethos_u(pruned, accelerator, dense=dense)
    assert found.compiled.on_cpu == ()
    assert len(found.compiled.layers) == len(found.dense.layers) >= 4
    assert found.compiled.flash < 0.5 * found.dense.flash
    assert found.compiled.size < 0.6 * found.dense.size
    assert found.speedup > 0.95
    assert found.compiled.seconds > 0
    assert str(found).count("compiler's estimate") >= 2
    kp.litert.ethos_u(pruned, accelerator, output=tmp_path / "npu.tflite")
    compiled = kp.litert.inspect(tmp_path / "npu.tflite")
    assert compiled.headline().endswith("bytes, compiled for an Ethos-U")
    assert "Vela has encoded the weights" in str(compiled)
    if accelerator == "ethos-u55-128":  # it waits for the weights in flash
        assert found.speedup > 1.2
        assert {layer.bound_by for layer in found.dense.layers} >= {"flash", "computing"}


@pytest.mark.tensorflow
def test_a_float_file_stays_on_the_cpu_and_says_what_to_do(tmp_path):
    pytest.importorskip("ethosu", reason='needs pip install "keras-pruner[ethos-u]"')
    export_litert(small_cnn(8), tmp_path / "m.tflite", progress=False)
    found = kp.litert.ethos_u(tmp_path / "m.tflite", output=tmp_path / "compiled.tflite")
    assert len(found.compiled.on_cpu) == len(found.compiled.layers) > 0
    assert 'activations="int8", samples=x' in str(found)
    assert (tmp_path / "compiled.tflite").stat().st_size == found.compiled.size
    assert "zeros" in kp.litert.inspect(tmp_path / "m.tflite").headline()


@pytest.mark.backend_free
def test_what_vela_cannot_take_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`accelerator` must be one of ethos-u55-32"):
        kp.litert.ethos_u("m.tflite", "ethos-u99")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "keras-pruner\[ethos-u\]"'):
        kp.litert.ethos_u("m.tflite")
    monkeypatch.undo()
    pytest.importorskip("ethosu", reason='needs pip install "keras-pruner[ethos-u]"')
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"no \.tflite file"):
        kp.litert.ethos_u(tmp_path / "m.tflite")
