"""Saved on four devices, taken up again on two and on one."""

import shutil

import keras
import pytest
from spawning import assert_close, results, zeros_of


def run(devices, directory, last):
    processes = devices if keras.backend.backend() == "torch" else 1
    arguments = [str(devices), str(directory), str(last)]
    return results("elastic.py", processes, arguments=arguments)[0]


@pytest.mark.slow
def test_it_goes_on_with_the_same_masks_on_fewer_devices(tmp_path):
    saved = run(4, tmp_path / "four", 1)
    whole = run(1, tmp_path / "whole", 2)
    for devices in (2, 1):
        shutil.copytree(tmp_path / "four", tmp_path / str(devices))
        resumed = run(devices, tmp_path / str(devices), 2)
        assert resumed["masks at first"] == saved["masks at last"]
        assert resumed["masks at last"] == whole["masks at last"]
        assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert_close(resumed["weights"], whole["weights"])
        assert zeros_of(resumed["weights"])[1] == 0.75
