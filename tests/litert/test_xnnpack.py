import keras
import numpy as np
import pytest

from keras_pruner.litert import flatbuffer, xnnpack
from keras_pruner.litert.xnnpack_rewrite import prepare_for_xnnpack

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
if keras.backend.backend() != "tensorflow":
    pytest.skip("reads files that TensorFlow converts in this process", allow_module_level=True)

from test_xnnpack_rewrite import small_cnn

from keras_pruner.litert.convert import convert


def judged(model, tmp_path):
    path = tmp_path / "m.tflite"
    tensor = model.inputs[0]
    convert(model, path, [keras.InputSpec("float32", (1, *tensor.shape[1:]))])
    return xnnpack.eligibility(flatbuffer.read(path))


def prune(model, sparsity):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1):
            weight = keras.ops.convert_to_numpy(layer.kernel.value).copy()
            order = np.argsort(np.abs(weight), axis=None)
            weight.reshape(-1)[order[: round(sparsity * weight.size)]] = 0
            layer.kernel.assign(weight)
    return model


@pytest.mark.parametrize("options", [{}, {"stem": "end"}, {"head": "conv"}, {"channels": 1}])
def test_only_the_rewritten_model_is_eligible(tmp_path, options):
    model = prune(small_cnn(**options), 0.75)
    stock = judged(model, tmp_path)
    assert not stock.eligible
    assert stock.obstacle
    rewritten = judged(prepare_for_xnnpack(model).model, tmp_path)
    assert rewritten.eligible, rewritten
    assert len(rewritten.filters) == 3
    assert rewritten.sparsity == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("options", "sparsity", "obstacle"),
    [
        ({}, 0.6, "more than two thirds"),
        ({"pool": True}, 0.8, "MAX_POOL_2D"),
        ({"depthwise": (7, 7)}, 0.8, "depthwise convolution"),
    ],
)
def test_the_first_obstacle_is_named(tmp_path, options, sparsity, obstacle):
    model = prepare_for_xnnpack(prune(small_cnn(**options), sparsity)).model
    assert obstacle in str(judged(model, tmp_path))


def test_a_model_without_convolutions(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    assert "no 3x3 convolution" in judged(model, tmp_path).obstacle
