"""Several devices and processes on JAX: `keras.distribution`, `jax.sharding`, `jax.distributed`."""

import pytest
from spawning import assert_close, fixture, only_on, zeros_of

pytestmark = only_on("jax", "keras.distribution is implemented on JAX")
DISTRIBUTIONS = ["DataParallel", "ModelParallel", "both"]


devices = fixture("jax_devices.py")  # what four devices in one process did
processes = fixture("jax_processes.py", processes=2)  # what two processes of two devices did


@pytest.mark.parametrize("allocation", ["uniform", "lamp"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_four_devices_end_where_one_does(devices, name, allocation):
    one, four = (devices["trained"][f"{n} {allocation}"] for n in ("single", name))
    assert_close(one["weights"], four["weights"])
    where, sparsity = zeros_of(four["weights"])
    assert where == zeros_of(one["weights"])[0]
    assert sparsity == 0.75


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_masks_carry_the_sharding_of_their_weights(devices, name):
    seen = devices["trained"][f"{name} lamp"]
    assert seen["copies"] == {"DataParallel": 4, "ModelParallel": 1, "both": 2}[name]
    for weight, *others in seen["shardings"]:
        assert ("'model'" in weight) == (name != "DataParallel")
        assert set(others) == {weight}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_pruned_step_communicates_what_a_dense_one_does(devices, name):
    found = devices["communication"][name]
    assert found["dense"]
    assert found["pruned"] == found["dense"]


def test_a_mask_update_communicates_counts(devices):
    for name in ("count_from", "count_equal"):
        assert devices["update"][name] == [["all-reduce", 4]]
    for name in ("cut", "zero"):
        assert devices["update"][name] == []


def test_groups_of_n_m_decide_for_themselves_without_a_word(devices):
    for name in ("groups of outputs in parts", "groups of inputs in parts"):
        assert devices["update"][name] == []


@pytest.mark.parametrize("how", ["uniform", "lamp", "global", "2:4"])
def test_no_weight_is_brought_together(devices, how):
    one, four = (devices["gathered"][f"{name} {how}"] for name in ("single", "ModelParallel"))
    assert max(four["sizes"], default=0) == 0
    assert four["sparsity"] == (0.5 if how == "2:4" else 0.75)
    assert four["masks"] == one["masks"]


def test_a_stateless_loop_with_jax_sharding(devices):
    one = devices["trained"]["single lamp"]["weights"]
    assert_close(one, devices["stateless"]["weights"])
    assert zeros_of(one) == zeros_of(devices["stateless"]["weights"])
    assert devices["stateless"]["parts"] == [[4], [4]]


def test_a_copy_that_differs_is_named(devices):
    assert "not the same wherever they are copied" in devices["disagreement"]
    assert "head/kernel" in devices["disagreement"]
    assert "hidden" not in devices["disagreement"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_two_processes_end_where_one_does(devices, processes, name):
    one = devices["trained"]["single lamp"]["weights"]
    for each in processes:
        assert_close(one, each[name]["weights"])
        assert zeros_of(one) == zeros_of(each[name]["weights"])
        assert each[name]["copies"] == {"DataParallel": 4, "ModelParallel": 1, "both": 2}[name]


@pytest.mark.parametrize("how", ["uniform", "lamp", "global", "2:4"])
def test_two_processes_have_the_masks_of_one(devices, processes, how):
    for each in processes:
        assert each["masks"][how] == devices["gathered"][f"single {how}"]["masks"]


def test_a_backup_of_one_process_is_refused_in_two(processes):
    for each in processes:
        for name in ("DataParallel", "ModelParallel"):
            assert "Received: 2 processes" in each["backed up"][name]


def test_keras_cannot_save_parts_of_other_processes(processes):
    """When this changes, the documentation does."""
    for each in processes:
        assert "non-addressable" in each["saved in parts"]


def test_nan_in_one_process_is_an_error_in_all(processes):
    for each in processes:
        assert "NaN or infinite" in each["not finite"]
