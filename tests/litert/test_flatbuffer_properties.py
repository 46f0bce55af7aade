"""What holds for every weight in a `.tflite` file, and for every damaged file."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("hypothesis", reason='needs pip install "keras-pruner[test]"')

from hypothesis import given, settings
from hypothesis import strategies as st
from test_flatbuffer import model_of, tensor_of, weight_of

from keras_pruner.litert import flatbuffer, sparse_tensors
from keras_pruner.litert.inspection import inspect

pytestmark = pytest.mark.backend_free
ENCODERS = {"dense": None, "csr": sparse_tensors.csr, "block 1x4": sparse_tensors.blocks}


def many(*strategies):
    """The test as two: 50 examples, and 2,000 in the slow suite."""

    def decorate(check):
        @pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.slow)])
        def test(count):
            settings(max_examples=count, deadline=None)(given(*strategies)(check))()

        return test

    return decorate


@st.composite
def weights(draw):
    """A weight of any shape and type that has the encoding, with any zeros."""
    encoding = draw(st.sampled_from(list(ENCODERS)))
    rank = 2 if encoding == "block 1x4" else draw(st.integers(2, 4))
    shape = [draw(st.integers(1, 6)) for _ in range(rank - 1)]
    last = draw(st.integers(1, 6)) * (4 if encoding == "block 1x4" else 1)
    dtype = draw(st.sampled_from(["float32", "float16", "int8"]))
    sparsity = draw(st.floats(0, 1))
    return encoding, weight_of((*shape, last), sparsity, dtype, seed=draw(st.integers(0, 99)))


@many(st.lists(weights(), min_size=1, max_size=3))
def test_weights_are_read_as_they_were_written(found):
    model = model_of(*((weight, ENCODERS[encoding]) for encoding, weight in found))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "m.tflite")
        flatbuffer.write(model, path)
        graph = flatbuffer.Graph(flatbuffer.read(path))
        contents = inspect(path)
    assert len(graph.tensors) == len(found)
    for index, (encoding, weight) in enumerate(found):
        tensor = graph.tensors[index]
        np.testing.assert_array_equal(sparse_tensors.decode(tensor, graph.data(index)), weight)
        assert contents.weights[index].encoding == encoding
        assert contents.weights[index].sparsity == pytest.approx(np.mean(weight == 0))


@many(
    st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), max_size=4),
    st.none() | st.integers(0, 4095),
)
def test_a_changed_file_is_refused_or_read_soundly(changes, cut):
    model = model_of(*((weight_of((6, 8)), encoder) for encoder in ENCODERS.values()))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "m.tflite")
        flatbuffer.write(model, path)
        content = bytearray(path.read_bytes())
        for place, new in changes:
            place %= len(content)
            content[place : place + len(new)] = new
        path.write_bytes(content if cut is None else content[: cut % len(content)])
        try:
            contents = inspect(path)
        except ValueError:
            return
    assert all(0 <= weight.sparsity <= 1 for weight in contents.weights)
    str(contents)


def test_the_encoders_are_those_that_are_stored():
    assert set(ENCODERS) == {"dense", *sparse_tensors._ENCODERS}
    assert tensor_of(weight_of((2, 4)))[0].sparsity is None
