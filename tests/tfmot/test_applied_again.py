"""`prune_low_magnitude` applied again, and models that have lost what it was applied with."""

import keras
import numpy as np
import pytest
from models import compile_, mlp, sparsity

import keras_pruner.tfmot as tfmot
from keras_pruner.training.optimizer import find, prunings_of

S = tfmot.sparsity.keras


def constant(target, begin=1):
    return S.ConstantSparsity(target, begin, frequency=1)


def kernels_of(model):
    return [v for v in model.trainable_variables if v.name == "kernel"]


def train(model, data, *callbacks, **options):
    callbacks = [S.UpdatePruningStep(), *callbacks]
    return model.fit(*data, 8, verbose=0, shuffle=False, callbacks=callbacks, **options)


def two_layers():
    return [keras.layers.Dense(10, name="hidden"), keras.layers.Dense(3, name="head")]


def apply_to_model(model, schedule, **options):
    S.prune_low_magnitude(model, schedule, **options)


def apply_to_layers(model, schedule, **options):
    S.prune_low_magnitude(model.layers, schedule, **options)


def apply_to_each_layer(model, schedule, **options):
    for layer in model.layers:
        S.prune_low_magnitude(layer, schedule, **options)


WAYS = [apply_to_model, apply_to_layers, apply_to_each_layer]


@pytest.mark.parametrize("apply", WAYS)
@pytest.mark.parametrize("compiles", [True, False], ids=["compiled again", "as it is"])
def test_a_sweep_over_one_model_reaches_each_sparsity(apply, compiles, data):
    model = mlp()
    seen = []
    for target in (0.3, 0.6, 0.9):
        apply(model, constant(target))
        if compiles:
            compile_(model)
        train(model, data)
        seen.append([sparsity([kernel]) for kernel in kernels_of(model)])
    expected = [(0.3, 0.3), (0.6, 0.6), (0.9, 0.9)]
    for found, (hidden, head) in zip(seen, expected, strict=True):
        assert found == [pytest.approx(hidden, abs=0.02), pytest.approx(head, abs=0.05)]
    assert len(prunings_of(model)) == 1


@pytest.mark.parametrize("apply", WAYS)
def test_a_new_schedule_begins_at_its_first_step(apply, data):
    model = mlp()
    apply(model, S.PolynomialDecay(0.0, 0.5, 1, 8, frequency=1))
    train(model, data)
    apply(model, S.PolynomialDecay(0.5, 0.9, 1, 16, frequency=1))
    compile_(model)
    with pytest.warns(UserWarning, match="final sparsity is not reached: it is due at step 16"):
        train(model, data)
    assert 0.55 < sparsity(kernels_of(model)[:1]) < 0.89


@pytest.mark.parametrize("apply", WAYS)
def test_the_same_arguments_again_change_nothing(apply, data):
    model = mlp()
    apply(model, constant(0.5, begin=3))
    train(model, data)
    before = prunings_of(model)
    apply(model, constant(0.5, begin=3))
    train(model, data)
    assert prunings_of(model) == before
    assert before[0].state.step == 16


def test_other_patterns_and_policies_replace_the_first(data):
    model = mlp()
    S.prune_low_magnitude(model, constant(0.5), block_size=(2, 1))
    S.prune_low_magnitude(model, sparsity_m_by_n=(1, 4))
    train(model, data)
    hidden = np.asarray(keras.ops.convert_to_numpy(kernels_of(model)[0])) == 0
    np.testing.assert_array_equal(hidden.reshape(2, 4, -1).sum(1), 1)

    class OnlyHead(S.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.name == "head"

        def ensure_model_supports_pruning(self, model):
            pass

    assert OnlyHead() == OnlyHead()
    model = mlp()
    S.prune_low_magnitude(model, constant(0.5))
    S.prune_low_magnitude(model, constant(0.5), pruning_policy=OnlyHead())
    train(model, data)
    assert [sparsity([kernel]) for kernel in kernels_of(model)] == [0.0, 0.5]


def test_a_layer_keeps_its_own_schedule_when_its_model_is_given_one(data):
    hidden, head = two_layers()
    S.prune_low_magnitude(hidden, constant(0.75))
    model = compile_(keras.Sequential([keras.Input((8,)), hidden, head]))
    S.prune_low_magnitude(model, constant(0.25))
    train(model, data)
    assert [round(sparsity([k]), 1) for k in kernels_of(model)] == [0.8, 0.3]
    S.prune_low_magnitude(head, constant(0.5))  # and one given later replaces the model's
    train(model, data)
    assert [round(sparsity([k]), 1) for k in kernels_of(model)] == [0.8, 0.5]


def lost(how, model, path):
    """A model that was made from a pruned one and is not pruned itself."""
    if how == "cloned":
        return compile_(keras.models.clone_model(model))
    model.save(path)
    loaded = keras.saving.load_model(path, compile=how == "loaded")
    return compile_(loaded)


@pytest.mark.parametrize("how", ["cloned", "loaded", "loaded without compiling"])
def test_a_model_that_has_lost_its_schedule_is_not_trained_dense(how, data, tmp_path):
    pruned = S.prune_low_magnitude(mlp(), constant(0.5))
    train(pruned, data)
    model = lost(how, pruned, tmp_path / "model.keras")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"finds nothing to prune.* would be trained dense"):
        train(model, data)
    for mine, its in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    S.prune_low_magnitude(model, constant(0.5))
    train(model, data)
    assert [sparsity([k]) for k in kernels_of(model)] == [0.5, 0.5]


def test_a_loaded_model_goes_on_when_it_is_given_the_same_again(data, tmp_path):
    model = S.prune_low_magnitude(mlp(), constant(0.5, begin=12))
    with pytest.warns(UserWarning, match="Nothing will be pruned"):
        train(model, data)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    S.prune_low_magnitude(loaded, constant(0.5, begin=12))
    assert find(loaded).state.step == 8
    train(loaded, data)
    assert [sparsity([k]) for k in kernels_of(loaded)] == [0.5, 0.5]
    S.prune_low_magnitude(loaded, constant(0.75))
    assert not find(loaded).state.has_begun


def test_the_optimizer_may_be_set_after_the_callback_has_its_model():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("such a loop applies gradients to an optimizer by hand")
    import tensorflow as tf

    model = keras.Sequential([keras.Input((8,)), *two_layers()])
    S.prune_low_magnitude(model, constant(0.5))
    callback = S.UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    with pytest.raises(ValueError, match=r"Set `model\.optimizer` before the first step"):
        callback.on_train_batch_begin(-1)
    optimizer = keras.optimizers.Adam()
    model.optimizer = optimizer
    for _ in range(2):
        callback.on_train_batch_begin(-1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(np.ones((4, 8), np.float32), training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    callback.on_epoch_end(-1)
    assert [sparsity([k]) for k in kernels_of(model)] == [0.5, 0.5]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_that_runs_out_before_the_end_of_the_schedule_is_said(data):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return data[0][6 * i : 6 * i + 6], data[1][6 * i : 6 * i + 6]

    model = mlp()
    S.prune_low_magnitude(model, S.PolynomialDecay(0.0, 0.8, 0, 25, frequency=1))
    compile_(model)
    with pytest.warns(UserWarning, match="ended at step 20.*end of the schedule at step 25"):
        model.fit(
            Batches(),
            steps_per_epoch=7,
            epochs=4,
            verbose=0,
            shuffle=False,
            callbacks=[S.UpdatePruningStep()],
        )
