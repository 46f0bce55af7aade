"""What the real TFMOT 0.8.1 does, written down: run with the Python of an environment that has it.

    pip install tensorflow==2.21.0 tf-keras==2.21.0 tensorflow-model-optimization==0.8.1
    python tests/tfmot/golden/make.py            # writes golden.json
    python tests/tfmot/golden/make.py --models   # and the model files

Weights come from `numpy.random.RandomState`, whose numbers never change, so that only what TFMOT
makes of them is stored: masks as the hexadecimal digits of their bits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

S = tfmot.sparsity.keras
FOLDER = Path(__file__).parent

SCHEDULES = [
    ("ConstantSparsity", [0.5, 0]),
    ("ConstantSparsity", [0.8, 7, -1, 3]),
    ("ConstantSparsity", [0.3, 4, 20, 5]),
    ("PolynomialDecay", [0.2, 0.8, 100, 110, 3, 1]),
    ("PolynomialDecay", [0.0, 0.9, 10, 90, 3, 20]),
    ("PolynomialDecay", [0.5, 0.75, 3, 40, 1, 7]),
    ("PolynomialDecay", [0.6, 0.1, 0, 30, 2, 10]),
]
SHAPES = [(10,), (6, 1), (1, 3), (5, 7), (9, 4), (16, 16), (3, 3, 5, 6), (1, 1, 7, 2), (33, 31)]
SPARSITIES = [0.0, 0.1, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.9999]
BLOCKS = [
    (shape, block, pooling)
    for shape, block in [
        ((8, 8), (4, 1)), ((8, 8), (2, 2)), ((16, 12), (1, 4)), ((16, 12), (4, 3)),
        ((9, 8), (4, 1)), ((8, 9), (1, 4)), ((6, 6), (4, 4)), ((5, 8), (2, 2)), ((4, 10), (1, 3)),
    ]
    for pooling in ("AVG", "MAX")
]  # fmt: skip
M_BY_N = [
    (shape, m_by_n)
    for shape in [(8, 4), (7, 3), (3, 5), (1, 4), (16, 8), (3, 3, 8, 4), (3, 3, 6, 2), (1, 1, 3, 5)]
    for m_by_n in [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)]
]
TRACES = [
    ("ConstantSparsity", [0.5, 3, -1, 4]),
    ("ConstantSparsity", [0.75, 1, 9, 5]),
    ("PolynomialDecay", [0.1, 0.8, 2, 14, 3, 3]),
    ("PolynomialDecay", [0.25, 0.75, 1, 11, 1, 2]),
]


def weights(shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def bits(mask):
    return np.packbits(np.asarray(mask, bool)).tobytes().hex()


def mask_of(weight, sparsity=0.5, block=(1, 1), pooling="AVG", m_by_n=None):
    """The mask that TFMOT makes at one update."""
    variable = tf.Variable(weight)
    triple = [(variable, tf.Variable(np.ones_like(weight)), tf.Variable(0.0))]
    schedule = S.ConstantSparsity(sparsity, 0)
    pruning = pruning_impl.Pruning(lambda: 1, triple, schedule, block, pooling, m_by_n)
    return pruning._maybe_update_block_mask(variable)[1].numpy()


def is_shifted(shape, block):
    """Whether TFMOT pools a ragged edge from the wrong side (its padding begins before 0)."""
    return any((-size) % side >= 2 for size, side in zip(shape, block, strict=True))


def schedules():
    for name, args in SCHEDULES:
        schedule = getattr(S, name)(*args)
        told = [schedule(tf.constant(step, tf.int64)) for step in range(130)]
        yield {
            "schedule": [name, args],
            "should_prune": bits([bool(t[0]) for t in told]),
            "sparsity": [float(np.float32(t[1])) for t in told],
        }


def traces():
    """Which weights are zero after each step of a training at a learning rate of 0."""
    for name, args in TRACES:
        model = keras.Sequential([keras.layers.Dense(7, input_shape=(9,)), keras.layers.Dense(3)])
        model.set_weights([weights(w.shape, i) for i, w in enumerate(model.get_weights())])
        model = S.prune_low_magnitude(model, pruning_schedule=getattr(S, name)(*args))
        model.compile(keras.optimizers.SGD(0.0), "mse")
        seen = []

        class Note(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                kernels = [layer.layer.kernel.numpy() for layer in self.model.layers]
                seen.append([bits(kernel != 0) for kernel in kernels])  # noqa: B023

        x, y = weights((16, 9), 5), weights((16, 3), 6)
        callbacks = [S.UpdatePruningStep(), Note()]
        model.fit(x, y, 1, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
        yield {"schedule": [name, args], "zeros": seen}


def golden():
    unstructured = [
        {"shape": shape, "sparsity": s, "mask": bits(mask_of(weights(shape), s))}
        for shape in SHAPES
        for s in SPARSITIES
    ]
    blocks = [
        {
            "shape": shape, "block": block, "pooling": pooling, "sparsity": s,
            "shifted": is_shifted(shape, block),
            "mask": bits(mask_of(weights(shape), s, block, pooling)),
        }
        for shape, block, pooling in BLOCKS
        for s in (0.25, 0.5, 0.8)
    ]  # fmt: skip
    m_by_n = [
        {"shape": shape, "m_by_n": mn, "mask": bits(mask_of(weights(shape), m_by_n=mn))}
        for shape, mn in M_BY_N
    ]
    return {
        "schedules": list(schedules()),
        "unstructured": unstructured,
        "blocks": blocks,
        "m_by_n": m_by_n,
        "traces": list(traces()),
    }


# ----------------------------------------------------------------------- model files


def cnn():
    """Functional, with a nested model, a shared layer, depthwise and separable convolutions."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ZeroPadding2D(1)(inputs)
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="stem")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.SeparableConv2D(6, 3, padding="same", activation="relu")(x)
    pointwise = keras.layers.Conv2D(6, 1, activation="relu", name="shared")
    x = keras.layers.Add()([pointwise(x), pointwise(pointwise(x))])
    x = keras.layers.GlobalAveragePooling2D()(x)
    inner = keras.Sequential([keras.layers.Dense(8, input_shape=(6,)), keras.layers.LeakyReLU()])
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(inner(x))
    return keras.Model(inputs, outputs, name="cnn"), weights((40, 8, 8, 3), 1)


def text():
    """Sequential: an embedding, recurrent layers, dropout."""
    layers = [
        keras.layers.Embedding(20, 6, input_length=7),
        keras.layers.LSTM(6, return_sequences=True),
        keras.layers.GRU(5),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential(layers, name="text"), np.random.RandomState(2).randint(0, 20, (40, 7))


def attention():
    """Attention, and m-by-n sparsity of another layer."""
    inputs = keras.Input((5, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Flatten()(x)
    dense = S.prune_low_magnitude(
        keras.layers.Dense(3, activation="softmax"), sparsity_m_by_n=(2, 4)
    )
    return keras.Model(inputs, dense(x), name="attention"), weights((40, 5, 8), 3)


def cell():
    """A cell that TFMOT prunes inside its layer."""
    layers = [keras.layers.RNN(keras.layers.LSTMCell(5)), keras.layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((6, 4)), *layers], name="cell"), weights((40, 6, 4), 7)


def within():
    """Layers within layers, and the `hard_sigmoid` of Keras 2; never pruned, as those below."""
    L = keras.layers
    inner = keras.Sequential([L.Dense(4, "hard_sigmoid", input_shape=(5,)), L.BatchNormalization()])
    inputs = keras.Input((6, 5))
    x = L.TimeDistributed(inner)(inputs)
    x = L.RNN([L.LSTMCell(3), L.LSTMCell(2), L.GRUCell(3)], return_sequences=True)(x)
    x = L.Bidirectional(L.LSTM(3, recurrent_activation="hard_sigmoid"))(x)
    outputs = L.Dense(3, activation=L.LeakyReLU(0.1))(L.Activation("hard_sigmoid")(x))
    return keras.Model(inputs, outputs)


def images():
    """Arguments that only Keras 2 has; ConvLSTM2D, whose default is `hard_sigmoid`."""
    L = keras.layers
    layers = [
        L.RandomFlip("horizontal"), L.Conv2DTranspose(2, 3), L.Reshape((2, 3, 6, 2)),
        L.ConvLSTM2D(2, 3), L.Reshape((4, 2)), L.Conv1DTranspose(3, 3), L.SpatialDropout1D(0.2),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((4, 4, 3)), *layers])


def dot():
    """Attention, whose `score_mode` has the name of a function."""
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, keras.layers.Attention(use_scale=True)([inputs, inputs]))


def mixed():
    """Layers with a policy."""
    dense = keras.layers.Dense
    layers = [dense(4, dtype=keras.mixed_precision.Policy("mixed_float16")), dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def plain_models():
    for make in (within, images, dot, mixed):
        keras.backend.clear_session()
        model = make()
        model.set_weights([abs(weights(w.shape, i)) for i, w in enumerate(model.get_weights())])
        x = weights((4, *model.input_shape[1:]), 8)
        predictions = model.predict(x, verbose=0)
        name = make.__name__
        np.savez_compressed(FOLDER / f"{name}.npz", x=x, predictions=predictions)
        model.save(FOLDER / f"{name}.h5")
        model.save(FOLDER / f"{name}.keras")


def models(makes=(cnn, text, attention, cell)):
    for make in makes:
        keras.utils.set_random_seed(0)
        model, x = make()
        if make is not attention:
            schedule = S.PolynomialDecay(0.2, 0.7, 1, 7, frequency=2)
            model = S.prune_low_magnitude(model, pruning_schedule=schedule)
        y = np.random.RandomState(4).randint(0, 3, len(x))
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y, 5, epochs=1, verbose=0, callbacks=[S.UpdatePruningStep()])
        name = make.__name__
        np.savez_compressed(
            FOLDER / f"{name}.npz", x=x[:4], predictions=model.predict(x[:4], verbose=0)
        )
        if make is cnn:  # TFMOT gives the masks of a layer with two of them one name: no .h5
            model.save(FOLDER / f"{name}_wrapped.h5")
        model.save(FOLDER / f"{name}_wrapped.keras")
        stripped = S.strip_pruning(model)
        stripped.save(FOLDER / f"{name}_stripped.h5", include_optimizer=False)


if __name__ == "__main__":
    out = FOLDER / "golden.json" if "--stdout" not in sys.argv else None
    content = json.dumps(golden(), separators=(",", ":"))
    if out is None:
        print(content)
    else:
        out.write_text(content + "\n")
    if "--models" in sys.argv:
        models()
        plain_models()
