"""The scripts that the page on many devices names run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "distributed"
ON = {
    "tensorflow": ["tensorflow_mirrored.py", "tensorflow_workers.py"],
    "jax": ["jax_devices.py", "jax_processes.py"],
    "torch": ["torch_ddp.py"],
}


def run(script, folder, *arguments):
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments],
        env={**inherited, "KERAS_BACKEND": keras.backend.backend()},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for scripts in ON.values() for script in scripts])
def test_it_runs_and_prunes_to_80_percent(script, tmp_path):
    if script not in ON.get(keras.backend.backend(), []):
        pytest.skip("a script for another backend")
    said = run(script, tmp_path)
    assert "0.8" in said
    if script in ("tensorflow_workers.py", "torch_ddp.py"):
        assert said.count("sparsity 0.800, 2 equal copies") == 2
    if script == "jax_processes.py":
        assert said.count("epoch 3: sparsity 0.800") == 2


@pytest.mark.slow
def test_a_training_that_is_run_again_has_its_epochs_behind_it(tmp_path):
    assert "0 epochs are done" in run("resume.py", tmp_path, "backups")
    assert "4 epochs are done" in run("resume.py", tmp_path, "backups")
