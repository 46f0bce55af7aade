"""What cannot be shrunk is refused, with the reason and a way out; nothing is done in silence."""

import keras
import numpy as np
import pytest
from networks import NETWORKS

import keras_pruner as kp

L = keras.layers
X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")


def mlp(*layers):
    return keras.Sequential([keras.Input((8,)), *layers, L.Dense(16), L.Dense(3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"macs": 0.5}, "`calibration` is needed for a target"),
        ({"macs": 0.5, "weights": 0.5, "calibration": X}, "`macs` and `weights` are two targets"),
        ({"macs": 1.5, "calibration": X}, r"`macs` must be the fraction to keep, in \(0, 1\)"),
        ({"macs": True, "calibration": X}, "`macs` must be the fraction"),
        ({"speedup": 0.5, "calibration": X}, "`speedup` must be a number above 1"),
        ({"runtime": "litert-arm"}, "`runtime` must be"),
        ({"calibration": X}, "`calibration` has no use without a target"),
        ({"multiple": 0}, "`multiple` must be an integer of at least 1"),
        ({"overrides": {"dense": 0.5}}, "`overrides` must map regexes to None"),
        ({"macs": 0.01, "calibration": X}, r"must be at least .* multiple=1 .* an output of the"),
        ({"macs": 0.5, "calibration": X * np.nan}, "`calibration` must be finite"),
    ],
)
def test_arguments_that_are_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        kp.shrink(mlp(), **arguments)


def test_models_that_cannot_be_cut():
    quantized = mlp()
    quantized.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"quantized to int8\. Shrink first"):
        kp.shrink(quantized)
    adapted = mlp()
    adapted.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="LoRA enabled"):
        kp.shrink(adapted)
    stateful = keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), L.LSTM(4, stateful=True)])
    with pytest.raises(ValueError, match="no stateful layers"):
        kp.shrink(stateful)
    if keras.backend.backend() != "tensorflow":
        first = keras.Sequential(
            [keras.Input((3, 8, 8)), L.Conv2D(4, 3, data_format="channels_first"), L.Flatten()]
        )
        with pytest.raises(ValueError, match='data_format="channels_first"'):
            kp.shrink(first)


def test_a_model_in_mid_schedule():
    model = mlp()
    model.compile("sgd", "mse")
    pruning = kp.GradualPruning(
        kp.PolynomialDecay(
            initial_sparsity=0.1, final_sparsity=0.5, begin_step=0, end_step=100, frequency=1
        ),
        pattern=kp.Channel(),
    )
    with pytest.warns(UserWarning, match="too short"):
        model.fit(X, np.zeros((64, 3)), batch_size=16, verbose=0, callbacks=[pruning])
    with pytest.raises(ValueError, match="is being pruned by an unfinished training"):
        kp.shrink(model)


def test_a_model_whose_call_cannot_be_traced():
    class Branching(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, inputs):
            if keras.ops.convert_to_numpy(inputs).sum() > 0:
                return self.dense(inputs)
            return inputs

    model = Branching()
    model.build((None, 8))
    with pytest.raises(ValueError, match=r"can be called on keras\.Input tensors"):
        kp.shrink(model)


def test_nothing_to_remove_is_said():
    with pytest.warns(UserWarning, match="Nothing could be removed .* no channel is dead"):
        report = kp.shrink(mlp())
    assert report.macs[0] == report.macs[1]


def test_custom_layers_freeze_what_they_touch_and_nothing_else():
    with pytest.warns(UserWarning, match="Nothing could be removed"):
        report = kp.shrink(NETWORKS["custom_layers"]())
    assert "by position" in report.frozen["read_by_position"]
    assert "no rule for the weights of OwnWeights" in report.frozen["scaled"]
    assert "free" not in report.frozen
