"""The few operations that each backend does its own way; the only place that names one.

Every module here has the same functions:

- `mask_gradient(gradient, mask)`: the gradient with zeros where the mask is False; the given one
  may be overwritten.
- `zero_pruned(variables, masks)`: set the variables to exactly 0.0 where the masks are False,
  inside a compiled step or outside, on every replica, without communication.
- `masking_updates(optimizer, masks)`: a context in which the optimizer's own update of a variable
  leaves it zero where the mask of its key is False, where that costs less than `zero_pruned`; gives
  the set of the keys of variables that were updated in this way.
- `is_in_memory(variable)`: whether NumPy can look at the value where it is, without a copy.
- `is_on_cpu(tensor)`: whether the CPU computes with a tensor.
- `count_from(variable, mask, score)`, `count_equal(variable, mask, score, last)`: for
  `selection.counted_cut`, without moving the value.
- `cut(variable, mask, score, last)`: make the mask that of a `selection.Cut`, and the variable
  exactly 0.0 where it is False.
- `keep_in_groups(variable, mask, shape, n, m)`: make the mask that of `masks.Groups`, without
  moving the value.
- `is_in_parts(variable)`: whether the value lies on several devices, a part on each.
- `parts(*variables)`: of variables in the same parts, the parts that are in this process, each as
  a tuple of NumPy arrays; no entry twice, here or in another process.
- `gather(variable)`: a function that makes of an array of each process one with a first axis more,
  if a value is in several processes' parts; None if all of it is here.
- `copies(variable)`: every copy of every part in this process, as (name of the part, array).
- `gather_copies(model, rows)`: an array of each process that trains the model, one after another.
- `processes()`: how many processes know of each other.
- `to_numpy(variable)`: the value as a NumPy array, read-only, not copied where it need not be.
- `variable_scope(model)`: a context in which new variables live where the model's do.
- `eagerly()`: a context in which values can be read and assigned even while a step is traced.
- `sync(model)`: make the model's variables hold what training has made of them.
- `track(optimizer, variables)`: let the backend's own checkpoints save these variables with the
  optimizer, in place of those given before.
- `is_own_optimizer(optimizer)`: whether this is one of the backend's own, as in `torch.optim`.
- `random_states()`, `set_random_states(states)`: what the backend draws from beside the model's
  seeds, by name; names are no numbers.
- `has_value(variable)`: whether a variable still has its value, which a step may give away.
- `forget_step(model)`: drop what was compiled of the model's `train_step`, for another optimizer.
- `jit_of_short_training()`: the `jit_compile` for a training of a minute.
- `is_readable(value)`: whether a variable's value can be looked at now.
- `peek(variable)`: the numbers of a short vector, where that takes no waiting for a step and no
  word with another process; else None.
- `is_tracing()`: whether a step is being traced, so that nothing can be looked at.
- `without_gradients()`: a context in which nothing is recorded for a backward pass.
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
