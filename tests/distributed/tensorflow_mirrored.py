"""Two logical CPUs in one process: `MirroredStrategy`, in `fit` and in a loop of one's own."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)

from task import BATCH, SCHEDULE, batches, compiled, fit, network, raised, sgd, weights, write
from tensorflow_loop import step_of

import keras_pruner as kp

# One strategy for all: a second one in the same process confuses TensorFlow's collectives.
MIRRORED = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
DATA = tf.data.Dataset.from_generator(
    batches, output_signature=(tf.TensorSpec((BATCH, 8)), tf.TensorSpec((BATCH,), tf.int32))
)


class Look(keras.callbacks.Callback):
    """See, while the masks are there, how many copies of them agree."""

    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.copies = 0

    def on_epoch_end(self, epoch, logs=None):
        self.copies = self.pruner().check_agreement()


def trained(scope, pruned=True, **options):
    """One `fit`; its weights and how many copies there were, or what went wrong."""
    try:
        with scope:
            model = compiled(**options)
        if not pruned:
            return {"weights": weights(fit(model))}
        pruning = kp.GradualPruning(SCHEDULE)
        look = Look(lambda: pruning.pruner)
        return {"weights": weights(fit(model, pruning, look)), "copies": look.copies}
    except tf.errors.OpError as error:
        return {"error": str(error)[:3000]}


def loop(compiled):
    """A loop of one's own over `strategy.run`."""
    with MIRRORED.scope():
        model = network()
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(sgd())
    run = step_of(MIRRORED, model, optimizer)
    run = tf.function(run) if compiled else run
    for x, y in MIRRORED.experimental_distribute_dataset(DATA):
        pruner.update()
        run(x, y)
    pruner.update()
    return {"weights": weights(model), "copies": pruner.check_agreement()}


def collectives(pruned):
    """Kind and bytes of what one traced step sends between the replicas."""
    with MIRRORED.scope():
        model, optimizer = network(), sgd()
        if pruned:
            pruner = kp.Pruner(model, SCHEDULE)
            optimizer = pruner.wrap(optimizer)
            pruner.update()
        else:
            optimizer.build(model.trainable_variables)
    run = tf.function(step_of(MIRRORED, model, optimizer))
    graph = run.get_concrete_function(*next(iter(MIRRORED.experimental_distribute_dataset(DATA))))
    graph = graph.graph
    return sorted(
        (op.type, op.inputs[0].shape.num_elements() * op.inputs[0].dtype.size)
        for op in graph.get_operations()
        if "Collective" in op.type and "Instance" not in op.type and "Init" not in op.type
    )


def disagreement():
    """What the check says when one replica's weight is changed behind everybody's back."""
    with MIRRORED.scope():
        model = network()
        pruner = kp.Pruner(model, SCHEDULE)
        pruner.wrap(sgd())
    copy = pruner.pruning.masked[0].variable.value.values[1]
    copy.assign(copy + np.float32(1e-3))
    return raised(pruner.check_agreement)


write(
    {
        "single": trained(contextlib.nullcontext()),
        "fit": trained(MIRRORED.scope()),
        "run_eagerly": trained(MIRRORED.scope(), run_eagerly=True),
        "OneDeviceStrategy": trained(tf.distribute.OneDeviceStrategy("CPU:1").scope()),
        "loop": loop(compiled=True),
        "eager loop": loop(compiled=False),
        "collectives": {"dense": collectives(False), "pruned": collectives(True)},
        "disagreement": disagreement(),
        # Last, for what fails may leave the collectives in disorder.
        "steps_per_execution, dense": trained(MIRRORED.scope(), False, steps_per_execution=2),
        "steps_per_execution": trained(MIRRORED.scope(), steps_per_execution=2),
        "jit_compile, dense": trained(MIRRORED.scope(), False, jit_compile=True),
        "jit_compile": trained(MIRRORED.scope(), jit_compile=True),
    }
)
