"""Model files that would take far more than they hold; damaged ones are in test_fuzzing."""

import io
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_pruner import model_file

pytestmark = pytest.mark.backend_free


@pytest.fixture
def content(tmp_path):
    """The members of a sound file, by their names."""
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")]).save(
        tmp_path / "sound.keras"
    )
    with zipfile.ZipFile(tmp_path / "sound.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path, content, compression=zipfile.ZIP_LZMA):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def edited(content, edit):
    """The same with other weights: `edit(group, name)` replaces the first kernel."""
    buffer = io.BytesIO(content["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if name.endswith("vars/0") else None)
        group, name = file[found[0]].parent, "0"
        del group[name]
        edit(group, name)
    return {**content, "model.weights.h5": buffer.getvalue()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
def test_a_sound_file_is_read(tmp_path, content, compression):
    model = model_file.load(packed(tmp_path / "m.keras", content, compression))
    assert model.layers[0].kernel.shape == (6, 4)


def test_a_file_of_weights_alone_says_what_to_do(tmp_path):
    path = tmp_path / "m.weights.h5"
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)]).save_weights(path)
    with pytest.raises(
        model_file.FileError, match=r"holds weights without a model.*load_weights\("
    ):
        model_file.load(path)


def test_a_missing_loss_is_loaded_in_python(tmp_path):
    def mine(y, predicted):
        return keras.ops.mean(keras.ops.abs(y - predicted))

    path = tmp_path / "m.keras"
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    model.compile(loss=mine)
    model.save(path)
    with pytest.raises(
        model_file.FileError, match=r"needs the function 'mine'.*in place of the file"
    ):
        model_file.load(path, compile=True)


def test_an_lzma_dictionary_of_gigabytes(tmp_path, content):
    path = packed(tmp_path / "m.keras", content)
    data = bytearray(path.read_bytes())
    name = b"config.json"
    place = data.index(name) + len(name)
    place = data.index(b"\x09\x04\x05\x00", place) + 5  # version, size, then the properties
    data[place : place + 4] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        model_file.FileError, match=r"asks for 4,294,967,295 bytes before it is read"
    ):
        model_file.load(path)


def test_a_member_that_claims_more_than_the_file(tmp_path, content):
    path = packed(tmp_path / "m.keras", content, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 20 : central + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(model_file.FileError, match="ends behind the end of the file"):
        model_file.load(path)


def test_a_member_that_expands_a_thousandfold(tmp_path, content):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
        archive.writestr("config.json", content["config.json"])
    with pytest.raises(
        model_file.FileError, match=r"weights.h5 announces 314,572,800 bytes and holds"
    ):
        model_file.load(path)


def test_weights_that_are_announced_and_not_there(tmp_path, content):
    def announce(group, name):
        group.create_dataset(name, (1 << 15, 1 << 15), "float32", chunks=(1024, 1024))

    path = packed(tmp_path / "m.keras", edited(content, announce))
    assert path.stat().st_size < 50_000
    with pytest.raises(model_file.FileError, match="announces 4,294,967,296 bytes and holds 0"):
        model_file.load(path)


def test_weights_in_another_file(tmp_path, content):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(24, "float32").tobytes())

    def outside(group, name):
        group.create_dataset(name, (6, 4), "float32", external=[(str(secret), 0, 96)])

    def link(group, name):
        group[name] = h5py.ExternalLink(str(secret), "/w")

    with pytest.raises(model_file.FileError, match="0 is in another file"):
        model_file.load(packed(tmp_path / "m.keras", edited(content, outside)))
    with pytest.raises(model_file.FileError, match="0 is a link to another place"):
        model_file.load(packed(tmp_path / "m.keras", edited(content, link)))


def test_groups_that_contain_themselves_are_read_once(tmp_path, content):
    buffer = io.BytesIO(content["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        file["again"] = file["/"]
    whole = {**content, "model.weights.h5": buffer.getvalue()}
    assert model_file.load(packed(tmp_path / "m.keras", whole)).layers[0].kernel.shape == (6, 4)
