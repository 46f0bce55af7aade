"""Four devices in one process: `keras.distribution`, and a loop with `jax.sharding`."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import re

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax_layouts import LAYOUTS, WAYS, lay, pruner_of
from task import LOSS, SCHEDULE, batches, compiled, fit, network, raised, sgd, weights, write

import keras_pruner as kp
from keras_pruner.backends import jax as jax_backend

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?\("
)
BITS = {"pred": 8, "s8": 8, "u8": 8, "s32": 32, "u32": 32, "f32": 32, "bf16": 16, "f16": 16}


def collectives(text):
    """Kind and bytes of each collective operation in a compiled program."""
    found = []
    for shapes, kind, _ in COLLECTIVE.findall(text):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        bits = sum(BITS[t] * int(np.prod([int(n) for n in d.split(",") if n])) for t, d in sizes)
        found.append((kind, bits // 8))
    return sorted(found)


def step_of(model):
    """The collectives of Keras' own compiled training step."""
    state = tuple(
        [v.value for v in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    x, y = next(batches())
    layout = keras.distribution.distribution()
    x, y = (
        a if layout is None else jax.device_put(a, layout.get_data_layout(a.shape).backend_layout)
        for a in (x, y)
    )
    step = jax.jit(model.train_step)
    return collectives(step.lower(state, (x, y)).compile().as_text())


class Look(keras.callbacks.Callback):
    """See, in the middle of the training, what it communicates and where its masks are."""

    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.seen = {}

    def on_epoch_end(self, epoch, logs=None):
        if epoch:
            return
        model = self.model
        self.seen = {
            "copies": self.pruner().check_agreement(),
            "shardings": [
                [str(v.value.sharding) for v in (m.variable, m.mask, *m.slots)]
                for m in model.optimizer.pruning.all[0].masked
            ],
        }


def trained(name, allocation):
    """One training; its weights and what was seen."""
    lay(name)
    pruning = kp.GradualPruning(SCHEDULE, allocation=allocation)
    look = Look(lambda: pruning.pruner)
    model = fit(compiled(), pruning, look)
    return {"weights": weights(model), **look.seen}


def communication(name):
    """The collectives of a step, dense and pruned."""
    lay(name)
    dense, pruned = compiled(), compiled()
    pruner = kp.Pruner(pruned, SCHEDULE)
    pruned.compile(pruner.wrap(sgd()), loss=LOSS)
    pruner.update()
    for model in (dense, pruned):
        model.train_on_batch(*next(batches()))
        model.jax_state_sync()
    found = {"dense": step_of(dense), "pruned": step_of(pruned)}
    lay(None)
    return found


def update_communication():
    """The collectives of what a mask update compiles, for weights in four parts."""
    lay("ModelParallel")
    model = compiled()
    pruner = kp.Pruner(model, SCHEDULE)
    pruner.wrap(sgd())
    hidden, head = ((m.variable.value, m.mask.value) for m in pruner.pruning.masked)
    programs = {
        "count_from": jax_backend._count_from.lower(*hidden, 0.5),
        "count_equal": jax_backend._count_equal.lower(*hidden, 0.5, np.uint32(9)),
        "cut": jax_backend._cut.lower(*hidden, 0.5, np.uint32(9)),
        "zero": jax.jit(jax_backend._zero).lower(*hidden),
        "groups of outputs in parts": jax_backend._keep_in_groups.lower(*hidden, (8, 16), 2, 4),
        "groups of inputs in parts": jax_backend._keep_in_groups.lower(*head, (16, 4), 2, 4),
    }
    lay(None)
    return {name: collectives(each.compile().as_text()) for name, each in programs.items()}


def gathered(name, how):
    """The sizes of the arrays that an update brings from the devices to the host; its masks."""
    lay(name)
    model = compiled()
    pruner = pruner_of(model, how)
    pruner.wrap(sgd())
    sizes, whole = [], jax_backend.to_numpy
    jax_backend.to_numpy = lambda v: sizes.append(int(np.prod(v.shape))) or whole(v)
    try:
        pruner.update()
        pruner.update()
        reached = pruner.sparsity
    finally:
        jax_backend.to_numpy = whole
    masks = [np.asarray(m.mask.value).tolist() for m in pruner.pruning.masked]
    lay(None)
    return {"sizes": sizes, "sparsity": reached, "masks": masks}


def stateless():
    """A loop of one's own: kernels in four parts, the batch in four parts."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    place = {
        name: NamedSharding(mesh, PartitionSpec(*axes))
        for name, axes in {"kernel": (None, "all"), "batch": ("all",), "copied": ()}.items()
    }
    model = network()
    pruner = kp.Pruner(model, SCHEDULE)
    optimizer = pruner.wrap(sgd())

    def put(variable):
        where = place["kernel" if len(variable.shape) == 2 else "copied"]
        return jax.device_put(variable.value, where)

    def loss_of(trainable, non_trainable, x, y):
        logits, non_trainable = model.stateless_call(trainable, non_trainable, x, training=True)
        return LOSS(y, logits), non_trainable

    @jax.jit
    def step(state, x, y):
        trainable, non_trainable, opt_vars = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, non_trainable), gradients = gradient(trainable, non_trainable, x, y)
        trainable, opt_vars = optimizer.stateless_apply(opt_vars, gradients, trainable)
        return trainable, non_trainable, opt_vars

    trainable = [put(v) for v in model.trainable_variables]
    non_trainable = [put(v) for v in model.non_trainable_variables]
    opt_vars = [put(v) for v in optimizer.variables]
    for x, y in batches():
        trainable, opt_vars = pruner.stateless_update(trainable, opt_vars)
        x, y = (jax.device_put(a, place["batch"]) for a in (x, y))
        trainable, non_trainable, opt_vars = step((trainable, non_trainable, opt_vars), x, y)
    trainable, opt_vars = pruner.stateless_update(trainable, opt_vars)
    masks = [v for v in opt_vars if v.dtype == bool]
    return {
        "weights": [np.asarray(v).tolist() for v in trainable],
        "parts": [[len({str(s.index) for s in m.addressable_shards})] for m in masks],
    }


def disagreement():
    """What the check says when one copy of a weight is changed behind everybody's back."""
    lay("DataParallel")
    model = compiled()
    pruner = kp.Pruner(model, SCHEDULE)
    pruner.wrap(sgd())
    variable = pruner.pruning.masked[1].variable
    value = variable.value
    copies = [np.array(shard.data) for shard in value.addressable_shards]
    copies[2][0, 0] += 1e-7
    arrays = [jax.device_put(c, d) for c, d in zip(copies, jax.devices(), strict=True)]
    variable._value = jax.make_array_from_single_device_arrays(value.shape, value.sharding, arrays)
    said = raised(pruner.check_agreement)
    lay(None)
    return said


write(
    {
        "trained": {
            f"{name} {allocation}": trained(name, allocation)
            for allocation in ("uniform", "lamp")
            for name in ("single", *LAYOUTS)
        },
        "communication": {n: communication(n) for n in LAYOUTS},
        "update": update_communication(),
        "gathered": {
            f"{name} {how}": gathered(name, how)
            for name in ("single", "ModelParallel")
            for how in WAYS
        },
        "stateless": stateless(),
        "disagreement": disagreement(),
    }
)
