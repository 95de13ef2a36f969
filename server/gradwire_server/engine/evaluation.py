"""One evaluation: what a request asks for, compared with the graph, run, and gathered.

bind    leaves to arrays            -> Point
plan    shapes at that point        -> Plan
seed    gradients on the outputs    -> {id: array}
choose  what is to be returned      -> Choice
prepare all of these                 -> Job, which engine/runs.py carries out
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire_server import arrays
from gradwire_server.engine.batches import BatchRecipe, find_batch_recipe
from gradwire_server.engine.compiled import NOTHING, Compiled, compile_plan
from gradwire_server.engine.packing import Packing
from gradwire_server.engine.small import Recipe, find_recipe
from gradwire_server.errors import Invalid, nearest, within
from gradwire_server.gates.base import Array
from gradwire_server.graph import (
    Graph,
    Ids,
    Leaf,
    Output,
    axes_text,
    fits,
    leaves_to_differentiate,
    require_leaves,
)
from gradwire_server.limits import Limits
from gradwire_server.memory import Kept, Lifetimes, require_operations, require_peak
from gradwire_server.plan import (
    Plan,
    bind_symbols,
    known_spec,
    make_plan,
    reached,
    static_leaves,
)
from gradwire_server.specs import HALVES, ITEM_SIZES, Shape, TensorSpec

#: Bytes read and written after which values that are complete are handed out.
BLOCK_BYTES = 8 << 20
_LEAST_BYTES = 64  # of a value: a smaller one takes as long

#: Of an answer, beside elements: a named tensor's, a chosen value's, figures in place of elements.
_HEAD_BYTES, _ID_BYTES, _SUMMARY_BYTES = 128, 8, 48


@dataclass(frozen=True)
class Binding:
    """A value for a leaf; batched: one for each row, along a leading axis."""

    array: Array
    batched: bool = False


@dataclass(frozen=True)
class Selection:
    """Which values, or gradients, are returned."""

    all: bool = False
    names: tuple[str, ...] = ()
    value_ids: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()  # paths of their uses
    summary: bool = False

    def __bool__(self) -> bool:
        return self.all or bool(self.names) or bool(self.value_ids) or bool(self.modules)


ALL = Selection(all=True)
NO_SELECTION = Selection()


@dataclass(frozen=True)
class Evaluation:
    """What a request asks for, decoded."""

    bindings: Mapping[str, Binding] = field(default_factory=dict)
    batch_size: int = 0
    seeds: Mapping[str, Array] = field(default_factory=dict)
    forward_only: bool = False
    with_respect_to: tuple[str, ...] = ()
    values: Selection = NO_SELECTION
    gradients: Selection = NO_SELECTION
    packed: bytes | None = None  # numbers of the leaves in an order; None: all come by name
    packed_order: tuple[int, ...] = ()  # their positions; none: the leaves to differentiate
    keeps_values: bool = False  # for further backward passes

    def __post_init__(self) -> None:
        if self.forward_only and (self.seeds or self.with_respect_to or self.gradients):
            raise Invalid(
                "SELECTION_INVALID",
                "forward_only is set, so seeds, with_respect_to and gradients must be empty",
                field="forward_only",
            )
        if self.packed_order and self.with_respect_to:
            raise Invalid(
                "SELECTION_INVALID",
                "packed.leaves are the leaves to differentiate, so with_respect_to must be empty",
                field="with_respect_to",
            )

    def wants_as(self, other: Evaluation) -> bool:
        """Whether it wants the same of the same number of rows, whatever the numbers."""
        return (
            self.batch_size == other.batch_size
            and self.forward_only == other.forward_only
            and self.with_respect_to == other.with_respect_to
            and self.values == other.values
            and self.gradients == other.gradients
            and (self.packed is None) == (other.packed is None)
            and self.packed_order == other.packed_order
            and self.keeps_values == other.keeps_values
        )


@dataclass(frozen=True)
class Point:
    """An array for every leaf."""

    arrays: Sequence[Array]
    specs: tuple[TensorSpec, ...]
    batched: tuple[bool, ...]
    batch_size: int


class LeafPlace(NamedTuple):
    """One leaf: its ids, and the shape of the whole of it, with its rows where it is batched."""

    name: str
    dtype: str
    ids: Ids
    elements: bool
    shape: Shape


class Chosen(NamedTuple):
    """Values in the order in which they are computed: as callers and as engines know them."""

    ids: Ids
    flat_ids: Ids


@dataclass(frozen=True)
class Part:
    """Of what is chosen, ascending ids that have one data type and shape."""

    ids: Ids
    flat_ids: Ids
    dtype: str
    shape: Shape
    as_summary: bool


@dataclass(frozen=True)
class Choice:
    """What is returned."""

    leaves: tuple[int, ...]  # positions of the leaves whose gradients are returned
    values: Chosen
    gradients: Chosen
    values_as_summary: bool
    gradients_as_summary: bool
    lifetimes: Lifetimes

    @cached_property
    def leaf_places(self) -> list[LeafPlace]:
        """Where the gradients of the leaves are, and the shapes that they are returned in."""
        plan = self.lifetimes.plan
        return [_place(plan, position) for position in self.leaves]

    @cached_property
    def named_nbytes(self) -> int:
        """About the bytes of outputs and leaf gradients, serialized."""
        plan = self.lifetimes.plan
        found = sum(
            _HEAD_BYTES + prod(_output_shape(plan, output)) * ITEM_SIZES[plan.spec(i).dtype]
            for output in plan.graph.outputs
            for i in output.value_ids[:1].tolist()
        )
        return found + sum(
            _HEAD_BYTES + prod(leaf.shape) * ITEM_SIZES[leaf.dtype] for leaf in self.leaf_places
        )

    @cached_property
    def nbytes(self) -> int:
        """About the bytes of all that is returned, serialized."""
        return (
            self.named_nbytes
            + self._chosen_nbytes(self.values, self.values_as_summary)
            + self._chosen_nbytes(self.gradients, self.gradients_as_summary)
        )

    def _chosen_nbytes(self, chosen: Chosen, as_summary: bool) -> int:
        if as_summary:
            return len(chosen.ids) * (_ID_BYTES + _SUMMARY_BYTES)
        plan = self.lifetimes.plan
        sizes = np.array([float(spec.nbytes) for spec in plan.specs])[plan.spec_ids]
        if plan.batch_size:
            sizes[plan.batched] *= plan.batch_size
        return int(sizes[chosen.flat_ids].sum()) + len(chosen.ids) * _ID_BYTES

    def values_before(self, stop: int) -> int:
        """How many of `values` are in parts that are complete once flat ids below `stop` are."""
        done = int(self.values.flat_ids.searchsorted(stop))
        edges = self._value_edges
        return edges[bisect_right(edges, done) - 1]

    def gradients_before(self, start: int) -> int:
        """How many of `gradients` are in parts that may lack some from flat id `start` on."""
        missing = int(self.gradients.flat_ids.searchsorted(start))
        edges = self._gradient_edges
        return edges[bisect_left(edges, missing)]

    def value_parts(self, low: int, high: int) -> list[Part]:
        """Some of `values`, from edge to edge."""
        return self._parts(self.values, self._value_edges, low, high, self.values_as_summary)

    def gradient_parts(self, low: int, high: int) -> list[Part]:
        """Some of `gradients`, from edge to edge, the last ones first."""
        edges, as_summary = self._gradient_edges, self.gradients_as_summary
        return self._parts(self.gradients, edges, low, high, as_summary)[::-1]

    def _parts(
        self, chosen: Chosen, edges: list[int], low: int, high: int, as_summary: bool
    ) -> list[Part]:
        plan, parts = self.lifetimes.plan, []
        while low < high:
            end = edges[bisect_right(edges, low)]
            ids, flat_ids = chosen.ids[low:end], chosen.flat_ids[low:end]
            if plan.graph.inside is not None:
                order = ids.argsort()
                ids, flat_ids = ids[order], flat_ids[order]
            first = int(flat_ids[0])
            dtype, shape = plan.spec(first).dtype, plan.shape(first)
            parts.append(Part(ids, flat_ids, dtype, shape, as_summary))
            low = end
        return parts

    @cached_property
    def _block_ends(self) -> Ids:
        return _block_ends(self.lifetimes.plan)

    @cached_property
    def _value_edges(self) -> list[int]:
        """Where in `values` a part may begin; the end is the last edge."""
        return _edges(self.lifetimes.plan, self.values.flat_ids, self._block_ends)

    @cached_property
    def _gradient_edges(self) -> list[int]:
        """The same of `gradients`."""
        return _edges(self.lifetimes.plan, self.gradients.flat_ids, self._block_ends)


def bind(graph: Graph, bindings: Mapping[str, Binding], batch_size: int) -> Point:
    """An array for every leaf: the one given, or the one stored.

    LEAF_UNKNOWN, BINDING_INVALID, INPUT_MISSING, DATA_TYPE_MISMATCH, SHAPE_MISMATCH.
    """
    with within("bindings"):
        require_leaves(graph, bindings)
    static = static_leaves(graph)
    symbols: dict[str, tuple[int, str]] = {}
    found = []
    for position, leaf in enumerate(graph.leaves):
        binding = None if leaf.kind == "constant" else bindings.get(leaf.name)
        if binding is None:
            if leaf.value is None:
                raise Invalid(
                    "INPUT_MISSING",
                    f"{leaf.place}: has no value; bind a {leaf.dtype} tensor of shape "
                    f"{axes_text(leaf.axes)}",
                    field="bindings",
                    leaf=leaf.name,
                )
            binding = Binding(arrays.constant(leaf.value))
        try:
            shape = _row_shape(leaf, binding, batch_size)
            bind_symbols(leaf, shape, symbols)
            if position in static and binding.batched:
                raise Invalid(
                    "BINDING_INVALID",
                    f"{leaf.place}: shapes depend on its elements, so it cannot be batched",
                    field="batched",
                    leaf=leaf.name,
                )
        except Invalid as refusal:
            raise refusal.at_field(_field_of_leaf(leaf, bindings, refusal.field)) from None
        is_known = position in static
        spec = known_spec(binding.array) if is_known else TensorSpec(shape, leaf.dtype)
        found.append((binding, spec))
    return Point(
        tuple(binding.array for binding, _ in found),
        tuple(spec for _, spec in found),
        tuple(binding.batched for binding, _ in found),
        batch_size,
    )


@np.errstate(all="ignore")  # infinities have sums too
def seed(plan: Plan, seeds: Mapping[str, Array]) -> dict[int, Array]:
    """The gradient that each output's values begin with (SEED_MISSING, SEED_INVALID, ...)."""
    graph = plan.graph
    by_name = {output.name: output for output in graph.outputs}
    _require_outputs(graph, seeds)
    grads: dict[int, Array] = {}
    for number, (name, given) in enumerate((seeds or _default_seeds(plan)).items()):
        output = by_name[name]
        with within(f"seeds[{number}].tensor"):
            _check_seed(plan, output, given)
        rows = (plan.batch_size,) if plan.batch_size else ()
        if arrays.dtype_name(given.dtype) in HALVES:
            given = arrays.astype(given, "float32")  # as gradients are summed in
        for position, value_id in enumerate(output.value_ids.tolist()):
            own = given if len(output.value_ids) == 1 else given[..., position]
            if rows and not plan.is_batched(value_id):
                own = own.sum(axis=0)
            grads[value_id] = grads[value_id] + own if value_id in grads else own
    return grads


def choose(plan: Plan, evaluation: Evaluation) -> Choice:
    """What is to be returned (LEAF_UNKNOWN, VALUE_UNKNOWN, NOT_DIFFERENTIABLE)."""
    leaves = _differentiated(plan.graph, evaluation)
    with within("values"):
        values = _chosen(plan.graph, evaluation.values)
    with within("gradients"):
        gradients = _differentiable(plan, evaluation.gradients)
    kept = Kept(
        _kept_values(plan.graph, evaluation, values.flat_ids),
        _kept_gradients(plan.graph, leaves, gradients.flat_ids),
        None if evaluation.forward_only else _needed(plan, leaves, gradients.flat_ids),
    )
    return Choice(
        leaves,
        values,
        gradients,
        evaluation.values.summary,
        evaluation.gradients.summary,
        Lifetimes(plan, kept),
    )


@dataclass(frozen=True)
class Job:
    """An evaluation, checked whole and ready to run."""

    plan: Plan
    point: Point
    seeds: Mapping[int, Array]
    choice: Choice
    forward_only: bool
    compiled: Compiled = NOTHING
    recipe: Recipe | BatchRecipe | None = None  # where there is one, it runs the whole job
    packing: Packing | None = None  # the order of leaf gradients; None: the graph's

    def at(self, arrays: Sequence[Array], packing: Packing | None = None) -> Job:
        """The same job at other values of its leaves, which came packed if there is an order."""
        point = self.point
        point = Point(arrays, point.specs, point.batched, point.batch_size)
        parts = self.plan, point, self.seeds, self.choice, self.forward_only
        return Job(*parts, self.compiled, self.recipe, packing)  # replace() takes twice as long

    def serves(self, point: Point) -> bool:
        """Whether the plan is right at another point too."""
        return (point.specs, point.batched, point.batch_size) == (
            self.point.specs,
            self.point.batched,
            self.point.batch_size,
        )


@dataclass(frozen=True)
class Packed:
    """Numbers of the leaves of an order, as one run of bytes."""

    packing: Packing
    data: bytes

    def __post_init__(self) -> None:
        """TENSOR_INVALID where it is not as long as the leaves."""
        if len(self.data) != self.packing.nbytes:
            raise Invalid(
                "TENSOR_INVALID",
                f"packed: {len(self.packing.positions)} leaves have {self.packing.nbytes} bytes in "
                f"all, but {len(self.data)} are given",
                field="packed.data",
            )

    def require_apart(self, bindings: Iterable[str]) -> None:
        """None of the leaves is bound by name as well (BINDING_INVALID)."""
        for number, name in enumerate(bindings):
            if name in self.packing.names:
                what = f"leaf {name!r} is packed, and bound by name too; give it once"
                raise Invalid("BINDING_INVALID", what, field=f"bindings[{number}].leaf")

    def bindings(self) -> dict[str, Binding]:
        """The same by name."""
        return {name: Binding(array) for name, array in self.packing.split(self.data).items()}

    def put(self, job: Job, arrays: Sequence[Array]) -> Job:
        """The job at these numbers; its other leaves are in `arrays`."""
        return job.at(self.packing.put(self.data, arrays), self.packing)


def require_known(graph: Graph, evaluation: Evaluation) -> None:
    """Refuses names that the graph lacks, long before a point is complete."""
    with within("bindings"):
        require_leaves(graph, evaluation.bindings)
    _differentiated(graph, evaluation)
    _require_outputs(graph, evaluation.seeds)
    with within("values"):
        _chosen(graph, evaluation.values)
    with within("gradients"):
        _chosen(graph, evaluation.gradients)


def find_packing(graph: Graph, evaluation: Evaluation) -> Packing:
    """The order of packed leaves (the reasons of Packing)."""
    if evaluation.batch_size:
        raise Invalid(
            "BINDING_INVALID",
            f"packed numbers have no rows, but batch_size is {evaluation.batch_size}; bind leaves "
            "by name",
            field="batch_size",
        )
    order = evaluation.packed_order or leaves_to_differentiate(graph, evaluation.with_respect_to)
    return Packing(graph, order)


def prepare(graph: Graph, evaluation: Evaluation, limits: Limits, before: Job | None = None) -> Job:
    """Everything that can be refused, is refused here. A job for the same specs lends its plan.

    Fields of refusals are those of EvaluateRequest, as if it held the graph itself.
    """
    packed, bindings = None, evaluation.bindings
    with within("evaluation"):
        if evaluation.packed is not None:
            packed = Packed(find_packing(graph, evaluation), evaluation.packed)
            packed.require_apart(bindings)
            bindings = {**bindings, **packed.bindings()}
        point = bind(graph, bindings, evaluation.batch_size)
    if before is None or not before.serves(point):
        before = None
        with within("graph"):
            plan = make_plan(graph, point.specs, point.batched, point.batch_size, limits)
    else:
        plan = before.plan
    with within("evaluation"):
        choice = choose(plan, evaluation)
        require_operations(plan, limits, evaluation.forward_only)
        require_peak(choice.lifetimes, limits)
        seeds = {} if evaluation.forward_only else seed(plan, evaluation.seeds)
    compiled = before.compiled if before else compile_plan(plan, limits.max_memory_bytes)
    forward_only = evaluation.forward_only
    recipe = find_recipe(compiled.program, choice, seeds) or find_batch_recipe(
        compiled.program, choice, seeds, forward_only=forward_only
    )
    job = Job(plan, point, seeds, choice, forward_only, compiled, recipe)
    return job if packed is None else packed.put(job, point.arrays)


def everything(evaluation: Evaluation) -> Evaluation:
    """The same, with all values and all gradients chosen."""
    gradients = NO_SELECTION if evaluation.forward_only else ALL
    return replace(evaluation, values=ALL, gradients=gradients)


def _differentiated(graph: Graph, evaluation: Evaluation) -> tuple[int, ...]:
    """Positions of the leaves whose gradients are returned, in the graph's order."""
    if evaluation.packed_order:
        return tuple(sorted(evaluation.packed_order))
    return leaves_to_differentiate(graph, evaluation.with_respect_to)


def _require_outputs(graph: Graph, names: Iterable[str]) -> None:
    known = {output.name for output in graph.outputs}
    for number, name in enumerate(names):
        if name not in known:
            raise Invalid(
                "OUTPUT_UNKNOWN",
                f"there is no output {name!r} to seed{nearest(name, known)}",
                field=f"seeds[{number}].name",
                output=name,
            )


def _field_of_leaf(leaf: Leaf, bindings: Mapping[str, Binding], inner: str) -> str:
    """Where the value of a leaf was sent; none was where a stored one is to blame."""
    sent = [*bindings]
    if leaf.name not in sent:
        return "bindings"
    return f"bindings[{sent.index(leaf.name)}].{inner or 'tensor.shape'}"


def _row_shape(leaf: Leaf, binding: Binding, batch_size: int) -> Shape:
    """The shape of one row of a binding, which must be as declared."""
    given: Shape = binding.array.shape
    if arrays.dtype_name(binding.array.dtype) != leaf.dtype:
        raise Invalid(
            "DATA_TYPE_MISMATCH",
            f"{leaf.place}: declared as {leaf.dtype} but bound to {binding.array.dtype}; "
            "convert the array",
            field="tensor.data_type",
            leaf=leaf.name,
        )
    if binding.batched:
        if not batch_size:
            raise Invalid(
                "BINDING_INVALID",
                f"{leaf.place}: is batched but batch_size is 0; set it to the number of rows",
                field="batched",
                leaf=leaf.name,
            )
        if given[:1] != (batch_size,):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{leaf.place}: is batched, so its first axis must be batch_size ({batch_size}), "
                f"but its shape is {given}",
                field="tensor.shape",
                leaf=leaf.name,
            )
        given = given[1:]
    if not fits(leaf.axes, given):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"{leaf.place}: declared with shape {axes_text(leaf.axes)} but bound to shape {given}"
            + (" a row" if binding.batched else ""),
            field="tensor.shape",
            leaf=leaf.name,
        )
    return given


def _output_shape(plan: Plan, output: Output) -> Shape:
    rows = (plan.batch_size,) if plan.batch_size else ()
    if len(output.value_ids) > 1:
        return (*rows, len(output.value_ids))
    return (*rows, *plan.spec(output.value_ids[0]).shape)


def _default_seeds(plan: Plan) -> dict[str, Array]:
    """1 on the only output, if it has one element (a row)."""
    names = ", ".join(repr(output.name) for output in plan.graph.outputs)
    if len(plan.graph.outputs) > 1:
        what = f"there are several outputs ({names}); give a seed for at least one"
        raise Invalid("SEED_MISSING", what, field="seeds")
    (output,) = plan.graph.outputs
    spec = plan.spec(output.value_ids[0])
    if not spec.is_floating:
        raise Invalid(
            "SEED_MISSING",
            f"{output.place}: is {spec.dtype} and has no gradient; set forward_only",
            field="forward_only",
        )
    elements = spec.size * len(output.value_ids)
    shape = _output_shape(plan, output)
    if elements != 1:
        raise Invalid(
            "SEED_MISSING",
            f"{output.place}: has {elements} elements; give a seed of shape {shape}",
            field="seeds",
            output=output.name,
        )
    return {output.name: np.ones(shape, spec.dtype)}


def _check_seed(plan: Plan, output: Output, given: Array) -> None:
    spec = plan.spec(output.value_ids[0])
    if not spec.is_floating:
        raise Invalid(
            "SEED_INVALID", f"{output.place}: is {spec.dtype} and has no gradient to seed"
        )
    shape = _output_shape(plan, output)
    if given.shape != shape or arrays.dtype_name(given.dtype) != spec.dtype:
        raise Invalid(
            "SEED_INVALID",
            f"{output.place}: is {spec.dtype} of shape {shape} but its seed is {given.dtype} of "
            f"shape {given.shape}",
            output=output.name,
        )


def _chosen(graph: Graph, selection: Selection) -> Chosen:
    named, implied = _named(graph, selection), _implied(graph, selection)
    if implied.size:
        implied = implied[_not_constant(graph)[graph.flat_ids(implied)]]
    return _in_order(graph, np.concatenate([named, implied]))


def _differentiable(plan: Plan, selection: Selection) -> Chosen:
    """What is chosen one by one must have a gradient; of `all` and `modules`, what has one is."""
    graph = plan.graph
    if not selection:
        return _chosen(graph, selection)
    named, implied = _named(graph, selection), _implied(graph, selection)
    possible = plan.floating & _not_constant(graph)
    if graph.inside is not None:
        possible &= ~graph.inside.shut
    flat_ids = graph.flat_ids(named)
    if not possible[flat_ids].all():
        flat_id = int(flat_ids[~possible[flat_ids]][0])
        what = f"is {plan.spec(flat_id).dtype} and has no gradient"
        if plan.floating[flat_id]:
            what = "is a constant and has no gradient"
            if graph.inside is not None and graph.inside.shut[flat_id]:
                what = "has no gradient: it is inside of a module with its own"
        field = _field_of(graph, selection, int(named[flat_ids == flat_id][0]))
        message = f"{graph.place_of_value(flat_id)}: {what}"
        raise Invalid("NOT_DIFFERENTIABLE", message, field=field)
    return _in_order(graph, np.concatenate([named, implied[possible[graph.flat_ids(implied)]]]))


def _field_of(graph: Graph, selection: Selection, value_id: int) -> str:
    """What in a selection chose a value by its id or its name."""
    if value_id in selection.value_ids:
        return f"value_ids[{selection.value_ids.index(value_id)}]"
    for number, name in enumerate(selection.names):
        first, count = graph.find(name) or (0, 0)
        if first <= value_id < first + count:
            return f"names[{number}]"
    return ""


def _in_order(graph: Graph, ids: Ids) -> Chosen:
    if (np.diff(ids) <= 0).any():
        ids = np.unique(ids)
    if graph.inside is None:
        return Chosen(ids, ids)
    flat_ids = graph.flat_ids(ids)
    order = np.argsort(flat_ids, kind="stable")
    return Chosen(ids[order], flat_ids[order])


def _implied(graph: Graph, selection: Selection) -> Ids:
    """Ids that are chosen many at once."""
    if selection.all:
        return np.arange(1, graph.id_count + 1)
    found: list[int] = []
    for number, path in enumerate(selection.modules):
        known = {} if graph.inside is None else graph.inside.uses_by_path
        if graph.inside is None or path not in known:
            what = f"there is no use of a module {path!r}{nearest(path, known)}"
            raise Invalid("VALUE_UNKNOWN", what, field=f"modules[{number}]")
        found.extend(graph.inside.within(known[path]))
    return np.array(found, np.int64)


def _named(graph: Graph, selection: Selection) -> Ids:
    """Ids that are chosen one by one (VALUE_UNKNOWN)."""
    found = list(selection.value_ids)
    for number, value_id in enumerate(found):
        if not 1 <= value_id <= graph.id_count:
            raise Invalid(
                "VALUE_UNKNOWN",
                f"there is no value {value_id}; ids are from 1 to {graph.id_count}",
                field=f"value_ids[{number}]",
            )
    for number, name in enumerate(selection.names):
        place = graph.find(name)
        if place is None:
            raise Invalid(
                "VALUE_UNKNOWN",
                f"there is no value {name!r}{nearest(name, graph.ids_by_name)}",
                field=f"names[{number}]",
            )
        first, count = place
        found.extend(range(first, first + count))
    return np.array(found, np.int64)


def _not_constant(graph: Graph) -> npt.NDArray[np.bool_]:
    marks = np.ones(graph.value_count + 1, bool)
    marks[0] = False
    firsts = graph.leaf_first_ids
    for leaf, first, end in zip(graph.leaves, firsts, firsts[1:], strict=False):
        marks[first:end] = leaf.kind != "constant"
    return marks


def _needed(plan: Plan, leaves: tuple[int, ...], gradient_ids: Ids) -> npt.NDArray[np.bool_]:
    """By id: whether the gradient leads to anything that is returned."""
    graph = plan.graph
    possible = plan.floating & _not_constant(graph)
    everything = leaves_to_differentiate(graph, ())
    if leaves != everything and len(gradient_ids) < np.count_nonzero(possible):
        wanted = np.zeros(graph.value_count + 1, bool)
        wanted[gradient_ids] = True
        marks = [position in leaves for position in range(len(graph.leaves))]
        possible &= reached(graph, marks, wanted)
    return possible


def _kept_values(graph: Graph, evaluation: Evaluation, value_ids: Ids) -> npt.NDArray[np.bool_]:
    """By id: whether the value must outlive its last use."""
    kept = np.full(graph.value_count + 1, evaluation.keeps_values)
    kept[value_ids] = True
    for output in graph.outputs:
        kept[output.value_ids] = True
    return kept


def _kept_gradients(
    graph: Graph, leaves: tuple[int, ...], gradient_ids: Ids
) -> npt.NDArray[np.bool_]:
    """By id: whether the gradient must outlive its last use."""
    kept = np.zeros(graph.value_count + 1, bool)
    kept[gradient_ids] = True
    for position in leaves:
        kept[graph.leaf_first_ids[position] : graph.leaf_first_ids[position + 1]] = True
    return kept


def _place(plan: Plan, position: int) -> LeafPlace:
    leaf, first = plan.graph.leaves[position], plan.graph.leaf_first_ids[position]
    ids = np.arange(first, first + leaf.id_count)
    if not leaf.elements:
        return LeafPlace(leaf.name, leaf.dtype, ids, False, plan.shape(first))
    rows = plan.shape(first) if len(ids) else ()
    sizes = tuple(axis for axis in leaf.axes if isinstance(axis, int))
    return LeafPlace(leaf.name, leaf.dtype, ids, True, (*rows, *sizes))


def _edges(plan: Plan, ids: Ids, block_ends: Ids) -> list[int]:
    """Where the data type or the shape changes, and where a block of work ends.

    The graph and its shapes alone decide, and neither the engine nor the time it took, so that the
    same evaluation is always answered in the same parts.
    """
    if not len(ids):
        return [0]
    kinds = plan.spec_ids[ids]
    if plan.batch_size:
        kinds = kinds * 2 + plan.batched[ids]
    changes = np.flatnonzero(np.diff(kinds)) + 1
    ends = np.searchsorted(ids, block_ends)
    edges: list[int] = np.unique(np.concatenate([[0, len(ids)], changes, ends])).tolist()
    return edges


def _block_ends(plan: Plan) -> Ids:
    """Values before which BLOCK_BYTES more have been read and written, ascending."""
    graph = plan.graph
    sizes = np.array([max(spec.nbytes, _LEAST_BYTES) for spec in plan.specs])
    if not plan.batch_size and (sizes == sizes[0]).all():
        return _equal_block_ends(graph, BLOCK_BYTES // int(sizes[0]))
    nbytes = sizes[plan.spec_ids]
    if plan.batch_size:
        nbytes[plan.batched] *= plan.batch_size
    nbytes[0] = 0
    read = np.append(0, np.cumsum(nbytes[graph.node_inputs]))[graph.input_starts]
    nbytes[graph.first_ids[:-1]] += np.diff(read)
    ends: Ids = np.flatnonzero(np.diff(np.cumsum(nbytes) // BLOCK_BYTES)) + 2
    return ends


def _equal_block_ends(graph: Graph, most: int) -> Ids:
    """Values before which so many more have been read and written, where all count the same."""
    firsts, read = graph.first_ids, graph.input_starts
    done = firsts[1:] - 1 + read[1:]  # once a node is
    total = int(done[-1]) if len(done) else graph.value_count
    full = np.arange(most, total + 1, most)
    node = np.minimum(np.searchsorted(done, full), len(done) - 1)
    among = np.maximum(firsts[node], full - read[node + 1]) if len(done) else full
    ends: Ids = np.unique(np.where(full < firsts[0], full, among)) + 1
    return ends
