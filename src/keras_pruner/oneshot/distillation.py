"""After the refit: train what is left, without labels, to give the dense model's outputs again.

The dense model is the teacher (Hinton et al. 2015, arXiv:1503.02531), with the squared difference
of the outputs in place of softened probabilities, so that any output will do.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.oneshot.batch_norm import calls_of_norms, reestimate
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.outputs import masked_logits, outputs_of
from keras_pruner.plan import Plan
from keras_pruner.reporting.console import Announce
from keras_pruner.training.optimizer import keep_zeros

_BATCH = 64
_RATE = 3e-3
_FOR_BATCH_NORM = 1024  # samples


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """What a dense model has given, to train a pruned one by.

    Attributes:
        samples: inputs.
        outputs: the dense model's, all of them in order, shape (samples, ...) each.
        epochs: over the samples.
        plan: of the dense model: its targets keep their zeros; None: no weight is kept at zero.
    """

    samples: Samples
    outputs: list[np.ndarray]
    epochs: int
    plan: Plan | None

    def teach(self, model: keras.Model, announce: Announce) -> None:
        """Train the model in place, beside whatever it is compiled with; announce each epoch.

        Batch norms that are trained get the statistics of the samples at the end: a short
        training leaves their moving averages behind.
        """
        present = outputs_of(model, self.samples)
        pairs = list(zip(present, self.outputs, strict=True))
        wanted = [np.where(masked_logits(found, output), np.nan, output) for found, output in pairs]
        batches = _Batches(self.samples, wanted)
        rate = keras.optimizers.schedules.CosineDecay(_RATE, self.epochs * len(batches))
        backend = backends.current()
        with backend.variable_scope(model):
            student = _Student(model, [_variance(output) for output in wanted])
            optimizer: Any = keras.optimizers.Adam(rate)
            if self.plan is not None:
                optimizer = _keeping_zeros(optimizer, self.plan, student)
            student.compile(optimizer, jit_compile=backend.jit_of_short_training())
        told = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: announce(f"distillation, epoch {epoch + 1}")
        )
        student.fit(batches, epochs=self.epochs, shuffle=False, verbose=0, callbacks=[told])
        few = self.samples.take(slice(_FOR_BATCH_NORM))
        norms = calls_of_norms(model, few.batches()[0])
        reestimate(model, {norm: n for norm, n in norms.items() if n and norm.trainable}, few)


def _keeping_zeros(
    optimizer: keras.optimizers.Optimizer, plan: Plan, student: keras.Model
) -> keras.optimizers.Optimizer:
    """The optimizer, made to keep what is zero now in the targets of the plan that are trained.

    It has the variables themselves: filters and overrides are written for the paths of the model,
    which are not those of the student around it.
    """
    pairs = zip(plan.targets, plan.variables, strict=True)
    targets, variables = zip(*[pair for pair in pairs if pair[0].index is not None], strict=True)
    trained = dataclasses.replace(plan, targets=targets, variables=variables)
    keep_zeros(optimizer, trained, student.trainable_variables)
    return optimizer


class _Student(keras.Model):
    """A model in training by its outputs, beside whatever optimizer and loss it has."""

    def __init__(self, model: keras.Model, variances: list[float]) -> None:
        super().__init__(name="student", dtype=model.dtype_policy)
        self.model = model
        # What is constant says nothing.
        self._scales = [1 / variance if variance > 1e-12 else 0.0 for variance in variances]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.model(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The squared difference of each output, relative to its variance."""
        del x, sample_weight, training
        pairs = zip(keras.tree.flatten(y_pred), keras.tree.flatten(y), self._scales, strict=True)
        losses = [
            scale * keras.ops.mean(keras.ops.square(_missing(found, wanted)))
            for found, wanted, scale in pairs
        ]
        return sum(losses) / len(losses)


def _variance(wanted: np.ndarray) -> float:
    """Of what there is."""
    seen = wanted[~np.isnan(wanted)]
    return float(np.var(seen)) if seen.size else 0.0


def _missing(found: Any, wanted: Any) -> Any:
    """What the outputs lack, where anything is wanted."""
    nothing = keras.ops.isnan(wanted)
    found = keras.ops.cast(found, "float32")
    return keras.ops.where(nothing, 0.0, found) - keras.ops.where(nothing, 0.0, wanted)


class _Batches(keras.utils.PyDataset):
    """The samples with the outputs wanted, in another order in each epoch; always the same ones.

    What does not fill the last batch is left out of the epoch.
    """

    def __init__(self, samples: Samples, outputs: list[np.ndarray]) -> None:
        super().__init__()
        self._samples, self._outputs = samples, outputs
        self._size = min(samples.batch_size(_BATCH), len(samples))
        self._random = np.random.default_rng(0)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._order) // self._size

    def __getitem__(self, step: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        index = self._order[step * self._size : (step + 1) * self._size]
        inputs = keras.tree.lists_to_tuples(self._samples.take(index).inputs)  # for tf.data
        return inputs, tuple(output[index] for output in self._outputs)

    def on_epoch_end(self) -> None:
        """Shuffle."""
        self._order = self._random.permutation(len(self._samples))
