"""What the package promises as a whole: its names, its layers, what importing it costs."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_pruner as kp

pytestmark = pytest.mark.backend_free
SOURCE = Path(kp.__file__).parent


def imports_of(path):
    """The parts of this package that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_pruner"):
            parts = node.module.split(".")
            if len(parts) > 1:
                yield parts[1]
            else:
                yield from (a.name for a in node.names if not a.name.startswith("__"))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("keras_pruner."):
                    yield alias.name.split(".")[1]


def modules():
    return [p for p in sorted(SOURCE.rglob("*.py")) if p != SOURCE / "__init__.py"]


def room_of(path):
    """The folder of a module, or the module itself where it lies at the top."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_imports_between_folders_go_one_way():
    imported = {}
    for path in modules():
        room = room_of(path)
        imported.setdefault(room, set()).update(set(imports_of(path)) - {room})
    tuple(graphlib.TopologicalSorter(imported).static_order())  # raises CycleError for a circle


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_backend_is_imported_by_name_in_one_place(path):
    if path.parent.name == "backends" or path.stem == "torch_optimizer":
        return
    tree = ast.parse(path.read_text())
    named = {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    named |= {
        (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
    }
    allowed = {"tensorflow"} if path.parent.name == "litert" else set()  # its converter
    assert not (named & {"tensorflow", "jax", "torch"}) - allowed


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_modules_are_named_after_the_domain(path):
    assert path.stem not in {"utils", "base", "common", "helpers", "impl", "misc", "values"}


def test_the_public_names_are_listed():
    assert kp.__all__ == sorted(kp.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for name in kp.__all__:
        assert getattr(kp, name).__doc__, f"{name} has no docstring"


def loaded_by(statement):
    """The top-level modules that a statement loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    return set(out.stdout.split())


def test_importing_loads_no_second_backend_and_nothing_heavy():
    pytest.importorskip("jax")
    added = loaded_by("import keras_pruner") - loaded_by("import keras")
    assert not added & {"tensorflow", "torch", "matplotlib", "ai_edge_litert", "tf_keras", "pandas"}


def test_docstring_examples_run():
    import doctest
    import importlib

    failed = 0
    for name in ("schedules", "selection.top_k", "patterns", "training.pruner"):
        failed += doctest.testmod(importlib.import_module(f"keras_pruner.{name}")).failed
    assert not failed
