"""After the refit: train what is left, without labels, to give the dense model's outputs again.

The dense model is the teacher (Hinton et al. 2015, arXiv:1503.02531), with the squared difference
of the outputs in place of softened probabilities, so that any output will do. It is asked about
mixtures of the samples, so that a few hundred samples are not learned by heart.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.oneshot.batch_norm import calls_of_norms, reestimate
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.listen import Values, undisturbed
from keras_pruner.oneshot.mixtures import can_be_mixed, mixtures
from keras_pruner.oneshot.outputs import HUGE, masked_logits, outputs_of
from keras_pruner.oneshot.report import Distillation
from keras_pruner.plan import Plan
from keras_pruner.reporting.console import Announce
from keras_pruner.training.optimizer import keep_zeros

_BATCH = 64
_RATE = 3e-3
_FOR_BATCH_NORM = 1024  # samples
_ANSWERS_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """What a dense model has given, to train a pruned one by.

    Attributes:
        samples: inputs.
        mixed: which arrays of the samples are mixed.
        answers: the dense outputs, shape (samples, ...) each, for the first sets of mixtures.
        epochs: of training; each takes another set, or the first again after the last.
        plan: of the dense model: its targets keep their zeros; None: no weight is kept at zero.
        as_in_use: train the model as it is used, without dropout and with the statistics that
            batch norms have. Else as in any training; batch norms get new statistics.
        rate: the learning rate at the beginning.
    """

    samples: Samples
    mixed: list[bool]
    answers: list[list[np.ndarray]]
    epochs: int
    plan: Plan | None
    as_in_use: bool
    rate: float

    @classmethod
    def of(
        cls,
        model: keras.Model,
        samples: Samples,
        epochs: int,
        *,
        plan: Plan | None = None,
        as_in_use: bool = False,
        rate: float | None = None,
    ) -> "Teacher":
        """Ask the dense model, as it is now, about one set of mixtures for each epoch.

        There are fewer sets where their outputs would take more than 256 MB, and one where no
        input can be mixed.
        """
        mixed = can_be_mixed(model, samples)
        answers = [outputs_of(model, mixtures(samples, 0, mixed))]
        size = sum(output.nbytes for output in answers[0])
        sets = min(epochs, max(1, _ANSWERS_BYTES // max(1, size))) if any(mixed) else 1
        answers += [outputs_of(model, mixtures(samples, n, mixed)) for n in range(1, sets)]
        return cls(samples, mixed, answers, epochs, plan, as_in_use, rate or _RATE)

    def mixtures(self, number: int) -> Samples:
        """One of the sets."""
        return mixtures(self.samples, number, self.mixed)

    def improve(
        self,
        model: keras.Model,
        before: float,
        relative_error: Callable[[], float],
        announce: Announce,
    ) -> Distillation:
        """Teach a model, and undo it if that makes its error on held-out samples larger.

        Args:
            model: the model.
            before: its error now.
            relative_error: measures it.
            announce: called as each epoch begins.
        """
        values = Values.of(model.variables)
        with values.restored_after_error(), undisturbed(model):
            self.teach(model, announce)
        result = Distillation(self.epochs, before, relative_error())
        if not result.kept:
            values.restore()
        return result

    def teach(self, model: keras.Model, announce: Announce) -> None:
        """Train the model in place, beside whatever it is compiled with; announce each epoch.

        Batch norms that are trained get the statistics of mixtures at the end, as in training:
        its moving averages lag behind, and statistics of the samples did worse.
        """
        batches = _Batches(self)
        rate = keras.optimizers.schedules.CosineDecay(self.rate, self.epochs * len(batches))
        backend = backends.current()
        with backend.variable_scope(model):
            scales = [_variance(output) for output in self.answers[0]]
            student = _Student(model, scales, training=not self.as_in_use)
            optimizer: Any = keras.optimizers.Adam(rate)
            if self.plan is not None:
                optimizer = _keeping_zeros(optimizer, self.plan, student)
            student.compile(optimizer, jit_compile=backend.jit_of_short_training())
        told = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: announce(f"distillation, epoch {epoch + 1}")
        )
        student.fit(batches, epochs=self.epochs, shuffle=False, verbose=0, callbacks=[told])
        if self.as_in_use:
            return
        few = self.mixtures(0).take(slice(_FOR_BATCH_NORM))
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

    def __init__(self, model: keras.Model, variances: list[float], *, training: bool) -> None:
        super().__init__(name="student", dtype=model.dtype_policy)
        self.model, self._training = model, training
        # What is constant says nothing.
        self._scales = [1 / variance if variance > 1e-12 else 0.0 for variance in variances]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.model(inputs, training=bool(training) and self._training)

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
    """Of what is no masked logit."""
    seen = wanted[np.abs(wanted) < HUGE]
    return float(np.var(seen)) if seen.size else 0.0


def _missing(found: Any, wanted: Any) -> Any:
    """What the outputs lack, but for masked logits."""
    found = keras.ops.cast(found, "float32")
    masked = masked_logits(found, wanted)
    return keras.ops.where(masked, 0.0, found) - keras.ops.where(masked, 0.0, wanted)


class _Batches(keras.utils.PyDataset):
    """Mixtures with the outputs wanted, another set in each epoch; always the same ones.

    What does not fill the last batch is left out of the epoch.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self._teacher = teacher
        self._size = min(teacher.samples.batch_size(_BATCH), len(teacher.samples))
        self._random = np.random.default_rng(0)
        self._epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._order) // self._size

    def __getitem__(self, step: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        index = self._order[step * self._size : (step + 1) * self._size]
        inputs = keras.tree.lists_to_tuples(self._mixed.take(index).inputs)  # for tf.data
        return inputs, tuple(output[index] for output in self._wanted)

    def on_epoch_end(self) -> None:
        """Go on to the next set of mixtures, in an order of its own."""
        self._epoch += 1
        number = self._epoch % len(self._teacher.answers)
        self._mixed, self._wanted = self._teacher.mixtures(number), self._teacher.answers[number]
        self._order = self._random.permutation(len(self._mixed))
