"""TensorFlow, two workers: a loop of one's own under MultiWorkerMirroredStrategy.

    KERAS_BACKEND=tensorflow python examples/distributed/tensorflow_workers.py

`fit` does not run here: Keras 3.15 itself fails with two workers, also without pruning.
"""

import json
import os

from two_processes import start_or_be_one

rank, ports = start_or_be_one()
os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
        "task": {"type": "worker", "index": rank},
    }
)
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow

import keras
import numpy as np

import keras_pruner as kp

BATCH, STEPS = 64, 40
keras.utils.set_random_seed(0)  # the same weights in both
with strategy.scope():
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)]
    )
    pruner = kp.Pruner(model, kp.PolynomialDecay(0.8, end_step=30))
    optimizer = pruner.wrap(keras.optimizers.Adam(1e-2))
loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


@tf.function
def train_step(x, y):
    def on_replica(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True)) / BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)  # sums over the replicas

    strategy.run(on_replica, args=(x, y))


random = np.random.default_rng(rank)  # each worker reads its own half of the data
for _ in range(STEPS):
    x, y = random.random((BATCH // 2, 20), "float32"), random.integers(0, 3, BATCH // 2)
    pruner.update()  # in every worker
    train_step(tf.constant(x), tf.constant(y))
print(f"worker {rank}: sparsity {pruner.sparsity:.3f}, {pruner.check_agreement()} equal copies")
pruner.release()
