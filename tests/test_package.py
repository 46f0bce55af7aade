"""What the package promises as a whole: names, examples, import order, cost of importing it."""

import ast
import doctest
import graphlib
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import keras_pruner as kp

backend_free = pytest.mark.backend_free
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


@backend_free
def test_imports_between_folders_go_one_way():
    imported = {}
    for path in modules():
        room = room_of(path)
        imported.setdefault(room, set()).update(set(imports_of(path)) - {room})
    tuple(graphlib.TopologicalSorter(imported).static_order())  # raises CycleError for a circle


def module_name(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


@backend_free
def test_imports_between_modules_hold_no_circle():
    names = {module_name(path): path for path in modules()}
    imported = {}
    for name, path in names.items():
        found = imported.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_pruner"):
                base = node.module.removeprefix("keras_pruner").lstrip(".")
                each = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                found.update(one if one in names else base for one in each)
    for name, found in imported.items():
        found.discard(name)
    tuple(graphlib.TopologicalSorter(imported).static_order())


@backend_free
def test_the_folders_of_the_tests_are_those_of_the_package():
    tests = Path(__file__).parent
    beside = {"distributed", "examples"}  # several rooms at once; scripts outside of the package
    elsewhere = {"channels": "shrink"}  # tested by what is cut
    for folder in (each for each in SOURCE.iterdir() if (each / "__init__.py").exists()):
        name = elsewhere.get(folder.name, folder.name)
        assert list((tests / name).glob("test_*.py")), folder.name
    for folder in {path.parent.name for path in tests.glob("*/test_*.py")} - beside:
        assert (SOURCE / folder).is_dir(), folder


@backend_free
def test_no_module_imports_the_public_face():
    allowed = {"cli/demo.py"}  # a user's script, which comes with the package
    for path in modules():
        if path.relative_to(SOURCE).as_posix() not in allowed:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            whole = [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
            assert "keras_pruner" not in {a.name for n in whole for a in n.names}, path


@backend_free
@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_backend_is_imported_by_name_in_one_place(path):
    if path.parent.name == "backends" or path.stem in ("torch_optimizer", "torch_kernels"):
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


@backend_free
@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_modules_are_named_after_the_domain(path):
    assert path.stem not in {"utils", "base", "common", "helpers", "impl", "misc", "values"}


TOP = [
    "GradualPruning",
    "KeepZeros",
    "WhenSparse",
    "Pruner",
    "plan",
    "prune",
    "find_sparsity",
    "sensitivity",
    "shrink",
    "summarize",
    "compare",
    "advise",
    "save_compressed",
    "export_litert",
    "Unstructured",
    "Block",
    "NM",
    "Channel",
    "ConstantSparsity",
    "PolynomialDecay",
    "FileError",
]
NAMESPACES = [
    "allocations",
    "callbacks",
    "channels",
    "criteria",
    "litert",
    "oneshot",
    "patterns",
    "quantization",
    "reports",
    "schedules",
    "storage",
    "testing",
    "tfmot",
    "torch_cpu",
]


def public_names(module):
    """The names that a namespace offers: its `__all__`, or else what is defined in it."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, found in vars(module).items()
        if not name.startswith("_") and getattr(found, "__module__", None) == module.__name__
    ]


def public():
    """Every public function and class, by its name as a user writes it."""
    found = {f"kp.{name}": getattr(kp, name) for name in TOP}
    for space in NAMESPACES:
        module = getattr(kp, space)
        for name in public_names(module):
            each = getattr(module, name)
            # A name at the top is the same in its namespace; TFMOT documents its own names.
            if callable(each) and each not in found.values() and space != "tfmot":
                found[f"kp.{space}.{name}"] = each
    return found


@backend_free
def test_the_public_names_are_those_of_the_design():
    assert sorted(kp.__all__) == sorted(TOP + NAMESPACES)
    assert sorted(dir(kp)) == sorted([*kp.__all__, "__version__"])
    for space in NAMESPACES:
        assert isinstance(getattr(kp, space), types.ModuleType)


@backend_free
@pytest.mark.parametrize("name", [*public(), *(f"kp.{space}" for space in NAMESPACES)])
def test_a_public_name_is_documented(name):
    found = public().get(name) or getattr(kp, name.removeprefix("kp."))
    first = (inspect.getdoc(found) or "").partition("\n")[0]
    assert len(first.split()) > 2, f"{name}: the docstring says too little: {first!r}"


@backend_free
@pytest.mark.parametrize("name", public())
def test_a_public_name_has_an_example(name):
    assert ">>> " in (inspect.getdoc(public()[name]) or "")


def modules_with_examples():
    """The modules whose docstrings have examples; `keras_pruner` itself is one of them."""
    names = ["keras_pruner", *(m.name for m in pkgutil.walk_packages(kp.__path__, "keras_pruner."))]
    paths = {name: importlib.util.find_spec(name).origin for name in names}
    return [n for n in names if ">>> " in Path(paths[n]).read_text(encoding="utf-8")]


# What the examples of a module need beside a backend.
EXTRAS = {
    "keras_pruner.litert": "ai_edge_litert",
    "keras_pruner.litert.micro": "tflite_micro",
    "keras_pruner.litert.vela": "ethosu",
    "keras_pruner.testing": "ml_dtypes",
}


LONG = ("keras_pruner.litert.vela", "keras_pruner.litert.latency")  # compile, take times


def marked(name):
    """A module, with the mark of what takes long."""
    return pytest.param(name, marks=pytest.mark.slow if name in LONG else ())


@pytest.mark.one_backend
@pytest.mark.parametrize("name", [marked(name) for name in modules_with_examples()])
def test_docstring_examples_run(name, tmp_path, monkeypatch, capsys):
    for start, extra in EXTRAS.items():
        if name.startswith(start):
            pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert tried
    assert not failed, capsys.readouterr().out


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


@backend_free
def test_importing_loads_no_second_backend_and_nothing_heavy():
    pytest.importorskip("jax")
    added = loaded_by("import keras_pruner") - loaded_by("import keras")
    assert not added & {"tensorflow", "torch", "matplotlib", "ai_edge_litert", "tf_keras", "pandas"}
