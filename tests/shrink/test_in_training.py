"""Training with `Channel` decides once for each group, so that `kp.shrink` removes all of it."""

import keras
import numpy as np
import pytest
from networks import NETWORKS, inputs_of, randomise

import keras_pruner as kp
from keras_pruner.model_graph import functional_form

L = keras.layers

TRAINED = ["mlp", "cnn_flatten", "residual", "dense_net", "lstm", "attention_without_norms",
           "grouped", "subclassed"]  # fmt: skip


def compiled(name):
    model = randomise(NETWORKS[name]())
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    return model


def fitted(model, *callbacks, epochs=2):
    form = functional_form(model)
    x = inputs_of(form, 32)
    outputs = keras.tree.flatten(form.outputs)
    y = [np.zeros((32, *output.shape[1:]), "float32") for output in outputs]
    y = y[0] if len(y) == 1 else y
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore:A sparsity of 0.5 was asked for and .* of the tied channels")
def test_half_of_each_group_is_removed_after_training(name):
    model = fitted(compiled(name), kp.GradualPruning(0.5, pattern=kp.Channel()))
    report = kp.shrink(model)
    cut = [group for group in report.groups if not group.reason]
    assert cut
    for group in cut:
        assert group.after <= max(1, -(-group.before // 2)), group
    assert report.difference <= 1e-5


def test_the_plan_names_groups_and_why_the_rest_is_left_alone():
    plan = kp.Pruner(compiled("residual"), 0.5, pattern=kp.Channel(), updates=8).plan
    tied = next(group for group in plan.groups if len(group.members) > 6)
    assert tied.units == 8
    assert {member.path.rsplit("/")[-1] for member in tied.members} >= {"kernel", "bias", "beta"}
    assert any(skip.reason == "an output of the model" for skip in plan.skipped)


def test_overrides_reach_the_whole_group():
    model = compiled("mlp")
    first, second, _ = (f"{layer.name}/kernel" for layer in model.layers)
    overrides = {first: 0.75, second: None}
    fitted(model, kp.GradualPruning(0.5, pattern=kp.Channel(), overrides=overrides))
    after = [group.after for group in kp.shrink(model).groups[1:]]
    assert after == [4, 12, 3]


@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_saved_model_goes_on_with_its_groups(tmp_path):
    schedule = kp.PolynomialDecay(
        initial_sparsity=0.2, final_sparsity=0.5, begin_step=0, end_step=8, frequency=2
    )
    model = compiled("residual")
    fitted(model, kp.GradualPruning(schedule, pattern=kp.Channel()), epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fitted(loaded, kp.GradualPruning(schedule, pattern=kp.Channel()), epochs=1)
    report = kp.shrink(loaded)
    assert all(g.after <= -(-g.before // 2) for g in report.groups if not g.reason)


@pytest.mark.parametrize("name", ["cnn_flatten", "residual", "dense_net", "separable", "gated"])
@pytest.mark.filterwarnings("ignore:A sparsity of 0.5 was asked for")  # an odd number of units
def test_pruned_at_once_all_of_it_can_be_shrunk(name):
    model = compiled(name)
    x = inputs_of(functional_form(model), 64)
    kp.prune(model, 0.5, pattern=kp.Channel(), allocation="uniform", calibration=x)
    report = kp.shrink(model)
    cut = [group for group in report.groups if not group.reason]
    assert cut
    assert all(group.after <= max(1, -(-group.before // 2)) for group in cut)


def without_scale(activation):
    layers = [L.Conv2D(8, 3, activation=activation), L.BatchNormalization(scale=False), L.ReLU(),
              L.Conv2D(6, 3, padding="same"), L.GlobalAveragePooling2D(), L.Dense(2)]  # fmt: skip
    model = randomise(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    return model


def test_means_of_batch_norms_without_scale_become_zero():
    model = fitted(without_scale(None), kp.GradualPruning(0.5, pattern=kp.Channel()))
    assert [g.after for g in kp.shrink(model).groups if not g.reason] == [4, 3]


def test_means_behind_a_sigmoid_are_left_alone():
    model = fitted(without_scale("sigmoid"), kp.GradualPruning(0.5, pattern=kp.Channel()))
    assert (keras.ops.convert_to_numpy(model.layers[1].moving_mean) != 0).all()


@pytest.mark.filterwarnings("ignore:A sparsity of 0.5 was asked for")
def test_numbers_of_channels_are_multiples_if_asked_for():
    pruning = kp.GradualPruning(0.5, pattern=kp.Channel(multiple=3))
    report = kp.shrink(fitted(compiled("mlp"), pruning))
    assert [g.after for g in report.groups if not g.reason] == [9, 6]
