import contextlib
import importlib
import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.criteria import magnitude, wanda
from keras_pruner.oneshot import Calibration, least_squares, prune, reconstruct
from keras_pruner.oneshot.report import PrunedWeight


def network(seed=0):
    """Every kind of thing the walk meets: norms behind products and apart, a shared layer."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, groups=2, name="grouped")(x))
    shared = layers.Dense(12, activation="tanh", name="shared")
    return keras.Model(inputs, layers.Dense(5, name="head")(shared(shared(x))))


def samples(count=96, shape=(8, 8, 2), seed=0):
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count, *shape)).astype("float32")
    return waves + np.cumsum(waves, axis=1) / 2  # neighbours go together, as in real data


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def unchanged(model, before):
    return all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_without_calibration_only_the_mask_is_applied():
    model = network()
    before = weights(model)
    report = kp.prune(model, 0.5)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert report.relative_error is None
    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(a[a != 0], b[a != 0])


def test_a_refit_brings_the_outputs_nearer_to_the_dense_ones():
    alone, refitted = network(), network()
    x = samples()
    by_mask = kp.prune(alone, 0.6, calibration=Calibration(x, refit=False, batch_norm=False))
    by_refit = kp.prune(refitted, 0.6, calibration=x, criterion=magnitude)
    assert by_refit.relative_error < 0.6 * by_mask.relative_error
    assert by_refit.sparsity == by_mask.sparsity
    for a, b in zip(by_mask.model.get_weights(), by_refit.model.get_weights(), strict=True):
        if a.ndim > 1:
            np.testing.assert_array_equal(a == 0, b == 0)
    assert [w.note for w in by_refit.weights] == ["refitted"] * 4
    assert all(w.after < w.before for w in by_refit.weights)
    assert "grouped/kernel" in str(by_refit)


def test_the_model_is_what_the_report_says():
    dense, model = network(), network()
    x = samples()
    report = kp.prune(model, 0.6, calibration=x)
    held = x[np.arange(96) % 8 == 4]
    a, b = (keras.ops.convert_to_numpy(m(held, training=False)) for m in (model, dense))
    difference = np.square(a - b).sum() / np.square(b - b.mean(axis=0)).sum()
    assert difference == pytest.approx(report.relative_error, rel=1e-3)


def test_a_sparsity_of_zero_leaves_the_model_as_it_is():
    model = network()
    before = weights(model)
    report = kp.prune(model, 0.0, calibration=samples())
    assert report.relative_error < 1e-10
    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("refit", [True, False])
def test_norms_take_up_what_the_mask_takes_from_the_mean(refit):
    found, x = {}, samples(96, (8,)) + 3
    for batch_norm in (True, False):
        keras.utils.set_random_seed(0)
        parts = [layers.Dense(32, use_bias=False), layers.BatchNormalization(), layers.Dense(4)]
        model = keras.Sequential([keras.Input((8,)), *parts])
        kp.oneshot.reestimate_batch_norm(model, x)
        given = Calibration(x, refit=refit, batch_norm=batch_norm)
        report = kp.prune(model, 0.5, calibration=given, criterion=magnitude)
        found[batch_norm] = report.relative_error
    assert found[True] < 0.9 * found[False]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [0, 3])
def test_after_an_interruption_the_model_is_as_it_was(monkeypatch, error, at):
    model, seen = network(), []
    before, attributes = weights(model), [sorted(la.__dict__) for la in model.layers]
    refit = reconstruct.LayerwisePass._refit

    def interrupted(*arguments):
        seen.append(0)
        if len(seen) > at:
            raise error
        return refit(*arguments)

    monkeypatch.setattr(reconstruct.LayerwisePass, "_refit", interrupted)
    with pytest.raises(error):
        kp.prune(model, 0.5, calibration=samples())
    assert unchanged(model, before)
    assert [sorted(la.__dict__) for la in model.layers] == attributes


def test_targets_in_several_groups_give_the_same(monkeypatch):
    whole, parts = network(), network()
    kp.prune(whole, 0.6, calibration=samples())
    monkeypatch.setattr(reconstruct, "TARGETS_BYTES", 1)
    kp.prune(parts, 0.6, calibration=samples())
    for a, b in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def worse_refit(system, start, mask):
    """A fit that is worse than the mask alone."""
    return least_squares.Fit(start * mask * 3, system.mean_targets * 0 + 5)


def worse_factors(rows, targets, matrix):
    return least_squares.Fit(matrix * 3, targets[:, :1] * 0 + 5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_refit_that_makes_a_layer_worse_is_undone_and_said_so(monkeypatch, bias):
    monkeypatch.setattr(least_squares.System, "refit", worse_refit)
    monkeypatch.setattr(reconstruct, "rescale", worse_factors)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(20, use_bias=bias)])
    before = weights(model)
    (row,) = kp.prune(model, 0.5, calibration=samples(96, (8,))).weights
    assert row.note.startswith("undone: the refit's error is")
    assert row.after == row.before
    after = weights(model)
    np.testing.assert_array_equal(after[0], np.where(after[0] != 0, before[0], 0))
    assert np.count_nonzero(after[0]) == 80
    for a, b in zip(after[1:], before[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_factor_for_each_output_takes_the_place_of_a_refit_that_is_worse(monkeypatch):
    monkeypatch.setattr(least_squares.System, "refit", worse_refit)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(20)])
    before = weights(model)[0]
    (row,) = kp.prune(model, 0.5, calibration=samples(96, (8,))).weights
    assert row.note == "rescaled: a refit was worse"
    assert row.after < row.before
    after = weights(model)[0]
    kept = after != 0
    factors = np.divide(after, before, where=kept, out=np.full(after.shape, np.nan))
    np.testing.assert_allclose(np.nanmin(factors, 0), np.nanmax(factors, 0), rtol=1e-4)


def test_what_is_learned_from_noise_does_not_stay():
    """With fewer samples than inputs and nothing in common, a refit cannot carry over."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((300,)), layers.Dense(20, use_bias=False)])
    noise = np.random.default_rng(0).normal(size=(40, 300)).astype("float32")
    (row,) = kp.prune(model, 0.5, calibration=noise).weights
    assert row.after <= row.before


def test_a_mapping_is_as_it_says_or_refused():
    model = network()
    before = weights(model)
    mapping = {"shared": 0.9, "": 0.5}  # 144 of 780 weights: 0.5738
    with pytest.raises(
        ValueError, match=r"gives a sparsity of 0.5738 over .* Received: sparsity=0.4\."
    ):
        kp.prune(model, 0.4, allocation=mapping)
    assert unchanged(model, before)
    rows = kp.prune(model, 0.5738, allocation=mapping).weights
    assert [row.sparsity for row in rows] == pytest.approx([0.5, 0.5, 0.9, 0.5], abs=0.01)


def test_a_copy_leaves_the_model_alone():
    model = network()
    before = weights(model)
    report = kp.prune(model, 0.5, calibration=samples(), copy=True)
    assert unchanged(model, before)
    assert report.model is not model
    kernel = keras.ops.convert_to_numpy(report.model.get_layer("head").kernel.value)
    assert (kernel == 0).any()


def test_a_copy_of_a_compiled_model_needs_no_warning():
    model = network()
    model.compile("adam", loss="mse")
    kp.prune(model, 0.5, copy=True)  # warnings are errors here


@pytest.mark.parametrize("options", [{}, {"refit": False}, {"batch_norm": False}])
def test_as_many_layers_are_announced_as_were_promised(monkeypatch, options):
    promised, announced = [], []

    @contextlib.contextmanager
    def announcing(_, total, *, shown):
        promised.append(total)
        yield announced.append

    monkeypatch.setattr(prune, "show_progress", announcing)
    kp.prune(network(), 0.5, calibration=Calibration(samples(), **options))
    assert promised == [len(announced)]


def test_the_report_as_data_says_what_was_left_alone():
    report = kp.prune(network(), 0.5)
    found = json.loads(json.dumps(report.as_dict()))
    assert [skip["path"] for skip in found["skipped"]] == [skip.path for skip in report.skipped]


def test_frozen_weights_are_pruned_too():
    model = network()
    model.trainable = False
    assert kp.prune(model, 0.5).sparsity == pytest.approx(0.5, abs=0.01)


def test_patterns_keep_their_laws():
    model = network()
    report = kp.prune(model, pattern=kp.NM(2, 4), calibration=samples(), filters=["head", "shared"])
    assert [w.sparsity for w in report.weights] == [0.5, 0.5]
    groups = keras.ops.convert_to_numpy(model.get_layer("head").kernel.value).reshape(3, 4, 5)
    assert (np.count_nonzero(groups, axis=1) == 2).all()


def test_a_sparsity_that_is_the_patterns_own_up_to_rounding():
    model = network()
    kp.prune(model, 1 - 1 / 3, pattern=kp.NM(1, 3))
    again = network()
    kp.prune(again, pattern=kp.NM(1, 3))
    assert unchanged(model, weights(again))


def test_allocations_that_are_tried_are_all_shown():
    model = network()
    report = kp.prune(model, 0.6, calibration=samples(), allocation="auto")
    assert [c.name for c in report.candidates] == ["lamp", "erk", "uniform, Wanda per output"]
    best = min(report.candidates, key=lambda c: c.relative_error)
    assert [c.chosen for c in report.candidates] == [c is best for c in report.candidates]
    assert report.relative_error == best.relative_error
    assert report.sparsity == pytest.approx(0.6, abs=0.01)


def test_beyond_ninety_per_cent_several_are_tried():
    report = kp.prune(network(), 0.92, calibration=samples())
    assert len(report.candidates) == 3


def test_embeddings_and_unknown_layers_say_why_they_are_not_refitted():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Embedding(9, 8), layers.LSTM(8), layers.Dense(3)]
    )
    x = np.random.default_rng(0).integers(0, 9, (64, 6))
    report = kp.prune(model, 0.5, calibration=x)
    notes = {w.path.split("/")[0].rstrip("_0123456789"): w.note for w in report.weights}
    assert "looked up one by one" in notes["embedding"]
    assert notes["dense"] == "refitted"
    assert "refitted" in notes["lstm"]


# ---------------------------------------------------------------------- kinds of models


def transformer():
    x = inputs = keras.Input((6, 8))
    x = x + layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(inputs, layers.Dense(3)(layers.LayerNormalization()(x))), (6, 8)


def bidirectional():
    inputs = keras.Input((6, 8))
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(inputs)
    return keras.Model(inputs, layers.GRU(4)(layers.TimeDistributed(layers.Dense(6))(x))), (6, 8)


def upsampling():
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    return keras.Model(inputs, layers.Conv2DTranspose(3, 4, 2, padding="same")(x)), (8, 8, 2)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(16, activation="relu"), layers.Dense(4)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return {"logits": x, "sizes": keras.ops.sum(x, axis=-1)}


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), "float32"))
    return model, (8,)


@pytest.mark.parametrize("make", [transformer, bidirectional, upsampling, subclassed])
def test_every_kind_of_model_is_refitted(make):
    model, shape = make()
    for number, weight in enumerate(model.trainable_variables):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape) * 0.4)
    before = weights(model)
    x = samples(128, shape)
    alone = kp.prune(model, 0.5, calibration=Calibration(x, refit=False)).relative_error
    model.set_weights(before)
    report = kp.prune(model, 0.5, calibration=x)
    assert {w.note.split(":")[0] for w in report.weights} <= {"refitted", "rescaled", "undone"}
    assert report.relative_error < alone


def test_mixed_precision():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", dtype="mixed_bfloat16"),
            layers.Dense(4, dtype="mixed_bfloat16"),
        ]
    )
    report = kp.prune(model, 0.5, calibration=samples(256, (8,)))
    assert [w.note for w in report.weights] == ["refitted"] * 2


# ---------------------------------------------------------------------- forms of calibration


def two_inputs():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Concatenate()([layers.Dense(6)(a), layers.Dense(6)(b)])
    return keras.Model([a, b], layers.Dense(2)(x))


def batches(x, *rest, size=32):
    for i in range(0, len(x), size):
        yield (x[i : i + size], *(r[i : i + size] for r in rest)) if rest else x[i : i + size]


class Series(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[32 * index : 32 * index + 32], np.zeros(32)


def tf_data(x):
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(x).batch(32)


def data_loader(x):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.zeros(len(x)))
    return torch.utils.data.DataLoader(data, batch_size=32)


FORMS = {
    "array": lambda x: x,
    "list": lambda x: [x],
    "tensor": keras.ops.convert_to_tensor,
    "generator": batches,
    "generator with labels": lambda x: batches(x, np.zeros(len(x))),
    "PyDataset": Series,
    "tf.data": tf_data,
    "DataLoader": data_loader,
}


@pytest.mark.parametrize("form", FORMS)
def test_calibration_in_every_form_gives_the_same(form):
    x = samples(96, (8,))
    found = []
    for given in (x, FORMS[form](x)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), layers.Dense(16), layers.Dense(4)])
        kp.prune(model, 0.5, calibration=given)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("form", ["list", "dict", "tuples"])
def test_several_inputs(form):
    a, b = samples(96, (4,)), samples(96, (3,))
    given = {"list": [a, b], "dict": {"a": a, "b": b}, "tuples": batches((a, b)[0])}[form]
    if form == "tuples":
        given = (((a[i : i + 32], b[i : i + 32]), None) for i in range(0, 96, 32))
    report = kp.prune(two_inputs(), 0.5, calibration=given)
    assert all(w.before > 0 for w in report.weights)


# ---------------------------------------------------------------------- errors


class Sparse:
    """What SciPy's sparse matrices look like."""

    shape, dtype = (64, 8), np.dtype("float32")

    def __getitem__(self, index):
        return self

    def toarray(self):
        return np.zeros(self.shape, self.dtype)


BAD = {
    "at least 16 samples": samples(8, (8,)),
    "must be finite": np.where(np.arange(64)[:, None] == 5, np.nan, samples(64, (8,))),
    "values up to 1e.20, whose squares overflow": samples(64, (8,)) * 0 + 1e20 * np.eye(64, 8),
    "must be arrays, not lists of numbers": [[1.0] * 8 for _ in range(64)],
    "all the same": np.ones((64, 8), "float32"),
    r"shape of the model's input, \(None, 8\)": samples(64, (9,)),
    "must hold the 1 inputs": [samples(64, (8,)), samples(64, (8,))],
    "must be arrays": 5,
    "no batch at all": iter([]),
    "Batch it": list(samples(64, (8,))).__iter__(),
    r"shape \[\(8,\)\] in one, \[\(9,\)\] in another. Pad": (samples(16, (n,)) for n in (8, 9)),
    "as many samples in each": [samples(64, (8,)), samples(32, (8,))],
    r"samples. If these are batches, pass `np.concatenate": [samples(n, (8,)) for n in (32, 9)],
    r"\(32, 8\)\]. If these are batches, pass `np.concatenate": [samples(32, (8,))] * 4,
    r"batches, pass `iter\(calibration\)`": [(samples(32, (8,)), samples(32, (3,)))] * 2,
    "not lists of numbers. .* length 64>. Pass `np.asarray": samples(64, (8,)).tolist(),
    "of type Sparse. Call `.toarray": Sparse(),
}


@pytest.mark.parametrize("message", BAD)
def test_calibration_that_cannot_be_used_says_what_to_do(message):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        kp.prune(model, 0.5, calibration=BAD[message])
    assert unchanged(model, before)


def test_stateful_models_take_batches_of_one_size_only():
    parts = [layers.LSTM(4, stateful=True, name="memory"), layers.Dense(2)]
    model = keras.Sequential([keras.Input((5, 3), batch_size=16), *parts])
    with pytest.raises(ValueError, match=r"memory.* of one size only.*stateful=False"):
        kp.prune(model, 0.5, calibration=samples(128, (5, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`sparsity` is missing"),
        ({"sparsity": 80}, r"sparsity=0.8"),
        ({"sparsity": 0.8, "pattern": kp.NM(2, 4)}, "fixes the sparsity at 0.5"),
        ({"sparsity": 0.8, "allocation": "auto"}, "`calibration` is needed for allocation"),
        (
            {"sparsity": 0.8, "criterion": wanda},
            "`calibration` is needed for criterion=wanda",
        ),
        ({"sparsity": 0.8, "criterion": "size"}, r"must be a function .*criterion='size'"),
        (
            {"pattern": kp.NM(2, 4), "calibration": samples(64, (8,)), "allocation": "auto"},
            "nothing to decide. Received: allocation='auto'. Leave it out",
        ),
        ({"sparsity": 0.8, "allocation": lambda *_: None}, r"Received: None, .*Return `\{share:"),
        (
            {"sparsity": 0.8, "allocation": lambda shares, s: {q.path: s for q in shares}},
            r"which has none for \['.*kernel.*Return `\{share:",
        ),
    ],
)
def test_arguments_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        kp.prune(network(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 8}, "`samples` must be an integer of at least 16. Received: samples=8"),
        ({"samples": 64.0}, "`samples` must be an integer"),
        ({"distillation_epochs": -1}, "`distillation_epochs` must be an integer"),
        ({"refit": "yes"}, "`refit` must be True or False. Received: refit='yes'"),
        ({"batch_norm": 1}, "`batch_norm` must be True or False. Received: batch_norm=1"),
        ({"progress": None}, "`progress` must be True or False"),
        ({"data": None}, "`data` must be inputs"),
    ],
)
def test_options_are_checked_where_they_are_given(options, message):
    with pytest.raises(ValueError, match=message):
        Calibration(**{"data": samples(), **options})


def test_a_criterion_of_the_wrong_shape():
    with pytest.raises(ValueError, match="one score for each weight"):
        kp.prune(network(), 0.5, calibration=samples(), criterion=lambda _, inputs: inputs.rms)


def test_other_backends_are_not_imported_by_the_package():
    module = importlib.import_module("keras_pruner.oneshot.least_squares")
    assert not any(hasattr(module, name) for name in ("torch", "jax", "tf"))


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_model_in_the_midst_of_a_schedule_is_not_pruned_at_once():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(3)])
    model.compile("sgd", loss="mse")
    schedule = kp.PolynomialDecay(0.8, end_step=100)
    callback = kp.GradualPruning(schedule)
    model.fit(np.ones((32, 8)), np.ones((32, 3)), callbacks=[callback], verbose=0)
    with pytest.raises(ValueError, match=r"being pruned by a training.*release"):
        kp.prune(model, 0.9)
    kp.prune(model, 0.9, copy=True)
    kp.Pruner(model).release()
    kp.prune(model, 0.9)


class Sampling(layers.Layer):
    """Adds noise, also in inference, as a variational autoencoder does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_what_a_layer_draws_is_the_same_in_every_run():
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(16), Sampling(), layers.Dense(32, "relu"), layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *parts])
    before, x = weights(model), samples(128, (8,))
    assert kp.prune(model, 0.0, calibration=x).relative_error < 1e-10
    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    alone = kp.prune(model, 0.5, calibration=Calibration(x, refit=False)).relative_error
    model.set_weights(before)
    assert kp.prune(model, 0.5, calibration=x).relative_error < 0.8 * alone


@pytest.mark.parametrize(
    "parts",
    [
        [layers.LSTM, layers.BatchNormalization],
        [layers.SimpleRNN, layers.BatchNormalization],
        [lambda n: layers.Dense(n, "relu"), layers.BatchNormalization],
        [layers.Dense, lambda: layers.BatchNormalization(axis=1)],
    ],
    ids=["LSTM", "SimpleRNN", "activation", "other axis"],
)
def test_a_norm_gets_the_moments_of_what_it_is_given(parts):
    keras.utils.set_random_seed(0)
    product, norm = parts[0](8), parts[1]()
    inputs = keras.Input((8, 4))
    if isinstance(product, layers.RNN):
        product.return_sequences = True
    outputs = product(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(norm(outputs))))
    x = samples(128, (8, 4))
    kp.oneshot.reestimate_batch_norm(model, x)
    kp.prune(model, 0.6, calibration=x, criterion=magnitude, allocation="uniform")
    fit = x[np.arange(128) % 8 != 4]
    seen = keras.ops.convert_to_numpy(keras.Model(inputs, outputs)(x, training=False))
    axes = tuple({0, 1, 2} - {norm.axis % 3})
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_mean.value), seen.mean(axes), atol=0.02
    )
    assert len(fit) == 112


def test_a_kernel_that_does_not_train_keeps_its_zeros():
    class Projection(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 64), trainable=False)

        def call(self, x):
            return keras.ops.cos(keras.ops.matmul(x, self.kernel))

    projection = Projection(name="projection")
    model = keras.Sequential([keras.Input((8,)), projection, layers.Dense(3)])
    report = kp.prune(model, 0.75, calibration=samples(64, (8,)))
    assert report.sparsity == pytest.approx(0.75, abs=0.01)
    zeros = float(np.mean(keras.ops.convert_to_numpy(projection.kernel.value) == 0))
    assert zeros == report.weights[0].sparsity > 0.5


def test_a_refit_keeps_to_the_constraints_of_a_layer():
    keras.utils.set_random_seed(0)
    bounds = {"kernel_constraint": "non_neg", "bias_constraint": "non_neg"}
    parts = [layers.Dense(32, "relu", **bounds), layers.Dense(3, **bounds)]
    model = keras.Sequential([keras.Input((8,)), *parts])
    for layer in model.layers:
        layer.kernel.assign(np.abs(keras.ops.convert_to_numpy(layer.kernel.value)))
    kp.prune(model, 0.6, calibration=samples(128, (8,)))
    assert all(w.min() >= 0 for w in weights(model))
    assert any(w.ndim == 1 and w.any() for w in weights(model))


def test_a_layer_whose_kernel_another_one_uses_keeps_its_mask_alone():
    class Transposed(layers.Layer):
        def __init__(self, tied):
            super().__init__()
            self.tied = tied

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.tied.kernel))

    encoder = layers.Dense(6)
    model = keras.Sequential([keras.Input((8,)), encoder, Transposed(encoder)])
    report = kp.prune(model, 0.5, calibration=samples(64, (8,)))
    assert [w.note for w in report.weights] == ["another layer holds its layer, and may use it"]


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
def test_masked_logits_say_nothing(mask):
    def masked(x, logits):
        return keras.ops.where(x > 0, logits, logits + mask)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    logits = layers.Dense(8)(layers.Dense(16, "relu")(inputs))
    outputs = layers.Lambda(lambda pair: masked(*pair))([inputs, logits])
    model = keras.Model(inputs, outputs)
    assert 0.01 < kp.prune(model, 0.5, calibration=samples(128, (8,))).relative_error < 1


def test_outputs_that_are_no_numbers_are_refused():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(keras.ops.log(inputs)))
    with pytest.raises(ValueError, match="are NaN"):
        kp.prune(model, 0.5, calibration=samples(64, (8,)))


def test_a_recurrent_layer_in_a_loop_keeps_its_mask_alone():
    parts = [layers.TimeDistributed(layers.LSTM(4)), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((5, 6, 4)), *parts])
    report = kp.prune(model, 0.5, calibration=samples(64, (5, 6, 4)))
    notes = {w.path.split("/")[-1]: w.note for w in report.weights}
    assert "mask alone" in notes["recurrent_kernel"]


@pytest.mark.parametrize("criterion", [None, magnitude, wanda])
def test_numbers_that_become_too_large_within_the_model_name_the_layer(criterion):
    inputs = keras.Input((8,))
    large = layers.Rescaling(1e20, name="large")(layers.Dense(8)(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="last")(large))
    before = weights(model)
    with pytest.raises(ValueError, match=r"lead to inputs of 'last' up to .* overflow float32"):
        kp.prune(model, 0.5, calibration=samples(64, (8,)), criterion=criterion)
    assert unchanged(model, before)


# ---------------------------------------------------------------------- what the report says


def report_of(error, **options):
    """A report by hand."""
    rows = [("a/kernel", 0.02), ("b/kernel", 0.7), ("c/embeddings", None)]
    sizes = {"c/embeddings": (40, 10)}
    fields = {
        "sparsity": 0.5,
        "weights": tuple(
            PrunedWeight(path, sizes.get(path, (10, 10)), 0.5, after, after, "")
            for path, after in rows
        ),
        "skipped": (),
        "relative_error": error,
        "candidates": (),
        "distillation": None,
        "seconds": 1.0,
        "model": None,
    }
    return kp.reports.PruneReport(**fields | options)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, None),
        (0.0, None),
        (0.29, None),
        (0.3, "A relative error of 0.3 is large: 30%"),
        (0.99, "A relative error of 0.99 is large"),
        (1.0, "WARNING: the model is most likely useless"),
        (1.37, "WARNING: the model is most likely useless"),
        (float("inf"), "WARNING: the model is most likely useless"),
    ],
)
def test_a_large_error_is_said_with_what_helps(error, says):
    text = str(report_of(error))
    assert ("is large" in text or "WARNING" in text) == (says is not None)
    if says:
        assert says in text
        assert "a lower sparsity, more samples, Calibration(..., distillation_epochs=15)" in text
        assert "{'b/kernel': None}" in text  # the worst layer


def test_a_useless_model_is_told_from_a_useful_one():
    """Of noise nothing can be kept at 95 %; of what is there to be kept at 30 %, nearly all."""
    useless = kp.prune(network(), 0.97, calibration=samples(), allocation="uniform")
    useful = kp.prune(network(), 0.2, calibration=samples())
    assert "is large" in str(useless) or "WARNING" in str(useless)
    assert "is large" not in str(useful)


def test_zeros_in_embeddings_are_said_with_the_override():
    text = str(report_of(0.1))
    assert "67% of the zeros are in embeddings" in text
    assert r"overrides={'c/embeddings': None}" in text
    x = np.random.default_rng(0).integers(0, 50, (64, 6))
    parts = [layers.Embedding(50, 16, name="table"), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *parts])
    assert "overrides={'table/embeddings': None}" in str(kp.prune(model, 0.5, calibration=x))
    again = kp.prune(model, 0.5, calibration=x, overrides={"table/embeddings": None})
    assert "embeddings. These" not in str(again)


def test_the_last_line_says_how_to_train_on():
    for report in (kp.prune(network(), 0.5), kp.prune(network(), 0.5, calibration=samples())):
        assert "callbacks=[kp.KeepZeros()]" in str(report).splitlines()[-1]
    assert "KeepZeros" not in str(kp.prune(network(), 0.0))


def test_lines_of_progress_where_there_is_no_terminal(monkeypatch, capsys):
    from keras_pruner.reporting import console

    monkeypatch.setattr(console, "_SECONDS", 0.01)
    kp.prune(network(), 0.5, calibration=samples())
    assert "pruning" in capsys.readouterr().err
    kp.prune(network(), 0.5, calibration=Calibration(samples(), progress=False))
    assert capsys.readouterr().err == ""


def test_a_report_says_what_was_asked_and_what_was_reached():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(32)])
    report = kp.prune(model, 0.5, pattern=kp.Block((20, 32)))
    assert report.sparsity == 0
    assert any("0.5 was asked for" in note and "reaches 0:" in note for note in report.notes())
    assert kp.prune(model, 0.5).remarks == ()
