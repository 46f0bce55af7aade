"""One run of the dense model: in which order layers are called, and which can be refitted."""

import dataclasses
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pruner.oneshot.capture import Call, listening, run
from keras_pruner.oneshot.rows import Linear, linears

Node: TypeAlias = Any  # a Linear, or a batch norm
_CHECKED_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What one run showed.

    Attributes:
        order: everything heard, by its first call.
        calls: how often each is called in a run.
        followers: the batch norm that takes the output of a product as its input.
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
    inputs: dict[int, list[keras.layers.BatchNormalization]] = dataclasses.field(
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
        self.calls[norm] = self.calls.get(norm, 0) + 1
        self.inputs.setdefault(id(call.input), []).append(norm)

    def followers(self) -> dict[Linear, keras.layers.BatchNormalization]:
        found = {}
        for key, norms in self.inputs.items():
            linear = self.outputs[key][0] if key in self.outputs else None
            if linear is not None and self.calls[linear] == self.calls[norms[0]] == 1 == len(norms):
                found[linear] = norms[0]
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
    for nodes in by_layer.values():
        for node in nodes:
            if isinstance(node, Linear) and node not in ears.calls:
                ears.reasons[id(node.kernel)] = "its layer is not called in inference"
    return Survey(tuple(ears.calls), ears.calls, ears.followers(), ears.reasons)


def _why_not(linear: Linear, call: Call) -> str:
    """Why the rows of a call do not explain what the layer does; empty if they do."""
    try:
        rows = keras.ops.convert_to_numpy(linear.rows(call, _some)).astype(np.float32)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError, ValueError):
        return "its inputs are traced by a layer around it and cannot be looked at"
    if linear.outputs is None:
        return ""
    matrix = linear.layout.to_matrix(keras.ops.convert_to_numpy(linear.kernel.value))
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
