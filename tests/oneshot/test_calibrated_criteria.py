import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.criteria import LayerInputs, PerOutput, magnitude, needs_inputs, wanda


def inputs():
    return LayerInputs(np.array([[[1.0, 2.0, 0.0], [1.0, -2.0, 0.0]]], "float32"))


def test_statistics_of_the_inputs():
    np.testing.assert_allclose(inputs().rms, [[1, 2, 0]])
    np.testing.assert_allclose(inputs().gram, [[[1, 0, 0], [0, 4, 0], [0, 0, 0]]])


def test_wanda_by_hand():
    weights = np.array([[[3.0, -1.0], [1.0, 1.0], [9.0, 9.0]]], "float32")
    np.testing.assert_allclose(wanda(weights, inputs()), [[[3, 1], [2, 2], [0, 0]]])


def test_within_an_output_the_order_stays_and_ranks_are_even():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 6, 4)) * np.array([1, 10, 100, 1000])
    some = LayerInputs(rng.normal(size=(2, 9, 6)).astype("float32"))
    ranks = PerOutput(wanda)(weights, some)
    np.testing.assert_array_equal(ranks.argsort(axis=1), wanda(weights, some).argsort(axis=1))
    np.testing.assert_allclose(np.sort(ranks, axis=1)[:, :, 0], [np.arange(1, 7) / 6] * 2)


def test_per_output_keeps_as_many_in_each_output():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8)])
    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    criterion = PerOutput(wanda)
    kp.prune(model, 0.75, calibration=x, criterion=criterion, allocation="uniform")
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel.value)
    np.testing.assert_array_equal(np.count_nonzero(kernel, axis=0), 4)


def test_a_criterion_of_magnitudes_may_compare_within_outputs_too():
    weights = np.array([[[3.0, -1.0], [1.0, 2.0]]])
    np.testing.assert_array_equal(PerOutput(magnitude)(weights, None), [[[1.0, 0.5], [0.5, 1.0]]])


def test_a_function_of_the_weights_and_their_inputs_is_a_criterion():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False)])
    x = np.random.default_rng(0).normal(size=(64, 4)) * [1e-3, 1, 1e-3, 1]
    x = x.astype("float32")
    kp.prune(
        model,
        0.5,
        calibration=kp.oneshot.Calibration(x, refit=False),
        criterion=lambda weights, inputs: np.ones_like(weights) * inputs.rms[..., None],
    )
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel.value)
    assert not kernel[[0, 2]].any()
    assert kernel[[1, 3]].all()


@pytest.mark.parametrize(
    ("criterion", "needs"),
    [
        (magnitude, False),
        (wanda, True),
        (PerOutput(wanda), True),
        (np.abs, False),
    ],
)
def test_what_needs_inputs_is_known_by_its_arguments(criterion, needs):
    assert needs_inputs(criterion) is needs


def test_values():
    criterion = PerOutput(wanda)
    config = keras.saving.serialize_keras_object(criterion)
    assert keras.saving.deserialize_keras_object(config) == criterion
    with pytest.raises(ValueError, match="`criterion` must be a function"):
        PerOutput("wanda")
