"""What a user may say of single layers and weights: filters and overrides, checked and read."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_pruner.patterns import Pattern
from keras_pruner.validation import check_regex, check_sparsity, shown


def check_filters(filters: object) -> None:
    """Raise unless these are filters: regexes, or a function layer -> bool."""
    if isinstance(filters, type):
        name = filters.__name__
        if getattr(keras.layers, name, None) is filters:
            name = f"keras.layers.{name}"
        raise ValueError(
            "`filters` must be a regex, a list of them, or a function layer -> bool, not a class. "
            f"Received: filters={filters!r}. Pass `lambda layer: isinstance(layer, {name})`."
        )
    if filters is None or callable(filters):
        return
    regexes = [filters] if isinstance(filters, str) else filters
    if not isinstance(regexes, list | tuple):
        raise ValueError(
            "`filters` must be a regex, a list of them, or a function layer -> bool. "
            f"Received: filters={shown(filters)}."
        )
    for regex in regexes:
        check_regex("filters", regex)


def check_overrides(overrides: object, default: Pattern) -> None:
    """Raise unless these are overrides that go together with the default pattern."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "`overrides` must map regexes to None, a sparsity, a pattern or (sparsity, pattern). "
            f"Received: overrides={overrides!r}."
        )
    for regex, override in overrides.items():
        check_regex("overrides", regex)
        name = f"overrides[{regex!r}]"
        if override is None or isinstance(override, Pattern):
            continue
        pair = override if isinstance(override, tuple | list) else (override, default)
        if len(pair) != 2 or not isinstance(pair[1], Pattern):
            raise ValueError(
                f"`{name}` must be None, a sparsity, a pattern or (sparsity, pattern). "
                f"Received: {name}={override!r}."
            )
        sparsity, pattern = pair
        check_sparsity(name, sparsity)
        if pattern.own_sparsity is not None and not pattern.is_own(sparsity):
            raise ValueError(
                f"`{name}` gives {pattern!r} a sparsity that is not its own, "
                f"{pattern.own_sparsity:g}. Received: {sparsity!r}. Leave it out, or pass "
                "(sparsity, pattern) with another pattern."
            )


def read_override(override: Any, default: Pattern) -> tuple[float | None, Pattern]:
    """The sparsity and the pattern of a weight."""
    if isinstance(override, tuple):
        sparsity, pattern = override
    elif isinstance(override, Pattern):
        sparsity, pattern = None, override
    else:
        sparsity, pattern = override, default
    if pattern.own_sparsity is not None:
        return pattern.own_sparsity, pattern
    return None if sparsity is None else float(sparsity), pattern
