"""The demo: a digit classifier is trained, pruned while it trains on, and both are compared."""

import dataclasses
import importlib.resources
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.callbacks.gradual_pruning import GradualPruning
from keras_pruner.compare import Comparison, compare
from keras_pruner.storage import model_file

TRAIN_SAMPLES = 8000
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        comparison: the dense and the pruned model, trained for the same number of epochs.
        accuracy_before: of the network when the pruning began.
        history: sparsity and accuracy on the test digits after each epoch of the pruned model.
        seconds: how long it took.
        report: the page that was written.
    """

    comparison: Comparison
    accuracy_before: float
    history: dict[str, list[float]]
    seconds: float
    report: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            **self.comparison.as_dict(),
            "accuracy_before": self.accuracy_before,
            "history": self.history,
            "seconds": self.seconds,
            "report": str(self.report),
        }


def run(
    output: str | Path = "keras-pruner-demo",
    *,
    sparsity: float = 0.8,
    epochs: int = 4,
    seed: int = 0,
    samples: int = TRAIN_SAMPLES,
) -> Demo:
    """Train a network, then go on with it twice, dense and pruned; save and compare both.

    Args:
        output: directory for `dense.keras`, `pruned.keras` and `report.html`.
        sparsity: the fraction of zeros to end with.
        epochs: before the ways part, and again on each of the two.
        seed: of the weights and of the order of the data.
        samples: how many digits to train with, of 8,000.
    """
    begun = time.perf_counter()
    pruning = GradualPruning(sparsity)  # a wrong sparsity is told before anything is trained
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    x, y, *test = digits(samples)
    model = network()

    def train(title: str, learning_rate: float, *callbacks: keras.callbacks.Callback) -> Any:
        model.compile(
            keras.optimizers.Adam(learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        progress = [*callbacks, Lines(title)]
        fit = {"batch_size": BATCH_SIZE, "epochs": epochs, "callbacks": progress, "verbose": 0}
        return model.fit(x, y, **fit, validation_data=test).history

    before = train("dense", 2e-3)
    start = model.get_weights()
    train("dense, as long", 5e-4)
    dense = _ship(model, output / "dense.keras")
    model.set_weights(start)
    after = train("pruned", 5e-4, pruning)
    pruned = _ship(model, output / "pruned.keras")
    dense.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    comparison = compare(dense, pruned, data=test, progress=False)
    history = {
        "sparsity": [0.0] * epochs + after["sparsity"],
        "test accuracy": before["val_accuracy"] + after["val_accuracy"],
    }
    report = output / "report.html"  # without matplotlib it has no plots, and says how to have them
    report.write_text(comparison.to_html(history=history), encoding="utf-8")
    seconds = time.perf_counter() - begun
    return Demo(comparison, before["val_accuracy"][-1], history, seconds, report)


def digits(samples: int = TRAIN_SAMPLES) -> tuple[np.ndarray, ...]:
    """MNIST digits from within the package: x, y to train with, and x, y of 2,000 to test."""
    file = importlib.resources.files("keras_pruner") / "data" / "mnist_10k.npz"
    with file.open("rb") as stream, np.load(stream) as data:
        x, y = data["x"][..., None].astype(np.float32) / 255, data["y"].astype(np.int32)
    return x[:samples], y[:samples], x[TRAIN_SAMPLES:], y[TRAIN_SAMPLES:]


def network(name: str = "digits") -> keras.Model:
    """A small convolutional network; most of its weights are in one dense layer."""
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
        title: what is being trained.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Say how far it is."""
        logs = logs or {}
        sparsity = f"  sparsity {logs['sparsity']:.3f}" if "sparsity" in logs else ""
        print(
            f"{self.title:14}  epoch {epoch + 1}/{self.params['epochs']}"
            f"  accuracy {logs['val_accuracy']:.4f}{sparsity}",
            file=sys.stderr,
            flush=True,
        )


def _ship(model: keras.Model, path: Path) -> keras.Model:
    """Save the model without what only training needs, and give back what was saved."""
    bare = network(path.stem)
    bare.set_weights(model.get_weights())
    model_file.save(bare, path, overwrite=True)
    return bare
