"""What users of a first year met in `fit`, each as one member of its kind."""

import threading

import keras
import numpy as np
import pytest
from models import EveryStep, kernels, mlp_by_sgd, sparsity

import keras_pruner as kp
from keras_pruner.training.optimizer import find


def fit(model, data, *callbacks, **options):
    options = {"epochs": 4, "batch_size": 16, "verbose": 0} | options
    return model.fit(*data, callbacks=list(callbacks), **options)


@pytest.mark.parametrize("attribute", ["weight_decay", "clipvalue", "beta_1", "learning_rate"])
def test_law_17_what_a_callback_sets_on_the_optimizer_is_the_users(attribute, data):
    class Set(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            setattr(self.model.optimizer, attribute, 0.5)

    optimizer = keras.optimizers.Adam(0.01, weight_decay=0.1)
    model = mlp_by_sgd(optimizer)
    fit(model, data, kp.GradualPruning(0.8), Set())
    assert model.optimizer is optimizer
    assert float(getattr(optimizer, attribute)) == 0.5
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_law_17_methods_that_a_subclass_overrides_are_called(data):
    calls = []

    class Own(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            calls.append(self.learning_rate)
            super().apply(grads, trainable_variables)

    model = mlp_by_sgd(Own(0.1))
    fit(model, data, kp.GradualPruning(0.8))
    assert calls
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_a_warm_restart_that_sets_iterations_back_does_not_stall_the_schedule(data):
    class Restart(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.iterations.assign(0)

    model = mlp_by_sgd()
    fit(model, data, kp.GradualPruning(0.8), Restart())
    assert sparsity(kernels(model)) == pytest.approx(0.8)
    assert int(model.optimizer.iterations) == 4


def test_nothing_left_to_train_is_an_empty_history_as_in_plain_keras(data):
    model = mlp_by_sgd()
    optimizer = model.optimizer
    for callback in (kp.GradualPruning(0.8), kp.KeepZeros()):
        assert fit(model, data, callback, initial_epoch=4).history == {}
        assert find(model) is None
        assert model.optimizer is optimizer
    ended = kp.GradualPruning(0.8)
    fit(model, data, ended)
    assert fit(model, data, ended, initial_epoch=4).history == {}
    assert find(model) is None
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_an_optimizer_that_is_replaced_in_the_middle_is_refused(data):
    class Replace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.optimizer = keras.optimizers.SGD(0.01)

    model = mlp_by_sgd()
    with pytest.raises(RuntimeError, match=r"was replaced in the middle.*learning_rate"):
        fit(model, data, kp.GradualPruning(0.8), Replace())


def test_a_model_compiled_anew_in_mid_schedule_goes_on_with_the_same_callback(data):
    callback = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=20))
    model = mlp_by_sgd(run_eagerly=True)
    start = model.get_weights()
    with pytest.warns(UserWarning, match="too short"):
        fit(model, data, callback)
    model.compile(keras.optimizers.SGD(0.01), loss=model.loss, run_eagerly=True)
    fit(model, data, callback, epochs=2)
    assert callback.pruner.step == 24
    assert sparsity(kernels(model)) == pytest.approx(0.8)
    # Another fold of a cross-validation: the zeros are gone, and the schedule begins anew.
    again = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=20))
    for _ in range(2):
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.01), loss=model.loss, run_eagerly=True)
        with pytest.warns(UserWarning, match="ends at step 16"):
            fit(model, data, again)
        assert again.pruner.step == 16


def test_terminate_on_nan_stops_quietly_with_a_history(data):
    model = mlp_by_sgd(keras.optimizers.SGD(1e30))
    history = fit(model, data, kp.GradualPruning(0.8), keras.callbacks.TerminateOnNaN())
    assert len(history.history["loss"]) == 1


@pytest.mark.parametrize("make", [lambda: kp.GradualPruning(0.8), kp.KeepZeros])
def test_a_fit_per_epoch_with_one_callback_compiles_the_step_once(make, data):
    model, callback = mlp_by_sgd(), make()
    fit(model, data, callback)
    steps = []
    see = EveryStep(lambda model: steps.append(model.train_function))
    for _ in range(3):
        fit(model, data, callback, see, epochs=1)
    assert len(set(map(id, steps))) == 1
    model.compile(keras.optimizers.SGD(0.1), loss=model.loss)
    fit(model, data, callback, see, epochs=1)
    assert len(set(map(id, steps))) == 2


def test_a_model_pruned_in_two_threads_is_refused_in_the_second(data):
    model, errors = mlp_by_sgd(), []

    class Second(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1 and not errors:
                thread = threading.Thread(target=self.train)
                thread.start()
                thread.join()

        def train(self):
            try:
                fit(model, data, kp.GradualPruning(0.5))
            except RuntimeError as error:
                errors.append(str(error))

    fit(model, data, kp.GradualPruning(0.8), Second())
    assert "in another thread" in errors[0]
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_a_best_file_from_before_the_zeros_is_told(data, tmp_path):
    def run(wrap):
        best = keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", "loss", mode="max", save_best_only=True
        )  # the first epoch has the largest loss
        fit(mlp_by_sgd(keras.optimizers.SGD(0.5)), data, kp.GradualPruning(0.8), wrap(best))
        return sparsity(kernels(keras.saving.load_model(tmp_path / "best.keras")))

    with pytest.warns(UserWarning, match=r"best\.keras.*denser than the model.*kp\.WhenSparse"):
        assert run(lambda callback: callback) < 0.8
    assert run(kp.WhenSparse) == pytest.approx(0.8)


def test_a_best_file_is_told_where_the_training_stops_before_the_zeros(data, tmp_path):
    def stop(*callbacks):
        early = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=0)
        with pytest.warns() as told:
            fit(mlp_by_sgd(), data, kp.GradualPruning(0.8), early, *callbacks)
        return " ".join(str(each.message) for each in told)

    def best(mode):
        path = tmp_path / f"{mode}.keras"
        return keras.callbacks.ModelCheckpoint(path, "loss", mode=mode, save_best_only=True)

    told = stop(best("max"))  # the first epoch has the largest loss
    assert "was stopped at step" in told
    assert "max.keras') has saved an epoch from before the final sparsity" in told
    assert "min.keras" not in stop(best("min"))  # the last epoch: the file is the model


def test_when_sparse_that_never_woke_says_so(data):
    schedule = kp.PolynomialDecay(0.8, end_step=99)
    lazy = kp.WhenSparse(keras.callbacks.EarlyStopping("loss"))
    with pytest.warns() as told:
        fit(mlp_by_sgd(), data, kp.GradualPruning(schedule), lazy)
    said = [str(each.message) for each in told]
    assert any("EarlyStopping" in each and "was never called" in each for each in said)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_that_runs_out_before_the_end_of_the_schedule_is_told(data):
    def batches():
        for i in range(0, 48, 16):
            yield data[0][i : i + 16], data[1][i : i + 16]

    with pytest.warns(UserWarning, match="before the end of the schedule"):
        mlp_by_sgd().fit(
            batches(),
            steps_per_epoch=10,
            shuffle=False,
            verbose=0,
            callbacks=[kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=8))],
        )


def test_a_plain_fit_after_an_interrupted_one_says_that_it_does_not_advance(data):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model = mlp_by_sgd()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, kp.GradualPruning(0.8), Interrupt())
    reached = sparsity(kernels(model))
    with pytest.warns(UserWarning, match="this training does not advance it"):
        fit(model, data)
    assert sparsity(kernels(model)) == reached


def test_a_list_of_callbacks_without_params_works_where_the_schedule_has_an_end(data):
    def drive(callback):
        model = mlp_by_sgd()
        callbacks = keras.callbacks.CallbackList([callback], model=model)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(0)
        for batch in range(6):
            callbacks.on_train_batch_begin(batch)
            model.train_on_batch(*data)
        callbacks.on_epoch_end(0)
        callbacks.on_train_end()
        return sparsity(kernels(model))

    assert drive(kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=4))) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"kp\.Pruner"):
        drive(kp.GradualPruning(0.8))


def test_an_optimizer_that_trains_more_than_the_pruners_model_names_the_ways_out(data):
    encoder, projector = mlp_by_sgd(), mlp_by_sgd()
    pruner = kp.Pruner(encoder, kp.ConstantSparsity(0.5))
    optimizer = pruner.wrap(keras.optimizers.SGD())
    pruner.update()
    variables = [*encoder.trainable_variables, *projector.trainable_variables]
    gradients = [keras.ops.zeros(v.shape) for v in variables]
    with pytest.raises(ValueError, match=r"built for .*optimizer\.build\("):
        optimizer.apply(gradients, variables)
    numbers = [keras.ops.copy(v.value) for v in variables]
    with pytest.raises(ValueError, match=r"8 weights to train.*built for 4"):
        optimizer.stateless_apply([v.value for v in optimizer.variables], gradients, numbers)
    both = keras.optimizers.SGD()
    both.build(variables)
    kp.Pruner(encoder, kp.ConstantSparsity(0.5)).wrap(both)
    assert len(np.shape(gradients[0])) == 2


def test_a_sparsity_that_a_pattern_cannot_meet_is_told(data):
    with pytest.warns(UserWarning, match=r"0\.5"):
        fit(mlp_by_sgd(), data, kp.GradualPruning(0.5, pattern=kp.Block((8, 10)), filters="hidden"))


def test_a_folder_beside_the_backups_is_no_backup(data, tmp_path):
    (tmp_path / "epoch-best").mkdir()
    fit(mlp_by_sgd(), data, kp.GradualPruning(0.8), kp.callbacks.AtomicBackup(tmp_path))
    assert kp.callbacks.AtomicBackup(tmp_path).epoch == 4
    assert (tmp_path / "epoch-best").exists()
