"""Make the notebooks in examples/notebooks from the guides, whose code the tests run.

    python docs/notebooks.py [--check]

Needs `pip install jupytext`. A notebook is its guide with a first cell that installs the package
and a button that opens it where notebooks run; it holds no outputs. --check only says which
notebooks are not up to date.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "examples" / "notebooks"
GUIDES = {
    "start": "pruning-with-keras",
    "one-shot": "pruning-at-once",
    "shrink": "shrinking",
    "edge": "microcontrollers",
    "from-tfmot": "from-tfmot",
}
"""Notebook -> guide."""
NEEDS = {"edge": ["tensorflow", "litert", "tflm", "ethos-u"]}
"""Notebook -> backend and extras, where a guide needs others than these."""
USUAL = ["jax"]

BUTTON = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"
SETUP = """%pip install --quiet "keras-pruner[{extras}]"

import os

os.environ["KERAS_BACKEND"] = "{backend}"  # before Keras is imported{others}"""


def repository() -> str:
    """The address of the repository, which stands in mkdocs.yml."""
    found = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def notebook(name: str, guide: str) -> str:
    """The text of a notebook."""
    address = repository()
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    path = (
        f"{address.removeprefix('https://github.com/')}/blob/main/examples/notebooks/{name}.ipynb"
    )
    button = BUTTON.format(url=f"https://colab.research.google.com/github/{path}")
    rest = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({address}/blob/main/docs/\1)", rest)
    rest = rest.replace("<!-- backend: tensorflow -->\n", "")  # the setup chooses it
    backend, *more = NEEDS.get(name, USUAL)
    others = "" if name in NEEDS else '; or "tensorflow", "torch"'
    setup = SETUP.format(extras=",".join([backend, *more]), backend=backend, others=others)
    made = jupytext.reads(f"{title}\n\n{button}\n\n```python\n{setup}\n```\n{rest}", fmt="md")
    made.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    return nbformat.writes(made) + "\n"


def main() -> int:
    """Write what is not up to date, or name it; the exit code is 1 if --check finds any."""
    stale = []
    for name, guide in GUIDES.items():
        path, text = NOTEBOOKS / f"{name}.ipynb", notebook(name, guide)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print(f"not up to date: {', '.join(stale)}" if stale else "all up to date")
    return bool(stale) and "--check" in sys.argv


if __name__ == "__main__":
    sys.exit(main())
