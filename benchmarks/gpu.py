"""One table about one NVIDIA GPU: laws, step time, mask update, 2:4 sparsity, removed channels.

    python benchmarks/gpu.py --backend torch      (or jax)

Needs this package, Keras and one backend with CUDA, and nothing else; takes less than eight
minutes. Speeds are measured in turns, block by block, and printed as ratios: median and 95 %
interval of the median. A second dense model is the control. Without a GPU it stops, unless
--cpu asks for a trial of the script itself.

--smoke takes networks and blocks so small that the figures mean nothing.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["torch", "jax"], default="torch")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--cpu", action="store_true", help="run without a GPU")
    parser.add_argument("--smoke", action="store_true", help="try the script, measure nothing")
    return parser.parse_args()


OPTIONS = arguments()
os.environ["KERAS_BACKEND"] = OPTIONS.backend
if OPTIONS.cpu:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_pruner as kp  # noqa: E402

Row = tuple[str, str, str]
WIDTH = 64 if OPTIONS.smoke else 2048
BATCH = 8 if OPTIONS.smoke else 256
BLOCKS = 2 if OPTIONS.smoke else OPTIONS.blocks


# ---------------------------------------------------------------------- the device


def device() -> str:
    """The name of the GPU; "" without one."""
    if OPTIONS.backend == "jax":
        import jax

        return next((d.device_kind for d in jax.devices() if d.platform == "gpu"), "")
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def wait(tensor: object) -> None:
    """Wait until the device has computed the tensor."""
    if OPTIONS.backend == "jax":
        tensor.block_until_ready()
    else:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


# ---------------------------------------------------------------------- measuring


def in_turns(variants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each variant, block by block; every block runs each once."""
    for run in variants.values():
        run()  # compile
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for block in range(BLOCKS):
        order = list(variants) if block % 2 else list(variants)[::-1]
        for name in order:
            begun = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: list[float], against: list[float]) -> str:
    """The median of the blocks' ratios, with its 95 % bootstrap interval."""
    ratios = np.divide(seconds, against)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, 1), [2.5, 97.5])
    return f"{np.median(ratios):.2f} ({low:.2f} - {high:.2f})"


# ---------------------------------------------------------------------- networks


def mlp() -> keras.Model:
    layers = [keras.layers.Dense(WIDTH, activation="relu", name=f"dense_{i}") for i in range(4)]
    return keras.Sequential([keras.Input((WIDTH,)), *layers, keras.layers.Dense(10, name="head")])


def cnn() -> keras.Model:
    """Seven convolutions with batch normalisation, as in a small VGG."""
    layers: list[keras.Layer] = [keras.Input((32, 32, 3))]
    for i, filters in enumerate([WIDTH // 32, WIDTH // 16, WIDTH // 8, WIDTH // 4]):
        for j in range(2 if i else 1):
            conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"c{i}{j}")
            layers += [conv, keras.layers.BatchNormalization(), keras.layers.ReLU()]
        layers.append(keras.layers.MaxPooling2D())
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10, name="head")])


NETWORKS = {"MLP": mlp, "CNN": cnn}


def data(model: keras.Model, batches: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * batches, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(0, 10, len(x))


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


# ---------------------------------------------------------------------- what is measured


def laws() -> Iterator[Row]:
    """Sparsity on the device: exact after every step, equal to that of the CPU, nested."""
    for name, build in NETWORKS.items():
        keras.utils.set_random_seed(0)
        model = compiled(build())
        schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.4, end_step=6, frequency=2)
        watch = Watch()
        model.fit(*data(model, 8), batch_size=BATCH, verbose=0,
                  callbacks=[kp.GradualPruning(schedule), watch])  # fmt: skip
        found = kp.summarize(model).prunable
        yield (
            f"law: {name} ends with 80 % zeros",
            f"{found.sparsity:.4f}",
            _held(round(found.size * 0.2) == found.size - found.zeros),
        )
        yield (
            f"law: {name} masks nest, zeros stay zero",
            f"{watch.steps} steps",
            _held(watch.returned == 0),
        )
    shape = (WIDTH + 1, WIDTH - 1)
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    for pattern in (kp.Unstructured(), kp.Block((4, 1)), kp.NM(2, 4)):
        layer = keras.layers.Dense(shape[1], use_bias=False)
        model = keras.Sequential([keras.Input(shape[:1]), layer])
        layer.set_weights([values])
        kp.prune(model, None if isinstance(pattern, kp.NM) else 0.7, pattern=pattern)
        kept = layer.get_weights()[0] != 0
        same = np.array_equal(kept, _mask_of_numpy(values, pattern))
        yield f"law: {pattern!r} as by NumPy", f"{1 - kept.mean():.4f} zeros", _held(same)


class Watch(keras.callbacks.Callback):
    """Counts the weights that were zero after a step and are not after a later one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.returned = 0
        self.zeros: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Compare with the step before."""
        kernels = [w for w in self.model.get_weights() if w.ndim > 1]
        zeros = [kernel == 0 for kernel in kernels]
        pairs = zip(self.zeros, zeros, strict=True) if self.zeros else []
        self.returned += sum(int((before & ~now).sum()) for before, now in pairs)
        self.steps, self.zeros = self.steps + 1, zeros


def _mask_of_numpy(values: np.ndarray, pattern: object) -> np.ndarray:
    """The mask by sorting, on the host."""
    scores = np.abs(values)
    if isinstance(pattern, kp.NM):
        pad = np.pad(scores, ((0, -len(scores) % 4), (0, 0)), constant_values=-1)
        groups = pad.reshape(-1, 4, scores.shape[1])
        order = np.argsort(-groups, axis=1, kind="stable")
        kept = np.zeros(groups.shape, bool)
        np.put_along_axis(kept, order[:, :2], True, axis=1)
        return kept.reshape(pad.shape)[: len(scores)]
    rows = 4 if isinstance(pattern, kp.Block) else 1
    pad = np.pad(scores, ((0, -len(scores) % rows), (0, 0)))
    sums = pad.reshape(-1, rows, scores.shape[1]).sum(1)
    sizes = np.minimum(rows, len(scores) - rows * np.arange(len(sums)))[:, None]
    units = (sums / sizes).ravel()
    count = round(units.size * (1 - 0.7))  # in float64, as the library counts
    kept = np.zeros(units.size, bool)
    kept[np.argsort(-units, kind="stable")[:count]] = True
    return np.repeat(kept.reshape(sums.shape), rows, axis=0)[: len(scores)]


def _held(condition: bool) -> str:
    return "held" if condition else "BROKEN"


def steps() -> Iterator[Row]:
    """A whole `fit` with an update every 20 steps against a dense one with an equal hook."""
    for name, build in NETWORKS.items():
        models = {side: compiled(build()) for side in ("dense", "control", "pruned")}
        schedule = kp.PolynomialDecay(0.8, initial_sparsity=0.5, end_step=10**6, frequency=20)
        hooks = {side: keras.callbacks.LambdaCallback(on_train_batch_begin=_nothing)
                 for side in models} | {"pruned": kp.GradualPruning(schedule)}  # fmt: skip
        x, y = data(models["dense"], 20)

        def fit(model: keras.Model, hook: object, x: object = x, y: object = y) -> None:
            model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[hook])

        seconds = in_turns(
            {side: lambda s=side, m=models, h=hooks: fit(m[s], h[s]) for side in models}
        )
        for side in ("control", "pruned"):
            text = "a second dense model" if side == "control" else "pruned, update every 20 steps"
            yield f"fit, {name}: {text} / dense", ratio(seconds[side], seconds["dense"]), "time"


def _nothing(batch: int, logs: object = None) -> None:
    pass


def update() -> Iterator[Row]:
    """A mask update against a sort of the same weights on the device."""
    layer = keras.layers.Dense(2 * WIDTH, use_bias=False)
    model = keras.Sequential([keras.Input((2 * WIDTH,)), layer])
    schedule = kp.PolynomialDecay(0.81, initial_sparsity=0.79, end_step=10**6, frequency=1, power=1)
    pruner = kp.Pruner(model, schedule, allocation="uniform")
    pruner.wrap(keras.optimizers.SGD())

    def masks() -> None:
        pruner.pruning.count()
        pruner.update()
        wait(layer.kernel.value)

    def sort() -> None:
        wait(keras.ops.sort(keras.ops.abs(keras.ops.reshape(layer.kernel, (-1,)))))

    seconds = in_turns({"masks": masks, "sort": sort})
    what = f"mask update of {layer.kernel.shape[0] ** 2:,} weights / a sort of them"
    yield what, ratio(seconds["masks"], seconds["sort"]), "time"


def two_of_four() -> Iterator[Row]:
    """A half-precision product with a pruned 2:4 kernel in PyTorch's compressed form."""
    if OPTIONS.backend != "torch" or OPTIONS.cpu:
        yield "2:4 product / dense product", "-", "PyTorch on a GPU only"
        return
    import torch
    from torch.sparse import to_sparse_semi_structured

    for width in (WIDTH, 2 * WIDTH, 4 * WIDTH):
        layer = keras.layers.Dense(width, use_bias=False)
        model = keras.Sequential([keras.Input((width,)), layer])
        kp.prune(model, pattern=kp.NM(2, 4))
        kernel = layer.kernel.value.detach().T.contiguous().half()
        x = torch.randn(width, width, device=kernel.device, dtype=torch.half)
        packed = to_sparse_semi_structured(kernel)
        agree = torch.allclose(packed @ x, kernel @ x, rtol=1e-2, atol=1e-1)

        def product(matrix: object, x: object = x) -> None:
            for _ in range(20):
                out = matrix @ x
            wait(out)

        seconds = in_turns(
            {"dense": lambda k=kernel: product(k), "2:4": lambda p=packed: product(p)}
        )
        name = f"2:4 product of {width} x {width} / dense product"
        yield name, ratio(seconds["2:4"], seconds["dense"]), f"outputs agree: {_held(agree)}"


def shrunk() -> Iterator[Row]:
    """Half of the channels zeroed, then removed: predictions of both networks."""
    for name, build in NETWORKS.items():
        dense = build()
        pruned = keras.models.clone_model(dense)
        pruned.set_weights(dense.get_weights())
        kp.prune(pruned, 0.5, pattern=kp.Channel(), overrides={"head": None})
        report = kp.shrink(pruned)
        small = report.model
        x = keras.ops.convert_to_tensor(data(dense, 1)[0])
        runs = {side: _forward(model, x) for side, model in (("dense", dense), ("cut", small))}
        seconds = in_turns(runs)
        found = f"{report.macs[0] / report.macs[1]:.1f} times fewer MACs"
        yield (
            f"forward, {name}: dense / half of its channels",
            ratio(seconds["dense"], seconds["cut"]),
            f"speed-up; {found}; outputs differ by {report.difference:.0e}",
        )


def _forward(model: keras.Model, x: object) -> Callable[[], None]:
    if OPTIONS.backend == "jax":
        import jax

        trainable = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        call = jax.jit(lambda x: model.stateless_call(trainable, others, x, training=False)[0])

        def once() -> object:
            return call(x)
    else:
        import torch

        def once() -> object:
            with torch.no_grad():
                return model(x, training=False)

    def run() -> None:
        for _ in range(20):
            out = once()
        wait(out)

    return run


def main() -> int:
    name = device()
    if not name and not OPTIONS.cpu:
        print(f"{OPTIONS.backend} sees no GPU; --cpu tries the script without one", file=sys.stderr)
        return 2
    print(f"{name or 'CPU'}, {OPTIONS.backend}, Keras {keras.__version__}\n")
    print("| what | result | |\n|---|---|---|", flush=True)
    warnings.filterwarnings("ignore", message="The training is too short for the schedule")
    begun, broken = time.perf_counter(), 0
    for part in (laws, steps, update, two_of_four, shrunk):
        try:
            for row in part():
                broken += any("BROKEN" in cell for cell in row)
                print(f"| {' | '.join(row)} |", flush=True)
        except Exception as error:  # one part must not cost the others on a borrowed machine
            broken += 1
            print(f"| {part.__name__} | failed | {type(error).__name__}: {error} |", flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s; {broken} laws broken or parts failed")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
