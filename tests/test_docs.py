"""Every code block of the documentation runs."""

import importlib.util
import inspect
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import keras
import pytest

import keras_pruner as kp

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- backend: (\w+) -->\n)?(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)^```",
    re.DOTALL | re.MULTILINE,
)
BLOCKS = {page: BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}


def missing(code):
    """Why a block cannot run here: an extra that is not installed, an older Keras; or None."""
    if "litert" in code and not importlib.util.find_spec("ai_edge_litert"):
        return "it needs the extra litert"
    if "micro" in code and not importlib.util.find_spec("tflite_micro"):
        return "it needs the extra tflm"
    if "ethos_u" in code and not importlib.util.find_spec("ethosu"):
        return "it needs the extra ethos-u"
    if "keras_tuner" in code and not importlib.util.find_spec("keras_tuner"):
        return "it needs KerasTuner"
    if "quantize(" in code and "filters" not in inspect.signature(keras.Model.quantize).parameters:
        return "this Keras quantizes whole models only"
    return None


SLOW = ("docs/guides/microcontrollers.md",)  # trains a network


def marked(page):
    """A page with the marks of its test: what has no block for a backend runs on one."""
    if page in SLOW:
        return pytest.param(page, marks=pytest.mark.slow)
    same = not any(backend for backend, *_ in BLOCKS[page])
    return pytest.param(page, marks=pytest.mark.one_backend if same else ())


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if BLOCKS[page]])
def test_code_in_the_documentation_runs(page, tmp_path, monkeypatch, schedules_of_short_trainings):
    """In the order of the page, in one namespace.

    Blocks for other backends, and for packages that are not there, are left out.
    """
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "docs"}
    for number, (backend, package, code) in enumerate(BLOCKS[page], 1):
        if package and not importlib.util.find_spec(package):
            continue
        if reason := missing(code):
            pytest.skip(f"block {number} and what follows: {reason}")
        if backend in ("", keras.backend.backend()):
            with warnings.catch_warnings():
                if package:  # it may warn of what it likes
                    warnings.simplefilter("ignore")
                exec(compile(code, f"{page}, block {number}", "exec"), namespace)


def anchors(path):
    """The anchors of a page's headings."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in found]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.backend_free
@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if "://" not in link:
            target = (ROOT / page).parent / link if link else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


@pytest.mark.backend_free
def test_the_site_has_every_page_and_the_api_every_name():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n")[2]
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in navigation
    top = (ROOT / "docs/api/README.md").read_text(encoding="utf-8")
    for name in kp.__all__:
        if isinstance(getattr(kp, name), types.ModuleType):
            page = (ROOT / f"docs/api/{name}.md").read_text(encoding="utf-8")
            assert f"::: keras_pruner.{name}\n" in page
        else:
            assert re.search(rf"^::: keras_pruner\.(\w+\.)*{name}$", top, re.MULTILINE), name


@pytest.mark.backend_free
def test_the_tests_that_the_documentation_names_exist():
    text = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", text)
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def exists(name):
    """Whether `kp.name` is there; attributes of instances are not looked up."""
    found = kp
    for part in name.split("."):
        if isinstance(found, type) and not hasattr(found, part):
            return True
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.backend_free
def test_the_names_that_texts_and_scripts_mention_exist():
    texts = [ROOT / page for page in [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]]
    texts += [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*")]
    for path in texts:
        if path.suffix in (".md", ".py"):
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"(?<![\w./-])kp\.([A-Za-z_][\w.]*[\w])", text):
                assert exists(name), f"{path}: kp.{name}"


@pytest.mark.backend_free
def test_the_page_of_messages_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs/messages.py", "--check"], check=False)
    assert done.returncode == 0, "run `python docs/messages.py`"


@pytest.mark.backend_free
def test_the_messages_that_are_explained_exist():
    page = (ROOT / "docs/messages.md").read_text(encoding="utf-8")
    explained, _, tables = page.partition("## All messages")
    of_keras = {"No module named 'tensorflow'"}
    for heading in set(re.findall(r"^### (.*)$", explained, re.MULTILINE)) - of_keras:
        for message in heading.replace(", `", "…`").split("…"):
            assert message.strip(" :") in tables, heading


def is_hidden(path):
    """Whether a module has the name of a function or class, so that the site would show it."""
    folder, _, name = path.rpartition(".")
    folder = importlib.import_module(folder)
    is_module = inspect.ismodule(getattr(folder, name))
    return not is_module and hasattr(folder, "__path__") and importlib.util.find_spec(path)


@pytest.mark.backend_free
@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.stem)
def test_the_api_shows_functions_whose_name_a_module_has(page):
    entries = re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    for entry in entries:
        assert not is_hidden(entry), f"write the module of {entry}, and its name"
        folder, _, name = entry.rpartition(".")
        shown = getattr(importlib.import_module(folder), name)
        members = getattr(shown, "__all__", []) if inspect.ismodule(shown) else []
        for member in (f"{entry}.{each}" for each in members):
            assert not is_hidden(member) or any(e.startswith(f"{member}.") for e in entries), member
