"""TFMOT's MNIST example: a CNN pruned layer by layer, with a schedule for each run."""

import keras
from data import mnist

import keras_pruner.tfmot as tfmot

keras.utils.set_random_seed(0)
ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay
prune = tfmot.sparsity.keras.prune_low_magnitude
x_train, y_train, x_test, y_test = mnist(3000)
x_train, x_test = x_train[..., None], x_test[..., None]
y_train, y_test = (keras.utils.to_categorical(y, 10) for y in (y_train, y_test))


def build_layerwise_model(**params):
    layers = [
        prune(keras.layers.Conv2D(8, 5, padding="same", activation="relu"), **params),
        keras.layers.MaxPooling2D(2),
        keras.layers.BatchNormalization(momentum=0.9),
        prune(keras.layers.Conv2D(16, 5, padding="same", activation="relu"), **params),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        prune(keras.layers.Dense(64, activation="relu"), **params),
        keras.layers.Dropout(0.4),
        prune(keras.layers.Dense(10, activation="softmax"), **params),
    ]
    return keras.Sequential([keras.layers.Input((28, 28, 1)), *layers])


schedules = {
    "constant": ConstantSparsity(0.75, begin_step=60, frequency=10),
    "polynomial": PolynomialDecay(0.3, 0.75, begin_step=10, end_step=120, frequency=10),
}
for name, schedule in schedules.items():
    model = build_layerwise_model(pruning_schedule=schedule)
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.fit(
        x_train,
        y_train,
        batch_size=32,
        epochs=2,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
        verbose=2,
    )
    accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
    model = tfmot.sparsity.keras.strip_pruning(model)
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    zeros = sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)
    print(f"{name}: accuracy {accuracy:.4f}, zeros {zeros:.4f}")
    assert abs(zeros - 0.75) < 0.01
    assert accuracy > 0.8
