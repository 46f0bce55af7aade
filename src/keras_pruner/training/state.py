"""The state of a pruning: masks, how far it has come, and of which plan that is; saved, loaded."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan
from keras_pruner.schedules import Schedule
from keras_pruner.training.progress import Progress
from keras_pruner.validation import shown

_NO_MASKS = {"progress", "plan", "filler"}


def save_state(wrapped: Any, store: Any) -> None:
    """Write masks, one bit a weight, progress and plan into a mapping from names to arrays."""
    progress = wrapped.progress
    said = json.dumps(_said(wrapped.masked, wrapped.plan, wrapped.schedule, progress))
    store["progress"] = np.array(progress, np.int32)
    store["plan"] = np.array(list(said.encode()), np.uint8)
    for i, each in enumerate(wrapped.masked):
        store[str(i)] = np.packbits(backends.current().to_numpy(each.mask))


def load_state(wrapped: Any, store: Any) -> Progress:
    """Read what `save_state` wrote: assign the masks, return the progress.

    A file may lack the plan: early ones do. The length of the schedule may be another, for it
    goes on with the length that it began with.

    Raises:
        ValueError: if there is no pruning state, or that of another plan or final sparsity;
            nothing is assigned.
    """
    found, masked = set(store.keys()), wrapped.masked
    if "progress" not in found:
        raise ValueError(
            "The file holds no pruning state: it was saved by a training without pruning. Load "
            "it before the pruning begins, with the optimizer it was saved with."
        )
    _check_masks({n: tuple(store[n].shape) for n in found - _NO_MASKS}, masked)
    progress = Progress(*map(int, np.asarray(store["progress"])))
    if "plan" in found:
        then = json.loads(bytes(np.asarray(store["plan"])))
        _check_plan(then, _said(masked, wrapped.plan, wrapped.schedule, progress))
    for i, each in enumerate(masked):
        bits = np.unpackbits(np.asarray(store[str(i)]), count=_size(each))
        each.mask.assign(bits.reshape(each.variable.shape).astype(bool))
    return progress


def _check_masks(found: dict[str, tuple[int, ...]], masked: Sequence[MaskedWeight]) -> None:
    expected = {str(i): (-(-_size(each) // 8),) for i, each in enumerate(masked)}
    if found == expected:
        return
    differing = [
        each.target.path for i, each in enumerate(masked) if found.get(str(i)) != expected[str(i)]
    ]
    raise ValueError(
        f"The file holds the pruning state of another plan: {len(found)} masks, where this "
        f"one has {len(expected)}; these differ: {differing}. Prune with the arguments it "
        "was saved with."
    )


def _check_plan(then: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [
        f"{name} was {shown(then.get(name))} and is {shown(now[name])}"
        for name in now
        if then.get(name) != now[name]
    ]
    if differing:
        final = then.get("final sparsity")
        example = f", as in kp.GradualPruning({final:g})" if final else ""
        raise ValueError(
            f"The file holds the state of another pruning: {'; '.join(differing)}. To go on with "
            f"it, prune with the arguments it was saved with{example}; to begin anew, do not load "
            "it (give a callback that makes backups another directory)."
        )


def _said(
    masked: Sequence[MaskedWeight], plan: Plan, schedule: Schedule, progress: Progress
) -> dict[str, Any]:
    """What the zeros hang on, as far as it has a name. Not the weights' own, which may change."""
    patterns = [_name(m.target.pattern) for m in masked]
    final = progress.restore(schedule).sparsity_at_end
    own = [m.target.sparsity for m in masked]
    return {
        "final sparsity": None if final is None else float(final),
        "pattern": patterns[0] if len(set(patterns)) == 1 else patterns,
        "sparsity of single weights": [None if s is None else float(s) for s in own],
        "allocation": _name(plan.allocation),
        "criterion": _name(plan.criterion),
    }


def _name(value: Any) -> str:
    """A function by its name, a value by its repr, the same in every process."""
    name = getattr(value, "__name__", None) or repr(value)
    return re.sub(r" at 0x[0-9a-f]+|np\.\w+\(([^()]*)\)", r"\1", name)


def _size(masked: MaskedWeight) -> int:
    return math.prod(masked.variable.shape)
