"""Several processes on PyTorch: `DistributedDataParallel`."""

import keras
import numpy as np
import pytest
from spawning import assert_close, fixture, only_on, zeros_of

pytestmark = only_on("torch", "torch.distributed is PyTorch's")


alone = fixture("torch_processes.py")  # what one process did
processes = fixture("torch_processes.py", processes=2)  # what two processes did


@pytest.mark.parametrize("optimizer", ["sgd", "keras"])
def test_two_processes_end_where_one_does(alone, processes, optimizer):
    for each in processes:
        assert_close(alone["keras"]["weights"], each[optimizer]["weights"])
        assert zeros_of(alone["keras"]["weights"]) == zeros_of(each[optimizer]["weights"])
        assert each[optimizer]["weights"] == processes[0][optimizer]["weights"]
        assert each[optimizer]["copies"] == 2


def test_masks_are_the_same_in_every_process(processes):
    for optimizer in ("sgd", "adam"):
        first, second = (each[optimizer]["masks"] for each in processes)
        assert first == second
        kept = sum(np.count_nonzero(mask) for mask in first)
        assert kept == 0.25 * sum(np.size(mask) for mask in first)


def test_a_pruned_step_communicates_what_a_dense_one_does(processes):
    for each in processes:
        assert sum(each["dense"]["sent"]) > 0
        assert each["sgd"]["sent"] == each["dense"]["sent"]


def test_processes_that_differ_are_found(processes):
    for each in processes:
        assert "not the same wherever they are copied" in each["disagreement"]
        assert "head/kernel" in each["disagreement"]


def test_a_backup_by_fit_is_refused(processes):
    for each in processes:
        assert "Received: 2 processes" in each["backed up"]


def test_fit_under_a_process_group_is_kerass_own_matter(processes):
    """Keras 3.15 trains each process by itself; when this changes, the documentation does."""
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    assert [each["fit is synchronised"] for each in processes] == [version >= (3, 16)] * 2
