import keras
import numpy as np
import pytest
from keras import layers
from models import NormCell

import keras_pruner as kp
from keras_pruner.oneshot import Calibration, batch_norm


def images(count=160):
    rng = np.random.default_rng(0)
    return (2 + 3 * rng.normal(size=(count, 6, 6, 4))).astype("float32")


def test_statistics_become_those_of_the_inputs():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.BatchNormalization()])
    kp.oneshot.reestimate_batch_norm(model, images())
    mean, variance = (keras.ops.convert_to_numpy(v.value) for v in model.layers[0].weights[2:])
    x = images().astype(float)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-4)


def test_each_norm_sees_those_before_it_re_estimated():
    x = inputs = keras.Input((6, 6, 4))
    for _ in range(2):
        x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    model = keras.Model(inputs, x)
    kp.oneshot.reestimate_batch_norm(model, images())
    outputs = keras.ops.convert_to_numpy(model(images(), training=False)).astype(float)
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(outputs.var((0, 1, 2)), 1, atol=2e-2)


def test_a_norm_that_is_called_twice_pools_its_calls():
    norm, inputs = layers.BatchNormalization(), keras.Input((4,))
    model = keras.Model(inputs, [norm(inputs), norm(inputs * 3)])
    x = images()[:, 0, 0]
    kp.oneshot.reestimate_batch_norm(model, x)
    pooled = np.concatenate([x, 3 * x]).astype(float)
    mean = keras.ops.convert_to_numpy(norm.moving_mean.value)
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-4)
    variance = keras.ops.convert_to_numpy(norm.moving_variance.value)
    np.testing.assert_allclose(variance, pooled.var(0), rtol=1e-4)


def test_only_so_many_samples_are_used():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.BatchNormalization()])
    kp.oneshot.reestimate_batch_norm(model, Calibration(images(), samples=16))
    few = images()[np.linspace(0, 159, 16).astype(int)]
    mean = keras.ops.convert_to_numpy(model.layers[0].moving_mean.value)
    np.testing.assert_allclose(mean, few.mean((0, 1, 2)), rtol=1e-4)


def test_after_an_interruption_the_model_is_as_it_was(monkeypatch):
    parts = [layers.BatchNormalization(), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((6, 6, 4)), *parts])
    before = [np.array(w) for w in model.get_weights()]
    heard, seen = batch_norm._moments_of_inputs, []

    def interrupted(*arguments):
        seen.append(0)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return heard(*arguments)

    monkeypatch.setattr(batch_norm, "_moments_of_inputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kp.oneshot.reestimate_batch_norm(model, images())
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_that_a_run_changes_get_their_values_back():
    class Counter(layers.Layer):
        def build(self, _):
            self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs):
            self.runs.assign_add(1.0)
            return inputs

    counter = Counter()
    model = keras.Sequential([keras.Input((6, 6, 4)), counter, layers.BatchNormalization()])
    kp.oneshot.reestimate_batch_norm(model, images())
    assert float(counter.runs) == 0


def test_a_model_without_norms_says_so():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="must have BatchNormalization layers"):
        kp.oneshot.reestimate_batch_norm(model, images()[:, 0, 0])


def test_too_few_samples_are_no_samples():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="at least 16 samples"):
        kp.oneshot.reestimate_batch_norm(model, images(8))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX traces the loop")
def test_norms_in_a_traced_loop_keep_what_they_have_and_are_told():
    model = keras.Sequential(
        [keras.Input((6, 4)), layers.BatchNormalization(), layers.RNN(NormCell())]
    )
    before = [np.array(v) for v in model.layers[1].non_trainable_variables]
    with pytest.warns(UserWarning, match="not re-estimated.*traced"):
        kp.oneshot.reestimate_batch_norm(model, images()[:, 0])
    for a, b in zip(model.layers[1].non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(np.array(a), b)
    assert keras.ops.convert_to_numpy(model.layers[0].moving_mean.value).any()
