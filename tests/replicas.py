"""Two replicas train a model, dense and pruned: prints what they reduce over each other."""

import json

import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras  # noqa: E402 - the devices come first
import numpy as np  # noqa: E402

import keras_pruner.tfmot as tfmot  # noqa: E402

S = tfmot.sparsity.keras
reduced = []


class Noting(tf.distribute.ReductionToOneDevice):
    """Notes the shape of every value that is reduced in the graph of the step."""

    def reduce_implementation(self, reduce_op, per_replica_value, *args, **kwargs):
        first, *_ = getattr(per_replica_value, "values", [per_replica_value])
        reduced.append(str(tuple(first.shape)))
        return super().reduce_implementation(reduce_op, per_replica_value, *args, **kwargs)


def train(*, pruned):
    """Train two Dense layers; their kernels' sparsity."""
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], Noting()).scope():
        layers = [keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(4)]
        model, callbacks = keras.Sequential(layers), []
        if pruned:
            S.prune_low_magnitude(model, S.ConstantSparsity(0.5, 1, frequency=1))
            callbacks = [S.UpdatePruningStep()]
        model.compile("sgd", "mse")
    x, y = np.ones((16, 8), "float32"), np.zeros((16, 4), "float32")
    model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    return [float(np.mean(weight == 0)) for weight in model.get_weights()[::2]]


for pruned in (False, True):
    reduced.clear()
    print(json.dumps({"sparsity": train(pruned=pruned), "reduced": sorted(reduced)}))
