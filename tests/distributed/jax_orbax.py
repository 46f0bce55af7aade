"""Two processes, kernels in parts in both: `OrbaxCheckpoint`, and a training that goes on from it.

Arguments: where the results go, and the directory of the checkpoints, which both see.
"""

import os
import sys

from task_environment import PORTS, PROCESSES, RANK

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import keras
import numpy as np
from jax_layouts import join, model_parallel

join(PORTS[0], PROCESSES, RANK)

from jax.experimental import multihost_utils
from task import LOSS, SCHEDULE, fit, network, write

import keras_pruner as kp

DIRECTORY = sys.argv[2]
keras.distribution.set_distribution(model_parallel((1, PROCESSES), auto_shard_dataset=False))


def trained(*callbacks, **options):
    """Some epochs; the model."""
    model = network()
    # Orbax finds variables by their names, and a second optimizer would have another.
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, name="sgd"), loss=LOSS)
    return fit(model, kp.GradualPruning(SCHEDULE), *callbacks, **options)


def weights(model):
    """As every process may see them, for the test's eyes."""
    found = [multihost_utils.process_allgather(v.value, tiled=True) for v in model.weights]
    return [np.asarray(each).tolist() for each in found]


class Load(keras.callbacks.Callback):
    """Go on from the last checkpoint."""

    def on_train_begin(self, logs=None):
        self.model.load_weights(DIRECTORY)


whole = weights(trained())
trained(keras.callbacks.OrbaxCheckpoint(DIRECTORY, save_on_background=False), epochs=1)
resumed = weights(trained(Load(), initial_epoch=1))
write({"whole": whole, "resumed": resumed})
