"""The defects seen in TFMOT 0.8.1, one test each: with its behaviour the test fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import event_files
import keras
import numpy as np
import pytest
from models import EveryStep, Subclassed, compile_, mlp, sparsity

import keras_pruner as kp
import keras_pruner.tfmot as tfmot
from keras_pruner.selection.top_k import kept_count, largest_magnitudes
from keras_pruner.training.optimizer import find

S = tfmot.sparsity.keras


def train(model, x, y, *callbacks, compile=True, **options):
    if compile:
        compile_(model)
    arguments = {"verbose": 0, "batch_size": 8, "shuffle": False, **options}
    return model.fit(x, y, callbacks=[S.UpdatePruningStep(), *callbacks], **arguments)


def constant(target, begin=1, end=-1, frequency=1):
    return S.ConstantSparsity(target, begin, end, frequency)


def kernels_of(model):
    return [v for v in model.trainable_variables if len(v.shape) > 1]


def test_defect_01_keras_3_and_subclassed_models_are_pruned(data):
    x, y = data
    model = Subclassed()
    model = S.prune_low_magnitude(model, pruning_schedule=constant(0.5))
    train(model, x, y)
    names = ("kernel", "recurrent_kernel")
    pruned = [v for v in kernels_of(model) if v.path.rpartition("/")[2] in names]
    counts = [(np.count_nonzero(v), kept_count(int(np.prod(v.shape)), 0.5)) for v in pruned]
    assert counts
    assert all(count == expected for count, expected in counts)


@pytest.mark.backend_free
def test_defect_02_an_update_does_not_sort_the_tensor(monkeypatch):
    weights = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    alive = np.ones(weights.size, bool)
    sorted_sizes = []

    def watched(order):
        def call(values, *args, **kwargs):
            sorted_sizes.append(np.size(values))
            return order(values, *args, **kwargs)

        return call

    for name in ("sort", "argsort", "lexsort", "partition", "argpartition", "unique"):
        monkeypatch.setattr(np, name, watched(getattr(np, name)))
    assert np.count_nonzero(largest_magnitudes(weights, alive, 200_000)) == 200_000
    assert sorted_sizes  # a sample, and what lies near the threshold
    assert max(sorted_sizes) < weights.size / 8


def test_defect_03_a_short_run_is_pruned_or_says_that_it_is_not(data):
    x, y = data
    model = S.prune_low_magnitude(mlp(), pruning_schedule=S.ConstantSparsity(0.5, 0))
    train(model, x, y)  # 8 steps; the frequency is 100
    assert sparsity(kernels_of(model)) == 0.5
    late = S.prune_low_magnitude(mlp(), pruning_schedule=S.ConstantSparsity(0.5, 100))
    with pytest.warns(UserWarning, match="Nothing will be pruned: the schedule begins at step 100"):
        train(late, x, y)


def test_defect_04_the_final_sparsity_is_reached_whatever_the_frequency(data):
    x, y = data
    schedule = S.PolynomialDecay(0.0, 0.8, begin_step=1, end_step=8, frequency=5)
    model = S.prune_low_magnitude(mlp(), pruning_schedule=schedule)
    train(model, x, y)
    assert np.count_nonzero(kernels_of(model)[0]) == kept_count(80, 0.8)
    assert S.PolynomialDecay(0.2, 0.6, 5, 5)(5) == (True, 0.6)  # NaN there


@pytest.mark.filterwarnings("ignore:.*zeros will come to life again")
def test_defect_05_equal_weights_are_pruned_and_zeros_do_not_come_back(data):
    x, y = data
    model = mlp()
    model.layers[0].kernel.assign(np.full((8, 10), 0.25, np.float32))
    S.prune_low_magnitude(model, pruning_schedule=constant(0.5))
    compile_(model, keras.optimizers.SGD(0.0))
    train(model, x, y, compile=False)
    assert np.count_nonzero(model.layers[0].kernel) == 40

    sparse = mlp()
    kp.prune(sparse, 0.8, allocation="uniform")
    zeros = [np.asarray(keras.ops.convert_to_numpy(v)) == 0 for v in kernels_of(sparse)]
    S.prune_low_magnitude(sparse, pruning_schedule=constant(0.5))
    seen = EveryStep(lambda m: min(sparsity([v]) for v in kernels_of(m)))
    train(sparse, x, y, seen, epochs=2)
    assert min(seen.noted) >= 0.5  # 0.0 there, at first
    assert sum(map(np.count_nonzero, zeros)) == 64 + 24


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_defect_06_low_precision_leaves_the_stored_weights_alone(policy):
    """100 updates of 1e-3 come to 0.1, not to a rounding of each."""
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="ones"),
         keras.layers.Activation("linear", dtype="float32")]
    )  # fmt: skip
    model = S.prune_low_magnitude(model, pruning_schedule=constant(0.5))
    model.compile(keras.optimizers.SGD(1e-3), loss=lambda y, p: keras.ops.sum(p, -1))
    x = np.ones((100, 1), np.float32)
    train(model, x, x, compile=False, batch_size=1)
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    np.testing.assert_allclose(kernel, [[0.9, 0.0]], atol=1e-4)


def test_defect_07_masks_of_embeddings_and_activity_regularizers_work():
    layers = [
        keras.Input((5,), dtype="int32"),
        keras.layers.Embedding(10, 4, mask_zero=True),
        keras.layers.LSTM(3),
        keras.layers.Dense(3, activity_regularizer="l2"),
    ]
    model = keras.Sequential(layers)
    x = np.array([[3, 4, 0, 0, 0], [5, 0, 0, 0, 0]] * 8)
    before = model.predict(x, verbose=0)
    S.prune_low_magnitude(model, pruning_schedule=constant(0.5))
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    train(model, x, np.zeros(16, int))
    assert sparsity([model.layers[0].embeddings]) == 0.5


@pytest.mark.backend_free
def test_defect_08_ragged_blocks_stay_in_place():
    pattern = kp.Block((1, 3))
    mask = pattern(np.array([[1.0, 1.0, 10.0, 10.0]]), 0.5)
    assert mask.tolist() == [[False, False, False, True]]  # means of 4 and 10, not 1 and 7


def test_defect_08_blocks_larger_than_a_weight_are_cut_to_it(data):
    x, y = data
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(6),
        keras.layers.Dense(1),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential(layers)
    S.prune_low_magnitude(model, pruning_schedule=constant(0.5), block_size=(1, 3))
    train(model, x, y)
    assert [np.count_nonzero(v) for v in kernels_of(model)] == [24, 3, 0 + 3]


def test_defect_09_shared_layers_count_once_and_frozen_ones_are_left_alone(data):
    x, y = data
    inputs = keras.Input((8,))
    shared, frozen = keras.layers.Dense(8, name="shared"), keras.layers.Dense(8, name="frozen")
    frozen.trainable = False
    model = keras.Model(inputs, keras.layers.Dense(3)(frozen(shared(shared(inputs)))))
    schedule = S.PolynomialDecay(0.0, 0.75, 1, 7, power=1, frequency=2)
    S.prune_low_magnitude(model, pruning_schedule=schedule)
    seen = EveryStep(lambda m: np.count_nonzero(m.get_layer("shared").kernel))
    train(model, x, y, seen)
    assert seen.noted == [64, 64, 48, 48, 32, 32, 16, 16]
    assert np.count_nonzero(frozen.kernel) == 64


def test_defect_10_weights_are_sparse_after_every_batch_and_in_every_copy(data):
    x, y = data
    model = S.prune_low_magnitude(mlp(), pruning_schedule=constant(0.5))
    seen = EveryStep(lambda m: (sparsity(kernels_of(m)), sparsity(kernels_of(S.strip_pruning(m)))))
    train(model, x, y, seen, epochs=2)
    assert seen.noted == [(0.5, 0.5)] * 16
    assert find(model) is not None  # stripping in mid-training did not end it


class Stairs(S.PruningSchedule):
    """A schedule of a user's, as TFMOT wants it."""

    def __init__(self, height):
        self.height = height

    def __call__(self, step):
        return step % 2 == 0, min(0.9, self.height * step)

    def get_config(self):
        return {"class_name": "Stairs", "config": {"height": self.height}}


def test_defect_11_settings_survive_save_and_load(data, tmp_path):
    x, y = data
    first = S.prune_low_magnitude(keras.layers.Dense(8), pruning_schedule=Stairs(0.05))
    second = S.prune_low_magnitude(keras.layers.Dense(3), sparsity_m_by_n=(1, 4))
    model = compile_(keras.Sequential([keras.Input((8,)), first, second]))
    train(model, x, y, compile=False)
    assert [np.count_nonzero(v) for v in kernels_of(model)] == [kept_count(64, 0.4), 18]
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    with S.prune_scope():
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    train(loaded, x, y, compile=False)
    assert [np.count_nonzero(v) for v in kernels_of(loaded)] == [kept_count(64, 0.8), 18]
    plain = S.prune_low_magnitude(
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    )
    plain.load_weights(tmp_path / "model.weights.h5")
    for mine, its in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)


class MyDense(keras.layers.Dense):
    """Its class is not Dense."""


def test_defect_12_every_layer_is_welcome(data):
    x, y = data
    inputs = keras.Input((8,))
    hidden = keras.layers.Rescaling(0.5)(inputs)
    hidden = keras.ops.reshape(hidden, (-1, 4, 2)) + 1.0
    hidden = keras.layers.TimeDistributed(MyDense(6))(hidden)
    hidden = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(hidden)
    hidden = keras.layers.EinsumDense("btd,de->bte", (None, 5))(hidden)
    outputs = MyDense(3)(keras.layers.GlobalAveragePooling1D()(hidden))
    model = S.prune_low_magnitude(keras.Model(inputs, outputs), pruning_schedule=constant(0.5))
    train(model, x, y)
    assert len(kernels_of(model)) == 7
    assert all(sparsity([v]) == 1 - kept_count(n, 0.5) / n for v in kernels_of(model)
               for n in [int(np.prod(v.shape))])  # fmt: skip


def test_defect_13_the_xnnpack_policy_lists_all_that_is_in_the_way():
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(4, 3, strides=2, padding="valid"),
        keras.layers.Activation("mish", name="squash"),
        keras.layers.MaxPooling2D(name="pool"),
        keras.layers.Conv2D(4, 1),
        keras.layers.GlobalAveragePooling2D(),
    ]
    message = "Layer Activation is not supported for the PruneForLatencyOnXNNPack pruning policy"
    with pytest.raises(ValueError, match=message) as caught:
        S.prune_low_magnitude(keras.Sequential(layers), pruning_policy=S.PruneForLatencyOnXNNPack())
    assert "squash" in str(caught.value)
    assert "pool (MaxPooling2D): a depthwise convolution of stride 2" in str(caught.value)


def test_defect_14_a_mask_is_a_bit_in_a_file(data, tmp_path):
    x, y = data
    wide = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4000), keras.layers.Dense(3)])
    dense = keras.models.clone_model(wide)
    S.prune_low_magnitude(wide, pruning_schedule=constant(0.5))
    for name, model in (("dense", dense), ("pruned", wide)):
        compile_(model)
        model.fit(x, y, verbose=0)
        model.save(tmp_path / f"{name}.keras")
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("dense", "pruned")]
    assert sizes[1] < 1.1 * sizes[0]  # above 1.3 there, with Adam


def test_defect_14_moments_of_pruned_weights_are_zero_where_they_would_touch_others(data):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(40), keras.layers.Dense(3)])
    S.prune_low_magnitude(model, pruning_schedule=constant(0.5))
    optimizer = keras.optimizers.Adam(global_clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, verbose=0)
    masked = find(model).masked[0]
    assert len(masked.slots) == 2
    zero = ~keras.ops.convert_to_numpy(masked.mask).astype(bool)
    assert all(not np.any(keras.ops.convert_to_numpy(slot)[zero]) for slot in masked.slots)


def test_defect_15_counts_are_exact_beyond_2_to_the_24():
    n = 2**24 + 3  # as float32 2**24 + 4, of which TFMOT keeps one more
    assert round(np.float32(n) * np.float32(0.75)) == kept_count(n, 0.25) + 1
    model = keras.Sequential([keras.Input((1,)), keras.layers.Embedding(n, 1, "ones")])
    S.prune_low_magnitude(model, pruning_schedule=constant(0.25))
    model.compile("sgd", "mse")
    callback = S.UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_batch_begin()
    assert np.count_nonzero(model.layers[0].embeddings) == kept_count(n, 0.25) == 12_582_914


def test_defect_16_no_weight_is_reduced_over_the_replicas():
    """What two replicas exchange in training is the same as without pruning: gradients, loss."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.distribute is TensorFlow's")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", Path(__file__).parents[1] / "replicas.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    dense, pruned = map(json.loads, done.stdout.splitlines()[-2:])
    assert "(8, 10)" in dense["reduced"]  # the gradient of the first kernel
    assert pruned["reduced"] == dense["reduced"]
    assert (dense["sparsity"], pruned["sparsity"]) == ([0.0, 0.0], [0.5, 0.5])


def test_defect_17_summaries_have_the_last_epoch_and_real_numbers(data, tmp_path):
    x, y = data
    first = S.prune_low_magnitude(
        keras.layers.Dense(8, name="first"),
        pruning_schedule=S.PolynomialDecay(0.2, 0.8, 1, 16, frequency=1),
    )
    second = S.prune_low_magnitude(keras.layers.Dense(4, name="second"), sparsity_m_by_n=(2, 4))
    model = keras.Sequential([keras.Input((8,)), first, second])
    train(model, x, y, S.PruningSummaries(str(tmp_path)), epochs=2)
    seen = event_files.read(tmp_path / "metrics")
    assert sorted(seen) == [
        "first/kernel/sparsity", "first/kernel/threshold",
        "second/kernel/sparsity", "second/kernel/threshold",
    ]  # fmt: skip
    steps = [step for step, _ in seen["first/kernel/sparsity"]]
    assert steps == [0, 8, 16]
    kernel = np.abs(keras.ops.convert_to_numpy(model.layers[0].kernel))
    assert seen["first/kernel/sparsity"][-1][1] == pytest.approx(1 - 13 / 64)
    assert seen["first/kernel/threshold"][-1][1] == pytest.approx(kernel[kernel > 0].min())
    assert seen["second/kernel/threshold"][-1][1] < 10  # 999 there
    assert event_files.read(tmp_path / "train")["epoch_loss"][-1][0] == 1
