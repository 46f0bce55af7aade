"""Ways to keep weights at zero in a training step, in plain TensorFlow.

    python benchmarks/zero_in_place.py

An MLP of 6.3 M weights with Adam's update written out, batch 64. In a graph each operation is a
separate pass over the weights, so zeroing after the step costs at least one more pass; XLA can zero
in the pass that subtracts the update. With --xla the whole step is compiled, and every variant
becomes part of the loop that updates the weights. No Keras, no pruning.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from interleaved import show_steps

SHAPES = [(1024, 2048), (2048, 1536), (1536, 512)]


def product(weight, update, mask):
    """An integer product of the bits."""
    weight.assign_sub(update)
    kept = tf.bitcast(weight, tf.int32) * tf.cast(mask, tf.int32)
    weight.assign(tf.bitcast(kept, tf.float32))


def select(weight, update, mask):
    """A choice between the weight and zeros of its shape."""
    weight.assign_sub(update)
    weight.assign(tf.raw_ops.Select(condition=mask, x=weight, y=tf.zeros(weight.shape)))


@tf.function(jit_compile=True)
def _zero(weight, mask):
    weight.assign(tf.where(mask, weight, 0.0))


def one_pass_more(weight, update, mask):
    """XLA, in place, after the step."""
    weight.assign_sub(update)
    _zero(weight, mask)


@tf.function(jit_compile=True)
def same_pass(weight, update, mask):
    """XLA, in place, where the update is subtracted."""
    weight.assign(tf.where(mask, weight - update, 0.0))


def dense(weight, update, mask):
    """No zeros."""
    del mask
    weight.assign_sub(update)


def training_step(write, xla):
    """A step whose updates are written in one of these ways."""
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(64, 1024)), tf.float32)
    masks = [tf.Variable(rng.random(shape) < 0.2) for shape in SHAPES]
    weights = [
        tf.Variable(tf.where(mask, tf.cast(rng.normal(size=mask.shape) / 32, tf.float32), 0))
        for mask in masks
    ]
    means, squares = ([tf.Variable(tf.zeros(shape)) for shape in SHAPES] for _ in range(2))

    @tf.function(jit_compile=xla)
    def step():
        with tf.GradientTape() as tape:
            outputs = inputs
            for weight in weights:
                outputs = tf.nn.relu(outputs @ weight)
            loss = tf.reduce_mean(outputs)
        gradients = tape.gradient(loss, weights)
        for weight, gradient, mean, square, mask in zip(
            weights, gradients, means, squares, masks, strict=True
        ):
            mean.assign_add((gradient - mean) * 0.1)
            square.assign_add((tf.square(gradient) - square) * 0.001)
            write(weight, mean * 1e-4 / (tf.sqrt(square) + 1e-7), mask)

    def turn():
        for _ in range(10):
            step()

    return turn


def main() -> None:
    def variants(options):
        ways = [product, select, same_pass]
        if not options.xla:  # there it is the same as `select`
            ways.insert(2, one_pass_more)
        return {
            "dense": training_step(dense, options.xla),
            "control": training_step(dense, options.xla),
            **{way.__doc__: training_step(way, options.xla) for way in ways},
        }

    show_steps(__doc__, variants, xla="compile the whole step with XLA")


if __name__ == "__main__":
    sys.exit(main())
