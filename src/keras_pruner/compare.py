"""`kp.compare`: the accuracy, zeros, bytes and time of a dense and a pruned model."""

import contextlib
import dataclasses
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner import channels, model_file
from keras_pruner.litert import interpreter
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.latency import Latency, benchmark
from keras_pruner.model_weights import check_model
from keras_pruner.reporting import html
from keras_pruner.reporting.console import show_progress
from keras_pruner.reporting.html import numbers
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.sparsity import SparsityReport, Weight, bar, share, summarize
from keras_pruner.reporting.tables import Table
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import save_sparse
from keras_pruner.validation import one_line, shown

PLAIN, COMPRESSED = "plain .keras", "save_compressed"
_FORMS: Mapping[str, dict[str, Any]] = {  # -> the arguments of `save_compressed`
    PLAIN: {"compression": None},
    COMPRESSED: {},
    "save_compressed, float16": {"weights": "float16"},
    "save_compressed, float8": {"weights": "float8"},
    "save_compressed, shared": {"weights": "shared"},
}
_ZEROS_ARE_BYTES = "A plain file stores every zero; a compressed one is as small as what is left."


@dataclasses.dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        name: the name of the model or of its file.
        report: its zeros.
        layers: the class of each layer.
        sizes: kind of file -> bytes.
        scores: loss and metrics on the data; empty without data.
        file_scores: kind of file -> loss and metrics of the model read back from it. A kind is
            missing without data, for a file that Keras cannot load without classes of its own,
            and for LiteRT models with several inputs or outputs.
        macs: multiply-accumulates of one sample; None if both models have the same number of
            weights, or if they cannot be counted.
    """

    name: str
    report: SparsityReport
    layers: tuple[str, ...]
    sizes: Mapping[str, int]
    scores: Mapping[str, float]
    file_scores: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    macs: int | None = None

    @property
    def nonzero(self) -> int:
        """The number of weights that are not zero."""
        return self.report.all.size - self.report.all.zeros


@dataclasses.dataclass(frozen=True)
class Comparison(Report):
    """A dense model beside a pruned one; what `kp.compare` returns.

    Attributes:
        dense: the model before pruning.
        pruned: the model after pruning.
        latency: the time of both as LiteRT files; None if it was not measured.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)], name="dense")
        >>> report = kp.prune(model, 0.5, copy=True)
        >>> comparison = kp.compare(model, report.model, progress=False)
        >>> comparison.same_architecture, comparison.pruned.report.prunable.sparsity
        (True, 0.5)
    """

    dense: Side
    pruned: Side
    latency: Latency | None = None

    @property
    def same_architecture(self) -> bool:
        """Whether both have the same layers, with weights of the same shapes."""
        shapes = [[w.shape for w in side.report.weights] for side in self._sides]
        return self.dense.layers == self.pruned.layers and shapes[0] == shapes[1]

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.dense, self.pruned

    def headline(self) -> str:
        """The gain in file size and the change of the first metric."""
        found = []
        if ratio := self._smaller():
            found.append(f"{ratio:.1f}x smaller file")
        if self.latency is not None:
            found.append(f"{self.latency.timings[0].speedup:.2f}x faster")
        if name := self._metric():
            scores = [side.scores[name] for side in self._sides]
            found.append(f"{name} {scores[1]:.4f} (dense {scores[0]:.4f})")
        title = f"{self.pruned.name} against {self.dense.name}"
        return f"{title}: {', '.join(found)}" if found else title

    def tables(self) -> list[Table]:
        """The models as a whole, their files, then weight by weight."""
        pairs = self._pairs()
        layers = [_layer(*pair) for pair in pairs]
        sides = [">dense", ">pruned"]
        return [
            Table("", ["", *sides, ">dense / pruned"], self._overall()),
            self._files(),
            Table("channels removed", ["weight", *sides], list(self._narrower())),
            Table(
                "layer by layer",
                ["weight", ">size", ">zeros, dense", ">zeros, pruned"],
                layers,
                importance=[(pruned or dense).size for dense, pruned in pairs],  # type: ignore[union-attr]
                bars=[_bar(*pair) for pair in pairs],
            ),
        ]

    def _files(self) -> Table:
        """The size of each kind of file, with the metric of the pruned model read back from it."""
        a, b = self._sides
        name = self._metric() if b.file_scores else ""
        rows = []
        for form in (form for form in a.sizes if form in b.sizes):
            before = a.sizes.get(PLAIN, a.sizes[form])
            row = [
                *_counts(form, a.sizes[form], b.sizes[form])[:3],
                f"{before / b.sizes[form]:.2f}",
            ]
            score = b.file_scores.get(form, {}).get(name)
            rows.append([*row, *(["-" if score is None else f"{score:.4f}"] if name else [])])
        against = "plain dense / pruned" if PLAIN in a.sizes else "dense / pruned"
        heads = [
            "bytes",
            ">dense",
            ">pruned",
            f">{against}",
            *([f">{name}, pruned"] if name else []),
        ]
        return Table("files", heads, rows)

    def notes(self) -> list[str]:
        """Differences between the models that make the comparison unfair."""
        found, narrower = [], len(list(self._narrower()))
        if not self.same_architecture:
            found.append(
                f"Channels were removed: {narrower} weights have a smaller shape."
                if narrower and self.dense.layers == self.pruned.layers
                else "The models do not have the same architecture."
            )
        sizes = [side.report.prunable.size for side in self._sides]
        if sizes[0] != sizes[1] and not narrower:
            found.append(
                f"The models have {sizes[0]:,} and {sizes[1]:,} prunable weights. Quantized "
                "weights do not count as prunable: kp.quantization.zero_masks(model) finds "
                "their zeros."
            )
        return found

    def charts(self) -> list[str]:
        """Bars for sizes and latency, and the mask of the largest weight."""
        a, b = self._sides
        sizes = [(form, a.sizes[form], b.sizes[form]) for form in a.sizes if form in b.sizes]
        unit, scale = ("megabytes", 1e6) if sizes[0][1] >= 1e6 else ("kilobytes", 1e3)
        scaled = [(form, before / scale, after / scale) for form, before, after in sizes]
        names = ("dense", "pruned")
        drawn = [html.pairs("Size of the files", unit, names, scaled, _ZEROS_ARE_BYTES)]
        if self.latency is not None:
            times = [
                (f"batch {t.batch_size}", t.dense_ms, t.pruned_ms) for t in self.latency.timings
            ]
            title = f"Time of an inference, LiteRT, {self.latency.runtime}"
            drawn.append(html.pairs(title, "milliseconds", names, times))
        return [*drawn, b.report.picture]

    def next_steps(self) -> Mapping[str, str]:
        """How to ship the pruned model."""
        return self.pruned.report.next_steps()

    def figures(self) -> list[tuple[str, str, str]]:
        """File size, speed, accuracy and sparsity."""
        return list(self._figures())

    def _figures(self) -> Iterator[tuple[str, str, str]]:
        if ratio := self._smaller():
            a, b = self.dense.sizes[PLAIN], self.pruned.sizes[COMPRESSED]
            detail = f"{a:,} bytes plain and dense, no optimizer; {b:,} with kp.save_compressed"
            yield f"{ratio:.1f}x", "smaller file", detail
        if self.latency is not None:
            first = self.latency.timings[0]
            detail = f"{first.dense_ms:.2f} ms dense, {first.pruned_ms:.2f} ms pruned"
            yield f"{first.speedup:.2f}x", "faster", f"{detail}, batch {first.batch_size}"
        if name := self._metric():
            dense, pruned = (side.scores[name] for side in self._sides)
            yield f"{pruned:.4f}", name, f"dense model: {dense:.4f}"
        zeros, counts = self.pruned.report.prunable, self._macs()
        if counts and counts[0] > counts[1]:
            detail = f"{counts[0]:,} dense, {counts[1]:,} pruned"
            yield f"{counts[0] / counts[1]:.2f}x", "fewer multiplications", detail
            if not zeros.zeros:
                return
        yield (
            f"{zeros.sparsity:.1%}",
            "zeros",
            f"{zeros.zeros:,} of {zeros.size:,} prunable weights",
        )

    def _macs(self) -> tuple[int, int] | None:
        """The multiply-accumulates of both, if they are known."""
        a, b = self.dense.macs, self.pruned.macs
        return (a, b) if a and b else None

    def _smaller(self) -> float | None:
        """How many times smaller the best exact file is than the plain file of the dense model."""
        if PLAIN not in self.dense.sizes or COMPRESSED not in self.pruned.sizes:
            return None
        return self.dense.sizes[PLAIN] / self.pruned.sizes[COMPRESSED]

    def _metric(self) -> str:
        """The first metric that both have, or else the loss; "" without data."""
        both = [name for name in self.dense.scores if name in self.pruned.scores]
        return next((name for name in both if name != "loss"), both[0] if both else "")

    def _overall(self) -> list[tuple[str, ...]]:
        a, b = self._sides
        rows: list[tuple[str, ...]] = [
            (name, *(f"{s.scores[name]:.4f}" if name in s.scores else "-" for s in (a, b)), "")
            for name in {**a.scores, **b.scores}
        ]
        rows += [
            _counts("weights", a.report.all.size, b.report.all.size),
            _counts("weights that are not zero", a.nonzero, b.nonzero),
            *([_counts("multiply-accumulates", *counts)] if (counts := self._macs()) else []),
            ("sparsity, prunable weights", *(share(s.report.prunable) for s in (a, b)), ""),
            ("sparsity, all weights", *(share(s.report.all) for s in (a, b)), ""),
        ]
        if self.latency is not None:
            what = f"LiteRT, {self.latency.runtime}, milliseconds"
            rows += [
                (
                    f"{what} (batch {t.batch_size})",
                    f"{t.dense_ms:.3f}",
                    f"{t.pruned_ms:.3f}",
                    f"{t.speedup:.2f}",
                )
                for t in self.latency.timings
            ]
        return rows

    def _narrower(self) -> Iterator[tuple[str, ...]]:
        """The shapes of weights that have fewer channels in the pruned model."""
        for dense, pruned in self._pairs():
            if dense and pruned and len(dense.shape) == len(pruned.shape):
                shapes = dense.shape, pruned.shape
                if shapes[0] != shapes[1] and all(a >= b for a, b in zip(*shapes, strict=True)):
                    yield (dense.path, *(" x ".join(map(str, shape)) for shape in shapes))

    def _pairs(self) -> list[tuple[Weight | None, Weight | None]]:
        """The prunable weights of both, by position in equal architectures, else by name."""
        sides = [{w.path: w for w in s.report.weights if w.prunable} for s in self._sides]
        if self.same_architecture:  # names may differ
            return list(zip(*(side.values() for side in sides), strict=True))
        return [(sides[0].get(path), sides[1].get(path)) for path in {**sides[0], **sides[1]}]


def compare(
    dense: keras.Model | str | os.PathLike[str],
    pruned: keras.Model | str | os.PathLike[str],
    *,
    data: Any = None,
    names: Sequence[str] | None = None,
    litert: bool = False,
    latency: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare a dense model with a pruned one: accuracy, zeros, bytes, and time on request.

    Args:
        dense: the model before pruning, or its file.
        pruned: the model after pruning, or its file.
        data: the data for loss and metrics: a pair (x, y), or a dataset that `evaluate` accepts
            and that can be read twice. At least one model must be compiled; the other is
            evaluated with the same loss and metrics.
        names: the names of both models in the headline. None: those of the models or files, or
            "dense" and "pruned" if these are equal.
        litert: also convert both models to LiteRT and show the sizes of these files.
        latency: also convert both models to LiteRT and time them in turns on this machine, one
            sample at a time. For other batch sizes call `kp.litert.benchmark`.
        progress: show what is being done on standard error.

    Returns:
        A report; `to_html` writes it as a page.

    Raises:
        ValueError: for a wrong argument, for data without a compiled model, and for data that
            does not fit the loss and metrics.
        FileError: if a file cannot be loaded.
        ImportError: without the extras that `litert` and `latency` need.
        RuntimeError: if a model cannot be converted.

    Example:
        >>> import keras, keras_pruner as kp
        >>> dense = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> pruned = keras.models.clone_model(dense)
        >>> report = kp.prune(pruned, 0.75)
        >>> comparison = kp.compare(dense, pruned, progress=False)
        >>> comparison.pruned.report.prunable.sparsity
        0.75
        >>> comparison.pruned.sizes["save_compressed"] < comparison.dense.sizes["plain .keras"] / 2
        True
    """
    _check_data(data)
    if names is not None and len(names) != 2:
        raise ValueError(
            "`names` must be two names, for the dense and the pruned model. Received: "
            f"names={names!r}. Pass for example names=('dense', 'pruned')."
        )
    given = (dense, pruned)
    with show_progress("comparing", shown=progress) as announce:
        announce("loading")
        models = [_loaded(one, compile=data is not None) for one in given]
        names = names or _names(given)
        announce("evaluating")
        judge = None if data is None else _judge(models)
        scores = [_score(model, judge, data) if judge else {} for model in models]
        counts = _macs_of(models)
        sides = []
        for model, name, score, macs in zip(models, names, scores, counts, strict=True):
            announce(f"measuring {name}")
            layers = tuple(type(layer).__name__ for layer in model._flatten_layers())
            files = _files(model, litert, score, lambda one: _score(one, judge, data))
            sizes = {form: size for form, size, _ in files}
            in_files = {form: found for form, _, found in files if found}
            sides.append(Side(name, summarize(model), layers, sizes, score, in_files, macs))
        measured = None
        if latency:
            announce("timing")
            measured = _latency(models)
    return Comparison(sides[0], sides[1], measured)


def _macs_of(models: Sequence[keras.Model]) -> list[int | None]:
    """The multiply-accumulates of models of different sizes, where they can be counted."""
    if models[0].count_params() == models[1].count_params():
        return [None, None]
    with contextlib.suppress(ValueError):
        return [channels.macs(model) for model in models]
    return [None, None]


def stored_sizes(model: keras.Model, *, litert: bool = False) -> dict[str, int]:
    """Measure a model in each kind of file.

    Args:
        model: a built Keras 3 model; the files do not hold its optimizer.
        litert: also convert it to LiteRT, as float32 and int8; this takes seconds.

    Returns:
        Kind of file -> bytes. A kind that cannot hold the model is missing.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> list(stored_sizes(model))[:3]
        ['plain .keras', 'save_compressed', 'save_compressed, float16']
    """
    return {form: size for form, size, _ in _files(model, litert, {}, None)}


_File = tuple[str, int, Mapping[str, float]]  # kind, bytes, loss and metrics


def _files(
    model: keras.Model,
    litert: bool,
    scores: Mapping[str, float],
    score: Callable[[Any], Mapping[str, float]] | None,
) -> list[_File]:
    """Write a model in each kind of file; a kind that cannot hold it is left out.

    Args:
        model: the model.
        litert: also convert it to LiteRT.
        scores: those of the model; empty if none are wanted.
        score: measures another model.
    """
    found: list[_File] = []
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        for form, options in _FORMS.items():
            path = here / "model.keras"
            # A model without a config, weights above the range of the type, no SciPy.
            with contextlib.suppress(NotImplementedError, ValueError, ImportError):
                size = save_compressed(model, path, **options).size
                read = _score_of_file(path, score) if scores and "weights" in options else scores
                found.append((form, size, read))
        found.append(("save_sparse", save_sparse(model, here / "weights.safetensors"), scores))
        if litert:
            found += _litert_files(model, here, score if scores else None)
    return found


def _score_of_file(
    path: Path, score: Callable[[Any], Mapping[str, float]] | None
) -> Mapping[str, float]:
    """Loss and metrics of a file; empty if it needs a class that is not registered."""
    try:
        return score(model_file.load(path, trust=True)) if score else {}
    except model_file.FileError:
        return {}


def _litert_files(
    model: keras.Model, here: Path, score: Callable[[Any], Mapping[str, float]] | None
) -> Iterator[_File]:
    """A model as LiteRT files, float32 and int8."""
    whole = export_litert(model, here / "32.tflite", progress=False)
    # The size does not depend on how much the outputs differ.
    options: dict[str, Any] = {"weights": "int8", "tolerance": math.inf, "progress": False}
    small = export_litert(model, here / "8.tflite", **options)
    scores: list[Mapping[str, float]] = [{}, {}]
    if score and len(model.inputs) == len(model.outputs) == 1:
        scores = [score(_LiteRT(Path(file.path))) for file in (whole, small)]
    yield "export_litert", whole.size, scores[0]
    yield "export_litert, int8", small.size, scores[1]
    packed = zlib.compress(Path(small.path).read_bytes(), 9)
    yield "export_litert, int8, deflated", len(packed), scores[1]


class _LiteRT:
    """A LiteRT file with one input and one output, called like a model.

    Args:
        path: the file.
    """

    compiled, output_names = False, None

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._runner = interpreter.load(path)
        signature = next(iter(self._runner.get_signature_list().values()))
        (self._input,) = signature["inputs"]

    def __call__(self, x: Any, **_: Any) -> Any:
        """The outputs, computed one sample at a time."""
        rows = keras.ops.convert_to_numpy(x)[:, None]
        found = [interpreter.run(self._runner, {self._input: row})[0] for row in rows]
        return keras.ops.convert_to_tensor(np.concatenate(found))


def _check_data(data: Any) -> None:
    pair = isinstance(data, tuple | list)
    if (pair and len(data) != 2) or isinstance(data, dict) or hasattr(data, "shape"):
        raise ValueError(
            "`data` must be a pair of inputs and labels, or a dataset of batches of both. "
            f"Received: data={shown(data)}. Pass data=(x, y)."
        )
    if isinstance(data, Iterator):
        raise ValueError(
            "`data` is read twice, once for each model, but an iterator can be read only once. "
            f"Received: data={shown(data)}. Pass arrays, data=(x, y), or a dataset."
        )
    if pair and any(map(_is_empty, keras.tree.flatten(data[0]))):
        raise ValueError(
            "`data` holds no samples to measure on. Received: data=(x, y) with an empty x. Pass "
            "the samples of a test set."
        )


def _is_empty(inputs: Any) -> bool:
    return 0 in tuple(getattr(inputs, "shape", ()))[:1]


def _names(given: Sequence[Any]) -> list[str]:
    """The names of models and files, without folders if they differ without them."""
    is_path = [isinstance(one, str | os.PathLike) for one in given]
    full = [str(one) if path else one.name for one, path in zip(given, is_path, strict=True)]
    short = [Path(name).name if path else name for name, path in zip(full, is_path, strict=True)]
    if full[0] == full[1]:
        return ["dense", "pruned"]
    return full if short[0] == short[1] else short


def _loaded(model: Any, *, compile: bool) -> keras.Model:
    if isinstance(model, str | os.PathLike):
        return model_file.load(Path(model), compile=compile)
    check_model(model)
    return model


def _judge(models: Sequence[keras.Model]) -> keras.Model:
    """The model whose loss and metrics are used for a model that is not compiled.

    Raises:
        ValueError: if none is compiled.
    """
    judge = next((model for model in models if getattr(model, "compiled", False)), None)
    if judge is None:
        raise ValueError(
            "`data` needs a loss and metrics, and neither model is compiled. Load one, call "
            "model.compile(loss=..., metrics=[...]), and pass it or save it again."
        )
    return judge


def _score(model: Any, judge: keras.Model, data: Any) -> dict[str, float]:
    """Loss and metrics of a model; if it is not compiled, those of the judge."""
    arguments = tuple(data) if isinstance(data, tuple | list) else (data,)
    try:
        judged = model if model.compiled else _Judged(model, judge)
        scores = judged.evaluate(*arguments, verbose=0, return_dict=True)
    except Exception as error:  # a backend raises classes of its own
        problem = f"Loss and metrics of {model.name!r} cannot be measured on `data`. Pass "
        problem += "inputs and labels that its own `evaluate` takes."
        if not model.compiled:
            problem = f"{model.name!r} is not compiled, and the loss and metrics of "
            problem += f"{judge.name!r} do not fit it. Compile both."
        raise ValueError(f"{problem} Keras said: {one_line(error)}") from error
    return {key: x for name in scores for key, x in numbers(name, scores[name])}


class _Judged(keras.Model):
    """A compiled wrapper around a model, which itself stays as it is.

    Args:
        model: the model to evaluate.
        judge: a compiled model; the wrapper takes its loss, and new metrics like its metrics.
    """

    def __init__(self, model: Any, judge: keras.Model) -> None:
        super().__init__(name="judged")
        self._inner = model
        mine, names = (getattr(m, "output_names", None) for m in (model, judge))
        if names is not None:  # the keys of dicts of losses and metrics
            self.output_names = mine if set(mine or ()) == set(names) else names
        # `get_compile_config` would need every function to be registered.
        given = judge._compile_config.config
        own = {
            name: keras.tree.map_structure(_like, given[name])
            for name in ("metrics", "weighted_metrics")
        }
        own |= {name: given[name] for name in ("loss", "loss_weights", "jit_compile")}
        eager = isinstance(model, _LiteRT)
        if eager:
            own["jit_compile"] = False
        self.compile(run_eagerly=eager or given["run_eagerly"], **own)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the inner model."""
        return self._inner(*args, **kwargs)


def _like(metric: Any) -> Any:
    """A new metric with the same config."""
    if isinstance(metric, keras.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _latency(models: Sequence[keras.Model]) -> Latency:
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, f"{side}.tflite") for side in ("dense", "pruned")]
        for model, path in zip(models, paths, strict=True):
            export_litert(model, path, progress=False)
        return benchmark(paths[0], paths[1])


def _bar(dense: Weight | None, pruned: Weight | None) -> list[tuple[str, float]]:
    """The entries of a weight: kept, zero, and removed with their channels."""
    removed = max(0, (dense.size if dense else 0) - (pruned.size if pruned else 0))
    return [*(bar(pruned) if pruned else []), ("removed", removed)]


def _layer(dense: Weight | None, pruned: Weight | None) -> tuple[str, ...]:
    either = dense or pruned
    assert either is not None
    zeros = ["-" if weight is None else share(weight) for weight in (dense, pruned)]
    return either.path, f"{either.size:,}", *zeros


def _counts(what: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    ratio = f"{dense / pruned:.2f}" if pruned else ""
    return what, f"{dense:,}", f"{pruned:,}", ratio
