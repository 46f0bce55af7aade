"""The benchmark that times files in LiteRT.js under Node."""

import shutil
import sys
from pathlib import Path

import keras
import pytest

from keras_pruner.litert.export import export_litert

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import litertjs

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytestmark = pytest.mark.backend_free


def test_it_runs_in_node(tmp_path):
    try:
        litertjs.find_litertjs()
    except FileNotFoundError:
        pytest.skip("needs npm install @litertjs/core in this directory or above")
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    export_litert(model, tmp_path / "m.tflite")
    timing = litertjs.benchmark(tmp_path / "m.tflite", tmp_path / "m.tflite", seconds=0.3).timings[
        0
    ]
    assert timing.difference < 1e-5
    assert timing.speedup > 0


def test_missing_tools_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="npm install @litertjs/core"):
        litertjs.find_litertjs(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Node 20"):
        litertjs.benchmark("dense.tflite", "pruned.tflite")


@pytest.mark.parametrize("outputs", [[[1.0, 2.0], [3.0]], [[3.0], [1.0, 2.01]]], ids=str)
def test_outputs_of_another_build_may_come_in_another_order(monkeypatch, outputs):
    monkeypatch.setattr(litertjs, "natively", lambda _: [[[1.0, 2.0], [3.0]]])
    litertjs.check_against_native(["m.tflite"], [outputs])


@pytest.mark.parametrize("garbage", [[0.0, 7.5], [float("nan"), 2.0], [1.0]], ids=str)
def test_garbage_from_litertjs_is_an_error(monkeypatch, garbage):
    monkeypatch.setattr(litertjs, "natively", lambda _: [[[1.0, 2.0]]])
    with pytest.raises(RuntimeError, match=r"m.tflite computes something else in LiteRT.js"):
        litertjs.check_against_native(["m.tflite"], [[garbage]])
