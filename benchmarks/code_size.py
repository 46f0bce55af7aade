"""Lines of code in src: without blank lines, comments and docstrings.

    python benchmarks/code_size.py                  src of this clone
    python benchmarks/code_size.py ../older/src     another folder

Prints the lines of each folder and module at the top, and the length of functions: the median,
and the length that nine in ten stay below. For a look, not for a limit.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of(node):
    return set(range(node.lineno, node.end_lineno + 1))


def docstrings(tree):
    """The line numbers of strings that stand alone."""
    found = [
        lines_of(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return set().union(*found)


def code_lines(text, tree):
    """The line numbers that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [
        range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in NO_CODE
    ]
    return set().union(*found) - docstrings(tree)


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    rooms, functions = Counter(), []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        code = code_lines(text, tree)
        parts = path.relative_to(root).parts
        rooms[parts[1] if len(parts) > 1 else parts[0]] += len(code)
        functions += [
            len(lines_of(node) & code)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    for room, lines in rooms.most_common():
        print(f"{lines:7,}  {room}")
    print(f"{sum(rooms.values()):7,}  together")
    longest = statistics.quantiles(functions, n=10)[-1]
    print(
        f"\n{len(functions):,} functions: median {statistics.median(functions):.0f} lines of code,"
    )
    print(f"nine in ten have at most {longest:.0f}, the longest {max(functions)}")


if __name__ == "__main__":
    main()
