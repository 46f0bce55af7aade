import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.litert import convert, cost_model, latency

pytestmark = pytest.mark.one_backend

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')


@pytest.mark.slow
def test_points_for_every_form_size_and_batch(monkeypatch):
    monkeypatch.setattr(latency, "_STACKS", ((32, 48, 16),))
    monkeypatch.setattr(latency, "_BATCHES", (1, 3))
    found = kp.litert.measure_speedups(seconds=0.01)
    assert found.runtime in ("litert-x86", "litert-arm")
    places = {(p.form, p.model_bytes, p.batch_size) for p in found.points}
    size = 4 * (32 * 48 + 48 * 16)
    assert places == {(form, size, b) for form in cost_model.FORMS for b in (1, 3)}
    assert all(p.slope > 0 and p.overhead >= 0 for p in found.points)
    assert cost_model.SpeedupTable.from_dict(found.as_dict()) == found


@pytest.mark.parametrize("form", cost_model.FORMS)
def test_the_file_that_is_timed_holds_what_it_should(tmp_path, form):
    model = latency._stack((64, 128, 64))
    dense, sparse = tmp_path / "dense.tflite", tmp_path / "sparse.tflite"
    signature = [keras.InputSpec("float32", (1, 64), name=model.inputs[0].name)]
    convert.convert(model, dense, signature)
    latency._write_sparse(dense, sparse, form, 0.75)
    contents = kp.litert.inspect(sparse)
    assert {(w.encoding, w.execution) for w in contents.weights} == {(form, "native sparse")}
    assert contents.sparsity == pytest.approx(0.75, abs=0.03)


@pytest.mark.slow
def test_measured_gains_decide_what_is_stored_sparse(tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(96), keras.layers.Dense(8)])
    kp.prune(model, 0.5)
    slow, fast = (
        kp.litert.SpeedupTable("litert-x86", "by hand", tuple(
            cost_model.Point(form, 1e6, 1, 0.0, slope) for form in cost_model.FORMS
        ))
        for slope in (9.0, 1.0)
    )  # fmt: skip
    for measured, expected in (
        (slow, {"densified", "dense"}),  # the small one would be larger
        (fast, {"native sparse"}),
    ):
        done = kp.export_litert(model, tmp_path / "m.tflite", runtime=measured)
        assert {w.execution for w in done.weights} == expected
        assert done.difference < 1e-5


@pytest.mark.backend_free
def test_only_processors_that_are_known(monkeypatch):
    monkeypatch.setattr(latency.platform, "machine", lambda: "s390x")
    with pytest.raises(ValueError, match=r"x86-64 and 64-bit ARM\. Received: .*s390x"):
        kp.litert.measure_speedups()


@pytest.mark.backend_free
def test_a_line_through_two_times(tmp_path, monkeypatch):
    speedups = iter([1 / 0.5, 1 / 0.3, 1 / 0.2, 1 / 0.15])  # 80 % at two batches, then 95 %

    def timed(dense, sparse, batch_sizes, seconds):
        rows = [
            kp.litert.latency.Timing(b, 1.0, 1.0, next(speedups), (1.0, 1.0), 0.0)
            for b in batch_sizes
        ]
        return kp.litert.latency.Latency("native", 1, tuple(rows))

    monkeypatch.setattr(latency, "_BATCHES", (1, 8))
    monkeypatch.setattr(latency, "benchmark", timed)
    monkeypatch.setattr(latency, "_write_sparse", lambda *_: None)
    first, second = latency._points(tmp_path / "d.tflite", "block 1x4", 1e6, 0.1)
    np.testing.assert_allclose((first.slope, first.overhead), (2.0, 0.1))
    np.testing.assert_allclose((second.slope, second.overhead), (1.0, 0.1))
