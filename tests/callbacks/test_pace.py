"""An open schedule follows the pace of the training, where data runs out or hides its length."""

import keras
import pytest
from models import kernels, mlp, sparsity
from training_files import Stop, assert_equal

import keras_pruner as kp

pytestmark = [
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:The training is too short"),
]


class Batches(keras.utils.PyDataset):
    """Ten batches; with seven asked for in each epoch, epochs have 7, 3, 7, 3."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return 10

    def __getitem__(self, i):
        x, y = self.data
        return x[6 * i : 6 * i + 6], y[6 * i : 6 * i + 6]


def generator(data):
    return (Batches(data)[i] for i in range(10))


def run(batches, *callbacks, model=None, **options):
    model = model or mlp()
    options = {"epochs": 4, "steps_per_epoch": 7, "shuffle": False, "verbose": 0} | options
    model.fit(batches, callbacks=list(callbacks), **options)
    return model


SCHEDULES = {
    "shorthand": lambda: kp.GradualPruning(0.8),
    "late": lambda: kp.GradualPruning(kp.PolynomialDecay(0.8, begin_step=8)),
    "epochs": lambda: kp.GradualPruning(0.8, epochs=(1, 4)),
    "late epochs": lambda: kp.GradualPruning(0.8, epochs=(3, 4)),
    "function": lambda: kp.GradualPruning(lambda step: 0.2 if step < 5 else 0.8),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_an_open_schedule_ends_where_data_runs_out(make, data, tmp_path):
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "sparse.keras")
    callback = make()
    model = run(Batches(data), callback, kp.WhenSparse(saved))
    assert sparsity(kernels(model)) == pytest.approx(0.8, abs=0.01)
    assert callback.pruner.schedule.end_step in (15, 17, 20)
    loaded = keras.saving.load_model(tmp_path / "sparse.keras", safe_mode=False)
    assert sparsity(kernels(loaded)) >= 0.79


def test_with_gradient_accumulation_too(data):
    model = mlp(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2))
    run(Batches(data), kp.GradualPruning(0.8), model=model)
    assert sparsity(kernels(model)) == pytest.approx(0.8, abs=0.01)


def test_a_pace_that_is_kept_changes_nothing(data):
    callback = kp.GradualPruning(0.8)
    run(Batches(data), callback, steps_per_epoch=5)
    assert callback.pruner.schedule.end_step == 15


def test_steps_of_ones_own_are_kept_and_the_end_is_told(data):
    callback = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=25))
    with pytest.warns(UserWarning, match="before the end of the schedule at step 25"):
        run(Batches(data), callback)


@pytest.mark.parametrize("order", [1, -1])
def test_law_13_a_restart_follows_the_same_pace(order, data, tmp_path):
    def training(*more):
        callbacks = [kp.GradualPruning(0.8), *more][::order]
        return run(Batches(data), *callbacks, epochs=6)

    whole = training()
    with pytest.raises(KeyboardInterrupt):
        training(keras.callbacks.BackupAndRestore(tmp_path), Stop(2))
    assert_equal(whole, training(keras.callbacks.BackupAndRestore(tmp_path)))


def test_data_of_unknown_length_is_pruned_from_the_second_epoch_on(data):
    callback, seen, steps = kp.GradualPruning(0.8), [], []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["sparsity"])
            steps.append(int(self.model.optimizer.iterations))

    with pytest.warns(UserWarning, match="begins with the second epoch.*steps_per_epoch"):
        run(generator(data), callback, See(), steps_per_epoch=None)
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(0.8, abs=0.01)
    assert callback.pruner.schedule.begin_step == steps[0]


def test_one_epoch_of_unknown_length_is_refused(data):
    with pytest.raises(ValueError, match=r"length of this one is unknown.*steps_per_epoch"):
        run(generator(data), kp.GradualPruning(0.8), steps_per_epoch=None, epochs=1)


def test_a_training_that_stops_while_it_waits_says_so(data):
    class StopAtOnce(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.warns() as told:
        run(generator(data), kp.GradualPruning(0.8), StopAtOnce(), steps_per_epoch=None)
    assert any("before pruning began" in str(each.message) for each in told)


def test_where_data_runs_out_validation_sees_the_masks_of_the_epoch(data):
    zeros = {"on_test_begin": [], "on_epoch_end": []}

    class See(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            zeros["on_test_begin"].append(sparsity(kernels(self.model)))

        def on_epoch_end(self, epoch, logs=None):
            zeros["on_epoch_end"].append(sparsity(kernels(self.model)))

    steps = {"end_step": 10, "frequency": 1, "power": 1}
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.1, **steps)
    options = {"steps_per_epoch": 12, "validation_data": data, "epochs": 1}
    run(generator(data), kp.GradualPruning(schedule), See(), **options)
    assert zeros["on_test_begin"] == zeros["on_epoch_end"]
    assert len(zeros["on_epoch_end"]) == 1
