"""A model as a graph of layer calls, however it was built.

Functional and Sequential models hold such a graph. A subclassed model gets one by a symbolic
call. The calls of nested models are replaced by the calls inside them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras


@dataclasses.dataclass(eq=False, repr=False)
class Call:
    """One call of a layer; a shared layer has several.

    Attributes:
        layer: the layer, or the operation of `keras.ops`.
        name: name of the layer, after those of the nested models around it: "encoder/conv".
        inputs: the tensors that the call takes, in the order of its arguments.
        outputs: the tensors that it returns.
        consumers: the calls that take one of its outputs, each once, in the order of the graph.
    """

    layer: Any
    name: str
    inputs: tuple["Tensor", ...]
    outputs: tuple["Tensor", ...] = ()
    consumers: list["Call"] = dataclasses.field(default_factory=list)
    _node: Any = None

    def __repr__(self) -> str:
        return f"<Call of {self.name}>"

    @property
    def producers(self) -> list["Call"]:
        """The calls whose outputs this one takes, each once, in the order of the arguments."""
        return list(dict.fromkeys(tensor.producer for tensor in self.inputs))

    @property
    def is_input(self) -> bool:
        """True for an input of the model, which takes nothing."""
        return isinstance(self.layer, keras.layers.InputLayer)

    def arguments(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call, with other tensors in their places."""
        places = zip(self._node.input_tensors, inputs, strict=True)
        return self._node.arguments.fill_in({id(old): new for old, new in places})

    def run(self, values: Mapping["Tensor", Any], apply: Callable[..., Any]) -> dict["Tensor", Any]:
        """Its outputs, from the values of its inputs; `apply` gets the call and its arguments."""
        args, kwargs = self.arguments([values[tensor] for tensor in self.inputs])
        results = keras.tree.flatten(apply(self, *args, **kwargs))
        return dict(zip(self.outputs, results, strict=True))


@dataclasses.dataclass(eq=False, repr=False)
class Tensor:
    """One tensor in the graph.

    Attributes:
        producer: the call that returns it.
        shape: with None for unknown sizes.
        dtype: name of its type.
    """

    producer: Call
    shape: tuple[int | None, ...]
    dtype: str

    def __repr__(self) -> str:
        return f"<Tensor {self.shape} of {self.producer.name}>"


class ModelGraph:
    """The layer calls of a model and the tensors between them.

    Layers that have also been called in other models have only this model's calls here.

    Args:
        model: a functional, Sequential or built subclassed model.
        inputs: symbolic inputs in the structure that `model.call` takes, as `keras.Input` makes
            them. None: those of the model; for a subclassed model the shape it was built with.

    Attributes:
        calls: every call, each after those whose outputs it takes. Inputs are among them.
        inputs: the tensors that the model takes, flat.
        outputs: the tensors that it returns, flat.
        forms: the functional form of each nested model, by the id of Keras' node that calls it.

    Raises:
        ValueError: if the model has no such graph.

    Example:
        >>> image = keras.Input((8, 8, 3), name="image")
        >>> x = keras.layers.Conv2D(4, 1, name="conv")(image)
        >>> x = keras.layers.Add(name="add")([x, keras.layers.Conv2D(4, 1, name="side")(x)])
        >>> graph = ModelGraph(keras.Model(image, x))
        >>> [call.name for call in graph.calls]
        ['image', 'conv', 'side', 'add']
        >>> [call.name for call in graph["conv"].consumers]
        ['side', 'add']
    """

    def __init__(self, model: keras.Model, inputs: Any = None) -> None:
        form = functional_form(model, inputs)
        self.calls: list[Call] = []
        self.forms: dict[int, keras.Model] = {}
        self._structure = form._outputs_struct
        known: dict[int, Tensor] = {}
        self._add_nodes(form, known, "")
        self.inputs = [known[id(tensor)] for tensor in form.inputs]
        self.outputs = [known[id(tensor)] for tensor in form.outputs]

    def __getitem__(self, name: str) -> Call:
        """The first call of that name."""
        return next(call for call in self if call.name == name)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    @functools.cached_property
    def _calls_of(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            found.setdefault(id(call.layer), []).append(call)
        return found

    @property
    def layers(self) -> list[Any]:
        """Every layer and operation once, in the order of its first call."""
        return [calls[0].layer for calls in self._calls_of.values()]

    def calls_of(self, layer: Any) -> list[Call]:
        """All calls of a layer in this model: several if it is shared, none if it is not in it."""
        return self._calls_of.get(id(layer), [])

    def consumers_of(self, tensor: Tensor) -> list[Call]:
        """The calls that take this tensor."""
        return [call for call in tensor.producer.consumers if tensor in call.inputs]

    def run(self, inputs: Sequence[Any], apply: Callable[..., Any] | None = None) -> Any:
        """Run the model call by call, on arrays or on symbolic tensors.

        Args:
            inputs: one for each of `self.inputs`.
            apply: gets a `Call` and its arguments, returns its outputs. None: calls the layer.

        Returns:
            The outputs, in the structure that the model returns.
        """
        apply = apply or _apply
        values = dict(zip(self.inputs, inputs, strict=True))
        for call in self.calls:
            if not call.is_input:
                values |= call.run(values, apply)
        results = [values[tensor] for tensor in self.outputs]
        return keras.tree.pack_sequence_as(self._structure, results)

    def _add_nodes(self, form: Any, known: dict[int, Tensor], prefix: str) -> None:
        """Append the calls of a functional model; `known` maps Keras' tensors to ours."""
        for depth in sorted(form._nodes_by_depth, reverse=True):
            for node in form._nodes_by_depth[depth]:
                if any(id(tensor) in known for tensor in node.outputs):
                    continue  # an input of a nested model, known from outside
                inner = _nested(node)
                name = prefix + node.operation.name
                if inner is None:
                    self._add_call(node, known, name)
                    continue
                self.forms[id(node)] = inner
                within = {
                    id(mine): known[id(given)]
                    for mine, given in zip(inner.inputs, node.input_tensors, strict=True)
                }
                self._add_nodes(inner, within, f"{name}/")
                for given, mine in zip(node.outputs, inner.outputs, strict=True):
                    known[id(given)] = within[id(mine)]

    def _add_call(self, node: Any, known: dict[int, Tensor], name: str) -> None:
        inputs = tuple(known[id(tensor)] for tensor in node.input_tensors)
        call = Call(node.operation, name, inputs, _node=node)
        call.outputs = tuple(
            Tensor(call, tuple(t.shape), keras.backend.standardize_dtype(t.dtype))
            for t in node.outputs
        )
        for tensor, given in zip(call.outputs, node.outputs, strict=True):
            known[id(given)] = tensor
        for producer in call.producers:
            producer.consumers.append(call)
        self.calls.append(call)


def functional_form(model: keras.Model, inputs: Any = None) -> keras.Model:
    """The model as a functional one with the same layers and weights.

    Args:
        model: a functional, Sequential or built subclassed model.
        inputs: as for `ModelGraph`.

    Raises:
        ValueError: if the model cannot be called symbolically.
    """
    if inputs is None and _is_functional(model):
        return model
    form = model._functional if isinstance(model, keras.Sequential) else None
    if inputs is None and form is not None:
        return form
    if inputs is None:
        inputs = keras.Input(batch_shape=_built_shape(model))
    return _traced(model, model.call, (inputs,), {})


def _traced(
    model: keras.Model, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> keras.Model:
    """The functional model that a symbolic call makes."""
    try:
        outputs = call(*args, **kwargs)
        given = [x for x in keras.tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(x)]
        return keras.Model(given, outputs, name=model.name)
    except Exception as error:  # whatever the user's `call` raises
        raise ValueError(
            "`model` must be a functional or Sequential model, or a subclassed one that can be "
            f"called on keras.Input tensors. Calling {model.name!r} (a {type(model).__name__}) "
            f"raised {type(error).__name__}: {error}"
        ) from error


def _is_functional(model: Any) -> bool:
    """True for functional models, unless a subclass has a `call` of its own."""
    return hasattr(model, "_nodes_by_depth") and type(model).call.__module__.startswith("keras.")


def _built_shape(model: keras.Model) -> Any:
    config = (model.get_build_config() if model.built else None) or {}
    shapes = [config.get("input_shape"), *(config.get("shapes_dict") or {}).values()]
    for shape in shapes:
        if shape and all(size is None or isinstance(size, int) for size in shape):
            return tuple(shape)
    raise ValueError(
        f"The input shape of {model.name!r} (a {type(model).__name__}) is not known. Call it on "
        "one batch first, or build it from keras.Input tensors."
    )


def _nested(node: Any) -> Any:
    """The functional form of the model that a node calls; None for a layer."""
    layer = node.operation
    if not isinstance(layer, keras.Model):
        return None
    args, kwargs = node.arguments.convert(_input_like)
    call = layer.call
    form = layer._functional if isinstance(layer, keras.Sequential) else layer
    if _is_functional(form) and len(form.inputs) == len(node.input_tensors):
        if [tuple(t.shape) for t in form.inputs] == [tuple(t.shape) for t in node.input_tensors]:
            return form
        call, kwargs = form._run_through_graph, {}  # `call` would add a conversion of the inputs
    try:
        return _traced(layer, call, args, kwargs)
    except ValueError:
        return None  # it stays one call


def _input_like(argument: Any) -> Any:
    if not keras.utils.is_keras_tensor(argument):
        return argument
    return keras.Input(batch_shape=argument.shape, dtype=argument.dtype)


def _apply(call: Call, *args: Any, **kwargs: Any) -> Any:
    return call.layer(*args, **kwargs)
