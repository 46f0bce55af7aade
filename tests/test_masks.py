"""Masks: one decision for a single weight, or for a group of tied ones."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from keras_pruner.criteria import magnitude
from keras_pruner.masks import MaskedWeight, TiedWeights, choose, decide
from keras_pruner.model_weights import view_of, weights_of
from keras_pruner.patterns import Channel
from keras_pruner.plan import Group, Member, Plan, Target
from keras_pruner.rules import Rules
from keras_pruner.selection.top_k import kept_count

CHANNELS = 6


def tied_model():
    """Two convolutions whose outputs are added, each with a bias, and a normalization."""
    image = keras.Input((8, 8, 3))
    one = layers.Conv2D(CHANNELS, 3, padding="same", name="one")(image)
    two = layers.Conv2D(CHANNELS, 1, name="two")(image)
    out = layers.BatchNormalization(name="norm")(layers.Add()([one, two]))
    model = keras.Model(image, layers.Conv2D(4, 3, name="three")(out))
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(np.abs(random.normal(size=variable.shape)))
    return model


def group_of(model, pattern=Channel(), sparsity=None):  # noqa: B008 - a frozen value
    """One decision for all that the addition ties; the third kernel reads the channels."""
    members = []
    for owned in weights_of(model):
        name, rank = owned.layer.name, len(owned.variable.shape)
        if name in ("one", "two", "norm"):
            members.append(Member(owned.path, rank - 1, range(CHANNELS), follows=rank == 1))
        elif rank == 4:
            members.append(Member(owned.path, 2, range(CHANNELS), follows=True))
    return Group("add", members, CHANNELS, pattern, sparsity)


def planned(model, group, pattern=Channel()):  # noqa: B008 - a frozen value
    """A plan with the group, and the weights of its targets with masks that keep everything."""
    paths = {member.path for member in group.members}
    owned = [each for each in weights_of(model) if each.path in paths]
    targets = tuple(Target(each.path, each.view, pattern) for each in owned)
    variables = tuple(each.variable for each in owned)
    plan = Plan(targets, (), variables, Rules(pattern).allocation, magnitude, groups=(group,))
    masks = [
        keras.Variable(np.ones(v.shape, bool), dtype="bool", trainable=False) for v in variables
    ]
    return plan, [MaskedWeight(*each) for each in zip(targets, variables, masks, strict=True)]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_group_of_tied_weights_is_decided_once(pooling):
    model = tied_model()
    group = group_of(model, Channel(pooling=pooling))
    plan, weights = planned(model, group)
    kernels = [
        np.asarray(keras.ops.convert_to_numpy(model.get_layer(n).kernel)) for n in ("one", "two")
    ]
    pool = np.max if pooling == "max" else np.mean
    together = np.concatenate([np.abs(k).reshape(-1, CHANNELS) for k in kernels])
    expected = np.sort(np.argsort(-pool(together, axis=0))[:3])
    for weight, choice in zip(weights, choose(weights, plan, 0.5, 0.5), strict=True):
        weight.apply(choice)
    for member, weight in zip(group.members, weights, strict=True):
        kept = np.moveaxis(weight.read_mask(), member.axis, 0).reshape(CHANNELS, -1)
        assert np.flatnonzero(kept.all(axis=1)).tolist() == expected.tolist()
        assert kept.any(axis=1).sum() == 3
        assert not weight.read()[~weight.read_mask()].any()
    assert {len(weight.shape) for weight in weights} == {1, 4}
    assert len(weights) == 9  # two kernels with biases, four vectors, a kernel that reads them


def test_pruned_channels_of_a_group_compute_nothing():
    model = tied_model()
    plan, weights = planned(model, group_of(model))
    for weight, choice in zip(weights, choose(weights, plan, 0.5, 0.5), strict=True):
        weight.apply(choice)
    inner = keras.Model(model.inputs[0], model.get_layer("norm").output)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    outputs = np.asarray(keras.ops.convert_to_numpy(inner(x)))
    assert (np.abs(outputs).max(axis=(0, 1, 2)) == 0).sum() == 3


def test_masks_of_a_group_nest():
    model = tied_model()
    plan, weights = planned(model, group_of(model))
    before = decide(weights, plan, 0.0, 0.8)
    for sparsity in (0.2, 0.5, 0.8):
        random = np.random.default_rng(int(10 * sparsity))
        for weight in weights:
            weight.variable.assign(random.normal(size=weight.shape))
        masks = decide(weights, plan, sparsity, 0.8)
        for weight, old, new in zip(weights, before, masks, strict=True):
            assert not (new & ~old).any()
            weight.apply(new)
        before = masks


def test_a_group_of_one_is_a_single_weight():
    model = keras.Sequential([keras.Input((7, 7, 3)), layers.Conv2D(8, 3, use_bias=False)])
    (owned,) = weights_of(model)
    group = Group("only", (Member(owned.path, 3, range(8)),), 8)
    plan, weights = planned(model, group)
    alone = dataclasses.replace(plan, groups=())
    for sparsity in (0.0, 0.3, 0.5, 0.9):
        (one,), (other,) = (
            decide(weights, plan, sparsity, 0.9),
            decide(weights, alone, sparsity, 0.9),
        )
        np.testing.assert_array_equal(one, other)


def test_a_group_has_one_share_of_the_budget():
    seen = {}

    def halves(shares, sparsity):
        seen.update({share.path: (share.shape, share.units) for share in shares})
        return dict.fromkeys(shares, 0.5)

    model = tied_model()
    plan, weights = planned(model, group_of(model))
    decide(weights, dataclasses.replace(plan, allocation=halves), 0.5, 0.5)
    assert seen == {"add": ((3, 3, 3, CHANNELS), CHANNELS)}


def test_a_group_has_a_sparsity_of_its_own():
    model = tied_model()
    plan, weights = planned(model, group_of(model, sparsity=0.8))
    masks = decide(weights, plan, 0.25, 0.5)
    kept = masks[0].any(axis=(0, 1, 2)).sum()
    assert kept == kept_count(CHANNELS, 0.4)


def test_units_of_a_member_repeat_and_begin_at_any_place():
    flat = Member("dense/kernel", 0, (0, 1, -1))  # channels last, of a flattened image
    assert flat.unit_of(7).tolist() == [0, 1, -1, 0, 1, -1, 0]
    planes = Member("dense/kernel", 0, (0, 1), repeat=3)  # channels first
    assert planes.unit_of(6).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_weight_of_two_groups_loses_the_units_of_both():
    layer = layers.Dense(4, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign(np.outer([1.0, 5, 2, 4], [3.0, 1, 4, 2]))
    groups = tuple(
        Group(name, (Member("kernel", axis, range(4)),), 4, sparsity=0.5)
        for axis, name in enumerate(("inputs", "outputs"))
    )
    target = Target("kernel", view_of(layer, layer.kernel), Channel())
    weight = MaskedWeight(target, layer.kernel, np.ones((4, 4), bool))
    plan = Plan((target,), (), (layer.kernel,), Rules().allocation, magnitude, groups=groups)
    (mask,) = decide([weight], plan, 0.5, 0.5)
    assert (
        mask.tolist() == np.outer([False, True, False, True], [True, False, True, False]).tolist()
    )
    again = MaskedWeight(target, np.asarray(layer.kernel), mask)
    tied = TiedWeights(groups[1], ((groups[1].members[0], again),))
    scores = tied.unit_scores(magnitude)
    assert (scores > -np.inf).tolist() == [True, False, True, False]
    assert model.count_params() == 16


def test_the_coverage_counts_what_is_left_alone():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, name="a"), layers.Dense(2, name="b")]
    )
    model.get_layer("a").trainable = False
    plan = Rules().plan(model)
    assert plan.coverage == pytest.approx(12 / 36)
