"""Equal to what the real TFMOT 0.8.1 did: tests/tfmot/golden/make.py wrote it down."""

import json
import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_pruner.tfmot as tfmot
from keras_pruner.model_weights import WeightView
from keras_pruner.patterns import Unstructured
from keras_pruner.plan import Target
from keras_pruner.selection.top_k import kept_count
from keras_pruner.tfmot.patterns import fitted, pattern_of
from keras_pruner.tfmot.schedules import Steps

S = tfmot.sparsity.keras
FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


def weights(shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def unpacked(digits, shape):
    bits = np.frombuffer(bytes.fromhex(digits), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def mask_of(case, **options):
    """The mask that this package makes for a case."""
    shape = tuple(case["shape"])
    rank = len(shape)
    view = WeightView(shape, (), tuple(range(rank - 2)), (rank - 2,), (rank - 1,))
    target = Target("weight", view, Unstructured(), None, 0)
    pattern = fitted(pattern_of(**options), target)
    if pattern is None:
        return np.ones(shape, bool)
    scores = np.abs(weights(shape))
    if "m_by_n" in options:
        return pattern(scores)
    return pattern.keep(scores, kept_count(pattern.units(shape), case["sparsity"]))


def make(schedule):
    name, args = schedule
    return getattr(S, name)(*args)


@pytest.mark.backend_free
@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda c: str(c["schedule"]))
def test_schedules_equal_those_of_tfmot_at_every_step(case):
    schedule = make(case["schedule"])
    told = [schedule(step) for step in range(130)]
    due = unpacked(case["should_prune"], (130,))
    assert [bool(should) for should, _ in told] == due.tolist()
    np.testing.assert_allclose([s for _, s in told], case["sparsity"], atol=3e-7)


@pytest.mark.backend_free
def test_masks_equal_those_of_tfmot():
    for case in GOLDEN["unstructured"]:
        shape = tuple(case["shape"])
        case = {**case, "shape": (*shape, 1)} if len(shape) == 1 else case
        mine, expected = mask_of(case), unpacked(case["mask"], case["shape"])
        kept = mine.size * (1 - case["sparsity"])
        if abs(kept % 1 - 0.5) < 1e-5:  # in float32 a half may be none, or become one
            assert abs(int(mine.sum()) - int(expected.sum())) <= 1, case
            assert not np.any(mine & ~expected) or not np.any(expected & ~mine), case
        else:
            assert np.array_equal(mine, expected), case


@pytest.mark.backend_free
def test_blocks_equal_those_of_tfmot_unless_it_shifts_them():
    shifted = 0
    for case in GOLDEN["blocks"]:
        mine = mask_of(case, block_size=case["block"], pooling=case["pooling"])
        equal = np.array_equal(mine, unpacked(case["mask"], case["shape"]))
        shifted += case["shifted"] and not equal
        assert equal or case["shifted"], case
    assert shifted  # the defect is among the cases


@pytest.mark.backend_free
def test_m_by_n_equals_that_of_tfmot():
    for case in GOLDEN["m_by_n"]:
        mine = mask_of(case, m_by_n=case["m_by_n"])
        assert np.array_equal(mine, unpacked(case["mask"], case["shape"])), case


@pytest.mark.parametrize("case", GOLDEN["traces"], ids=lambda c: str(c["schedule"]))
def test_a_training_zeroes_the_same_weights_at_the_same_steps(case):
    """At a learning rate of 0, so that the weights are the same in both."""
    layers = [keras.layers.Dense(7), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((9,)), *layers])
    model.set_weights([weights(w.shape, i) for i, w in enumerate(model.get_weights())])
    model = S.prune_low_magnitude(model, pruning_schedule=make(case["schedule"]))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernels = self.model.get_weights()[::2]
            seen.append([np.packbits(w != 0).tobytes().hex() for w in kernels])

    callbacks = [S.UpdatePruningStep(), Note()]
    x, y = weights((16, 9), 5), weights((16, 3), 6)
    model.fit(x, y, 1, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
    schedule = Steps(make(case["schedule"]))
    for step, (mine, its) in enumerate(zip(seen, case["zeros"], strict=True), 1):
        if schedule.end_step is not None and step > schedule.end_step:
            break  # TFMOT may have missed the end: defect 4
        assert mine == its, step


@pytest.mark.slow
@pytest.mark.backend_free
def test_the_golden_results_are_those_of_tfmot_today():
    python = os.environ.get("TFMOT_PYTHON")
    if not python:
        pytest.skip("TFMOT_PYTHON names no environment with tensorflow-model-optimization 0.8.1")
    command = [python, str(FOLDER / "make.py"), "--stdout"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    out = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    assert json.loads(out.stdout.splitlines()[-1]) == GOLDEN
