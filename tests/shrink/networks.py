"""Small networks that between them have every kind of layer that a channel can go through."""

import keras
import numpy as np

L = keras.layers
NETWORKS = {}


def network(function):
    NETWORKS[function.__name__] = function
    return function


def sequence(*layers, shape, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


@network
def mlp():
    return sequence(L.Dense(16, activation="relu"), L.Dense(12), L.Dense(3), shape=(8,))


@network
def cnn_flatten():
    return sequence(
        L.Conv2D(8, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dropout(0.3),
        L.Dense(12, activation="tanh"), L.Dense(4), shape=(8, 8, 3),
    )  # fmt: skip


@network
def conv1d():
    return sequence(
        L.Conv1D(8, 3, padding="causal"), L.BatchNormalization(), L.ReLU(), L.Conv1D(6, 3),
        L.GlobalAveragePooling1D(), L.Dense(2), shape=(12, 4),
    )  # fmt: skip


@network
def conv3d():
    return sequence(
        L.Conv3D(6, 2), L.ReLU(), L.GlobalMaxPooling3D(), L.Dense(2), shape=(4, 4, 4, 2)
    )


@network
def residual():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    y = L.Conv2D(8, 3, padding="same")(x)
    x = L.Add()([x, y])
    x = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = L.BatchNormalization(scale=False)(x)
    x = L.Conv2D(10, 1)(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


@network
def dense_net():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same")(inputs)
    for _ in range(2):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
        x = L.Concatenate()([x, y])
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


@network
def squeeze_and_excite():
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 3, activation="swish")(inputs)
    s = L.GlobalAveragePooling2D()(x)
    s = L.Reshape((1, 1, 8))(s)
    s = L.Conv2D(4, 1, activation="relu")(s)
    s = L.Conv2D(8, 1, activation="sigmoid")(s)
    x = L.Multiply()([x, s])
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


@network
def u_net():
    inputs = keras.Input((8, 8, 3))
    a = L.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    b = L.Conv2D(8, 3, strides=2, padding="same")(a)
    b = L.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(b)
    x = L.Concatenate()([a, b])
    x = L.UpSampling2D()(L.Conv2D(4, 1)(x))
    return keras.Model(inputs, L.Conv2D(2, 1)(L.Cropping2D(2)(x)))


@network
def grouped():
    return sequence(
        L.Conv2D(8, 1), L.Conv2D(12, 3, groups=4), L.PReLU(shared_axes=[1, 2]),
        L.GroupNormalization(groups=-1), L.Conv2D(12, 3, groups=12), L.GlobalAveragePooling2D(),
        L.Dense(3), shape=(8, 8, 3),
    )  # fmt: skip


@network
def group_norm():
    return sequence(
        L.Conv2D(8, 1), L.GroupNormalization(groups=2), L.ReLU(), L.Conv2D(6, 1), L.PReLU(),
        L.Flatten(), L.Dense(3), shape=(4, 4, 3),
    )  # fmt: skip


@network
def separable():
    return sequence(
        L.SeparableConv2D(8, 3, activation="relu"), L.SeparableConv2D(6, 3, depth_multiplier=2),
        L.GlobalMaxPooling2D(), L.Dense(3), shape=(8, 8, 3),
    )  # fmt: skip


@network
def lstm():
    return sequence(
        L.Embedding(20, 8), L.LSTM(10, return_sequences=True), L.LSTM(6), L.Dense(3),
        shape=(7,), dtype="int32",
    )  # fmt: skip


@network
def gru_bidirectional():
    return sequence(
        L.Embedding(20, 8, mask_zero=True), L.Bidirectional(L.GRU(6, return_sequences=True)),
        L.Bidirectional(L.LSTM(4), merge_mode="sum"), L.Dense(3), shape=(7,), dtype="int32",
    )  # fmt: skip


@network
def simple_rnn_steps():
    return sequence(
        L.TimeDistributed(L.Dense(8, activation="relu")), L.SimpleRNN(6, return_sequences=True),
        L.GRU(6, reset_after=False), L.Dense(3), shape=(7, 4),
    )  # fmt: skip


@network
def transformer():
    inputs = keras.Input((6, 12))
    x = L.Dense(12)(inputs)
    y = L.LayerNormalization()(x)
    x = x + L.MultiHeadAttention(3, 4)(y, y)
    y = L.Dense(24, activation="gelu")(L.RMSNormalization()(x))
    x = L.Add()([x, L.Dense(12)(y)])
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


@network
def attention_without_norms():
    queries, memory = keras.Input((6, 8), name="queries"), keras.Input((5, 7), name="memory")
    x, m = L.Dense(8)(queries), L.Dense(10)(memory)
    x = L.MultiHeadAttention(4, 3, output_shape=6)(x, m)
    x = L.GroupQueryAttention(3, 4, 2)(x, x)
    return keras.Model([queries, memory], L.Dense(2)(x))


@network
def gated():
    inputs = keras.Input((8,))
    value, gate = keras.ops.split(L.Dense(16)(inputs), 2, axis=-1)
    x = value * keras.ops.sigmoid(gate)
    x = keras.activations.glu(L.Dense(12)(x))
    y = L.Dense(10)(x)
    x = L.Concatenate()([y[:, :4], keras.ops.relu(y[:, 4:])])
    return keras.Model(inputs, L.Dense(2)(x))


@network
def einsum():
    inputs = keras.Input((6, 8))
    x = L.EinsumDense("abc,cd->abd", (None, 12), bias_axes="d", activation="relu")(inputs)
    x = L.EinsumDense("abc,cd->abd", (None, 6))(x)
    return keras.Model(inputs, L.Dense(2)(L.Maximum()([x, L.Dense(6)(inputs)])))


@network
def shared_and_nested():
    inner_in = keras.Input((6, 6, 5))
    inner = keras.Model(inner_in, L.ReLU()(L.Conv2D(5, 3, padding="same")(inner_in)), name="inner")
    inputs = keras.Input((6, 6, 3))
    stem = L.Conv2D(5, 1, name="stem")
    x = inner(inner(stem(inputs)))
    head = sequence(L.Conv2D(7, 1), L.GlobalAveragePooling2D(), L.Dense(4), shape=(6, 6, 5))
    return keras.Model(inputs, L.Dense(2)(L.Concatenate()([head(x), head(stem(inputs))])))


@network
def several_inputs_and_outputs():
    image, vector = keras.Input((6, 6, 2), name="image"), keras.Input((4,), name="vector")
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(image))
    y = L.Dense(8)(vector)
    z = L.Subtract()([x, y])
    outputs = {"a": L.Dense(2, name="a")(z), "b": L.Dense(1, name="b")(L.Dense(5)(y))}
    return keras.Model({"image": image, "vector": vector}, outputs)


@keras.saving.register_keras_serializable("tests_of_shrink")
class Positions(keras.layers.Layer):
    """Treats the first four channels in another way than the rest."""

    def call(self, inputs):
        return keras.ops.concatenate([inputs[..., :4] * 2, inputs[..., 4:]], axis=-1)


@keras.saving.register_keras_serializable("tests_of_shrink")
class OwnWeights(keras.layers.Layer):
    """A layer that only its author knows."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale


@network
def custom_layers():
    inputs = keras.Input((8,))
    x = Positions()(L.Dense(10, name="read_by_position")(inputs))
    x = L.Dense(9, name="free")(x)
    x = L.Dense(6, name="scaled")(x)
    return keras.Model(inputs, L.Dense(2)(OwnWeights(name="own")(x)))


@keras.saving.register_keras_serializable("tests_of_shrink")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Dense(12, activation="relu"), L.Dense(12)
        self.last = L.Dense(2)

    def call(self, inputs):
        x = self.first(inputs)
        return self.last(keras.ops.relu(x + self.second(x)))


@network
def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), "float32"))
    return model


def randomise(model, seed=0):
    """Biases, scales and statistics that are not zero or one."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        if variable.name in ("moving_variance", "variance"):
            variable.assign(random.uniform(0.5, 2, variable.shape))
        elif len(variable.shape) < 2 or variable.name == "bias":
            offset = 1 if variable.name in ("gamma", "scale") else 0
            variable.assign(offset + 0.3 * random.normal(size=variable.shape))
    return model


def inputs_of(form, count=4, seed=0):
    """Random inputs of a functional model, in its structure."""
    random = np.random.default_rng(seed)
    arrays = [
        random.integers(0, 20, (count, *t.shape[1:])).astype("int32")
        if "int" in keras.backend.standardize_dtype(t.dtype)
        else random.normal(size=(count, *t.shape[1:])).astype("float32")
        for t in form.inputs
    ]
    return keras.tree.pack_sequence_as(form._inputs_struct, arrays)


def zero_units(channels, kept):
    """Zero every weight of each unit that is not kept: columns, biases, scales, not its readers."""
    readers = {(id(p.kernel), p.in_axis) for p in channels.products}
    for axis in channels.axes:
        if (id(axis.variable), axis.axis) in readers or axis.variable.name == "moving_variance":
            continue
        values = keras.ops.convert_to_numpy(axis.variable)
        shape = [1] * values.ndim
        shape[axis.axis] = -1
        axis.variable.assign(values * kept[axis.channels].reshape(shape))


def half_kept(channels, seed=0, share=0.5):
    """About half of the classes of each group that may be removed, at random."""
    random = np.random.default_rng(seed)
    kept = np.ones(channels.count, bool)
    for group in channels.groups:
        if not group.reason and not group.mixes:
            count = int(len(group.classes) * share)
            kept[random.choice(group.classes, count, replace=False)] = False
    return kept
