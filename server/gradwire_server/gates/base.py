"""What a gate is. Array libraries are met only through the `xp` argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from gradwire_server.errors import Invalid, nearest
from gradwire_server.specs import (
    ANY,
    FLOATS,
    Shape,
    Tensor,
    TensorSpec,
    broadcast_shapes,
    computed_in,
)

#: A NumPy array, an array of another library, or a symbolic handle: whatever `xp` computes with.
Array = Any
#: A namespace with the Array API's function names and a few more (gradwire_server/arrays.py).
Namespace = Any
#: int, float, str, a tuple of one of them, or a Tensor.
AttributeValue = Any

_KINDS: dict[str, tuple[type, type | None]] = {
    "int": (int, None),
    "float": (float, None),
    "string": (str, None),
    "ints": (tuple, int),
    "floats": (tuple, float),
    "strings": (tuple, str),
    "tensor": (Tensor, None),
}


@dataclass(frozen=True)
class Input:
    """One declared input of a gate.

    Inputs of one `group` have one data type. A `known` input's elements are needed to plan: the
    gate gets them as a flat tuple (None where the input is omitted) instead of an array. With
    `whole` it gets an array all the same, because it computes with its shape or data type.

    Without `elements` only the input's shape and data type decide what the gate yields. Then shapes
    do not depend on it, and where it alone is batched all rows are equal: the gate gets the first.
    """

    name: str
    dtypes: tuple[str, ...] = FLOATS
    group: str = "T"
    optional: bool = False
    variadic: bool = False
    known: bool = False
    whole: bool = False
    elements: bool = True
    #: Where tests draw from; the gate is smooth inside, or its kinks have measure zero.
    domain: tuple[float, float] = (-2.0, 2.0)

    @property
    def flat(self) -> bool:
        """Whether the gate gets the elements as a tuple."""
        return self.known and not self.whole


@dataclass(frozen=True)
class Attribute:
    """One declared attribute. A default of None means: leaving it out has a meaning of its own."""

    name: str
    kind: str
    default: AttributeValue = None
    required: bool = False
    choices: tuple[AttributeValue, ...] = ()
    doc: str = ""
    #: Whether it is the number of outputs, so that a node declares as many.
    counts_outputs: bool = False

    def check(self, value: AttributeValue) -> AttributeValue:
        """The value as the gate takes it, or a refusal (ATTRIBUTE_INVALID)."""
        outer, inner = _KINDS[self.kind]
        if outer is float and isinstance(value, int):
            value = float(value)
        fits = isinstance(value, outer) and not isinstance(value, bool)
        if not fits or (inner and not all(isinstance(item, inner) for item in value)):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"attribute {self.name!r} is {value!r} but must be of kind {self.kind}",
                attribute=self.name,
            )
        if self.choices and value not in self.choices:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"attribute {self.name!r} is {value!r} but must be one of "
                + ", ".join(map(repr, self.choices)),
                attribute=self.name,
            )
        return value


@dataclass(frozen=True)
class Example:
    """One worked case: shown in the docs and run as a test.

    Elements are nested lists or numbers, where Python's float means float64, int int64 and bool
    bool; or a Tensor of another data type.
    Gradients are those of the first output with a seed of ones; None for an input without one.
    `at_kink` marks a point where finite differences do not apply.
    """

    inputs: tuple[Any, ...]
    output: Any
    gradients: tuple[Any, ...] | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    at_kink: bool = False


@dataclass(frozen=True)
class Sample:
    """A case that tests draw elements for, besides the examples.

    An input with a `value` is used as it is, the others are drawn from their input's domain. None
    is an omitted input.
    """

    inputs: tuple[TensorSpec | None, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """One call the gate must refuse, with a reason and words its message contains."""

    inputs: tuple[TensorSpec | None, ...]
    message: str
    reason: str = "SHAPE_MISMATCH"
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


#: Operations that take as long as a step of Python's.
STEP = 1000


class Scratch(NamedTuple):
    """Most bytes of arrays that a gate holds on the way: to its outputs, and to all gradients.

    Inputs, outputs and the gradients that it yields, in the shapes of the inputs, do not count.
    """

    forward: int
    back: int


class Gate:
    """An operator: shapes, forward, local gradient. It knows nothing of the rest of the circuit.

    The docstring of a gate has one sentence and then the lines `Formula:`, `Gradient:`,
    `Shapes:` and, where a subgradient is chosen, `Kinks:`; and `Accuracy:` where it is not its
    family's (catalogue.py). The catalogue is made from them.
    """

    operator: ClassVar[str]
    inputs: ClassVar[tuple[Input, ...]] = (Input("X"),)
    attributes: ClassVar[tuple[Attribute, ...]] = ()
    #: Fewest and most outputs; most = 0 means as many as `infer` yields, exactly.
    outputs: ClassVar[tuple[int, int]] = (1, 1)
    #: The attribute that decides whether there are outputs but the first; none means the request.
    more_outputs_with: ClassVar[str] = ""
    #: Where clients, who infer nothing, find each output's data type (gradwire/signature.py says
    #: how it is written). The last entry holds for further outputs; none means "input:0" or
    #: whichever input is the first of group T.
    output_dtypes: ClassVar[tuple[str, ...]] = ()
    #: Whether `forward` takes half precision as it is, since it moves elements or asks for their
    #: data type; its `vjp` does not use `out`. To other gates, and as inputs and gradients to every
    #: `vjp`, half precision comes as float32, and the engine rounds what they yield.
    takes_halves: ClassVar[bool] = False
    #: Groups of inputs that are computed with together: beside float32 the others may be of half
    #: precision, and no other data types may be mixed.
    mixed_groups: ClassVar[tuple[str, ...]] = ()
    #: Whether it is there to refuse what it is given: it sees all rows of a batch at once, and is
    #: kept where a graph is rewritten, though nothing may use what it yields.
    asserts: ClassVar[bool] = False
    #: Whether its outputs show the memory of its first input: "as it is", with axes "turned", "in
    #: parts" or repeated, or "reshaped" where that lies row by row, else in a copy.
    shows_input: ClassVar[Literal["", "as it is", "turned", "in parts", "reshaped"]] = ""
    #: Inputs whose gradients show the memory of the output's, or repeat a few numbers.
    passes_grad: ClassVar[Literal["", "to the first", "to all"]] = ""
    #: Arrays as large as its largest input or output that it makes on the way (`scratch`): to its
    #: output, and to the gradients.
    scratch_arrays: ClassVar[tuple[float, float]] = (0, 0)
    #: Those of float32 where they are more: NumPy makes new arrays for what is added to such, or
    #: multiplies them, as a number of Python's.
    scratch_arrays_of_float32: ClassVar[tuple[float, float] | None] = None
    examples: ClassVar[tuple[Example, ...]] = ()
    samples: ClassVar[tuple[Sample, ...]] = ()
    rejections: ClassVar[tuple[Rejection, ...]] = ()

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec | tuple[TensorSpec, ...]:
        """Shape and data type of each output: the truth that every engine is tested against."""
        raise NotImplementedError

    def forward(self, xp: Namespace, *inputs: Any, **attributes: Any) -> Any:
        """The output; a tuple of them where the gate may have several.

        An optional output may be a callable, which computes it if it is wanted.
        """
        raise NotImplementedError

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, *inputs: Any, **attributes: Any
    ) -> tuple[Any, ...]:
        """One entry for each input: its gradient, or a callable that computes it, or None.

        An entry may have a shape that the input's broadcasts to; the engine sums it. With several
        outputs `grad` and `out` are tuples.
        """
        raise NotImplementedError

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...] | None:
        """Shapes of the inputs that a leading batch axis can be put before, or None.

        None means the engine runs the rows one by one.
        """
        return None

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        """Memory for the arrays that it makes on the way.

        `outs` are the specs of the outputs. A server refuses by it, before anything runs, what
        would not fit: a test measures it for every gate.
        """
        largest = max((each.nbytes for each in (*outs, *specs) if each is not None), default=0)
        forward, back = self.scratch_arrays
        if self.scratch_arrays_of_float32 and outs[0].dtype == "float32":
            forward, back = self.scratch_arrays_of_float32
        return Scratch(int(forward * largest), int(back * largest))

    def operations(self, outs: tuple[TensorSpec, ...], *specs: Any, **attributes: Any) -> int:
        """Multiplications, comparisons or moves of an element that `forward` takes, about.

        `outs` are the specs of the outputs. One for each element read and written, where a gate
        says nothing else; a step of Python's, or a call of a function of `xp`, counts as `STEP`.
        """
        return sum(each.size for each in (*outs, *specs) if each is not None)

    def check(
        self, specs: tuple[TensorSpec | None, ...], attributes: Mapping[str, AttributeValue]
    ) -> tuple[TensorSpec, ...]:
        """The outputs' specs, after every rule that all gates share was kept.

        Raises Invalid: INPUT_COUNT_INVALID, DATA_TYPE_MISMATCH, DATA_TYPE_UNSUPPORTED,
        INPUT_NOT_KNOWN, ATTRIBUTE_INVALID, SHAPE_MISMATCH.
        """
        groups: dict[str, tuple[str, str]] = {}
        for declared, spec in zip(self.declared_inputs(len(specs)), specs, strict=True):
            if spec is None:
                if not declared.optional:
                    raise Invalid("INPUT_COUNT_INVALID", f"input {declared.name!r} is absent")
                continue
            if spec.dtype not in declared.dtypes:
                raise Invalid(
                    "DATA_TYPE_UNSUPPORTED",
                    f"{declared.name} is {spec.dtype} but must be one of "
                    + ", ".join(declared.dtypes),
                )
            name, dtype = groups.setdefault(declared.group, (declared.name, spec.dtype))
            if dtype != spec.dtype:
                raise Invalid(
                    "DATA_TYPE_MISMATCH",
                    f"{name} is {dtype} but {declared.name} is {spec.dtype}; Cast one of them",
                )
            if declared.known and spec.value is None:
                raise Invalid(
                    "INPUT_NOT_KNOWN",
                    f"the elements of {declared.name} must be known before evaluation, but they "
                    "are computed from floating values or are too many; give a constant",
                )
        self._check_mixed(groups)
        found = self.infer(*specs, **self.complete(attributes))
        return found if isinstance(found, tuple) else (found,)

    def _check_mixed(self, groups: Mapping[str, tuple[str, str]]) -> None:
        given = [groups[each] for each in self.mixed_groups if each in groups]
        for name, dtype in given[1:]:
            if computed_in(dtype) != computed_in(given[0][1]):
                raise Invalid(
                    "DATA_TYPE_MISMATCH",
                    f"{given[0][0]} is {given[0][1]} but {name} is {dtype}; Cast one of them",
                )

    def check_input_count(self, count: int) -> None:
        """Refuses too few and too many inputs (INPUT_COUNT_INVALID)."""
        least = sum(not declared.optional for declared in self.inputs)
        variadic = bool(self.inputs) and self.inputs[-1].variadic
        if count < least or (count > len(self.inputs) and not variadic):
            most = "or more" if variadic else f"to {len(self.inputs)}"
            takes = f"{least}" if least == len(self.inputs) and not variadic else f"{least} {most}"
            names = ", ".join(declared.name for declared in self.inputs)
            raise Invalid(
                "INPUT_COUNT_INVALID", f"takes {takes} inputs ({names}) but is given {count}"
            )

    def declared_inputs(self, count: int) -> tuple[Input, ...]:
        """The declaration of each of `count` inputs (INPUT_COUNT_INVALID)."""
        self.check_input_count(count)
        return (*self.inputs, *self.inputs[-1:] * (count - len(self.inputs)))[:count]

    def complete(self, attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
        """All attributes, checked, with defaults where left out (ATTRIBUTE_INVALID)."""
        declared = {attribute.name: attribute for attribute in self.attributes}
        for name in attributes:
            if name not in declared:
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"there is no attribute {name!r}{nearest(name, declared)}",
                    attribute=name,
                )
        for attribute in self.attributes:
            if attribute.required and attribute.name not in attributes:
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"attribute {attribute.name!r} must be given",
                    attribute=attribute.name,
                )
        return {
            name: attribute.check(attributes[name]) if name in attributes else attribute.default
            for name, attribute in declared.items()
        }


def first_outputs(found: Any, count: int) -> tuple[Any, ...]:
    """What `forward` found, as the first outputs; those behind them are not computed."""
    entries = found if isinstance(found, tuple) else (found,)
    return tuple(entry() if callable(entry) else entry for entry in entries[:count])


class ElementwiseGate(Gate):
    """Inputs broadcast together; the engine sums gradients back to each input's shape."""

    #: Data type of the output where it is not that of the first input.
    output_dtype: ClassVar[str | None] = None

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        present = [spec for spec in specs if spec is not None]
        shape = broadcast_shapes(*(spec.shape for spec in present))
        return TensorSpec(shape, self.output_dtype or present[0].dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        forward, back = super().scratch(outs, *specs, **attributes)
        if self.passes_grad == "to all":
            return Scratch(forward, back)
        # gradients have the output's shape before the engine sums them
        summed = [
            each
            for each in specs[bool(self.passes_grad) :]
            if each is not None and each.is_floating and each.size < outs[0].size
        ]
        return Scratch(forward, back + len(summed) * outs[0].nbytes)

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...]:
        rank = max(spec.rank for spec in specs if spec is not None)
        return tuple(
            () if spec is None else (1,) * (rank - spec.rank) + spec.shape for spec in specs
        )


def guarded(xp: Namespace, grad: Array, derivative: Array) -> Array:
    """grad * derivative, with zero where a zero gradient meets a derivative that is not finite.

    At the edge of a domain (the square root at 0), outside it, and where the output overflows,
    nothing that the output does not matter for gets a NaN: where(x > 0, log(x), 0) has gradient 0
    at 0. (A where over the product would be shorter, and wrong: its own derivative to grad is 0.)
    """
    not_finite = xp.logical_or(xp.isinf(derivative), xp.isnan(derivative))
    unused = xp.logical_and(not_finite, xp.equal(grad, 0.0))
    return grad * xp.where(unused, 0.0, derivative)


__all__ = [
    "ANY", "STEP", "Array", "Attribute", "AttributeValue", "ElementwiseGate", "Example", "Gate",
    "Input", "Namespace", "Rejection", "Sample", "Scratch", "first_outputs", "guarded",
]  # fmt: skip
