"""The operations that each backend does in its own way; only this folder names a backend.

A backend is imported when it is first needed, since the others may not be installed. Every module
here has the same functions; `shared.py` holds those that several have in common.

Zeros, inside a compiled step or outside, on every replica and without communication:

- `mask_gradient(gradient, mask)`: the gradient with zeros where the mask is False; the given
  gradient may be overwritten.
- `zero_pruned(variables, masks)`: set the variables to exactly 0.0 where the masks are False.
- `masking_updates(optimizer, masks)`: a context in which the optimizer zeroes pruned weights in the
  same pass as it updates them, if that costs less than `zero_pruned`. `masks` are by the key of the
  variable. Yields the set of the keys that were updated in this way.

Masks, made where the weight lies, without moving it:

- `count_from(variable, mask, score)`, `count_equal(variable, mask, score, last)`: the counts that
  `selection.top_k.counted_cut` needs.
- `cut(variable, mask, score, last)`: set the mask to that of a `selection.top_k.Cut`, and the
  variable to exactly 0.0 where it is False.
- `keep_in_groups(variable, mask, shape, n, m)`: set the mask to that of `patterns.NM(n, m)`.

Values:

- `to_numpy(variable)`: the value as a read-only NumPy array, without a copy if possible.
- `is_in_memory(variable)`: whether NumPy can read the value without a copy.
- `is_on_cpu(tensor)`: whether a tensor is on the CPU.
- `has_value(variable)`: whether the variable has a value; JAX takes it away during a step.
- `is_readable(value)`: whether a value can be read now, and is not a symbol in a trace.
- `peek(variable)`: the numbers of a short vector, or None if reading them would wait for a step or
  for another process.

Devices and processes:

- `is_in_parts(variable)`: whether the value is sharded over several devices.
- `parts(*variables)`: the parts in this process of variables that are sharded in the same way, each
  as a tuple of NumPy arrays. No entry comes twice, here or in another process.
- `gather(variable)`: all-gather, a function that stacks one array per process along a new first
  axis; None if this process has the whole value.
- `copies(variable)`: every copy of every part in this process, as (name of the part, array).
- `gather_copies(model, rows)`: the rows of all processes that train the model, concatenated.
- `processes()`: the number of processes in the job.
- `variable_scope(model)`: a context in which new variables are placed like those of the model.

Training:

- `is_tracing()`: whether a step is being traced.
- `eagerly()`: a context in which values can be read and assigned even while a step is traced.
- `sync(model)`: update the model's variables with the values that `fit` keeps elsewhere.
- `forget_step(model)`: drop the compiled `train_step`, since the optimizer has other masks.
- `without_gradients()`: a context in which no backward pass is recorded.
- `jit_of_short_training()`: the `jit_compile` that suits a training of a minute.
- `track(optimizer, variables)`: let the backend's own checkpoints save these variables with the
  optimizer, in place of those of the last call.
- `is_own_optimizer(optimizer)`: whether this is an optimizer of the backend, as in `torch.optim`.
- `random_states()`, `set_random_states(states)`: the states of the backend's own random generators,
  by a name that is not a number.
"""

import importlib
from types import ModuleType

import keras


def current() -> ModuleType:
    """The module of the backend that Keras runs on.

    Raises:
        NotImplementedError: for a backend without training.
    """
    name = keras.backend.backend()
    if name not in ("tensorflow", "jax", "torch"):
        raise NotImplementedError(
            f"Pruning runs on TensorFlow, JAX and PyTorch. Received: KERAS_BACKEND={name!r}. "
            "Set it to one of the three before `import keras`."
        )
    return importlib.import_module(f"keras_pruner.backends.{name}")
