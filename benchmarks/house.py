"""The import graph of the package: its rooms, on which floor each stands, and the arrows.

    python benchmarks/house.py                               src/keras_pruner of this clone
    python benchmarks/house.py ../older/src/keras_pruner     another folder
    python benchmarks/house.py --arrows                      every arrow as well
    python benchmarks/house.py --trace fit                   what `fit` with `GradualPruning` calls
    python benchmarks/house.py --trace prune                 what a calibrated `kp.prune` calls

A room is a folder, or a module that lies at the top. An arrow leads from a room to one that it
imports, anywhere in its code. A room that imports no other stands on floor 1; every other one
stands a floor above the highest that it imports. Arrows of a circle that lead to a room which is
still being visited run upward.

`--trace` runs a call on a network of two Dense layers, with the installed package, and counts the
modules and functions of the package that it enters, and the doors: different pairs of functions
in two modules of which one calls the other, directly or through Keras.
"""

import argparse
import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "keras_pruner"


def imported(tree, package):
    """The rooms that a module names in its imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            root, _, rest = node.module.partition(".")
            if root == package:
                yield from [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                root, _, rest = alias.name.partition(".")
                if root == package and rest:
                    yield rest.split(".")[0]


def rooms_of(source):
    """For each room, the rooms that it imports."""
    arrows = {}
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        names = imported(ast.parse(path.read_text(encoding="utf-8")), source.name)
        arrows.setdefault(room, set()).update(names)
    return {room: (names & arrows.keys()) - {room} for room, names in arrows.items()}


class House:
    """The floors of all rooms, and the arrows that run upward.

    Attributes:
        arrows: for each room, the rooms that it imports.
        floors: for each room, its floor; 1 is the lowest.
        upward: pairs of rooms, one for each arrow that closes a circle.
    """

    def __init__(self, arrows):
        self.arrows, self.floors, self.upward = arrows, {}, []
        for room in sorted(arrows):
            self._visit(room, ())

    def _visit(self, room, visited):
        if room in self.floors:
            return
        for below in sorted(self.arrows[room]):
            if below in (*visited, room):
                self.upward.append((room, below))
            else:
                self._visit(below, (*visited, room))
        known = [self.floors[below] for below in self.arrows[room] if below in self.floors]
        self.floors[room] = 1 + max(known, default=0)


class Trace:
    """The functions of a package that a call enters, and the doors between its modules."""

    def __init__(self, source):
        self.root, self.functions, self.doors = f"{source}/", set(), set()

    def _place(self, frame):
        """Module and function; None outside the package."""
        name = frame.f_code.co_filename
        if not name.startswith(self.root) or name == f"{self.root}__init__.py":
            return None
        return name.removeprefix(self.root), frame.f_code.co_qualname

    def _look(self, frame, event, _):
        here = self._place(frame)
        if event != "call" or here is None or here[1].endswith(("comp>", "<genexpr>", "<module>")):
            return
        self.functions.add(here)
        caller = frame.f_back
        while caller is not None and self._place(caller) is None:
            caller = caller.f_back
        if caller is not None and self._place(caller)[0] != here[0]:
            self.doors.add((self._place(caller), here))

    def of(self, call):
        sys.setprofile(self._look)
        try:
            call()
        finally:
            sys.setprofile(None)
        return self


def traced(what):
    """Trace a training with gradual pruning, or a calibrated pruning at once."""
    import keras
    import numpy as np

    import keras_pruner as kp

    x = np.random.default_rng(0).normal(size=(192, 20)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 192)
    layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((20,)), *layers])
    model.compile("adam", loss="sparse_categorical_crossentropy")
    calls = {
        "fit": lambda: model.fit(x, y, epochs=2, verbose=0, callbacks=[kp.GradualPruning(0.8)]),
        "prune": lambda: kp.prune(model, 0.8, calibration=x),
    }
    return Trace(Path(kp.__file__).parent).of(calls[what])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("--arrows", action="store_true", help="print every arrow")
    parser.add_argument("--trace", choices=["fit", "prune"], help="run a call and count instead")
    options = parser.parse_args()
    if options.trace:
        found = traced(options.trace)
        modules = {module for module, _ in found.functions}
        print(
            f"{options.trace}: {len(modules)} modules, {len(found.functions)} functions,", end=" "
        )
        print(f"{len(found.doors)} doors")
        return
    house = House(rooms_of(options.source.resolve()))
    for floor in range(max(house.floors.values()), 0, -1):
        print(
            f"{floor:3}  {'  '.join(sorted(r for r in house.floors if house.floors[r] == floor))}"
        )
    if options.arrows:
        print()
        for room, names in sorted(house.arrows.items()):
            print(f"{room} -> {', '.join(sorted(names)) or 'nothing'}")
    arrows = sum(map(len, house.arrows.values()))
    print(f"\n{len(house.floors)} rooms on {max(house.floors.values())} floors, {arrows} arrows,")
    print(f"{len(house.upward)} of them upward: {house.upward or 'no circle'}")


if __name__ == "__main__":
    main()
