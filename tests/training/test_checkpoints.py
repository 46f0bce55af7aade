"""What else saves a training, and whether it carries the pruning state."""

import keras
import numpy as np
import pytest
from models import mlp, values

import keras_pruner as kp
from keras_pruner.training.optimizer import find

SCHEDULE = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=12, frequency=3)
OPTIONS = {"batch_size": 16, "shuffle": False, "verbose": 0}


def state(model):
    return values([*model.weights, *model.optimizer.variables])


def assert_same(states, others):
    for a, b in zip(states, others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.train is TensorFlow's")
def test_tf_train_checkpoint_carries_masks_and_count(data, tmp_path):
    import tensorflow as tf

    def steps(pruner, model, count):
        for _ in range(count):
            pruner.update()
            model.train_on_batch(*data)

    def start():
        model = mlp()
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(keras.optimizers.Adam(0.01))
        model.compile(optimizer, loss=model.loss)
        return model, pruner, tf.train.Checkpoint(model=model, optimizer=optimizer)

    whole, pruner, _ = start()
    steps(pruner, whole, 14)
    part, pruner, checkpoint = start()
    steps(pruner, part, 7)
    path = checkpoint.save(tmp_path / "checkpoint")
    resumed, pruner, checkpoint = start()
    checkpoint.restore(path).assert_existing_objects_matched()
    assert pruner.pruning.state.updated_at == 6
    steps(pruner, resumed, 7)
    assert_same(state(whole), state(resumed))
    checkpoint.restore(path)  # and once more, in the same process
    steps(pruner, resumed, 7)
    assert_same(state(whole), state(resumed))


@pytest.mark.filterwarnings("ignore:The training is too short")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_checkpoints_carry_masks_and_count(data, tmp_path):
    pytest.importorskip("orbax.checkpoint")

    def fit(model, *callbacks, **options):
        pruning = kp.GradualPruning(SCHEDULE)
        model.fit(*data, callbacks=[pruning, *callbacks], **OPTIONS, **options)
        return model

    def start():  # Orbax finds variables by name, and a second Adam would be called adam_1
        return mlp(keras.optimizers.Adam(0.01, name="adam"))

    class Load(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.load_weights(tmp_path)
            assert find(self.model).state.updated_at == 6

    whole = fit(start(), epochs=4)
    orbax = keras.callbacks.OrbaxCheckpoint(tmp_path, save_on_background=False)
    fit(start(), orbax, epochs=2)
    resumed = fit(start(), Load(), initial_epoch=2, epochs=4)
    assert_same(state(whole), state(resumed))


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_dense_files_are_refused_in_a_pruned_run(data, tmp_path):
    dense = mlp()
    dense.fit(*data, epochs=1, **OPTIONS)
    dense.save_weights(tmp_path / "trained.weights.h5")
    bare = keras.models.clone_model(dense)
    bare.save_weights(tmp_path / "bare.weights.h5")
    model = mlp()
    model.fit(*data, epochs=1, callbacks=[kp.GradualPruning(SCHEDULE)], **OPTIONS)
    for name in ("trained", "bare"):
        with pytest.raises(ValueError, match="holds no pruning state"):
            model.load_weights(tmp_path / f"{name}.weights.h5")
