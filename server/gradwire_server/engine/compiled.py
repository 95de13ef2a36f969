"""What of a plan the compiled kernels can run: all of it, some regions, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwire_server.engine.array import Stretch
from gradwire_server.engine.joined import Joined, make_joined
from gradwire_server.engine.regions import find_regions
from gradwire_server.engine.rows import find_rows
from gradwire_server.engine.tape import Program, make_program
from gradwire_server.plan import Plan


@dataclass(frozen=True)
class Compiled:
    """The choice of an engine for a plan."""

    program: Program | None = None  # the whole plan as a tape
    joined: Joined | None = None  # or as two, where modules have gradients of their own
    regions: Mapping[int, Stretch] = field(default_factory=dict)  # by first node


#: The array engine alone.
NOTHING = Compiled()


def compile_plan(plan: Plan, max_bytes: int) -> Compiled:
    """The best engine for it.

    Tapes and regions hold everything to the end, so they are for what takes at most max_bytes; the
    array engine drops what it no longer needs.
    """
    program = make_program(plan, max_bytes)
    if program is not None:
        return Compiled(program)
    joined = make_joined(plan, max_bytes)
    if joined is not None:
        return Compiled(joined=joined)
    if plan.most_bytes > max_bytes:
        return NOTHING
    return Compiled(regions={**find_regions(plan), **find_rows(plan)})
