"""JAX, two processes: `fit` with the kernels in parts that lie in different processes.

KERAS_BACKEND=jax python examples/distributed/jax_processes.py
"""

from two_processes import start_or_be_one

rank, ports = start_or_be_one()

import jax
import keras
import numpy as np

import keras_pruner as kp

jax.config.update("jax_cpu_collectives_implementation", "gloo")  # on CPUs only
keras.distribution.initialize(f"127.0.0.1:{ports[0]}", num_processes=2, process_id=rank)

mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
layout[".*hidden/kernel"] = (None, "model")
layout[".*head/kernel"] = ("model", None)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )
)

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)  # a batch that is not split is the same in both
x, y = random.random((512, 20), "float32"), random.integers(0, 3, 512)
model = keras.Sequential(
    [
        keras.Input((20,)),
        keras.layers.Dense(64, "relu", name="hidden"),
        keras.layers.Dense(3, "softmax", name="head"),
    ]
)
model.compile("adam", loss="sparse_categorical_crossentropy")
pruning = kp.GradualPruning(0.8)


class Look(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        sparsity = pruning.pruner.sparsity  # counts of both processes
        print(f"process {rank}, epoch {epoch}: sparsity {sparsity:.3f}")


model.fit(x, y, batch_size=64, epochs=4, shuffle=False, verbose=0, callbacks=[pruning, Look()])
