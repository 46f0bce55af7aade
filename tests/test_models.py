"""Law 12 in training: every kind of model is pruned, exactly, after every step."""

import keras
import numpy as np
import pytest
from models import LOSS, EveryStep, Subclassed, values

import keras_pruner as kp
from keras_pruner.training.optimizer import find

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class MinimalCell(layers.Layer):
    """A recurrent cell of one's own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(
            shape=(self.units, self.units), name="recurrent_kernel", initializer="orthogonal"
        )

    def call(self, x, states):
        out = keras.ops.tanh(x @ self.kernel + states[0] @ self.recurrent)
        return out, [out]


def images(*body):
    return keras.Sequential([keras.Input((8, 8, 3)), *body, layers.Flatten(), layers.Dense(3)])


def sequences(*body):
    return keras.Sequential([keras.Input((5, 4)), *body, layers.Flatten(), layers.Dense(3)])


def tokens(*body):
    first = [keras.Input((5,), dtype="int32"), layers.Embedding(11, 6, mask_zero=True)]
    return keras.Sequential([*first, *body, layers.Dense(3)])


def functional():
    inputs = keras.Input((5, 4))
    shared = layers.Dense(4)
    x = shared(shared(inputs))
    x = layers.Add()([x, inputs])
    inner = keras.Sequential([keras.Input((5, 4)), layers.Dense(6), layers.LayerNormalization()])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(inner(x))))


def attention():
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 6))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def subclassed():
    return Subclassed()


def normalized():
    normalization = layers.Normalization(mean=0.5, variance=2.0)
    return images(layers.Rescaling(0.5), normalization, layers.Conv2D(4, 3))


def application():
    return keras.applications.MobileNetV3Small(
        (32, 32, 3),
        alpha=0.35,
        weights=None,
        classes=3,
        classifier_activation=None,
        minimalistic=True,
    )


MODELS = {
    "convolutions": lambda: images(layers.Conv2D(4, 3, groups=1), layers.BatchNormalization()),
    "transposed": lambda: images(layers.Conv2DTranspose(4, 3, strides=2)),
    "separable": lambda: images(layers.SeparableConv2D(4, 3), layers.DepthwiseConv2D(3)),
    "functional, nested, shared": functional,
    "attention": attention,
    "subclassed": subclassed,
    "embedding, GRU": lambda: tokens(layers.GRU(4)),
    "bidirectional": lambda: tokens(layers.Bidirectional(layers.LSTM(4))),
    "stacked cells": lambda: sequences(layers.RNN([layers.LSTMCell(4), MinimalCell(3)])),
    "time distributed": lambda: sequences(layers.TimeDistributed(layers.Dense(6))),
    "convolution over time": lambda: sequences(layers.Conv1D(6, 3, dilation_rate=2)),
    "preprocessing": normalized,
    "application": application,
}
SLOW = {"application"}  # XLA takes half a minute to compile its step


def data_for(model, n=16):
    rng = np.random.default_rng(0)
    if isinstance(model, Subclassed):
        x = rng.normal(size=(n, 8))
    elif "int" in model.inputs[0].dtype:
        x = rng.integers(0, 11, (n, *model.inputs[0].shape[1:]))
    else:
        x = rng.normal(size=(n, *model.inputs[0].shape[1:]))
    return x.astype("float32" if x.dtype.kind == "f" else "int32"), rng.integers(0, 3, n)


def exact(model):
    """The fraction of zeros in the masks, and whether the weights agree with them."""
    pairs = [values([m.mask, m.variable]) for m in find(model).masked]
    kept = sum(np.count_nonzero(mask) for mask, _ in pairs)
    agree = not any(weight[~mask].any() for mask, weight in pairs)
    return 1 - kept / sum(mask.size for mask, _ in pairs), agree


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in MODELS]
)
def test_law_12_every_kind_of_model_is_exactly_sparse_after_every_step(kind, tmp_path):
    model = MODELS[kind]()
    data = data_for(model)
    model.compile(keras.optimizers.Adam(0.01), loss=LOSS)
    names = [v.path for v in model.variables] if model.built else None
    callback, watch = kp.GradualPruning(0.8), EveryStep(exact)
    model.fit(*data, batch_size=8, epochs=3, verbose=0, callbacks=[callback, watch])
    units = sum(target.units for target in callback.plan.targets)
    assert [agree for _, agree in watch.noted] == [True] * 6
    assert watch.noted[-1][0] == pytest.approx(1 - round(units * 0.2) / units, abs=1e-9)
    if names is not None:  # a subclassed model has none before its first batch
        assert names == [v.path for v in model.variables]

    model.save(tmp_path / "pruned.keras")
    again = keras.saving.load_model(tmp_path / "pruned.keras")
    for a, b in zip(values(model.weights), values(again.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    again.fit(*data, batch_size=8, verbose=0, callbacks=[kp.KeepZeros()])
    zeros = [
        sum(np.count_nonzero(w == 0) for w in values(model_.trainable_weights) if w.ndim > 1)
        for model_ in (model, again)
    ]
    assert zeros[1] >= zeros[0] > 0
