"""The wrapped optimizer: exact zeros after every step, whatever the user's optimizer does."""

import keras
import numpy as np
import pytest
from models import EveryStep, Subclassed, compile_, kernels, mlp, sparsity, values

import keras_pruner as kp
from keras_pruner.training.optimizer import find

HALF = kp.ConstantSparsity(0.5)
OPTIMIZERS = [
    keras.optimizers.SGD,
    lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    keras.optimizers.Adam,
    lambda: keras.optimizers.Adam(amsgrad=True),
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Adafactor,
    keras.optimizers.Ftrl,
    keras.optimizers.Lamb,
    keras.optimizers.Lion,
    keras.optimizers.Muon,
    *(
        getattr(keras.optimizers, name)
        for name in ("ScheduleFreeAdamW",)
        if hasattr(keras.optimizers, name)
    ),
]
EXECUTIONS = [
    {},
    {"jit_compile": False},
    {"jit_compile": True},
    {"run_eagerly": True},
    {"steps_per_execution": 2},
]
SETTINGS = [
    {"use_ema": True, "ema_momentum": 0.5},
    {"use_ema": True, "ema_overwrite_frequency": 3},
    {"weight_decay": 0.1},
    {"gradient_accumulation_steps": 2},
    {"clipnorm": 0.1},
    {"global_clipnorm": 0.1},
    {"clipvalue": 0.01},
    {"gradient_accumulation_steps": 2, "use_ema": True, "global_clipnorm": 0.1},
]


def train(model, data, schedule=HALF, **options):
    """Fit with `schedule`; give back the sparsity after every batch."""
    watch = EveryStep(lambda model: sparsity(kernels(model)))
    options = {"epochs": 2, "batch_size": 16, "verbose": 0} | options
    model.fit(*data, callbacks=[kp.GradualPruning(schedule), watch], **options)
    return watch.noted


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: getattr(o, "__name__", "tuned"))
def test_law_5_weights_are_exactly_sparse_after_every_step_of_every_optimizer(optimizer, data):
    on = keras.__version__[:4], keras.backend.backend()
    if optimizer is keras.optimizers.Muon and on == ("3.12", "tensorflow"):
        pytest.skip("Keras 3.12 itself cannot step Muon on TensorFlow")
    noted = train(mlp(optimizer()), data)
    # Ftrl makes zeros of its own.
    assert min(noted) >= 0.5 if optimizer is keras.optimizers.Ftrl else set(noted) == {0.5}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_law_5_holds_with_everything_an_optimizer_can_be_told(settings, data):
    model = mlp(keras.optimizers.Adam(0.01, **settings))
    assert train(model, data) == [0.5] * 8
    assert sparsity(kernels(model)) == 0.5


@pytest.mark.parametrize("execution", EXECUTIONS, ids=str)
def test_law_5_holds_however_the_step_is_executed(execution, data):
    if keras.backend.backend() == "torch" and execution.get("steps_per_execution"):
        pytest.skip("Keras refuses steps_per_execution > 1 on torch")
    if keras.backend.backend() == "torch" and execution.get("jit_compile"):
        pytest.skip("torch.compile needs minutes and a C++ compiler")
    noted = train(mlp(**execution), data)
    assert set(noted) == {0.5}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_law_5_holds_in_low_precision_on_the_stored_variable(policy, data):
    keras.config.set_dtype_policy(policy)
    model = mlp(keras.optimizers.SGD(0.01))
    assert train(model, data) == [0.5] * 8
    stored = "float32" if policy.startswith("mixed") else policy
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables} == {stored}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_law_5_subclassed_with_shared_layers_and_lstm_is_at_its_target_after_every_batch(
    policy, data
):
    keras.config.set_dtype_policy(policy)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2)
    model = compile_(Subclassed(), optimizer)
    schedule = kp.PolynomialDecay(0.75, initial_sparsity=0.5, end_step=3, frequency=1)
    noted = train(model, data, schedule, epochs=2, batch_size=8)
    units = sum(int(np.prod(v.shape)) for v in kernels(model))
    due = [schedule.sparsity_at(min(step, 3)) for step in range(8) for _ in range(2)]
    assert noted == pytest.approx([1 - round(units * (1 - s)) / units for s in due], abs=1e-12)


def test_law_10_until_the_first_update_training_is_bit_identical(data):
    def weights_after_each_batch(callbacks):
        watch = EveryStep(lambda model: values(model.trainable_variables))
        model = mlp()
        model.fit(*data, epochs=2, batch_size=16, verbose=0, callbacks=[*callbacks, watch])
        return watch.noted

    late = kp.GradualPruning(kp.ConstantSparsity(0.5, begin_step=8))
    for dense, masked in zip(
        weights_after_each_batch([]), weights_after_each_batch([late]), strict=True
    ):
        for a, b in zip(dense, masked, strict=True):
            np.testing.assert_array_equal(a, b)


def test_law_10_nothing_is_added_to_the_model(data):
    model = mlp()
    before = [v.path for v in model.variables], [layer.name for layer in model.layers]
    outputs = model.predict(data[0], verbose=0)
    model.optimizer = kp.Pruner(model, HALF).wrap(model.optimizer)
    np.testing.assert_array_equal(outputs, model.predict(data[0], verbose=0))
    assert before == ([v.path for v in model.variables], [layer.name for layer in model.layers])


def test_slots_of_pruned_weights_are_zero_where_they_could_touch_others(data):
    model = mlp(keras.optimizers.Adam(0.01, amsgrad=True, global_clipnorm=1.0))
    watch = EveryStep(lambda model: [values((m.mask, *m.slots)) for m in find(model).masked])
    model.fit(*data, batch_size=16, verbose=0, callbacks=[kp.GradualPruning(HALF), watch])
    for mask, *slots in [masked for step in watch.noted for masked in step]:
        assert len(slots) == 3
        assert not any(slot[~mask].any() for slot in slots)
        assert all(slot[mask].any() for slot in slots)


def test_the_gradients_that_are_clipped_are_those_of_live_weights(data):
    """With a global norm, the step of live weights does not depend on the pruned ones."""
    model = mlp(keras.optimizers.SGD(1.0, global_clipnorm=1e-3))
    pruner = kp.Pruner(model, HALF)
    optimizer = pruner.wrap(model.optimizer)
    pruner.update()
    before = values(model.trainable_variables)
    gradients = [np.ones(v.shape, "float32") for v in model.trainable_variables]
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)
    after = values(model.trainable_variables)
    moved = np.concatenate([(b - a).ravel() for a, b in zip(after, before, strict=True)])
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-3)


def test_variables_are_the_users_then_the_masks_the_count_and_the_state(data):
    model = mlp()
    plain = len(model.optimizer.variables)
    model.optimizer.build(model.trainable_variables)
    plain = len(model.optimizer.variables)
    wrapped = kp.Pruner(model, HALF).wrap(model.optimizer)
    assert len(wrapped.variables) == plain + 2 + 2
    assert len({id(v) for v in wrapped.variables}) == len(wrapped.variables)


def test_slots_find_the_variable_they_belong_to_when_names_contain_each_other():
    class Twins(keras.layers.Layer):
        def build(self, shape):
            self.a = self.add_weight(shape=(4, 4), name="kernel")
            self.b = self.add_weight(shape=(4, 4), name="kernel_2")

        def call(self, x):
            return x @ self.a @ self.b

    model = keras.Sequential([keras.Input((4,)), Twins()])
    model.compile(keras.optimizers.Adam(), loss="mse")
    pruner = kp.Pruner(model, HALF, overrides={"kernel": (0.5, kp.Unstructured())})
    pruner.wrap(model.optimizer)
    for masked in pruner.pruning.masked:
        stem = masked.variable.path.replace("/", "_")
        assert [slot.name for slot in masked.slots] == [f"{stem}_momentum", f"{stem}_velocity"]


def test_stepped_before_any_update_it_refuses(data):
    model = mlp()
    optimizer = kp.Pruner(model, HALF).wrap(model.optimizer)
    model.compile(optimizer, loss=model.loss)
    before = values(model.variables)
    with pytest.raises(RuntimeError, match=r"pruner\.update\(\)"):
        model.train_on_batch(*data)
    for a, b in zip(before, values(model.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrapped_twice_by_hand_is_refused():
    model = mlp()
    pruner = kp.Pruner(model, HALF)
    optimizer = pruner.wrap(keras.optimizers.Adam())
    with pytest.raises(ValueError, match="wrapped for pruning already"):
        pruner.wrap(optimizer)


@pytest.mark.parametrize("excluded", ["before", "after", "never"])
def test_weights_are_excluded_from_decay_before_the_wrapping_or_after_it(excluded, data):
    model = mlp()
    model.layers[0].bias.assign(np.ones(10))
    pruner = kp.Pruner(model, HALF)
    decay = keras.optimizers.AdamW(0.01, weight_decay=50.0)
    if excluded == "before":
        decay.exclude_from_weight_decay(var_names=["bias"])
    compile_(model, pruner.wrap(decay))
    if excluded == "after":
        decay.exclude_from_weight_decay(var_names=["bias"])
    pruner.update()
    model.train_on_batch(*data)
    bias = values([model.layers[0].bias])[0].mean()
    assert bias < 0.6 if excluded == "never" else bias > 0.9


def test_learning_rate_schedulers_and_ema_swaps_find_what_they_need(data):
    model = mlp(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    watch = EveryStep(lambda model: sparsity(kernels(model)))
    history = model.fit(
        *data,
        validation_data=data,
        epochs=3,
        batch_size=16,
        verbose=0,
        callbacks=[
            kp.GradualPruning(HALF),
            watch,
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        ],
    )
    assert history.history["learning_rate"] == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert set(watch.noted) == {0.5}
    assert sparsity(kernels(model)) == 0.5


def test_learning_rate_schedules_count_the_users_steps(data):
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 8, 0.5)
    model = mlp(keras.optimizers.SGD(rate))
    train(model, data)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_embedding_gradients_of_single_rows_are_masked():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(20, 6, mask_zero=True),
            keras.layers.LSTM(5),
            keras.layers.Dense(3),
        ]
    )
    compile_(model)
    x = np.random.default_rng(0).integers(0, 20, (32, 4))
    noted = train(model, (x, x.sum(1) % 3))
    units = 20 * 6 + 6 * 20 + 5 * 20 + 5 * 3
    assert noted == pytest.approx([1 - round(units / 2) / units] * 4, abs=1e-12)
