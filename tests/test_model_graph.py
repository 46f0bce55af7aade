import keras
import numpy as np
import pytest

from keras_pruner.model_graph import ModelGraph, functional_form

layers = keras.layers


class Residual(keras.Model):
    """A subclassed model with a Python operator in its call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.drop = layers.Dense(4, name="dense"), layers.Dropout(0.5, name="drop")

    def call(self, x, training=None):
        return self.drop(self.dense(x), training=training) + x


def names(graph):
    return [call.name for call in graph]


def test_calls_come_after_what_they_take():
    x = keras.Input((8,), name="x")
    left = layers.Dense(4, name="left")(x)
    right = layers.Dense(4, name="right")(left)
    graph = ModelGraph(keras.Model(x, layers.Add(name="add")([right, left])))
    assert names(graph) == ["x", "left", "right", "add"]
    assert [call.name for call in graph["left"].consumers] == ["right", "add"]
    assert [call.name for call in graph["add"].producers] == ["right", "left"]
    assert graph.outputs == list(graph["add"].outputs)
    assert graph["right"].outputs[0].shape == (None, 4)
    assert graph["x"].is_input
    assert not graph["add"].is_input


def test_a_shared_layer_has_every_call_of_this_model_only():
    shared = layers.Dense(4, name="shared")
    elsewhere = keras.Input((4,))
    keras.Model(elsewhere, shared(elsewhere))
    x = keras.Input((4,))
    graph = ModelGraph(keras.Model(x, shared(shared(x))))
    assert len(graph.calls_of(shared)) == 2
    assert graph.calls_of(shared)[0].consumers == [graph.calls_of(shared)[1]]
    assert [type(layer).__name__ for layer in graph.layers] == ["InputLayer", "Dense"]
    assert graph.calls_of(layers.Dense(4)) == []


def test_layers_behind_the_output_do_not_belong_to_a_model_that_is_cut_off():
    x = keras.Input((4,))
    middle = layers.Dense(3, name="middle")(x)
    layers.Dense(2, name="head")(middle)
    graph = ModelGraph(keras.Model(x, middle))
    assert graph["middle"].consumers == []


@pytest.mark.parametrize("size", [8, None], ids=["same size", "other size"])
def test_nested_models_are_opened(size):
    conv = layers.Conv2D(4, 1, name="conv")
    inner = keras.Sequential([keras.Input((size, size, 4)), conv], name="inner")
    image = keras.Input((8, 8, 4), name="image")
    x = Residual(name="residual")(inner(inner(image)))
    model = keras.Model(image, {"sum": layers.Add(name="add")([x, image]), "x": x})
    graph = ModelGraph(model)
    assert names(graph)[:5] == ["image", "inner/conv", "inner/conv", "residual/dense",
                                "residual/drop"]  # fmt: skip
    assert len(graph.calls_of(conv)) == 2
    assert all(call.outputs[0].shape == (None, 8, 8, 4) for call in graph)
    array = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    expected, found = model(array), graph.run([array])
    assert set(found) == {"sum", "x"}
    for key, value in found.items():
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(expected[key]), rtol=1e-5
        )


def test_a_model_is_rebuilt_with_other_layers():
    x = keras.Input((4,), name="x")
    shared = layers.Dense(4, name="shared")
    model = keras.Model([x], [layers.ReLU()(shared(shared(x)))])
    graph, made = ModelGraph(model), {}

    def wider(call, *args, **kwargs):
        layer = made.setdefault(id(call.layer), type(call.layer).from_config(
            call.layer.get_config() | ({"units": 6} if call.layer is shared else {})
        ))  # fmt: skip
        return layer(*args, **kwargs)

    fresh = keras.Input((6,), name="x")
    rebuilt = keras.Model(fresh, graph.run([fresh], wider))
    assert rebuilt.output_shape == (None, 6)
    assert len(ModelGraph(rebuilt).calls_of(rebuilt.get_layer("shared"))) == 2


def test_subclassed_models_are_called_symbolically():
    model = Residual(name="residual")
    with pytest.raises(ValueError, match=r"input shape of .residual.*is not known"):
        ModelGraph(model)
    model(np.ones((2, 4), "float32"))
    graph = ModelGraph(model)
    assert names(graph)[1:3] == ["dense", "drop"]
    assert graph["dense"].layer is model.dense
    assert ModelGraph(model, keras.Input((7, 4)))["dense"].outputs[0].shape == (None, 7, 4)
    assert functional_form(model).name == "residual"


def test_inputs_in_a_structure_keep_it():
    class Weighted(keras.Model):
        def call(self, inputs):
            return inputs["a"] * inputs["b"]

    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((3,), name="a")}
    graph = ModelGraph(Weighted(), inputs)
    assert names(graph)[:2] == ["a", "b"]
    outer = keras.Model(inputs, Weighted(name="weighted")(inputs))
    assert names(ModelGraph(outer))[2].startswith("weighted/")


def test_a_call_that_cannot_be_symbolic_is_named():
    class Failing(keras.Model):
        def call(self, x):
            raise TypeError("no symbolic tensors here")

    with pytest.raises(ValueError, match=r"'mine' \(a Failing\) raised TypeError: no symbolic"):
        ModelGraph(Failing(name="mine"), keras.Input((3,)))


def test_an_unbuilt_sequential_model_is_traced_once_it_is_built():
    model = keras.Sequential([layers.Dense(3, name="dense")])
    with pytest.raises(ValueError, match="is not known"):
        ModelGraph(model)
    model(np.ones((1, 5), "float32"))
    assert names(ModelGraph(model))[1:] == ["dense"]
