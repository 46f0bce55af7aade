"""The guide on on-device inference with XNNPACK: prune the 1x1 convolutions of a CNN.

Only the import of tfmot has changed. Where a model does not qualify, the policy now says which
layers are in the way and what would admit them.
"""

import keras
import numpy as np
from data import mnist

import keras_pruner as kp
import keras_pruner.tfmot as tfmot

keras.utils.set_random_seed(0)
x_train, y_train, x_test, y_test = mnist(2000)
images, test_images = (np.repeat(x[..., None], 3, axis=-1) for x in (x_train, x_test))
inputs = keras.Input((28, 28, 3))
x = keras.layers.ZeroPadding2D(1)(inputs)
x = keras.layers.Conv2D(16, 3, strides=2, padding="valid", use_bias=False)(x)
x = keras.layers.BatchNormalization(momentum=0.9)(x)
x = keras.layers.ReLU(6.0)(x)
for filters, strides in ((32, 1), (64, 2)):
    if strides == 2:
        x = keras.layers.ZeroPadding2D(1)(x)
    padding = "same" if strides == 1 else "valid"
    x = keras.layers.DepthwiseConv2D(3, strides=strides, padding=padding, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.Conv2D(filters, 1, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.ReLU(6.0)(x)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(inputs, keras.layers.Dense(10)(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
model.fit(images, y_train, epochs=2, verbose=2)

model_for_pruning = tfmot.sparsity.keras.prune_low_magnitude(
    model,
    pruning_schedule=tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.25, final_sparsity=0.75, begin_step=0, end_step=100, frequency=10
    ),
    pruning_policy=tfmot.sparsity.keras.PruneForLatencyOnXNNPack(),
)
model_for_pruning.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
model_for_pruning.fit(images, y_train, epochs=2, callbacks=callbacks, verbose=2)
_, accuracy = model_for_pruning.evaluate(test_images, y_test, verbose=0)
model_for_export = tfmot.sparsity.keras.strip_pruning(model_for_pruning)
layers = [layer for layer in model_for_export.layers if type(layer) is keras.layers.Conv2D]
zeros = [float(np.mean(layer.get_weights()[0] == 0)) for layer in layers]
print(f"accuracy {accuracy:.4f}; zeros {[round(z, 3) for z in zeros]}")
assert accuracy > 0.4
assert zeros[0] < 0.1  # the first convolution is 3x3
assert all(abs(z - 0.75) < 0.01 for z in zeros[1:])

# A model that does not qualify, and what would have to change.
stock = keras.applications.MobileNet(weights=None, input_shape=(96, 96, 3), alpha=0.25)
print(tfmot.sparsity.keras.PruneForLatencyOnXNNPack().obstacles(stock))
print(kp.litert.prepare_for_xnnpack(stock))

if keras.backend.backend() == "tensorflow":
    import tempfile

    print(kp.export_litert(model_for_export, f"{tempfile.mkdtemp()}/pruned.tflite"))
