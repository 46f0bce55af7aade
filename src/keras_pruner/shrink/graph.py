"""The calls of a model's layers, in order, with nested models opened."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor that flows through the graph.

    Attributes:
        shape: with None for an axis of unknown length; the first is the batch.
        dtype: its data type.
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: what is called.
        args: positional arguments, with a `Tensor` in place of each symbolic one.
        kwargs: keyword arguments, likewise.
        outputs: the results.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(self, values: Mapping[Tensor, Any]) -> list[Any]:
        """The outputs in inference mode for the given value of each input."""
        args, kwargs = _filled((self.args, self.kwargs), values)
        if getattr(self.operation, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": False}
        return keras.tree.flatten(self.operation(*args, **kwargs))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A functional model as a list of calls.

    Attributes:
        inputs: of the model.
        calls: in an order in which they can be run.
        outputs: of the model.
        tensors: by the id of a symbolic tensor, what stands for it here: several where it is in
            a nested model that is called several times.
    """

    inputs: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Tensor, ...]
    tensors: dict[int, list[Tensor]]


def graph_of(model: Any, shapes: list[tuple[int | None, ...]] | None = None) -> Graph:
    """The calls of a functional or Sequential model.

    Args:
        model: the model.
        shapes: of its inputs, batch axis included, where other ones are wanted than it has.
    """
    walk = _Walk(inferred=shapes is not None)
    functional = as_functional(model)
    shapes = shapes or [tuple(symbolic.shape) for symbolic in functional.inputs]
    pairs = zip(shapes, functional.inputs, strict=True)
    given = [Tensor(tuple(shape), str(symbolic.dtype)) for shape, symbolic in pairs]
    outputs = walk.through(functional, given)
    return Graph(tuple(given), tuple(walk.calls), tuple(outputs), walk.tensors)


class _Walk:
    """Collects the calls of a model and of those nested in it."""

    def __init__(self, *, inferred: bool) -> None:
        self.calls: list[Call] = []
        self.tensors: dict[int, list[Tensor]] = {}
        self._inferred = inferred

    def through(self, functional: Any, given: list[Tensor]) -> list[Tensor]:
        """Walk through a model; the tensors that stand for its outputs."""
        known: dict[int, Tensor] = {}
        self._note(known, functional.inputs, given)
        for node in nodes_of(functional):
            args, kwargs = node.arguments.fill_in(known)
            nested = as_functional(node.operation)
            if nested is None:
                found = self._outputs(node, args, kwargs)
                self.calls.append(Call(node.operation, args, kwargs, tuple(found)))
            else:
                leaves = keras.tree.flatten((args, kwargs))
                found = self.through(nested, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
            self._note(known, node.outputs, found)
        return [known[id(symbolic)] for symbolic in functional.outputs]

    def _note(self, known: dict[int, Tensor], symbolic: list[Any], found: list[Tensor]) -> None:
        for one, tensor in zip(symbolic, found, strict=True):
            known[id(one)] = tensor
            self.tensors.setdefault(id(one), []).append(tensor)

    def _outputs(self, node: Any, args: Any, kwargs: Any) -> list[Tensor]:
        specs = node.outputs
        if self._inferred:
            args, kwargs = keras.tree.map_structure(_symbolic, (args, kwargs))
            specs = keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
        return [Tensor(tuple(spec.shape), str(spec.dtype)) for spec in specs]


def _symbolic(leaf: Any) -> Any:
    return keras.KerasTensor(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _filled(structure: Any, values: Mapping[Tensor, Any]) -> Any:
    return keras.tree.map_structure(
        lambda leaf: values[leaf] if isinstance(leaf, Tensor) else leaf, structure
    )


def as_functional(operation: Any) -> Any:
    """The graph of a functional or Sequential model; None for anything else."""
    if isinstance(operation, keras.Sequential):
        return operation._functional
    is_graph = isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")
    return operation if is_graph and type(operation).call is _CALL else None


_CALL = type(keras.Model(*[keras.Input((1,), name="x")] * 2)).call


def nodes_of(functional: Any) -> Iterator[Any]:
    """The calls that make up a functional model, without those of its inputs."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.operation is not None and not node.is_input:
                yield node
