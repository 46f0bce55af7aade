"""Planning: what is pruned in a model, which way round it lies, and why the rest is left alone."""

import math
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers
from models import label

import keras_pruner as kp
from keras_pruner.allocations import erk, lamp, uniform
from keras_pruner.model_weights import WeightView
from keras_pruner.patterns import NM, Block, Channel, Unstructured
from keras_pruner.plan import Plan, Target
from keras_pruner.rules import Rules

VECTOR = "a vector, not a kernel"


def sequential(*stack, shape=(8,), **kwargs):
    return keras.Sequential([keras.Input(shape), *stack], **kwargs)


def planned(model, **rules):
    return [target.path for target in Rules(**rules).plan(model).targets]


def reasons(model, **rules):
    return {skip.path: skip.reason for skip in Rules(**rules).plan(model).skipped}


def names(model, **rules):
    """The planned variables by the last part of their path."""
    return [path.split("/")[-1] for path in planned(model, **rules)]


# ---------------------------------------------------------------- the default rule

KERNEL, RECURRENT = ["kernel"], ["kernel", "recurrent_kernel"]
LAYERS = [
    (layers.Dense(3), (8,), KERNEL),
    (layers.Dense(3, use_bias=False), (8,), KERNEL),
    (layers.EinsumDense("abc,cd->abd", (None, 5)), (4, 6), KERNEL),
    (layers.Conv1D(3, 3), (9, 2), KERNEL),
    (layers.Conv2D(3, 3), (9, 9, 2), KERNEL),
    (layers.Conv2D(4, 3, groups=2), (9, 9, 4), KERNEL),
    (layers.Conv3D(3, 3), (5, 5, 5, 2), KERNEL),
    (layers.Conv1DTranspose(3, 3), (9, 2), KERNEL),
    (layers.Conv2DTranspose(3, 3), (9, 9, 2), KERNEL),
    (layers.Conv3DTranspose(3, 3), (5, 5, 5, 2), KERNEL),
    (layers.SeparableConv1D(3, 3), (9, 2), ["pointwise_kernel"]),
    (layers.SeparableConv2D(3, 3), (9, 9, 2), ["pointwise_kernel"]),
    (layers.Embedding(11, 3), (4,), ["embeddings"]),
    (layers.Embedding(11, 3, mask_zero=True), (4,), ["embeddings"]),
    (layers.LSTM(3), (4, 2), RECURRENT),
    (layers.GRU(3), (4, 2), RECURRENT),
    (layers.SimpleRNN(3), (4, 2), RECURRENT),
    (layers.RNN(layers.LSTMCell(3)), (4, 2), RECURRENT),
    (
        layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
        (4, 2),
        ["kernel", "recurrent_kernel"] * 2,
    ),
    (layers.Bidirectional(layers.LSTM(3)), (4, 2), ["kernel", "recurrent_kernel"] * 2),
    (layers.TimeDistributed(layers.Dense(3)), (4, 2), KERNEL),
    (layers.ConvLSTM2D(3, 3), (4, 5, 5, 2), RECURRENT),
]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    LAYERS,
    ids=[f"{type(layer).__name__}-{i}" for i, (layer, *_) in enumerate(LAYERS)],
)
def test_the_default_rule(layer, shape, expected):
    layer = type(layer).from_config(layer.get_config())  # other tests have variables of their own
    model = sequential(layer, shape=shape)
    plan = Rules().plan(model)
    assert [t.path.split("/")[-1] for t in plan.targets] == expected
    assert len(plan.targets) + len(plan.skipped) == len(model.weights)
    assert all(skip.reason for skip in plan.skipped)
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        assert target.shape == tuple(variable.shape)
        assert model.trainable_variables[target.index] is variable
        assert target.units == np.prod(variable.shape)


def test_multi_head_attention_has_four_kernels():
    inputs = keras.Input((5, 6))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    plan = Rules().plan(model)
    assert {t.path.split("/")[-2] for t in plan.targets} == {
        "query",
        "key",
        "value",
        "attention_output",
    }
    shapes = {t.path.split("/")[-2]: t.view.kernel_shape for t in plan.targets}
    assert shapes == {
        "query": (6, 8),
        "key": (6, 8),
        "value": (6, 8),
        "attention_output": (8, 6),
    }


def test_grouped_query_attention_has_four_kernels():
    inputs = keras.Input((5, 6))
    attention = layers.GroupQueryAttention(4, 4, 2)
    model = keras.Model(inputs, attention(inputs, inputs))
    assert [t.view.kernel_shape for t in Rules().plan(model).targets].count((6, 8)) == 2
    assert sorted(names(model)) == KERNEL * 4


@pytest.mark.parametrize("layer", [layers.DepthwiseConv1D, layers.DepthwiseConv2D])
def test_depthwise_kernels_are_left_alone_with_a_reason(layer):
    shape = (9, 4) if layer is layers.DepthwiseConv1D else (9, 9, 4)
    model = sequential(layer(3, name="dw"), layers.Flatten(), layers.Dense(2), shape=shape)
    (path,) = (path for path in reasons(model) if path == "dw/kernel")
    assert "depthwise" in reasons(model)[path]
    assert "dw/kernel" in planned(model, overrides={"dw/kernel": 0.5})


def test_other_depthwise_kernels():
    model = sequential(
        layers.SeparableConv2D(4, 3, name="sep"),
        layers.Conv2D(4, 3, groups=4, name="grouped"),
        shape=(9, 9, 2),
    )
    found = reasons(model)
    assert "depthwise" in found["sep/depthwise_kernel"]
    assert "depthwise" in found["grouped/kernel"]
    assert planned(model) == ["sep/pointwise_kernel"]
    assert len(planned(model, overrides={"sep/dep": 0.5, "grouped": 0.2})) == 3


def test_biases_and_norms_are_left_alone():
    model = sequential(
        layers.Dense(3, name="d"),
        layers.BatchNormalization(name="bn"),
        layers.LayerNormalization(name="ln"),
    )
    assert planned(model) == ["d/kernel"]
    assert set(reasons(model).values()) == {VECTOR}
    assert {path.split("/")[0] for path in reasons(model)} == {"d", "bn", "ln"}


def test_preprocessing_layers_do_no_harm():
    normalization = layers.Normalization(name="norm")
    normalization.adapt(np.ones((4, 8), "float32"))
    model = sequential(layers.Rescaling(1 / 255), normalization, layers.Dense(3, name="d"))
    assert planned(model) == ["d/kernel"]


def test_fixed_transforms_are_left_alone():
    pytest.importorskip("scipy")  # from which Keras takes the window; it comes with JAX
    inputs = keras.Input((512, 1))
    x = layers.STFTSpectrogram(frame_length=64, frame_step=32, fft_length=64, name="stft")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="d")(x))
    assert [t.path for t in Rules().plan(model, frozen=True).targets] == ["d/kernel"]
    assert "transform" in reasons(model)["stft/real_kernel"]


# ---------------------------------------------------------------- kinds of models


class Gate(layers.Layer):
    """A custom layer with a weight that is a kernel, one that is not, and one for later."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.table = self.add_weight(shape=(4, 5), name="table")

    def call(self, x):
        return x @ self.kernel @ self.table


class Asking(Gate):
    """A custom layer that says for itself."""

    def get_prunable_weights(self):
        return [self.table]


class Stack(keras.Model):
    """A subclassed model holding custom layers in a list and in a dict, and a shared one."""

    def __init__(self):
        super().__init__(name="stack")
        self.blocks = [Gate(name="one"), Asking(name="two")]
        self.parts = {"x": layers.Dense(5, name="shared")}
        self.lstm = layers.LSTM(3, name="lstm")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.parts["x"](self.parts["x"](x))
        return self.lstm(x[:, None])


def test_subclassed_models_with_layers_in_lists():
    model = Stack()
    model(np.ones((2, 8), "float32"))
    assert sorted(planned(model)) == [
        "lstm/lstm_cell/kernel",
        "lstm/lstm_cell/recurrent_kernel",
        "one/kernel",
        "shared/kernel",
        "two/table",
    ]
    found = reasons(model)
    assert "not a kernel by its name" in found["one/table"]
    assert "get_prunable_weights" in found["two/kernel"]
    assert "two/kernel" in planned(model, overrides={"two/kernel": 0.5, "one/table": 0.1})


def test_nested_models_and_shared_layers_once():
    inner = sequential(layers.Dense(8, name="in_inner"), name="inner")
    deeper = sequential(inner, layers.Dense(8, name="in_deeper"), name="deeper")
    shared = layers.Dense(8, name="shared")
    inputs = keras.Input((8,))
    x = shared(deeper(shared(inner(inputs))))
    model = keras.Model(inputs, layers.Dense(1, name="last")(x))
    found = [path.split("/")[-2] for path in planned(model)]
    assert sorted(found) == ["in_deeper", "in_inner", "last", "shared"]


class Tied(layers.Layer):
    """Computes with the table of another layer."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def build(self, _):
        self.kernel = self.embedding.embeddings

    def call(self, x):
        return x @ keras.ops.transpose(self.kernel)


def test_tied_variables_once():
    embedding = layers.Embedding(11, 4, name="table")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Tied(embedding, name="tied")(embedding(inputs)))
    assert planned(model) == ["table/embeddings"]
    plan = Rules().plan(model)
    assert len(plan.targets) + len(plan.skipped) == 1


def test_two_weights_of_one_name_have_paths_of_their_own():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(3, name="same"), layers.Dense(3, name="same")

        def call(self, x):
            return self.a(x) + self.b(x)

    model = Twice()
    model(np.ones((2, 3), "float32"))
    paths = planned(model)
    assert len(paths) == len(set(paths)) == 2


def test_a_layer_is_a_model_too():
    dense = layers.Dense(3, name="d")
    dense.build((None, 4))
    assert names(dense) == ["kernel"]


def test_frozen_layers_are_listed_as_frozen():
    model = sequential(layers.Dense(4, name="a"), layers.Dense(3, name="b"))
    model.get_layer("a").trainable = False
    assert planned(model) == ["b/kernel"]
    assert reasons(model)["a/kernel"] == "frozen"
    plan = Rules().plan(model, frozen=True)
    assert [(t.path, t.index) for t in plan.targets] == [("a/kernel", None), ("b/kernel", 0)]


def test_lora_is_refused_with_a_reason():
    model = sequential(layers.Dense(4, name="a"), layers.Dense(3, name="b"))
    model.get_layer("a").enable_lora(2)
    assert planned(model) == ["b/kernel"]
    assert "LoRA is enabled" in reasons(model)["a/kernel"]
    assert "LoRA is enabled" in reasons(model)["a/lora_kernel_a"]


def test_quantized_kernels_are_refused_with_a_reason():
    model = sequential(layers.Dense(4, name="a"), layers.Dense(3, name="b"))
    model.get_layer("a").quantize("int8")
    assert planned(model) == ["b/kernel"]
    assert reasons(model)["a/kernel"] == "holds int8, not floating-point weights"


def test_what_is_empty_is_left_alone():
    class Empty(layers.Layer):
        def build(self, _):
            self.kernel = self.add_weight(shape=(0, 3), name="kernel")

        def call(self, x):
            return x

    model = sequential(Empty(name="a"), layers.Dense(3, name="b"))
    assert planned(model) == ["b/kernel"]
    assert reasons(model)["a/kernel"] == "empty"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_any_precision_plans(policy):
    model = sequential(layers.Dense(4, name="a", dtype=policy))
    assert planned(model) == ["a/kernel"]


def test_planning_changes_nothing():
    model = Stack()
    x = np.ones((2, 8), "float32")
    before = keras.ops.convert_to_numpy(model(x))
    paths = [v.path for v in model.variables]
    Rules().plan(model)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), before)
    assert [v.path for v in model.variables] == paths


# ---------------------------------------------------------------- which axis


EQUATIONS = [  # equation, output shape, input shape, kernel (..., inputs, outputs)
    ("ab,bc->ac", (5,), (7,), (7, 5)),
    ("abc,cd->abd", (None, 5), (4, 7), (7, 5)),
    ("...x,xy->...y", (5,), (4, 7), (7, 5)),
    ("abc,cde->abde", (None, 2, 3), (4, 7), (7, 6)),  # a projection of MultiHeadAttention
    ("abcd,cde->abe", (None, 5), (4, 2, 3), (6, 5)),  # and its output projection
    ("abc,bcd->abd", (4, 5), (4, 7), (4, 7, 5)),  # b is shared: a kernel for each
    ("abc,dc->abd", (None, 5), (4, 7), (7, 5)),  # outputs first
    ("abc,dbc->abd", (4, 5), (4, 7), (4, 7, 5)),
    ("abc,cbd->adb", (5, 4), (4, 7), (4, 7, 5)),
]


@pytest.mark.parametrize(("equation", "output", "shape", "kernel"), EQUATIONS)
def test_einsum_kernels(equation, output, shape, kernel):
    model = sequential(layers.EinsumDense(equation, output), shape=shape)
    (target,) = Rules().plan(model).targets
    (variable,) = model.trainable_variables
    assert target.view.kernel_shape == kernel
    check_round_trip(target)
    check_axes(model, variable, target)


CONVOLUTIONS = [
    (layers.Dense(5), (7,)),
    (layers.Conv1D(5, 1), (4, 7)),
    (layers.Conv2D(5, 1), (4, 4, 7)),
    (layers.Conv1DTranspose(5, 1), (4, 7)),
    (layers.Conv2DTranspose(5, 1), (4, 4, 7)),
    (layers.Conv3DTranspose(5, 1), (4, 4, 4, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: type(v).__name__)
def test_kernels_of_layers(layer, shape):
    layer = type(layer).from_config(layer.get_config() | {"use_bias": False})
    model = sequential(layer, shape=shape)
    (target,) = Rules().plan(model).targets
    assert target.view.kernel_shape[-2:] == (7, 5)
    check_round_trip(target)
    check_axes(model, layer.kernel, target)


def check_round_trip(target):
    weight = np.random.default_rng(0).random(target.shape)
    matrix = target.view.to_matrix(weight)
    assert matrix.shape == target.view.matrix_shape
    np.testing.assert_array_equal(target.view.from_matrix(matrix), weight)
    kernel = target.view.to_kernel(weight)
    assert kernel.shape == target.view.kernel_shape
    np.testing.assert_array_equal(target.view.from_kernel(kernel), weight)
    np.testing.assert_array_equal(target.view.to_kernel(target.view.from_kernel(kernel)), kernel)


def check_axes(model, variable, target):
    """The outputs depend on kernel[..., o] alone, and on inputs through kernel[..., i, :]."""
    data = np.random.default_rng(1).random((1, *model.input_shape[1:])).astype("float32")
    channels = Channel(-1), Channel(-2)
    for pattern, sparsity in zip(channels, (0.8, 0.86), strict=True):  # one of 5, one of 7
        scores = np.random.default_rng(2).random(target.view.kernel_shape)
        mask = target.view.from_kernel(pattern(scores, sparsity))
        variable.assign(mask.astype("float32"))
        output = keras.ops.convert_to_numpy(model(data))
        zeros = (output == 0).mean()
        if pattern.axis == -1:  # only one output channel in so many is alive
            assert zeros == pytest.approx(1 - 1 / target.view.kernel_shape[-1])
        else:  # all are alive, and each is a copy of one input
            assert zeros == 0
            assert np.isin(np.round(output, 5), np.round(data, 5)).all()


def test_a_second_weight_of_a_subclass_keeps_its_own_axes():
    class Twofold(layers.EinsumDense):
        def build(self, shape):
            super().build(shape)
            self.extra_kernel = self.add_weight(shape=(3, 4), name="extra_kernel")

    model = sequential(Twofold("abc,cde->abde", (None, 2, 3)), shape=(4, 7))
    assert [t.view.kernel_shape for t in Rules().plan(model).targets] == [(7, 6), (3, 4)]


# ---------------------------------------------------------------- filters and overrides


@pytest.fixture
def model():
    return sequential(
        layers.Conv2D(4, 3, name="conv_1"),
        layers.Conv2D(6, 3, name="conv_2"),
        layers.Flatten(),
        layers.Dense(8, name="ffn"),
        layers.Dense(3, name="head"),
        shape=(8, 8, 2),
        name="small",
    )


ALL = ["conv_1/kernel", "conv_2/kernel", "ffn/kernel", "head/kernel"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (None, ALL),
        ("conv", ALL[:2]),
        ("conv_2|head", [ALL[1], ALL[3]]),
        ("^ffn$", [ALL[2]]),
        (["conv", "head"], [*ALL[:2], ALL[3]]),
        (("conv", "head"), [*ALL[:2], ALL[3]]),
        (lambda layer: isinstance(layer, layers.Dense), ALL[2:]),
        (lambda layer: layer.name != "head", ALL[:3]),
    ],
)
def test_filters(model, filters, expected):
    assert planned(model, filters=filters) == expected
    left = set(ALL) - set(expected)
    assert {p for p, r in reasons(model, filters=filters).items() if "filters" in r} >= left


@pytest.mark.parametrize("filters", ["dense", [], lambda layer: layer.name == "no"])
def test_filters_that_match_nothing_list_the_layers(model, filters):
    with pytest.raises(ValueError, match=r"`filters` matches no layer.*'conv_1', .*'head'"):
        Rules(filters=filters).plan(model)


def test_a_filter_of_several_that_matches_nothing_is_named(model):
    with pytest.raises(ValueError, match=r"`filters` matches no layer with 'haed'\. Received"):
        Rules(filters=["conv_1", "haed"]).plan(model)


class Own(layers.Dense):
    """A class that is none of Keras'."""


@pytest.mark.parametrize("given", [layers.Dense, Own])
def test_a_class_as_filters_is_refused_with_what_to_pass(given):
    name = "keras.layers.Dense" if given is layers.Dense else "Own"
    with pytest.raises(ValueError, match=rf"Pass `lambda layer: isinstance\(layer, {name}\)`"):
        Rules(filters=given)


@pytest.fixture
def parted():
    """Layers that consist of others."""
    x = inputs = keras.Input((6, 8))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(8, name="within"), name="wrapper")(x)
    x = layers.RNN([layers.LSTMCell(4, name="low"), layers.LSTMCell(3, name="high")], name="rnn")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


DIRECTIONS = {"both/forward_gru/gru_cell", "both/backward_gru/gru_cell"}
PROJECTIONS = {f"attention/{part}" for part in ("query", "key", "value", "attention_output")}
CELLS = {"rnn/stacked_rnn_cells/low", "rnn/stacked_rnn_cells/high"}
DENSE = {"wrapper/within", "head"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (lambda layer: isinstance(layer, layers.Bidirectional), DIRECTIONS),
        (lambda layer: isinstance(layer, layers.GRU), DIRECTIONS),
        (lambda layer: layer.name == "forward_gru", {"both/forward_gru/gru_cell"}),
        (lambda layer: isinstance(layer, layers.RNN | layers.Dense), DIRECTIONS | CELLS | DENSE),
        (lambda layer: isinstance(layer, layers.LSTMCell), CELLS),
        (lambda layer: layer.name in ("attention", "within"), {*PROJECTIONS, "wrapper/within"}),
        (lambda layer: layer.name in ("query", "rnn"), {"attention/query", *CELLS}),
        # What leaves a part out looks at parts.
        (
            lambda layer: layer.name not in ("query", "within", "backward_gru"),
            {*PROJECTIONS, *DIRECTIONS, *CELLS, "head"} - {"attention/query"},
        ),
    ],
)
def test_a_function_may_mean_a_part_or_the_whole(parted, filters, expected):
    assert {path.rsplit("/", 1)[0] for path in planned(parted, filters=filters)} == expected


def test_a_function_does_not_see_what_is_around_a_layer_of_the_users(parted):
    with pytest.raises(ValueError, match="matches no layer"):
        planned(parted, filters=lambda layer: isinstance(layer, layers.TimeDistributed))


def test_overrides(model):
    plan = Rules(
        overrides={"head": None, "conv_1": 0.5, "ffn": NM(2, 4), "conv_2": (0.3, Channel())}
    ).plan(model)
    assert [(t.path, t.sparsity, t.pattern) for t in plan.targets] == [
        ("conv_1/kernel", 0.5, Unstructured()),
        ("conv_2/kernel", 0.3, Channel()),
        ("ffn/kernel", 0.5, NM(2, 4)),
    ]
    assert {s.reason for s in plan.skipped if s.path.startswith("head")} == {
        "left alone by an override"
    }


@pytest.mark.parametrize("sparsity", [0.5, np.float32(0.5), np.float64(0.5)])
def test_any_number_is_a_sparsity_in_an_override(model, sparsity):
    for override in (sparsity, (sparsity, Block((4, 1)))):
        plan = Rules(overrides={"head": override}).plan(model)
        assert plan.targets[-1].sparsity == 0.5


def test_sparsity_zero_is_no_target(model):
    for override in (None, 0, 0.0, (0, Unstructured())):
        assert planned(model, overrides={"head": override}) == ALL[:3]


def test_the_first_override_that_fits_counts(model):
    plan = Rules(overrides={"conv_1": 0.2, "conv": 0.5}).plan(model)
    assert [t.sparsity for t in plan.targets] == [0.2, 0.5, None, None]


def test_an_override_that_never_counts_is_refused(model):
    with pytest.raises(ValueError, match=r"'conv_1'\]` has no effect.*\['conv'\].*specific"):
        Rules(overrides={"conv": 0.5, "conv_1": 0.2}).plan(model)


def test_names_in_an_allocation_that_serve_no_weight_are_refused():
    stack = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")]
    )
    Rules(allocation={"a/": 0.5, "": 0.9}).plan(stack)
    message = r"`allocation\['typo'\]` would have no effect: .*'a/kernel', 'b/kernel'"
    with pytest.raises(ValueError, match=message):
        Rules(allocation={"a/": 0.5, "b/": 0.5, "typo": 0.9}).plan(stack)
    with pytest.raises(ValueError, match=r"`allocation\['b/'\]` would have no effect"):
        Rules(allocation={"": 0.5, "b/": 0.9}).plan(stack)
    with pytest.raises(ValueError, match=r"`allocation\['b/'\]` .* the budget, \['a/kernel'\]"):
        Rules(allocation={"a/": 0.5, "b/": 0.9}, overrides={"b/": 0.3}).plan(stack)
    with pytest.raises(ValueError, match=r"must have a regex for every weight.*'b/kernel'"):
        Rules(allocation={"a/": 0.5}).plan(stack)


def test_a_mapping_over_several_patterns_says_how_to_come_to_each_budget():
    """To pass what the one came to, as was said before, is wrong for the other."""
    stack = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")]
    )
    blocks = {"b/": Block((4, 1))}
    plan = Rules(allocation={"a/": 0.75, "b/": 0.5}, overrides=blocks).plan(stack)
    message = r"0.75 over the weights with Unstructured\(\), .*'a/kernel': \(0.75, Uns"
    with pytest.raises(ValueError, match=message):
        plan.check_final(0.5)
    own = {"a/kernel": (0.75, Unstructured()), **blocks}
    Rules(allocation={"b/": 0.5}, overrides=own).plan(stack).check_final(0.5)


def test_an_override_goes_before_the_filters(model):
    found = planned(model, filters="conv", overrides={"head": 0.5, "conv_2": None})
    assert found == ["conv_1/kernel", "head/kernel"]


def test_overrides_that_match_nothing_list_the_weights(model):
    with pytest.raises(ValueError, match=r"matches no weight with 'dense'.*'conv_1/kernel'"):
        Rules(overrides={"dense": 0.5}).plan(model)


def test_overrides_that_ask_for_what_cannot_be(model):
    with pytest.raises(ValueError, match=r"'bias'\]` asks for zeros.*head/bias: a vector"):
        Rules(overrides={"bias": 0.5}).plan(model)
    model.get_layer("head").enable_lora(2)
    with pytest.raises(ValueError, match=r"'head'\]` asks for zeros.*LoRA is enabled"):
        Rules(overrides={"head": 0.5}).plan(model)


def test_overrides_of_what_is_frozen_wait(model):
    model.get_layer("head").trainable = False
    assert planned(model, overrides={"head": 0.5}) == ALL[:3]


def test_a_block_that_does_not_fit_raises_when_named_and_is_skipped_by_default(model):
    found = reasons(model, pattern=Block((32, 4)))  # conv_1 has 18 inputs, head 3 outputs
    assert "Block(shape=(32, 4), pooling='mean') does not fit" in found["conv_1/kernel"]
    assert "does not fit its shape (8, 3)" in found["head/kernel"]
    with pytest.raises(ValueError, match=r"head/kernel: A block must fit .* \(8, 3\)"):
        Rules(overrides={"head": Block((32, 4))}).plan(model)
    with pytest.raises(ValueError, match=r"conv_1/kernel: `m` must be at most.*m=4"):
        Rules(overrides={"conv_1": NM(2, 4)}).plan(model)
    assert "NM(n=2, m=4) does not fit" in reasons(model, pattern=NM(2, 4))["conv_1/kernel"]


def test_what_shares_the_budget():
    assert Rules().allocation is lamp
    assert Rules(Block((4, 1))).allocation is lamp
    assert Rules(Channel()).allocation is uniform
    assert Rules(NM(2, 4)).allocation is uniform
    assert Rules(allocation="erk").allocation is erk
    assert Rules(NM(2, 4), allocation="erk", overrides={"x": Unstructured()}).allocation is erk


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rules(pattern="2:4"), "`pattern` must be a pattern, .* Received: pattern='2:4'"),
        (lambda: Rules(pattern=Block), "`pattern` must be a pattern"),
        (lambda: Rules(allocation="best"), "`allocation` must be one of"),
        (lambda: Rules(criterion="magnitude"), "`criterion` must be a function"),
        (lambda: Rules(filters=3), "`filters` must be a regex, a list .* Received: filters=3"),
        (lambda: Rules(filters=["a", 3]), "not a string. Received: 3"),
        (lambda: Rules(filters="("), "`filters` must hold regular expressions"),
        (lambda: Rules(filters=["a", "["]), r"`filters` must hold regular .* Received: '\['"),
        (lambda: Rules(overrides=["head"]), "`overrides` must map regexes"),
        (lambda: Rules(overrides={"(": 0.5}), r"`overrides` must hold regular .* Received: '\('"),
        (lambda: Rules(overrides={3: 0.5}), "not a string. Received: 3"),
        (lambda: Rules(overrides={"a": 80}), r"`overrides\['a'\]` must be the .* For 80% zeros"),
        (lambda: Rules(overrides={"a": True}), r"Received: overrides\['a'\]=True"),
        (lambda: Rules(overrides={"a": "0.5"}), r"Received: overrides\['a'\]='0.5'"),
        (lambda: Rules(overrides={"a": (0.5, "2:4")}), r"must be None, a sparsity, a pattern or"),
        (lambda: Rules(overrides={"a": (Block((4, 1)), 0.5)}), "must be None, a sparsity"),
        (lambda: Rules(overrides={"a": (0.5,)}), r"Received: overrides\['a'\]=\(0.5,\)"),
        (lambda: Rules(overrides={"a": (0.5, Channel(), 1)}), "must be None, a sparsity"),
        (lambda: Rules(overrides={"a": (50, Channel())}), "For 50% zeros"),
        (
            lambda: Rules(overrides={"a": (0.8, NM(2, 4))}),
            r"NM\(n=2, m=4\) fixes the sparsity at 0.5",
        ),
        (
            lambda: Rules(NM(2, 4), overrides={"a": 0.8}),
            r"Received: overrides\['a'\]=0.8",
        ),
        (lambda: Rules(NM(2, 4), allocation="lamp"), "to decide. Received: allocation='lamp'."),
        (
            lambda: Rules(NM(2, 4), allocation="erk", overrides={"a": None, "b": NM(1, 4)}),
            "`allocation` has nothing to decide",
        ),
    ],
)
def test_bad_rules_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_own_sparsity_may_be_said():
    Rules(NM(1, 3), overrides={"a": 2 / 3, "b": (1 - 1 / 3, NM(1, 3)), "c": (0.5, NM(2, 4))})


# ---------------------------------------------------------------- what is no model


def test_the_file_of_a_model_is_refused_with_how_to_load_it():
    for path in ("m.keras", pathlib.Path("m.keras")):
        with pytest.raises(ValueError, match=r"`keras.saving.load_model\('m.keras'\)`"):
            Rules().plan(path)


def test_an_unbuilt_model():
    for model in (keras.Sequential([layers.Dense(3)]), Stack()):
        with pytest.raises(ValueError, match=r"has no weights yet. Build it first.*input_shape"):
            Rules().plan(model)


def test_a_model_without_weights():
    with pytest.raises(ValueError, match="nothing to prune in 'flat': it has no weights"):
        Rules().plan(sequential(layers.Flatten(), name="flat"))


def test_nothing_to_prune_says_why():
    model = sequential(layers.BatchNormalization(name="bn"), name="norms")
    with pytest.raises(ValueError, match=r"(?s)nothing to prune in 'norms'.*bn/gamma.*a vector"):
        Rules().plan(model)
    model = sequential(layers.Dense(3, name="d"), name="all_frozen")
    model.trainable = False
    with pytest.raises(ValueError, match=r"(?s)nothing to prune in 'all_frozen'.*frozen"):
        Rules().plan(model)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: keras.Input((8,)), "KerasTensor"),
        (lambda: keras.ops.ones((2, 3)), ""),
        (lambda: np.ones((2, 3)), "numpy.ndarray"),
        (lambda: None, "NoneType"),
        (lambda: keras.Sequential, "builtins.type"),
    ],
)
def test_what_is_no_model(make, kind):
    with pytest.raises(ValueError, match=f"`model` must be a Keras model, not .*{kind}"):
        Rules().plan(make())


def test_a_keras_2_model():
    base = type("Model", (), {"__module__": "tf_keras.src.engine.training"})
    mine = type("Mine", (base,), {"__module__": "__main__"})
    for fake in (base(), mine()):
        with pytest.raises(ValueError, match=r"is a Keras 2 object \(tf_keras\).*load_model"):
            Rules().plan(fake)


# ---------------------------------------------------------------- the plan as a value


def test_a_plan_prints_as_a_table_with_reasons(model):
    plan = Rules(Block((4, 1)), overrides={"head": None, "conv_1": 0.5}).plan(model)
    lines = {line.split()[0]: " ".join(line.split()) for line in plan.full().splitlines() if line}
    assert lines["conv_1/kernel"] == (
        "conv_1/kernel (3, 3, 2, 4) Block(shape=(4, 1), pooling='mean') 0.5"
    )
    assert lines["ffn/kernel"].endswith("shared budget")
    assert lines["head/kernel"] == "head/kernel (8, 3) left alone by an override"
    assert lines["ffn/bias"] == f"ffn/bias (8,) {VECTOR}"
    assert len([key for key in lines if "/" in key]) == len(model.weights)


def test_plans_are_the_same_by_what_they_prune(model):
    plan = Rules().plan(model)
    assert plan.same_as(Rules().plan(model))
    assert not plan.same_as(Rules(filters="conv").plan(model))
    assert not plan.same_as(Rules(Block((4, 1))).plan(model))
    assert not plan.same_as(Rules(allocation="erk").plan(model))
    assert isinstance(plan, Plan)


@pytest.mark.parametrize("pattern", [Unstructured(), Block((4, 1)), Channel()], ids=label)
def test_units_of_a_target(pattern):
    target = Target("k", WeightView((3, 3, 5, 6), (), (0, 1), (2,), (3,)), pattern)
    assert target.units == {Unstructured(): 270, Block((4, 1)): 12 * 6, Channel(): 6}[pattern]


def test_lists_in_a_target_become_tuples():
    target = Target("k", WeightView([5, 6], [], [], [0], [1]), Unstructured())
    same = Target("k", WeightView((5, 6), (), (), (0,), (1,)), Unstructured())
    assert target == same
    assert hash(target) == hash(same)
    assert re.match(r"Target\(path='k'", repr(target))


# ---------------------------------------------------------------- kp.plan


def test_a_plan_at_a_sparsity_is_what_pruning_gives(model):
    plan = kp.plan(model, 0.8)
    before = [np.array(v) for v in map(keras.ops.convert_to_numpy, model.weights)]
    report = kp.prune(model, 0.8)
    reached = {row.path: row.sparsity for row in report.weights}
    for target, kept in zip(plan.targets, plan.kept, strict=True):
        assert reached[target.path] == pytest.approx(1 - kept / math.prod(target.shape))
    assert len(before) == len(model.weights)


def test_making_a_plan_changes_nothing(model):
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]
    kp.plan(model, 0.9, pattern=Block((2, 1)))
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))


def test_a_plan_without_a_sparsity_tells_who_shares_the_budget(model):
    text = str(kp.plan(model, overrides={"head": 0.5}))
    assert "shared budget" in text
    assert kp.plan(model, pattern=NM(1, 2)).sparsity == 0.5
    with pytest.raises(ValueError, match=r"fixes the sparsity at 0\.5"):
        kp.plan(model, 0.8, pattern=NM(1, 2))
    with pytest.raises(ValueError, match=r"For 80% zeros pass sparsity=0\.8"):
        kp.plan(model, 80)


def base_and_head():
    model = sequential(layers.Dense(50, name="base"), layers.Dense(2, name="head"), shape=(40,))
    model.get_layer("base").trainable = False
    return model


def test_a_frozen_base_is_said_with_its_share_and_the_fix():
    plan = kp.plan(base_and_head())
    assert plan.coverage == pytest.approx(100 / 2100)
    assert re.search(
        r"95.2% of the weights that could be pruned are left alone: 2,000 in base/kernel "
        r"\(frozen; .*trainable.*kp.prune",
        plan.left_alone(),
    )
    assert plan.left_alone() in str(plan).replace("\n", " ")


class Mixing(layers.Layer):
    """A custom layer whose weight has a name of its own."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 30), name="w")

    def call(self, x):
        return x @ self.w


def test_custom_weights_are_said_with_the_override_that_admits_them():
    model = sequential(Mixing(name="mixing"), layers.Dense(2, name="head"), shape=(40,))
    plan = kp.plan(model)
    assert "1,200 in mixing/w (not a kernel by its name" in plan.left_alone()
    assert "overrides={'mixing/w': 0.5}" in plan.left_alone()
    assert kp.plan(model, overrides={"mixing/w": 0.5}).left_alone() == ""


@pytest.mark.parametrize(
    "options",
    [{}, {"filters": "head"}, {"overrides": {"base": None}}, {"overrides": {"base": 0}}],
    ids=repr,
)
def test_what_the_user_or_the_default_leaves_alone_is_no_surprise(options):
    model = base_and_head()
    model.get_layer("base").trainable = True
    assert kp.plan(model, **options).left_alone() == ""
    assert kp.plan(model, **options).coverage == 1


def test_weights_of_a_wrapped_module_are_said():
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("a torch module needs the torch backend")
    module = layers.TorchModuleWrapper(torch.nn.Linear(40, 30), name="wrapped")
    model = keras.Sequential([module, layers.Dense(2)])
    model(np.zeros((1, 40), "float32"))
    text = kp.plan(model).left_alone()
    assert "1,200 in variable" in text
    assert "wrapped PyTorch module" in text


@pytest.mark.parametrize(
    ("options", "sparsity", "told"),
    [
        (
            {"pattern": Block((20, 32))},
            0.5,
            r"0\.5 was asked .*Block.*reaches 0: .*d/kernel: 1",
        ),
        ({"pattern": Channel()}, 0.999, r"0\.999 was asked for and Channel.*reaches 0\.9688"),
        (
            {"pattern": NM(2, 4), "filters": "odd"},
            None,
            "0.5 was asked .*reaches 0.4: .*fill no",
        ),
        ({"pattern": Channel(), "overrides": {"^d": 0.99}}, 0.5, "0.99 was asked .*reaches 0.9688"),
        ({}, 0.5, ""),
        ({}, 0.999, ""),
        ({"pattern": Block((4, 1))}, 0.8, ""),
        ({"pattern": NM(2, 4), "overrides": {"odd": None}}, None, ""),
    ],
    ids=repr,
)
def test_what_is_reached_is_said_where_it_is_not_what_was_asked(options, sparsity, told):
    model = sequential(layers.Dense(32, name="d"), layers.Dense(5, name="odd"), shape=(20,))
    if options.get("filters") == "odd":
        model = sequential(layers.Dense(3, name="odd"), shape=(5,))
    elif "overrides" not in options and told and options["pattern"] != Channel():
        model = sequential(layers.Dense(32, name="d"), shape=(20,))
    plan = kp.plan(model, sparsity, **options)
    found = plan.unmet(plan.sparsity, plan.kept)
    assert re.search(told, found) if told else found == ""
    assert (found in " ".join(plan.notes())) == bool(found) or not found


def test_tied_channels_are_counted_by_group_and_not_by_weight():
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(10, 3, groups=2, use_bias=False, name="grouped")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(5, 1, name="odd")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    plan = kp.plan(model, 0.5, pattern=Channel())
    (told,) = [note for note in plan.notes() if "was asked for" in note]
    assert "of the tied channels" in told
    assert all(f": {group.units}" in told for group in plan.groups)
    assert "kernel: 1" not in told


def test_rounded_channels_say_what_they_reach():
    """Groups of 10 and 5 in multiples of 8 keep 8 and 5 of them, whatever half would be."""
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(5, 1, name="odd")(layers.Conv2D(10, 3, name="wide")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    plan = kp.plan(model, 0.5, pattern=Channel(multiple=8))
    (told,) = [note for note in plan.notes() if "was asked for" in note]
    assert f"reaches {1 - 13 / 15:.4g} of the tied channels" in told
    assert "keeps a multiple of 8 of them, at least 8" in told


def test_a_large_embedding_that_gets_most_zeros_is_said():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Embedding(100, 16, name="words"), layers.Dense(64, name="d")]
    )
    model.get_layer("words").embeddings.assign(
        np.random.default_rng(0).standard_t(2, (100, 16)) * 0.01
    )
    model.get_layer("d").kernel.assign(np.ones((16, 64)))
    plan = kp.plan(model, 0.5, allocation="global")
    told = plan.wasted(plan.kept)
    assert "words/embeddings gets" in told
    assert "overrides={'words/embeddings': 0.5}" in told
    even = kp.plan(model, 0.5, allocation="uniform")
    assert even.wasted(even.kept) == ""
    less = kp.plan(model, 0.5, allocation="global", overrides={"words/embeddings": 0.5})
    assert less.wasted(less.kept) == ""
