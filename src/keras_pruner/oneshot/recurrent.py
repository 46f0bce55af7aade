"""What LSTM, GRU and simple recurrent layers multiply with: their inputs and their past outputs."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.oneshot.listen import Call

Rows = Callable[[Call, Callable[[int], np.ndarray]], Any]


def products(layer: Any) -> Iterator[tuple[keras.Variable, keras.Variable | None, Rows]]:
    """(kernel, bias, rows) for the inputs and for the past outputs of a layer.

    None for cells that are not exactly Keras' own, for stateful layers, and for the recurrent
    kernel of a GRU with `reset_after=False`, which multiplies a gated output.
    """
    cell = layer.cell
    known = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    if type(cell) not in known or layer.stateful:
        return
    two = type(cell) is keras.layers.GRUCell and cell.reset_after  # biases of shape (2, outputs)
    bias = cell.bias if cell.use_bias and not two else None
    yield cell.kernel, bias, _inputs
    if two or type(cell) is not keras.layers.GRUCell:
        yield cell.recurrent_kernel, bias, lambda call, choose: _past(layer, call, choose)


def _inputs(call: Call, choose: Callable[[int], np.ndarray]) -> Any:
    """Every step's input."""
    return _steps(call.input, _mask(call), choose)


def _past(layer: Any, call: Call, choose: Callable[[int], np.ndarray]) -> Any:
    """The output before every step, in the order the layer takes the steps."""
    outputs = _sequence(layer, call)
    state = call.kwargs.get("initial_state", call.args[1] if len(call.args) > 1 else None)
    first = keras.ops.zeros_like(outputs[:, :1])
    if state is not None:
        first = keras.ops.cast(keras.tree.flatten(state)[0], outputs.dtype)[:, None]
    mask = _mask(call)
    if mask is not None and layer.go_backwards:
        mask = keras.ops.flip(mask, axis=1)
    past = keras.ops.concatenate([first, outputs[:, :-1]], axis=1)
    return _steps(past, mask, choose)


def _sequence(layer: Any, call: Call) -> Any:
    """The outputs of all steps, for which the layer is run again."""
    kept = layer.return_sequences, layer.return_state, layer.zero_output_for_mask
    try:
        layer.return_sequences, layer.return_state, layer.zero_output_for_mask = True, False, False
        return call.function(*call.args, **call.kwargs)
    finally:
        layer.return_sequences, layer.return_state, layer.zero_output_for_mask = kept


def _mask(call: Call) -> Any:
    mask = call.kwargs.get("mask")
    return mask[0] if isinstance(mask, list | tuple) else mask


def _steps(tensor: Any, mask: Any, choose: Callable[[int], np.ndarray]) -> Any:
    """Some of (n, steps, features) as (1, m, features); masked steps left out."""
    flat = keras.ops.reshape(tensor, (-1, tensor.shape[-1]))
    live = np.arange(flat.shape[0])
    if mask is not None:
        live = np.flatnonzero(keras.ops.convert_to_numpy(mask).reshape(-1))
    return keras.ops.take(flat, live[choose(len(live))], axis=0)[None]
