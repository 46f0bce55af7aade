"""`kp.shrink(model, macs=0.5, calibration=x)`: chosen, refitted, cut, and told."""

import keras
import numpy as np
import pytest
from networks import NETWORKS, inputs_of, randomise

import keras_pruner as kp
from keras_pruner.model_graph import functional_form
from keras_pruner.shrink import shrink_model

L = keras.layers


def redundant(seed=0):
    """A network whose 32 hidden units are mixtures of 8, which half of them can replace."""
    random = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((8,)), L.Dense(32, name="hidden"), L.Dense(4)])
    mixing = random.normal(size=(8, 32)).astype("float32")
    model.layers[0].set_weights([mixing, random.normal(size=32).astype("float32")])
    return model


def test_what_can_be_made_up_for_is_made_up_for():
    model = redundant()
    x = np.random.default_rng(1).normal(size=(256, 8)).astype("float32")
    report = kp.shrink(model, macs=0.5, calibration=x)
    assert report.model.get_layer("hidden").units == 16
    assert report.relative_error < 1e-4
    assert report.macs[1] == report.macs[0] / 2
    raw = kp.shrink(model, macs=0.5, calibration=kp.oneshot.Calibration(x, refit=False))
    assert raw.relative_error > 0.05


@pytest.mark.parametrize("name", ["residual", "transformer", "lstm", "shared_and_nested"])
def test_a_target_is_met_and_the_given_model_stays_as_it_was(name):
    model = randomise(NETWORKS[name]())
    form = functional_form(model)
    x = inputs_of(form, 64)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    report = kp.shrink(model, weights=0.8, calibration=x, multiple=1)
    assert report.weights[1] <= 0.8 * report.weights[0] + 1
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), old)
    assert report.relative_error < 1


def test_numbers_of_channels_are_multiples():
    layers = [
        L.Dense(44, activation="relu"),
        L.Dense(36, activation="relu"),
        L.Dense(20),
        L.Dense(3),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    x = np.random.default_rng(0).normal(size=(128, 8))
    for multiple in (1, 8, 16):
        report = kp.shrink(model, macs=0.5, calibration=x, multiple=multiple)
        for group in report.groups:
            assert group.after == group.before or group.after % multiple == 0


def test_a_target_is_not_undershot_where_a_smaller_step_meets_it():
    hidden = [L.Dense(n, activation="relu") for n in (128, 128, 64)]
    model = keras.Sequential([keras.Input((8,)), *hidden, L.Dense(3)])
    x = np.random.default_rng(0).normal(size=(128, 8))
    for asked in (0.8, 0.6, 0.4):
        report = kp.shrink(model, macs=asked, calibration=x)
        assert asked - 0.06 <= report.macs[1] / report.macs[0] <= asked
        assert not report.overshoot or report.macs[1] < 0.95 * asked * report.macs[0]


def test_a_target_that_is_undershot_is_said():
    model = keras.Sequential([keras.Input((8,)), L.Dense(16, name="wide"), L.Dense(3)])
    x = np.random.default_rng(0).normal(size=(64, 8))
    report = kp.shrink(model, macs=0.9, calibration=x)
    assert report.model.get_layer("wide").units == 8
    assert "macs=0.9 was requested, and 0.5 is reached" in str(report)


def test_the_same_channels_stay_when_it_is_done_again():
    model = randomise(NETWORKS["residual"]())
    x = inputs_of(functional_form(model), 64)
    one, two = (kp.shrink(model, macs=0.7, calibration=x, multiple=1) for _ in range(2))
    assert one.groups == two.groups
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_an_override_leaves_channels_alone():
    model = redundant()
    x = np.random.default_rng(1).normal(size=(64, 8))
    with pytest.raises(ValueError, match=r"`macs` must be at least 1 .* left alone by an override"):
        kp.shrink(model, macs=0.5, calibration=x, overrides={"hidden": None})
    with pytest.raises(ValueError, match="`overrides` matches no weight with 'nowhere'"):
        kp.shrink(model, macs=0.5, calibration=x, overrides={"nowhere": None})


def test_distillation_needs_no_labels():
    model = keras.Sequential([keras.Input((8,)), L.Dense(32, activation="tanh"), L.Dense(4)])
    x = np.random.default_rng(1).normal(size=(512, 8)).astype("float32")
    plain, taught = (
        kp.shrink(model, macs=0.25, calibration=kp.oneshot.Calibration(x, distillation_epochs=n))
        for n in (0, 5)
    )
    assert taught.relative_error < plain.relative_error


def test_an_axis_of_unknown_length_is_counted_at_the_samples_size():
    inputs = keras.Input((None, None, 3))
    x = L.Conv2D(16, 3, activation="relu")(inputs)
    x = L.Conv2D(16, 3, strides=2, activation="relu")(x)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).normal(size=(32, 9, 9, 3))
    report = kp.shrink(model, macs=0.7, calibration=images)
    assert report.macs[0] == 7 * 7 * 27 * 16 + 3 * 3 * 144 * 16 + 16 * 2
    assert report.model.input_shape == (None, None, None, 3)


class ByWork:
    """In place of a stopwatch: models with half of the multiplications are twice as fast."""

    def __init__(self, dense, *, progress):
        assert not progress
        self.dense = dense

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def speedup(self, smaller):
        return kp.channels.macs(self.dense) / kp.channels.macs(smaller)


def test_a_speedup_is_met_by_the_largest_model_and_told(monkeypatch):
    monkeypatch.setattr(shrink_model, "Stopwatch", ByWork)
    hidden = [L.Dense(64, activation="relu"), L.Dense(64, activation="relu")]
    model = keras.Sequential([keras.Input((16,)), *hidden, L.Dense(4)])
    x = np.random.default_rng(0).normal(size=(128, 16))
    silent = kp.oneshot.Calibration(x, progress=False)
    report = kp.shrink(model, speedup=2.0, calibration=silent, multiple=1)
    assert report.speedup == report.macs[0] / report.macs[1]
    assert 2.0 <= report.speedup < 2.1
    assert f"{report.speedup:.3g} times as fast in LiteRT here" in str(report)
    with pytest.raises(ValueError, match=r"the fastest was .* Received: speedup=1000"):
        kp.shrink(model, speedup=1000, calibration=silent)


def test_without_a_speedup_none_is_told():
    x = np.random.default_rng(1).normal(size=(64, 8)).astype("float32")
    report = kp.shrink(redundant(), macs=0.5, calibration=x)
    assert report.speedup is None
    assert "as fast" not in str(report)
