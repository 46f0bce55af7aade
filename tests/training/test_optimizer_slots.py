"""Optimizers that update each entry of a weight independently of the others."""

import keras
import numpy as np
import pytest

from keras_pruner.training.optimizer_slots import ELEMENTWISE, updates_elementwise

SETTINGS = [{}, {"weight_decay": 0.1}, {"clipvalue": 0.5}, {"use_ema": True}, {"epsilon": 0.0}]


def trained(kind, settings, live, others):
    """A weight after some steps with random gradients, times `others` where it is not live."""
    optimizer = kind(learning_rate=0.1, **settings)
    weight = keras.Variable(np.arange(12.0).reshape(3, 4) % 3 + 1)
    optimizer.build([weight])
    assert updates_elementwise(optimizer, [weight])
    rng = np.random.default_rng(0)
    for _ in range(4):
        gradient = rng.normal(size=live.shape) * np.where(live, 1, others)
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [weight])
        weight.assign(keras.ops.where(live, weight.value, 0))
    return np.asarray(keras.ops.convert_to_numpy(weight))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_live_entries_do_not_depend_on_the_gradients_of_others(kind, settings):
    if "epsilon" in settings and kind in (keras.optimizers.SGD, keras.optimizers.Lion):
        pytest.skip("has no epsilon")
    live = np.arange(12).reshape(3, 4) % 3 > 0
    one, other = (trained(kind, settings, live, others) for others in (1, 1000))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Muon(),
        lambda: keras.optimizers.Ftrl(),
        lambda: keras.optimizers.Lamb(),
        lambda: keras.optimizers.Adafactor(),
        lambda: keras.optimizers.Adam(clipnorm=1.0),
        lambda: keras.optimizers.SGD(global_clipnorm=1.0),
        lambda: type("Mine", (keras.optimizers.Adam,), {})(),
    ],
    ids=["Muon", "Ftrl", "Lamb", "Adafactor", "clipnorm", "global_clipnorm", "unknown"],
)
def test_other_optimizers_do_not_count_as_elementwise(optimizer):
    assert not updates_elementwise(optimizer(), [])


def test_a_constraint_may_move_any_entry():
    weight = keras.Variable(np.ones((2, 2)))
    weight.constraint = keras.constraints.UnitNorm()
    assert not updates_elementwise(keras.optimizers.SGD(), [weight])
