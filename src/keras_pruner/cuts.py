"""Choosing what stays of a weight where the weight is: in memory, on a device, or on several."""

import functools
import math

import keras

from keras_pruner import backends, selection
from keras_pruner.masks import Choice, Weight
from keras_pruner.plan import Target
from keras_pruner.selection import Cut


def weight(target: Target, variable: keras.Variable, mask: keras.Variable) -> Weight:
    """A target as it is in training, with its variable and its mask."""
    to_numpy = backends.current().to_numpy
    reads = functools.partial(to_numpy, variable), functools.partial(to_numpy, mask)
    here = backends.current().is_in_memory(variable)
    return Weight(target, *reads, None if here else functools.partial(find, variable, mask))


def find(variable: keras.Variable, mask: keras.Variable, count: int) -> Cut:
    """The cut through a weight on any devices, of which only counts come here."""
    ops = backends.current()
    return selection.counted_cut(
        math.prod(variable.shape),
        functools.partial(ops.count_from, variable, mask),
        functools.partial(ops.count_equal, variable, mask),
        count,
    )


def make(choice: Choice, variable: keras.Variable, mask: keras.Variable) -> None:
    """Change the mask to what was chosen."""
    if isinstance(choice, Cut):
        backends.current().cut(variable, mask, choice.score, choice.last)
    else:
        mask.assign(choice)
