"""Every code block of the documentation runs."""

import inspect
import re
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- backend: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
BLOCKS = {page: BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}


class Reader:
    """Runs the blocks of a page in their order, in one namespace."""

    def __init__(self, page):
        self.page = page
        self.namespace = {"__name__": "docs"}
        self.done = 0

    def read(self, until):
        for backend, code in BLOCKS[self.page][self.done : until + 1]:
            self.done += 1
            if backend in ("", keras.backend.backend()):
                exec(compile(code, f"{self.page}, block {self.done}", "exec"), self.namespace)


READERS = {page: Reader(page) for page in PAGES}


@pytest.mark.parametrize(
    ("page", "number"), [(page, i) for page in PAGES for i in range(len(BLOCKS[page]))]
)
def test_code_in_the_documentation_runs(page, number, tmp_path_factory, monkeypatch):
    backend = BLOCKS[page][number][0]
    if backend not in ("", keras.backend.backend()):
        pytest.skip(f"this block is for {backend}")
    so_far = "".join(code for _, code in BLOCKS[page][: number + 1])
    if "litert" in so_far:
        pytest.importorskip("ai_edge_litert")
    if (
        "quantize(" in so_far
        and "filters" not in inspect.signature(keras.Model.quantize).parameters
    ):
        pytest.skip("this Keras quantizes whole models only")
    folder = tmp_path_factory.getbasetemp() / Path(page).stem  # one for all blocks of a page
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    READERS[page].read(number)


@pytest.mark.backend_free
@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.backend_free
def test_the_tests_that_the_documentation_names_exist():
    text = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", text)
    assert named
    for file, test in named:
        if (ROOT / file).exists():
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
