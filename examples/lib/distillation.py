"""A network's dense self as its teacher while it is pruned.

The pruned network learns from the labels and from what the dense one answers, which says more
about a sample than its label does (Hinton et al. 2015, arXiv:1503.02531; for gradual pruning,
Kurtic and Alistarh 2022, arXiv:2210.06384). The teacher costs a forward pass per step, and is not
kept.
"""

import keras
from keras import ops


class WithTeacher(keras.Model):
    """A network to train with labels and a teacher; `student` is what is left of it.

    It compiles like the network itself, with the same loss.

    Args:
        student: the network to prune.
        teacher: the same network with its dense weights; frozen here.
        logits: what both answer with: logits, or probabilities.
        temperature: by which logits are divided before they are compared.
        labels: the share of the labels in the loss, in [0, 1]; the rest is the teacher's.
    """

    def __init__(self, student, teacher, *, logits, temperature=3.0, labels=0.5):
        super().__init__(name="with_teacher")
        teacher.trainable = False
        self.student, self.teacher = student, teacher
        self.logits, self.temperature, self.labels = logits, temperature, labels

    def call(self, inputs, training=None):
        """What the student answers."""
        return self.student(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The student's own loss, and how far its softened answers are from the teacher's."""
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        softened = [self._softened(answer) for answer in (self.teacher(x, training=False), y_pred)]
        divergence = ops.mean(keras.losses.kl_divergence(*softened)) * self.temperature**2
        return self.labels * own + (1 - self.labels) * divergence

    def _softened(self, answer):
        """Probabilities at the temperature; a single sigmoid stands for two classes."""
        if self.logits:
            return ops.softmax(answer / self.temperature)
        if answer.shape[-1] == 1:
            answer = ops.concatenate([1 - answer, answer], axis=-1)
        # Logarithms of probabilities are logits, up to what the softmax takes away again.
        logits = ops.log(ops.clip(answer, keras.config.epsilon(), 1.0))
        return ops.softmax(logits / self.temperature)


def with_teacher(model, teacher, recipe):
    """What to train in place of a recipe's `model`.

    A loss given by its name means that the networks answer with probabilities, as such losses of
    Keras expect; any other, that they answer with logits.
    """
    return WithTeacher(model, teacher, logits=not isinstance(recipe.loss, str))
