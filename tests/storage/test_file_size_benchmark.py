"""The bound that benchmarks/file_size.py compares files with."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.backend_free
PATH = Path(__file__).parents[2] / "benchmarks" / "file_size.py"


@pytest.fixture(scope="module")
def file_size():
    spec = importlib.util.spec_from_file_location("file_size", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# By hand: half of 4 entries is one bit each for the mask; the two survivors have two equally
# frequent exponents, a bit each, and 23 bits of mantissa: 4 + 2 + 46 bits.
def test_the_entropy_is_that_of_mask_exponents_and_mantissas(file_size):
    entropy = file_size.entropy_bytes
    assert entropy(np.array([0, 1.5, 0, 3.25], "float32")) == (4 + 2 + 46) / 8
    assert entropy(np.array([0, -1.5, 0, 1.25], "float16")) == (4 + 2 + 20) / 8
    assert entropy(np.array([7, 7, 7, 5], "int8")) == pytest.approx(
        -(3 * np.log2(0.75) + np.log2(0.25)) / 8
    )
    assert entropy(np.zeros(9, "float32")) == entropy(np.zeros(0, "float32")) == 0
