"""Law 18: every file opens compiled in plain Keras, and with this package it resumes exactly."""

import copy
import json
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from models import kernels, mlp, sparsity, values
from training_files import Epochs, Stop, assert_equal, fit

import keras_pruner as kp
from keras_pruner.training.optimizer import find

WITHOUT_THIS_PACKAGE = """
import json, sys, warnings
sys.modules["keras_pruner"] = None
import keras, numpy as np
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
found = {}
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    optimizer = model.optimizer
    state = [keras.ops.convert_to_numpy(v) for v in optimizer.variables]
    if path.endswith(".keras"):  # Keras builds the optimizer of an .h5 file for no variables
        model.train_on_batch(np.ones((4, 8), "float32"), np.ones(4, "int32"))
    found[path] = [type(optimizer).__name__, optimizer.get_config(), [s.tolist() for s in state]]
json.dump(found, open(sys.argv[1], "w"))
"""


def open_in_plain_keras(folder, paths):
    """Class name, config and variables of the optimizer of each file."""
    code = [sys.executable, "-c", WITHOUT_THIS_PACKAGE, folder / "found.json", *paths]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    ran = subprocess.run(code, capture_output=True, text=True, cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    return [found[str(path)] for path in paths]


class Note(keras.callbacks.Callback):
    """The optimizer's own variables at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.own = []

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        count = len(optimizer.variables) - len(find(self.model).variables)
        self.own.append(values(optimizer.variables[:count]))


def tuned():
    return keras.optimizers.Adam(0.01, beta_1=0.8, weight_decay=0.01)


@pytest.mark.filterwarnings("ignore:.*before the end of the schedule")
def test_law_18_files_of_every_callback_open_with_the_optimizers_state(data, tmp_path):
    """Of each epoch, of the sparse ones, after Ctrl-C, and in the legacy format."""
    checkpoints = [
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        kp.WhenSparse(keras.callbacks.ModelCheckpoint(tmp_path / "sparse{epoch}.keras")),
    ]
    model, note = mlp(tuned()), Note()
    config = model.optimizer.get_config()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, kp.GradualPruning(0.8), note, *checkpoints, Stop(3))
    model.save(tmp_path / "interrupted.keras")
    model.save(tmp_path / "legacy.h5")
    names = ["1.keras", "2.keras", "3.keras", "sparse3.keras", "interrupted.keras", "legacy.h5"]
    found = open_in_plain_keras(tmp_path, [tmp_path / name for name in names])
    for (kind, saved, state), own in zip(found, [*note.own, *note.own[-1:] * 3], strict=True):
        assert kind == "Adam"
        assert saved == config
        assert len(state) in (len(own), 2)
        for a, b in zip(state, own, strict=False):
            np.testing.assert_array_equal(np.array(a, b.dtype), b)


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_law_18_other_optimizers_of_keras_open_too(data, tmp_path):
    kinds = ["SGD", "AdamW", "Muon", "LossScaleOptimizer"]
    for kind in kinds:
        make = getattr(keras.optimizers, kind)
        optimizer = make(keras.optimizers.Adam(0.01)) if kind.startswith("Loss") else make(0.01)
        model = fit(mlp(optimizer), data, kp.GradualPruning(0.8), last=1)
        if kind == "SGD":
            later = kp.PolynomialDecay(0.8, end_step=99)
            model = fit(model, data, kp.GradualPruning(later), last=1)
        model.save(tmp_path / f"{kind}.keras")
    found = open_in_plain_keras(tmp_path, [tmp_path / f"{kind}.keras" for kind in kinds])
    assert [kind for kind, *_ in found] == kinds


@keras.saving.register_keras_serializable("tests")
class OwnAdam(keras.optimizers.Adam):
    """An optimizer class of a user's own."""


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_file_with_an_optimizer_class_of_ones_own_begins_anew_with_a_word(data, tmp_path):
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=12, frequency=3)
    whole = fit(mlp(OwnAdam(0.01)), data, kp.GradualPruning(schedule))
    part = fit(mlp(OwnAdam(0.01)), data, kp.GradualPruning(schedule), last=2)
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    assert type(loaded.optimizer) is OwnAdam
    assert int(loaded.optimizer.iterations) == 8
    with pytest.warns(UserWarning, match=r"class of your own, such as OwnAdam.*load_weights"):
        fit(loaded, data, kp.GradualPruning(0.9), first=2)

    class Load(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.load_weights(tmp_path / "part.keras")

    again = fit(mlp(OwnAdam(0.01)), data, kp.GradualPruning(schedule), Load(), first=2)
    assert_equal(whole, again)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
@pytest.mark.filterwarnings("ignore:The training is too short")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_copied_model_goes_on(again, data):
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=12, frequency=3)
    whole = fit(mlp(), data, kp.GradualPruning(schedule))
    part = fit(mlp(), data, kp.GradualPruning(schedule), last=2)
    assert_equal(whole, fit(again(part), data, kp.GradualPruning(schedule), first=2))


@pytest.mark.filterwarnings("ignore:The training is too short")
@pytest.mark.parametrize("problem", ["Own", "safe_mode=False"])
def test_a_schedule_that_cannot_be_saved_is_said_when_the_file_is_loaded(problem, data, tmp_path):
    """Its weights and its optimizer are there, and `fit` goes on by loading them."""

    class Own(kp.schedules.Schedule):
        begin_step, end_step, frequency = 0, 12, 4

        def sparsity_at(self, step):
            return 0.5 + step / 40

    stairs = kp.schedules.FunctionSchedule(lambda step: 0.5 if step < 9 else 0.8, end_step=12)
    schedule = {"Own": Own(), "safe_mode=False": stairs}[problem]
    model = fit(mlp(), data, kp.GradualPruning(schedule), last=2)
    model.save(tmp_path / "own.keras")
    with pytest.warns(UserWarning, match=rf"cannot be loaded.*{problem}.*load the file's weights"):
        loaded = keras.saving.load_model(tmp_path / "own.keras")
    assert find(loaded) is None
    assert type(loaded.optimizer) is type(keras.optimizers.Adam())
    assert sparsity(kernels(loaded)) == sparsity(kernels(model))


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_plain_file_stays_plain(data, tmp_path):
    """Also on PyTorch, where Keras names its optimizers otherwise."""
    model = fit(mlp(), data, last=1)
    model.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert not hasattr(loaded.optimizer, "pruning")
    assert len(Epochs(data)) == 4
