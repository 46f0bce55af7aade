"""JAX, four devices: `fit` with the kernels in parts, two copies of two parts each.

    KERAS_BACKEND=jax python examples/distributed/jax_devices.py

Four forced host devices stand in for accelerators; with real ones, leave `XLA_FLAGS` alone. For
data parallelism, `set_distribution(keras.distribution.DataParallel())` is all there is to say.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import keras
import numpy as np

import keras_pruner as kp

devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
layout = keras.distribution.LayoutMap(mesh)
layout[".*hidden/kernel"] = (None, "model")  # a regex of the variable's path -> its axes
layout[".*hidden/bias"] = ("model",)
layout[".*head/kernel"] = ("model", None)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
)

x, y = np.random.rand(512, 20).astype("float32"), np.random.randint(0, 3, 512)
model = keras.Sequential(
    [
        keras.Input((20,)),
        keras.layers.Dense(64, "relu", name="hidden"),
        keras.layers.Dense(3, "softmax", name="head"),
    ]
)
model.compile("adam", loss="sparse_categorical_crossentropy")
model.fit(x, y, batch_size=64, epochs=4, callbacks=[kp.GradualPruning(0.8)])
print(kp.summarize(model))
