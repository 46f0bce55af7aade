"""The same training on each backend ends in files that compute the same."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
BACKENDS = [b for b in ("tensorflow", "jax", "torch") if importlib.util.find_spec(b)]

PROGRAM = """
import sys
import keras, numpy as np
import keras_pruner as kp
from keras_pruner.cli.demo import digits

rng = np.random.default_rng(0)
x, y, x_test, y_test = digits(512)
model = keras.Sequential([
    keras.Input((28, 28, 1)),
    keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
    keras.layers.Flatten(),
    keras.layers.Dense(32, activation="relu"),
    keras.layers.Dense(10),
])
model.set_weights([rng.normal(size=w.shape) * 0.1 for w in model.weights])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.05), loss=loss)
model.fit(x, y, epochs=3, batch_size=32, shuffle=False, verbose=0,
          callbacks=[kp.GradualPruning(0.8, pattern=kp.Block((4, 1)), filters=["dense"])])
print(kp.summarize(model).prunable.zeros)
kp.export_litert(model, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.backend_free
def test_the_same_training_gives_files_with_equal_outputs(tmp_path):
    from keras_pruner.cli.demo import digits
    from keras_pruner.litert import interpreter

    source = Path(__file__).parent.parent / "src"
    outputs, zeros = [], set()
    images = digits()[2][:64]
    for backend in BACKENDS:
        path = tmp_path / f"{backend}.tflite"
        environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(source)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        zeros.add(done.stdout.split()[-1])
        runner = interpreter.load(path)
        name = next(iter(runner.get_signature_list().values()))["inputs"][0]
        rows = [interpreter.run(runner, {name: image[None]})[0] for image in images]
        outputs.append(np.concatenate(rows))
    assert len(zeros) == 1
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], atol=1e-5 * np.abs(outputs[0]).max())
    assert len(BACKENDS) > 1
