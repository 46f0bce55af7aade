"""Makes the tables of docs/messages.md: every error and warning of the package, out of its source.

python docs/messages.py            write them anew
python docs/messages.py --check    exit with 1 if the page is not up to date
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "keras_pruner"
PAGE = ROOT / "docs" / "messages.md"
MARK = "<!-- Everything below is made by `python docs/messages.py`. -->\n"
ROOMS = {
    "": "Plan, patterns, schedules and other values",
    "training": "Training",
    "callbacks": "Callbacks",
    "backends": "Backends",
    "oneshot": "Pruning at once",
    "channels": "Groups of channels",
    "shrink": "Shrinking",
    "selection": "Selection",
    "storage": "Files",
    "reporting": "Reports",
    "litert": "LiteRT",
    "cli": "Command line",
    "tfmot": "TFMOT's names",
}


def placeholder(node):
    """A name for what is filled in: a variable's own, else an ellipsis."""
    if isinstance(node, ast.Attribute):
        return f"{{{node.attr}}}"
    return f"{{{node.id}}}" if isinstance(node, ast.Name) else "{…}"


def text_of(node, names):
    """The text of a message, with names in braces for what is filled in; None if not known."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else placeholder(part.value)
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (node.left, node.right)
        return "".join(text_of(side, names) or placeholder(side) for side in sides)
    if isinstance(node, ast.IfExp):
        either = [text_of(side, names) for side in (node.body, node.orelse)]
        return " *or* ".join(text for text in either if text) or None
    return names.get(node.id) if isinstance(node, ast.Name) else None


def messages_of(path):
    """(kind, function, text) of each error that is raised and each warning in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = assigned(tree.body)
    for where, function in functions(tree):
        names = constants | assigned(ast.walk(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield ast.unparse(node.exc.func), where, node.exc.args, names
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warnings.warn"):
                yield "warning", where, node.args, names
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                if called.endswith("Error"):
                    yield called, where, node.value.args, names


def assigned(nodes):
    """Texts that are given a name."""
    return {
        node.targets[0].id: text
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if (text := text_of(node.value, {}))
    }


def functions(tree, prefix=""):
    """Each function with its name, those of classes too."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


def problem_and_fix(text):
    """A message in two: up to the value received, or its first sentence; and the rest."""
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
    sentences = re.split(r"(?<=[.:)}])(?<!Received:) (?=[A-Z`])", text)
    received = [i for i, sentence in enumerate(sentences) if "Received" in sentence]
    last = (received[-1] if received else 0) + 1
    return " ".join(sentences[:last]), " ".join(sentences[last:])


def returned_by(tree):
    """The texts that each function of a module returns, by the function's name."""
    found = {}
    for name, function in functions(tree):
        names = assigned(ast.walk(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and (text := text_of(node.value, names)):
                found.setdefault(name, []).append(text)
    return found


def table(path):
    """A row for each message of a module."""
    rows = []
    returned = returned_by(ast.parse(path.read_text(encoding="utf-8")))
    for kind, where, arguments, names in messages_of(path):
        first = arguments[0] if arguments else None
        made_by = ast.unparse(first.func) if isinstance(first, ast.Call) else ""
        for text in returned.get(made_by) or [text_of(first, names)]:
            if text:
                problem, fix = problem_and_fix(text)
                rows.append(f"| {problem} | {fix} | {kind} in `{path.stem}.{where}` |")
    return list(dict.fromkeys(rows))


def tables():
    """The tables of all rooms, in the order of `ROOMS`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).parts
        found.setdefault(parts[0] if len(parts) > 1 else "", []).extend(table(path))
    text = ""
    for room in sorted(found, key=lambda room: [*ROOMS, room].index(room)):
        if found[room]:
            text += f"\n### {ROOMS.get(room, room)}\n\n| problem | what to do | raised as |\n"
            text += "|---|---|---|\n" + "\n".join(found[room]) + "\n"
    return text


def main():
    """Write the tables, or check them."""
    written, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    page = written + MARK + tables()
    if "--check" in sys.argv:
        sys.exit(page != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
