"""Runs that begin where the weights have changed give what whole runs give."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_pruner.oneshot import replay as replays
from keras_pruner.oneshot.listen import Enough, listening, run
from keras_pruner.oneshot.replay import Replay

X = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype("float32")
BATCHES = [X[:8], X[8:16], X[16:]]


def branches():
    """A residual block, a nested model, a layer that is called twice, and two outputs."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    y = layers.BatchNormalization(name="norm")(x)
    x = layers.Add(name="add")([x, layers.ReLU()(y)])
    inner = keras.Sequential([layers.Conv2D(4, 1, name="inside"), layers.ReLU()], name="inner")
    shared = layers.Conv2D(4, 1, name="shared")
    x = shared(layers.Average(name="average")([inner(x), shared(x)]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, [layers.Dense(3, name="first")(x), layers.Dense(2, name="last")(x)])


def layer_of(model, name):
    return next(layer for layer in model._flatten_layers() if layer.name == name)


def inputs_heard(replay, layer, calls=1):
    """The inputs of a layer in each of its calls, batch by batch."""
    found = []

    def hear(call):
        found[-1].append(keras.ops.convert_to_numpy(call.input))
        if len(found[-1]) == calls:
            raise Enough

    with listening({layer: hear}):
        for _, go in replay.runs([layer]):
            found.append([])
            go()
    return found


def inputs_of_whole_runs(model, layer, calls=1):
    found = []
    with listening({layer: lambda call: found[-1].append(np.array(call.input))}):
        for batch in BATCHES:
            found.append([])
            run(model, batch)
    assert all(len(each) == calls for each in found)
    return found


def calls_made(model, replay, layer):
    """The names of the layers that a pass up to a layer calls."""
    heard = []
    watched = [each for each in model._flatten_layers() if not isinstance(each, keras.Model)]
    listeners = {each: lambda call, name=each.name: heard.append(name) for each in watched}

    def last(call):
        heard.append(layer.name)
        raise Enough

    with listening(listeners | {layer: last}):
        for _, go in replay.runs([layer]):
            go()
    return set(heard)


@pytest.mark.parametrize(
    ("name", "calls"),
    [("stem", 1), ("norm", 1), ("add", 1), ("inside", 1), ("shared", 2), ("first", 1), ("last", 1)],
)
def test_inputs_are_those_of_whole_runs(name, calls):
    model = branches()
    replay = Replay(model, BATCHES)
    for before in ("stem", "norm", name):
        inputs_heard(replay, layer_of(model, before))
    layer = layer_of(model, name)
    heard, wanted = inputs_heard(replay, layer, calls), inputs_of_whole_runs(model, layer, calls)
    for mine, whole in zip(heard, wanted, strict=True):
        for a, b in zip(mine, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_second_run_begins_at_the_layer():
    model = branches()
    replay, layer = Replay(model, BATCHES), layer_of(model, "inside")
    assert "stem" in calls_made(model, replay, layer)
    assert calls_made(model, replay, layer) == {"inside"}
    assert "stem" not in calls_made(model, replay, layer_of(model, "last"))


def test_changed_weights_in_front_are_seen():
    model = branches()
    replay, layer = Replay(model, BATCHES), layer_of(model, "last")
    before = inputs_heard(replay, layer)
    norm = layer_of(model, "norm")
    norm.moving_mean.assign(norm.moving_mean.value + 1)
    after = inputs_heard(replay, layer)
    assert not np.allclose(before[0][0], after[0][0])
    np.testing.assert_allclose(after[0][0], inputs_of_whole_runs(model, layer)[0][0], rtol=1e-5)


def test_tensors_over_the_limit_are_not_kept(monkeypatch):
    model = branches()
    stem_bytes = 4 * 24 * 8 * 8 * 4
    monkeypatch.setattr(replays, "KEPT_BYTES", stem_bytes - 1)
    replay, layer = Replay(model, BATCHES), layer_of(model, "norm")
    calls_made(model, replay, layer)
    assert "stem" in calls_made(model, replay, layer)
    last = layer_of(model, "last")  # takes four numbers a sample
    calls_made(model, replay, last)
    assert calls_made(model, replay, last) == {"last"}


class Noisy(layers.Layer):
    """Draws random numbers in inference, too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


def test_a_model_that_draws_random_numbers_runs_whole():
    model = keras.Sequential([keras.Input((8, 8, 3)), Noisy(name="noise"), layers.Flatten()])
    model.add(layers.Dense(2, name="last"))
    replay, layer = Replay(model, BATCHES), layer_of(model, "last")
    first = inputs_heard(replay, layer)
    np.testing.assert_array_equal(first[1][0], inputs_heard(replay, layer)[1][0])
    assert "noise" in calls_made(model, replay, layer)


class Subclassed(keras.Model):
    """No graph of layers."""

    def __init__(self):
        super().__init__()
        self.flat = layers.Flatten(name="flat")
        self.last = layers.Dense(2, name="last")

    def call(self, inputs):
        return self.last(self.flat(inputs))


def test_a_subclassed_model_runs_whole():
    model = Subclassed()
    model(BATCHES[0])
    replay, layer = Replay(model, BATCHES), layer_of(model, "last")
    assert calls_made(model, replay, layer) == {"flat", "last"}
    assert calls_made(model, replay, layer) == {"flat", "last"}


class Flattening(keras.Model):
    """Traced, it takes the batch for one sample, since the number of samples is not known then."""

    def __init__(self):
        super().__init__(name="flattening")
        self.inside = layers.Dense(4, name="inside")

    def call(self, inputs):
        return self.inside(keras.ops.reshape(inputs, (inputs.shape[0] or 1, 8 * 8 * 3)))


def test_a_nested_model_that_is_traced_otherwise_runs_whole():
    image = keras.Input((8, 8, 3))
    inner = Flattening()
    inner(BATCHES[0])
    model = keras.Model(image, layers.Dense(2, name="last")(inner(image)))
    replay, layer = Replay(model, BATCHES), layer_of(model, "last")
    heard, wanted = inputs_heard(replay, layer), inputs_of_whole_runs(model, layer)
    for mine, whole in zip(heard, wanted, strict=True):
        np.testing.assert_array_equal(mine[0], whole[0])


def test_masks_are_kept():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(5, 3, mask_zero=True),
            layers.Dense(3, name="dense"),
            layers.LSTM(2, return_sequences=True, name="lstm"),
        ]
    )
    replay, layer = Replay(model, [tokens]), layer_of(model, "lstm")
    masks = []
    for _ in range(2):
        with listening({layer: lambda call: masks.append(np.array(call.kwargs["mask"]))}):
            for _, go in replay.runs([layer]):
                go()
    np.testing.assert_array_equal(masks[0], tokens != 0)
    np.testing.assert_array_equal(masks[0], masks[1])
