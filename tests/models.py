"""Models and observers for the tests of training."""

import re

import keras
import numpy as np

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compile_(model, optimizer=None, **options):
    """Compile for the classification that the `data` fixture poses."""
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss=LOSS, **options)
    return model


def mlp(optimizer=None, **options):
    """Two Dense layers with kernels of 8 x 10 and 10 x 3."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(10, activation="relu", name="hidden"),
        keras.layers.Dense(3, name="head"),
    ]
    return compile_(keras.Sequential(layers, name="mlp"), optimizer, **options)


def mlp_by_sgd(optimizer=None, **options):
    """The same by SGD, if nothing else is said: its step is compiled in a third of Adam's time."""
    return mlp(optimizer or keras.optimizers.SGD(0.1), **options)


@keras.saving.register_keras_serializable("tests")
class Custom(keras.layers.Layer):
    """A custom layer that holds a layer and a kernel of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = keras.layers.Dense(units)

    def build(self, shape):
        self.inner.build(shape)
        self.own_kernel = self.add_weight(shape=(self.units, self.units), name="own_kernel")

    def call(self, x):
        return keras.ops.tanh(self.inner(x) @ self.own_kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A subclassed model: a list of custom layers, a shared Dense, an LSTM."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Custom(6), Custom(6)]
        self.shared = keras.layers.Dense(6)
        self.lstm = keras.layers.LSTM(5)
        self.head = keras.layers.Dense(3, dtype="float32")

    def call(self, x):
        x = keras.ops.reshape(x, (-1, 4, 2))
        for block in self.blocks:
            x = self.shared(block(x))
        return self.head(self.lstm(x))


def values(variables):
    """The variables as NumPy arrays."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def sparsity(variables):
    """The fraction of zeros over all of the variables."""
    arrays = values(variables)
    return 1 - sum(map(np.count_nonzero, arrays)) / sum(a.size for a in arrays)


def drawn(model):
    """The model with kernels from a normal distribution, the same each time."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(rng.normal(size=layer.kernel.shape) / 8)
    return model


def kernels(model):
    """The variables of rank 2 or more."""
    return [v for v in model.trainable_variables if len(v.shape) > 1]


class EveryStep(keras.callbacks.Callback):
    """Note something after every batch."""

    def __init__(self, note):
        super().__init__()
        self.note = note
        self.noted = []

    def on_train_batch_end(self, batch, logs=None):
        self.noted.append(self.note(self.model))


def label(value):
    """A test's name for a value: its repr without addresses, the same in every process."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value))


class Cell(keras.layers.Layer):
    """A cell with a layer of its own."""

    state_size = 4

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(4)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, states):
        state = keras.ops.tanh(self.inner(inputs) + states[0])
        return state, [state]


class NormCell(Cell):
    """A cell with a batch norm, too."""

    def build(self, shape):
        super().build(shape)
        self.norm = keras.layers.BatchNormalization()
        self.norm.build((None, 4))

    def call(self, inputs, states):
        state, _ = super().call(inputs, states)
        return self.norm(state), [state]
