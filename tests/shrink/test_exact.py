"""`kp.shrink(model)` removes all that is dead, and not an output changes."""

import keras
import numpy as np
import pytest
from networks import NETWORKS, half_kept, inputs_of, randomise, zero_units

import keras_pruner as kp
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import ModelGraph, functional_form


def outputs_of(model, inputs):
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def assert_same(one, other, inputs):
    for a, b in zip(outputs_of(one, inputs), outputs_of(other, inputs), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_units_that_are_zero_are_removed_and_no_output_changes(name):
    model = randomise(NETWORKS[name]())
    form = functional_form(model)
    channels = channels_of(ModelGraph(form))
    kept = half_kept(channels)
    assert not kept.all()
    zero_units(channels, kept)
    report = kp.shrink(model)
    for group, row in zip(channels.groups, report.groups, strict=True):
        assert row.before == len(group.classes)
        assert row.after <= np.count_nonzero(kept[group.classes])
    assert_same(form, functional_form(report.model), inputs_of(form))
    assert report.macs[1] < report.macs[0]
    assert report.weights[1] < report.weights[0]
