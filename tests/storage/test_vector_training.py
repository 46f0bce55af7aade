"""Vectors trained beside rounded kernels."""

import keras
import numpy as np
import pytest

from keras_pruner import model_file
from keras_pruner.oneshot import Calibration, reestimate_batch_norm
from keras_pruner.oneshot.distillation import Teacher
from keras_pruner.storage import vector_training
from keras_pruner.storage.keras_file import save_compressed


def network(lagging=False, dropout=0.5):
    """Narrow layers with batch norms and dropout, which feel the rounding.

    The statistics of lagging batch norms are far from those of the samples.
    """
    layers = [keras.Input((8, 8, 4))]
    for _ in range(3):
        layers += [
            keras.layers.Conv2D(12, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(dropout)]
    model = keras.Sequential([*layers, keras.layers.Dense(5)])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) > 1:
            values = rng.normal(size=variable.shape) * (rng.random(variable.shape) < 0.4)
            variable.assign(values / np.sqrt(np.prod(variable.shape[:-1])))
        elif "moving_variance" in variable.name:
            variable.assign(rng.uniform(0.2, 0.5, variable.shape))
    if not lagging:
        reestimate_batch_norm(model, samples())
    return model


def samples(count=256):
    return np.random.default_rng(1).normal(size=(count, 8, 8, 4)).astype("float32")


def weights(model):
    return [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]


def saved(model, path, epochs, **options):
    calibration = Calibration(samples(), distillation_epochs=epochs, progress=False)
    report = save_compressed(model, path, samples=calibration, **options)
    return report, weights(model_file.load(path))


@pytest.mark.parametrize("lagging", [False, True])
@pytest.mark.parametrize("stored", ["float16", "float8", "shared"])
def test_the_vectors_learn_and_the_kernels_stay(tmp_path, stored, lagging):
    model = network(lagging)
    before = weights(model)
    plain, rounded = saved(model, tmp_path / "a.keras", 0, weights=stored)
    report, trained = saved(model, tmp_path / "b.keras", 20, weights=stored)
    for one, other in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(one, other)  # the model is unchanged
    moved = False
    for one, other in zip(rounded, trained, strict=True):
        if one.ndim > 1:
            np.testing.assert_array_equal(one, other)
        else:
            moved |= not np.array_equal(one, other)
    told = report.distillation
    assert plain.distillation is None
    assert told.epochs == 20
    assert told.kept == moved
    assert stored == "float16" or told.after < 0.8 * told.before
    assert "20 epochs of distillation" in str(report)
    assert report.as_dict()["distillation"]["after"] == told.after
    assert report.rounded == plain.rounded
    assert abs(report.size - plain.size) < 0.1 * plain.size


def test_trained_values_take_less_space(tmp_path):
    model = network()
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
            layer.beta.assign(rng.normal(size=layer.beta.shape))
    before = weights(model)
    _, trained = saved(model, tmp_path / "a.keras", 20, weights="float8")
    vectors = [pair for pair in zip(before, trained, strict=True) if pair[0].ndim == 1]
    moved = [values for untrained, values in vectors if not np.array_equal(untrained, values)]
    assert len(moved) >= 6  # three gammas and betas
    for values in moved:
        np.testing.assert_array_equal(values.view("uint32") & 0xFFF, 0)
    exact, _ = saved(model, tmp_path / "b.keras", 0, weights="float8")
    shorter, _ = saved(model, tmp_path / "c.keras", 20, weights="float8")
    assert shorter.size < exact.size


def test_samples_may_be_a_calibration(tmp_path):
    _, one = saved(network(), tmp_path / "a.keras", 0, weights="float8")
    save_compressed(network(), tmp_path / "b.keras", weights="float8", samples=samples())
    for a, b in zip(one, weights(model_file.load(tmp_path / "b.keras")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_samples_of_a_calibration_are_those_that_it_asks_for(tmp_path):
    model, calibration = network(), Calibration(samples(), samples=32)
    read = calibration.read(model).inputs
    assert len(read) == 32
    found = []
    for name, given in (("a", calibration), ("b", read)):
        save_compressed(model, tmp_path / f"{name}.keras", weights="shared", samples=given)
        found.append(weights(model_file.load(tmp_path / f"{name}.keras")))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("lagging", "ways"), [(False, [False]), (True, [False, True])])
def test_batch_norms_that_lag_are_trained_as_they_are_used(tmp_path, monkeypatch, lagging, ways):
    if not lagging:  # inputs so much alike that their mixtures have the same statistics
        alike = samples()[:1] + 0.1 * samples()
        monkeypatch.setitem(globals(), "samples", lambda: alike)
    seen, teach = [], Teacher.teach

    def noted(teacher, *args):
        seen.append(teacher.as_in_use)
        teach(teacher, *args)

    monkeypatch.setattr(Teacher, "teach", noted)
    model = network(lagging, dropout=0.0)
    report, _ = saved(model, tmp_path / "a.keras", 20, weights="shared")
    assert report.distillation.kept
    assert seen == ways


def test_training_that_makes_it_worse_is_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_training, "_RATE", 1e4)
    _, rounded = saved(network(), tmp_path / "a.keras", 0, weights="shared")
    report, trained = saved(network(), tmp_path / "b.keras", 2, weights="shared")
    assert not report.distillation.kept
    assert "were undone" in str(report)
    for a, b in zip(rounded, trained, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_optimizer_can_come_along(tmp_path):
    model = network()
    model.compile("adam", loss="mse")
    model.fit(samples(64), np.ones((64, 5)), verbose=0)
    report, _ = saved(model, tmp_path / "a.keras", 10, weights="shared", optimizer=True)
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert report.distillation.kept
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations)
    loaded.fit(samples(64), np.ones((64, 5)), verbose=0)


@pytest.mark.parametrize(
    ("trainable", "stored", "message"),
    [
        (True, None, "Received: distillation_epochs=2 with weights=None"),
        (False, "float8", "in which all of them are frozen. Set their layers'"),
    ],
)
def test_there_must_be_something_to_train(tmp_path, trainable, stored, message):
    model = network()
    model.trainable = trainable
    with pytest.raises(ValueError, match=message):
        saved(model, tmp_path / "a.keras", 2, weights=stored)
    assert list(tmp_path.iterdir()) == []
