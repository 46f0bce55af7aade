"""What `import keras_pruner` says where Keras cannot find its backend."""

import importlib.util
import os
import subprocess
import sys

import pytest

from keras_pruner import _import_keras

pytestmark = pytest.mark.backend_free


BACKENDS = ("jax", "torch", "tensorflow")
INSTALLED = next(name for name in BACKENDS if importlib.util.find_spec(name))
OTHERS = [name for name in BACKENDS if name != INSTALLED]


@pytest.mark.parametrize("asked", OTHERS)
def test_a_missing_backend_is_explained_with_the_installed_ones(asked):
    code = f"import sys; sys.modules.update(dict.fromkeys({OTHERS})); import keras_pruner"
    # Without a word Keras takes TensorFlow.
    asked = "" if asked == "tensorflow" else asked
    environment = {**os.environ, "KERAS_BACKEND": asked, "KERAS_HOME": "/nowhere"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "Keras could not import its backend" in last
    assert f"set the environment variable KERAS_BACKEND={INSTALLED}" in last


def test_without_a_backend_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(_import_keras.importlib.util, "find_spec", lambda _: None)
    missing = ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
    assert 'pip install "keras-pruner[jax]"' in _import_keras.explain(missing)


def test_other_errors_are_left_alone():
    assert _import_keras.explain(ModuleNotFoundError("No module named 'h5py'", name="h5py")) == ""
