"""Pruned and quantized: zeros stay zeros, checked; and LoRA merged under the zeros."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import check_model, layer_path, weights_of
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class ZerosKept:
    """Zeros of one kernel before and after a step.

    Attributes:
        path: of the kernel, as in a plan.
        before: number of its zeros.
        lost: how many of them are no zeros any more.
    """

    path: str
    before: int
    lost: int


def zero_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Where the kernels of a model are zero, by their path in a plan; quantized ones too.

    Also those that are not pruned by default; no biases, nothing that quantization adds. int4
    kernels, two values to a byte, are unpacked first.
    """
    return {path: kernel == 0 for path, kernel in _kernels(model).items()}


def check_zeros(zeros: dict[str, np.ndarray], model: keras.Model) -> tuple[ZerosKept, ...]:
    """Compare the zeros of a model with those that `zero_masks` found before.

    Args:
        zeros: of the model, or of the one it was made from, at an earlier stage.
        model: after quantizing, saving and loading, or anything else.

    Raises:
        ValueError: if a zero is lost, naming the kernel, or a kernel is not there any more.
    """
    now = _kernels(model)
    found = []
    for path, before in zeros.items():
        if path not in now or now[path].size < before.size:
            raise ValueError(f"`model` has no kernel {path!r} of shape {before.shape} any more.")
        after = now[path].reshape(before.shape)
        found.append(ZerosKept(path, int(before.sum()), int(np.count_nonzero(after[before]))))
    lost = [kept for kept in found if kept.lost]
    if lost:
        raise ValueError(
            f"{lost[0].lost} of {lost[0].before} zeros of {lost[0].path!r} are lost"
            + (f", and others in {len(lost) - 1} more kernels." if lost[1:] else ".")
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
    """The stored values, unpacked and counted from their zero point if they are int4."""
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
        loss_before: the loss of the model with LoRA; None without `loss`.
        loss_after: the loss of the merged model; None without `loss`.
    """

    layers: tuple[str, ...]
    kept_zeros: int
    discarded: float
    loss_before: float | None = None
    loss_after: float | None = None

    def headline(self) -> str:
        """The zeros kept and what they cost."""
        text = f"LoRA merged into {len(self.layers)} layers: {self.kept_zeros:,} zeros kept, "
        text += f"changes up to {self.discarded:.3g} of the largest weight dropped"
        if self.loss_before is None or self.loss_after is None:
            return text
        return f"{text}; loss {self.loss_before:.4g} before, {self.loss_after:.4g} after"

    def tables(self) -> list[Table]:
        """The merged layers."""
        return [Table("", ["layer"], [(path,) for path in self.layers])]


def merge_lora(
    model: keras.Model,
    *,
    keep_zeros: bool = True,
    loss: Callable[[keras.Model], float] | None = None,
) -> Merge:
    """Add what LoRA has learned to the kernels, in place, and take LoRA off.

    Args:
        model: with layers on which `enable_lora` was called.
        keep_zeros: kernels stay zero where they are zero, so that the model stays sparse; what
            LoRA would have put there is lost. False: kernels become dense.
        loss: model -> its loss, evaluated before and after, such as
            `lambda m: m.evaluate(x, y, verbose=0)`.

    Returns:
        What was merged and what was lost.

    Raises:
        ValueError: if no layer has LoRA enabled, or one of them is quantized.
    """
    check_model(model)
    layers = [x for x in model._flatten_layers() if getattr(x, "lora_enabled", False)]
    if not layers:
        raise ValueError("`model` has no layer with LoRA enabled, so there is nothing to merge.")
    for layer in layers:
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"{layer.name!r} is quantized ({layer.quantization_mode}); merge LoRA first, "
                "then quantize."
            )
    arguments = _compile_arguments(model)  # raises, if at all, before anything is changed
    before = None if loss is None else float(loss(model))
    zeros, discarded = 0, 0.0
    for layer in layers:
        kept, lost = _merge(layer, keep_zeros)
        zeros, discarded = zeros + kept, max(discarded, lost)
    if arguments is not None:  # forgets compiled functions
        model.compile(**arguments)
        if model.optimizer is not None:
            model.optimizer.build(model.trainable_variables)
    after = None if loss is None else float(loss(model))
    paths = tuple(layer_path(model, layer) for layer in layers)
    return Merge(paths, zeros, discarded, before, after)


def _merge(layer: Any, keep_zeros: bool) -> tuple[int, float]:
    """Merge one layer; the zeros of its kernel and the largest change that they kept out."""
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
    """Take the two factors out of what the layer tracks, saves and trains."""
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
    """What a model is compiled with, but a new optimizer; its variables are of other weights.

    Not through `get_compile_config`: that needs registered functions.
    """
    if not getattr(model, "compiled", False):
        return None
    arguments = dict(model._compile_config.config)
    config = keras.optimizers.serialize(model.optimizer)
    return arguments | {"optimizer": keras.optimizers.deserialize(config)}
