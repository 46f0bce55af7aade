"""Load files that Keras 2 saved, with or without TFMOT's pruning wrappers, as Keras 3 models.

Keras 3 itself loads few of them: it rejects arguments that its layers no longer have, the class
name `Functional`, tensors passed by keyword, and wrappers. So the configuration (JSON) is
translated, and the weights (HDF5) are assigned by layer.

A file is read as data. Layers are made by name from `keras.layers` and from the classes that the
caller passes; nothing in the file is imported or run.
"""

import inspect
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_pruner.model_file import FileError

_WRAPPER = "PruneLowMagnitude"
_PREFIX = "prune_low_magnitude_"
_GRAPHS = ("Sequential", "Functional", "Model")
_LARGEST_CONFIG = 1 << 26  # bytes of JSON
_LAMBDAS = {"Lambda": "Python code, which is not run"} | dict.fromkeys(
    ("TFOpLambda", "SlicingOpLambda"), "a TensorFlow operation, such as Keras 2 makes of `x * 2`"
)
_UNUSED = {  # arguments that Keras 2 wrote for all layers, and Keras 3 has for some or for none
    "groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint", "time_major",
    "implementation", "input_length", "ragged", "sparse", "dynamic", "batch_input_shape",
    "query_shape", "key_shape", "value_shape", "softmax_robust_masking", "noise_shape", "rng_type",
    "trainable",
}  # fmt: skip


def load_model(
    path: str | os.PathLike[str], custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """Load a model that Keras 2 (tf.keras, tf_keras) saved, and take TFMOT's wrappers off.

    Masks in the file are applied to the weights. Nothing in the file is executed.

    Args:
        path: an `.h5` or `.keras` file of a Sequential or functional model.
        custom_objects: name -> class or function of your own.

    Returns:
        A Keras 3 model, not compiled.

    Raises:
        FileError: if the file is missing, damaged or not a model file of Keras 2; if it holds
            Python code, or needs a class that is not in `custom_objects`.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> tfmot.load_model("model.h5")
        Traceback (most recent call last):
        keras_pruner.model_file.FileError: model.h5 does not exist, or is not a file.
    """
    path = Path(path)
    if path.is_dir():
        fix = "Load a SavedModel in Keras 2 and save it with `model.save('model.h5')`."
        raise FileError(f"{path} is a directory; an .h5 or .keras file is needed. {fix}")
    if not path.is_file():
        raise FileError(f"{path} does not exist, or is not a file.")
    try:
        if zipfile.is_zipfile(path):
            return _from_zip(path, custom_objects or {})
        if h5py.is_hdf5(path):
            return _from_h5(path, custom_objects or {})
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes the libraries raise anything
        first = str(error).strip().split("\n")[0][:300]
        raise FileError(
            f"{path} cannot be read; it may be damaged: {type(error).__name__}: {first}"
        ) from error
    raise FileError(f"{path} is not a model file: it is neither a .keras archive nor HDF5.")


@keras.saving.register_keras_serializable("keras_pruner")
def hard_sigmoid(x: Any) -> Any:
    """Keras 2's `hard_sigmoid`; that of Keras 3 is another function, relu6(x + 3) / 6."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


class Wrapper(keras.layers.Layer):
    """Takes the place of TFMOT's wrapper class where Keras 3 loads a wrapped model."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Wrapper":
        """Raise an error that names the function for such files."""
        raise ValueError(
            f"The file holds TFMOT's wrapper around {config['layer']['config']['name']!r}, which "
            "Keras 3 cannot load. Load it with `keras_pruner.tfmot.load_model(path)`."
        )


def _from_h5(path: Path, custom: Mapping[str, Any]) -> keras.Model:
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs or "model_weights" not in file:
            raise FileError(
                "it holds weights, but no model. Build the model in Keras 3 and call "
                "`model.load_weights(path)`."
            )
        text = file.attrs["model_config"]
        config = json.loads(text if isinstance(text, str) else text.decode())
        model, renamed = _build(config, custom)
        groups = file["model_weights"]
        for name in _strings(groups.attrs["layer_names"]):
            group = _member(groups, name)
            names = _strings(group.attrs["weight_names"])
            arrays = {n: _array(group, n) for n in names}
            if arrays:
                layer = model.get_layer(renamed.get(name, name))
                _assign(layer.trainable_weights + layer.non_trainable_weights, _masked(arrays))
    return model


def _from_zip(path: Path, custom: Mapping[str, Any]) -> keras.Model:
    with zipfile.ZipFile(path) as archive:
        needed = {"metadata.json", "config.json", "model.weights.h5"}
        if missing := needed - set(archive.namelist()):
            raise FileError(f"it is not a .keras archive: {sorted(missing)} is missing.")
        if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
            raise FileError("its config.json is larger than 64 MB.")
        config = json.loads(archive.read("config.json"))
        if not json.loads(archive.read("metadata.json"))["keras_version"].startswith("2."):
            raise FileError("it was not saved by Keras 2. Use `keras.saving.load_model`.")
        model, _ = _build(config, custom)
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
            _restore_graph(model, config["config"]["layers"], _member(file, "layers"))
    return model


# ---------------------------------------------------------------------- configuration


def _build(config: dict[str, Any], custom: Mapping[str, Any]) -> tuple[keras.Model, dict[str, str]]:
    """The model of a configuration, and wrapper name -> layer name for the layers in it."""
    renamed: dict[str, str] = {}
    plain = _plain(config, custom, renamed)
    if plain["class_name"] not in _GRAPHS:
        raise FileError(
            f"it holds a {plain['class_name']}; only Sequential and functional models can be "
            "loaded. Build the model in Keras 3 and call `model.load_weights(path)`."
        )
    kind = keras.Sequential if plain["class_name"] == "Sequential" else keras.Model
    try:
        model = kind.from_config(plain["config"], custom_objects=dict(custom))
    except Exception as error:
        first = str(error).rpartition("Exception encountered: ")[2].strip().split("\n")[0][:300]
        raise FileError(
            f"it cannot be expressed in Keras 3: {type(error).__name__}: {first}"
        ) from error
    if not model.built:
        raise FileError("it lacks the input shape. Save the model after it was built.")
    return model, renamed


def _plain(entry: dict[str, Any], custom: Mapping[str, Any], renamed: dict[str, str]) -> Any:
    """The entry of a layer or model as Keras 3 reads it, without wrappers.

    Args:
        entry: Keras 2's.
        custom: the caller's classes and functions.
        renamed: receives wrapper name -> layer name.
    """
    kind, config = str(entry["class_name"]).split(">")[-1], dict(entry["config"])
    if kind == _WRAPPER:
        inner = _plain(config["layer"], custom, renamed)
        renamed[config["name"]] = inner["config"]["name"]
        nodes = {k: entry[k] for k in ("inbound_nodes",) if k in entry}
        return {**inner, "name": inner["config"]["name"], **nodes}
    if kind in _GRAPHS:
        config = _plain_graph(kind, config, custom, renamed)
    else:
        config = _plain_layer(kind, config, custom)
    kept: dict[str, Any] = {k: entry[k] for k in ("name", "inbound_nodes") if k in entry}
    if kind not in custom:  # without a module, Keras 3 finds no layer within another
        kept |= {"module": "keras" if kind in _GRAPHS else "keras.layers", "registered_name": None}
    return {"class_name": "Model" if kind == "Functional" else kind, "config": config, **kept}


def _plain_graph(
    kind: str, config: dict[str, Any], custom: Mapping[str, Any], renamed: dict[str, str]
) -> dict[str, Any]:
    """The configuration of a Sequential or functional model."""
    names: dict[str, str] = {}
    entries = _with_input(config["layers"]) if kind == "Sequential" else config["layers"]
    layers = [_plain(layer, custom, names) for layer in entries]
    renamed.update(names)
    models = {e["config"]["name"] for e in layers if e["class_name"] in _GRAPHS}
    for layer in layers:
        if "inbound_nodes" in layer:
            nodes = _renamed(layer["inbound_nodes"], names, models)
            layer["inbound_nodes"] = [_node(node) for node in nodes]
    config = {**config, "layers": layers}
    for key in {"input_layers", "output_layers"} & set(config):
        ends = _renamed(config[key], names, models)
        config[key] = ends[0] if isinstance(ends, list) and len(ends) == 1 else ends
    return config


def _plain_layer(kind: str, config: dict[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a layer, with the arguments that it has in Keras 3."""
    _check_class(kind, config, custom)
    config = {k: v if k == "name" else _plain_part(v, custom) for k, v in config.items()}
    if kind not in custom:
        config = {k: v for k, v in config.items() if k not in _UNUSED or _is_used(kind, k)}
    if kind == "BatchNormalization" and isinstance(config.get("axis"), list):
        config["axis"] = config["axis"][0]
    if kind == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    return config


def _plain_part(part: Any, custom: Mapping[str, Any]) -> Any:
    """An argument of a layer: another layer, an initializer, a function or a plain value."""
    if isinstance(part, str):
        own = {"hard_sigmoid": hard_sigmoid, **custom}.get(part.split(">")[-1])
        own = own or keras.saving.get_registered_object(part)
        return own if inspect.isfunction(own) else part
    if isinstance(part, list):
        return [_plain_part(each, custom) for each in part]
    if not isinstance(part, dict) or not {"class_name", "config"} <= set(part):
        return part
    kind = str(part["class_name"]).split(">")[-1]
    module = str(part.get("module") or "keras")
    if hasattr(keras.layers, kind) or kind in custom or kind in (_WRAPPER, *_GRAPHS):
        return _plain(part, custom, {})
    if kind == "Policy":
        return part["config"]["name"]
    if module.split(".")[0] not in ("keras", "tf_keras", "builtins"):
        raise FileError(f"it needs {module}.{kind}; pass custom_objects={{{kind!r}: ...}}.")
    return {"class_name": kind, "config": part["config"]}


def _is_used(kind: str, key: str) -> bool:
    """Whether the layer class of Keras 3 has this argument."""
    if kind == "InputLayer":
        return key in ("batch_input_shape", "sparse", "ragged")
    named = inspect.signature(getattr(keras.layers, kind).__init__).parameters
    return key in named or (key == "trainable" and "kwargs" in named)


def _check_class(kind: str, config: dict[str, Any], custom: Mapping[str, Any]) -> None:
    if kind in _LAMBDAS and (kind == "Lambda" or kind not in custom):
        raise FileError(
            f"its {kind} layer {config.get('name')!r} holds {_LAMBDAS[kind]}. Replace it by a "
            "layer class in Keras 2, and save the model again."
        )
    if kind not in custom and not hasattr(keras.layers, kind):
        raise FileError(f"it needs the class {kind}; pass custom_objects={{{kind!r}: {kind}}}.")


def _with_input(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers of a Sequential, with an InputLayer that holds the input shape."""
    first = layers[0]["config"] if layers else {}
    first = first["layer"]["config"] if layers and layers[0]["class_name"] == _WRAPPER else first
    if not layers or layers[0]["class_name"] == "InputLayer" or "batch_input_shape" not in first:
        return layers
    config = {"batch_input_shape": first["batch_input_shape"], "name": f"{first['name']}_input"}
    return [{"class_name": "InputLayer", "config": config}, *layers]


def _renamed(part: Any, names: Mapping[str, str], models: set[str]) -> Any:
    """References [layer, call, output], with the new names of layers.

    Keras 2 numbered the calls of a nested model from 1, Keras 3 numbers them from 0.
    """
    if isinstance(part, dict):
        return {key: _renamed(each, names, models) for key, each in part.items()}
    if not isinstance(part, list):
        return part
    if len(part) >= 3 and isinstance(part[0], str) and isinstance(part[1], int):
        name = names.get(part[0], part[0])
        return [name, part[1] - (name in models), *_renamed(part[2:], names, models)]
    return [_renamed(each, names, models) for each in part]


def _node(node: Any) -> Any:
    """A call of a layer; in Keras 3's form if it passes tensors by keyword (`value=` and such)."""
    if not isinstance(node, list) or not any(len(call) > 3 and call[3] for call in node):
        return node
    tensors = [_tensor(call[:3]) for call in node]
    return {
        "args": tensors if len(tensors) == 1 else [tensors],
        "kwargs": {name: _tensor(each) for name, each in node[0][3].items()},
    }


def _tensor(part: Any) -> Any:
    is_reference = isinstance(part, list) and len(part) == 3 and isinstance(part[0], str)
    if not is_reference:
        return part
    config = {"shape": [None], "dtype": "float32", "keras_history": part}
    return {"class_name": "__keras_tensor__", "config": config}


# ---------------------------------------------------------------------- weights


def _restore_graph(model: Any, entries: Sequence[dict[str, Any]], groups: h5py.Group) -> None:
    """Assign the weights of a `.keras` file, whose groups are named by class and number."""
    for key, entry in zip(_keys(e["class_name"] for e in entries), entries, strict=True):
        if key not in groups or entry["class_name"] == "InputLayer":
            continue
        group, inner = _member(groups, key), entry
        masks: list[np.ndarray] = []
        if entry["class_name"] == _WRAPPER:
            masks = _masks_in(group)
            inner = entry["config"]["layer"]
            if "layer" not in group:
                continue  # a layer without weights
            group = _member(group, "layer")
        layer = model.get_layer(inner["config"]["name"])
        if inner["class_name"] in _GRAPHS:
            _restore_graph(layer, inner["config"]["layers"], _member(group, "layers"))
        else:
            _restore_layer(layer, group, inner["config"])
            _apply(masks, [w for w in layer.weights if not _is_never_pruned(w.path)])


def _masks_in(group: h5py.Group) -> list[np.ndarray]:
    """The masks of a wrapper; its variables are p weights, p (mask, threshold) pairs, the step."""
    own = _in_order(_member(group, "vars")) if "vars" in group else []
    pruned = (len(own) - 1) // 3
    return own[pruned : 3 * pruned : 2]


def _restore_layer(layer: Any, group: h5py.Group, config: Mapping[str, Any]) -> None:
    if "vars" in group and len(_member(group, "vars")):
        _assign(
            [*layer._trainable_variables, *layer._non_trainable_variables],
            _in_order(_member(group, "vars")),
        )
    for name in group:
        if name == "vars" or not _holds_arrays(_member(group, name)):
            continue
        spellings = (name, name.lstrip("_"), f"_{name}")
        part = next((getattr(layer, s) for s in spellings if hasattr(layer, s)), None)
        within, inner = _member(group, name), config.get(name)
        inner = inner["config"] if isinstance(inner, dict) else {}
        if isinstance(part, keras.Model):
            _restore_graph(part, inner["layers"], _member(within, "layers"))
        elif isinstance(part, keras.layers.Layer):
            _restore_layer(part, within, inner)
        elif isinstance(part, (list, tuple)):
            for key, each in zip(_keys(type(p).__name__ for p in part), part, strict=True):
                _restore_layer(each, _member(within, key), {})
        else:
            raise FileError(f"layer {layer.name!r} has no attribute {name!r} in Keras 3.")


def _masked(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The weights of a layer of an `.h5` file, multiplied by the masks of its wrappers."""
    wrappers = {name: name.rpartition("/")[0] for name in arrays if _is_wrappers(name)}
    kept = {name: array.copy() for name, array in arrays.items() if name not in wrappers}
    for wrapper in dict.fromkeys(wrappers.values()):
        masks = [arrays[n] for n, w in wrappers.items() if w == wrapper and "/mask" in n]
        inner = wrapper.rpartition("/")[2].removeprefix(_PREFIX)
        prunable = [n for n in kept if not _is_never_pruned(n)]
        mine = [n for n in prunable if inner in n.split("/")] or prunable
        _apply(masks, [kept[n] for n in mine])
    return list(kept.values())


def _is_wrappers(name: str) -> bool:
    own = re.fullmatch(r"(mask|threshold|pruning_step)(_\d+)?(:0)?", name.rpartition("/")[2])
    return bool(own) and _PREFIX in name


def _is_never_pruned(path: str) -> bool:
    return "depthwise" in path.rpartition("/")[2]


def _apply(masks: Sequence[np.ndarray], weights: Sequence[Any]) -> None:
    """Apply each mask to the next weight of its shape."""
    left = list(weights)
    for mask in masks:
        index = next((i for i, w in enumerate(left) if tuple(w.shape) == mask.shape), None)
        if index is None:
            raise FileError(f"it has a mask of shape {mask.shape}, and no weight of that shape.")
        weight = left.pop(index)
        if isinstance(weight, np.ndarray):
            weight *= mask != 0
        else:
            weight.assign(keras.ops.convert_to_numpy(weight.value) * (mask != 0))


def _assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    shapes = [tuple(v.shape) for v in variables], [a.shape for a in arrays]
    if shapes[0] != shapes[1]:
        raise FileError(f"it has weights of shapes {shapes[1]} where the layer needs {shapes[0]}.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _in_order(group: h5py.Group) -> list[np.ndarray]:
    return [_array(group, name) for name in sorted(group, key=int)]


def _holds_arrays(group: h5py.Group) -> bool:
    return bool(group.visititems(lambda _, item: isinstance(item, h5py.Dataset) or None))


def _member(group: h5py.Group, name: str) -> h5py.Group:
    """A group in this file; links to other files are refused."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink) or not isinstance(group[name], h5py.Group):
        raise FileError(f"{name!r} is missing, or is not a group of this file.")
    return group[name]


def _array(group: h5py.Group, name: str) -> np.ndarray:
    """The values of a dataset in this file; links to other files are refused."""
    for part in name.split("/")[:-1]:
        group = _member(group, part)
    name = name.rpartition("/")[2]
    item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise FileError(f"{name!r} is not an array of this file.")
    return np.asarray(item[()])


def _strings(names: Any) -> list[str]:
    return [name if isinstance(name, str) else name.decode() for name in names]


def _keys(classes: Iterable[str]) -> Iterator[str]:
    """The group names in a `.keras` file: `dense`, `dense_1` and so on."""
    counts: dict[str, int] = {}
    for name in map(_snake, classes):
        number = counts[name] = counts.get(name, -1) + 1
        yield f"{name}_{number}" if number else name


def _snake(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
