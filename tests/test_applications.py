"""Every architecture in `keras.applications` plans, and prunes to exactly the lawful counts.

Each family runs on one backend, the one that builds models fastest, and a few families on each
of the others; the rest is marked slow there, as are the deeper members of a family anywhere.
"""

import inspect

import keras
import numpy as np
import pytest

from keras_pruner.allocations import erk, lamp, uniform
from keras_pruner.masks import MaskedWeight, decide
from keras_pruner.patterns import NM
from keras_pruner.rules import Rules
from keras_pruner.selection.top_k import kept_count

ALL_ON = "tensorflow"
EVERYWHERE = {"MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny", "NASNetMobile"}
NOT_ON_TORCH = {"NASNetMobile", "NASNetLarge"}  # Keras refuses to build them there
# Members of a family that repeat the blocks of a smaller one more often.
SLOW = {
    "ConvNeXtBase",
    "ConvNeXtLarge",
    "ConvNeXtSmall",
    "ConvNeXtXLarge",
    "DenseNet169",
    "DenseNet201",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetB5",
    "EfficientNetB6",
    "EfficientNetB7",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "EfficientNetV2S",
    "NASNetLarge",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "VGG16",
    "VGG19",
}
SMALLEST = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}

ARCHITECTURES = [
    name
    for name, member in vars(keras.applications).items()
    if inspect.isfunction(member) and name[0].isupper()
]


def parameters():
    here = keras.backend.backend() == ALL_ON
    for name in ARCHITECTURES:
        slow = name in SLOW or not (here or name in EVERYWHERE)
        yield pytest.param(name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(autouse=True)
def cheap_weights(monkeypatch):
    """Variables of zeros: to draw 60 million random numbers takes longer than all the rest."""

    def zeros(self, shape, dtype=None, **kwargs):
        del self, kwargs
        return keras.ops.zeros(shape, dtype)

    for cls in (
        keras.initializers.GlorotUniform,
        keras.initializers.VarianceScaling,
        keras.initializers.TruncatedNormal,
        keras.initializers.RandomNormal,
    ):
        monkeypatch.setattr(cls, "__call__", zeros)


def build(name):
    if name in NOT_ON_TORCH and keras.backend.backend() == "torch":
        pytest.skip("Keras does not build it with the torch backend")
    side = SMALLEST.get(name, 32)
    make = getattr(keras.applications, name)
    return make(weights=None, include_top=False, input_shape=(side, side, 3))


class DrawnWeight(MaskedWeight):
    """A weight whose few numbers are repeated when it is read."""

    def read(self):
        return np.resize(self.variable, self.shape)


def weights_of(plan):
    """Values that any backend would give, without one: drawn once, cut to each shape."""
    numbers = np.random.default_rng(0).standard_normal(2**16, np.float32)
    return [
        DrawnWeight(target, numbers * np.float32(0.9**i), np.broadcast_to(True, target.shape))
        for i, target in enumerate(plan.targets)
    ]


def test_the_list_is_that_of_keras():
    assert len(ARCHITECTURES) >= 38
    assert {*SLOW, *SMALLEST, *EVERYWHERE} <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", list(parameters()))
def test_every_architecture_plans_and_prunes(name):
    model = build(name)
    plan = Rules().plan(model)

    assert len(plan.targets) + len(plan.skipped) == len(model.weights)
    assert all(skip.reason for skip in plan.skipped)
    assert len({t.path for t in plan.targets} | {s.path for s in plan.skipped}) == len(
        model.weights
    )
    shares = sum(target.units for target in plan.targets) / model.count_params()
    assert shares > 0.7, f"The default rule finds only {shares:.0%} of the parameters."

    masks = decide(weights_of(plan), plan, 0.8, 0.8)
    kept = [int(np.count_nonzero(mask)) for mask in masks]
    assert [mask.shape for mask in masks] == [target.shape for target in plan.targets]
    assert min(kept) >= 1
    # Of one budget, one top-k: exactly its count.
    assert sum(kept) == kept_count(sum(target.units for target in plan.targets), 0.8)


@pytest.mark.parametrize("allocation", [uniform, erk, lamp])
@pytest.mark.parametrize("name", ["EfficientNetB0", "MobileNetV3Small"])
def test_allocations_meet_their_budget_on_a_real_architecture(name, allocation):
    plan = Rules(allocation=allocation).plan(build(name))
    masks = decide(weights_of(plan), plan, 0.8, 0.8)
    request = 0.2 * sum(target.units for target in plan.targets)
    assert abs(sum(np.count_nonzero(mask) for mask in masks) - request) < len(masks)
    if allocation is uniform:
        for target, mask in zip(plan.targets, masks, strict=True):
            assert np.count_nonzero(mask) == kept_count(target.units, 0.8)


def test_two_of_four_on_a_real_architecture():
    plan = Rules(NM(2, 4)).plan(build("MobileNetV3Small"))
    for target, mask in zip(plan.targets, decide(weights_of(plan), plan, 0.5, 0.5), strict=True):
        assert np.count_nonzero(mask) == NM(2, 4).kept(target.view.kernel_shape)
