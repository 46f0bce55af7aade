"""The shapes that a layer takes and returns, also where the model does not call it itself."""

import math
from typing import Any

import keras


def shape_of(layer: Any, side: str) -> tuple[int | None, ...] | None:
    """The shape of a layer's "input" or "output" without the batch; None if it is not known.

    The model does not call the parts of another layer, such as the projections of attention. For
    a part, it is the shape that the part was built for.
    """
    try:
        return tuple(getattr(layer, side).shape[1:])
    except AttributeError:
        built = (layer.get_build_config() or {}).get("input_shape") if layer.built else None
    if not built:
        return None
    return tuple(built if side == "input" else layer.compute_output_shape(tuple(built)))[1:]


def positions_of_output(layer: Any) -> int:
    """The number of positions in a layer's output, pixels or steps; 1 if it is not known."""
    shape = shape_of(layer, "output") or ()
    known = [size for size in shape[:-1] if size is not None]
    return math.prod(known) if len(known) == len(shape) - 1 else 1


def holders(model: keras.Model) -> dict[int, Any]:
    """The id of each layer that is a part of another one -> the layer that the model calls."""
    return {
        id(part): layer
        for layer in model._flatten_layers()
        if layer is not model and hasattr(layer, "output")
        for part in layer._flatten_layers()
        if part is not layer and not hasattr(part, "output")
    }
