"""SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774) against the slow way it approximates."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.oneshot import sparsegpt


def problem(n=200, inputs=24, outputs=7):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs)) + 1
    return rows.astype("float32"), rng.normal(size=(inputs, outputs)).astype("float32")


def slow(rows, weights, mask):
    """Optimal brain surgeon, an input at a time: remove it, move its part to those behind it."""
    x = rows.astype(float)
    gram = x.T @ x / len(x)
    gram += sparsegpt.DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    weights = weights.astype(float).copy()
    for i in range(len(gram)):
        inverse = np.linalg.inv(gram[i:, i:])
        for c in np.flatnonzero(~mask[i]):
            weights[i:, c] -= weights[i, c] / inverse[0, 0] * inverse[:, 0]
    return weights * mask


@pytest.mark.backend_free
@pytest.mark.parametrize("block", [128, 5])
def test_the_update_is_that_of_one_input_after_another(monkeypatch, block):
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    rows, weights = problem()
    updated, mask = sparsegpt.prune(rows, weights, 60)
    assert mask.sum() == 60
    np.testing.assert_allclose(updated, slow(rows, weights, mask), rtol=1e-3, atol=1e-4)
    assert not updated[~mask].any()


@pytest.mark.backend_free
def test_it_keeps_what_costs_most_to_remove():
    """With inputs that have nothing to do with each other, |w| times the size of the input."""
    rng = np.random.default_rng(1)
    sizes = rng.uniform(0.1, 3, 40)
    rows = np.concatenate([np.diag(sizes), -np.diag(sizes)]).astype("float32")
    weights = rng.normal(size=(40, 6)).astype("float32")
    ridge = sparsegpt.DAMPING * np.square(sizes).mean() * 2 / 80
    _, mask = sparsegpt.prune(rows, weights, 70)
    scores = np.abs(weights) * np.sqrt(np.square(sizes) * 2 / 80 + ridge)[:, None]
    assert scores[mask].min() > scores[~mask].max()


@pytest.mark.backend_free
def test_groups_keep_so_many_each():
    rows, weights = problem()
    groups = sparsegpt.Groups(np.arange(24) // 4, 2)
    updated, mask = sparsegpt.prune(rows, weights, 0, groups)
    np.testing.assert_array_equal(mask.reshape(6, 4, 7).sum(1), 2)
    np.testing.assert_allclose(updated, slow(rows, weights, mask), rtol=1e-3, atol=1e-4)


@pytest.mark.backend_free
def test_nothing_removed_changes_nothing():
    rows, weights = problem()
    updated, mask = sparsegpt.prune(rows, weights, weights.size)
    assert mask.all()
    np.testing.assert_array_equal(updated, weights)


def model_and_samples():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(5, name="head")(x))
    waves = np.random.default_rng(0).normal(size=(128, 8, 8, 4)).astype("float32")
    return model, np.cumsum(waves, axis=1) / 2


def test_a_model_is_pruned_with_the_counts_of_its_allocation():
    reports = {}
    for criterion in (kp.criteria.magnitude, "sparsegpt"):
        model, x = model_and_samples()
        reports[criterion] = kp.prune(model, 0.6, calibration=x, criterion=criterion)
    lamp, gpt = reports[kp.criteria.magnitude], reports["sparsegpt"]
    assert [w.sparsity for w in gpt.weights] == [w.sparsity for w in lamp.weights]
    assert [w.note for w in gpt.weights] == ["SparseGPT"] * 2
    assert all(w.after < w.before for w in gpt.weights)


def test_two_of_four_in_every_tap_of_a_kernel():
    model, x = model_and_samples()
    kp.prune(model, pattern=kp.NM(2, 4), calibration=x, criterion="sparsegpt")
    kernel = keras.ops.convert_to_numpy(model.get_layer("conv").kernel.value)
    np.testing.assert_array_equal(np.count_nonzero(kernel, axis=2), 2)
    head = keras.ops.convert_to_numpy(model.get_layer("head").kernel.value)
    np.testing.assert_array_equal(np.count_nonzero(head.reshape(2, 4, 5), axis=1), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "`calibration` is needed for criterion=sparsegpt"),
        ({"refit": False}, "Received: refit=False"),
        ({"stages": 2}, "Received: stages=2"),
        ({"allocation": "auto"}, 'Received: allocation="auto"'),
        ({"pattern": kp.Block((4, 1))}, "is for unstructured zeros and N:M"),
    ],
)
def test_what_does_not_go_with_it(options, message):
    model, x = model_and_samples()
    options = {"calibration": x, **options}
    with pytest.raises(ValueError, match=message):
        kp.prune(model, 0.5, criterion="sparsegpt", **options)
