"""Masks chosen in rounds of refitting, against the best of all masks."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.model_weights import view_of
from keras_pruner.oneshot.least_squares import DAMPING, System
from keras_pruner.oneshot.reconstruct import Removal
from keras_pruner.plan import Target


def removal(inputs, outputs, pattern):
    """Of the kernel of one Dense layer."""
    layer = layers.Dense(outputs)
    layer.build((None, inputs))
    return Removal(Target("kernel", view_of(layer, layer.kernel), pattern))


def problem(seed, n=200, inputs=8, outputs=1):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(1, n, inputs)) @ rng.normal(size=(inputs, inputs))
    weights = rng.normal(size=(1, inputs, outputs))
    return rows.astype("float32"), weights.astype("float32")


def chosen(rows, weights, mask, pattern):
    found = removal(*weights.shape[1:], pattern)
    system = System.of(rows, rows @ weights, weights, shift=False)
    return found.choose(system, weights, mask, rows.shape[1])


def best(scores, kept):
    return (scores >= np.sort(scores, axis=None)[-kept]).reshape(scores.shape)


def cost(rows, weights, kept):
    """Squared error of one output after the best refit of some inputs, in float64."""
    x, w = rows[0].astype(float), weights[0, :, 0].astype(float)
    gram = x.T @ x / len(x)
    ridge = DAMPING * np.diag(gram).mean()
    kept = np.flatnonzero(kept)
    left = gram[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
    fitted = np.linalg.solve(left, (gram @ w + ridge * w)[kept])
    return np.square(x @ w - x[:, kept] @ fitted).mean()


def test_it_comes_near_the_best_of_all_masks_where_magnitudes_do_not():
    ratios = []
    for seed in range(20):
        rows, weights = problem(seed)
        by_size = best(np.abs(weights), 4)
        found = chosen(rows, weights, by_size, kp.Unstructured())
        masks = [np.isin(np.arange(8), kept) for kept in itertools.combinations(range(8), 4)]
        least = min(cost(rows, weights, mask) for mask in masks)
        ratios.append([cost(rows, weights, mask.reshape(-1)) / least for mask in (found, by_size)])
    found, by_size = np.median(ratios, axis=0)
    assert 1 <= found < 1.5
    assert by_size > 2 * found


def test_inputs_that_have_nothing_in_common_stay_by_weight_times_size():
    rng = np.random.default_rng(0)
    sizes = np.diag(rng.uniform(0.1, 3, 40))
    rows = np.concatenate([sizes, -sizes]).astype("float32")[None]
    weights = rng.normal(size=(1, 40, 6)).astype("float32")
    scores = np.abs(weights) * np.sqrt(np.square(rows[0]).mean(0))[:, None]
    found = chosen(rows, weights, best(np.abs(weights), 60), kp.Unstructured())
    assert scores[found].min() > 0.99 * scores[~found].max()  # but for the ridge
    assert found.sum() == 60


PATTERNS = [kp.Unstructured(), kp.Block((4, 1)), kp.Block((3, 2)), kp.NM(2, 4), kp.Channel()]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("inputs", [16, 18])
def test_as_many_units_stay_and_the_pattern_holds(pattern, inputs):
    rows, weights = problem(1, inputs=inputs, outputs=6)
    sparsity = None if isinstance(pattern, kp.NM) else 0.6
    mask = pattern(np.abs(weights[0]), sparsity)
    found = chosen(rows, weights, mask[None], pattern)[0]
    again = pattern(found.astype("float32"), sparsity)
    np.testing.assert_array_equal(found, again)
    assert (mask != found).any()


def test_what_is_zero_stays_zero():
    rows, weights = problem(2, outputs=5)
    weights[0, 3] = 0
    found = chosen(rows, weights, best(np.abs(weights), 20), kp.Unstructured())
    assert not found[0, 3].any()


def test_a_zero_among_others_does_not_condemn_its_block():
    rows, weights = problem(2, outputs=5)
    weights[0, 1] = 0  # one in each of the upper blocks
    pattern = kp.Block((4, 1))
    found = chosen(rows, weights, pattern(np.abs(weights[0]), 0.5)[None], pattern)
    assert found[0, 0].any()


@pytest.mark.parametrize("case", ["few rows", "nothing to remove"])
def test_the_mask_given_stays(case):
    rows, weights = problem(3, n=15 if case == "few rows" else 20)
    mask = best(np.abs(weights), 4 if case == "few rows" else 8)
    assert chosen(rows, weights, mask, kp.Unstructured()) is mask


# ---------------------------------------------------------------------- in `prune`


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, groups=2, use_bias=False, name="grouped")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, name="conv")(x))
    model = keras.Model(inputs, layers.Dense(5, name="head")(x))
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:  # the same on every backend
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1])))
    return model


def samples():
    waves = np.random.default_rng(0).normal(size=(192, 8, 8, 4)).astype("float32")
    return np.cumsum(waves, axis=1) / 2


@pytest.mark.parametrize("pattern", [kp.Unstructured(), kp.Block((4, 1)), kp.NM(2, 4)], ids=repr)
def test_it_is_what_a_refit_does_and_its_first_layer_beats_magnitudes(pattern):
    """The layers behind it have other inputs, so that only the first can be compared."""
    sparsity = None if isinstance(pattern, kp.NM) else 0.7
    options = {"pattern": pattern, "filters": ["conv", "head"], "calibration": samples()}
    options |= {} if sparsity is None else {"allocation": "uniform"}
    reports = {
        criterion: kp.prune(network(), sparsity, criterion=criterion, **options)
        for criterion in (None, kp.criteria.magnitude)
    }
    in_rounds, by_size = reports.values()
    assert in_rounds.weights[0].path == "conv/kernel"
    assert in_rounds.weights[0].after < 0.9 * by_size.weights[0].after
    assert [w.sparsity for w in in_rounds.weights] == [w.sparsity for w in by_size.weights]
    assert {w.note for w in in_rounds.weights} == {"refitted"}
