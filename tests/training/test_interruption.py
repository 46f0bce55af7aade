"""A training killed at any moment goes on from its last complete backup."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from spawning import TIMEOUT, free_ports, start, zeros_of

import keras_pruner as kp

SCRIPT = "interrupted.py"


def live(output, directory, kind, *when):
    """Run the script once: whether it came to its end, and not to where it was to die."""
    when = [*map(str, when)]
    process = start(SCRIPT, output=output, arguments=[str(directory), kind, *when])
    said = process.communicate(timeout=900)[0]
    if process.returncode == 0:
        return True
    assert process.returncode == -signal.SIGKILL, said[-3000:]
    _, place, *numbers = said.splitlines()[-1].split()
    assert [place, *map(float, numbers)] == [when[0], *map(float, when[1:])]
    return False


def result(output):
    return json.loads(Path(f"{output}.0").read_text())


def moments(seed):
    """In turn at a random time, within a mask update, and within the writing of a backup.

    Some never come, for the training may have too little before it.
    """
    random = np.random.default_rng(seed)
    while True:
        yield "after", round(random.uniform(0.05, 0.6), 3)
        yield "update", int(random.integers(1, 4))
        yield "after", round(random.uniform(0.05, 0.6), 3)
        yield "write", int(random.integers(1, 3)), int(random.integers(1, 20))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert live(folder / "out", folder / "backups", "atomic", "never")
    return result(folder / "out")


def killed(kills, folder):
    """Two lines of trainings, each killed so often, each run again until it ends."""

    def line(seed):
        deaths, ended, when = [], [], moments(seed)
        while len(deaths) < kills:
            output, directory = (folder / f"{seed}-{len(ended)}{end}" for end in ("", ".d"))
            while True:
                moment = next(when) if len(deaths) < kills else ("never",)
                if live(output, directory, "atomic", *moment):
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
def test_a_training_killed_at_each_kind_of_moment_ends_as_if_it_had_not_been(whole, tmp_path):
    where = tmp_path / "out", tmp_path / "backups", "atomic"
    for moment in (("write", 2, 9), ("update", 2), ("name", 1)):  # all within the second epoch
        assert not live(*where, *moment)
        assert kp.callbacks.AtomicBackup(where[1]).epoch == 1
    assert live(*where, "never")
    assert result(tmp_path / "out")["values"] == whole["values"]
    assert zeros_of(whole["weights"])[1] == 0.75


@pytest.mark.slow
def test_a_training_killed_at_20_random_moments_ends_as_if_it_had_not_been(whole, tmp_path):
    deaths, ended = killed(10, tmp_path)
    assert len(deaths) == 20
    assert {moment[0] for moment in deaths} == {"after", "update", "write"}
    for each in ended:
        assert each["values"] == whole["values"]


@pytest.mark.slow
def test_with_backup_and_restore_of_keras_an_epoch_may_be_repeated_but_no_mask_is_wrong(tmp_path):
    """The script looks at masks and zeros at the end of every epoch.

    Killed within the first backup, or within the number of the epoch, Keras cannot begin again:
    `test_backup.py::test_what_a_kill_within_a_backup_of_keras_leaves`.
    """
    where = tmp_path / "out", tmp_path / "backups", "keras"
    for moment in (("write", 2, 9), ("name", 1), ("update", 3)):
        assert not live(*where, *moment)
    assert live(*where, "never")
    ended = result(tmp_path / "out")
    repeated = [steps - 4 * (epoch + 1) for epoch, steps in ended["steps"]]
    assert set(repeated) == {4}
    assert zeros_of(ended["weights"])[1] == 0.75


TWO = "interrupted_job.py"


def job(output, directory, *victim):
    """Run a job of two processes; a victim (rank, step) is killed, and then the other."""
    ports = free_ports(2)
    arguments = [str(directory), *map(str, victim)]
    running = [start(TWO, rank, 2, ports, output, arguments) for rank in range(2)]
    try:
        if victim:
            said = running[victim[0]].communicate(timeout=TIMEOUT)[0]
            assert running[victim[0]].returncode == -signal.SIGKILL, said[-3000:]
            return None
        for process in running:
            said = process.communicate(timeout=TIMEOUT)[0]
            assert process.returncode == 0, said[-3000:]
        return [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(2)]
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="not shown on this backend")
def test_a_job_of_two_processes_killed_twice_ends_as_if_it_had_not_been(tmp_path):
    whole = job(tmp_path / "whole", tmp_path / "whole.d")
    assert whole[0]["begun at"] == 0
    assert whole[0]["weights"] == whole[1]["weights"]
    assert zeros_of(whole[0]["weights"])[1] == 0.75
    out, directory = tmp_path / "out", tmp_path / "backups"
    job(out, directory, 1, 6)  # within the second epoch, the second process
    job(out, directory, 0, 11)  # within the third, the first process
    resumed = job(out, directory)
    for each, expected in zip(resumed, whole, strict=True):
        assert each["begun at"] == 2
        assert each["weights"] == expected["weights"]
        assert each["masks"] == expected["masks"]
