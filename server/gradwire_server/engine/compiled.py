"""What of a plan the compiled kernels can run: all of it, some regions, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwire_server.engine.regions import Region, find_regions
from gradwire_server.engine.tape import Program, make_program
from gradwire_server.plan import Plan


@dataclass(frozen=True)
class Compiled:
    """The choice of an engine for a plan."""

    program: Program | None = None  # the whole plan as a tape
    regions: Mapping[int, Region] = field(default_factory=dict)  # by first node
    settled: bool = True  # False: asked again, there may be more, since kernels are still to come


#: The array engine alone.
NOTHING = Compiled()


def compile_plan(plan: Plan, max_bytes: int) -> Compiled:
    """The best engine that there is now; a tape's buffers take at most max_bytes."""
    settled, program = make_program(plan, max_bytes)
    if program is not None or not settled:
        return Compiled(program, settled=settled)
    settled, regions = find_regions(plan)
    return Compiled(regions=regions, settled=settled)
