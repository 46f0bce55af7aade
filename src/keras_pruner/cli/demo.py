"""The demo: train a digit classifier, prune a copy while it trains on, compare both."""

import dataclasses
import importlib.resources
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner import model_file
from keras_pruner.callbacks.gradual_pruning import GradualPruning
from keras_pruner.compare import Comparison, compare
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.shrink.report import ShrinkReport
from keras_pruner.shrink.shrink_model import shrink

TRAIN_SAMPLES = 8000
BATCH_SIZE = 64
_UNLABELLED = 512  # digits used to choose the channels to remove
_LOSS: dict[str, Any] = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


@dataclasses.dataclass(frozen=True)
class Demo(Report):
    """The result of the demo; prints as tables.

    Attributes:
        comparison: the dense and the pruned model, trained for the same number of epochs.
        accuracy_before: test accuracy when pruning began, in [0, 1].
        history: sparsity and test accuracy after each epoch of the pruned model.
        shrunk: the dense model at half of its multiplications, without training.
        accuracy_shrunk: its test accuracy.
        seconds: duration of the demo.
        folder: holds `dense.keras`, `pruned.keras`, the test digits and `report.html`.
    """

    comparison: Comparison
    accuracy_before: float
    history: dict[str, list[float]]
    shrunk: ShrinkReport
    accuracy_shrunk: float
    seconds: float
    folder: Path

    @property
    def report(self) -> Path:
        """The page with plots."""
        return self.folder / "report.html"

    def headline(self) -> str:
        """The gain in file size and the change of accuracy."""
        return self.comparison.headline()

    def tables(self) -> Sequence[Table]:
        """The tables of the comparison."""
        return self.comparison.tables()

    def figures(self) -> Sequence[tuple[str, str, str]]:
        """The figures of the comparison."""
        return self.comparison.figures()

    def charts(self) -> Sequence[str]:
        """The charts of the comparison."""
        return self.comparison.charts()

    def notes(self) -> Sequence[str]:
        """How both models were trained, and what removing channels gave."""
        epochs = len(self.history["sparsity"])
        before, after = self.shrunk.macs
        return [
            *self.comparison.notes(),
            f"Both models were trained for {epochs} epochs. The pruned one was dense for the first "
            f"{epochs // 2} and had a test accuracy of {self.accuracy_before:.4f} when pruning "
            f"began. The demo took {self.seconds:.0f} s.",
            f"kp.shrink removed channels from the dense model, without labels: {before:,} "
            f"multiplications became {after:,}, test accuracy {self.accuracy_shrunk:.4f} "
            f"({self.folder}/shrunk.keras).",
        ]

    def _text(self, limit: int | None, width: int | None) -> str:
        """The text, with the way to the page and the command that compares the files again."""
        ways = [
            f"Page with plots: {self.report}",
            f"The same from the files: {self._command()}",
        ]
        return "\n".join([super()._text(limit, width), *ways])

    def next_steps(self) -> Mapping[str, str]:
        """How to compare the files again, and to export one."""
        exported = f"{self.folder}/pruned.keras {self.folder}/pruned.tflite"
        return {
            "Compare the files again:": self._command(),
            "Export it for phones and browsers:": f"keras-pruner export {exported}",
            "In your own script:": "model.fit(..., callbacks=[kp.GradualPruning(0.8)])",
        }

    def _command(self) -> str:
        folder = self.folder
        files = f"{folder}/dense.keras {folder}/pruned.keras --data {folder}/test.npz"
        return f"keras-pruner compare {files}"


def run(
    output: str | Path = "keras-pruner-demo",
    *,
    sparsity: float = 0.8,
    epochs: int = 4,
    seed: int = 0,
    samples: int = TRAIN_SAMPLES,
) -> Demo:
    """Train a network, then train it on twice, dense and pruned; save and compare both.

    Args:
        output: directory for the files; made if it does not exist.
        sparsity: final fraction of zeros, in [0, 1).
        epochs: epochs of dense training, and again of training each of the two models.
        seed: seed of the initial weights and of the order of the data.
        samples: number of digits to train with, at most 8,000.
    """
    begun = time.perf_counter()
    pruning = GradualPruning(sparsity)  # raises for a wrong sparsity before anything is trained
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    x, y, *test = digits(samples)
    np.savez_compressed(folder / "test.npz", x=test[0], y=test[1])
    model = network()

    def train(title: str, learning_rate: float, *callbacks: keras.callbacks.Callback) -> Any:
        model.compile(keras.optimizers.Adam(learning_rate), **_LOSS)
        progress = [*callbacks, Lines(title)]
        fit = {"batch_size": BATCH_SIZE, "epochs": epochs, "callbacks": progress, "verbose": 0}
        return model.fit(x, y, **fit, validation_data=test).history

    before = train("dense", 2e-3)
    start = model.get_weights()
    train("dense, as long", 5e-4)
    dense = _save(model, folder / "dense.keras")
    model.set_weights(start)
    after = train("pruned", 5e-4, pruning)
    pruned = _save(model, folder / "pruned.keras")
    comparison = compare(dense, pruned, data=test, progress=False)
    history = {
        "sparsity": [0.0] * epochs + after["sparsity"],
        "test accuracy": before["val_accuracy"] + after["val_accuracy"],
    }
    shrunk = shrink(dense, macs=0.5, calibration=Calibration(x[:_UNLABELLED], progress=False))
    shrunk.model.compile(keras.optimizers.SGD(), **_LOSS)
    accuracy = shrunk.model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    model_file.save(shrunk.model, folder / "shrunk.keras", overwrite=True)
    seconds = time.perf_counter() - begun
    start_accuracy = before["val_accuracy"][-1]
    result = Demo(comparison, start_accuracy, history, shrunk, accuracy, seconds, folder)
    result.to_html(result.report, history=history)
    return result


def digits(samples: int = TRAIN_SAMPLES) -> tuple[np.ndarray, ...]:
    """MNIST digits stored in the package: x, y for training, then x, y of 2,000 test digits."""
    file = importlib.resources.files("keras_pruner") / "data" / "mnist_10k.npz"
    with file.open("rb") as stream, np.load(stream) as data:
        x, y = data["x"][..., None].astype(np.float32) / 255, data["y"].astype(np.int32)
    return x[:samples], y[:samples], x[TRAIN_SAMPLES:], y[TRAIN_SAMPLES:]


def network(name: str = "digits") -> keras.Model:
    """A small convolutional network; one dense layer holds most of its weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv_1"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu", name="conv_2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ],
        name=name,
    )


class Lines(keras.callbacks.Callback):
    """One line of progress after each epoch, on standard error.

    Args:
        title: name of the model in training.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the line."""
        logs = logs or {}
        sparsity = f"  sparsity {logs['sparsity']:.3f}" if "sparsity" in logs else ""
        print(
            f"{self.title:14}  epoch {epoch + 1}/{self.params['epochs']}"
            f"  accuracy {logs['val_accuracy']:.4f}{sparsity}",
            file=sys.stderr,
            flush=True,
        )


def _save(model: keras.Model, path: Path) -> keras.Model:
    """Save the model with its loss and metrics, without Adam's state; returns the saved model."""
    saved = network(path.stem)
    saved.set_weights(model.get_weights())
    saved.compile(keras.optimizers.SGD(), **_LOSS)
    model_file.save(saved, path, overwrite=True)
    return saved
