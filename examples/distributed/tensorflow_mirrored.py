"""TensorFlow, two replicas in one process: `fit` under MirroredStrategy.

    KERAS_BACKEND=tensorflow python examples/distributed/tensorflow_mirrored.py

Two logical CPUs stand in for two GPUs; with real ones, leave those three lines out.
"""

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

import keras
import numpy as np

import keras_pruner as kp

x, y = np.random.rand(512, 20).astype("float32"), np.random.randint(0, 3, 512)
with strategy.scope():  # whatever makes variables: model, optimizer
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3, "softmax")]
    )
    model.compile("adam", loss="sparse_categorical_crossentropy")
model.fit(x, y, batch_size=64, epochs=4, callbacks=[kp.GradualPruning(0.8)])
print(kp.summarize(model))
