"""A network's dense self as its teacher while it is pruned.

The pruned network learns from the labels and from what the dense one answers, which says more
than a label about every sample (Hinton et al. 2015, arXiv:1503.02531; for gradual pruning Kurtic
and Alistarh 2022, arXiv:2210.06384). The teacher costs a forward pass per step, and is not kept.
"""

import keras
from keras import ops


class SoftTargets(keras.distillation.LogitsDistillation):
    """`LogitsDistillation` for networks that end in softmax or sigmoid.

    The logarithms of probabilities are logits, up to a constant that softmax takes away again.
    A single sigmoid stands for two classes.
    """

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """The divergence of the softened answers."""
        logits = [self._logits(p) for p in (teacher_outputs, student_outputs)]
        return super().compute_loss(*logits, **kwargs)

    def _logits(self, probabilities):
        if probabilities.shape[-1] == 1:
            probabilities = ops.concatenate([1 - probabilities, probabilities], axis=-1)
        return ops.log(ops.clip(probabilities, keras.config.epsilon(), 1.0))


def with_teacher(model, teacher, recipe, *, temperature=3.0, labels=0.5):
    """What to train in place of `model`: the same weights, with a teacher beside them.

    Args:
        model: the network to prune.
        teacher: the same network with its dense weights; frozen here.
        recipe: of both. A loss given by its name means that the networks answer with
            probabilities, as such losses of Keras expect; any other, that they answer with logits.
        temperature: by which logits are divided before they are compared.
        labels: the share of the labels in the loss, in [0, 1]; the rest is the teacher's.
    """
    named = isinstance(recipe.loss, str)
    losses = SoftTargets if named else keras.distillation.LogitsDistillation
    # The loss by its name, which is the default, is a function: it gets logits unsoftened.
    divergence = losses(temperature=temperature, loss=keras.losses.KLDivergence())
    return keras.distillation.Distiller(
        teacher=teacher,
        student=model,
        distillation_losses=divergence,
        student_loss_weight=labels,
    )
