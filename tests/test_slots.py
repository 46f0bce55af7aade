"""Zeros that stay zero by themselves."""

import keras
import numpy as np
import pytest

from keras_pruner.slots import ENTRY_BY_ENTRY, keeps_zeros, slots_of

SETTINGS = [{}, {"weight_decay": 0.1}, {"clipvalue": 0.5}, {"use_ema": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ENTRY_BY_ENTRY, ids=lambda kind: kind.__name__)
def test_an_entry_of_zero_stays_zero_under_what_is_known_to_keep_it(kind, settings):
    optimizer = kind(learning_rate=0.1, **settings)
    weight = keras.Variable(np.arange(12.0).reshape(3, 4) % 3)
    optimizer.build([weight])
    assert keeps_zeros(optimizer, [weight])
    live = np.asarray(keras.ops.convert_to_numpy(weight)) != 0
    for slot in slots_of(optimizer, [weight])[0]:
        slot.assign(keras.ops.where(live, slot.value, keras.ops.zeros_like(slot.value)))
    rng = np.random.default_rng(0)
    for _ in range(4):
        gradient = keras.ops.convert_to_tensor(rng.normal(size=live.shape) * live, "float32")
        optimizer.apply([gradient], [weight])
        now = np.asarray(keras.ops.convert_to_numpy(weight))
        assert not now[~live].any()
        assert not np.isnan(now).any()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Muon(),
        lambda: keras.optimizers.Ftrl(),
        lambda: keras.optimizers.Adam(epsilon=0.0),
        lambda: keras.optimizers.Adam(clipnorm=1.0),
        lambda: keras.optimizers.SGD(global_clipnorm=1.0),
        lambda: type("Mine", (keras.optimizers.Adam,), {})(),
    ],
    ids=["mixes", "divides", "no epsilon", "clipnorm", "global_clipnorm", "unknown"],
)
def test_of_all_others_it_is_not_taken_for_granted(optimizer):
    assert not keeps_zeros(optimizer(), [])


def test_a_constraint_may_move_anything():
    weight = keras.Variable(np.ones((2, 2)))
    weight.constraint = keras.constraints.UnitNorm()
    assert not keeps_zeros(keras.optimizers.SGD(), [weight])
