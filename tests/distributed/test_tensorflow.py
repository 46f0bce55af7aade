"""Several replicas and workers on TensorFlow: `tf.distribute`."""

import pytest
from spawning import assert_close, fixture, only_on, results, zeros_of

pytestmark = only_on("tensorflow", "tf.distribute is TensorFlow's")


mirrored = fixture("tensorflow_mirrored.py")  # what two logical CPUs in one process did
workers = fixture("tensorflow_workers.py", processes=2)  # what two processes did


@pytest.mark.parametrize("how", ["fit", "run_eagerly", "loop", "eager loop", "OneDeviceStrategy"])
def test_two_replicas_end_where_one_does(mirrored, how):
    one, two = mirrored["single"], mirrored[how]
    assert_close(one["weights"], two["weights"])
    assert zeros_of(one["weights"]) == zeros_of(two["weights"])
    assert zeros_of(two["weights"])[1] == 0.75
    assert two["copies"] == (1 if how == "OneDeviceStrategy" else 2)


def test_a_pruned_step_communicates_what_a_dense_one_does(mirrored):
    assert mirrored["collectives"]["dense"]
    assert mirrored["collectives"]["pruned"] == mirrored["collectives"]["dense"]


def test_a_replica_that_differs_is_named(mirrored):
    assert "not the same wherever they are copied" in mirrored["disagreement"]
    assert "hidden/kernel" in mirrored["disagreement"]


@pytest.mark.parametrize("option", ["steps_per_execution", "jit_compile"])
def test_what_keras_itself_cannot_do_on_two_cpus(mirrored, option):
    """Where dense training fails, pruning is not at fault; where it works, pruning has to."""
    dense, pruned = mirrored[f"{option}, dense"], mirrored[option]
    assert ("error" in pruned) == ("error" in dense)
    if "error" not in dense:
        assert_close(mirrored["single"]["weights"], pruned["weights"])


def test_two_workers_end_where_one_process_does(mirrored, workers):
    for worker in workers:
        assert_close(mirrored["single"]["weights"], worker["weights"])
        assert zeros_of(mirrored["single"]["weights"]) == zeros_of(worker["weights"])
        assert worker["masks"] == workers[0]["masks"]
        assert worker["weights"] == workers[0]["weights"]
        assert worker["copies"] == 2


@pytest.mark.slow
def test_fit_on_two_workers_fails_in_keras_itself():
    """Without pruning, that is; when this changes, the documentation does."""
    for worker in results("tensorflow_workers.py", processes=2, arguments=["fit"]):
        print(worker["fit"])
        assert worker["fit"]
