import keras
import numpy as np
import pytest

from keras_pruner.oneshot import least_squares
from keras_pruner.oneshot.arrays import to_numpy


def problem(seed, n, inputs, outputs, density, groups=1):
    """Correlated inputs, a ragged random mask, targets the mask cannot reach."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, inputs, inputs))
    rows = rng.normal(size=(groups, n, inputs)) @ mixing + 3
    matrix = rng.normal(size=(groups, inputs, outputs))
    targets = rows @ matrix + rng.normal(size=(groups, n, outputs))
    mask = rng.random((groups, inputs, outputs)) < density
    return [a.astype("float32") for a in (rows, targets, matrix)] + [mask]


def direct(rows, targets, matrix, mask, *, shift):
    """(H[S, S] + lam I)^-1 (C + lam W)[S], column by column in float64."""
    solved = np.zeros(matrix.shape)
    for g in range(len(matrix)):
        x, t = rows[g].astype(float), targets[g].astype(float)
        if shift:
            x, t = x - x.mean(0), t - t.mean(0)
        gram, cross = x.T @ x / len(x), x.T @ t / len(x)
        ridge = least_squares.DAMPING * np.diag(gram).mean()
        right = cross + ridge * matrix[g]
        for c in range(matrix.shape[2]):
            kept = mask[g, :, c]
            left = gram[np.ix_(kept, kept)] + ridge * np.eye(kept.sum())
            solved[g, kept, c] = np.linalg.solve(left, right[kept, c])
    return solved


def solve(rows, targets, matrix, mask, *, shift, kind=np.asarray):
    rows, targets, matrix, start = map(kind, (rows, targets, matrix, matrix * mask))
    fit = least_squares.System.of(rows, targets, matrix, shift=shift).refit(start, mask)
    return tuple(to_numpy(a) for a in (fit.matrix, fit.shift))


SIZES = [(400, 50, 30, 0.3, 1), (40, 60, 20, 0.5, 1), (300, 17, 5, 0.1, 3), (90, 9, 1, 0.6, 7)]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("block", [least_squares.BLOCK, 100])
@pytest.mark.parametrize("kind", [np.asarray, keras.ops.convert_to_tensor])
def test_the_same_as_a_direct_solve_in_float64(monkeypatch, size, shift, block, kind):
    monkeypatch.setattr(least_squares, "BLOCK", block)
    monkeypatch.setattr(least_squares, "TOLERANCE_FEW_ROWS", least_squares.TOLERANCE)
    rows, targets, matrix, mask = problem(0, *size)
    found, offset = solve(rows, targets, matrix, mask, shift=shift, kind=kind)
    exact = direct(rows, targets, matrix, mask, shift=shift)
    wanted = rows.astype(float) @ exact
    assert np.linalg.norm(rows @ found - wanted) <= 1e-3 * np.linalg.norm(wanted)
    assert not found[~mask].any()
    if shift:
        gap = (targets - rows @ found).mean(axis=1, keepdims=True)
        np.testing.assert_allclose(offset, gap, atol=1e-3)
    else:
        assert not offset.any()


def test_with_fewer_rows_than_inputs_it_stops_earlier_and_is_no_worse_on_others():
    """What the last iterations gain on the rows they lose on rows that were not seen."""
    rows, targets, matrix, mask = problem(5, 120, 150, 40, 0.3)
    fitted, others = slice(0, 60), slice(60, 120)
    early, late = (
        solve(rows[:, fitted], targets[:, fitted], matrix, mask, shift=False)[0],
        direct(rows[:, fitted], targets[:, fitted], matrix, mask, shift=False),
    )
    errors = [np.square(rows[:, others] @ m - targets[:, others]).sum() for m in (early, late)]
    assert errors[0] < 1.02 * errors[1]


def test_a_full_mask_with_exact_rows_gives_the_weights_back():
    rows, _, matrix, mask = problem(1, 200, 30, 10, 2.0)
    found, offset = solve(rows, rows @ matrix, matrix, mask, shift=True)
    np.testing.assert_allclose(found, matrix, atol=1e-5)
    np.testing.assert_allclose(offset, 0, atol=1e-4)


def test_dead_inputs_keep_their_weights():
    rows, targets, matrix, mask = problem(2, 200, 20, 6, 0.5)
    rows[:, :, 3] = 0
    found, _ = solve(rows, targets, matrix, mask, shift=False)
    np.testing.assert_array_equal(found[:, 3], (matrix * mask)[:, 3])


def test_inputs_that_are_all_zero_change_nothing():
    rows, targets, matrix, mask = problem(3, 50, 8, 4, 0.5)
    found, _ = solve(np.zeros_like(rows), targets, matrix, mask, shift=True)
    np.testing.assert_array_equal(found, matrix * mask)


@pytest.mark.parametrize("kind", [np.asarray, keras.ops.convert_to_tensor])
def test_rescaling_finds_the_factor_and_the_shift_of_each_output(kind):
    rows, _, matrix, _ = problem(4, 100, 8, 4, 1.0)
    outputs = rows @ matrix
    factors = np.array([2.0, 0.5, 1.0, -1.0], "float32")
    fit = least_squares.rescale(*map(kind, (rows, factors * outputs + 5, matrix)))
    np.testing.assert_allclose(to_numpy(fit.matrix), matrix * factors, atol=1e-3)
    np.testing.assert_allclose(to_numpy(fit.shift), 5, atol=1e-2)
