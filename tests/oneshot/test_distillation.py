import keras
import numpy as np
import pytest
from keras import layers
from models import Subclassed

import keras_pruner as kp
from keras_pruner.oneshot import Calibration, distillation, prune
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.mixtures import mixtures


def samples(count=512, seed=0):
    """Of twelve numbers, which five others lie behind."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 5)) @ np.random.default_rng(1).normal(size=(5, 12))
    return (mixed + rng.normal(size=(count, 12)) / 10).astype("float32")


def network():
    """Narrow kernels, with batch norms, dropout and two outputs."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12,))
    for i in range(3):
        x = layers.Dense(24, use_bias=False, name=f"narrow_{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm_{i}")(x))
    x = layers.Dropout(0.05, name="dropout")(x)
    outputs = {"a": layers.Dense(4, name="a")(x), "b": layers.Dense(3, name="b")(x)}
    model = keras.Model(inputs, outputs)
    kp.oneshot.reestimate_batch_norm(model, samples())
    return model


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def same(model, before):
    return all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))


def pruned(model, epochs=0, **options):
    data = options.pop("calibration", samples())
    calibration = Calibration(data, distillation_epochs=epochs, progress=False)
    chosen = {"criterion": kp.criteria.magnitude} | options
    return kp.prune(model, 0.8, calibration=calibration, **chosen)


def test_what_is_left_learns_the_dense_outputs_again():
    refitted, distilled = network(), network()
    by_refit, report = pruned(refitted), pruned(distilled, 40)
    told = report.distillation
    assert told.kept
    assert told.before == by_refit.relative_error
    assert told.after == report.relative_error < 0.8 * told.before
    assert "before 40 epochs of distillation" in str(report)
    assert report.as_dict()["distillation"]["epochs"] == 40
    for a, b in zip(weights(refitted), weights(distilled), strict=True):
        if a.ndim > 1:
            np.testing.assert_array_equal(a == 0, b == 0)


def test_it_is_the_same_each_time():
    first, second = network(), network()
    for model in (first, second):
        model.get_layer("dropout").rate = 0.0  # what is dropped is drawn from seeds that go on
        pruned(model, 2)
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_a_model_is_compiled_with_is_left_alone():
    model = network()
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer, loss={"a": "mse", "b": "mse"})
    pruned(model, 2)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 0
    y = {"a": np.zeros((512, 4)), "b": np.zeros((512, 3))}
    model.fit(samples(), y, verbose=0, callbacks=[kp.KeepZeros()])
    assert int(optimizer.iterations) == 16
    assert kp.summarize(model).prunable.sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_after_an_interruption_the_model_is_dense_again(monkeypatch, error):
    class Interrupting(keras.callbacks.Callback):
        def __init__(self, **_):
            super().__init__()

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise error

    monkeypatch.setattr(keras.callbacks, "LambdaCallback", Interrupting)
    model = network()
    before = weights(model)
    with pytest.raises(error):
        pruned(model, 3)
    assert same(model, before)


def test_what_makes_the_outputs_worse_is_undone_and_said_so(monkeypatch):
    refitted, model = network(), network()
    relative_error = pruned(refitted).relative_error
    monkeypatch.setattr(distillation, "_RATE", 1e6)
    report = pruned(model, 1)
    assert not report.distillation.kept
    assert report.relative_error == relative_error
    assert "were undone" in str(report)
    assert report.as_dict()["distillation"]["kept"] is False
    assert same(model, weights(refitted))


def test_frozen_layers_stay_as_the_refit_has_left_them():
    refitted, model = network(), network()
    for each in (refitted, model):
        each.get_layer("norm_1").trainable = False
        each.get_layer("narrow_2").trainable = False
    pruned(refitted)
    pruned(model, 2)
    for name in ("norm_1", "narrow_2"):
        found = (each.get_layer(name).get_weights() for each in (refitted, model))
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batch_norms_have_the_statistics_of_mixtures():
    model = network()
    pruned(model, 20)
    found = model.get_layer("norm_2").get_weights()
    seen = mixtures(Samples(samples()[np.arange(512) % 8 != 4]), 0, [True]).inputs  # none held out
    kp.oneshot.reestimate_batch_norm(model, seen)
    for a, b in zip(found, model.get_layer("norm_2").get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_epoch_is_announced(monkeypatch):
    promised, heard = [], []

    class Announcing:
        def __init__(self, title, total, *, shown):
            promised.append(total)

        def __enter__(self):
            return heard.append

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(prune, "show_progress", Announcing)
    pruned(network(), 3)
    assert len(heard) == promised[0]
    assert heard[-1] == "distillation, epoch 3"


def test_subclassed_models_and_patterns():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    model(x[:1])
    options = {"pattern": kp.Block((2, 1)), "overrides": {"own_kernel": 0.5}}
    report = pruned(model, 20, calibration=x, criterion=None, **options)
    assert report.distillation.kept
    found = {w["path"]: w["sparsity"] for w in kp.summarize(model).as_dict()["weights"]}
    for row in report.weights:
        assert row.sparsity == found[row.path] > 0


def test_weights_that_an_override_admits_stay_zero():
    keras.utils.set_random_seed(0)
    convolutions = [layers.DepthwiseConv1D(3, name="depthwise"), layers.Conv1D(4, 1)]
    model = keras.Sequential([keras.Input((12, 4)), *convolutions])
    x = samples()[..., None] * np.ones(4, "float32")
    pruned(model, 2, calibration=x, overrides={"depthwise/kernel": 0.5})
    kernel = model.get_layer("depthwise").get_weights()[0]
    assert np.mean(kernel == 0) == 0.5


class Plain(keras.Model):
    """Two layers, whose paths begin with the name of the model."""

    def __init__(self):
        super().__init__(name="plain")
        self.a, self.b = layers.Dense(16, "relu", name="a"), layers.Dense(3, name="b")

    def call(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize(
    "options", [{"filters": "^a$"}, {"overrides": {"^b/": None}}, {"overrides": {"^b/": 0}}]
)
def test_names_are_those_in_the_model(options):
    model = Plain()
    model(samples()[:1])
    report = pruned(model, 2, **options)
    assert [row.path for row in report.weights] == ["a/kernel"]
    assert np.mean(model.a.get_weights()[0] == 0) == pytest.approx(0.8, abs=0.01)
    assert not np.any(model.b.get_weights()[0] == 0)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    report = pruned(model, 10)
    assert report.distillation.kept


@pytest.mark.parametrize("form", [dict, list])
def test_several_inputs(form):
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((6,), name=name) for name in ("left", "right")}
    x = layers.Dense(16, "relu")(layers.Concatenate()(list(inputs.values())))
    given = inputs if form is dict else list(inputs.values())
    model = keras.Model(given, layers.Dense(3)(x))
    x = dict(zip(inputs, np.split(samples(), 2, axis=1), strict=True))
    x = x if form is dict else list(x.values())
    assert pruned(model, 30, calibration=x).distillation.kept


def test_embeddings_and_recurrent_kernels():
    keras.utils.set_random_seed(0)
    parts = [layers.Embedding(50, 12, mask_zero=True), layers.LSTM(16), layers.Dense(3)]
    model = keras.Sequential([keras.Input((9,), dtype="int32"), *parts])
    x = np.random.default_rng(0).integers(0, 50, (512, 9)).astype("int32")
    report = pruned(model, 10, calibration=x)
    assert report.distillation.kept
    assert report.sparsity == pytest.approx(0.8, abs=0.01)
    assert kp.summarize(model).prunable.sparsity == pytest.approx(report.sparsity)


def test_arguments_that_do_not_go_together():
    model = network()
    model.trainable = False
    with pytest.raises(ValueError, match="but all of them are frozen"):
        pruned(model, 1, calibration=iter([]))  # which nobody has read by then


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
def test_masked_logits_are_not_learnt(mask):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,))
    logits = layers.Dense(12, name="logits")(layers.Dense(24, "relu", name="hidden")(inputs))

    def kept(pair):
        x, logits = pair
        return keras.ops.where(x > 0, logits, logits + mask)

    model = keras.Model(inputs, layers.Lambda(kept)([inputs, logits]))
    told = pruned(model, 20).distillation
    assert told.kept
    assert 0.01 < told.after < 0.9 * told.before
