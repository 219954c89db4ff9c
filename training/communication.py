"""What the devices of a mesh say to each other in a step: the collective operations of a compiled program."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# One line of the program: its result, an array or a tuple of arrays, and the operation, which may be split in two.
_LINE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d+)\w*\[([\d,]*)\]")


class Array(NamedTuple):
    """A result of an operation, on each device."""

    shape: tuple[int, ...]
    bytes: int


class Collective(NamedTuple):
    """One collective operation and its results."""

    kind: str
    results: list[Array]

    @property
    def bytes(self) -> int:
        """Of all its results, on each device."""
        return sum(result.bytes for result in self.results)


def collectives(program: str) -> list[Collective]:
    """Those of a compiled program's text, in its order; of what a loop repeats, each is there once."""
    found = []
    for line in program.splitlines():
        match = _LINE.search(line)
        if not match:
            continue
        results = []
        for _, bits, sides in _ARRAY.findall(match[1]):
            shape = tuple(int(side) for side in sides.split(",") if side)
            results.append(Array(shape, math.prod(shape) * max(1, int(bits) // 8)))
        if match[3] and match[2] in ("all-gather", "collective-permute"):  # operands, then results
            results = results[len(results) // 2 :]
        found.append(Collective(match[2], results))
    return found
