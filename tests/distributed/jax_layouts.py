"""How the task's network lies over JAX devices."""

import keras
from keras import distribution

import keras_pruner as kp


def model_parallel(shape, **options):
    """Kernels in parts along the hidden units; a mesh of batch x model."""
    devices = distribution.list_devices()
    layout = distribution.LayoutMap(distribution.DeviceMesh(shape, ("batch", "model"), devices))
    layout[".*hidden/kernel"] = (None, "model")
    layout[".*hidden/bias"] = ("model",)
    layout[".*head/kernel"] = ("model", None)
    return distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", **options)


def data_parallel(**options):
    """Whole kernels on every device."""
    return distribution.DataParallel(devices=distribution.list_devices(), **options)


LAYOUTS = {
    "DataParallel": data_parallel,
    "ModelParallel": lambda **options: model_parallel((1, 4), **options),
    "both": lambda **options: model_parallel((2, 2), **options),
}


def lay(name, **options):
    """Set the distribution of this name; None or "single" for that of one device."""
    distribution.set_distribution(LAYOUTS[name](**options) if name in LAYOUTS else None)


def lay_over_processes(name):
    """As `lay`, where each process feeds its own part of the data."""
    lay(name, auto_shard_dataset=False)


def join(port, processes, rank):
    """Become one of several processes, before the first array is made."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"127.0.0.1:{port}", processes, rank)


WAYS = ("uniform", "lamp", "global", "2:4")


def pruner_of(model, how):
    """One that prunes at once, by an allocation or a pattern of the network's kernels."""
    if how == "2:4":
        return kp.Pruner(model, kp.ConstantSparsity(0.5, end_step=4), pattern=kp.NM(2, 4))
    return kp.Pruner(model, kp.ConstantSparsity(0.75, end_step=4), allocation=how)
