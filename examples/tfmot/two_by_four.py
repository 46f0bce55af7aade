"""The 2-by-4 guide: two zeros in every four weights; only the imports have changed."""

import keras
import numpy as np
from data import mnist

import keras_pruner as kp
import keras_pruner.tfmot as tfmot

keras.utils.set_random_seed(0)
x_train, y_train, x_test, y_test = mnist(2000)
pruning_params_2_by_4 = {"sparsity_m_by_n": (2, 4)}
model = keras.Sequential(
    [
        keras.layers.Input((28, 28)),
        keras.layers.Reshape((28, 28, 1)),
        tfmot.sparsity.keras.prune_low_magnitude(
            keras.layers.Conv2D(32, 5, strides=2, activation="relu", name="conv"),
            **pruning_params_2_by_4,
        ),
        tfmot.sparsity.keras.prune_low_magnitude(
            keras.layers.Conv2D(64, 5, strides=2, activation="relu", name="structural"),
            **pruning_params_2_by_4,
        ),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, name="head"),
    ]
)
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(
    x_train,
    y_train,
    batch_size=64,
    epochs=2,
    callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    verbose=2,
)
print("accuracy", model.evaluate(x_test, y_test, verbose=0)[1])
model = tfmot.sparsity.keras.strip_pruning(model)
for layer in model.layers:
    if layer.name in ("conv", "structural"):
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        groups = np.array_split(kernel, max(1, kernel.shape[-2] // 4), axis=-2)
        # One input channel is too few to choose two zeros of four.
        print(layer.name, "holds:", all((g != 0).sum(-2).max() <= 2 for g in groups))

if keras.backend.backend() == "tensorflow":
    import tempfile

    path = f"{tempfile.mkdtemp()}/two_by_four.tflite"
    model.export(path, format="litert", verbose=False)
    print(kp.litert.inspect(path))  # the column counts the weights kept in every four
