"""What zeros are worth on microcontrollers, NPUs and servers; prints ratios.

    KERAS_BACKEND=tensorflow python benchmarks/edge.py integers --files DIR
    KERAS_BACKEND=tensorflow python benchmarks/edge.py npu --files DIR
    KERAS_BACKEND=tensorflow python benchmarks/edge.py advice
    KERAS_BACKEND=tensorflow python benchmarks/edge.py micro --files DIR
    KERAS_BACKEND=torch python benchmarks/edge.py products
    KERAS_BACKEND=torch python benchmarks/edge.py speedups
    KERAS_BACKEND=torch python benchmarks/edge.py servers --files DIR

- integers: accuracy of float32 and of files of int8, operators on the NPU, zeros in model and file;
- npu: dense beside pruned by the estimate of Arm's compiler, in its default configuration, and
  the factor that the entropy of the int8 weights allows;
- advice: `kp.advise` from shapes beside that estimate;
- micro: flash, arena and time in TensorFlow Lite Micro, also with 64 kB of RAM;
- products: PyTorch's sparse product beside the fastest dense form;
- speedups: the lines through such times, in the form in which `cost_model.py` has them;
- servers: whole trained models on PyTorch, end to end.

Trained networks come from `edge_networks.py`, which keeps them in --files and reads --speech and
--fashion. Needs the extras tensorflow, litert, ethos-u and tflm.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import edge_networks
import keras
import numpy as np
from file_size import entropy

import keras_pruner as kp

L = keras.layers
CONFIGURATIONS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
INTEGERS = {"weights": "int8", "activations": "int8", "progress": False}
TRAINED = ("mobilenet", "ds_cnn_s", "ds_cnn_l", "mnist_cnn", "resnet")


def dense_stack():
    """Dense layers alone."""
    layers = [*(L.Dense(512, activation="relu") for _ in range(3)), L.Dense(10)]
    return keras.Sequential([keras.Input((256,)), *layers])


def mobilenet_v2():
    """MobileNetV2 0.35 over 96x96 images."""
    return keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), alpha=0.35, classes=10, classifier_activation=None
    )


def densenet():
    """DenseNet121 over 64x64 images."""
    return keras.applications.DenseNet121(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )


UNTRAINED = {"mobilenet_v2": mobilenet_v2, "densenet": densenet}


def paths(options):
    return {"files": options.files, "speech": options.speech, "fashion": options.fashion}


def quantized_accuracy(path, x, y):
    """Of a file with integers inside and outside, in LiteRT."""
    from keras_pruner.litert import interpreter

    runner = interpreter.load(path)
    takes, gives = runner.get_input_details()[0], runner.get_output_details()[0]
    right = 0
    for sample, label in zip(x, y, strict=True):
        runner.set_tensor(takes["index"], interpreter.quantize(sample[None], takes))
        runner.invoke()
        right += int(runner.get_tensor(gives["index"]).argmax() == label)
    return right / len(y)


def integers(options, scratch):
    for name in options.networks or (*TRAINED, *UNTRAINED):
        for zeros in ("0", "0.8") if name in TRAINED else ("0.8",):
            if name in TRAINED:
                model, (x, _, x_test, y_test) = edge_networks.trained(name, zeros, **paths(options))
            else:
                keras.utils.set_random_seed(0)
                model = UNTRAINED[name]()
                kp.prune(model, float(zeros))
                x = np.random.default_rng(0).normal(size=(100, *model.input_shape[1:]))
            path = scratch / "m.tflite"
            done = kp.export_litert(model, path, samples=x[:100], tolerance=1.0, **INTEGERS)
            npu = kp.litert.ethos_u(path, "ethos-u55-128").compiled
            same = f"same class as float32 {done.same_largest:.4f}"
            if name in TRAINED:
                x_test, y_test = x_test[: options.samples], y_test[: options.samples]
                exact = edge_networks.accuracy(model, x_test, y_test)
                whole = quantized_accuracy(path, x_test, y_test)
                same = (
                    f"float32 {exact:.4f}, int8 {whole:.4f} on {len(y_test)} held-out samples, "
                    f"{100 * (whole - exact):+.2f} points"
                )
            print(
                f"{name:12} zeros {zeros:3} {same}; error {done.error:.3f}; on the NPU "
                f"{len(npu.layers) - len(npu.on_cpu)} of {len(npu.layers)}; zeros "
                f"{done.zeros[0]:,} in the model, {done.zeros[1]:,} in the file",
                flush=True,
            )


def entropy_bytes(path):
    """Bytes that the int8 weights of a file take at the entropy of each tensor's values."""
    from keras_pruner.litert import flatbuffer

    model = flatbuffer.read(path)
    total = 0.0
    for graph in (flatbuffer.Graph(model, each) for each in model.subgraphs):
        for index in range(len(graph.tensors)):
            values = np.asarray(graph.data(index))
            if len(graph.shape(index)) >= 2 and len(values):
                counts = np.unique(values, return_counts=True)[1]
                total += len(values) * entropy(counts) / 8
    return total


def npu(options, scratch):
    dense, pruned = scratch / "dense.tflite", scratch / "pruned.tflite"
    for name in options.networks or TRAINED:
        for zeros in options.zeros or (
            ("0.8", "0.9", "2:4") if name == "resnet" else ("0.8", "0.9")
        ):
            files = []
            for each, path in (("0", dense), (zeros, pruned)):
                model, (x, _, x_test, y_test) = edge_networks.trained(name, each, **paths(options))
                kp.export_litert(model, path, samples=x[:100], tolerance=1.0, **INTEGERS)
                count = options.samples
                files.append(quantized_accuracy(path, x_test[:count], y_test[:count]))
            bound = entropy_bytes(dense) / entropy_bytes(pruned)
            for accelerator in CONFIGURATIONS:
                found = kp.litert.ethos_u(pruned, accelerator, dense=dense)
                flash = found.dense.flash / max(1, found.compiled.flash)
                print(
                    f"{name:10} {zeros:4} {accelerator:14} estimated time {found.speedup:.2f}x, "
                    f"compiled file {found.dense.size / found.compiled.size:.2f}x "
                    f"({dense.stat().st_size / found.compiled.size:.2f}x smaller than the dense "
                    f".tflite file), flash {flash:.2f}x "
                    f"(entropy of the weights {bound:.2f}x); int8 accuracy "
                    f"{files[0]:.4f} -> {files[1]:.4f}",
                    flush=True,
                )


def advice(options, scratch):
    networks = {n: edge_networks.NETWORKS[n].build for n in TRAINED}
    networks |= {"mobilenet_v2": mobilenet_v2, "dense_stack": dense_stack}
    worst = 1.0
    for name in options.networks or networks:
        keras.utils.set_random_seed(0)
        model = networks[name]()
        weights = model.get_weights()
        x = np.random.default_rng(0).normal(size=(10, *model.input_shape[1:]))
        kp.export_litert(model, scratch / "0.tflite", samples=x, tolerance=10.0, **INTEGERS)
        for zeros in ("0.8", "0.9", "2:4"):
            model.set_weights(weights)
            pattern = kp.NM(2, 4) if zeros == "2:4" else kp.Unstructured()
            sparsity = 0.5 if zeros == "2:4" else float(zeros)
            kp.prune(model, None if zeros == "2:4" else sparsity, pattern=pattern,
                     allocation=None if zeros == "2:4" else "uniform")  # fmt: skip
            path = scratch / "pruned.tflite"
            kp.export_litert(model, path, samples=x, tolerance=10.0, **INTEGERS)
            for accelerator in CONFIGURATIONS:
                found = kp.litert.ethos_u(path, accelerator, dense=scratch / "0.tflite")
                said = kp.advise(model, accelerator, sparsity=sparsity, pattern=pattern).speedup
                worst = max(worst, said / found.speedup, found.speedup / said)
                print(
                    f"{name:12} {zeros:4} {accelerator:14} advised {said:.2f}x, compiler's "
                    f"estimate {found.speedup:.2f}x, ratio {said / found.speedup:.2f}",
                    flush=True,
                )
    print(f"largest ratio of the two: {worst:.2f}")


def micro(options, scratch):
    for name in options.networks or ("mnist_cnn", "ds_cnn_l", "ds_cnn_s"):
        model, (x, *_) = edge_networks.trained(name, "0.9", **paths(options))
        for ram in (None, 64_000):
            path = scratch / "micro.tflite"
            try:
                done = kp.litert.export_micro(
                    model, path, samples=x[:100], ram=ram, tolerance=1.0, progress=False
                )
            except ValueError as error:
                print(f"{name:10} ram {ram}: {error}")
                continue
            encoded = sum(row.form != "plain" for row in done.weights)
            print(
                f"{name:10} zeros 0.9, ram {ram or 'free':6} flash {done.plain_flash:,} -> "
                f"{done.flash:,}, {done.plain_flash / done.flash:.2f}x smaller; arena "
                f"{done.plain_arena:,} -> {done.arena:,}; time {done.time_ratio:.2f}x; "
                f"{encoded} of {len(done.weights)} weights encoded; outputs equal in every bit on "
                f"{done.compared_on} samples",
                flush=True,
            )


def products(options, _scratch):
    from keras_pruner.litert.torch_kernels import time_products

    cases = [{"form": "csr", "width": 1024, "rows": rows} for rows in (1, 8, 64, 512)]
    cases += [{"form": "csr 1x1", "width": 256, "rows": 196}]
    sparsities = [0.8, 0.9, 0.95]
    job = {"cases": cases, "sparsities": sparsities, "seconds": options.seconds}
    for case, times in zip(cases, time_products(job), strict=True):
        row = ", ".join(f"{s:.0%} {1 / t:.2f}x" for s, t in zip(sparsities, times, strict=True))
        print(f"{case['form']:8} {case['width']} wide, {case['rows']} rows: {row}", flush=True)


def speedups(options, _scratch):
    found = kp.litert.measure_speedups(
        runtime="torch-cpu", seconds=options.seconds, progress=False
    ).points
    for form in dict.fromkeys(point.form for point in found):
        print(f'    "{form}": (')
        for rows in sorted({point.batch_size for point in found}):
            own = [p for p in found if (p.form, p.batch_size) == (form, rows)]
            lines = ", ".join(f"({p.overhead:.2f}, {p.slope:.1f})" for p in own)
            print(f"        ({lines}),  # {rows} rows")
        print("    ),")
    sizes = sorted({point.model_bytes for point in found})
    print(f"weights of {', '.join(f'{size:,.0f}' for size in sizes)} bytes")


def servers(options, _scratch):
    import torch

    torch.set_num_threads(1)
    for name in options.networks or ("mlp", "encoder"):
        dense, (*_, x, y) = edge_networks.trained(name, "0", **paths(options))
        model, _ = edge_networks.trained(name, "0.9", **paths(options))
        for batch in (1, 8, 64):
            fast = kp.torch_cpu.sparse_inference(model, batch_size=batch, samples=x[:32])
            advised = kp.advise(model, "torch-cpu", sparsity=0.9, batch_size=batch).speedup
            calls = [model, fast.model, dense]
            slow, quick, control = _medians(calls, torch.from_numpy(x[:batch]), options.seconds)
            sides = (edge_networks.accuracy(each, x, y) for each in (dense, model, fast.model))
            print(
                f"{name:8} zeros 0.9, batch {batch:2}: {slow / quick:.2f}x (control "
                f"{slow / control:.2f}x, advised {advised:.2f}x), "
                f"{sum(r.is_sparse for r in fast.layers)} of {len(fast.layers)} kernels sparse; "
                "accuracy dense {:.4f}, pruned {:.4f}, sparse {:.4f}".format(*sides),
                flush=True,
            )


def _medians(models, inputs, seconds):
    """Seconds of a call of each model, in turns."""
    import torch

    times = [[] for _ in models]
    with torch.inference_mode():
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end or len(times[0]) < 10:
            for model, each in zip(models, times, strict=True):
                start = time.thread_time()
                model(inputs, training=False)
                each.append(time.thread_time() - start)
    return [statistics.median(each[2:]) for each in times]


TABLES = {f.__name__: f for f in (integers, npu, advice, micro, products, speedups, servers)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--zeros", nargs="*")
    parser.add_argument("--samples", type=int, default=1000, help="to measure accuracy on")
    parser.add_argument("--seconds", type=float, default=1.0, help="to time each case")
    parser.add_argument("--files", default="edge-networks", help="where trained networks are kept")
    parser.add_argument("--speech", help="fsdd.npz")
    parser.add_argument("--fashion", help="directory of Fashion-MNIST's files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        TABLES[options.table](options, Path(scratch))


if __name__ == "__main__":
    main()
