"""One run of the dense model: in which order layers are called, and which can be refitted."""

import dataclasses
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pruner.oneshot.batch_norm import moments, moments_of
from keras_pruner.oneshot.linear_layers import Linear, linears
from keras_pruner.oneshot.listen import Call, is_seen, listening, run

Node: TypeAlias = Any  # a Linear, or a batch norm
_CHECKED_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What one run showed.

    Attributes:
        order: everything heard, by its first call; no batch norm whose inputs are traced.
        calls: how often each is called in a run.
        followers: the batch norm that takes the output of a product as its input, channel by
            channel, with no activation in between.
        reasons: by the id of a kernel, why it cannot be refitted.
    """

    order: tuple[Node, ...]
    calls: dict[Node, int]
    followers: dict[Linear, keras.layers.BatchNormalization]
    reasons: dict[int, str]


@dataclasses.dataclass(eq=False)
class _Ears:
    """Collects while the model runs."""

    calls: dict[Node, int] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    outputs: dict[int, tuple[Linear, Any]] = dataclasses.field(default_factory=dict)
    inputs: dict[int, list[tuple[keras.layers.BatchNormalization, Call]]] = dataclasses.field(
        default_factory=dict
    )

    def product(self, linear: Linear, call: Call) -> None:
        self.calls[linear] = self.calls.get(linear, 0) + 1
        reason = _why_not(linear, call)
        if reason:
            self.reasons[id(linear.kernel)] = reason
        # The tensors are held, so that no other one can get their ids.
        self.outputs[id(call.output)] = linear, call.output

    def norm(self, norm: keras.layers.BatchNormalization, call: Call) -> None:
        if not is_seen(call):
            return
        self.calls[norm] = self.calls.get(norm, 0) + 1
        self.inputs.setdefault(id(call.input), []).append((norm, call))

    def followers(self) -> dict[Linear, keras.layers.BatchNormalization]:
        found = {}
        for key in self.inputs.keys() & self.outputs.keys():
            linear, output = self.outputs[key]
            norm, call = self.inputs[key][0]
            once = self.calls[linear] == self.calls[norm] == len(self.inputs[key]) == 1
            if once and _leads_into(linear, output, norm, call):
                found[linear] = norm
        return found


def survey(model: keras.Model, batch: Any) -> Survey:
    """Run the model once and see.

    Raises:
        ValueError: if the model cannot run on `batch`.
    """
    by_layer: dict[keras.layers.Layer, list[Node]] = {}
    for linear in linears(model):
        by_layer.setdefault(linear.layer, []).append(linear)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            by_layer[layer] = [layer]
    ears = _Ears()

    def listener(nodes: list[Node]) -> Any:
        def hear(call: Call) -> None:
            for node in nodes:
                if isinstance(node, Linear):
                    ears.product(node, call)
                else:
                    ears.norm(node, call)

        return hear

    with listening({layer: listener(nodes) for layer, nodes in by_layer.items()}):
        try:
            run(model, batch)
        except Exception as error:
            shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), batch)
            raise ValueError(
                f"`calibration` must be inputs that {model.name!r} can be called on. Received: "
                f"a batch of shapes {shapes}, on which it fails:\n{error}"
            ) from error
    borrowed = _borrowed(model)
    for nodes in by_layer.values():
        for node in nodes:
            if isinstance(node, Linear) and node not in ears.calls:
                ears.reasons[id(node.kernel)] = "its layer is not called in inference"
            elif isinstance(node, Linear) and node.layer in borrowed:
                ears.reasons[id(node.kernel)] = "another layer holds its layer, and may use it"
    return Survey(tuple(ears.calls), ears.calls, ears.followers(), ears.reasons)


def _borrowed(model: keras.Model) -> set[keras.layers.Layer]:
    """Layers that another one holds beside the model or layer that calls them, to tie weights."""
    holders: dict[keras.layers.Layer, set[keras.layers.Layer]] = {}
    for holder in model._flatten_layers():
        for layer in holder._layers:
            holders.setdefault(layer, set()).add(holder)
    return {
        layer
        for layer, found in holders.items()
        if len(found) > 1 and not all(isinstance(holder, keras.Model) for holder in found)
    }


def _leads_into(
    linear: Linear, output: Any, norm: keras.layers.BatchNormalization, call: Call
) -> bool:
    """Whether the moments of the products are those that the norm sees, channel by channel."""
    plain = linear.activation in (None, keras.activations.linear)
    if linear.outputs is None or not plain:
        return False
    products = moments_of(keras.ops.cast(linear.outputs(output, np.arange), "float32"))
    seen = moments(norm, call)
    scale = 1e-3 * np.sqrt(seen.variance.max(initial=0.0))
    return products.mean.shape == seen.mean.shape and np.allclose(
        products.mean, seen.mean, atol=scale
    )


def _why_not(linear: Linear, call: Call) -> str:
    """Why the rows of a call do not explain what the layer does; empty if they do."""
    try:
        rows = keras.ops.convert_to_numpy(linear.rows(call, _some)).astype(np.float32)
    except Exception:  # each backend has errors of its own for a tracer
        return "its inputs are traced by a layer around it and cannot be looked at"
    if linear.outputs is None:
        return ""
    matrix = linear.view.to_matrix(keras.ops.convert_to_numpy(linear.kernel.value))
    outputs = np.matmul(rows, matrix.astype(np.float32))
    if linear.bias is not None:
        bias = keras.ops.convert_to_numpy(linear.bias.value).astype(np.float32)
        outputs += bias.reshape(matrix.shape[0], 1, -1)
    if linear.activation is not None:
        outputs = keras.ops.convert_to_numpy(linear.activation(outputs))
    actual = keras.ops.convert_to_numpy(linear.outputs(call.output, _some)).astype(np.float32)
    exact = keras.backend.standardize_dtype(call.output.dtype) in ("float32", "float64")
    allowed = (1e-3 if exact else 5e-2) * max(1e-6, np.abs(actual).max(initial=0.0))
    if outputs.shape == actual.shape and np.allclose(outputs, actual, rtol=0, atol=allowed):
        return ""
    return "its layer does more than multiply: the outputs are not inputs @ kernel + bias"


def _some(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, _CHECKED_ROWS).astype(int))
