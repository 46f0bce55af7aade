"""The sweep over a cluster, on a cluster of this machine alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "distributed" / "sweep.py"


@pytest.mark.slow
def test_a_sweep_whose_workers_die_goes_on_to_the_plot(tmp_path):
    pytest.importorskip("ray.tune")
    pytest.importorskip("matplotlib")
    small = "--sparsity 0.8 0.95 --allocation lamp --seeds 1 --epochs 4 --samples 500 --die"
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, *small.split()],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads((tmp_path / "results.json").read_text())
    trials.sort(key=lambda trial: trial["sparsity"])
    assert [trial["sparsity"] for trial in trials] == pytest.approx([0.8, 0.95], abs=1e-3)
    assert trials[0]["bytes"] > trials[1]["bytes"]
    for trial in trials:
        assert trial["epochs"] == 4
        assert trial["begun_at"] == 2  # its first worker died after that epoch
    assert (tmp_path / "pareto.png").stat().st_size > 1000
