"""Sparsity x allocation x seed over a cluster with Ray Tune, to a plot of accuracy and bytes.

    pip install "keras-pruner[jax,report,sweep]"
    KERAS_BACKEND=jax python examples/distributed/sweep.py sweep

Every trial trains a small network on the package's digits while pruning it. After each epoch it
reports its accuracy and hands its backup to Ray, so that a trial whose worker dies goes on, on
whatever machine, after its last epoch. Run the same line again to go on with a sweep that was
stopped as a whole. `--die` lets every worker kill itself once in mid-training, to see it.

Writes `results.json` and `pareto.png` into the directory: no trial on the line has another that
is both smaller and more accurate.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

from ray import tune


def train(config):
    """One trial, in a process of its own on some machine."""
    import keras

    import keras_pruner as kp
    from keras_pruner.cli.demo import digits, network

    x, y, *test = digits(config["samples"])
    keras.utils.set_random_seed(config["seed"])
    model = network()
    model.compile(
        keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    with tempfile.TemporaryDirectory() as folder:
        backups = Path(folder) / "backups"
        handed = tune.get_checkpoint()
        if handed is not None:  # a worker died before
            with handed.as_directory() as before:
                shutil.copytree(before, backups)
        backup = kp.callbacks.AtomicBackup(backups)
        begun_at = backup.epoch

        class Report(keras.callbacks.Callback):
            """Tell Ray after each epoch, when the backup is made."""

            def on_epoch_end(self, epoch, logs=None):
                packed = Path(folder) / "packed.keras"
                kp.save_compressed(self.model, packed)
                tune.report(
                    {
                        "epochs": epoch + 1,
                        "begun_at": begun_at,
                        "accuracy": logs["val_accuracy"],
                        "sparsity": logs["sparsity"],
                        "bytes": packed.stat().st_size,
                    },
                    checkpoint=tune.Checkpoint.from_directory(backups),
                )
                if config["dies_after"] == epoch + 1 and not begun_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        pruning = kp.GradualPruning(config["sparsity"], allocation=config["allocation"])
        model.fit(
            x,
            y,
            batch_size=64,
            epochs=config["epochs"],
            shuffle=False,
            validation_data=test,
            verbose=0,
            callbacks=[pruning, backup, Report()],
        )


def pareto(trials):
    """The trials that no other one beats in both bytes and accuracy, by rising bytes."""
    best, line = -1.0, []
    for trial in sorted(trials, key=lambda trial: (trial["bytes"], -trial["accuracy"])):
        if trial["accuracy"] > best:
            best = trial["accuracy"]
            line.append(trial)
    return line


def plot(trials, path):
    """Accuracy against bytes, a colour for each allocation, a line through the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for allocation in sorted({trial["allocation"] for trial in trials}):
        mine = [trial for trial in trials if trial["allocation"] == allocation]
        axes.scatter(
            [t["bytes"] for t in mine], [t["accuracy"] for t in mine], label=allocation, alpha=0.7
        )
    line = pareto(trials)
    axes.plot([t["bytes"] for t in line], [t["accuracy"] for t in line], color="0.5", zorder=0)
    axes.set(xscale="log", xlabel="bytes, save_compressed", ylabel="accuracy on 2,000 test digits")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--allocation", nargs="+", default=["uniform", "lamp", "erk"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--cpus", type=float, default=1, help="for each trial")
    parser.add_argument("--die", action="store_true", help="kill every worker once")
    options = parser.parse_args()
    where = options.directory.resolve()
    space = {
        "sparsity": tune.grid_search(options.sparsity),
        "allocation": tune.grid_search(options.allocation),
        "seed": tune.grid_search(list(range(options.seeds))),
        "epochs": options.epochs,
        "samples": options.samples,
        "dies_after": options.epochs // 2 if options.die else 0,
    }
    trainable = tune.with_resources(train, {"cpu": options.cpus})
    if tune.Tuner.can_restore(str(where / "trials")):
        tuner = tune.Tuner.restore(
            str(where / "trials"), trainable, resume_unfinished=True, restart_errored=True
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(where),
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        )
    trials = [{**found.config, **found.metrics} for found in tuner.fit()]
    fields = ("sparsity", "allocation", "seed", "accuracy", "bytes", "epochs", "begun_at")
    trials = [{field: trial[field] for field in fields} for trial in trials]
    (where / "results.json").write_text(json.dumps(trials, indent=1))
    plot(trials, where / "pareto.png")
    for trial in pareto(trials):
        print(trial)


if __name__ == "__main__":
    main()
