"""Two models side by side: what pruning cost and what it bought."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.export import export_litert
from keras_pruner.litert.latency import Latency, benchmark
from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting import html
from keras_pruner.reporting.console import show_progress
from keras_pruner.reporting.html import numbers
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.sparsity import SparsityReport, Weight, layer_chart, share, summarize
from keras_pruner.reporting.tables import Table
from keras_pruner.sizes import entropy_bytes, stored_sizes
from keras_pruner.storage import model_file
from keras_pruner.validation import one_line, shown

COLUMNS = ["", ">dense", ">pruned", ">dense / pruned"]
LAYER_COLUMNS = ["weight", ">size", ">zeros, dense", ">zeros, pruned"]
_RUNTIMES = {"native": "litert-x86", "wasm": "litert-wasm"}


@dataclasses.dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        name: of the model, or the file it is in.
        report: its zeros.
        layers: the class of each layer.
        sizes: form of storage -> bytes, as `stored_sizes` has them.
        weight_bytes: of each weight of the report, as it is in memory.
        entropy: bytes of each that a coder needs which sees no structure, from `entropy_bytes`.
        scores: loss and metrics on the same data; empty if there was none.
    """

    name: str
    report: SparsityReport
    layers: tuple[str, ...]
    sizes: Mapping[str, int]
    weight_bytes: tuple[int, ...]
    entropy: tuple[int, ...]
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Comparison(Report):
    """A dense model and a pruned one. Prints as tables.

    Attributes:
        dense: the one before.
        pruned: the one after.
        latency: of both as LiteRT files; None if it was not asked for.
    """

    dense: Side
    pruned: Side
    latency: Latency | None = None

    @property
    def same_architecture(self) -> bool:
        """Whether both have the same layers, with weights of the same shapes."""
        shapes = [[row.shape for row in side.report.weights] for side in (self.dense, self.pruned)]
        return self.dense.layers == self.pruned.layers and shapes[0] == shapes[1]

    def overall(self) -> list[tuple[str, ...]]:
        """What, dense, pruned, and how many times less; of the models as a whole."""
        a, b = self.dense, self.pruned
        stored = [form for form in a.sizes if form in b.sizes]
        return [
            *(
                (name, *(f"{s.scores[name]:.4f}" if name in s.scores else "-" for s in (a, b)), "")
                for name in {**a.scores, **b.scores}
            ),
            _sizes("weights", a.report.all.size, b.report.all.size),
            _sizes("weights that are not zero", _alive(a.report), _alive(b.report)),
            _shares("sparsity, prunable weights", a.report.prunable, b.report.prunable),
            _shares("sparsity, all weights", a.report.all, b.report.all),
            *(_sizes(f"{form}, bytes", a.sizes[form], b.sizes[form]) for form in stored),
            _sizes("entropy of the weights, bytes", sum(a.entropy), sum(b.entropy)),
            *self._milliseconds(),
        ]

    def _milliseconds(self) -> list[tuple[str, str, str, str]]:
        if self.latency is None:
            return []
        what = f"LiteRT, {self.latency.runtime}, milliseconds"
        return [
            (f"{what} (batch {t.batch_size})", f"{t.dense_ms:.3f}", f"{t.pruned_ms:.3f}",
             f"{t.speedup:.2f}")
            for t in self.latency.timings
        ]  # fmt: skip

    def by_layer(self) -> list[tuple[str, ...]]:
        """Each prunable weight: its size and its zeros in both models."""
        sides = [_kernels(side) for side in (self.dense, self.pruned)]
        if self.same_architecture:  # names may differ then
            return [_layer(*pair) for pair in zip(*(side.values() for side in sides), strict=True)]
        return [_layer(sides[0].get(p), sides[1].get(p)) for p in {**sides[0], **sides[1]}]

    def headline(self) -> str:
        """The names of both models."""
        return f"{self.dense.name} and {self.pruned.name}"

    def tables(self) -> list[Table]:
        """The models as a whole, then weight by weight."""
        rows = self.by_layer()
        sizes = [float(row[1].replace(",", "")) for row in rows]
        return [
            Table("", COLUMNS, self.overall()),
            Table("Layer by layer", LAYER_COLUMNS, rows, importance=sizes),
        ]

    def notes(self) -> list[str]:
        """Reasons for caution."""
        found = []
        if not self.same_architecture:
            found.append("They are not of the same architecture.")
        prunable = [f"{side.report.prunable.size:,}" for side in (self.dense, self.pruned)]
        if prunable[0] != prunable[1]:
            found.append(
                f"Prunable weights: {' and '.join(prunable)}. Quantized ones are not among "
                "them: kp.quantization.zero_masks(model) counts their zeros."
            )
        return [*found, _ENTROPY]

    def charts(self) -> list[str]:
        """Sizes, zeros by layer, and latency if it was measured."""
        a, b = self.dense, self.pruned
        sizes = [(f, a.sizes[f] / 1e6, b.sizes[f] / 1e6) for f in a.sizes if f in b.sizes]
        sides = ("dense", "pruned")
        drawn = [html.pairs("Size", "megabytes", sides, sizes), *layer_chart(b.report.weights)]
        if self.latency is not None:
            times = [(f"batch {t.batch_size}", t.dense_ms, t.pruned_ms)
                     for t in self.latency.timings]  # fmt: skip
            title = f"Latency in LiteRT, {self.latency.runtime}"
            drawn.append(html.pairs(title, "milliseconds", sides, times))
        return drawn


_ENTROPY = (
    "Entropy: what a coder needs that sees no structure between weights, in bytes: the mask of "
    "the zeros, sign and exponent of each other weight as often as they occur, mantissas in full. "
    "Blocks and other patterns can be coded in less, and so can mantissas that end in zeros."
)


def compare(
    dense: keras.Model | str | os.PathLike[str],
    pruned: keras.Model | str | os.PathLike[str],
    *,
    data: Any = None,
    names: Sequence[str] | None = None,
    litert: bool = False,
    latency: str | None = None,
    seconds: float = 3.0,
    node_modules: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Put a dense and a pruned model side by side: accuracy, zeros, bytes, and time if asked.

    Args:
        dense: the model before pruning, or its file.
        pruned: the model after it, or its file.
        data: what loss and metrics are measured on: a pair (x, y), or a dataset that `evaluate`
            takes and that can be read twice. A model that is not compiled is judged by loss and
            metrics of the other.
        names: what both are called. None: as the models or files are.
        litert: also convert both to LiteRT, for the sizes of those files.
        latency: "native" or "wasm": also convert both to LiteRT and time them in turns, at
            batch 1, as `benchmark` does. None: nothing is timed.
        seconds: to measure latency.
        node_modules: as for `benchmark`, for latency="wasm".
        progress: whether to say what is being done, if there is a terminal to say it on.

    Returns:
        All of it as data that prints as tables; `to_html` makes a page.

    Raises:
        ValueError: for wrong arguments, or data where neither model is compiled, or only one and
            its loss and metrics do not do for the other.
        FileError: if a file cannot be loaded.
        ImportError: without the extras that `litert` and `latency` need.
        RuntimeError: if a model cannot be converted.
    """
    if latency not in (None, *_RUNTIMES):
        raise ValueError(
            f'`latency` must be None, "native" or "wasm". Received: latency={latency!r}.'
        )
    if (isinstance(data, tuple | list) and len(data) != 2) or _is_array_or_dict(data):
        raise ValueError(
            "`data` must be a pair of inputs and labels, or a dataset of batches of both. "
            f"Received: data={shown(data)}. Pass data=(x, y)."
        )
    if isinstance(data, Iterator):
        raise ValueError(
            "`data` is read twice, once for each model, and this can be read only once. Received: "
            f"data={shown(data)}. Pass arrays, data=(x, y), or a dataset."
        )
    if isinstance(data, tuple | list) and any(map(_is_empty, keras.tree.flatten(data[0]))):
        raise ValueError("`data` holds no samples to measure on. Received: data=(x, y), x empty.")
    if names is not None and len(names) != 2:
        raise ValueError(
            f"`names` must be two, for the dense and the pruned model. Received: names={names!r}."
        )
    if not seconds > 0:
        raise ValueError(f"`seconds` must be more than 0. Received: seconds={seconds!r}.")
    if node_modules is not None and latency != "wasm":
        raise ValueError(
            f'`node_modules` is for latency="wasm". Received: latency={latency!r}. Leave it out.'
        )
    with show_progress("comparing", shown=progress) as announce:
        announce("loading")
        given = (dense, pruned)
        models = [_loaded(one, compile=data is not None) for one in given]
        names = names or [_name(one) for one in given]
        announce("evaluating")
        scores = [{}, {}] if data is None else _scores(models, data)
        runtime = _RUNTIMES.get(latency or "", "litert-x86")
        sides = []
        for model, name, score in zip(models, names, scores, strict=True):
            announce(f"measuring {name}")
            sizes = stored_sizes(model, litert=litert, runtime=runtime)
            sides.append(_side(model, name, sizes, score))
        measured = None
        if latency is not None:
            announce("timing")
            measured = _latency(models, latency, seconds, node_modules)
    return Comparison(sides[0], sides[1], measured)


def _is_array_or_dict(data: Any) -> bool:
    return isinstance(data, dict) or hasattr(data, "shape")


def _is_empty(inputs: Any) -> bool:
    return 0 in tuple(getattr(inputs, "shape", ()))[:1]


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str | os.PathLike) else model.name


def _loaded(model: Any, *, compile: bool) -> keras.Model:
    if isinstance(model, str | os.PathLike):
        return model_file.load(Path(model), compile=compile)
    check_model(model)
    return model


def _scores(models: Sequence[keras.Model], data: Any) -> list[dict[str, float]]:
    """Loss and metrics of each; a model without any is judged by those of the other."""
    judge = next((model for model in models if getattr(model, "compiled", False)), None)
    if judge is None:
        raise ValueError(
            "Neither model is compiled, so that there is no telling what to measure on `data`. "
            "Compile the dense one with its loss and metrics (and save it again)."
        )
    arguments = tuple(data) if isinstance(data, tuple | list) else (data,)
    found = []
    for model in models:
        try:
            judged = model if model.compiled else _Judged(model, judge)
            scores = judged.evaluate(*arguments, verbose=0, return_dict=True)
        except Exception as error:  # a backend raises classes of its own
            problem = f"Loss and metrics of {model.name!r} cannot be measured on `data`. Pass what"
            problem += " its own `evaluate` takes, and labels that its loss knows."
            if not model.compiled:
                problem = f"{model.name!r} is not compiled, and loss and metrics of {judge.name!r}"
                problem += " do not do for it. Compile both."
            raise ValueError(f"{problem} Keras said: {one_line(error)}") from error
        found.append({key: x for name in scores for key, x in numbers(name, scores[name])})
    return found


class _Judged(keras.Model):
    """A model that is compiled around one that is not, and stays so.

    Args:
        model: the one inside.
        judge: a compiled model; its loss and new metrics like its own are taken.
    """

    def __init__(self, model: keras.Model, judge: keras.Model) -> None:
        super().__init__(name="judged")
        self._inner = model
        mine, names = (getattr(m, "output_names", None) for m in (model, judge))
        if names is not None:  # of dicts of losses and metrics, and in the names of the scores
            self.output_names = mine if set(mine or ()) == set(names) else names
        # Not through `get_compile_config`: that needs registered functions.
        given = judge._compile_config.config
        own = {
            name: keras.tree.map_structure(_like, given[name])
            for name in ("metrics", "weighted_metrics")
        }
        same = ("loss", "loss_weights", "run_eagerly", "jit_compile")
        self.compile(**{name: given[name] for name in same}, **own)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model inside computes."""
        return self._inner(*args, **kwargs)


def _like(metric: Any) -> Any:
    """A metric of its own state."""
    if isinstance(metric, keras.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _side(
    model: keras.Model, name: str, sizes: Mapping[str, int], scores: Mapping[str, float]
) -> Side:
    weights = [keras.ops.convert_to_numpy(owned.variable.value) for owned in weights_of(model)]
    return Side(
        name=name,
        report=summarize(model),
        layers=tuple(type(layer).__name__ for layer in model._flatten_layers()),
        sizes=sizes,
        weight_bytes=tuple(np.asarray(weight).nbytes for weight in weights),
        entropy=tuple(round(entropy_bytes(np.asarray(weight))) for weight in weights),
        scores=scores,
    )


def _latency(
    models: Sequence[keras.Model],
    runtime: str,
    seconds: float,
    node_modules: str | os.PathLike[str] | None,
) -> Latency:
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, f"{side}.tflite") for side in ("dense", "pruned")]
        for model, path in zip(models, paths, strict=True):
            export_litert(model, path, runtime=_RUNTIMES[runtime], progress=False)
        return benchmark(
            paths[0], paths[1], runtime=runtime, seconds=seconds, node_modules=node_modules
        )


# -------------------------------------------------------------------- cells of tables

_Kernel = tuple[Weight, int, int]  # a weight, its bytes and the bytes of its entropy


def _kernels(side: Side) -> dict[str, _Kernel]:
    every = zip(side.report.weights, side.weight_bytes, side.entropy, strict=True)
    return {row.path: (row, size, entropy) for row, size, entropy in every if row.prunable}


def _layer(dense: _Kernel | None, pruned: _Kernel | None) -> tuple[str, ...]:
    either = dense or pruned
    assert either is not None
    zeros = ["-" if side is None else f"{side[0].sparsity:.4f}" for side in (dense, pruned)]
    return either[0].path, f"{either[0].size:,}", *zeros


def _alive(report: SparsityReport) -> int:
    return report.all.size - report.all.zeros


def _sizes(what: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    ratio = f"{dense / pruned:.2f}" if pruned else ""
    return what, f"{dense:,}", f"{pruned:,}", ratio


def _shares(what: str, dense: Any, pruned: Any) -> tuple[str, str, str, str]:
    return what, share(dense), share(pruned), ""
