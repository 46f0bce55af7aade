"""TFMOT's names do here what they do there."""

import inspect
import json

import keras
import numpy as np
import pytest
from models import Subclassed, compile_, mlp, sparsity

import keras_pruner as kp
import keras_pruner.tfmot as tfmot
from keras_pruner.training.optimizer import find, prunings_of

S = tfmot.sparsity.keras
HALF = S.ConstantSparsity(0.5, 1, frequency=1)
MODELS = {"sequential": mlp, "subclassed": lambda: compile_(Subclassed())}


def kernels_of(model):
    return [v for v in model.trainable_variables if v.name in ("kernel", "recurrent_kernel")]


def is_half(model):
    return sparsity(kernels_of(model)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.backend_free
def test_all_eleven_names_have_tfmots_signatures():
    assert len(S.__all__) == 11
    told = {
        "prune_low_magnitude": "to_prune pruning_schedule block_size block_pooling_type "
        "pruning_policy sparsity_m_by_n kwargs",
        "strip_pruning": "model", "prune_scope": "", "UpdatePruningStep": "",
        "PruningSummaries": "log_dir update_freq kwargs",
        "ConstantSparsity": "target_sparsity begin_step end_step frequency",
        "PolynomialDecay": "initial_sparsity final_sparsity begin_step end_step power frequency",
        "PruneForLatencyOnXNNPack": "",
    }  # fmt: skip
    for name, parameters in told.items():
        assert " ".join(inspect.signature(getattr(S, name)).parameters) == parameters, name
    from keras_pruner.tfmot.sparsity import keras as sparsity_api

    assert sparsity_api is S


@pytest.mark.parametrize("kind", MODELS)
def test_compile_and_fit_prune_and_strip_leaves_nothing_behind(kind, data):
    x, y = data
    model = MODELS[kind]()
    names = [layer.name for layer in model.layers]
    pruned = S.prune_low_magnitude(model, pruning_schedule=HALF)
    assert pruned is model
    compile_(pruned)
    pruned.fit(x, y, verbose=0, callbacks=[S.UpdatePruningStep()])
    assert is_half(pruned)
    exported = S.strip_pruning(pruned)
    assert [layer.name for layer in exported.layers] == names
    assert isinstance(exported.optimizer, keras.optimizers.Adam)
    assert not {"compile", "fit", "make_train_function"} & set(vars(exported))
    exported.fit(x, y, verbose=0)
    assert sparsity(kernels_of(exported)) < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_a_forgotten_callback_is_not_forgotten(kind, data):
    x, y = data
    model = S.prune_low_magnitude(MODELS[kind](), pruning_schedule=HALF)
    compile_(model)
    model.fit(x, y, None, 1, 0)
    assert is_half(model)


def test_compiled_before_it_is_pruned_at_once(data):
    model = S.prune_low_magnitude(mlp(), pruning_schedule=HALF)
    model.fit(*data, verbose=0)
    assert is_half(model)


def layer_by_layer():
    layers = S.prune_low_magnitude(
        [keras.layers.Dense(10), keras.layers.Dense(3)], pruning_schedule=HALF
    )
    return compile_(keras.Sequential([keras.Input((8,)), *layers]))


def test_layers_refuse_to_be_trained_dense_before_the_first_step(data):
    x, y = data
    model = layer_by_layer()
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="no `UpdatePruningStep` callback is active"):
        model.fit(x, y, verbose=0)
    with pytest.raises(RuntimeError, match="no `UpdatePruningStep` callback is active"):
        model.train_on_batch(x, y)
    for mine, its in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    model.evaluate(x, y, verbose=0)
    model.fit(x, y, verbose=0, callbacks=[S.UpdatePruningStep()])
    assert is_half(model)
    compile_(model)
    model.fit(x, y, verbose=0)  # from then on the model knows
    assert is_half(model)


def test_each_layer_has_its_own_schedule_and_goes_on_after_loading(data, tmp_path):
    x, y = data
    early = S.prune_low_magnitude(keras.layers.Dense(10), S.ConstantSparsity(0.5, 1))
    late = S.prune_low_magnitude(keras.layers.Dense(3), S.ConstantSparsity(0.8, 12))
    model = compile_(keras.Sequential([keras.Input((8,)), early, late]))
    callbacks = [S.UpdatePruningStep()]
    with pytest.warns(UserWarning, match="Nothing will be pruned"):
        model.fit(x, y, 8, verbose=0, callbacks=callbacks)
    assert [sparsity([v]) for v in kernels_of(model)] == [0.5, 0.0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, 8, verbose=0, callbacks=callbacks)
    assert [sparsity([v]) for v in kernels_of(loaded)] == [0.5, 0.8]
    S.strip_pruning(loaded)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)


@pytest.mark.parametrize("now_is_first", [True, False])
def test_when_sparse_waits_for_the_last_of_several_schedules(now_is_first):
    now, later = S.ConstantSparsity(0.5, 1), S.PolynomialDecay(0.1, 0.8, 1, 30)
    first, second = (now, later) if now_is_first else (later, now)
    layers = [keras.layers.Dense(10), keras.layers.Dense(3)]
    S.prune_low_magnitude(layers[0], first)
    S.prune_low_magnitude(layers[1], second)
    model = compile_(keras.Sequential([keras.Input((8,)), *layers]))
    pruning = S.UpdatePruningStep()
    pruning.set_model(model)
    pruning.on_train_batch_begin()
    callback = kp.WhenSparse(keras.callbacks.EarlyStopping("loss"))
    callback.set_model(model)
    assert {pruning.state.has_ended for pruning in prunings_of(model)} == {True, False}
    assert not callback.is_sparse


def test_clone_function_and_nested_models(data):
    def choose(layer):
        is_dense = isinstance(layer, keras.layers.Dense)
        return S.prune_low_magnitude(layer, HALF) if is_dense else layer

    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), keras.layers.ReLU()])
    inputs = keras.Input((8,))
    nested = keras.Model(inputs, keras.layers.Dense(3)(inner(inputs)))
    S.prune_low_magnitude(nested, HALF)
    cloned = keras.models.clone_model(mlp(), clone_function=choose)
    for model in (nested, cloned):
        compile_(model)
        model.fit(*data, verbose=0, callbacks=[S.UpdatePruningStep()])
        assert is_half(model)


def test_the_loop_of_the_guide(data):
    """The guide's ritual, on each backend with what it has for a step."""
    x, y = data
    model = S.prune_low_magnitude(mlp(), pruning_schedule=S.ConstantSparsity(0.5, 2, frequency=1))
    S.strip_pruning(model)  # as if it was never compiled
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(3)])
    S.prune_low_magnitude(model, pruning_schedule=S.ConstantSparsity(0.5, 2, frequency=1))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        optimizer = keras.optimizers.Adam()
        model.optimizer = optimizer
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def step():
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    else:
        compile_(model)

        def step():
            model.train_on_batch(x, y)

    callback = S.UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    seen = []
    for _ in range(4):
        callback.on_train_batch_begin(batch=-1)
        seen.append(sparsity(kernels_of(model)))
        step()
    callback.on_epoch_end(batch=-1)
    assert seen == [0.0, pytest.approx(0.5, abs=0.01)] + 2 * [pytest.approx(0.5, abs=0.01)]
    assert is_half(model)


class OnlyHidden(S.PruningPolicy):
    """A policy as TFMOT wants it."""

    def allow_pruning(self, layer):
        return layer.name == "hidden"

    def ensure_model_supports_pruning(self, model):
        if len(model.layers) > 2:
            raise ValueError("too deep")


class OnlyRecurrent(S.PruningPolicy):
    """A policy that knows the layer, not the cell in it which has the weights."""

    def allow_pruning(self, layer):
        return isinstance(layer, keras.layers.LSTM)

    def ensure_model_supports_pruning(self, model):
        pass


class Mine(keras.layers.Layer, S.PrunableLayer):
    """A layer as TFMOT wants it."""

    def build(self, shape):
        self.first = self.add_weight(shape=(shape[-1], 4), name="first")
        self.second = self.add_weight(shape=(4, 3), name="second")

    def call(self, x):
        return x @ self.first @ self.second

    def get_prunable_weights(self):
        return [self.second]


def test_policies_and_prunable_layers(data):
    model = S.prune_low_magnitude(mlp(), HALF, pruning_policy=OnlyHidden())
    model.fit(*data, verbose=0)
    assert [sparsity([v]) for v in kernels_of(model)] == [0.5, 0.0]
    mine = S.prune_low_magnitude(keras.Sequential([keras.Input((8,)), Mine()]), HALF)
    compile_(mine)
    mine.fit(*data, verbose=0)
    assert [sparsity([v]) for v in mine.trainable_variables] == [0.0, 0.5]
    sequences = keras.Sequential([keras.Input((4, 2)), keras.layers.LSTM(6), keras.layers.Dense(3)])
    S.prune_low_magnitude(sequences, HALF, pruning_policy=OnlyRecurrent())
    compile_(sequences).fit(data[0].reshape(-1, 4, 2), data[1], verbose=0)
    assert [sparsity([v]) for v in kernels_of(sequences)] == [0.5, 0.5, 0.0]
    deep = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(3) for _ in range(3))])
    with pytest.raises(ValueError, match="too deep"):
        S.prune_low_magnitude(deep, pruning_policy=OnlyHidden())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_schedule": 0.5}, "must be a PruningSchedule"),
        ({"block_pooling_type": "SUM"}, "Unsupported pooling type 'SUM'"),
        ({"block_size": 4}, "must be a tuple/list of 2 integers"),
        ({"sparsity_m_by_n": (4, 2)}, "0 < m < n"),
        ({"prunning_schedule": HALF}, "has no arguments"),
        ({"block_size": (2, 2)}, "can only be used for layers which have 2-dimensional weights"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments, message):
    conv = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match=message):
        S.prune_low_magnitude(conv, **arguments)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.ConstantSparsity(80, 0), "For 80% zeros pass target_sparsity=0.8"),
        (lambda: S.ConstantSparsity(0.5, -1), "`begin_step` must be"),
        (lambda: S.PolynomialDecay(0.1, 0.5, 10, 5), "must not come before"),
        (lambda: S.PolynomialDecay(0.1, 0.5, 0, -1), "`end_step` must be"),
        (lambda: S.ConstantSparsity(0.5, 0, frequency=0), "`frequency` must be"),
        (lambda: S.ConstantSparsity(0.5, 0, None), "`end_step` must be a number"),
        (lambda: S.PolynomialDecay(0.1, 0.5, 0, 9, frequency=None), "`frequency` must be a number"),
    ],
    ids=range(7),
)
def test_wrong_schedules_are_told_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.backend_free
def test_steps_computed_with_numpy_can_be_saved():
    schedule = S.PolynomialDecay(0.5, 0.8, 0, np.ceil(1000 / 3).astype(np.int32))
    assert json.dumps(schedule.get_config())
    assert S.PolynomialDecay.from_config(schedule.get_config()) == schedule


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2"])
def test_stock_mobilenets_qualify_after_the_rewrite(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3))
    policy = S.PruneForLatencyOnXNNPack()
    with pytest.raises(ValueError, match="Could not find `Conv2D 3x3` layer with stride 2x2"):
        S.prune_low_magnitude(model, pruning_policy=policy)
    assert policy.obstacles(model).rewrites
    rewritten = kp.litert.prepare_for_xnnpack(model).model
    S.prune_low_magnitude(rewritten, pruning_policy=policy)
    assert not policy.obstacles(rewritten).layers


def test_the_xnnpack_policy_prunes_only_1x1_convolutions(data):
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(4, 3, strides=2, padding="valid"),
        keras.layers.BatchNormalization(),
        keras.layers.DepthwiseConv2D(3, padding="same"),
        keras.layers.Conv2D(8, 1, name="pointwise"),
        keras.layers.ReLU(6.0),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential(layers)
    S.prune_low_magnitude(model, HALF, pruning_policy=S.PruneForLatencyOnXNNPack())
    compile_(model)
    model.fit(np.ones((8, 16, 16, 3), np.float32), np.zeros(8, int), verbose=0)
    by_name = {v.path.split("/")[-2]: sparsity([v]) for v in kernels_of(model)}
    assert [name for name, zeros in by_name.items() if zeros > 0] == ["pointwise"]
    headless = keras.Sequential(layers[:7])
    with pytest.raises(ValueError, match="Could not find a `GlobalAveragePooling2D` layer"):
        S.prune_low_magnitude(headless, pruning_policy=S.PruneForLatencyOnXNNPack())


@pytest.mark.parametrize("nested", ["body", "all but the head"])
def test_the_xnnpack_policy_looks_into_nested_models(nested):
    stem = [keras.layers.ZeroPadding2D(1), keras.layers.Conv2D(4, 3, strides=2)]
    body = [keras.layers.Conv2D(8, 1, name="pointwise"), keras.layers.ReLU()]
    pool = keras.layers.GlobalAveragePooling2D()
    if nested == "body":
        layers = [*stem, keras.Sequential(body), pool]
    else:
        layers = [keras.Sequential([*stem, *body, pool])]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers, keras.layers.Dense(3)])
    S.prune_low_magnitude(model, HALF, pruning_policy=S.PruneForLatencyOnXNNPack())
    compile_(model).fit(np.ones((8, 16, 16, 3), np.float32), np.zeros(8, int), verbose=0)
    zeros = {v.path.split("/")[-2]: sparsity([v]) for v in kernels_of(model)}
    assert [name for name, share in zeros.items() if share > 0] == ["pointwise"]


def test_nothing_leaks_out_of_the_package(data):
    """The classes of Keras are as they were."""
    S.prune_low_magnitude(mlp(), HALF)
    other = mlp()
    assert find(other) is None
    other.fit(*data, verbose=0)
    assert sparsity(kernels_of(other)) < 0.1


def test_a_loop_with_keras_own_list_of_callbacks_keeps_the_zeros(data):
    """`CallbackList(epochs=, steps=)` sounds like `fit`, and the optimizer is the user's own."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("such a loop applies gradients to an optimizer by hand")
    import tensorflow as tf

    model = S.prune_low_magnitude(
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(3)]), HALF
    )
    model.optimizer = optimizer = keras.optimizers.Adam(1e-2)
    callbacks = keras.callbacks.CallbackList(
        [S.UpdatePruningStep()], model=model, epochs=1, steps=3
    )
    callbacks.on_train_begin()
    for batch in range(3):
        callbacks.on_train_batch_begin(batch)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(data[0], training=True) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    callbacks.on_epoch_end(0)
    assert is_half(model)


def test_compiling_again_keeps_the_zeros_and_the_step(data):
    """As in TFMOT, whose masks and steps lie in the layers."""
    model = S.prune_low_magnitude(mlp(), pruning_schedule=S.ConstantSparsity(0.5, 3, frequency=1))
    compile_(model).fit(*data, batch_size=8, verbose=0)
    assert is_half(model)
    zeros = [np.asarray(v) == 0 for v in kernels_of(model)]
    model.compile(keras.optimizers.SGD(1e-3), model.loss)
    assert find(model).schedule.done == len(data[0]) // 8
    model.fit(data[0][:8], data[1][:8], batch_size=8, verbose=0)
    for before, kernel in zip(zeros, kernels_of(model), strict=True):
        np.testing.assert_array_equal(before, np.asarray(kernel) == 0)


class Bare(S.PruningSchedule):
    """A schedule as some write it: with no configuration, and not made for a step 0."""

    def __init__(self, sparsity):
        self.sparsity = sparsity

    def __call__(self, step):
        return 1 / step > 0, self.sparsity

    def get_config(self):
        pass


def test_schedules_without_a_configuration_stay_apart_and_never_hear_of_step_0(data):
    layers = [
        S.prune_low_magnitude(keras.layers.Dense(16), Bare(0.25)),
        S.prune_low_magnitude(keras.layers.Dense(4), Bare(0.75)),
    ]
    model = compile_(keras.Sequential([keras.Input((8,)), *layers]))
    model.fit(*data, verbose=0, callbacks=[S.UpdatePruningStep()])
    assert [sparsity([v]) for v in kernels_of(model)] == [0.25, 0.75]


class WithBias(keras.layers.Dense, S.PrunableLayer):
    """The guide's own."""

    def get_prunable_weights(self):
        return [self.kernel, self.bias]


class Unnamed(keras.layers.Layer):
    """A layer whose weight does not say what it is."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), name="w")

    def call(self, x):
        return x @ self.w


def test_what_tfmot_would_prune_or_refuse_is_not_left_alone_in_silence():
    model = keras.Sequential([keras.Input((8,)), WithBias(6), Unnamed()])
    S.prune_low_magnitude(model, HALF)
    with pytest.warns(UserWarning, match=r"with_bias/bias \(a vector.*unnamed/w \(not a kernel"):
        compile_(model)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quantization", r"has no `tfmot.quantization`. Keras 3 quantizes with `model.quantize"),
        ("clustering", "has no `tfmot.clustering`. Keras 3 has no weight clustering"),
        ("python", "has no `tfmot.python`. TFMOT's internal modules"),
        ("__version__", "The version is `keras_pruner.__version__`"),
        ("experimental", r"has no `tfmot.experimental`. To quantize .*kp\.export_litert"),
        ("sparsity.experimental", r"has no `tfmot.sparsity.experimental`"),
    ],
)
def test_names_of_tfmot_that_are_not_covered_say_what_to_use(name, said):
    *within, last = name.split(".")
    holder = getattr(tfmot, within[0]) if within else tfmot
    with pytest.raises(AttributeError, match=said):
        getattr(holder, last)
    assert not hasattr(holder, last)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("from keras_pruner.tfmot.quantization.keras import quantize_model", "model.quantize"),
        ("from keras_pruner.tfmot import clustering", "no weight clustering"),
        ("from keras_pruner.tfmot.python.core.sparsity.keras import prune", "internal modules"),
    ],
)
def test_importing_what_is_not_covered_says_what_to_use(statement, said):
    with pytest.raises(ImportError, match=said):
        exec(statement)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pruning_wrapper", "Layers are not wrapped here"),
        ("prune", r"has no `tfmot\.sparsity\.keras\.prune`"),
        ("pruning_schedule", "Its classes are in `tfmot.sparsity.keras`"),
    ],
)
def test_names_within_the_pruning_api_that_are_not_here_say_so(name, said):
    with pytest.raises(AttributeError, match=said):
        getattr(S, name)


class Grows(S.PolynomialDecay):
    """A subclass with attributes of its own, set before and after the base's."""

    def __init__(self, final, note=None):
        self.note, self.ratio = note, np.float64(2.0)
        super().__init__(0.0, final, 1, 8, frequency=1)
        self.twice = 2 * final

    def get_config(self):
        return {"final": self.final_sparsity, "note": self.note}


@pytest.mark.backend_free
def test_subclasses_of_schedules_may_have_other_attributes():
    schedule = Grows(0.8)
    assert (schedule.note, schedule.twice) == (None, 1.6)
    assert isinstance(schedule.ratio, np.float64)
    assert schedule(8) == (True, 0.8)
    assert Grows.from_config(schedule.get_config()) == schedule


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 5, 1, True), "`begin_step` must be"),
        ((0, -1, 1, False), "`end_step` must be"),
        ((5, 3, 1, True), "`end_step` must be"),
        ((0, 5, 0, True), "`frequency` must be"),
        ((0, -1, 1, True), None),
    ],
)
def test_the_base_of_schedules_has_tfmots_checks(arguments, message):
    if message is None:
        Bare(0.5)._validate_step(*arguments)
        return
    with pytest.raises(ValueError, match=message):
        Bare(0.5)._validate_step(*arguments)


@pytest.mark.backend_free
def test_the_base_of_schedules_checks_sparsities():
    Bare(0.5)._validate_sparsity(0.5, "height")
    with pytest.raises(ValueError, match="`height` must be the fraction"):
        Bare(0.5)._validate_sparsity(1.5, "height")
