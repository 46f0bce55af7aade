import numpy as np
import pytest

from keras_pruner.litert import flatbuffer, sparse_tensors

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytestmark = pytest.mark.backend_free


def tensor_of(weight, encoder=None):
    """A tensor and the bytes of its buffer."""
    tensor = flatbuffer.schema().TensorT()
    tensor.name, tensor.shape = b"weight", np.array(weight.shape, np.int32)
    kinds = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8"}
    tensor.type = getattr(flatbuffer.schema().TensorType, kinds[weight.dtype.name])
    values = weight
    if encoder is not None:
        values, tensor.sparsity = encoder(weight)
    return tensor, np.ascontiguousarray(values).view(np.uint8).reshape(-1)


def model_of(*weights):
    """A model of one graph that holds some weights, and applies them to nothing."""
    schema = flatbuffer.schema()
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    graph.tensors, graph.operators = [], []
    for weight, encoder in weights:
        tensor, data = tensor_of(weight, encoder)
        buffer = schema.BufferT()
        buffer.data, tensor.buffer = data, len(model.buffers)
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    model.subgraphs = [graph]
    return model


def weight_of(shape, sparsity=0.7, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape) * 50
    weight[rng.random(shape) < sparsity] = 0
    return weight.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", [(8, 12), (3, 4), (300, 280), (5, 1, 1, 8), (2, 3, 3, 4), (1, 4)])
@pytest.mark.parametrize("sparsity", [0.0, 0.7, 1.0])
def test_encodings_are_inverted(dtype, shape, sparsity):
    weight = weight_of(shape, sparsity, dtype)
    encoders = [sparse_tensors.csr] + ([sparse_tensors.blocks] if len(shape) == 2 else [])
    for encoder in encoders:
        tensor, data = tensor_of(weight, encoder)
        np.testing.assert_array_equal(sparse_tensors.decode(tensor, data), weight)
        values = data.view(weight.dtype)
        assert sparse_tensors.encoded_size(values, tensor.sparsity) >= data.nbytes
    assert sparse_tensors.encoding_of(tensor) == ("block 1x4" if len(shape) == 2 else "csr")


def test_block_density_is_that_of_whole_blocks():
    weight = np.zeros((2, 8), "float32")
    weight[0, 5] = 1
    assert sparse_tensors.block_density(weight) == 0.25
    assert sparse_tensors.block_density(weight[:, :7]) == 1.0


def test_files_are_read_back_as_written(tmp_path):
    weights = [(weight_of((6, 8)), None), (weight_of((6, 8)), sparse_tensors.blocks)]
    model = model_of(*weights)
    flatbuffer.write(model, tmp_path / "m.tflite")
    content = (tmp_path / "m.tflite").read_bytes()
    again = flatbuffer.read(tmp_path / "m.tflite")
    for tensor, (weight, _) in zip(again.subgraphs[0].tensors, weights, strict=True):
        data = again.buffers[tensor.buffer].data
        np.testing.assert_array_equal(sparse_tensors.decode(tensor, data), weight)
        place = content.index(data.tobytes())
        assert place % 16 == 0
    flatbuffer.write(again, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").stat().st_size == len(content)


def test_what_is_no_tflite_file_is_refused(tmp_path):
    path = tmp_path / "m.tflite"
    for content in (b"", b"PK\x03\x04 a zip file", b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no .tflite file"):
            flatbuffer.read(path)
    path.write_bytes(b"\xff\xff\xff\x7fTFL3" + b"\x00" * 32)
    with pytest.raises(ValueError, match="is damaged"):
        flatbuffer.read(path)


def test_references_to_nothing_are_refused(tmp_path):
    model = model_of((weight_of((4, 4)), None))
    model.subgraphs[0].tensors[0].buffer = 9
    flatbuffer.write(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="refers to buffer 9 of 2"):
        flatbuffer.read(tmp_path / "m.tflite")


@pytest.mark.parametrize("damage", ["values", "segments", "indices", "huge"])
def test_a_damaged_index_is_refused(damage):
    tensor, data = tensor_of(weight_of((6, 8)), sparse_tensors.csr)
    sparse = tensor.sparsity.dimMetadata[-1]
    if damage == "values":
        data = data[:-4]
    elif damage == "segments":
        sparse.arraySegments.values = sparse.arraySegments.values[::-1].copy()
    elif damage == "indices":
        sparse.arrayIndices.values = sparse.arrayIndices.values + np.uint8(8)
    else:
        tensor.shape = np.array([6, 1 << 30], np.int32)
    with pytest.raises(ValueError, match=r"index that does not fit|claims"):
        sparse_tensors.decode(tensor, data)
