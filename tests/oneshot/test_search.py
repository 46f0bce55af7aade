import keras
import numpy as np
import pytest
from keras import layers

import keras_pruner as kp
from keras_pruner.oneshot import Calibration, search

pytestmark = pytest.mark.one_backend


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


def kept(model):
    """A metric that is one number."""
    return 1 - zeros(model)


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
    everywhere = kp.find_sparsity(network(), metric=lambda m: float(zeros(m) < 1), **options)
    assert (everywhere.sparsity, len(everywhere.points)) == (0.98, 1)
    nowhere = kp.find_sparsity(network(), metric=lambda m: -zeros(m), **options)
    assert nowhere.sparsity == 0


@pytest.mark.parametrize("outputs", [3, 1])
def test_without_a_metric_it_is_agreement_with_the_dense_model(outputs):
    curve = kp.find_sparsity(network(outputs), samples(), max_drop=0.3, tolerance=0.3)
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
    curve = kp.reports.SparsityCurve(0.5, 0.1, 0.9, ((0.5, 0.85), (0.8, 0.2)), "accuracy")
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


def largest_output(model):
    return float(abs(model.predict(samples(), verbose=0)).max())


@pytest.mark.parametrize("metric", [None, largest_output])
def test_every_measurement_begins_with_the_same_states(metric):
    model = keras.Sequential([*network().layers, Counter()])
    model.build((None, 8))
    given = None if metric else samples()
    assert set(kp.sensitivity(model, given, metric=metric, sparsities=(0.0,)).drops.values()) == {
        (0.0,)
    }
    kp.find_sparsity(model, masks_alone(), metric=metric, tolerance=0.5, confidence=0.5)
    assert float(model.layers[-1].runs) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "Received: None.$"),
        ([0.5, 0.9], r"Received: \[0.5, 0.9\]. .*`lambda model: metric\(model\)\[-1\]`"),
        ({"loss": 0.5}, r"Received: \{'loss': 0.5\}. .*`lambda model: metric\(model\)\['loss'\]`"),
        (np.ones(2), r"`lambda model: metric\(model\)\[-1\]`"),
        (np.full(64, np.nan), r"Received: <ndarray of shape \(64,\)>.$"),
    ],
)
def test_a_metric_gives_one_number_or_one_per_sample(given, message):
    with pytest.raises(ValueError, match="`metric` must give a finite number.*" + message):
        kp.find_sparsity(network(), samples(), metric=lambda _: given)


def test_a_metric_may_give_a_tensor():
    def metric(model):
        return keras.ops.mean(model(samples()))

    assert isinstance(kp.sensitivity(network(), metric=metric, sparsities=[0.5]).dense, float)


def test_as_many_samples_as_are_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(search, "prune", lambda _, __, calibration: seen.append(calibration.data))
    calibration = Calibration(samples(2048), samples=2000)
    kp.find_sparsity(network(), calibration, metric=lambda m: 1.0 - zeros(m))
    assert [len(each) for each in seen] == [2000]


# ---------------------------------------------------------------------- what a metric may be


def accuracy_like(model):
    """From 0.97 for the dense model down to 0.1 for zeros."""
    return 0.97 - 0.87 * zeros(model) ** 4


@pytest.mark.parametrize("max_drop", [5, 1.0, 0.87])
def test_a_bound_that_a_model_of_zeros_meets_is_refused(max_drop):
    with pytest.raises(ValueError, match=r"`max_drop` must be less than 0.87.*max_drop=.*0.01"):
        kp.find_sparsity(network(), samples(), metric=accuracy_like, max_drop=max_drop)


def test_per_cent_are_a_range_like_any_other():
    curve = kp.find_sparsity(
        network(), masks_alone(), metric=lambda m: 100 * accuracy_like(m), max_drop=5, tolerance=0.1
    )
    assert 0.3 < curve.sparsity < 0.6


@pytest.mark.parametrize(
    "metric",
    [lambda m: 0.3 + 2 * zeros(m), lambda _: 1.0],
    ids=["a loss", "a constant"],
)
def test_a_metric_that_is_no_better_for_the_model_than_for_zeros_is_refused(metric):
    model = network()
    with pytest.raises(ValueError, match=r"higher for a better model.*negate it"):
        kp.find_sparsity(model, samples(), metric=metric)
    assert zeros(model) == 0


def test_a_metric_without_a_number_for_zeros_has_an_unknown_range():
    def correlation(model):
        return 1 - zeros(model) if zeros(model) < 1 else np.nan

    curve = kp.find_sparsity(network(), masks_alone(), metric=correlation, max_drop=0.3)
    assert 0.28 < curve.sparsity < 0.32


def test_only_weights_that_the_options_prune_are_set_to_zero_for_the_range():
    seen = []

    def metric(model):
        seen.append([bool(np.any(layer.get_weights()[0])) for layer in model.layers])
        return accuracy_like(model)

    options = {"filters": "first", "tolerance": 0.5}
    kp.find_sparsity(network(), masks_alone(), metric=metric, **options)
    assert seen[:2] == [[True, True], [False, True]]


@pytest.mark.parametrize(("asked", "fitted", "measured"), [(1024, 150, 50), (40, 40, 120)])
def test_without_a_metric_it_is_measured_on_samples_that_are_not_calibrated_on(
    asked, fitted, measured, monkeypatch
):
    held = []
    monkeypatch.setattr(search, "_agreement", lambda _, samples: held.append(samples.inputs))
    calibration = Calibration(samples(200), samples=asked)
    _, fit = search._chosen(None, network(), calibration)
    assert (len(fit), len(held[0])) == (fitted, measured)
    assert not {row.tobytes() for row in fit.inputs} & {row.tobytes() for row in held[0]}


def test_too_few_samples_to_calibrate_and_to_measure():
    with pytest.raises(ValueError, match="at least 32 samples without a metric"):
        kp.find_sparsity(network(), samples(20))


def right_of(pruned, count=400):
    """One score per sample: right on all, but for a share that grows with the zeros."""
    return np.arange(count) >= round(count * 0.2 * zeros(pruned))


def test_with_a_score_per_sample_the_sampling_error_counts():
    options = {"metric": right_of, "max_drop": 0.1, "tolerance": 0.02}
    measured = kp.find_sparsity(network(), masks_alone(), confidence=0.5, **options)
    assert 0.47 < measured.sparsity < 0.52
    assert measured.limits == pytest.approx([1 - metric for _, metric in measured.points])
    sure = kp.find_sparsity(network(), masks_alone(), **options)
    assert 0.3 < sure.sparsity < 0.4
    assert (sure.confidence, sure.samples, sure.dense) == (0.95, 400, 1.0)
    limits = dict(zip((s for s, _ in sure.points), sure.limits, strict=True))
    assert limits[sure.sparsity] <= 0.1
    assert "Measured on 400 samples: with 95% confidence, the drop on other samples" in str(sure)


def test_a_metric_scores_the_same_samples_each_time():
    with pytest.raises(ValueError, match=r"the same samples.*\(64,\).*then \(32,\)"):
        kp.find_sparsity(
            network(),
            masks_alone(),
            metric=lambda m: np.ones(32 if 0 < zeros(m) < 1 else 64) * (zeros(m) < 1),
            max_drop=0.5,
        )


def test_a_metric_of_one_number_leaves_its_uncertainty_unknown():
    curve = kp.find_sparsity(network(), masks_alone(), metric=accuracy_like, tolerance=0.5)
    assert (curve.samples, curve.limits) == (None, ())
    assert "one score per sample" in str(curve)


def test_a_bound_that_no_sample_meets_says_why():
    curve = kp.find_sparsity(
        network(),
        masks_alone(),
        metric=lambda m: right_of(m) & (np.arange(400) >= 60 * (zeros(m) > 0)),
        max_drop=0.1,
        tolerance=0.3,
    )
    assert curve.sparsity == 0
    assert "400 samples do not confirm any of these sparsities with 95% confidence" in str(curve)


def test_too_few_samples_to_confirm_a_bound_are_refused_before_any_work():
    model = network()
    with pytest.raises(ValueError, match=r"32 samples.* 95% .*max_drop=0\.01.* on \d{3,} .*0\.5"):
        kp.find_sparsity(model, samples())
    with pytest.raises(ValueError, match=r"a larger `max_drop`"):
        kp.find_sparsity(model, samples(), max_drop=0)
    assert kp.find_sparsity(model, samples(), confidence=0.5, tolerance=0.5).samples == 32
    enough = 400
    search._check_enough(enough, 0.9, 0.01, 0.95)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("gained", [0.0, 0.5])
def test_the_limit_covers_the_true_drop_in_nineteen_of_twenty_draws(rate, gained):
    """Samples that are lost at `rate`, and others that are won, at a share of it."""
    rng = np.random.default_rng(0)
    thresholds = np.cumsum([rate, gained * rate])
    draws = rng.uniform(size=(2000, 500))
    lost = np.where(draws < thresholds[0], 1.0, np.where(draws < thresholds[1], -1.0, 0.0))
    limits = [search._drop_limit(row, np.zeros(500), 1.0, 0.95) for row in lost]
    assert np.mean(np.array(limits) >= rate * (1 - gained)) > 0.93


def test_outputs_that_are_not_clear_are_noticed():
    """A ridge over 60 neighbouring classes, as of pitches; and logits of three classes."""
    places = np.linspace(0, 1, 60)

    class Ridge(layers.Layer):
        def call(self, x):
            distance = keras.ops.subtract(keras.ops.sigmoid(x), places)
            return keras.ops.exp(-50 * keras.ops.square(distance))

    model = keras.Sequential([keras.Input((8,)), layers.Dense(1), Ridge()])
    curve = kp.find_sparsity(model, samples(), max_drop=0.5, tolerance=0.5)
    assert curve.unclear > 0.5
    assert "neighbouring classes" in str(curve)
    clear = kp.find_sparsity(network(), samples(), max_drop=0.5, tolerance=0.5)
    assert clear.unclear < 0.1
    assert "neighbouring classes" not in str(clear)


def test_a_metric_is_called_by_its_name():
    curve = kp.find_sparsity(network(), masks_alone(), metric=accuracy_like, tolerance=0.5)
    assert curve.metric == "accuracy_like"
    assert kp.sensitivity(network(), metric=lambda m: 1.0).metric == "the given metric"
    assert "drop in agreement of the largest output" in str(kp.sensitivity(network(), samples()))


def test_progress_is_shown_step_by_step(monkeypatch):
    heard = []

    class Progress:
        def __init__(self, title, total, *, shown):
            heard.append((total, shown))

        def __enter__(self):
            return heard.append

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(search, "show_progress", Progress)
    kp.find_sparsity(network(), masks_alone(), metric=accuracy_like, tolerance=0.1)
    (total, shown), *steps = heard
    assert shown
    assert len(steps) == total
    assert steps[0] == "sparsity 0.98"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: kp.find_sparsity(m, samples(), max_drop=-1), "`max_drop` must be"),
        (lambda m: kp.find_sparsity(m, samples(), max_drop="1%"), "`max_drop` must be"),
        (lambda m: kp.find_sparsity(m, samples(), metric="accuracy"), "must be a function model"),
        (lambda m: kp.sensitivity(m, metric="accuracy"), "must be a function model"),
        (lambda m: kp.sensitivity(m, metric=lambda _: np.nan), "must give a finite number"),
        (lambda m: kp.find_sparsity(m, samples(), tolerance=0), "`tolerance` must be"),
        (lambda m: kp.find_sparsity(m, samples(), confidence=95), r"\[0.5, 1\).*confidence=95"),
        (
            lambda m: kp.find_sparsity(m, samples(), metric=kept, confidence=0.9),
            r"one score per sample; .* confidence=0\.9\. Return the scores",
        ),
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
