"""One run of the dense model: the order of its layers' calls, and which can be refitted."""

import dataclasses
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pruner.oneshot.arrays import to_numpy
from keras_pruner.oneshot.batch_norm import moments, moments_of
from keras_pruner.oneshot.linear_layers import Linear, linears
from keras_pruner.oneshot.listen import Call, Listener, listening, run

Node: TypeAlias = Any
"""A `Linear`, or a batch norm."""
_CHECKED_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What one run showed.

    Attributes:
        order: the nodes by their first call; without batch norms whose inputs are traced.
        calls: the number of calls of each node in a run.
        followers: the batch norm that takes the output of a product as its input, channel by
            channel, with no activation in between.
        reasons: by the id of a kernel, why it cannot be refitted.
    """

    order: tuple[Node, ...]
    calls: dict[Node, int]
    followers: dict[Linear, keras.layers.BatchNormalization]
    reasons: dict[int, str]

    def linear_of(self, kernel: keras.Variable) -> Linear | None:
        """The node of a kernel that can be refitted; None for any other."""
        if id(kernel) in self.reasons:
            return None
        nodes = (node for node in self.order if isinstance(node, Linear))
        return next((node for node in nodes if node.kernel is kernel), None)


def trace(model: keras.Model, batch: Any) -> Trace:
    """Run the model once and record the calls.

    Raises:
        ValueError: if the model cannot run on `batch`.
    """
    by_layer: dict[keras.layers.Layer, list[Node]] = {}
    for linear in linears(model):
        by_layer.setdefault(linear.layer, []).append(linear)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            by_layer[layer] = [layer]
    record = _Record()
    with listening({layer: record.listener(nodes) for layer, nodes in by_layer.items()}):
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
            if isinstance(node, Linear) and node not in record.calls:
                record.reasons[id(node.kernel)] = "its layer is not called in inference"
            elif isinstance(node, Linear) and node.layer in borrowed:
                record.reasons[id(node.kernel)] = "another layer holds its layer, and may use it"
    return Trace(tuple(record.calls), record.calls, record.followers(), record.reasons)


@dataclasses.dataclass(eq=False)
class _Record:
    """What is collected while the model runs."""

    calls: dict[Node, int] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    outputs: dict[int, tuple[Linear, Any]] = dataclasses.field(default_factory=dict)
    inputs: dict[int, list[tuple[keras.layers.BatchNormalization, Call]]] = dataclasses.field(
        default_factory=dict
    )

    def listener(self, nodes: list[Node]) -> Listener:
        def hear(call: Call) -> None:
            for node in nodes:
                if isinstance(node, Linear):
                    self._product(node, call)
                elif not call.is_traced:
                    self._norm(node, call)

        return hear

    def _product(self, linear: Linear, call: Call) -> None:
        self.calls[linear] = self.calls.get(linear, 0) + 1
        reason = _why_not(linear, call)
        if reason:
            self.reasons[id(linear.kernel)] = reason
        # The tensors are held, so that no other one can get their ids.
        self.outputs[id(call.output)] = linear, call.output

    def _norm(self, norm: keras.layers.BatchNormalization, call: Call) -> None:
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
    products, seen = moments_of(linear.outputs(output, np.arange)), moments(norm, call)
    scale = 1e-3 * np.sqrt(seen.variance.max(initial=0.0))
    return products.mean.shape == seen.mean.shape and np.allclose(
        products.mean, seen.mean, atol=scale
    )


def _why_not(linear: Linear, call: Call) -> str:
    """Why rows @ matrix does not explain the layer's outputs in a call; empty if it does."""
    try:
        rows = to_numpy(linear.rows(call, _some))
    except Exception:  # each backend raises an error of its own for a tracer
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
    actual = to_numpy(linear.outputs(call.output, _some))
    exact = keras.backend.standardize_dtype(call.output.dtype) in ("float32", "float64")
    allowed = (1e-3 if exact else 5e-2) * max(1e-6, np.abs(actual).max(initial=0.0))
    if outputs.shape == actual.shape and np.allclose(outputs, actual, rtol=0, atol=allowed):
        return ""
    return "its layer does more than multiply: the outputs are not inputs @ kernel + bias"


def _some(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, _CHECKED_ROWS).astype(int))
