"""The side of a recipe that runs under TFMOT 0.8.1, in a Python of its own.

A recipe's script is started again by that Python with a file of jobs, and leaves the weights of
each; the other side scores them, so that both are measured by the same code.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lib import recipe as recipes


@dataclasses.dataclass(frozen=True)
class Job:
    """One pruning: which recipe and seed, from which weights, to which target."""

    recipe: str
    seed: int
    start: Path
    target: recipes.Target

    @property
    def result(self):
        """The file for the weights."""
        name = self.target.name.replace(":", "of").replace(" ", "-")
        return self.start.with_name(f"{self.start.stem}-tfmot-{name}.npz")


# ------------------------------------------------------------------ this side


def run(jobs, options):
    """Have the jobs done; each with its weights, and its seconds and steps."""
    if not jobs:
        return
    list_of_jobs = options.work / f"jobs-{os.getpid()}.json"
    written = [dataclasses.asdict(job) | {"start": str(job.start)} for job in jobs]
    list_of_jobs.write_text(json.dumps(written))
    command = [options.tfmot_python, *sys.argv, "--jobs", str(list_of_jobs)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in worker.stdout:
            if line.startswith("done "):
                job = jobs[int(line.split()[1])]
                with np.load(job.result) as saved:
                    weights = [saved[f"w{i}"] for i in range(len(saved.files) - 1)]
                    spent = saved["spent"]
                yield job, weights, (float(spent[0]), int(spent[1]))
                job.result.unlink()
        if worker.wait():
            raise SystemExit(f"TFMOT's side ended with {worker.returncode}; what it said is above.")
    finally:
        worker.kill()
        list_of_jobs.unlink()


# ------------------------------------------------------------------ TFMOT's side


def work(list_of_jobs, by_name):
    """Do each job of the file, and say so on standard output."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    for i, found in enumerate(json.loads(list_of_jobs.read_text())):
        target = recipes.Target(**found["target"])
        job = Job(found["recipe"], found["seed"], Path(found["start"]), target)
        weights, spent = pruned(by_name[job.recipe], job, tf_keras, tfmot.sparsity.keras)
        part = job.result.with_suffix(".part.npz")
        np.savez(part, spent=spent, **{f"w{i}": w for i, w in enumerate(weights)})
        part.replace(job.result)
        print("done", i, flush=True)


def pruned(recipe, job, keras, api):
    """Weights after pruning by TFMOT's rule with the same budget; and the seconds and steps."""
    data, budget = recipe.data(job.seed), recipe.budget
    keras.utils.set_random_seed(job.seed)
    model = recipe.build(keras, data)
    with np.load(job.start) as saved:
        model.set_weights([saved[f"arr_{i}"] for i in range(len(saved.files))])
    order = recipes.order(2000 + job.seed, len(data.train), budget, budget.pruning_epochs)
    model = wrapped(model, recipe, job.target, len(order), keras, api)
    rate = keras.optimizers.schedules.CosineDecay(budget.pruning_rate, len(order))
    model.compile(optimizer=recipe.optimizer(keras, rate), loss=recipe.loss_of(keras))

    class Batches(keras.utils.Sequence):
        def __len__(self):
            return len(order)

        def __getitem__(self, step):
            return data.train.take(order[step])

    begun = time.perf_counter()
    model.fit(Batches(), epochs=1, shuffle=False, verbose=0, callbacks=[api.UpdatePruningStep()])
    seconds = time.perf_counter() - begun
    return api.strip_pruning(model).get_weights(), (seconds, len(order))


def wrapped(model, recipe, target, steps, keras, api):
    """The model with every prunable layer wrapped, on the schedule that `GradualPruning` takes."""
    how = {"pruning_schedule": schedule(target, steps, api)}
    if target.pattern == "2:4":
        how["sparsity_m_by_n"] = (2, 4)
    elif target.pattern == "4x1":
        how |= {"block_size": (4, 1)}

    def wrap(layer):
        prunable = [w for w in layer.trainable_weights if len(w.shape) > 1]
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        if not prunable or depthwise or recipe.leaves_alone(layer.name):
            return layer
        return api.prune_low_magnitude(layer, **how)

    return keras.models.clone_model(model, clone_function=wrap)


def schedule(target, steps, api):
    """From no zeros to all over three quarters of the steps, in at most a hundred updates.

    TFMOT's last update is on the beat or missed, so the end is a multiple of the frequency.
    """
    if target.pattern == "2:4":
        return api.ConstantSparsity(0.5, 0, frequency=max(1, steps // 100))
    last = max(1, 3 * steps // 4)
    frequency = max(1, last // 100)
    end = 1 + (last - 1) // frequency * frequency
    return api.PolynomialDecay(
        0.0, target.sparsity, 1, max(end, 1 + frequency), frequency=frequency
    )
