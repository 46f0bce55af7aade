"""What `kp.shrink` did."""

import dataclasses
from typing import Any

import keras

from keras_pruner.reporting import tables


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels, heads or units that are decided on together.

    Attributes:
        name: the layers that produce them.
        before: how many there were.
        after: how many are left.
        reason: why none could be removed; empty if they could.
    """

    name: str
    before: int
    after: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class ShrinkReport:
    """A smaller model, and what was taken out of it; prints as a table.

    Attributes:
        model: the smaller model: ordinary layers of the same names, not compiled.
        groups: what was decided on together, in the order of the model.
        macs: multiply-accumulates for one sample, before and after.
        weights: entries of all weights, before and after.
        bytes: of all weights, before and after.
        difference: largest difference of its outputs from those of the model it was cut from,
            in units of the largest output, on random inputs. With a target, that model is the
            masked and refitted one.
        relative_error: squared difference of its outputs from the given model's on held-out
            calibration samples, relative to their variance; None without a target.
        seconds: how long it took.
    """

    model: keras.Model = dataclasses.field(repr=False)
    groups: tuple[ChannelGroup, ...]
    macs: tuple[int, int]
    weights: tuple[int, int]
    bytes: tuple[int, int]
    difference: float
    relative_error: float | None
    seconds: float

    @property
    def frozen(self) -> dict[str, str]:
        """Why channels could not be removed, by the name of their group."""
        return {group.name: group.reason for group in self.groups if group.reason}

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del data["model"]
        return {**data, "groups": [dataclasses.asdict(group) for group in self.groups]}

    def __str__(self) -> str:
        rows: list[tuple[object, ...]] = [
            (group.name, group.before, group.after, group.reason) for group in self.groups
        ]
        pairs = {"MACs": self.macs, "weights": self.weights, "bytes": self.bytes}
        rows += [(name, f"{a:,}", f"{b:,}", _share(a, b)) for name, (a, b) in pairs.items()]
        columns = ["channels of", ">before", ">after", "why not"]
        text = tables.render(f"shrink {self.model.name}", columns, rows)
        text += f"\noutputs of the cut differ by {self.difference:.1e}"
        if self.relative_error is not None:
            text += f"; relative error on held-out samples {self.relative_error:.3g}"
        return text


def _share(before: int, after: int) -> str:
    return f"{before / max(1, after):.2f} times fewer" if after < before else "unchanged"
