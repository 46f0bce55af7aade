"""The comprehensive guide of TFMOT, section by section.

Changed: the import of tfmot; `kp.prune` in place of the benchmark tool; and the custom layer does
not name its bias, because vectors are not pruned here.
"""

import gzip
import os
import tempfile

import keras
import numpy as np

import keras_pruner as kp
import keras_pruner.tfmot as tfmot

prune_low_magnitude = tfmot.sparsity.keras.prune_low_magnitude
rng = np.random.default_rng(0)
x_train = rng.normal(size=(64, 20)).astype("float32")
y_train = keras.utils.to_categorical(rng.integers(0, 20, 64), num_classes=20)
folder = tempfile.mkdtemp()


def setup_model():
    return keras.Sequential(
        [keras.layers.Input((20,)), keras.layers.Dense(20), keras.layers.Flatten()]
    )


def train(model, **options):
    model.compile(loss="categorical_crossentropy", optimizer="adam")
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    model.fit(x_train, y_train, callbacks=callbacks, verbose=0, **options)
    return model


def zeros(model):
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    return sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)


pretrained = os.path.join(folder, "pretrained.weights.h5")
setup_model().save_weights(pretrained)

# Define: the whole model, Sequential or functional.
base_model = setup_model()
base_model.load_weights(pretrained)
model_for_pruning = prune_low_magnitude(base_model)
model_for_pruning.summary()
print("whole model:", zeros(train(model_for_pruning)))

# Define: some layers.
base_model = setup_model()
base_model.load_weights(pretrained)


def apply_pruning_to_dense(layer):
    if isinstance(layer, keras.layers.Dense):
        return prune_low_magnitude(layer)
    return layer


model_for_pruning = keras.models.clone_model(base_model, clone_function=apply_pruning_to_dense)
print("some layers:", zeros(train(model_for_pruning)))

# Define: layer by layer, functional and Sequential.
inputs = keras.Input((20,))
x = prune_low_magnitude(keras.layers.Dense(10))(inputs)
outputs = keras.layers.Flatten()(keras.layers.Dense(20)(x))
functional = keras.Model(inputs, outputs)
sequential = keras.Sequential(
    [prune_low_magnitude(keras.layers.Dense(20, input_shape=(20,))), keras.layers.Flatten()]
)
print("layer by layer:", zeros(train(functional)), zeros(train(sequential)))


# Define: a layer of one's own, or other weights of it.
class MyDenseLayer(keras.layers.Dense, tfmot.sparsity.keras.PrunableLayer):
    def get_prunable_weights(self):
        return [self.kernel]


model_for_pruning = keras.Sequential(
    [keras.layers.Input((20,)), prune_low_magnitude(MyDenseLayer(20)), keras.layers.Flatten()]
)
print("layer of one's own:", zeros(train(model_for_pruning)))

# Train: fit, with summaries for TensorBoard.
model_for_pruning = prune_low_magnitude(setup_model())
log_dir = os.path.join(folder, "logs")
callbacks = [
    tfmot.sparsity.keras.UpdatePruningStep(),
    tfmot.sparsity.keras.PruningSummaries(log_dir=log_dir),
]
model_for_pruning.compile(loss="categorical_crossentropy", optimizer="adam")
model_for_pruning.fit(x_train, y_train, callbacks=callbacks, epochs=2, verbose=0)
print("summaries in", os.listdir(log_dir))

# Train: a loop of one's own.
model_for_pruning = prune_low_magnitude(setup_model())
loss = keras.losses.CategoricalCrossentropy(from_logits=True)
optimizer = keras.optimizers.Adam()
log_callback = tfmot.sparsity.keras.PruningSummaries(log_dir=log_dir)
step_callback = tfmot.sparsity.keras.UpdatePruningStep()
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    model_for_pruning.optimizer = optimizer

    def step(x, y):
        with tf.GradientTape() as tape:
            loss_value = loss(y, model_for_pruning(x, training=True))
        gradients = tape.gradient(loss_value, model_for_pruning.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model_for_pruning.trainable_variables, strict=True)
        )

else:  # no tf.GradientTape
    model_for_pruning.compile(optimizer=optimizer, loss=loss)

    def step(x, y):
        model_for_pruning.train_on_batch(x, y)


log_callback.set_model(model_for_pruning)
step_callback.set_model(model_for_pruning)
step_callback.on_train_begin()
for epoch in range(2):
    log_callback.on_epoch_begin(epoch=epoch)
    for i in range(0, 64, 16):
        step_callback.on_train_batch_begin(batch=-1)
        step(x_train[i : i + 16], y_train[i : i + 16])
    step_callback.on_epoch_end(batch=-1)
print("loop:", zeros(model_for_pruning))
assert abs(zeros(model_for_pruning) - 0.5) < 0.01

# Checkpoint and load.
model_for_pruning = train(prune_low_magnitude(setup_model()))
keras_model_file = os.path.join(folder, "checkpoint.keras")
model_for_pruning.save(keras_model_file, include_optimizer=True)
with tfmot.sparsity.keras.prune_scope():
    loaded_model = keras.models.load_model(keras_model_file)
loaded_model.fit(x_train, y_train, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()], verbose=0)
print("loaded:", zeros(loaded_model))

# Deploy: export, and see that it is smaller.
model_for_export = tfmot.sparsity.keras.strip_pruning(loaded_model)


def get_gzipped_model_size(model):
    path = os.path.join(folder, "size.weights.h5")
    model.save_weights(path)
    with open(path, "rb") as file:
        return len(gzip.compress(file.read()))


large = keras.Sequential([keras.layers.Input((20,)), keras.layers.Dense(400)])
before = get_gzipped_model_size(large)
kp.prune(large, 0.8, allocation="uniform")
after = get_gzipped_model_size(large)
print(f"zipped: {before} bytes dense, {after} bytes pruned")
assert after < 0.5 * before

# Deploy: blocks for hardware that wants them.
base_model = setup_model()
model_for_pruning = prune_low_magnitude(base_model, block_size=(1, 16))
print("blocks of (1, 16):", zeros(train(model_for_pruning)))
