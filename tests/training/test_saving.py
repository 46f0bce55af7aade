"""Law 13: stop, save, load, continue equals not having stopped, bit for bit."""

import json
import os
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from models import Subclassed, compile_, kernels, label, mlp, sparsity, values
from training_files import Stop, assert_equal, fit

import keras_pruner as kp
from keras_pruner.allocations import lamp
from keras_pruner.training.optimizer import find

SCHEDULE = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=12, frequency=3)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "ema": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [SCHEDULE, 0.8], ids=["explicit", "shorthand"])
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_model_saved_in_mid_schedule_goes_on(optimizer, schedule, data, tmp_path):
    whole = fit(mlp(OPTIMIZERS[optimizer]()), data, kp.GradualPruning(schedule))
    part = mlp(OPTIMIZERS[optimizer]())
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        fit(part, data, kp.GradualPruning(schedule), checkpoint, Stop(2))
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    assert find(loaded) is not None
    fit(loaded, data, kp.GradualPruning(schedule), first=2)
    assert_equal(whole, loaded)
    reached = 0.8 if optimizer != "accumulating" or schedule == 0.8 else SCHEDULE.sparsity_at(6)
    assert sparsity(kernels(loaded)) == pytest.approx(reached, abs=0.01)


@pytest.mark.filterwarnings("ignore:The training is too short")
@pytest.mark.parametrize("schedule", [SCHEDULE, 0.8], ids=["explicit", "shorthand"])
@pytest.mark.parametrize("order", [1, -1])
def test_backup_and_restore_goes_on_wherever_it_stands_in_the_list(schedule, order, data, tmp_path):
    def run(*more):
        model = mlp()
        options = {"epochs": 4, "batch_size": 16, "shuffle": False, "verbose": 0}
        model.fit(*data, callbacks=[kp.GradualPruning(schedule), *more][::order], **options)
        return model

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(keras.callbacks.BackupAndRestore(tmp_path / "backup"), Stop(2))
    restored = run(keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert sparsity(kernels(restored)) == pytest.approx(0.8)
    assert_equal(whole, restored)


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_weights_only_checkpoints_carry_masks_and_count(data, tmp_path):
    whole = fit(mlp(), data, kp.GradualPruning(SCHEDULE))
    path = tmp_path / "{epoch}.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    fit(mlp(), data, kp.GradualPruning(SCHEDULE), checkpoint, last=2)

    class Load(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.load_weights(tmp_path / "2.weights.h5")

    again = fit(mlp(), data, kp.GradualPruning(SCHEDULE), Load(), first=2)
    assert_equal(whole, again)


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_the_masks_are_saved_as_bits(data, tmp_path):
    model = fit(mlp(), data, kp.GradualPruning(SCHEDULE), last=1)
    model.save_weights(tmp_path / "masks.weights.h5")
    with h5py.File(tmp_path / "masks.weights.h5") as file:
        stored = file["optimizer/pruning/vars"]
        sizes = {name: array.nbytes for name, array in stored.items()}
    assert sizes.pop("prunings") + sizes.pop("0.settings") < 3000
    assert sizes == {"0.state": 56, "0.mask0": 10, "0.mask1": 4}


@pytest.mark.parametrize("allocation", ["lamp", {"hidden": 0.9, "head": 0.5}, lamp], ids=label)
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_the_plan_of_a_loaded_model_is_the_one_that_was_saved(allocation, data, tmp_path):
    schedule = kp.PolynomialDecay(0.7909, end_step=12)
    model = fit(mlp(), data, kp.GradualPruning(schedule, allocation=allocation), last=1)
    model.save(tmp_path / "part.keras")
    keras.saving.load_model(tmp_path / "part.keras").save(tmp_path / "again.keras")
    assert find(keras.saving.load_model(tmp_path / "again.keras")).state == find(model).state


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_weights_saved_in_mid_schedule_load_into_the_model_as_it_is_afterwards(
    momentum, data, tmp_path
):
    layers = [keras.Input((8,)), keras.layers.Dense(3, use_bias=False)]
    model = compile_(keras.Sequential(layers), keras.optimizers.SGD(0.1, momentum))
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    fit(model, data, kp.GradualPruning(0.5), saved)
    dense = values(model.weights)
    model.load_weights(tmp_path / "1.weights.h5")
    assert not np.array_equal(dense[0], values(model.weights)[0])


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_loaded_model_trained_without_the_callback_keeps_its_zeros_and_says_so(data, tmp_path):
    model = fit(mlp(), data, kp.GradualPruning(SCHEDULE), last=2)
    model.save(tmp_path / "part.keras")
    reached = sparsity(kernels(model))
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    with pytest.warns(UserWarning, match="unfinished pruning schedule"):
        loaded.train_on_batch(*data)
    assert sparsity(kernels(loaded)) == reached
    pruner = kp.Pruner(loaded)
    for _ in range(8):
        pruner.update()
        loaded.train_on_batch(*data)
    assert sparsity(kernels(loaded)) == pytest.approx(0.8)
    pruner.release()
    assert find(loaded) is None


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_the_wrong_checkpoint_is_an_error_that_says_what_differs(data, tmp_path):
    fit(mlp(), data, kp.GradualPruning(SCHEDULE, filters="head"), last=1).save_weights(
        tmp_path / "other.weights.h5"
    )
    model = fit(mlp(), data, kp.GradualPruning(SCHEDULE), last=1)
    state = find(model).variables
    before = values(state)
    with pytest.raises(ValueError, match="holds no pruning state"):
        model.optimizer.pruning.load_own_variables({})
    with pytest.raises(ValueError, match=r"another plan: 1 masks.*hidden/kernel"):
        model.load_weights(tmp_path / "other.weights.h5")
    for a, b in zip(before, values(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_subclassed_model_goes_on_too(data, tmp_path):
    def start():
        keras.utils.set_random_seed(1)
        model = compile_(Subclassed())
        model(data[0][:1])
        return model

    whole = fit(start(), data, kp.GradualPruning(SCHEDULE))
    part = fit(start(), data, kp.GradualPruning(SCHEDULE), last=2)
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    fit(loaded, data, kp.GradualPruning(SCHEDULE), first=2)
    assert_equal(whole, loaded)


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_mixed_float16_goes_on_too(data, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    whole = fit(mlp(), data, kp.GradualPruning(SCHEDULE))
    part = fit(mlp(), data, kp.GradualPruning(SCHEDULE), last=2)
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    assert find(loaded) is not None
    fit(loaded, data, kp.GradualPruning(SCHEDULE), first=2)
    assert_equal(whole, loaded)


@pytest.mark.parametrize("epochs", [2, 4])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_loss_scale_of_ones_own_is_saved_too(policy, epochs, data, tmp_path):
    """In the midst of the schedule and after its end."""
    keras.config.set_dtype_policy(policy)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=128)
    model = fit(mlp(scaled), data, kp.GradualPruning(SCHEDULE), last=epochs)
    model.save(tmp_path / "scaled.keras")
    loaded = keras.saving.load_model(tmp_path / "scaled.keras")
    assert loaded.optimizer.initial_scale == 128
    assert_equal(model, loaded)
    assert (find(loaded) is None) == (epochs == 4)


def test_a_finished_file_opens_without_this_package(data, tmp_path):
    model = fit(mlp(), data, kp.GradualPruning(0.8))
    model.save(tmp_path / "done.keras")
    code = (
        "import sys, json, keras; m = keras.saving.load_model(sys.argv[1]);"
        "print(json.dumps([type(m.optimizer).__name__, 'keras_pruner' in sys.modules,"
        "int(m.optimizer.iterations)]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "done.keras"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    ).stdout
    assert json.loads(out.splitlines()[-1]) == ["Adam", False, 16]


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULE,
        kp.ConstantSparsity(0.5, begin_step=3),
        kp.PolynomialDecay(0.8),
    ],
    ids=label,
)
def test_the_pruned_optimizer_survives_serialization(schedule, tmp_path):
    model = mlp()
    pruner = kp.Pruner(model, schedule, updates=12, allocation="erk")
    config = model.optimizer.get_config()
    assert pruner.wrap(model.optimizer).get_config() == config
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == config
    assert find(loaded).schedule == schedule
    assert find(loaded).plan.same_as(pruner.plan)


def test_what_is_saved_after_the_end_but_within_fit_trains_on_without_a_word(data, tmp_path):
    """Its zeros are kept; only an unfinished schedule is worth a warning."""
    path = tmp_path / "best.keras"
    best = keras.callbacks.ModelCheckpoint(path, "loss", save_best_only=True)
    fit(mlp(), data, kp.GradualPruning(kp.ConstantSparsity(0.5)), kp.WhenSparse(best))
    loaded = fit(keras.saving.load_model(path), data)
    assert sparsity(kernels(loaded)) == pytest.approx(0.5)
    kp.Pruner(loaded).release()
    assert find(loaded) is None
