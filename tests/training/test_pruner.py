"""`Pruner` in loops of one's own, on each backend."""

import keras
import numpy as np
import pytest
from models import LOSS, kernels, mlp, sparsity, values

import keras_pruner as kp
from keras_pruner.training.optimizer import KerasPruning, attach

BACKEND = keras.backend.backend()
STAIRS = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=6, frequency=2)
UNITS = 8 * 10 + 10 * 3
ROUNDED = [
    1 - round(UNITS * (1 - STAIRS.sparsity_at(min(6, t // 2 * 2)))) / UNITS for t in range(8)
]


def train_with_keras(model, optimizer, pruner, data):
    """The loop that each backend's users write; yields after every step."""
    x, y = map(keras.ops.convert_to_tensor, data)
    variables = model.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        while True:
            pruner.update()
            step()
            yield
    elif BACKEND == "torch":
        import torch

        while True:
            pruner.update()
            model.zero_grad()
            LOSS(y, model(x, training=True)).backward()
            with torch.no_grad():
                optimizer.apply([v.value.grad for v in variables], variables)
            yield
    else:
        import jax

        def compute_loss(trainable, fixed):
            outputs, fixed = model.stateless_call(trainable, fixed, x, training=True)
            return LOSS(y, outputs), fixed

        @jax.jit
        def step(trainable, fixed, opt_vars):
            (_, fixed), gradients = jax.value_and_grad(compute_loss, has_aux=True)(trainable, fixed)
            trainable, opt_vars = optimizer.stateless_apply(opt_vars, gradients, trainable)
            return trainable, fixed, opt_vars

        trainable = [v.value for v in model.trainable_variables]
        fixed = [v.value for v in model.non_trainable_variables]
        opt_vars = [v.value for v in optimizer.variables]
        while True:
            trainable, opt_vars = pruner.stateless_update(trainable, opt_vars)
            trainable, fixed, opt_vars = step(trainable, fixed, opt_vars)
            for v, new in zip(model.trainable_variables, trainable, strict=True):
                v.assign(new)
            for v, new in zip(optimizer.variables, opt_vars, strict=True):
                v.assign(new)
            yield


def test_law_5_and_6_in_a_loop_of_ones_own(data):
    model = mlp()
    pruner = kp.Pruner(model, STAIRS)
    optimizer = pruner.wrap(keras.optimizers.Adam(0.01))
    loop = train_with_keras(model, optimizer, pruner, data)
    noted = []
    for _ in range(8):
        next(loop)
        noted.append(sparsity(kernels(model)))
    assert noted == pytest.approx(ROUNDED)
    assert pruner.finished
    assert pruner.step == 8
    assert pruner.sparsity == pytest.approx(0.8)
    assert pruner.release() is optimizer
    assert type(optimizer) is type(keras.optimizers.Adam())


def test_a_state_that_is_set_back_is_noticed(data):
    """Not by loading, which the optimizer hears of."""
    model = mlp()
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.8, begin_step=2, end_step=6))
    model.compile(pruner.wrap(keras.optimizers.Adam(0.01)), loss=LOSS)
    variables = [*model.variables, *model.optimizer.variables]
    first, ends = values(variables), []
    for _ in range(2):
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)
        noted = []
        for _ in range(8):
            pruner.update()
            model.train_on_batch(*data)
            noted.append(sparsity(kernels(model)))
        assert noted == pytest.approx([0.0] * 2 + [0.8] * 6)
        assert (pruner.finished, pruner.step) == (True, 8)
        ends.append(values(variables))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(BACKEND != "jax", reason="stateless loops")
def test_a_stateless_loop_is_reported_and_can_be_begun_again(data):
    import jax

    model = mlp()
    pruner = kp.Pruner(model, kp.PolynomialDecay(0.8, end_step=6, frequency=2))
    optimizer = pruner.wrap(keras.optimizers.Adam(0.01))
    step = jax.jit(lambda t, o: optimizer.stateless_apply(o, [v + 1 for v in t], t))
    state = tuple([v.value for v in vs] for vs in (model.trainable_variables, optimizer.variables))
    with pytest.raises(ValueError, match=r"masks among them.*4 and 10 values, for 4 and 14"):
        pruner.stateless_update(state[0], state[1][:10])
    for _ in range(2):
        trainable, opt_vars = state
        for i in range(9):
            trainable, opt_vars = pruner.stateless_update(trainable, opt_vars)
            assert pruner.step == i
            assert pruner.finished == (i >= 6)
            trainable, opt_vars = step(trainable, opt_vars)
        zeros = sum(int((v == 0).sum()) for v in trainable if v.ndim > 1)
        assert zeros / UNITS == pruner.sparsity == pytest.approx(0.8)
    pruner.release()
    assert (pruner.finished, pruner.step) == (True, 8)
    assert pruner.sparsity == pytest.approx(0.8)


def test_train_on_batch_with_a_pruner(data):
    model = mlp()
    pruner = kp.Pruner(model, STAIRS)
    model.compile(pruner.wrap(keras.optimizers.Adam(0.01)), loss=LOSS)
    noted = []
    for _ in range(8):
        pruner.update()
        model.train_on_batch(*data)
        noted.append(sparsity(kernels(model)))
    assert noted == pytest.approx(ROUNDED)
    mine = model.optimizer
    pruner.release()
    assert model.optimizer is mine
    with pytest.raises(RuntimeError, match="Wrap one first"):
        pruner.update()


def test_mixed_float16_the_loss_scale_stays_outside(data):
    keras.config.set_dtype_policy("mixed_float16")
    model = mlp()
    pruner = kp.Pruner(model, STAIRS)
    outer = pruner.wrap(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    assert isinstance(outer, keras.optimizers.LossScaleOptimizer)
    model.compile(outer, loss=LOSS)
    for _ in range(8):
        pruner.update()
        model.train_on_batch(*data)
    assert sparsity(kernels(model)) == pytest.approx(0.8)
    assert pruner.release() is outer
    assert isinstance(outer.inner_optimizer, keras.optimizers.SGD)


def test_released_from_a_loss_scale_that_the_model_does_not_know():
    pruner = kp.Pruner(mlp(), STAIRS)
    outer = pruner.wrap(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    pruner.update()
    assert pruner.release() is outer
    assert isinstance(outer.inner_optimizer, keras.optimizers.SGD)


def test_a_checkpoint_loaded_in_a_loop_of_ones_own_is_gone_on_from(data, tmp_path):
    model = mlp()
    pruner = kp.Pruner(model, kp.PolynomialDecay(0.8, end_step=20, frequency=2))
    model.compile(pruner.wrap(keras.optimizers.Adam(0.01)), loss=LOSS)

    def train(steps):
        for _ in range(steps):
            pruner.update()
            model.train_on_batch(*data)

    train(6)
    model.save_weights(tmp_path / "early.weights.h5")
    train(24)
    assert pruner.finished
    model.load_weights(tmp_path / "early.weights.h5")
    train(1)
    assert not pruner.finished
    assert pruner.step == 7
    train(14)
    assert pruner.finished
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_one_pruner_wraps_one_optimizer():
    pruner = kp.Pruner(mlp(), STAIRS)
    pruner.wrap(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="has wrapped an optimizer already"):
        pruner.wrap(keras.optimizers.Adam())


def test_a_pruning_is_taken_up_with_its_own_arguments_or_none():
    model = mlp()
    first = kp.Pruner(model, STAIRS, allocation="erk")
    model.compile(first.wrap(keras.optimizers.SGD()), loss=LOSS)
    for options in ({}, {"allocation": "erk"}):
        assert kp.Pruner(model, **options).pruning is first.pruning
    with pytest.raises(ValueError, match="another plan than that of these arguments"):
        kp.Pruner(model, filters="head")


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "unknown"])
def test_torch_optim(name, data, tmp_path):
    import torch

    def start():
        model = mlp()
        pruner = kp.Pruner(model, STAIRS)
        arguments = {"momentum": 0.9} if name == "SGD" else {}
        unknown = type("Mine", (torch.optim.Adam,), {})
        optimizer = getattr(torch.optim, name, unknown)(model.parameters(), lr=0.01, **arguments)
        assert pruner.wrap(optimizer) is optimizer
        return model, pruner, optimizer

    def train(model, pruner, optimizer, steps):
        x, y = map(keras.ops.convert_to_tensor, data)
        for _ in range(steps):
            pruner.update()
            optimizer.zero_grad()
            LOSS(y, model(x, training=True)).backward()
            optimizer.step()
            yield sparsity(kernels(model))

    model, pruner, optimizer = start()
    assert list(train(model, pruner, optimizer, 8)) == pytest.approx(ROUNDED)
    from keras_pruner.training.torch_optimizer import ELEMENTWISE

    for masked in () if type(optimizer) in ELEMENTWISE else pruner.pruning.masked:
        mask = values([masked.mask])[0]
        for slot in optimizer.state[masked.variable.value].values():
            if isinstance(slot, torch.Tensor) and slot.ndim:
                assert not slot.numpy()[~mask].any()

    # Law 13: stop, save, load, continue equals not having stopped.
    other, pruner_2, optimizer_2 = start()
    list(train(other, pruner_2, optimizer_2, 3))
    torch.save((other.state_dict(), optimizer_2.state_dict()), tmp_path / "state.pt")
    third, pruner_3, optimizer_3 = start()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=False)
    third.load_state_dict(weights)
    optimizer_3.load_state_dict(state)
    list(train(third, pruner_3, optimizer_3, 5))
    for a, b in zip(values(model.variables), values(third.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert pruner.release() is optimizer
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
def test_torch_optim_is_wrapped_once():
    import torch

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = kp.Pruner(model, STAIRS)
    first.wrap(optimizer)
    with pytest.raises(ValueError, match=r"once is enough.*SGD.*release"):
        kp.Pruner(model, STAIRS).wrap(optimizer)
    first.release()
    kp.Pruner(model, STAIRS).wrap(optimizer)


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
def test_the_torch_optim_state_of_another_pruning_is_refused():
    import torch

    def wrapped(schedule):
        model = mlp()
        return kp.Pruner(model, schedule).wrap(torch.optim.SGD(model.parameters(), lr=0.1))

    state = wrapped(STAIRS).state_dict()
    wrapped(STAIRS).load_state_dict(state)
    with pytest.raises(ValueError, match=r"final sparsity was 0\.8 and is 0\.5"):
        wrapped(kp.ConstantSparsity(0.5)).load_state_dict(state)


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
def test_torch_optim_of_other_parameters_is_refused():
    import torch

    model = mlp()
    others = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ValueError, match=r"trains none of the weights.*4 parameters.*kernel"):
        kp.Pruner(model, STAIRS).wrap(torch.optim.SGD(others, lr=0.1))


def test_targets_that_the_optimizer_does_not_train_are_named():
    model = mlp()
    plan = kp.Pruner(model, STAIRS).plan
    partly, sgd = KerasPruning(STAIRS, lambda: plan), keras.optimizers.SGD()
    attach(sgd, partly)
    with pytest.warns(UserWarning, match=r"only a part .* \['head/kernel'\] stay as they are"):
        sgd.build(model.trainable_variables[:2])
    assert [masked.target.path for masked in partly.masked] == ["hidden/kernel"]


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
def test_torch_optim_with_a_part_of_the_parameters_names_the_rest():
    import torch

    model = mlp()
    parameters = [variable.value for variable in model.trainable_variables[:2]]
    with pytest.warns(UserWarning, match=r"only a part .* \['head/kernel'\] stay as they are"):
        kp.Pruner(model, STAIRS).wrap(torch.optim.SGD(parameters, lr=0.1))


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch.optim")
def test_torch_optim_stepped_before_any_update_refuses(data):
    import torch

    model = mlp()
    optimizer = kp.Pruner(model, STAIRS).wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    LOSS(keras.ops.convert_to_tensor(data[1]), model(data[0])).backward()
    with pytest.raises(RuntimeError, match="was never called"):
        optimizer.step()


@pytest.mark.skipif(BACKEND != "jax", reason="tracing")
def test_stateless_update_inside_the_jitted_step_is_refused(data):
    import jax

    model = mlp()
    pruner = kp.Pruner(model, STAIRS)
    optimizer = pruner.wrap(keras.optimizers.SGD())
    trainable = [v.value for v in model.trainable_variables]
    opt_vars = [v.value for v in optimizer.variables]
    with pytest.raises(ValueError, match="outside of the jitted step"):
        jax.jit(pruner.stateless_update)(trainable, opt_vars)


def test_the_same_weights_give_the_same_masks_on_every_backend():
    """Law 2: the expected masks are computed with NumPy alone."""
    rng = np.random.default_rng(3)
    kernels_ = [rng.integers(-4, 5, (8, 10)).astype("float32"), rng.normal(size=(10, 3))]
    model = mlp()
    for layer, kernel in zip(model.layers, kernels_, strict=True):
        layer.kernel.assign(kernel)
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.7), allocation="uniform")
    pruner.wrap(keras.optimizers.SGD())
    pruner.update()
    for kernel, masked in zip(kernels_, pruner.pruning.masked, strict=True):
        order = np.argsort(-np.abs(kernel.astype("float32")).ravel(), kind="stable")
        expected = np.zeros(kernel.size, bool)
        expected[order[: round(kernel.size * 0.3)]] = True
        np.testing.assert_array_equal(values([masked.mask])[0].ravel(), expected)


def test_conflicts_raise_at_construction_and_change_nothing():
    model = mlp()
    mine = model.optimizer
    with pytest.raises(ValueError, match=r"pass schedule=0\.8"):
        kp.Pruner(model, 80)
    with pytest.raises(ValueError, match=r"fixes the sparsity at 0\.5.*Received: schedule=0\.8"):
        kp.Pruner(model, kp.ConstantSparsity(0.8), pattern=kp.NM(2, 4))
    with pytest.raises(ValueError, match="`schedule` is missing"):
        kp.Pruner(model)
    with pytest.raises(ValueError, match=r"without `end_step`.*kp\.PolynomialDecay"):
        kp.Pruner(model, 0.8)
    with pytest.raises(ValueError, match="`pattern` must be a pattern"):
        kp.Pruner(model, kp.ConstantSparsity(0.8), pattern=0.5)
    with pytest.raises(ValueError, match=r"matches no layer.*hidden.*head"):
        kp.Pruner(model, kp.ConstantSparsity(0.8), filters="conv")
    with pytest.raises(ValueError, match=r"no weights yet.*Build it first"):
        kp.Pruner(keras.Sequential([keras.layers.Dense(3)]), kp.ConstantSparsity(0.8))
    with pytest.raises(ValueError, match="not an output of one"):
        kp.Pruner(model.outputs[0], kp.ConstantSparsity(0.8))
    with pytest.raises(ValueError, match="must be a Keras optimizer"):
        kp.Pruner(model, kp.ConstantSparsity(0.8)).wrap("adam")
    assert model.optimizer is mine
    assert sparsity(kernels(model)) == 0


def test_a_mapping_that_does_not_come_to_the_final_sparsity_is_refused_at_construction():
    mapping = {"hidden/": 0.9, "head/": 0.5}  # (80 x 0.9 + 30 x 0.5) / 110
    with pytest.raises(ValueError, match=r"gives a sparsity of 0.7909 .* Received: sparsity=0.5"):
        kp.Pruner(mlp(), kp.ConstantSparsity(0.5), allocation=mapping)
    with pytest.raises(ValueError, match=r"gives a sparsity of 0.7909 .* Received: sparsity=0.9"):
        kp.Pruner(mlp(), lambda step: 0.9, allocation=mapping, updates=10)
    kp.Pruner(mlp(), kp.ConstantSparsity(0.7909), allocation=mapping)


def test_updates_gives_an_open_schedule_its_end(data):
    model = mlp()
    pruner = kp.Pruner(model, 0.8, updates=8)
    pruner.wrap(model.optimizer)
    pruner.update()
    assert pruner.schedule.end_step == 6


def test_a_criterion_of_ones_own(data):
    model = mlp()
    options = {"criterion": lambda w: -np.abs(w), "allocation": "uniform"}
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.5), **options)
    pruner.wrap(model.optimizer)
    before = np.abs(values([model.layers[0].kernel])[0])
    pruner.update()
    kept = values([model.layers[0].kernel])[0] != 0
    assert before[kept].max() < before[~kept].min()
    with pytest.raises(ValueError, match="one score for each weight"):
        flat = kp.Pruner(model, kp.ConstantSparsity(0.5), criterion=lambda w: w.ravel())
        flat.wrap(keras.optimizers.SGD())
        flat.update()


def test_overrides_come_to_their_own_sparsity_in_proportion(data):
    model = mlp()
    schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.0, end_step=4, power=1, frequency=1)
    pruner = kp.Pruner(model, schedule, overrides={"head": 0.5})
    model.compile(pruner.wrap(keras.optimizers.SGD()), loss=LOSS)
    for step in range(5):
        pruner.update()
        assert sparsity([model.layers[1].kernel]) == pytest.approx(step / 4 * 0.5, abs=0.02)
        model.train_on_batch(*data)
    assert sparsity([model.layers[0].kernel]) == pytest.approx(0.8)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step is compiled")
def test_steps_compiled_before_the_wrapping_are_an_error(data):
    """Else the masks say that the weights are zero, and they are not."""
    import tensorflow as tf

    model = mlp()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]
    step = tf.function(lambda: optimizer.apply(gradients, model.trainable_variables))
    step()
    pruner = kp.Pruner(model, kp.PolynomialDecay(0.8, end_step=8, frequency=1))
    pruner.wrap(optimizer)
    with pytest.raises(RuntimeError, match=r"steps that do not prune.*model\.compile"):
        for _ in range(200):
            pruner.update()
            step()


def test_a_model_trained_before_prunes_from_the_wrapping_on(data):
    """Its step is compiled anew."""
    model = mlp()
    model.train_on_batch(*data)
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.5))
    assert pruner.wrap(model.optimizer) is model.optimizer
    for _ in range(3):
        pruner.update()
        model.train_on_batch(*data)
        assert sparsity(kernels(model)) == 0.5
    pruner.release()
    model.train_on_batch(*data)
    assert sparsity(kernels(model)) < 0.5


def test_updates_without_a_step_are_told():
    pruner = kp.Pruner(mlp(), kp.PolynomialDecay(0.8, end_step=8, frequency=1))
    pruner.wrap(keras.optimizers.SGD())
    for _ in range(100):
        pruner.update()
    with pytest.warns(UserWarning, match=r"counted no step.*stateless_update"):
        pruner.update()
    for _ in range(200):
        pruner.update()  # a second warning would be an error


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")
def test_update_in_a_traced_step_is_refused():
    pruner = kp.Pruner(mlp(), STAIRS)
    pruner.wrap(keras.optimizers.SGD())
    if BACKEND == "jax":
        import jax

        step = jax.jit(lambda: (pruner.update(), 0)[1])
    else:
        import tensorflow as tf

        step = tf.function(lambda: (pruner.update(), 0)[1])
    with pytest.raises(RuntimeError, match="outside of the compiled step"):
        step()


@pytest.mark.parametrize("updates", [0, -5, 10.5])
def test_the_number_of_updates_is_checked(updates):
    with pytest.raises(ValueError, match="`updates` must be an integer of at least 1"):
        kp.Pruner(mlp(), 0.8, updates=updates)


def test_too_few_updates_for_the_schedule_are_told():
    with pytest.warns(UserWarning, match="too short for the schedule"):
        kp.Pruner(mlp(), kp.PolynomialDecay(0.8, end_step=2000), updates=10)
