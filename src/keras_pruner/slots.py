"""What an optimizer keeps for each entry of a weight, and what it does with an entry of zero."""

from collections.abc import Sequence

import keras

ENTRY_BY_ENTRY = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Lion,
    keras.optimizers.Lamb,
)
"""Their update of an entry is zero where the entry, its gradient and its slots are zero."""


def keeps_zeros(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> bool:
    """Whether an entry that is zero, with gradient and slots that are zero, surely stays zero.

    Zeroing the weights again after each step is then a pass over them for nothing. Not so for an
    update that mixes entries (Muon) or divides zero by zero (Ftrl, an epsilon of 0), for a norm
    that makes all gradients NaN when one of them is, for a constraint, and for classes that are
    not known.
    """
    by_entry = type(optimizer) in ENTRY_BY_ENTRY
    divides = getattr(optimizer, "epsilon", 1) > 0
    by_norm = optimizer.clipnorm is not None or optimizer.global_clipnorm is not None
    constrained = any(variable.constraint is not None for variable in variables)
    return by_entry and divides and not by_norm and not constrained


def slots_of(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> list[list[keras.Variable]]:
    """The optimizer's variables that belong to each of `variables`, entry by entry.

    Keras names a slot after its variable: `{path with underscores}_{slot}`. The longest name
    that fits is meant, and of variables with the same name each has the next slot in turn.
    """
    stems: dict[str, list[int]] = {}
    for i, variable in enumerate(variables):
        stems.setdefault(variable.path.replace("/", "_") + "_", []).append(i)
    by_length = sorted(stems, key=len, reverse=True)
    slots: list[list[keras.Variable]] = [[] for _ in variables]
    turns: dict[str, int] = {}
    for slot in optimizer.variables:
        stem = next((stem for stem in by_length if slot.name.startswith(stem)), None)
        if stem is None:
            continue
        turn = turns[slot.name] = turns.get(slot.name, -1) + 1
        owner = stems[stem][turn % len(stems[stem])]
        if tuple(slot.shape) == tuple(variables[owner].shape):
            slots[owner].append(slot)
    return slots
