"""Two processes: `MultiWorkerMirroredStrategy` in a loop of one's own; `fit`, which fails."""

import sys

import keras
import tensorflow as tf
from task_environment import PORTS, RANK
from tensorflow_loop import name_workers, step_of

name_workers(PORTS, RANK)
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()

from task import BATCH, SCHEDULE, batches, compiled, fit, network, raised, sgd, weights, write

import keras_pruner as kp


def loop():
    """Each worker takes its half of each batch."""
    with STRATEGY.scope():
        model = network()
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(sgd())

    run = tf.function(step_of(STRATEGY, model, optimizer))
    half = slice(RANK * BATCH // 2, (RANK + 1) * BATCH // 2)
    for x, y in batches():
        pruner.update()
        run(tf.constant(x[half]), tf.constant(y[half]))
    pruner.update()
    masks = [keras.ops.convert_to_numpy(m.mask).tolist() for m in pruner.pruning.masked]
    copies = pruner.check_agreement()
    return {"weights": weights(model), "masks": masks, "copies": copies}


def dense_fit():
    """Keras' own `fit`, without pruning."""
    with STRATEGY.scope():
        model = compiled()
    fit(model)


write({"fit": raised(dense_fit)} if sys.argv[2:] == ["fit"] else loop())
