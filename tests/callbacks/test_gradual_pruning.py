"""`GradualPruning`, `KeepZeros` and `WhenSparse` in `fit`."""

import copy
import pickle

import keras
import numpy as np
import pytest
from models import LOSS, EveryStep, compile_, kernels, label, mlp_by_sgd, sparsity, values

import keras_pruner as kp
from keras_pruner.training.optimizer import find

UNITS = 8 * 10 + 10 * 3


def fit(model, data, *callbacks, **options):
    """Four epochs of four steps, if nothing else is said."""
    options = {"epochs": 4, "batch_size": 16, "verbose": 0} | options
    return model.fit(*data, callbacks=list(callbacks), **options).history


def sparsity_per_step():
    return EveryStep(lambda model: sparsity(kernels(model)))


def lawful(s, units=UNITS):
    return 1 - max(1, round(units * (1 - s))) / units


def test_a_number_is_the_cubic_schedule_over_three_quarters_of_the_training(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    history = fit(model, data, kp.GradualPruning(0.8), watch)
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.0, end_step=12)
    assert watch.noted == pytest.approx([lawful(schedule.sparsity_at(t)) for t in range(16)])
    assert history["sparsity"][-1] == pytest.approx(0.8)


def test_the_cubic_schedule_begins_at_the_sparsity_the_model_has(data):
    model = mlp_by_sgd()
    kernel = values([model.layers[0].kernel])[0]
    kernel[:4] = 0
    model.layers[0].kernel.assign(kernel)
    callback = kp.GradualPruning(0.8)
    fit(model, data, callback)
    assert callback.pruner.schedule.initial_sparsity == pytest.approx(40 / UNITS, abs=1e-9)


def test_a_schedule_that_begins_below_the_models_own_sparsity_says_so(data):
    model = mlp_by_sgd()
    kp.prune(model, 0.9)
    with pytest.warns(UserWarning, match=r"sparsity of 0.9 already.*kp.KeepZeros\(\)"):
        model.fit(*data, verbose=0, callbacks=[kp.GradualPruning(0.5)])
    kp.prune(model, 0.9)
    model.fit(*data, verbose=0, callbacks=[kp.KeepZeros()])
    model.fit(*data, verbose=0, callbacks=[kp.GradualPruning(0.9)])


def test_law_6_masks_update_at_begin_at_the_beat_and_at_the_end(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=2, end_step=9, frequency=3)
    fit(model, data, kp.GradualPruning(schedule), watch)
    held = [0, 0, *[schedule.sparsity_at(t) for t in (2, 2, 2, 5, 5, 5, 8)]]
    assert watch.noted == pytest.approx([lawful(s) for s in held] + [lawful(0.8)] * 7)


def test_law_6_with_steps_per_execution_at_the_first_boundary_with_its_sparsity(data):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras refuses steps_per_execution > 1 on torch")
    model, watch = mlp_by_sgd(steps_per_execution=4), sparsity_per_step()
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=2, end_step=9, frequency=3)
    fit(model, data, kp.GradualPruning(schedule), watch)
    # Boundaries at 0, 4, 8, 12; due at 2, at 5 and 8, at 9.
    expected = [0.0, schedule.sparsity_at(4), schedule.sparsity_at(8), 0.8]
    assert watch.noted == pytest.approx([lawful(s) for s in expected])


def test_law_6_an_update_due_at_the_very_end_happens(data):
    model = mlp_by_sgd()
    fit(model, data, kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=16, frequency=100)))
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.8))


def test_law_6_validation_sees_the_masks_that_are_due(data):
    model = mlp_by_sgd()

    class Validation(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            self.seen = sparsity(kernels(self.model))

    validation = Validation()
    callbacks = [kp.GradualPruning(kp.ConstantSparsity(0.8, begin_step=4)), validation]
    model.fit(*data, epochs=1, batch_size=16, verbose=0, validation_data=data, callbacks=callbacks)
    assert validation.seen == pytest.approx(lawful(0.8))


@pytest.mark.parametrize("accumulation", [None, 2])
def test_law_8_steps_count_from_the_beginning_of_the_schedule(accumulation, data):
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=accumulation)
    model, watch = mlp_by_sgd(optimizer), sparsity_per_step()
    fit(model, data)
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=6, frequency=2)
    fit(model, data, kp.GradualPruning(schedule), watch)
    per = accumulation or 1
    expected = [lawful(schedule.sparsity_at(min(6, t // per // 2 * 2))) for t in range(16)]
    assert watch.noted == pytest.approx(expected)


def test_law_8_a_second_fit_goes_on_where_the_first_ended(data):
    schedule = kp.PolynomialDecay(0.8, end_step=12)
    at_once, in_parts = sparsity_per_step(), sparsity_per_step()
    fit(mlp_by_sgd(), data, kp.GradualPruning(schedule), at_once)
    model, callback = mlp_by_sgd(), kp.GradualPruning(schedule)
    for _ in range(2):
        with pytest.warns(UserWarning, match="too short for the schedule"):
            fit(model, data, callback, in_parts, epochs=1)
        assert find(model) is not None
    fit(model, data, callback, in_parts, epochs=2)
    assert in_parts.noted == at_once.noted
    assert find(model) is None


def test_law_8_the_same_callback_holds_the_zeros_after_its_end(data):
    model, callback, watch = mlp_by_sgd(), kp.GradualPruning(0.8), sparsity_per_step()
    fit(model, data, callback)
    zeros = [v == 0 for v in values(kernels(model))]
    fit(model, data, callback, watch)
    assert set(watch.noted) == {lawful(0.8)}
    for before, after in zip(zeros, values(kernels(model)), strict=True):
        np.testing.assert_array_equal(before, after == 0)


def test_law_9_a_training_too_short_says_so_before_it_starts(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    callback = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=100))
    with pytest.warns(UserWarning, match=r"ends at step 16, at a sparsity of 0\.\d+, and the "):
        fit(model, data, callback, watch)
    assert len(watch.noted) == 16
    with pytest.raises(
        ValueError, match=r"Nothing would be pruned: the schedule begins at step 50"
    ):
        fit(mlp_by_sgd(), data, kp.GradualPruning(kp.ConstantSparsity(0.8, begin_step=50)))


@pytest.mark.usefixtures("schedules_of_short_trainings")
def test_a_short_training_is_pruned_in_its_first_step_and_told_so(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    with pytest.warns(UserWarning, match=r"has 16 steps in which to recover from pruning to 0\.8,"):
        fit(model, data, kp.GradualPruning(0.8), watch)
    assert watch.noted == [lawful(0.8)] * 16
    fit(mlp_by_sgd(), data, kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=16)))
    fit(mlp_by_sgd(), data, kp.GradualPruning(kp.ConstantSparsity(0.8)))


@pytest.mark.parametrize(
    ("final", "mapping", "message"),
    [
        (0.8, {"": 0.5}, "gives a sparsity of 0.5 over .* Received: sparsity=0.8"),
        (
            0.5,
            {"hidden": 0.9, "head": 0.5},
            "gives a sparsity of 0.7909 over .* Received: sparsity=0.5",
        ),
        (0.5, {"": 0.5, "typo": 0.5}, "'typo'.* would have no effect"),
        (0.5, {"head": 0.5}, "must have a regex for every weight"),
    ],
)
def test_a_mapping_that_does_not_fit_says_so_before_the_first_batch(final, mapping, message, data):
    schedule = kp.PolynomialDecay(final, begin_step=3, end_step=6)
    seen = sparsity_per_step()
    with pytest.raises(ValueError, match=message):
        fit(mlp_by_sgd(), data, kp.GradualPruning(schedule, allocation=mapping), seen)
    assert not seen.noted


def test_epochs_say_when(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    fit(model, data, kp.GradualPruning(0.8, epochs=(1, 2)), watch)
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.0, begin_step=4, end_step=8)
    assert watch.noted == pytest.approx([lawful(schedule.sparsity_at(t)) for t in range(16)])
    with pytest.raises(ValueError, match="say the same thing twice"):
        kp.GradualPruning(kp.ConstantSparsity(0.8, begin_step=3), epochs=(1, 2))
    with pytest.raises(ValueError, match="first and the last epoch"):
        kp.GradualPruning(0.8, epochs=(2, 1))
    with pytest.raises(ValueError, match="first and the last epoch"):
        kp.GradualPruning(0.8, epochs=4)


def test_data_of_unknown_length_is_refused_by_the_shorthand_and_named(data):
    def batches():
        for _ in range(4):
            yield data

    with pytest.raises(ValueError, match=r"steps_per_epoch.*kp\.PolynomialDecay\(0\.8, end_step"):
        mlp_by_sgd().fit(batches(), shuffle=False, verbose=0, callbacks=[kp.GradualPruning(0.8)])
    model = mlp_by_sgd()
    callbacks = [kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=3))]
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(batches(), shuffle=False, verbose=0, callbacks=callbacks)
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.8))


def test_when_it_is_done_the_optimizer_is_the_users_own_and_the_file_plain(data, tmp_path):
    model = mlp_by_sgd()
    mine = model.optimizer
    fit(model, data, kp.GradualPruning(0.8))
    assert model.optimizer is mine
    assert "keras_pruner" not in str(keras.saving.serialize_keras_object(model))
    assert "keras_pruner" not in str(model.get_compile_config())
    fit(model, data)
    assert sparsity(kernels(model)) < 0.8


def test_evaluate_and_predict_with_the_same_callback_leave_no_trace(data):
    model, callback = mlp_by_sgd(), kp.GradualPruning(0.8)
    fit(model, data, epochs=1)
    mine, step, config = model.optimizer, model.train_function, str(model.get_compile_config())
    model.evaluate(*data, verbose=0, callbacks=[callback])
    model.predict(data[0], verbose=0, callbacks=[callback])
    assert (model.optimizer, model.train_function) == (mine, step)
    assert str(model.get_compile_config()) == config
    fit(model, data, callback)
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.8))


class Interrupt(keras.callbacks.Callback):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if self.error and batch == 2:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")], ids=label)
def test_an_interrupted_fit_is_taken_up_by_the_next(error, data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    schedule = kp.PolynomialDecay(0.8, end_step=6)
    with pytest.raises(type(error)):
        fit(model, data, kp.GradualPruning(schedule), watch, Interrupt(error))
    assert find(model) is not None
    fit(model, data, kp.GradualPruning(schedule), watch)
    expected = [lawful(schedule.sparsity_at(t)) for t in range(19)]
    assert watch.noted == pytest.approx(expected)
    assert find(model) is None


def test_data_that_stops_early_is_not_the_end_of_it(data):
    def batches():
        for _ in range(3):
            yield data

    model = mlp_by_sgd()
    callback = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=8))
    with pytest.warns() as told:
        model.fit(batches(), steps_per_epoch=10, shuffle=False, verbose=0, callbacks=[callback])
    assert any("ran out of data" in str(each.message) for each in told)
    assert any("ended at step" in str(each.message) for each in told)
    assert find(model) is not None
    # On TensorFlow the count may move in the very step that finds no data.
    assert callback.pruner.step == int(model.optimizer.iterations) >= 3


def test_an_unfinished_pruning_of_another_plan_is_replaced_with_a_word(data):
    model = mlp_by_sgd()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, kp.GradualPruning(0.5), Interrupt(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match="was being pruned by another plan"):
        fit(model, data, kp.GradualPruning(0.8, allocation="uniform"))
    assert sparsity([model.layers[0].kernel]) == pytest.approx(0.8)


@pytest.mark.filterwarnings("ignore:.*was being pruned by another plan")
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_of_two_weights_of_one_shape_the_one_that_the_plan_names_is_held_at_zero(data):
    """JAX may take a step that it has compiled for another plan with masks of the same shapes."""
    layers = [keras.Input((8,)), *(keras.layers.Dense(8, name=n) for n in ("first", "second"))]
    model = compile_(keras.Sequential([*layers, keras.layers.Dense(3)]))
    schedule = kp.PolynomialDecay(0.75, initial_sparsity=0.5, end_step=40, frequency=1)
    watch = EveryStep(lambda model: [sparsity([each.kernel]) for each in model.layers[:2]])
    for name in ("first", "second"):
        fit(model, data, kp.GradualPruning(schedule, filters=name), watch, epochs=1)
    for first, second in watch.noted[-4:]:
        assert first == 0
        assert 0.5 <= second < 0.75


def test_dense_then_pruned_then_dense_do_what_they_say(data):
    model = mlp_by_sgd()
    fit(model, data)
    assert sparsity(kernels(model)) == 0
    fit(model, data, kp.GradualPruning(0.5))
    assert sparsity(kernels(model)) == 0.5
    fit(model, data)
    assert sparsity(kernels(model)) < 0.5


def test_keep_zeros_keeps_what_is_zero_and_trains_the_rest(data):
    model, watch = mlp_by_sgd(), sparsity_per_step()
    fit(model, data, kp.GradualPruning(0.8))
    before = values(kernels(model))
    fit(model, data, kp.KeepZeros(), watch)
    assert set(watch.noted) == {lawful(0.8)}
    for old, new in zip(before, values(kernels(model)), strict=True):
        np.testing.assert_array_equal(old == 0, new == 0)
        assert not np.array_equal(old, new)
    assert find(model) is None


def test_keep_zeros_keeps_the_zeros_of_now_after_an_interruption(data):
    model = mlp_by_sgd()
    kp.prune(model, 0.5)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, kp.KeepZeros(), Interrupt(KeyboardInterrupt()))
    kp.prune(model, 0.9)
    fit(model, data, kp.KeepZeros())
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.9))
    assert find(model) is None


def test_keep_zeros_does_not_freeze_a_weight_that_is_zero_altogether(data):
    model = mlp_by_sgd()
    model.layers[1].kernel.assign(np.zeros((10, 3)))
    fit(model, data, kp.KeepZeros())
    assert sparsity([model.layers[1].kernel]) == 0


def test_when_sparse_a_best_epoch_is_one_with_zeros(data):
    def run(wrap):
        model = mlp_by_sgd(keras.optimizers.SGD(0.5))
        early = keras.callbacks.EarlyStopping("loss", restore_best_weights=True, patience=10)
        early.monitor_op, early.mode = np.greater, "max"  # the first epoch looks best
        schedule = kp.ConstantSparsity(0.8, begin_step=8)
        fit(model, data, kp.GradualPruning(schedule), wrap(early))
        return sparsity(kernels(model))

    with pytest.warns(UserWarning, match=r"not zero any more.*kp\.WhenSparse"):
        assert run(lambda callback: callback) < 0.8
    assert run(kp.WhenSparse) == pytest.approx(lawful(0.8))


class Heard(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))],
    ids=["copy", "pickle"],
)
def test_callbacks_can_be_copied_and_sent(again, data):
    """By a search over settings, for one, to other processes."""
    mine = [kp.GradualPruning(0.8, epochs=(0, 2)), kp.WhenSparse(Heard())]
    model, (pruning, lazy) = mlp_by_sgd(), again(mine)
    fit(model, data, pruning, lazy)
    assert lazy.callback.epochs == [1, 2, 3]
    assert mine[1].callback.epochs == []
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.8))
    other = mlp_by_sgd()
    assert fit(other, data, again(pruning))["sparsity"][0] < 0.8  # from the beginning
    assert sparsity(kernels(other)) == pytest.approx(lawful(0.8))


def test_when_sparse_passes_the_logs_on(data):
    epochs = []
    begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    fit(mlp_by_sgd(), data, kp.GradualPruning(0.8, epochs=(0, 1)), kp.WhenSparse(begin))
    assert epochs == [1, 2, 3]


def test_when_sparse_in_the_midst_of_an_epoch_begins_with_that_epoch(data, tmp_path):
    heard = []

    class Listener(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            heard.append(("epoch", epoch))

        def on_train_batch_end(self, batch, logs=None):
            heard.append(("batch", batch))

        def on_test_begin(self, logs=None):
            heard.append(("test",))

    schedule = kp.PolynomialDecay(0.8, end_step=6, frequency=1)  # of four steps an epoch
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_freq=2)
    callbacks = [kp.GradualPruning(schedule), kp.WhenSparse(Listener()), kp.WhenSparse(checkpoint)]
    fit(mlp_by_sgd(), data, *callbacks, epochs=3, validation_data=data)
    second = [("epoch", 1), ("batch", 2), ("batch", 3), ("test",)]
    third = [("epoch", 2), *(("batch", i) for i in range(4)), ("test",)]
    assert heard == second + third
    assert {path.name for path in tmp_path.iterdir()} == {"2.keras", "3.keras"}


def test_when_sparse_has_no_hooks_that_its_callback_has_not():
    """Keras waits for a callback after each batch if it has a hook for it."""
    lazy = kp.WhenSparse(keras.callbacks.EarlyStopping("loss"))
    assert "on_train_batch_end" not in vars(lazy)
    assert "on_epoch_end" in vars(lazy)


def test_what_was_reached_can_be_asked_for_after_the_end(data):
    callback = kp.GradualPruning(0.8)
    fit(mlp_by_sgd(), data, callback)
    assert callback.pruner.finished
    assert callback.pruner.step == 16
    assert callback.pruner.sparsity == pytest.approx(lawful(0.8))


def test_keep_zeros_keeps_what_an_override_admitted(data):
    def network():
        keras.utils.set_random_seed(0)
        layers = [
            keras.Input((8,)),
            keras.layers.Reshape((4, 2, 1)),
            keras.layers.DepthwiseConv2D(2, depth_multiplier=4, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
        return compile_(keras.Sequential(layers))

    overrides = {"depthwise/": 0.5}
    for callback, kept in [(kp.KeepZeros(), 0), (kp.KeepZeros(overrides=overrides), 0.5)]:
        model = network()
        kp.prune(model, 0.5, overrides=overrides)
        assert sparsity([model.layers[1].kernel]) == 0.5
        fit(model, data, callback)
        assert sparsity([model.layers[1].kernel]) == kept
    with pytest.raises(ValueError, match="must be the fraction of weights set to zero"):
        kp.KeepZeros(overrides={"depthwise": "all"})


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_resumed_fit_on_data_of_unknown_length_knows_its_schedule(data):
    model, callback = mlp_by_sgd(), kp.GradualPruning(0.8)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callback, Interrupt(KeyboardInterrupt()))
    before = callback.pruner.step
    x, y = data

    def batches():
        for i in range(0, 64, 16):
            yield x[i : i + 16], y[i : i + 16]

    with pytest.warns(UserWarning, match=r"ended at step \d, .*end of the schedule at step 12"):
        model.fit(batches(), callbacks=[callback], verbose=0, shuffle=False)
    assert callback.pruner.step >= before + 4


def test_a_criterion_that_wants_inputs_is_refused_with_what_to_do():
    for make in (
        lambda c: kp.GradualPruning(0.8, criterion=c),
        lambda c: kp.Pruner(mlp_by_sgd(), 0.8, criterion=c),
    ):
        with pytest.raises(ValueError, match=r"wanda.*kp\.prune\(model, sparsity, calibration"):
            make(kp.criteria.wanda)


def test_what_fails_in_a_step_is_what_is_heard(data):
    def broken(y, prediction):
        raise ZeroDivisionError("a loss with a mistake in it")

    model = mlp_by_sgd()
    model.compile("adam", loss=broken)
    with pytest.raises(ZeroDivisionError, match="a mistake in it"):
        fit(model, data, kp.GradualPruning(0.8))


@pytest.mark.parametrize("order", [1, -1])
def test_weights_denser_than_their_masks_are_told(order, data):
    model = mlp_by_sgd()

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.first = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.first)

    with pytest.warns(UserWarning, match=r"not zero any more.*kp\.WhenSparse") as told:
        fit(model, data, *[Restore(), kp.GradualPruning(0.8)][::order])
    assert sum("not zero any more" in str(each.message) for each in told) == 1
    assert "on_train_end" not in vars(model.history)


@pytest.mark.parametrize("first", [True, False])
def test_what_fails_before_the_first_step_is_what_is_heard(first, data):
    class Broken(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyError("a callback with a mistake in it")

    with pytest.raises(KeyError, match="a mistake in it"):
        fit(mlp_by_sgd(), data, *[Broken(), kp.GradualPruning(0.8)][:: 1 if first else -1])


def test_the_same_callback_in_another_fold_says_that_it_has_ended(data):
    model, callback = mlp_by_sgd(), kp.GradualPruning(0.8)
    fresh = model.get_weights()
    fit(model, data, callback)
    model.set_weights(fresh)
    compile_(model)
    with pytest.warns(UserWarning, match=r"has ended.*'mlp' now has 0: it is.*new callback"):
        fit(model, data, callback)
    model.set_weights(fresh)
    fit(model, data, kp.GradualPruning(0.8))


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_many_batches_for_one_step_are_no_idleness(data):
    model = mlp_by_sgd(keras.optimizers.Adam(gradient_accumulation_steps=120))
    schedule = kp.PolynomialDecay(0.8, end_step=2, frequency=1)
    fit(model, data, kp.GradualPruning(schedule), batch_size=1)
    assert sparsity(kernels(model)) == pytest.approx(lawful(0.8))


def test_when_sparse_without_pruning_is_refused(data):
    with pytest.raises(ValueError, match=r"nothing prunes 'mlp'.*GradualPruning"):
        fit(mlp_by_sgd(), data, kp.WhenSparse(keras.callbacks.EarlyStopping()))
    with pytest.raises(ValueError, match="must be a Keras callback"):
        kp.WhenSparse(3)


def test_a_schedule_of_ones_own_that_speaks_in_per_cent_is_refused(data):
    class PerCent(kp.schedules.Schedule):
        begin_step, end_step, frequency = 0, 4, 1

        def sparsity_at(self, step):
            return 80.0

    with pytest.raises(ValueError, match=r"Received: sparsity=80\.0\. For 80% zeros pass"):
        fit(mlp_by_sgd(), data, kp.GradualPruning(PerCent()))


def test_two_prunings_in_one_fit_are_refused(data):
    with pytest.raises(ValueError, match="Two callbacks prune the same model"):
        fit(mlp_by_sgd(), data, kp.GradualPruning(0.8), kp.KeepZeros())


def test_law_11_a_shared_layer_is_pruned_once_per_step(data):
    inputs, shared = keras.Input((8,)), keras.layers.Dense(8, activation="tanh")
    outputs = keras.layers.Dense(3)(shared(shared(inputs)))
    model = compile_(keras.Model(inputs, outputs))
    callback = kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=8))
    steps = EveryStep(lambda model: callback.pruner.step)
    fit(model, data, callback, steps)
    assert steps.noted == list(range(1, 17))
    assert len(callback.plan.targets) == len(kernels(model))


def test_law_11_frozen_weights_are_left_alone_and_the_plan_says_so(data):
    model = mlp_by_sgd()
    model.layers[0].trainable = False
    compile_(model)
    before = values([model.layers[0].kernel])[0]
    callback = kp.GradualPruning(0.5)
    with pytest.warns(
        UserWarning, match=r"72\.7% of the weights .* left alone.*0\.5 without"
    ) as told:
        fit(model, data, callback)
    assert any("and 0.1364 with them" in str(each.message) for each in told)
    np.testing.assert_array_equal(before, values([model.layers[0].kernel])[0])
    reasons = {skip.path: skip.reason for skip in callback.plan.skipped}
    assert reasons["hidden/kernel"] == "frozen"
    assert sparsity([model.layers[1].kernel]) == 0.5


def test_nan_weights_are_named_and_nothing_is_pruned(data):
    model = mlp_by_sgd()
    kernel = values([model.layers[1].kernel])[0]
    kernel[0, 0] = np.nan
    model.layers[1].kernel.assign(kernel)
    with pytest.raises(ValueError, match=r"head/kernel holds NaN or infinite values"):
        fit(model, data, kp.GradualPruning(kp.ConstantSparsity(0.5)))
    assert sparsity([model.layers[0].kernel]) == 0


def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons(data):
    model = compile_(keras.Sequential([keras.Input((8,)), keras.layers.LayerNormalization()]))
    mine = model.optimizer
    with pytest.raises(ValueError, match=r"(?s)nothing to prune.*a vector"):
        fit(model, data, kp.GradualPruning(0.5))
    assert model.optimizer is mine


def test_patterns_hold_after_every_step(data):
    model = mlp_by_sgd()
    watch = EveryStep(lambda model: (values([model.layers[0].kernel])[0] != 0).copy())
    fit(model, data, kp.GradualPruning(pattern=kp.NM(2, 4), filters="hidden"), watch)
    for kept in watch.noted:
        assert (kept.reshape(2, 4, 10).sum(1) == 2).all()


def test_what_was_reached_is_said_at_the_end(data, capsys):
    fit(mlp_by_sgd(), data, kp.GradualPruning(0.8), verbose=2)
    out = capsys.readouterr().out
    assert "sparsity: 0.8000" in out
    assert "Pruned to a sparsity of 0.8." in out
    with pytest.warns(UserWarning, match="too short"):
        fit(mlp_by_sgd(), data, kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=99)), verbose=2)
    assert "at step 16 of 99" in capsys.readouterr().out


def test_law_4_sparsity_zero_changes_nothing(data):
    model = mlp_by_sgd()
    fit(model, data, kp.GradualPruning(0.0))
    plain = mlp_by_sgd()
    fit(plain, data)
    for a, b in zip(values(model.variables), values(plain.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "schedule", [0.8, kp.ConstantSparsity(0.8, end_step=9)], ids=["0.8", "constant"]
)
def test_a_schedule_that_asks_for_nothing_more_ends_too(schedule, data):
    model = mlp_by_sgd()
    fit(model, data, kp.GradualPruning(0.8))
    fit(model, data, kp.GradualPruning(schedule))
    assert find(model) is None


class OwnOptimizer(keras.Model):
    """A model whose `train_step` does not use the optimizer that it is compiled with."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.own = keras.optimizers.SGD(0.01)

    def call(self, x):
        return self.network(x)

    def train_on(self, x, y):
        variables = self.trained_by_own
        if keras.backend.backend() == "torch":
            loss = LOSS(y, self(x))
            self.zero_grad()
            loss.backward()
            self.own.apply([v.value.grad for v in variables], variables)
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = LOSS(y, self(x))
            self.own.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}

    @property
    def trained_by_own(self):
        return self.trainable_variables

    def train_step(self, data):
        return self.train_on(*data)


class TwoOptimizers(OwnOptimizer):
    """The compiled optimizer moves the first layer, its own the rest."""

    @property
    def trained_by_own(self):
        return self.trainable_variables[2:]

    def train_on(self, x, y):
        mine = self.trainable_variables[:2]
        self.optimizer.apply([keras.ops.zeros_like(v) for v in mine], mine)
        return super().train_on(x, y)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="a step there returns its state")
def test_a_second_optimizer_that_revives_weights_is_told(data):
    def network():
        model = TwoOptimizers(mlp_by_sgd())
        model.build((None, 8))
        return compile_(model)

    with pytest.warns(UserWarning, match=r"Pruned weights in \['mlp/head/kernel'\].*second one"):
        fit(network(), data, kp.GradualPruning(kp.PolynomialDecay(0.8, end_step=16)))
    fit(network(), data, kp.GradualPruning(0.8, filters="hidden"))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="a step there returns its state")
@pytest.mark.parametrize("scales", [False, True])
def test_a_model_that_trains_with_an_optimizer_of_its_own_is_refused(scales, data):
    """It would stay dense without a word."""
    model = OwnOptimizer(mlp_by_sgd())
    model.build((None, 8))
    adam = keras.optimizers.Adam()
    compile_(model, keras.optimizers.LossScaleOptimizer(adam) if scales else adam)
    with pytest.raises(RuntimeError, match=r"does not train with the optimizer.*kp\.Pruner"):
        fit(model, data, kp.GradualPruning(0.8))
    assert find(model) is None


def test_an_epoch_whose_steps_a_loss_scale_skips_is_no_error(data):
    """The scale is halved from 2^30 in each step until gradients are finite."""
    keras.config.set_dtype_policy("mixed_float16")
    sgd = keras.optimizers.SGD(0.01)
    model = mlp_by_sgd(keras.optimizers.LossScaleOptimizer(sgd, initial_scale=2.0**30))
    fit(model, data, kp.GradualPruning(kp.ConstantSparsity(0.8)), epochs=1)
    assert int(sgd.iterations) == 0
    fit(model, data, kp.GradualPruning(kp.ConstantSparsity(0.8)), epochs=5)
    assert int(sgd.iterations) > 0
    assert sparsity(kernels(model)) == pytest.approx(0.8, abs=0.01)


def test_a_refused_fit_leaves_the_model_as_it_was(data):
    model = mlp_by_sgd()
    for callback in (
        kp.GradualPruning(kp.ConstantSparsity(0.8, begin_step=50)),
        kp.GradualPruning(kp.PolynomialDecay(0.8, begin_step=30, end_step=60)),
    ):
        with pytest.raises(ValueError, match="Nothing would be pruned"):
            fit(model, data, callback)
        assert find(model) is None
    fit(model, data)


def test_a_training_stopped_before_the_end_of_the_schedule_says_so(data):
    early = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=0)
    model = mlp_by_sgd()
    with pytest.warns(UserWarning, match=r"stopped at step 8.*release.*kp\.WhenSparse"):
        fit(model, data, kp.GradualPruning(0.8), early)
    with pytest.warns(UserWarning, match="unfinished pruning schedule"):
        fit(model, data)
    assert 0 < sparsity(kernels(model)) < 0.8


def test_layers_unfrozen_after_the_end_are_pruned_from_the_beginning(data):
    model, callback = mlp_by_sgd(), kp.GradualPruning(0.8)
    model.layers[0].trainable = False
    compile_(model)
    with pytest.warns(UserWarning, match="left alone"):
        fit(model, data, callback)
    model.layers[0].trainable = True
    compile_(model)
    reached = fit(model, data, callback)["sparsity"]
    assert reached[0] < 0.7
    assert reached[-1] == pytest.approx(lawful(0.8))
