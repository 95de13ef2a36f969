"""What the circuits of one graph have in common: its gates table and its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gradwire import paths
from gradwire.builder.circuit import Circuit, Typing
from gradwire.builder.rows import GatesTable
from gradwire.errors import InvalidRequestError, LimitError

if TYPE_CHECKING:
    from gradwire.builder.graph import Graph
    from gradwire.builder.handles import Handle

_MOST_TYPINGS = 64  # of one module, in one graph


class Node(NamedTuple):
    """One use of an operator or a module; values by id, 0 for an omitted input."""

    operator: str  # or the module's name
    attributes: dict[str, Any]
    inputs: list[int]
    outputs: range
    module: Module | None = None


@dataclass(frozen=True)
class Module:
    """A named sub-circuit of a graph, and its own gradient if it has one.

    Both are graphs that can be read and not changed. The gradient's inputs are the circuit's, then
    its outputs, then the gradients of these; its outputs, one for each input of the circuit, have
    no value where the module is not differentiable.
    """

    name: str
    circuit: Graph
    gradient: Graph | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(leaf.name for leaf in self.circuit.leaves if leaf.kind == "input")

    @property
    def circuits(self) -> tuple[Graph, ...]:
        """The circuit, and the gradient."""
        return (self.circuit,) if self.gradient is None else (self.circuit, self.gradient)


def nodes_of(circuit: Circuit, modules: Sequence[Module]) -> Iterator[Node]:
    """Every node of the circuit, in evaluation order; not those inside of modules."""
    places = circuit.places()
    inputs = places.ids(circuit.node_inputs).tolist()
    start = 0
    for row, key in zip(circuit.node_rows, circuit.node_firsts, strict=True):
        operator, attributes, count, outputs, module = circuit.table.rows[row]
        first = key + places.shift
        yield Node(
            operator,
            attributes,
            inputs[start : start + count],
            range(first, first + outputs),
            None if module is None else modules[module],
        )
        start += count


@dataclass
class Shared:
    """What the circuits of one graph have in common; only the innermost open one may be changed."""

    open: list[Graph]
    table: GatesTable = field(default_factory=GatesTable)
    modules: list[Module] = field(default_factory=list)
    uses: list[paths.Uses] = field(default_factory=list)  # inside of each module
    made: dict[Any, Any] = field(default_factory=dict)  # modules by what they were traced with
    dtypes: dict[Typing, tuple[str, ...]] = field(default_factory=dict)
    typings: Counter[int] = field(default_factory=Counter)

    def circuit(self, module: str) -> Graph:
        """A new circuit of a module."""
        return self.open[0]._of(self, module)

    @contextmanager
    def opened(self, circuit: Graph) -> Iterator[None]:
        """Lets a circuit be changed, and none around it."""
        self.open.append(circuit)
        try:
            yield
        finally:
            self.open.pop()

    def add_module(self, module: Module) -> None:
        """Adds a module, after those that it uses."""
        self.modules.append(module)
        self.uses.append(module.circuit._circuit.uses(self.uses))

    def settle(self, typed: Generator[Typing, tuple[str, ...], tuple[str, ...]]) -> None:
        """Finds data types inside of modules, however deep, once for each module and its inputs'.

        LIMIT_EXCEEDED where a module is used with too many different data types.
        """
        known = self.dtypes
        waiting: list[tuple[Typing | None, Any]] = [(None, typed)]
        answer: tuple[str, ...] | None = None
        while waiting:
            asked, circuit = waiting[-1]
            try:
                wanted = next(circuit) if answer is None else circuit.send(answer)
            except StopIteration as end:
                waiting.pop()
                answer = end.value
                if asked is not None:
                    known[asked] = end.value
                continue
            answer = known.get(wanted)
            if answer is None:
                module, given = wanted
                self.typings[module] += 1
                if self.typings[module] > _MOST_TYPINGS:
                    raise LimitError(
                        "LIMIT_EXCEEDED",
                        f"module {self.modules[module].name!r}: is used with over {_MOST_TYPINGS} "
                        "combinations of data types",
                    )
                waiting.append((wanted, self.modules[module].circuit._circuit.typed_inside(given)))

    def forget(self, rows: int, modules: int) -> None:
        """Takes back what was added beyond so many."""
        self.table.forget(rows)
        del self.modules[modules:], self.uses[modules:]

    def require_open(self, circuit: Graph) -> None:
        """A circuit can be changed unless one inside of it is being made, or it is made itself."""
        inner = self.open[-1]
        if inner is circuit:
            return
        if circuit in self.open:
            fault = f"the function of module {inner._module!r} adds to what is outside of it"
            raise InvalidRequestError("GRAPH_INVALID", f"{fault}; use only handles it is given")
        raise InvalidRequestError(
            "GRAPH_INVALID", f"module {circuit._module!r} is made and cannot be changed any more"
        )

    def foreign(self, handle: Handle) -> InvalidRequestError:
        """Why a handle cannot be used in a circuit, to which it does not belong."""
        if handle.graph._shared is not self:
            why = "belongs to another graph; build in one graph"
        elif handle.graph in self.open:
            inner = self.open[-1]._module
            why = f"is outside of module {inner!r}; give it to the module's function as an argument"
        else:
            why = f"is inside of module {handle.graph._module!r}; return it from its function"
        return InvalidRequestError("GRAPH_INVALID", f"{handle!r} {why}")
