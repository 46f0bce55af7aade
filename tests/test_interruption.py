"""A training killed at any moment goes on from its last complete backup."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from models import mlp
from spawning import start, zeros_of

import keras_pruner as kp

SCRIPT = "interrupted.py"


def live(output, directory, kind, *when):
    """Run the script once: whether it came to its end."""
    process = start(SCRIPT, output=output, arguments=[str(directory), kind, *map(str, when)])
    said = process.communicate(timeout=900)[0]
    assert process.returncode in (0, -signal.SIGKILL), said[-3000:]
    return process.returncode == 0


def result(output):
    return json.loads(Path(f"{output}.0").read_text())


def moments(seed):
    """In turn at a random time, within a mask update, and within the writing of a backup."""
    random = np.random.default_rng(seed)
    while True:
        yield "after", round(random.uniform(0.05, 0.6), 3)
        yield "update", int(random.integers(1, 4))
        yield "after", round(random.uniform(0.05, 0.6), 3)
        yield "write", int(random.integers(1, 45))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert live(folder / "out", folder / "backups", "atomic", "never")
    return result(folder / "out")


def killed(kind, kills, folder):
    """Two lines of trainings, each killed so often, each run again until it ends."""

    def line(seed):
        deaths, ended, when = [], [], moments(seed)
        while len(deaths) < kills:
            output, directory = (folder / f"{kind}{seed}-{len(ended)}{end}" for end in ("", ".d"))
            while True:
                moment = next(when) if len(deaths) < kills else ("never",)
                if live(output, directory, kind, *moment):
                    break
                deaths.append(moment)
            ended.append(result(output))
        return deaths, ended

    with ThreadPoolExecutor(2) as pool:
        lines = list(pool.map(line, (0, 1)))
    deaths, ended = (
        [each for part in parts for each in part] for parts in zip(*lines, strict=True)
    )
    print(f"{len(deaths)} kills in {len(ended)} trainings: {deaths}")
    return deaths, ended


@pytest.mark.slow
def test_a_training_killed_twice_ends_as_if_it_had_not_been(whole, tmp_path):
    where = tmp_path / "out", tmp_path / "backups", "atomic"
    assert not live(*where, "write", 60)  # within the second backup
    assert kp.AtomicBackup(tmp_path / "backups").epoch == 1
    assert not live(*where, "update", 3)  # within the second epoch from here on
    assert live(*where, "never")
    assert result(tmp_path / "out")["values"] == whole["values"]
    assert zeros_of(whole["weights"])[1] == 0.75


@pytest.mark.slow
def test_a_training_killed_at_20_random_moments_ends_as_if_it_had_not_been(whole, tmp_path):
    deaths, ended = killed("atomic", 10, tmp_path)
    assert len(deaths) == 20
    assert {moment[0] for moment in deaths} == {"after", "update", "write"}
    for each in ended:
        assert each["values"] == whole["values"]


@pytest.mark.slow
def test_with_backup_and_restore_of_keras_masks_are_never_wrong(tmp_path):
    """It may repeat an epoch; the script asserts the masks at the end of every epoch."""
    _, ended = killed("keras", 5, tmp_path)
    for each in ended:
        assert zeros_of(each["weights"])[1] == 0.75


def options(**more):
    return {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0, **more}


def test_a_backup_of_another_plan_is_an_error_that_lists_the_difference(data, tmp_path):
    schedule = kp.PolynomialDecay(0.8, end_step=16, frequency=2)
    head = kp.GradualPruning(schedule, filters="head")
    mlp().fit(*data, callbacks=[head, kp.AtomicBackup(tmp_path)], **options(epochs=4))
    with pytest.raises(ValueError, match=r"another plan: 1 masks.*hidden/kernel"):
        mlp().fit(
            *data,
            callbacks=[kp.GradualPruning(schedule), kp.AtomicBackup(tmp_path)],
            **options(epochs=5),
        )


def test_a_dense_backup_is_an_error_in_a_pruned_run(data, tmp_path):
    mlp().fit(*data, callbacks=[kp.AtomicBackup(tmp_path)], **options())
    with pytest.raises(ValueError, match="holds no pruning state"):
        mlp().fit(*data, callbacks=[kp.GradualPruning(0.8), kp.AtomicBackup(tmp_path)], **options())


def test_when_nothing_is_left_to_train_it_says_so(data, tmp_path):
    def fit(model):
        callbacks = [kp.GradualPruning(0.8), kp.AtomicBackup(tmp_path)]
        model.fit(*data, callbacks=callbacks, **options())
        return model

    first = fit(mlp())
    with pytest.warns(UserWarning, match="Nothing is left to train"):
        again = fit(mlp())
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (a, b)))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-2"]


def test_a_model_without_weights_is_refused(data, tmp_path):
    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(x)

    backup = kp.AtomicBackup(tmp_path)
    backup.set_model(Unbuilt())
    with pytest.raises(ValueError, match="needs a built model"):
        backup.on_train_begin()
