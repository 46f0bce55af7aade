"""What an optimizer keeps for each entry of a weight, and whether entries go their own ways."""

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
)
"""Their update of an entry depends on nothing but the entry, its gradient and its slots."""


def entries_are_apart(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> bool:
    """Whether what becomes of one entry of a weight surely has no part in another's update.

    The gradient of a pruned weight then needs no mask: whatever it does, it does to that weight
    alone, which is zeroed after the step. Not so for an update that mixes entries (Muon) or
    scales by a norm (Lamb, clipping), for a constraint, and for classes that are not known.
    """
    is_keras = type(optimizer).__module__.startswith("keras.")  # on torch, subclasses of these
    by_entry = is_keras and isinstance(optimizer, ENTRY_BY_ENTRY)
    by_norm = optimizer.clipnorm is not None or optimizer.global_clipnorm is not None
    constrained = any(variable.constraint is not None for variable in variables)
    return by_entry and not by_norm and not constrained


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
