"""Speed-up of models with half of their channels, measured on each runtime.

    python benchmarks/shrink_latency.py --runtimes litert keras --json latency.json
    python benchmarks/shrink_latency.py --json latency.json --table

Weights are random: time depends on sizes alone. "rounded" keeps half of each group in multiples
of 8, "unrounded" half and one more. One thread, one sample (Keras: 8); dense and small models are
run in turns, and the ratio of the medians of their processor time is printed. `onnxruntime` and
`openvino` need these packages and what `model.export` needs. Keras runs on the backend of
KERAS_BACKEND.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_pruner as kp
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import ModelGraph
from keras_pruner.reporting import tables
from keras_pruner.shrink.constants import Cut
from keras_pruner.shrink.rebuild import rebuild


def application(name):
    build = getattr(keras.applications, name)
    return lambda: build(weights=None, input_shape=(224, 224, 3), classifier_activation=None)


@keras.saving.register_keras_serializable("shrink_latency")
def gelu(x):
    """The approximate one: for the exact one, tf2onnx writes an operator that ONNX lacks (Erfc)."""
    return keras.activations.gelu(x, approximate=True)


def vit():
    """192 wide, 6 blocks of 6 heads, patches of 16."""
    inputs = keras.Input((224, 224, 3))
    x = layers.Reshape((196, 192))(layers.Conv2D(192, 16, strides=16)(inputs))
    for _ in range(6):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(6, 32)(y, y)])
        y = layers.Dense(768, activation=gelu)(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(192)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(100)(x))


def lstm():
    inputs = keras.Input((64, 64))
    x = layers.LSTM(256)(layers.LSTM(256, return_sequences=True)(inputs))
    return keras.Model(inputs, layers.Dense(10)(x))


NETWORKS = {
    "MobileNetV2": application("MobileNetV2"),
    "ResNet50": application("ResNet50"),
    "EfficientNetB0": application("EfficientNetB0"),
    "ViT": vit,
    "LSTM": lstm,
}
FORMS = ("rounded", "unrounded")


def halved(model, form):
    """Half of each group, streams through layer normalizations included, whatever they compute."""
    channels = channels_of(ModelGraph(model))
    kept = np.ones(channels.count, bool)
    for group in channels.groups:
        count = len(group.classes)
        half = max(1, count // 2)
        if form == "unrounded":
            half = min(count, half + 1)
        elif channels.width(group) == 1:
            half = min(count, max(8, round(half / 8) * 8))
        if not group.reason:
            kept[group.classes[half:]] = False
    return rebuild(model, channels, Cut(kept)), channels.macs() / channels.macs(kept)


# ---------------------------------------------------------------------- runtimes


def litert(models, folder, seconds):
    paths = []
    for number, model in enumerate(models):
        paths.append(folder / f"{number}.tflite")
        kp.export_litert(model, paths[-1], progress=False)
    for path in paths[1:]:
        yield (
            kp.litert.benchmark(paths[0], path, batch_sizes=[1], seconds=seconds).timings[0].speedup
        )


def export_onnx(model, path):
    """Write a model as an ONNX file; on PyTorch Keras wants it to have been called."""
    model.predict_on_batch(sample(model, 1))
    model.export(path, format="onnx", verbose=False)


def onnxruntime(models, folder, seconds):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runs = []
    for number, model in enumerate(models):
        path = str(folder / f"{number}.onnx")
        export_onnx(model, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: sample(model, 1)}
        runs.append(lambda session=session, feed=feed: session.run(None, feed))
    return in_turns(runs, seconds)


def openvino(models, folder, seconds):
    import openvino as ov

    core, runs = ov.Core(), []
    for number, model in enumerate(models):
        path = str(folder / f"{number}.onnx")
        export_onnx(model, path)
        compiled = core.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
        request, x = compiled.create_infer_request(), sample(model, 1)
        runs.append(lambda request=request, x=x: request.infer([x]))
    return in_turns(runs, seconds)


def in_keras(models, folder, seconds):
    del folder
    runs = []
    for model in models:
        x = sample(model, 8)
        runs.append(lambda model=model, x=x: model.predict_on_batch(x))
    return in_turns(runs, seconds)


RUNTIMES = {"litert": litert, "onnxruntime": onnxruntime, "openvino": openvino, "keras": in_keras}


def sample(model, batch):
    return np.random.default_rng(0).normal(size=(batch, *model.input_shape[1:])).astype("float32")


def in_turns(runs, seconds):
    """How many times as fast as the first each of the others is."""
    taken = [[] for _ in runs]
    for run in runs:
        run()
    until = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < until or len(taken[0]) < 5:
        for run, times in zip(runs, taken, strict=True):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
    dense, *small = map(statistics.median, taken)
    return [dense / each for each in small]


def measure(name, runtime, seconds):
    keras.utils.set_random_seed(0)
    dense = NETWORKS[name]()
    small, fewer = zip(*(halved(dense, form) for form in FORMS), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        speedups = list(RUNTIMES[runtime]([dense, *small], Path(folder), seconds))
    where = f"keras, {keras.backend.backend()}" if runtime == "keras" else runtime
    for form, times, speedup in zip(FORMS, fewer, speedups, strict=True):
        yield {"network": name, "runtime": where, "form": form, "macs": times, "speedup": speedup}


def table(rows):
    where = list(dict.fromkeys(row["runtime"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        line = [name, f"{mine[0]['macs']:.2f}"]
        for runtime in where:
            found = {row["form"]: row["speedup"] for row in mine if row["runtime"] == runtime}
            line.append(" / ".join(f"{found[form]:.2f}" for form in FORMS if form in found))
        lines.append(line)
    title = "times as fast with half of the channels: rounded to 8 / half and one more"
    return tables.render(title, ["network", ">MACs", *(f">{name}" for name in where)], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--runtimes", nargs="+", default=["litert"], choices=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each model")
    parser.add_argument("--json", type=Path, default=Path("shrink_latency.json"))
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    args = parser.parse_args()
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    for name in args.networks if not args.table else ():
        for runtime in args.runtimes:
            rows += measure(name, runtime, args.seconds)
            args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
