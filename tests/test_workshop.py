"""What a clone holds beside code: citation, workflows and the package's own description."""

import re
import tomllib
from pathlib import Path

import pytest

import keras_pruner as kp

pytestmark = pytest.mark.backend_free
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SITE = PROJECT["project"]["urls"]["Repository"]


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {kp.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == kp.__version__


def test_the_links_of_the_package_page_lead_to_files_of_this_repository():
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in hook["substitutions"]:
        page = re.sub(change["pattern"], change["replacement"], page)
    found = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", page)
    assert found
    for picture, link in found:
        kind = "raw" if picture else "blob"  # a picture shows only as the file itself
        path = link.removeprefix(f"{SITE}/{kind}/main/").partition("#")[0]
        assert path != link.partition("#")[0]
        assert (ROOT / path).exists(), link


def test_workflows_run_targets_of_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    used = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used += re.findall(r"run: make ([\w-]+)", path.read_text(encoding="utf-8"))
    assert used
    assert set(used) <= set(targets)


def test_every_supported_python_is_tested_by_the_workflow():
    named = [
        found[1]
        for each in PROJECT["project"]["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each))
    ]
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert named
    for version in named:
        assert f'"{version}"' in workflow
