"""A copy of a model in which channels are zeroed and the layers that read them refitted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruner.channels.classes import Channels
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import ModelGraph, functional_form
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.distillation import Teacher
from keras_pruner.oneshot.linear_layers import Linear
from keras_pruner.oneshot.listen import Values
from keras_pruner.oneshot.outputs import dense_outputs, outputs_of, relative_error
from keras_pruner.oneshot.reconstruct import LayerwisePass, Recorder
from keras_pruner.shrink.constants import Cut
from keras_pruner.shrink.rebuild import rebuild

Announce = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class DenseCopy:
    """A copy of a model, with its channels and its outputs on samples.

    Attributes:
        model: the copy, functional; dense until `refit` is called.
        channels: the channels of the copy.
        options: what to do with the samples.
        recorder: runs the copy on the samples.
        outputs: the dense outputs for the held-out samples.
        teacher: the dense outputs to train a smaller model on; None without distillation.
        values: the dense value of every variable.
    """

    model: keras.Model
    channels: Channels
    options: Calibration
    recorder: Recorder
    outputs: list[np.ndarray]
    teacher: Teacher | None
    values: Values

    @classmethod
    def of(cls, model: keras.Model, options: Calibration) -> "DenseCopy":
        """Copy a model and run the copy on the samples."""
        form = functional_form(model)
        channels = channels_of(ModelGraph(form))
        copy = rebuild(form, channels, Cut(np.ones(channels.count, bool)))
        samples = options.read(copy)
        recorder = Recorder.of(copy, samples)
        held = dense_outputs(copy, recorder.held)
        epochs = options.distillation_epochs
        teacher = Teacher.of(copy, recorder.fit, epochs) if epochs else None
        found = _with_sizes(channels_of(ModelGraph(copy)), copy, samples.take(slice(1)).inputs)
        return cls(copy, found, options, recorder, held, teacher, Values.of(copy.variables))

    @property
    def steps(self) -> int:
        """The largest number of steps that are announced."""
        linears = [node for node in self.recorder.trace.order if isinstance(node, Linear)]
        return len(self.channels.groups) + len(linears) + self.options.distillation_epochs

    def refit(self, kept: np.ndarray, announce: Announce) -> None:
        """Zero the weights of removed channels, and refit the others, layer by layer."""
        self.values.restore()
        masks = {id(v): mask for v, mask in self._masks(kept)}
        LayerwisePass(self.recorder, self.options, masks, {}, self.values).run(announce)

    def _masks(self, kept: np.ndarray) -> Any:
        """The mask of each kernel: a weight stays if its input and its output both stay."""
        axes = self.channels.by_variable()
        kernels = {id(p.kernel): p.kernel for p in self.channels.products}
        for kernel in kernels.values():
            mask = np.ones(kernel.shape, bool)
            for axis in axes[id(kernel)]:
                along = [1] * mask.ndim
                along[axis.axis] = -1
                mask &= kept[axis.channels].reshape(along)
            yield kernel, mask

    def relative_error(self, model: keras.Model) -> float:
        """The relative error of a model's outputs on the held-out samples."""
        return relative_error(outputs_of(model, self.recorder.held), self.outputs)

    def teach(self, model: keras.Model, announce: Announce) -> float:
        """Train a smaller model on the dense outputs, if there is a teacher.

        The training is undone if it makes the outputs on held-out samples worse.

        Returns:
            The relative error of the smaller model after it.
        """
        before = self.relative_error(model)
        if self.teacher is None:
            return before
        result = self.teacher.improve(model, before, lambda: self.relative_error(model), announce)
        return min(before, result.after)


def _with_sizes(channels: Channels, model: keras.Model, sample: Any) -> Channels:
    """Count the work for inputs as large as the samples, if the model accepts several sizes."""
    if not any(None in tensor.shape[1:] for tensor in model.inputs):
        return channels
    shapes = [np.shape(leaf)[1:] for leaf in keras.tree.flatten(sample)]
    inputs = [
        keras.Input(shape, dtype=tensor.dtype)
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    inputs = keras.tree.pack_sequence_as(model._inputs_struct, inputs)
    sized = channels_of(ModelGraph(model, inputs))
    same = sized.count == channels.count and len(sized.work) == len(channels.work)
    return dataclasses.replace(channels, work=sized.work) if same else channels
