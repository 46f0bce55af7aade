"""Schedules: when masks are updated, and the sparsity at that step."""

import copy
import dataclasses
import pickle
import re

import keras
import numpy as np
import pytest
from models import label

from keras_pruner.schedules import (
    ConstantSparsity,
    FunctionSchedule,
    PolynomialDecay,
    Schedule,
    as_schedule,
)
from keras_pruner.testing import check_schedule

pytestmark = pytest.mark.backend_free


@keras.saving.register_keras_serializable("test_schedules")
def stairs(step):
    assert type(step) is int, "a user's schedule gets a Python int"
    return 0.5 if step < 40 else 0.8


@keras.saving.register_keras_serializable("test_schedules")
@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A schedule as a user would write it."""

    begin_step: int = 3
    end_step: int | None = None
    frequency: int | None = 7

    def sparsity_at(self, step):
        return min(0.9, 0.001 * step)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


SCHEDULES = [
    ConstantSparsity(0.5),
    ConstantSparsity(0.5, begin_step=10),
    ConstantSparsity(0.5, begin_step=10, end_step=33, frequency=10),
    ConstantSparsity(0.0),
    PolynomialDecay(0.8),
    PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=100, end_step=110),
    PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=100, end_step=110, frequency=3),
    PolynomialDecay(0.8, end_step=1050, frequency=700),
    PolynomialDecay(0.8, begin_step=5, end_step=5),
    PolynomialDecay(0.8, end_step=0),
    PolynomialDecay(0.8, end_step=1000, power=1, frequency=2000),
    PolynomialDecay(0.5, initial_sparsity=0.9, end_step=50),
    FunctionSchedule(stairs),
    FunctionSchedule(stairs, begin_step=7, end_step=50, frequency=4),
    Linear(),
    Linear(end_step=100),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_laws_of_schedules(schedule):
    check_schedule(schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_updates_at_the_beginning_on_every_beat_and_at_the_end(schedule):
    settled = schedule.resolve(1000, 0.0)
    begin, end = settled.begin_step, settled.end_step
    frequency = settled.frequency or max(1, (end - begin) // 100)
    expected = {*range(begin, end, frequency), end}
    assert {step for step in range(end + 100) if settled.updates_at(step)} == expected


def test_update_steps_by_hand():
    schedule = PolynomialDecay(0.8, end_step=1050, frequency=700)
    assert [t for t in range(2000) if schedule.updates_at(t)] == [0, 700, 1050]
    assert schedule.sparsity_at(1050) == 0.8


def test_a_schedule_without_frequency_updates_a_hundred_times():
    updates = [t for t in range(1201) if PolynomialDecay(0.8, end_step=1000).updates_at(t)]
    assert updates == list(range(0, 1001, 10))
    assert [t for t in range(9) if PolynomialDecay(0.8, end_step=3).updates_at(t)] == [0, 1, 2, 3]


@pytest.mark.parametrize("frequency", [1, 3, 7, 10, 100])
@pytest.mark.parametrize("span", [0, 1, 5, 99, 100, 101])
def test_the_final_sparsity_is_reached_whatever_the_frequency(span, frequency):
    schedule = PolynomialDecay(0.8, begin_step=11, end_step=11 + span, frequency=frequency)
    updates = [t for t in range(300) if schedule.updates_at(t)]
    assert schedule.sparsity_at(updates[-1]) == 0.8
    assert updates[-1] == 11 + span


class TestPolynomialDecay:
    # Zhu & Gupta 2017, arXiv:1710.01878, eq. 1: s_f + (s_i - s_f) (1 - (t - t_0)/(t_1 - t_0))^3.
    # By hand: 0.8 - 0.6 (0.8)^3 = 0.8 - 0.3072; 0.8 - 0.6 (0.5)^3 = 0.8 - 0.075.
    @pytest.mark.parametrize(
        ("step", "expected"),
        [(0, 0.2), (99, 0.2), (100, 0.2), (102, 0.4928), (105, 0.725), (110, 0.8), (10**9, 0.8)],
    )
    def test_equation_one(self, step, expected):
        schedule = PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=100, end_step=110)
        assert schedule.sparsity_at(step) == pytest.approx(expected, abs=1e-12)

    def test_power_one_is_linear(self):
        schedule = PolynomialDecay(0.8, initial_sparsity=0.2, end_step=10, power=1)
        found = [schedule.sparsity_at(t) for t in range(11)]
        np.testing.assert_allclose(found, np.linspace(0.2, 0.8, 11))

    @pytest.mark.parametrize("power", [0.5, 1, 3, 7])
    def test_it_never_falls_and_ends_exactly(self, power):
        schedule = PolynomialDecay(0.7, initial_sparsity=0.1, end_step=997, power=power)
        found = [schedule.sparsity_at(t) for t in range(1100)]
        assert (np.diff(found) >= 0).all()
        assert found[0] == pytest.approx(0.1)
        assert found[997] == 0.7

    @pytest.mark.parametrize("step", [4, 5, 6])
    def test_no_span_is_no_division_by_zero(self, step):
        schedule = PolynomialDecay(0.8, initial_sparsity=0.2, begin_step=5, end_step=5)
        assert schedule.sparsity_at(step) == (0.2 if step < 5 else 0.8)

    def test_resolve_takes_three_quarters_of_the_training_and_the_present_sparsity(self):
        settled = PolynomialDecay(0.8).resolve(1000, 0.25)
        assert settled == PolynomialDecay(0.8, initial_sparsity=0.25, end_step=750)
        settled = PolynomialDecay(0.8, begin_step=200).resolve(1000, 0.0)
        assert settled == PolynomialDecay(0.8, initial_sparsity=0.0, begin_step=200, end_step=800)

    @pytest.mark.parametrize(
        ("steps", "end"), [(30, 0), (50, 0), (80, 30), (100, 50), (200, 150), (2000, 1500)]
    )
    @pytest.mark.usefixtures("schedules_of_short_trainings")
    def test_50_steps_are_left_to_recover(self, steps, end):
        assert PolynomialDecay(0.8).resolve(steps, 0.0).end_step == end
        settled = PolynomialDecay(0.8, begin_step=50).resolve(50 + steps, 0.0)
        assert (settled.begin_step, settled.end_step) == (50, 50 + end)

    def test_resolve_keeps_what_was_said(self):
        schedule = PolynomialDecay(0.8, initial_sparsity=0.1, end_step=10)
        assert schedule.resolve(None, 0.5) == schedule

    def test_resolve_never_begins_above_the_end(self):
        assert PolynomialDecay(0.5, end_step=9).resolve(10, 0.8).initial_sparsity == 0.5

    @pytest.mark.parametrize("steps", [0, 1, 2, 3])
    def test_the_shortest_trainings_reach_the_end(self, steps):
        settled = PolynomialDecay(0.8).resolve(steps, 0.0)
        assert settled.end_step <= steps
        assert settled.sparsity_at(settled.end_step) == 0.8


def test_constant_sparsity_resolves_to_one_update():
    settled = ConstantSparsity(0.5, begin_step=10).resolve(None, 0.3)
    assert settled == ConstantSparsity(0.5, begin_step=10, end_step=10)
    assert [t for t in range(1000) if settled.updates_at(t)] == [10]


def test_sparsity_at_end_is_known_early_where_it_can_be():
    assert ConstantSparsity(0.5).sparsity_at_end == 0.5
    assert PolynomialDecay(0.8).sparsity_at_end == 0.8
    assert FunctionSchedule(stairs).sparsity_at_end is None
    assert FunctionSchedule(stairs, end_step=40).sparsity_at_end == 0.8


class TestFunctionSchedule:
    def test_it_ends_with_the_training(self):
        assert FunctionSchedule(stairs).resolve(100, 0.0).end_step == 100

    def test_a_training_that_ends_before_it_begins_is_left_to_the_caller(self):
        assert FunctionSchedule(stairs, begin_step=500).resolve(100, 0.0).end_step == 500

    @pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.array(0.5), np.float64(0.5)])
    def test_any_number_will_do(self, number):
        sparsity = FunctionSchedule(lambda _: number).sparsity_at(3)
        assert sparsity == 0.5
        assert type(sparsity) is float

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (80, r"`schedule\(3\)` must be the fraction .* For 80% zeros pass"),
            (None, r"Received: schedule\(3\)=None"),
            ("0.5", r"Received: schedule\(3\)='0.5'"),
            ((True, 0.5), r"Received: schedule\(3\)=\(True, 0.5\)"),
        ],
    )
    def test_what_is_no_sparsity_is_refused_with_its_step(self, given, message):
        with pytest.raises(ValueError, match=message):
            FunctionSchedule(lambda _: given).sparsity_at(3)


def test_as_schedule():
    assert as_schedule(0.8) == PolynomialDecay(0.8)
    assert as_schedule(stairs) == FunctionSchedule(stairs)
    assert as_schedule(np.float32(0.5)) == PolynomialDecay(0.5)
    schedule = Linear()
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize("given", [80, "0.8", None, True, PolynomialDecay])
def test_as_schedule_refuses_the_rest(given):
    with pytest.raises(ValueError, match=re.escape(f"Received: schedule={given!r}")):
        as_schedule(given)


def test_unknown_length():
    for schedule in (PolynomialDecay(0.8), FunctionSchedule(stairs), Linear()):
        with pytest.raises(ValueError, match=r"without `end_step`.*steps_per_epoch.*updates=2000"):
            schedule.resolve(None, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(80), "`final_sparsity` .* Received: final_sparsity=80. For 80%"),
        (lambda: PolynomialDecay(0.8, initial_sparsity=20), "`initial_sparsity` must be"),
        (lambda: PolynomialDecay(1.0), "Received: final_sparsity=1.0"),
        (lambda: ConstantSparsity(50), "`sparsity` must be the fraction"),
        (
            lambda: PolynomialDecay(0.8, begin_step=10, end_step=5),
            "`end_step` must not come before `begin_step`. Received: begin_step=10, end_step=5",
        ),
        (lambda: ConstantSparsity(0.5, begin_step=10, end_step=5), "must not come before"),
        (lambda: FunctionSchedule(stairs, begin_step=10, end_step=5), "must not come before"),
        (lambda: PolynomialDecay(0.8, begin_step=-1), "`begin_step` must be an integer"),
        (lambda: PolynomialDecay(0.8, end_step=-1), "`end_step` .* Received: end_step=-1"),
        (lambda: PolynomialDecay(0.8, begin_step=1.5), "Received: begin_step=1.5"),
        (lambda: PolynomialDecay(0.8, frequency=0), "`frequency` .* at least 1"),
        (lambda: PolynomialDecay(0.8, power=0), "`power` must be a positive number"),
        (lambda: PolynomialDecay(0.8, power="3"), "Received: power='3'"),
        (lambda: PolynomialDecay(0.8, power=float("nan")), "Received: power=nan"),
        (lambda: PolynomialDecay(0.8, end_step=2**31), "at most 2,147,483,647. Received"),
        (lambda: FunctionSchedule(stairs, end_step=10**10), "Leave `end_step` out"),
        (
            lambda: FunctionSchedule(0.5),
            "must be a function from a step .* Received: function=0.5",
        ),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def broken(**attributes):
    """A schedule that breaks a law."""
    return dataclasses.make_dataclass(
        "Broken", [], bases=(Linear,), frozen=True, namespace={**attributes, "__module__": "tests"}
    )


def updates_only_at(*steps):
    return {"updates_at": lambda _, step: step in steps}


@pytest.mark.parametrize(
    ("attributes", "law"),
    [
        (updates_only_at(), "never updates"),
        (updates_only_at(3, 5), "is last at 5, not 20"),
        (updates_only_at(0, 20), "is first at 0, not 3"),
        (updates_only_at(3, 4, 9, 20), "leaves gaps of"),
        (updates_only_at(3, 4, 20), "is every 1 steps"),
        ({"sparsity_at": lambda *_: 80.0}, "A fraction"),
        ({"sparsity_at_end": 0.5}, "The end"),
    ],
)
def test_the_check_finds_what_is_broken(attributes, law):
    cls = keras.saving.register_keras_serializable("test_schedules")(broken(**attributes))
    with pytest.raises(AssertionError, match=law):
        check_schedule(cls(end_step=20))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: PolynomialDecay(0.2, 0.8, 0, 100),
            r"initial_sparsity=0.2, final_sparsity=0.8, .*end_step=100\) \(the order",
        ),
        (lambda: ConstantSparsity(0.5, 0), r"ConstantSparsity\(sparsity=0.5, begin_step=0\)\.$"),
        (lambda: FunctionSchedule(abs, 0, 9), r"begin_step=0, end_step=9\)\.$"),
    ],
)
def test_steps_without_their_names_are_answered_with_the_names(make, told):
    with pytest.raises(TypeError, match=told):
        make()


def test_schedules_are_copied_and_pickled():
    for schedule in (PolynomialDecay(0.8, end_step=9), ConstantSparsity(0.5, begin_step=2)):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert copy.deepcopy(schedule) == schedule
