"""The speed-up of a smaller model, measured with LiteRT on this machine."""

import tempfile
from pathlib import Path

import keras

from keras_pruner.litert.export import export_litert
from keras_pruner.litert.latency import benchmark

RUNTIME = "litert-x86"
_SECONDS = 1.0
_BATCH = 1


class Stopwatch:
    """Times smaller models against one dense model."""

    def __init__(self, dense: keras.Model, *, progress: bool) -> None:
        self._progress = progress
        self._folder = tempfile.TemporaryDirectory(prefix="keras_pruner_")
        self._dense = self._write(dense, "dense")

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def speedup(self, smaller: keras.Model) -> float:
        """The dense model's time for one sample, divided by the smaller model's time."""
        latency = benchmark(
            self._dense, self._write(smaller, "small"), batch_sizes=[_BATCH], seconds=_SECONDS
        )
        return latency.timings[0].speedup

    def _write(self, model: keras.Model, name: str) -> Path:
        path = Path(self._folder.name) / f"{name}.tflite"
        path.unlink(missing_ok=True)
        export_litert(model, path, progress=self._progress)
        return path
