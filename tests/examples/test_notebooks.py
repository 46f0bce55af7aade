"""The notebooks are the guides, and they run."""

import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))


@pytest.mark.backend_free
def test_the_notebooks_are_up_to_date():
    pytest.importorskip("jupytext")
    command = [sys.executable, ROOT / "docs/notebooks.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr} Run `python docs/notebooks.py`."


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert setup.source.startswith("%pip install")
    if 'or "tensorflow"' not in setup.source and keras.backend.backend() not in setup.source:
        pytest.skip("this guide needs another backend")
    notebook.cells.remove(setup)  # the package and the backend are those of the test
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert not any(
        output.output_type == "error"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
