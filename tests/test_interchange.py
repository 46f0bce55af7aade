"""Keras' own export to ONNX and OpenVINO after pruning: the same outputs."""

import keras
import numpy as np
import pytest

import keras_pruner as kp

pytestmark = pytest.mark.one_backend

BACKEND = keras.backend.backend()


def pruned():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(5),
        ]
    )
    kp.prune(model, 0.7)
    return model


def sample():
    return np.random.default_rng(0).normal(size=(1, 12, 12, 3)).astype("float32")


def expected(model):
    return keras.ops.convert_to_numpy(model(sample(), training=False))


@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_onnx_computes_the_same_and_keeps_the_zeros(tmp_path):
    if BACKEND == "jax":
        pytest.importorskip("jax2onnx", reason="Keras exports ONNX from JAX with jax2onnx")
    onnx = pytest.importorskip("onnx", reason='needs pip install "keras-pruner[interchange]"')
    runtime = pytest.importorskip("onnxruntime", reason="the same")
    pytest.importorskip("tf2onnx" if BACKEND == "tensorflow" else "onnx", reason="the same")
    pytest.importorskip("onnxscript" if BACKEND == "torch" else "onnx", reason="the same")
    model, path = pruned(), str(tmp_path / "m.onnx")
    signature = [keras.InputSpec("float32", (1, 12, 12, 3), name="image")]
    model.export(path, format="onnx", input_signature=signature, verbose=False)
    session = runtime.InferenceSession(path)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: sample()})
    np.testing.assert_allclose(outputs, expected(model), atol=1e-6)
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    zeros = sum(int((w == 0).sum()) for w in stored if w.ndim >= 2)
    assert zeros >= kp.summarize(model).prunable.zeros


@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_openvino_computes_the_same(tmp_path):
    openvino = pytest.importorskip(
        "openvino", reason='needs pip install "keras-pruner[interchange]"'
    )
    if BACKEND == "jax":
        pytest.skip("Keras 3.15 cannot export to OpenVINO from JAX (XlaCallModule)")
    model, path = pruned(), str(tmp_path / "m.xml")
    signature = [keras.InputSpec("float32", (1, 12, 12, 3), name="image")]
    model.export(path, format="openvino", input_signature=signature, verbose=False)
    # By itself OpenVINO computes in bfloat16 on processors that have it.
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exactly)
    np.testing.assert_allclose(compiled([sample()])[0], expected(model), atol=1e-5)
