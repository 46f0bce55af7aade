"""Checking models and files for N:M zeros."""

import keras
import pytest
from models import mlp

import keras_pruner as kp
from keras_pruner.litert.nm_check import check_m_by_n


def test_m_by_n_is_checked_weight_by_weight():
    model = mlp()
    assert not check_m_by_n(model).passed
    kp.prune(model, pattern=kp.NM(2, 4))
    check = check_m_by_n(model)
    assert check.passed
    assert list(check.weights) == ["hidden/kernel", "head/kernel"]
    assert "yes" in str(check)
    assert not check_m_by_n(model, (3, 4)).passed


def test_m_by_n_of_a_tflite_file(tmp_path):
    pytest.importorskip("ai_edge_litert")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the conversion is TensorFlow's")
    model = mlp()
    kp.export_litert(model, tmp_path / "dense.tflite")
    kp.prune(model, pattern=kp.NM(2, 4))
    kp.export_litert(model, tmp_path / "pruned.tflite")
    assert not check_m_by_n(tmp_path / "dense.tflite").passed
    assert check_m_by_n(tmp_path / "pruned.tflite").passed
