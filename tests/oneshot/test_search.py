import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.oneshot import Calibration, search


def network(outputs=3):
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(24, activation="relu", name="first"), layers.Dense(outputs, name="last")]
    return keras.Sequential([keras.Input((8,)), *parts])


def samples(count=128):
    return np.random.default_rng(0).normal(size=(count, 8)).astype("float32")


def masks_alone():
    return Calibration(samples(), refit=False)


def zeros(model):
    kernels = [keras.ops.convert_to_numpy(layer.kernel.value) for layer in model.layers]
    return 1 - sum(map(np.count_nonzero, kernels)) / sum(k.size for k in kernels)


def test_bisection_comes_to_where_the_metric_falls():
    model = network()
    curve = kp.find_sparsity(
        model,
        masks_alone(),
        metric=lambda pruned: 0.9 if zeros(pruned) < 0.7 else 0.5,
        max_drop=0.1,
        tolerance=0.02,
    )
    assert 0.67 < curve.sparsity < 0.71
    assert curve.dense == 0.9
    assert [s for s, _ in curve.points] == sorted(s for s, _ in curve.points)
    assert zeros(model) == 0
    assert "largest sparsity" in str(curve)


def test_the_bound_may_be_met_everywhere_or_nowhere():
    options = {"calibration": masks_alone(), "tolerance": 0.2}
    everywhere = kp.find_sparsity(network(), metric=lambda _: 1.0, **options)
    assert (everywhere.sparsity, len(everywhere.points)) == (0.98, 1)
    nowhere = kp.find_sparsity(network(), metric=lambda m: -zeros(m), **options)
    assert nowhere.sparsity == 0


@pytest.mark.parametrize("outputs", [3, 1])
def test_without_a_metric_it_is_agreement_with_the_dense_model(outputs):
    curve = kp.find_sparsity(network(outputs), samples(), max_drop=0.2, tolerance=0.3)
    assert curve.dense == 1
    assert all(0 <= metric <= 1 for _, metric in curve.points)


def test_the_model_is_as_it_was_after_an_error():
    model, seen = network(), []

    def metric(_):
        seen.append(0)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        kp.find_sparsity(model, samples(), metric=metric)
    assert zeros(model) == 0


def test_the_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    curve = kp.reports.SparsityCurve(0.5, 0.1, 0.9, ((0.5, 0.85), (0.8, 0.2)))
    curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_sensitivity_prunes_one_weight_at_a_time():
    model, seen = network(), []

    def metric(pruned):
        kernels = [keras.ops.convert_to_numpy(layer.kernel.value) for layer in pruned.layers]
        seen.append([np.mean(kernel == 0) for kernel in kernels])
        return -10 * seen[-1][0] - seen[-1][1]

    found = kp.sensitivity(model, metric=metric, sparsities=(0.25, 0.5))
    assert seen == [[0, 0], [0.25, 0], [0.5, 0], [0, 0.25], [0, 0.5]]
    assert found.drops == {"first/kernel": (2.5, 5.0), "last/kernel": (0.25, 0.5)}
    assert str(found).index("first/kernel") < str(found).index("last/kernel")
    assert zeros(model) == 0


def test_sensitivity_from_samples():
    found = kp.sensitivity(network(), samples(), sparsities=(0.9,), filters="first")
    assert list(found.drops) == ["first/kernel"]


def test_sensitivity_of_a_model_that_is_one_weight():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False, name="only")])
    found = kp.sensitivity(model, metric=lambda m: -zeros(m), sparsities=(0.0, 0.5))
    assert found.drops == {"only/kernel": (0.0, 0.5)}
    assert zeros(model) == 0


class Counter(layers.Layer):
    """Adds to its output how often it has run."""

    def build(self, _):
        self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.runs.assign_add(1.0)
        return inputs + self.runs


@pytest.mark.parametrize("metric", [None, lambda m: float(m.predict(samples(), verbose=0).sum())])
def test_every_measurement_begins_with_the_same_states(metric):
    model = keras.Sequential([*network().layers, Counter()])
    model.build((None, 8))
    given = None if metric else samples()
    assert set(kp.sensitivity(model, given, metric=metric, sparsities=(0.0,)).drops.values()) == {
        (0.0,)
    }
    kp.find_sparsity(model, masks_alone(), metric=metric, tolerance=0.5)
    assert float(model.layers[-1].runs) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "Received: None.$"),
        ([0.5, 0.9], r"Received: \[0.5, 0.9\]. .*`lambda model: metric\(model\)\[-1\]`"),
        ({"loss": 0.5}, r"Received: \{'loss': 0.5\}. .*`lambda model: metric\(model\)\['loss'\]`"),
        (np.ones(2), r"`lambda model: metric\(model\)\[-1\]`"),
    ],
)
def test_a_metric_gives_one_number(given, message):
    with pytest.raises(ValueError, match="`metric` must give a finite number. .*" + message):
        kp.find_sparsity(network(), samples(), metric=lambda _: given)


def test_a_metric_may_give_a_tensor():
    def metric(model):
        return keras.ops.mean(model(samples()))

    assert isinstance(kp.sensitivity(network(), metric=metric, sparsities=[0.5]).dense, float)


def test_as_many_samples_as_are_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(search, "prune", lambda _, __, calibration: seen.append(calibration.data))
    calibration = Calibration(samples(2048), samples=2000)
    kp.find_sparsity(network(), calibration, metric=lambda _: 1.0)
    assert [len(each) for each in seen] == [2000]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: kp.find_sparsity(m, samples(), max_drop=-1), "`max_drop` must be"),
        (lambda m: kp.find_sparsity(m, samples(), max_drop="1%"), "`max_drop` must be"),
        (lambda m: kp.find_sparsity(m, samples(), metric="accuracy"), "must be a function model"),
        (lambda m: kp.sensitivity(m, metric="accuracy"), "must be a function model"),
        (lambda m: kp.sensitivity(m, metric=lambda _: np.nan), "must give a finite number"),
        (lambda m: kp.find_sparsity(m, samples(), tolerance=0), "`tolerance` must be"),
        (lambda m: kp.find_sparsity(m, samples(), highest=98), "highest=0.98"),
        (lambda m: kp.find_sparsity(m, samples(), copy=True), "`copy` has nothing to do"),
        (lambda m: kp.sensitivity(m), "either calibration samples or a metric"),
        (lambda m: kp.sensitivity(m, samples(), sparsities=(50,)), "sparsities=0.5"),
        (lambda m: kp.sensitivity(m, samples(), sparsities=()), "at least one to try"),
        (lambda m: kp.sensitivity(m, samples(), sparsities=0.5), r"pass sparsities=\(0.5,\)"),
        (lambda m: kp.find_sparsity(m, samples(), sparsity=0.5), r"sparsity=0.5\. .* `highest`"),
        (
            lambda m: kp.find_sparsity(m, samples(), pattern=kp.NM(2, 4)),
            r"NM\(n=2, m=4\) fixes .* `highest` .* Prune with it",
        ),
        (
            lambda m: kp.find_sparsity(m, samples(), allocation={"": 0.5}),
            r"a mapping gives .* Received: allocation=\{'': 0.5\}\. Leave it out",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(network())
