"""Pruning together with quantization and LoRA: check zeros, merge LoRA under them."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import check_model, layer_path, weights_of
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class ZerosKept:
    """The zeros of one kernel before and after a change.

    Attributes:
        path: the path of the kernel, as in a plan.
        before: the number of its zeros before.
        lost: the number of them that are no longer zero.

    Example:
        >>> ZerosKept("dense/kernel", before=6, lost=0).lost
        0
    """

    path: str
    before: int
    lost: int


def zero_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Find the zeros of every kernel, quantized ones included.

    int4 kernels, which Keras stores two values to a byte, are unpacked first.

    Args:
        model: any built Keras 3 model.

    Returns:
        The path of each kernel in a plan -> a boolean mask of its shape, True for zeros. Kernels
        that are not pruned by default are included; biases and scales are not.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> report = kp.prune(model, 0.5)
        >>> masks = kp.quantization.zero_masks(model)
        >>> int(masks["head/kernel"].sum())
        16
    """
    return {path: kernel == 0 for path, kernel in _kernels(model).items()}


def check_zeros(zeros: dict[str, np.ndarray], model: keras.Model) -> tuple[ZerosKept, ...]:
    """Check that all zeros found by `zero_masks` are still zero.

    Args:
        zeros: the masks of the model before a change.
        model: the model after the change: quantized, or saved and loaded, for example.

    Returns:
        The number of zeros of each kernel.

    Raises:
        ValueError: if a zero is lost or a kernel is missing; the message names the kernel.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> report = kp.prune(model, 0.5)
        >>> masks = kp.quantization.zero_masks(model)
        >>> model.layers[0].quantize("int8")
        >>> kp.quantization.check_zeros(masks, model)
        (ZerosKept(path='head/kernel', before=16, lost=0),)
    """
    now = _kernels(model)
    found = []
    for path, before in zeros.items():
        if path not in now or now[path].size < before.size:
            raise ValueError(
                f"`model` no longer has a kernel {path!r} of shape {before.shape}, of which "
                "`zeros` was made. Pass the model that was pruned, or its "
                "quantized form."
            )
        after = now[path].reshape(before.shape)
        found.append(ZerosKept(path, int(before.sum()), int(np.count_nonzero(after[before]))))
    lost = [kept for kept in found if kept.lost]
    if lost:
        raise ValueError(
            f"{lost[0].lost} of {lost[0].before} zeros of {lost[0].path!r} are no longer zero"
            + (f", and zeros of {len(lost) - 1} more kernels." if lost[1:] else ".")
            + " Something has trained or replaced them: prune again, and train on with "
            "kp.KeepZeros()."
        )
    return tuple(found)


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    check_model(model)
    found = {}
    for owned in weights_of(model):
        asked: Iterable[Any] = getattr(owned.layer, "get_prunable_weights", tuple)()
        if owned.is_kernel or any(owned.variable is weight for weight in asked):
            found[owned.path] = _values(owned.layer, owned.variable)
    return found


def _values(layer: Any, variable: keras.Variable) -> np.ndarray:
    """The stored values; int4 values are unpacked and counted from their zero point."""
    if getattr(layer, "quantization_mode", None) != "int4":
        return np.asarray(backends.current().to_numpy(variable))
    name = variable.name
    if name == "reverse_embeddings":
        unpacked = keras.quantizers.unpack_int4(variable.value, layer.output_dim, axis=0)
    else:
        unpacked = getattr(layer, name)
    values = keras.ops.convert_to_numpy(unpacked).astype(np.int16)
    origin = getattr(layer, f"{name}_zero", None)
    if origin is None:
        return values
    groups = keras.ops.convert_to_numpy(layer.g_idx.value).astype(int)
    origins = keras.ops.convert_to_numpy(origin.value).astype(np.int16)
    if name == "embeddings":
        return values - origins[:, groups]
    return values - origins[groups].reshape(values.shape)


@dataclasses.dataclass(frozen=True)
class Merge(Report):
    """The result of `merge_lora`.

    Attributes:
        layers: the paths of the merged layers.
        kept_zeros: the number of zeros in their kernels, the same before and after.
        discarded: the largest change that was dropped to keep a zero, relative to the largest
            weight of its kernel.

    Example:
        >>> print(Merge(("dense",), 16, 0.25))
        LoRA merged into 1 layers: 16 zeros kept, changes up to 0.25 of the largest weight dropped
          layer
          ─────
          dense
    """

    layers: tuple[str, ...]
    kept_zeros: int
    discarded: float

    def headline(self) -> str:
        """The zeros kept and what they cost."""
        text = f"LoRA merged into {len(self.layers)} layers: {self.kept_zeros:,} zeros kept, "
        return f"{text}changes up to {self.discarded:.3g} of the largest weight dropped"

    def tables(self) -> list[Table]:
        """The merged layers."""
        return [Table("", ["layer"], [(path,) for path in self.layers])]


def merge_lora(model: keras.Model, *, keep_zeros: bool = True) -> Merge:
    """Add the LoRA update to the kernels, in place, and remove LoRA from the layers.

    Args:
        model: a model with layers on which `enable_lora` was called.
        keep_zeros: keep zeros of the kernels at zero, so that the model stays sparse; the update
            of these weights is dropped. False: add the whole update; kernels become dense.

    Returns:
        The merged layers, and the largest change that was dropped. A model that was compiled is
        compiled again, with a new optimizer.

    Raises:
        ValueError: if no layer has LoRA enabled, or one of them is quantized.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> report = kp.prune(model, 0.5)
        >>> model.layers[0].enable_lora(2)
        >>> kp.quantization.merge_lora(model).kept_zeros
        16
    """
    check_model(model)
    layers = [x for x in model._flatten_layers() if getattr(x, "lora_enabled", False)]
    if not layers:
        raise ValueError(
            "`model` has no layer with LoRA enabled, so there is nothing to merge. Call this after "
            "`layer.enable_lora(rank)` and the training."
        )
    for layer in layers:
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"{layer.name!r} is quantized ({layer.quantization_mode}). Merge LoRA first, "
                "then quantize."
            )
    arguments = _compile_arguments(model)  # raises before anything is changed
    zeros, discarded = 0, 0.0
    for layer in layers:
        kept, lost = _merge(layer, keep_zeros)
        zeros, discarded = zeros + kept, max(discarded, lost)
    if arguments is not None:  # drops the compiled functions
        model.compile(**arguments)
        if model.optimizer is not None:
            model.optimizer.build(model.trainable_variables)
    paths = tuple(layer_path(model, layer) for layer in layers)
    return Merge(paths, zeros, discarded)


def _merge(layer: Any, keep_zeros: bool) -> tuple[int, float]:
    """Merge one layer; return the zeros of its kernel and the largest change dropped for them."""
    name = "_embeddings" if isinstance(layer, keras.layers.Embedding) else "_kernel"
    variable = getattr(layer, name)
    stored = np.array(keras.ops.convert_to_numpy(variable.value))
    merged = np.array(keras.ops.convert_to_numpy(getattr(layer, name[1:])))
    zero = stored == 0
    change = np.abs(merged - stored)[zero].max(initial=0)
    if keep_zeros:
        merged[zero] = 0
    trained = layer.trainable
    layer._tracker.unlock()
    layer.lora_enabled = False
    layer._tracker.lock()
    variable.trainable = trained
    variable.assign(merged)
    _remove_factors(layer)
    scale = max(float(np.abs(stored).max(initial=0)), 1e-12)
    return int(zero.sum()) if keep_zeros else int((merged == 0).sum()), float(change / scale)


def _remove_factors(layer: Any) -> None:
    """Remove the two factors from the variables that the layer tracks, saves and trains."""
    factors = [v for v in layer.variables if v.name.startswith(("lora_kernel", "lora_embeddings"))]
    layer._tracker.unlock()
    for factor in factors:
        layer._untrack_variable(factor)
    for attribute in [a for a in vars(layer) if a.startswith("lora_") and a != "lora_enabled"]:
        if attribute not in ("lora_rank", "lora_alpha"):
            setattr(layer, attribute, None)
    layer.lora_rank = None
    layer._tracker.lock()


def _compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """The arguments of `compile` with a new optimizer, since the trainable weights change.

    `get_compile_config` would need every function to be registered.
    """
    if not getattr(model, "compiled", False):
        return None
    arguments = dict(model._compile_config.config)
    config = keras.optimizers.serialize(model.optimizer)
    return arguments | {"optimizer": keras.optimizers.deserialize(config)}
