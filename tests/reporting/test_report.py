"""The form that all results share."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.reporting import html
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table

pytestmark = pytest.mark.backend_free


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    size: int

    @property
    def doubled(self):
        return 2 * self.size


@dataclasses.dataclass(frozen=True)
class Parts(Report):
    parts: tuple[Part, ...]
    score: float = float("nan")
    pattern: object = None
    secret: object = dataclasses.field(default=None, repr=False)

    @property
    def total(self):
        return sum(part.size for part in self.parts)

    def headline(self):
        return f"{self.total} in all"

    def tables(self):
        rows = [(part.name, part.size) for part in self.parts]
        sizes = [part.size for part in self.parts]
        return [Table("parts", ["name", ">size"], rows, importance=sizes), Table("none", ["x"], [])]

    def notes(self):
        return ["A note."]


def many(count=30):
    return Parts(tuple(Part(f"<b>{i}", i) for i in range(count)))


def test_the_short_form_has_the_rows_that_matter_and_says_where_the_others_are():
    text = str(many())
    lines = text.splitlines()
    assert lines[0] == "435 in all"
    assert len(lines) == 4 + 20 + 1 + 1
    assert "<b>10 " in text
    assert "<b>9 " not in text
    assert lines[-2:] == ["  ... and 10 more: print(report.full())", "A note."]
    assert "none" not in text


def test_everything_is_there_on_request():
    text = many().full()
    assert "<b>0 " in text
    assert "more" not in text


def test_data_are_fields_and_properties_and_plain():
    report = Parts((Part("a", np.int64(3)),), np.float32("inf"), kp.Block((4, 1)), object())
    data = report.as_dict()
    assert data == {
        "parts": [{"name": "a", "size": 3, "doubled": 6}],
        "score": None,
        "pattern": "Block(shape=(4, 1), pooling='mean')",
        "total": 3,
    }
    assert json.loads(report.to_json()) == data


def test_a_notebook_shows_a_table_that_escapes_names():
    shown = many()._repr_html_()
    assert shown.count("<table>") == 1
    assert "&lt;b&gt;29" in shown
    assert "<b>" not in shown
    assert "10 more: print(report.full())" in shown


def test_the_page_has_every_row_and_stands_alone(tmp_path):
    path = tmp_path / "report.html"
    page = many().to_html(path)
    assert path.read_text(encoding="utf-8") == page
    assert "&lt;b&gt;0<" in page
    assert "<b>" not in page
    assert "<title>435 in all</title>" in page
    assert "src=" not in page


def test_a_page_shows_the_training_over_the_sparsity():
    page = many().to_html(history={"sparsity": [0.0, 0.5, 0.8], "val_accuracy": [0.9, np.nan, 0.8]})
    assert page.count("<svg") == 1
    assert "accuracy: from 0.9 to 0.8" in page
    assert "sparsity: 0.8 at the end" in page
    assert 'class="area" d="M0 100L0.00 100.00L50.00 50.00L100.00 20.00L100 100Z"' in page
    assert "nan" not in page.replace("none", "")


def test_the_sparsity_alone_is_a_curve():
    (section,) = html.training({"sparsity": [0.0, 0.5]})
    assert "sparsity: from 0 to 0.5" in section


def test_a_metric_of_some_epochs_is_drawn_without_the_sparsity():
    (section,) = html.training({"sparsity": [0.1, 0.2, 0.3], "val_accuracy": [0.5]})
    assert "accuracy, 1 values over 3 epochs" in section
    assert "area" not in section


def test_bars_are_as_long_as_their_numbers():
    shown = html.pairs("Size", "megabytes", ("dense", "pruned"), [("file", 2.0, 0.5)])
    assert 'class="fill before" style="width:100.00%"' in shown
    assert 'class="fill kept" style="width:25.00%"' in shown


def test_a_table_on_a_page_has_a_bar_for_each_row():
    bars = [[("kept", 50), ("zero", 150)], [("kept", 100), ("zero", 0)], [("kept", 0)]]
    shown = html.table(
        Table("", ["weight", ">size"], [("a", 200), ("b", 100), ("c", 0)], bars=bars)
    )
    assert shown.count('class="bar"') == 3
    assert 'class="fill" style="width:50.00%"><span class="kept" style="width:100.00%">' in shown
    assert (
        '<span class="kept" style="width:25.00%"></span><span class="zero" style="width:75' in shown
    )
    assert "removed" not in shown
    assert "bar" not in html.table(Table("", ["a"], [(1,)], bars=[[("kept", 1)]]), bars=False)


def test_a_mask_is_drawn_as_runs_of_kept_entries():
    kernel = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]])  # 3 inputs, 2 outputs
    shown = html.mask("dense/kernel", kernel)
    assert 'd="M0 0h2v1H0zM1 1h1v1H1z"' in shown
    assert "dense/kernel: 2 outputs (down) by 3 inputs (across). 50% are kept." in shown
    wide = html.mask("wide", np.ones((300, 70)))
    assert '<rect width="128" height="64"/>' in wide  # the zeros end where the picture ends
    assert "of 70 by 300" in wide


RESULTS = [getattr(kp.reports, name) for name in kp.reports.__all__ if name != "Report"]


@pytest.mark.parametrize("result", RESULTS, ids=lambda cls: cls.__name__)
def test_every_result_is_a_report(result):
    assert issubclass(result, Report)
    assert dataclasses.is_dataclass(result)
    assert "__str__" not in vars(result)


def test_every_result_is_listed():
    source = Path(kp.__file__).parent
    text = "\n".join(path.read_text() for path in sorted(source.rglob("*.py")))
    named = set(re.findall(r"^class (\w+)\(Report\):", text, re.MULTILINE))
    assert named - {"Demo"} == set(kp.reports.__all__) - {"Report"}  # Demo: the command line's
