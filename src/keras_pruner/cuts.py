"""Choosing what stays of a weight where the weight is: in memory, on a device, or on several."""

import functools
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.masks import Choice, Groups, Weight
from keras_pruner.plan import Target
from keras_pruner.selection import top_k
from keras_pruner.selection.top_k import Cut


def weight(target: Target, variable: keras.Variable, mask: keras.Variable) -> Weight:
    """A target as it is in training, with its variable and its mask."""
    ops = backends.current()
    reads = functools.partial(ops.to_numpy, variable), functools.partial(ops.to_numpy, mask)
    if ops.is_in_memory(variable):
        return Weight(target, *reads)
    found = functools.partial(find, variable, mask)
    if not ops.is_in_parts(variable):
        return Weight(target, *reads, found)
    parts = functools.partial(ops.parts, variable, mask)
    return Weight(target, *reads, found, parts, ops.gather(variable))


def count(which: Callable[..., np.ndarray], *variables: keras.Variable) -> int:
    """How many entries of variables in the same parts fulfil a condition, on all devices."""
    ops = backends.current()
    here = sum(int(np.count_nonzero(which(*part))) for part in ops.parts(*variables))
    gather = ops.gather(variables[0])
    return here if gather is None else int(gather(np.array([here])).sum())


def find(variable: keras.Variable, mask: keras.Variable, count: int) -> Cut:
    """The cut through a weight on any devices, of which only counts come here."""
    ops = backends.current()
    return top_k.counted_cut(
        math.prod(variable.shape),
        functools.partial(ops.count_from, variable, mask),
        functools.partial(ops.count_equal, variable, mask),
        count,
    )


def make(choice: Choice, variable: keras.Variable, mask: keras.Variable) -> None:
    """Change the mask to what was chosen, and zero what it does not keep."""
    ops = backends.current()
    if isinstance(choice, Cut):
        ops.cut(variable, mask, choice.score, choice.last)
        return
    if isinstance(choice, Groups):
        ops.keep_in_groups(variable, mask, choice.shape, choice.n, choice.m)
    else:
        mask.assign(choice)
    ops.zero_pruned([variable], [mask])
