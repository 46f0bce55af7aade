"""The guide "Pruning with Keras": a digit classifier, 80 % zeros, a smaller file.

For someone who knows it from TFMOT: only the second import has changed.
"""

import gzip
import os
import tempfile

import keras
import numpy as np
from data import mnist

import keras_pruner.tfmot as tfmot

keras.utils.set_random_seed(0)
x_train, y_train, x_test, y_test = mnist()

# A dense model to begin with.
model = keras.Sequential(
    [
        keras.layers.Input((28, 28)),
        keras.layers.Reshape((28, 28, 1)),
        keras.layers.Conv2D(12, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
model.fit(x_train, y_train, epochs=2, validation_split=0.1, verbose=2)
_, dense_accuracy = model.evaluate(x_test, y_test, verbose=0)
folder = tempfile.mkdtemp()
dense_file = os.path.join(folder, "dense.keras")
keras.models.save_model(model, dense_file, include_optimizer=False)

# Prune it while it trains on; the last quarter is to recover.
batch_size, epochs = 64, 2
steps = np.ceil(0.9 * len(x_train) / batch_size).astype(np.int32) * epochs
pruning = {
    "pruning_schedule": tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.50,
        final_sparsity=0.80,
        begin_step=0,
        end_step=steps * 3 // 4,
        frequency=10,
    )
}
model_for_pruning = tfmot.sparsity.keras.prune_low_magnitude(model, **pruning)
model_for_pruning.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
callbacks = [
    tfmot.sparsity.keras.UpdatePruningStep(),
    tfmot.sparsity.keras.PruningSummaries(log_dir=os.path.join(folder, "logs")),
]
model_for_pruning.fit(
    x_train,
    y_train,
    batch_size=batch_size,
    epochs=epochs,
    validation_split=0.1,
    callbacks=callbacks,
    verbose=2,
)
_, pruned_accuracy = model_for_pruning.evaluate(x_test, y_test, verbose=0)
print(f"accuracy: dense {dense_accuracy:.4f}, pruned {pruned_accuracy:.4f}")

# Export, and compress: zeros cost bytes until something packs them.
model_for_export = tfmot.sparsity.keras.strip_pruning(model_for_pruning)
pruned_file = os.path.join(folder, "pruned.keras")
keras.models.save_model(model_for_export, pruned_file, include_optimizer=False)


def zipped(path):
    with open(path, "rb") as file:
        return len(gzip.compress(file.read()))


kernels = [w for w in model_for_export.get_weights() if w.ndim > 1]
zeros = sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)
print(f"zeros: {zeros:.4f} of the kernels")
assert abs(zeros - 0.8) < 0.01
assert pruned_accuracy > dense_accuracy - 0.05

# The file with the optimizer in it would hide the gain: compare the weights alone.
for name, path in (("dense", dense_file), ("pruned", pruned_file)):
    stripped = keras.saving.load_model(path, compile=False)
    stripped.save(path)
    print(f"{name}: {os.path.getsize(path)} bytes, zipped {zipped(path)}")
assert zipped(pruned_file) < 0.5 * zipped(dense_file)

# LiteRT is TensorFlow's.
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    sizes = {}
    for name, options in (("float32", {}), ("int8", {"optimizations": [tf.lite.Optimize.DEFAULT]})):
        path = os.path.join(folder, f"{name}.tflite")
        model_for_export.export(path, format="litert", verbose=False, **options)
        sizes[name] = zipped(path)
        print(f"LiteRT {name}: zipped {sizes[name]}")
    assert sizes["int8"] < sizes["float32"] < zipped(dense_file)
