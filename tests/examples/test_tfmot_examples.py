"""The scripts of TFMOT's users run, with the import changed."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "tfmot"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if p.name != "data.py")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_runs(script, tmp_path):
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.backend.backend(),
        "KERAS_HOME": str(tmp_path),
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", str(FOLDER / script)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.backend_free
def test_the_guides_and_examples_are_all_there():
    assert len(SCRIPTS) == 6
    for script in SCRIPTS:
        text = (FOLDER / script).read_text(encoding="utf-8")
        assert "import keras_pruner.tfmot as tfmot" in text
