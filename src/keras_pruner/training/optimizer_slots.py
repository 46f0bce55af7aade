"""Slots: the values, such as momenta, that an optimizer keeps for each entry of a weight."""

from collections.abc import Sequence

import keras

ELEMENTWISE = (
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


def updates_elementwise(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> bool:
    """Whether an optimizer updates each entry of a weight independently of the others.

    The gradient of a pruned weight then needs no mask: it changes that weight alone, which is
    zeroed after the step. False for an update that mixes entries (Muon) or scales by a norm
    (Lamb, clipping), with a constraint, and for classes that are not listed in `ELEMENTWISE`.

    Args:
        optimizer: an optimizer of Keras.
        variables: the variables with masks.
    """
    # On PyTorch, Keras' optimizers are subclasses of those listed; a user's may do anything.
    is_keras = type(optimizer).__module__.startswith("keras.")
    is_listed = is_keras and isinstance(optimizer, ELEMENTWISE)
    clips_by_norm = optimizer.clipnorm is not None or optimizer.global_clipnorm is not None
    is_constrained = any(variable.constraint is not None for variable in variables)
    return is_listed and not clips_by_norm and not is_constrained


def slots_of(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> list[list[keras.Variable]]:
    """The slots of each of `variables`: the optimizer's variables of the same shape and name.

    Keras names a slot after its variable: `{path with underscores}_{slot}`. Where several names
    fit, the longest counts. Variables of the same name get the slots of that name in turn.
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
