import keras
import numpy as np
import pytest
from keras import layers
from models import Cell, NormCell

from keras_pruner.oneshot.listen import Enough, Values, listening, run
from keras_pruner.oneshot.trace import trace


def functional():
    x = inputs = keras.Input((8, 8, 3))
    x = y = layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Add()([x, layers.Conv2D(4, 1, name="second")(y)])
    return keras.Model(inputs, layers.Dense(2, name="third")(layers.Flatten()(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.third = layers.Dense(2, name="third")  # made first, called last
        self.first = layers.Conv2D(4, 3, name="first")
        self.blocks = [layers.Conv2D(4, 1, name="second")]

    def call(self, x):
        for layer in [self.first, *self.blocks]:
            x = layer(x)
        return self.third(keras.ops.mean(x, axis=(1, 2)))


def nested():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="first")])
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Conv2D(4, 1, name="second")])
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Dense(2, name="third")(outer(inputs)))


def images(count=4):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize("make", [functional, Subclassed, nested])
def test_layers_are_heard_in_the_order_of_their_calls(make):
    model = make()
    model(images())
    found = trace(model, images())
    products = [n.layer.name for n in found.order if not isinstance(n, layers.BatchNormalization)]
    assert products == ["first", "second", "third"]
    assert found.reasons == {}


def test_a_shared_layer_is_heard_at_each_call():
    shared, inputs = layers.Dense(4), keras.Input((4,))
    model = keras.Model(inputs, shared(shared(shared(inputs))))
    found = trace(model, images()[:, 0, 0, [0, 1, 2, 0]])
    assert list(found.calls.values()) == [3]


def test_a_norm_right_behind_a_product_is_known():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    follows, apart = layers.BatchNormalization(), layers.BatchNormalization()
    model = keras.Model(inputs, apart(layers.ReLU()(follows(x))))
    assert list(trace(model, images()).followers.values()) == [follows]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, Enough])
def test_the_model_is_left_as_it_was(error):
    model = functional()
    before = [sorted(layer.__dict__) for layer in model.layers]

    def listener(_):
        raise error

    seen = []
    first, third = model.get_layer("first"), model.get_layer("third")
    try:
        with listening({first: listener, third: seen.append}):
            run(model, images())
    except (KeyboardInterrupt, ValueError):
        pass
    assert not seen
    assert [sorted(layer.__dict__) for layer in model.layers] == before
    assert "call" not in first.__dict__


def test_a_call_set_on_the_instance_is_put_back():
    model = functional()
    layer = model.get_layer("first")
    mine = layer.call
    object.__setattr__(layer, "call", mine)
    with listening({layer: lambda _: None}):
        assert layer.__dict__["call"] is not mine
    assert layer.__dict__["call"] is mine


class Noisy(layers.Layer):
    """Draws numbers and counts, also in inference."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)
        self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.runs.assign_add(1.0)
        return x + self.runs + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_every_run_draws_the_same_and_leaves_no_trace():
    noisy = Noisy()
    model = keras.Sequential([keras.Input((3,)), noisy])
    states = [noisy.runs, noisy.seeds.state]
    before = Values.of(states)
    outputs = [run(model, images()[:, 0, 0]) for _ in range(2)]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, outputs))
    for a, b in zip(Values.of(states).arrays, before.arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_that_does_more_than_multiply_is_found_out():
    class Standardized(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 2

    model = keras.Sequential([keras.Input((3,)), Standardized(4)])
    assert "more than multiply" in next(iter(trace(model, images()[:, 0, 0]).reasons.values()))


def test_layers_in_a_traced_loop_are_found_out():
    """Only JAX traces the loop of a recurrent layer outside of a compiled function."""
    model = keras.Sequential([keras.Input((5, 3)), layers.RNN(Cell())])
    found = trace(model, images()[:, 0, :5])
    traced = keras.backend.backend() == "jax"
    assert ["traced" in reason for reason in found.reasons.values()] == [True] * traced


def test_a_model_that_fails_says_why():
    model = Subclassed()
    model(images())
    with pytest.raises(ValueError, match=r"`calibration` must be inputs .* can be called on"):
        trace(model, images()[..., :2])


def test_a_norm_in_a_traced_loop_is_left_alone():
    model = keras.Sequential([keras.Input((5, 3)), layers.RNN(NormCell()), layers.Dense(2)])
    found = trace(model, images()[:, 0, :5])
    norms = [node for node in found.order if isinstance(node, layers.BatchNormalization)]
    assert len(norms) == (keras.backend.backend() != "jax")
