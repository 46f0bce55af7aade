"""Distillation: a network is pruned with its dense version as teacher.

The pruned network learns from the labels and from the outputs of the dense one, which say more
about a sample than its label does (Hinton et al. 2015, arXiv:1503.02531; for gradual pruning,
Kurtic and Alistarh 2022, arXiv:2210.06384). The teacher costs one forward pass per step and is
not stored.
"""

import keras
from keras import ops


class WithTeacher(keras.Model):
    """Train `student` on labels and on the outputs of `teacher`.

    Compile it like the student, with the same loss.

    Args:
        student: the network to prune.
        teacher: the same network with its dense weights; frozen here.
        logits: True if both output logits, False if probabilities.
        temperature: the number by which logits are divided before they are compared.
        labels: the weight of the labels in the loss, in [0, 1]; the rest is the teacher's.
    """

    def __init__(self, student, teacher, *, logits, temperature=3.0, labels=0.5):
        super().__init__(name="with_teacher")
        teacher.trainable = False
        self.student, self.teacher = student, teacher
        self.logits, self.temperature, self.labels = logits, temperature, labels

    def call(self, inputs, training=None):
        """The outputs of the student."""
        return self.student(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss on the labels, plus the divergence from the teacher's outputs."""
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        softened = [self._softened(answer) for answer in (self.teacher(x, training=False), y_pred)]
        divergence = ops.mean(keras.losses.kl_divergence(*softened)) * self.temperature**2
        return self.labels * own + (1 - self.labels) * divergence

    def _softened(self, answer):
        """Probabilities at the temperature; a single sigmoid is treated as two classes."""
        if self.logits:
            return ops.softmax(answer / self.temperature)
        if answer.shape[-1] == 1:
            answer = ops.concatenate([1 - answer, answer], axis=-1)
        # Logarithms of probabilities are logits up to a constant, which the softmax removes.
        logits = ops.log(ops.clip(answer, keras.config.epsilon(), 1.0))
        return ops.softmax(logits / self.temperature)


def with_teacher(model, teacher, recipe):
    """The model to train in place of a recipe's `model`.

    If the recipe names its loss by a string, the networks output probabilities, as Keras' losses
    expect by default; otherwise they output logits.
    """
    return WithTeacher(model, teacher, logits=not isinstance(recipe.loss, str))
