"""The side of a recipe that runs on Keras 3: dense, pruned, distilled; and the measuring."""

import dataclasses
import datetime
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_pruner as kp
from lib import recipe as recipes

# As on TFMOT's side: Keras 2 compiles without XLA.
JIT = False if keras.backend.backend() == "tensorflow" else "auto"


class Batches(keras.utils.PyDataset):
    """The batches of a training in their order, as one epoch."""

    def __init__(self, train, order):
        super().__init__()
        self.train, self.order = train, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, step):
        return self.train.take(self.order[step])


@dataclasses.dataclass(frozen=True)
class Side:
    """One seed of a recipe.

    Attributes:
        recipe: what to train.
        seed: of the first weights, and of the order of the data.
        start: the file of the dense weights.
        options: of the command.
    """

    recipe: recipes.Recipe
    seed: int
    start: Path
    options: Any

    def __post_init__(self):
        object.__setattr__(self, "data", self.recipe.data(self.seed))

    def fit(self, model, first, *callbacks):
        """Train in place, either the first part of the training or the second; seconds, steps."""
        budget = self.recipe.budget
        epochs = budget.dense_epochs if first else budget.pruning_epochs
        seed = self.seed + (1000 if first else 2000)
        order = recipes.order(seed, len(self.data.train), budget, epochs)
        rate = keras.optimizers.schedules.CosineDecay(
            budget.dense_rate if first else budget.pruning_rate, len(order)
        )
        loss = self.recipe.loss_of(keras)
        model.compile(self.recipe.optimizer(keras, rate), loss, jit_compile=JIT)
        begun = time.perf_counter()
        batches = Batches(self.data.train, order)
        model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=list(callbacks))
        return time.perf_counter() - begun, len(order)

    def fresh(self):
        """The network with the weights of its seed."""
        keras.utils.set_random_seed(self.seed)
        model = self.recipe.build(keras, self.data)
        model.compile(jit_compile=JIT)  # for the score, where nothing is trained
        return model

    def dense(self):
        """Train the network, unless its weights are there already."""
        model = self.fresh()
        if self.start.exists():
            model.set_weights(read_weights(self.start))
            return self.measured(model, None)
        trained = self.recipe.budget.dense_epochs > 0  # else it was built with its weights
        spent = self.fit(model, True) if trained else (0.0, 1)
        self.start.parent.mkdir(parents=True, exist_ok=True)
        write_weights(self.start, model.get_weights())
        return self.measured(model, spent)

    def started(self):
        """The network with the dense weights; they are made again if they were not kept."""
        if not self.start.exists():
            self.dense()
        model = self.fresh()
        model.set_weights(read_weights(self.start))
        return model

    def longer(self):
        """Train on without pruning."""
        model = self.started()
        return self.measured(model, self.fit(model, False))

    def pruned(self, method, target):
        """Prune while training on; "distilled" with the dense network as teacher."""
        model = self.started()
        begun = time.perf_counter()
        callback = self.pruning(model, target)
        before = time.perf_counter() - begun
        trained = model
        if method == "distilled":
            from lib import distillation

            trained = distillation.with_teacher(model, self.started(), self.recipe)
        seconds, steps = self.fit(trained, False, callback)
        return self.measured(model, (before + seconds, steps))

    def pruning(self, model, target):
        """The callback that prunes, or that keeps what is pruned at once."""
        alone = self.recipe.leaves_alone
        chosen = {"pattern": pattern(target)}
        # A teacher is frozen.
        chosen["filters"] = lambda layer: layer.trainable and not alone(layer.name)
        if target.pattern != "2:4":
            chosen["allocation"] = self.options.allocation
        sparsity = None if target.pattern == "2:4" else target.sparsity
        if self.options.start == "gradual":
            return kp.GradualPruning(self.schedule(sparsity), **chosen)
        rows = np.random.default_rng(self.seed).permutation(len(self.data.train))[:512]
        x, _ = self.data.train.take(np.sort(rows))
        calibration = kp.oneshot.Calibration(x, progress=False)
        kp.prune(model, sparsity, calibration=calibration, **chosen)
        return kp.KeepZeros()

    def schedule(self, sparsity):
        """When the zeros of a gradual pruning come; at once where the pattern says how many."""
        if sparsity is None:
            return None
        budget = self.recipe.budget
        steps = len(recipes.order(0, len(self.data.train), budget, budget.pruning_epochs))
        return kp.PolynomialDecay(sparsity, end_step=round(self.options.prune_until * steps))

    def measured_with(self, weights, spent):
        """The figures of weights that were trained elsewhere."""
        model = self.fresh()
        shapes = [w.shape for w in model.get_weights()], [w.shape for w in weights]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "The weights that came back are not those of this network. "
                f"Received shapes {shapes[1]}, and it has {shapes[0]}."
            )
        model.set_weights(weights)
        return self.measured(model, spent) | {"backend": "tensorflow"}

    def measured(self, model, spent):
        """What is stored of a network. `spent`: seconds and steps, or None if nobody knows.

        The network is left with its weights rounded to float16.
        """
        seconds, steps = spent or (None, None)
        scores, zeros = self.recipe.scores(model, self.data), kp.summarize(model).prunable.sparsity
        with tempfile.TemporaryDirectory() as folder:
            half = Path(folder, "half.keras")
            packed = kp.save_compressed(model, Path(folder, "packed.keras")).size
            halved = kp.save_compressed(model, half, weights="float16").size
            plain = kp.save_compressed(model, Path(folder, "plain.keras"), compression=None).size
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                model.load_weights(half)
        return {
            **scores,
            "score, float16": self.recipe.scores(model, self.data)["score"],
            "zeros": zeros,
            "weights": model.count_params(),
            "bytes": packed,
            "bytes, float16": halved,
            "bytes, plain": plain,
            "seconds": seconds and round(seconds, 2),
            "seconds per step": seconds and round(seconds / steps, 5),
            "steps": steps,
            "source": self.data.source,
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "keras_pruner": kp.__version__,
            "date": datetime.date.today().isoformat(),
        }


def pattern(target):
    """The library's value for a pattern's name."""
    found = {"unstructured": kp.Unstructured(), "2:4": kp.NM(2, 4), "4x1": kp.Block((4, 1))}
    return found[target.pattern]


def write_weights(path, weights):
    """Keep weights in a file, whole or not at all."""
    part = path.with_suffix(".part.npz")
    np.savez(part, *weights)
    part.replace(path)


def read_weights(path):
    """What `write_weights` kept."""
    with np.load(path) as saved:
        return [saved[f"arr_{i}"] for i in range(len(saved.files))]
