"""The report of `kp.shrink`."""

import dataclasses

import keras

from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels, heads or units of one or more layers, which must lose the same ones.

    Attributes:
        name: the layers that produce them.
        before: the number of channels before.
        after: the number of channels that are left.
        reason: why none can be removed; empty if they can.
    """

    name: str
    before: int
    after: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class ShrinkReport(Report):
    """A smaller model, and what was removed from it; prints as a table.

    Attributes:
        model: the smaller model: ordinary layers of the same names, not compiled.
        groups: the groups of channels, in the order of the model.
        macs: multiply-accumulates for one sample, before and after.
        weights: number of entries of all weights, before and after.
        bytes: size of all weights in bytes, before and after.
        difference: largest difference of its outputs from those of the model it was cut from,
            in units of the largest output, on random inputs. With a target, that model is the
            masked and refitted one.
        relative_error: squared difference of its outputs from the given model's on held-out
            calibration samples, relative to their variance; None without a target.
        seconds: the time it took.
        overshoot: a sentence, if the model is more than 5% smaller than requested; else empty.
        speedup: the measured speed-up, if `speedup` was the target; else None.

    Example:
        >>> import keras, keras_pruner as kp
        >>> hidden, head = (keras.layers.Dense(n, name=name) for n, name in [(4, "a"), (2, "b")])
        >>> model = keras.Sequential([keras.Input((3,)), hidden, head])
        >>> kernel, bias = head.get_weights()
        >>> head.set_weights([kernel * [[1], [0], [0], [1]], bias])
        >>> for group in kp.shrink(model).groups[1:]:
        ...     print(group.name, group.before, group.after, group.reason)
        a 4 2
        b 2 2 an output of the model
    """

    model: keras.Model = dataclasses.field(repr=False)
    groups: tuple[ChannelGroup, ...]
    macs: tuple[int, int]
    weights: tuple[int, int]
    bytes: tuple[int, int]
    difference: float
    relative_error: float | None
    seconds: float
    overshoot: str = ""
    speedup: float | None = None

    @property
    def frozen(self) -> dict[str, str]:
        """Why channels could not be removed, by the name of their group."""
        return {group.name: group.reason for group in self.groups if group.reason}

    def headline(self) -> str:
        """How much smaller the model is, and how well it agrees."""
        text = f"{self.model.name}: {_times(*self.macs)} MACs, {_times(*self.weights)} weights"
        if self.speedup is not None:
            text += f", {self.speedup:.3g} times as fast in LiteRT here"
        if self.relative_error is not None:
            text += f"; relative error on held-out samples {self.relative_error:.3g}"
        return text

    def tables(self) -> list[Table]:
        """Sizes, the groups of channels, and those left alone."""
        pairs = {"MACs": self.macs, "weights": self.weights, "bytes": self.bytes}
        sizes = [(name, f"{a:,}", f"{b:,}") for name, (a, b) in pairs.items()]
        cut = [(g.name, g.before, g.after) for g in self.groups if not g.reason]
        bars = [[("kept", after), ("removed", before - after)] for _, before, after in cut]
        left = [(g.name, g.before, g.reason) for g in self.groups if g.reason]
        return [
            Table("", ["", ">before", ">after"], sizes),
            Table("", ["channels of", ">before", ">after"], cut, bars=bars),
            Table("left alone", ["channels of", ">number", "reason"], left),
        ]

    def figures(self) -> list[tuple[str, str, str]]:
        """How many times smaller the model is, and how well it agrees."""
        shown = [
            (f"{before / max(1, after):.2f}x", f"fewer {name}", f"{before:,} before, {after:,} now")
            for name, (before, after) in (("MACs", self.macs), ("weights", self.weights))
        ]
        if self.speedup is not None:
            detail = "one sample, one thread, LiteRT on this machine"
            shown.insert(0, (f"{self.speedup:.2f}x", "as fast", detail))
        if self.relative_error is not None:
            detail = "of the outputs on held-out samples; 0 is equal, 1 is useless"
            shown.append((f"{self.relative_error:.2g}", "relative error", detail))
        return shown

    def next_steps(self) -> dict[str, str]:
        """How to prune and store what is left."""
        return {
            "Prune what is left:": "kp.prune(report.model, 0.5, calibration=x)",
            "Save it:": 'kp.save_compressed(report.model, "small.keras")',
        }

    def notes(self) -> list[str]:
        """The difference that the cut makes, and whether the model is smaller than requested."""
        exact = f"The cut changes the outputs by {self.difference:.1e} of the largest output."
        return [self.overshoot, exact] if self.overshoot else [exact]


def _times(before: int, after: int) -> str:
    return f"{before / max(1, after):.3g} times fewer" if after < before else "as many"
