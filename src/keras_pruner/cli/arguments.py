"""What the commands have in common: their form, and the types of their arguments."""

import argparse
from collections.abc import Callable
from typing import Any

from keras_pruner.patterns import NM, Block, Channel, Pattern, Unstructured
from keras_pruner.validation import as_json, check_sparsity

_AXES = {"outputs": -1, "inputs": -2}


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    purpose: str,
    *examples: str,
) -> Any:
    """Add a command with its examples and the option --json."""
    command = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, misused=command.error)
    command.add_argument("--json", action="store_true", help="print JSON, for machines")
    return command


def add_trust(command: Any) -> None:
    """Add the option that lets a model file run code."""
    command.add_argument(
        "--trust", action="store_true", help="run Python code that the model file may hold"
    )


def add_pattern(command: Any) -> Any:
    """Add the options that choose a pattern; at most one of them can be given."""
    pattern = command.add_mutually_exclusive_group()
    pattern.add_argument(
        "--block",
        nargs=2,
        type=positive,
        metavar=("H", "W"),
        help="zeros in blocks of H inputs by W outputs",
    )
    pattern.add_argument(
        "--nm",
        type=_nm,
        metavar="N:M",
        help="keep N weights of every M consecutive inputs, like 2:4",
    )
    pattern.add_argument("--channel", choices=_AXES, help="zeros in whole channels")
    return pattern


def pattern_of(arguments: argparse.Namespace) -> Pattern:
    """The pattern that was chosen; unstructured if none was."""
    if arguments.block:
        return Block(tuple(arguments.block))
    if arguments.channel:
        return Channel(_AXES[arguments.channel])
    return arguments.nm or Unstructured()


def show(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    """Print what a command found, as JSON if that was asked for."""
    print(as_json(data) if arguments.json else text)


def sparsity(text: str) -> float:
    """A fraction in [0, 1)."""
    try:
        check_sparsity("--sparsity", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return float(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _nm(text: str) -> Pattern:
    kept, colon, of = text.partition(":")
    try:
        if not colon:
            raise ValueError("must be two numbers like 2:4")
        return NM(int(kept), int(of))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} (received {text!r})") from None
