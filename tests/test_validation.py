"""Every value object survives saving, equal; what is checked is checked with a full message."""

import re

import keras
import numpy as np
import pytest
from models import label

import keras_pruner as kp
from keras_pruner.allocations import PerWeight, erk, lamp, uniform
from keras_pruner.model_weights import WeightView
from keras_pruner.plan import Group, Member, Target
from keras_pruner.rules import Rules
from keras_pruner.validation import check_integer, check_regex, check_sparsity, value

pytestmark = pytest.mark.backend_free


@keras.saving.register_keras_serializable("test_values")
def stairs(step):
    return 0.5 if step < 10 else 0.8


def only_dense(layer):
    return isinstance(layer, keras.layers.Dense)


keras.saving.register_keras_serializable("test_values")(only_dense)

CONV = WeightView((3, 3, 5, 6), (), (0, 1), (2,), (3,))
VALUES = [
    kp.Unstructured(),
    kp.Block((4, 1)),
    kp.Block((2, 3), "max"),
    kp.NM(2, 4),
    kp.Channel(),
    kp.Channel(-2, pooling="max"),
    kp.ConstantSparsity(0.5),
    kp.ConstantSparsity(0.5, begin_step=3, end_step=30, frequency=9),
    kp.PolynomialDecay(0.8),
    kp.PolynomialDecay(
        0.8, initial_sparsity=0.2, begin_step=100, end_step=110, power=2.5, frequency=3
    ),
    kp.schedules.FunctionSchedule(stairs, begin_step=2, end_step=20),
    kp.allocations.Global(),
    kp.allocations.Global(floor=0.25),
    PerWeight({"conv": 0.5, ".*": 0.8}),
    CONV,
    Target("conv/kernel", CONV, kp.Block((4, 1)), None, 4),
    Target("head/kernel", WeightView((5, 6), (), (), (0,), (1,)), kp.NM(2, 4), 0.5, None),
    Member("conv/kernel", 3, (0, 1, -1, 2, 3, 4)),
    Group("add", (Member("conv/kernel", 3, range(6)), Member("b", 0, range(6), 1, True)), 6),
    Rules(),
    Rules(
        kp.Block((4, 1)),
        allocation="global",
        filters=["conv", "dense"],
        overrides={"head": None, "conv_1": 0.5, "ffn": kp.NM(2, 4), "x": (0.3, kp.Channel())},
    ),
    Rules(allocation={".*": 0.5}, filters=only_dense),
]


@pytest.mark.parametrize("given", VALUES, ids=label)
def test_values_survive_saving_equal(given):
    config = keras.saving.serialize_keras_object(given)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded == given
    assert type(loaded) is type(given)
    assert repr(loaded) == repr(given)


@pytest.mark.parametrize("given", VALUES, ids=label)
def test_configs_are_json(given):
    text = keras.saving.serialize_keras_object(given)
    import json

    loaded = keras.saving.deserialize_keras_object(json.loads(json.dumps(text)))
    assert loaded == given


@pytest.mark.parametrize(
    "function",
    [kp.criteria.magnitude, uniform, erk, lamp],
)
def test_functions_survive_saving(function):
    config = keras.saving.serialize_keras_object(function)
    assert keras.saving.deserialize_keras_object(config) is function


@pytest.mark.parametrize("given", VALUES, ids=label)
def test_values_are_frozen(given):
    name = next(iter(given.get_config()), "anything")
    with pytest.raises(AttributeError):
        setattr(given, name, None)


def test_values_that_differ_in_a_field_differ():
    assert len({repr(v) for v in VALUES}) == len(VALUES)
    for i, one in enumerate(VALUES):
        assert [other == one for other in VALUES].count(True) == 1, VALUES[i]


def test_a_mapping_that_changes_later_does_not_change_the_value():
    mapping = {"conv": 0.5}
    fixed, rules = PerWeight(mapping), Rules(overrides=mapping)
    mapping["conv"] = 80
    assert fixed == PerWeight({"conv": 0.5})
    assert rules == Rules(overrides={"conv": 0.5})


def test_a_value_of_the_users_own():
    @value
    class Mine:
        floor: float = 0.5

    assert Mine(0.25).get_config() == {"floor": 0.25}
    assert Mine.from_config({"floor": 0.25}) == Mine(0.25)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 1 - 1e-12, np.float32(0.5), np.float64(0)])
def test_fractions_are_sparsities(sparsity):
    check_sparsity("s", sparsity)


@pytest.mark.parametrize(
    ("sparsity", "fix"),
    [
        (80, "For 80% zeros pass final_sparsity=0.8."),
        (62.5, "For 62.5% zeros pass final_sparsity=0.625."),
        (np.int64(80), "For 80% zeros pass final_sparsity=0.8."),
        (np.float32(80), "For 80% zeros pass final_sparsity=0.8."),
        (1, "for 99% zeros pass final_sparsity=0.99."),
        (1.0, "for 99% zeros pass final_sparsity=0.99."),
        (100, "for 99% zeros pass final_sparsity=0.99."),
        (-0.1, ""),
        (101, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        (True, ""),
        ("0.8", ""),
        (None, ""),
        ([0.5], ""),
    ],
)
def test_anything_else_is_refused_with_the_fix(sparsity, fix):
    expected = (
        "`final_sparsity` must be the fraction of weights set to zero, in [0, 1). "
        f"Received: final_sparsity={sparsity!r}."
    )
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        check_sparsity("final_sparsity", sparsity)
    assert fix in str(raised.value)
    assert ("pass" in str(raised.value)) == bool(fix)


@pytest.mark.parametrize("number", [1, 7, np.int32(1)])
def test_integers(number):
    check_integer("n", number, least=1)


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "1", None])
def test_anything_else_is_no_integer(number):
    expected = f"`n` must be an integer of at least 1. Received: n={number!r}."
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_integer("n", number, least=1)


def test_errors_show_no_pages_of_numbers():
    array = np.random.default_rng(0).random((64, 8))
    with pytest.raises(ValueError, match=r"Received: s=<ndarray of shape \(64, 8\)>\.$"):
        check_sparsity("s", array)
    with pytest.raises(ValueError, match=r"Received: n=<list of length 512>\.$"):
        check_integer("n", array.ravel().tolist(), least=1)


def test_regexes():
    check_regex("filters", "conv.*")
    with pytest.raises(ValueError, match=r"`filters` must hold regular .* Received: '\('"):
        check_regex("filters", "(")
    with pytest.raises(ValueError, match=r"not a string. Received: 3"):
        check_regex("filters", 3)
