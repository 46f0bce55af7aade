"""Small models and data that every test can have."""

import gc

import keras
import numpy as np
import pytest

from keras_pruner import schedules


def pytest_runtest_setup(item):
    """Skip what only TensorFlow runs."""
    if item.get_closest_marker("tensorflow") and keras.backend.backend() != "tensorflow":
        pytest.skip("the conversion runs on TensorFlow either way")


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_passed_over():
    """Spare the collector what there is: Keras has it look at everything after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test begins with the same seed, default precision and no leftovers."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session(free_memory=False)  # collected once a module


STEPS_TO_RECOVER = schedules.STEPS_TO_RECOVER


@pytest.fixture(autouse=True, scope="session")
def short_trainings_prune_gradually():
    """Give the trainings of a few steps in the tests the schedule that long ones have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "STEPS_TO_RECOVER", 0)
        yield


@pytest.fixture
def schedules_of_short_trainings(monkeypatch):
    """What users have in trainings of a few steps."""
    monkeypatch.setattr(schedules, "STEPS_TO_RECOVER", STEPS_TO_RECOVER)


@pytest.fixture
def data():
    """64 samples of 8 features in 3 classes that can be learned."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 3))).argmax(1)
    return x, y
