"""The least sparsity at which an exported file fits into flash."""

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.litert.targets import TARGETS, ship

pytestmark = pytest.mark.one_backend

X = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(256, activation="relu", name="wide"), keras.layers.Dense(8)]
    return keras.Sequential([keras.Input((32,), name="x"), *layers])


@pytest.mark.tensorflow
class TestFits:
    @pytest.fixture(autouse=True)
    def installed(self):
        for package in ("ai_edge_litert", "tensorflow", "tflite_micro", "ethosu"):
            pytest.importorskip(package)

    @pytest.mark.parametrize("target", ["tflm", "ethos-u55-128", "litert-x86"])
    def test_the_file_fits_there_and_not_a_step_below(self, model, tmp_path, target):
        before = model.get_weights()
        sizes = {}
        for sparsity in (0.0, 0.98):
            pruned = kp.prune(model, sparsity, copy=True).model if sparsity else model
            sizes[sparsity] = ship(pruned, tmp_path / "m.tflite", target, X, progress=False).flash
        assert sizes[0.98] < sizes[0.0]
        limit = (sizes[0.0] + sizes[0.98]) // 2
        found = kp.find_sparsity(model, X, flash=limit, target=target, tolerance=0.1)
        assert 0 < found.sparsity < 0.98
        tried = dict(found.sizes)
        assert tried[found.sparsity] <= limit < tried[max(s for s in tried if s < found.sparsity)]
        assert found.pruned <= found.dense == 1.0
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert f"the file for {target} fits into" in str(found)

    def test_the_arena_can_be_limited(self, model):
        free = kp.find_sparsity(model, X, flash=8000, tolerance=0.4)
        tight = kp.find_sparsity(model, X, flash=8000, ram=9000, tolerance=0.4)
        assert dict(tight.sizes)[tight.sparsity] <= 8000
        assert dict(tight.sizes)[0.98] > dict(free.sizes)[0.98]  # in parts: more operators
        with pytest.raises(ValueError, match=r"flash=8,000, ram=4,000.* Allow more `ram`"):
            kp.find_sparsity(model, X, flash=8000, ram=4000, tolerance=0.4)

    def test_a_file_that_fits_as_it_is_needs_no_zeros(self, model):
        found = kp.find_sparsity(model, X, flash=1_000_000, target="litert-x86")
        assert found.sparsity == 0
        assert found.pruned == found.dense

    def test_the_layer_that_is_too_large_is_named(self, model):
        with pytest.raises(ValueError, match=r"does not fit at any .* weight is \S*wide"):
            kp.find_sparsity(model, X, flash=1000, target="litert-x86")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flash": 0}, "`flash` must be"),
        ({"flash": 1000, "max_drop": 0.1}, "pass one of them. Received: flash=1000, max_drop=0.1"),
        ({"flash": 1000, "confidence": 0.9}, "pass one of them. Received: .*confidence=0.9"),
        ({"flash": 1000, "target": "stm32"}, "`target` must be one of .*'stm32'"),
        ({"target": "tflm"}, "`target` is for `flash`"),
        ({"ram": 1000}, "`ram` is for `flash`"),
        ({"flash": 1000, "ram": 0}, "`ram` must be"),
        ({"flash": 1000, "ram": 1000, "target": "wasm"}, "`ram` is for target=.tflm."),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_is_right(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        kp.find_sparsity(model, X, **arguments)


def test_unknown_options_are_refused_before_the_search(model):
    with pytest.raises(TypeError, match="neither has these: rams"):
        kp.find_sparsity(model, X, flash=1000, rams=1)


@pytest.mark.parametrize("options", [{"ram": 1000}, {"header": "m.h"}], ids=str)
def test_limits_of_another_target_are_refused(model, tmp_path, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is for target=.tflm."):
        ship(model, tmp_path / "m.tflite", "wasm", **options)


def test_integer_targets_need_samples(model, tmp_path):
    assert {"tflm", "ethos-u55-128", "litert-x86", "wasm"} <= set(TARGETS)
    for target in ("tflm", "ethos-u85-256"):
        with pytest.raises(ValueError, match="needs `samples`"):
            ship(model, tmp_path / "m.tflite", target)
