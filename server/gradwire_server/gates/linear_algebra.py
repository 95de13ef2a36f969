"""Linear algebra: matrix products and Einstein summation."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
)
from gradwire_server.gates.common import matmul_shape
from gradwire_server.specs import (
    FLOATS,
    ITEM_SIZES,
    NUMBERS,
    Shape,
    Tensor,
    TensorSpec,
    broadcast_shapes,
)

#: What ONNX lets matrix products multiply.
_MULTIPLIED = (*FLOATS, "int32", "int64", "uint32", "uint64")


class MatMul(Gate):
    """Matrix product of the last two axes; the axes before them are a batch.

    Formula:   out[i, j] = sum over k of A[i, k] * B[k, j]
    Gradient:  to A = grad @ B^T,  to B = A^T @ grad
    Shapes:    A [..., m, k] and B [..., k, n] give [..., m, n]; batch axes broadcast. A of rank 1
               is a row and B of rank 1 a column, and that axis is not in the output.
    """

    operator = "MatMul"
    inputs = (Input("A", _MULTIPLIED), Input("B", _MULTIPLIED))
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]),
                [[19.0, 22.0], [43.0, 50.0]],
                gradients=([[11.0, 15.0], [11.0, 15.0]], [[4.0, 4.0], [6.0, 6.0]])),
        Example(([1.0, 2.0], [3.0, 4.0]), 11.0, gradients=([3.0, 4.0], [1.0, 2.0])),
        Example(([[1, 2], [3, 4]], [10, 1]), [12, 34]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((3, 4)))),
        Sample((TensorSpec((3,)), TensorSpec((3,)))),
        Sample((TensorSpec((3,)), TensorSpec((3, 2)))),
        Sample((TensorSpec((2, 3)), TensorSpec((3,)))),
        Sample((TensorSpec((3,)), TensorSpec((2, 3, 4)))),
        Sample((TensorSpec((2, 4, 3)), TensorSpec((3,)))),
        Sample((TensorSpec((5, 2, 3)), TensorSpec((3, 4)))),
        Sample((TensorSpec((2, 3)), TensorSpec((5, 3, 4)))),
        Sample((TensorSpec((2, 3)), TensorSpec((5, 3, 1)))),
        Sample((TensorSpec((2, 1, 2, 3)), TensorSpec((4, 3, 2)))),
        Sample((TensorSpec((2, 0)), TensorSpec((0, 3)))),
        Sample((TensorSpec((0, 2, 3)), TensorSpec((3, 2)))),
        Sample((TensorSpec((2, 2, 0)), TensorSpec((0,)))),
    )
    rejections = (
        Rejection((TensorSpec((2, 4)), TensorSpec((5, 3))),
                  message="A has 4 columns but B has 5 rows"),
        Rejection((TensorSpec((4,)), TensorSpec((5,))),
                  message="A has 4 elements but B has 5 elements"),
        Rejection((TensorSpec(()), TensorSpec((5,))), message="A has rank 0; MatMul needs rank 1"),
        Rejection((TensorSpec((2, 3, 4)), TensorSpec((3, 4, 5))),
                  message="batch axes of A and B: shapes (2,) and (3,) do not broadcast"),
    )  # fmt: skip

    def infer(self, a: TensorSpec, b: TensorSpec) -> TensorSpec:
        return TensorSpec(matmul_shape(a.shape, b.shape), a.dtype)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return _product(xp, a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array) -> tuple[Any, ...]:
        a_is_row, b_is_column = len(a.shape) == 1, len(b.shape) == 1
        if b_is_column:
            grad = xp.expand_dims(grad, axis=len(grad.shape))
        if a_is_row:
            grad = xp.expand_dims(grad, axis=len(grad.shape) - 1)
        rows = xp.expand_dims(a, axis=0) if a_is_row else a
        columns = xp.expand_dims(b, axis=1) if b_is_column else b

        def to_a() -> Array:
            found = _pull_left(xp, grad, rows, columns)
            return xp.squeeze(found, axis=(len(found.shape) - 2,)) if a_is_row else found

        def to_b() -> Array:
            found = _pull_right(xp, grad, rows, columns)
            return xp.squeeze(found, axis=(len(found.shape) - 1,)) if b_is_column else found

        return to_a, to_b

    def operations(self, outs: tuple[TensorSpec, ...], a: TensorSpec, b: TensorSpec) -> int:
        return products(outs[0], a, b)

    def aligned_shapes(self, a: TensorSpec, b: TensorSpec) -> tuple[Shape, Shape]:
        rows = (1, *a.shape) if a.rank == 1 else a.shape
        columns = (*b.shape, 1) if b.rank == 1 else b.shape
        rank = max(len(rows), len(columns))
        return _padded(rows, rank), _padded(columns, rank)


class Gemm(Gate):
    """Scaled matrix product plus a scaled third input.

    Formula:   out = alpha * A' @ B' + beta * C;  A' = A^T where transA, B' = B^T where transB
    Gradient:  to A' = alpha * grad @ B'^T,  to B' = alpha * A'^T @ grad,  to C = beta * grad
    Shapes:    A' [m, k] and B' [k, n] give [m, n]; C broadcasts to that. With integers the sum is
               rounded towards zero.
    """

    operator = "Gemm"
    inputs = (
        Input("A", _MULTIPLIED),
        Input("B", _MULTIPLIED),
        Input("C", _MULTIPLIED, optional=True),
    )
    attributes = (
        Attribute("alpha", "float", 1.0, doc="Scales the product."),
        Attribute("beta", "float", 1.0, doc="Scales C; with 0 C is not read."),
        Attribute("transA", "int", 0, choices=(0, 1), doc="1 transposes A."),
        Attribute("transB", "int", 0, choices=(0, 1), doc="1 transposes B."),
    )
    examples = (
        Example(([[1.0, 2.0]], [[3.0], [4.0]], [0.5]), [[11.5]],
                gradients=([[3.0, 4.0]], [[1.0], [2.0]], [1.0])),
        Example(([[1.0], [2.0]], [[3.0, 4.0]], [[10.0]]), [[25.5]],
                gradients=([[1.5], [2.0]], [[0.5, 1.0]], [[2.0]]),
                attributes={"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}),
        Example(([[1, 2]], [[3], [4]]), [[11]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((3, 4)))),
        Sample((TensorSpec((2, 3)), TensorSpec((3, 4)), None)),
        Sample((TensorSpec((3, 2)), TensorSpec((3, 4)), TensorSpec(())), {"transA": 1}),
        Sample((TensorSpec((2, 3)), TensorSpec((4, 3)), TensorSpec((4,))), {"transB": 1}),
        Sample((TensorSpec((3, 2)), TensorSpec((4, 3)), TensorSpec((2, 1))),
               {"transA": 1, "transB": 1, "alpha": -0.5, "beta": 3.0}),
        Sample((TensorSpec((2, 3)), TensorSpec((3, 4)), TensorSpec((2, 4))), {"beta": 0.0}),
        Sample((TensorSpec((2, 0)), TensorSpec((0, 3)), TensorSpec((3,)))),
        Sample((TensorSpec((0, 2)), TensorSpec((2, 3)), TensorSpec((3,)))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2, 4)), TensorSpec((5, 3))),
                  message="A has 4 columns but B has 5 rows"),
        Rejection((TensorSpec((2, 4)), TensorSpec((4, 3))), attributes={"transA": 1, "transB": 1},
                  message="A^T has 2 columns but B^T has 3 rows"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((4, 3))),
                  message="A has rank 3 but Gemm needs rank 2; use MatMul"),
        Rejection((TensorSpec((2, 4)), TensorSpec((4, 3)), TensorSpec((2,))),
                  message="C of shape (2,) does not broadcast to (2, 3)"),
        Rejection((TensorSpec((1, 4)), TensorSpec((4, 3)), TensorSpec((2, 3))),
                  message="C of shape (2, 3) does not broadcast to (1, 3)"),
    )  # fmt: skip

    def infer(
        self,
        a: TensorSpec,
        b: TensorSpec,
        c: TensorSpec | None = None,
        *,
        alpha: float,
        beta: float,
        transA: int,  # noqa: N803  (ONNX's name)
        transB: int,  # noqa: N803
    ) -> TensorSpec:
        for name, spec in (("A", a), ("B", b)):
            if spec.rank != 2:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{name} has rank {spec.rank} but Gemm needs rank 2; use MatMul",
                )
        rows, columns = reversed(a.shape) if transA else a.shape
        b_rows, b_columns = reversed(b.shape) if transB else b.shape
        if columns != b_rows:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{'A^T' if transA else 'A'} has {columns} columns but "
                f"{'B^T' if transB else 'B'} has {b_rows} rows",
            )
        shape = (rows, b_columns)
        if c is not None and not _broadcasts_to(c.shape, shape):
            raise Invalid("SHAPE_MISMATCH", f"C of shape {c.shape} does not broadcast to {shape}")
        return TensorSpec(shape, a.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        a: TensorSpec,
        b: TensorSpec,
        c: TensorSpec | None = None,
        **attributes: Any,
    ) -> Scratch:
        out = outs[0].nbytes
        scaled = attributes["alpha"] != 1 or attributes["beta"] != 1
        return Scratch(0 if c is None else out, out if scaled else 0)

    def forward(
        self,
        xp: Namespace,
        a: Array,
        b: Array,
        c: Array | None = None,
        *,
        alpha: float,
        beta: float,
        transA: int,  # noqa: N803
        transB: int,  # noqa: N803
    ) -> Array:
        left = _transposed(xp, a) if transA else a
        right = _transposed(xp, b) if transB else b
        out = _scaled(_product(xp, left, right), alpha)
        if c is not None and beta:
            out = out + _scaled(c, beta)
        return out if str(a.dtype) in FLOATS else xp.astype(out, a.dtype)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        a: Array,
        b: Array,
        *c: Array | None,
        alpha: float,
        beta: float,
        transA: int,  # noqa: N803
        transB: int,  # noqa: N803
    ) -> tuple[Any, ...]:
        left = _transposed(xp, a) if transA else a
        right = _transposed(xp, b) if transB else b
        to_product = _scaled(grad, alpha)
        if len(grad.shape) > max(len(a.shape), len(b.shape)):  # only C has a batch axis
            to_product = xp.sum(to_product, axis=(0,))

        def to_a() -> Array:
            found = _pull_left(xp, to_product, left, right)
            return _transposed(xp, found) if transA else found

        def to_b() -> Array:
            found = _pull_right(xp, to_product, left, right)
            return _transposed(xp, found) if transB else found

        return to_a, to_b, *(None if each is None else _scaled(grad, beta) for each in c)

    def operations(
        self, outs: tuple[TensorSpec, ...], a: TensorSpec, b: TensorSpec, *_: Any, **how: Any
    ) -> int:
        inner = a.shape[0] if how["transA"] else a.shape[1]
        return outs[0].size * (inner + 3) + a.size + b.size

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...]:
        return tuple(() if spec is None else _padded(spec.shape, 2) for spec in specs)


class Einsum(Gate):
    """Einstein summation: products of elements, summed over the letters the output does not name.

    Formula:   "ij,jk->ik": out[i, k] = sum over j of X[i, j] * Y[j, k];  a letter twice in one
               term takes the diagonal
    Gradient:  to X = the einsum of grad and the other operands for X's term, repeated along
               letters only X has; off the diagonal, 0
    Shapes:    a term has a letter for each axis; "..." stands for the axes without one, in equal
               number everywhere. Sizes of 1 broadcast between inputs. Without "->" the output has
               "..." and the letters that occur once, in the order A..Za..z.
    """

    operator = "Einsum"
    inputs = (Input("Inputs", NUMBERS, variadic=True),)
    attributes = (
        Attribute("equation", "string", required=True,
                  doc="A term for each input, then -> and the output's term."),
    )  # fmt: skip
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]], [10.0, 1.0]), [12.0, 34.0],
                gradients=([[10.0, 1.0], [10.0, 1.0]], [4.0, 6.0]),
                attributes={"equation": "ij,j->i"}),
        Example(([[1.0, 2.0], [3.0, 4.0]],), 5.0, gradients=([[1.0, 0.0], [0.0, 1.0]],),
                attributes={"equation": "ii"}),
        Example(([[1.0, 2.0], [3.0, 4.0]],), [1.0, 4.0], gradients=([[1.0, 0.0], [0.0, 1.0]],),
                attributes={"equation": "...ii->...i"}),
        Example(([1, 2], [3, 4]), [[3, 4], [6, 8]], attributes={"equation": "i,j"}),
    )  # fmt: skip
    samples = tuple(
        Sample(tuple(map(TensorSpec, shapes)), {"equation": equation})
        for equation, *shapes in (
            ("->", ()),
            (",->", (), ()),
            ("i->", (3,)),
            ("i->", (0,)),
            ("ij->ji", (2, 3)),
            ("ba", (2, 3)),
            ("ij->i", (2, 3)),
            ("iij->ij", (2, 2, 3)),
            ("iijj->j", (2, 2, 3, 3)),
            ("iii,i->i", (3, 3, 3), (3,)),
            ("iji,jki->k", (2, 3, 2), (3, 4, 2)),
            ("ii,j->", (2, 2), (3,)),
            ("bij, bjk -> bik", (2, 3, 4), (2, 4, 2)),
            ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
            ("ij,ij,ij->i", (2, 3), (2, 3), (2, 3)),
            ("...ij,...jk->...ik", (2, 1, 2, 3), (1, 4, 3, 2)),
            ("i...,i...", (3, 2), (3, 2)),
            ("...ii->...i", (2, 3, 3)),
            ("...a,...aB", (2, 3), (2, 3, 4)),
            ("ij,jk->ik", (2, 0), (0, 3)),
            ("ij,jk->ik", (0, 2), (2, 3)),
            ("ij,ij->ij", (2, 1), (2, 3)),
            ("ii,i->i", (1, 1), (3,)),
        )
    )
    rejections = tuple(
        Rejection(tuple(map(TensorSpec, shapes)), message, reason, {"equation": equation})
        for equation, shapes, message, reason in (
            ("ij,jk->ik", ((2, 3),), "names 2 inputs but is given 1", "ATTRIBUTE_INVALID"),
            ("i1->i", ((2, 3),), "has '1' in a term", "ATTRIBUTE_INVALID"),
            ("i..->i", ((2, 3),), "has '.' in a term", "ATTRIBUTE_INVALID"),
            ("i......", ((2, 3),), "has '...' twice in the term 'i......'", "ATTRIBUTE_INVALID"),
            ("i->i->i", ((2,),), "has '->' 2 times", "ATTRIBUTE_INVALID"),
            ("ij->ii", ((2, 3),), "an output that names 'i' twice", "ATTRIBUTE_INVALID"),
            ("ij->k", ((2, 3),), "names 'k', which no input has", "ATTRIBUTE_INVALID"),
            ("ij->i,j", ((2, 3),), "has ',' in a term", "ATTRIBUTE_INVALID"),
            ("i...->i", ((2, 3),), "output must have '...'", "ATTRIBUTE_INVALID"),
            ("i->...i", ((2,),), "an output with '...' but no input has it", "ATTRIBUTE_INVALID"),
            ("ijk", ((2, 3),), "'ijk' names 3 axes but input 0 has rank 2", "SHAPE_MISMATCH"),
            ("ijk...", ((2, 3),), "'ijk...' names 3 axes but input 0 has rank 2",
             "SHAPE_MISMATCH"),
            ("...i,...i", ((2, 3), (3,)), "'...' stands for 1 axes in input 0 but for 0 in input 1",
             "SHAPE_MISMATCH"),
            ("ij,jk", ((2, 3), (4, 5)), "'j' is 3 in one input and 4 in another",
             "SHAPE_MISMATCH"),
            ("ii", ((2, 3),), "'i' is 2 and 3 in input 0", "SHAPE_MISMATCH"),
            ("...,...", ((2,), (3,)), "'...' of the inputs: shapes (2,) and (3,) do not broadcast",
             "SHAPE_MISMATCH"),
        )
    )  # fmt: skip

    def infer(self, *operands: TensorSpec, equation: str) -> TensorSpec:
        terms, _ = _parse(equation)
        _check_ranks(equation, terms, operands)
        labels = _label(equation, tuple(spec.rank for spec in operands))
        sizes = _sizes(labels, [spec.shape for spec in operands])
        return TensorSpec(tuple(sizes[label] for label in labels.out), operands[0].dtype)

    def scratch(self, outs: Sequence[TensorSpec], *operands: TensorSpec, equation: str) -> Scratch:
        largest = max(spec.nbytes for spec in (*outs, *operands))
        if len(operands) == 1:
            return Scratch(0, int(1.05 * max(spec.size for spec in operands)))  # a mask
        labels = _label(equation, tuple(spec.rank for spec in operands))
        if len(operands) > 2:
            sizes = _sizes(labels, [spec.shape for spec in operands])
            between = max(_held_between(labels, sizes), default=0)
            return Scratch(between * ITEM_SIZES[outs[0].dtype], largest)
        first, second = labels.terms
        if {*first} & {*second} & {*labels.out}:
            return Scratch(largest + outs[0].nbytes, largest)
        # the product has the letters of the second before those of the first
        order = [label for label in second if label not in first]
        order += [label for label in first if label not in second]
        return Scratch(0 if order == [*labels.out] else outs[0].nbytes, largest)

    def forward(self, xp: Namespace, *operands: Array, equation: str) -> Array:
        labels = _label(equation, tuple(len(operand.shape) for operand in operands))
        return xp.einsum(f"{','.join(labels.terms)}->{labels.out}", *operands)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, *operands: Array, equation: str
    ) -> tuple[Any, ...]:
        labels = _label(equation, tuple(len(operand.shape) for operand in operands))
        sizes = _sizes(labels, [operand.shape for operand in operands])

        def to_operand(own: int) -> Array:
            others = [slot for slot in range(len(operands)) if slot != own]
            terms = (labels.out, *(labels.terms[slot] for slot in others))
            term = labels.terms[own]
            found = "".join(label for label in dict.fromkeys(term) if label in "".join(terms))
            pulled = grad
            if terms != (found,):
                factors = (operands[slot] for slot in others)
                pulled = xp.einsum(f"{','.join(terms)}->{found}", grad, *factors)
            return _spread(xp, pulled, found, term, sizes)

        return tuple(partial(to_operand, slot) for slot in range(len(operands)))

    def operations(self, outs: tuple[TensorSpec, ...], *operands: TensorSpec, equation: str) -> int:
        labels = _label(equation, tuple(spec.rank for spec in operands))
        sizes = _sizes(labels, [spec.shape for spec in operands])
        moved = sum(spec.size for spec in (*outs, *operands))
        return _summations(labels, sizes) + moved

    def aligned_shapes(self, *operands: TensorSpec, equation: str) -> tuple[Shape, ...] | None:
        terms, out = _parse(equation)
        anywhere = any("..." in term for term in terms)
        if anywhere and not all(term.startswith("...") for term in (*terms, out)):
            return None
        return tuple(spec.shape for spec in operands)


class _Labels(NamedTuple):
    """An equation in which every axis has a letter, those of "..." too."""

    terms: tuple[str, ...]
    out: str
    ellipsis: str


def _parse(equation: str) -> tuple[tuple[str, ...], str]:
    """The terms of the inputs and of the output (ATTRIBUTE_INVALID)."""
    left, *right = equation.replace(" ", "").split("->")
    if len(right) > 1:
        raise _refused(equation, f"has '->' {len(right)} times")
    terms = tuple(left.split(","))
    for term in (*terms, *right):
        _check_term(equation, term)
    named = "".join(terms).replace(".", "")
    has_ellipsis = "..." in left
    if not right:
        once = "".join(sorted(letter for letter in set(named) if named.count(letter) == 1))
        return terms, ("..." if has_ellipsis else "") + once
    (out,) = right
    for letter in out.replace(".", ""):
        if out.count(letter) > 1:
            raise _refused(equation, f"has an output that names {letter!r} twice")
        if letter not in named:
            raise _refused(equation, f"has an output that names {letter!r}, which no input has")
    if has_ellipsis and "..." not in out:
        raise _refused(equation, "has '...' in an input, so its output must have '...' too")
    if "..." in out and not has_ellipsis:
        raise _refused(equation, "has an output with '...' but no input has it")
    return terms, out


def _check_term(equation: str, term: str) -> None:
    letters = term.replace("...", "")
    for letter in letters:
        if letter not in string.ascii_letters:
            raise _refused(equation, f"has {letter!r} in a term, which is not a letter")
    if len(term) - len(letters) > len("..."):
        raise _refused(equation, f"has '...' twice in the term {term!r}")


def _refused(equation: str, what: str) -> Invalid:
    return Invalid("ATTRIBUTE_INVALID", f"equation {equation!r} {what}", attribute="equation")


def _check_ranks(equation: str, terms: tuple[str, ...], operands: tuple[TensorSpec, ...]) -> None:
    """A term for each input, a letter for each axis (ATTRIBUTE_INVALID, SHAPE_MISMATCH)."""
    if len(terms) != len(operands):
        raise _refused(equation, f"names {len(terms)} inputs but is given {len(operands)}")
    first: tuple[int, int] | None = None
    for slot, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        letters = len(term.replace("...", ""))
        unnamed = operand.rank - letters
        if unnamed < 0 or (unnamed and "..." not in term):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"the term {term!r} names {letters} axes but input {slot} has rank {operand.rank}",
            )
        if "..." in term:
            first = first or (slot, unnamed)
            if unnamed != first[1]:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"'...' stands for {first[1]} axes in input {first[0]} but for {unnamed} in "
                    f"input {slot}",
                )


def _label(equation: str, ranks: tuple[int, ...]) -> _Labels:
    """Letters for the axes that "..." stands for; they line up at their ends.

    Without any "...", one in front of every term stands for the batch axis that the engine may
    put there.
    """
    terms, out = _parse(equation)
    if not any("..." in term for term in terms):
        terms, out = tuple(f"...{term}" for term in terms), f"...{out}"
    unnamed = tuple(
        rank - len(term) + len("...") if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    )
    free = [letter for letter in string.ascii_letters if letter not in equation]
    if max(unnamed) > len(free):
        raise _refused(equation, f"needs {max(unnamed)} more letters for '...' than there are")
    ellipsis = "".join(free[: max(unnamed)])
    labelled = tuple(
        term.replace("...", ellipsis[len(ellipsis) - count :])
        for term, count in zip(terms, unnamed, strict=True)
    )
    return _Labels(labelled, out.replace("...", ellipsis), ellipsis)


def _sizes(labels: _Labels, shapes: list[Shape]) -> dict[str, int]:
    """The size of every letter; sizes of 1 broadcast between inputs (SHAPE_MISMATCH)."""
    sizes: dict[str, int] = {}
    for slot, (term, shape) in enumerate(zip(labels.terms, shapes, strict=True)):
        own: dict[str, int] = {}
        for label, size in zip(term, shape, strict=True):
            if own.setdefault(label, size) != size:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{label!r} is {own[label]} and {size} in input {slot}"
                )
        for label, size in own.items():
            known = sizes.setdefault(label, size)
            if known != size and 1 not in (known, size):
                _refuse_sizes(labels, shapes, label, known, size)
            if known == 1:
                sizes[label] = size
    return sizes


def _summations(labels: _Labels, sizes: dict[str, int]) -> int:
    """Products that are added up: of two operands at a time, where what is left in between is no
    larger than an operand or the output is; else of all at once.
    """

    def count(letters: set[str]) -> int:
        return prod(sizes[letter] for letter in letters)

    largest = max(count(set(term)) for term in (*labels.terms, labels.out))
    total, held = 0, set(labels.terms[0])
    for place, term in enumerate(labels.terms[1:], 1):
        joined = held | set(term)
        total += count(joined)
        held = joined & set(labels.out).union(*labels.terms[place + 1 :])
        if count(held) > largest:
            return count(set(sizes)) * len(labels.terms)
    return total


def _held_between(labels: _Labels, sizes: dict[str, int]) -> Iterator[int]:
    """Elements of what is left after each product but the last."""
    held = set(labels.terms[0])
    for place, term in enumerate(labels.terms[1:-1], 1):
        held = (held | set(term)) & set(labels.out).union(*labels.terms[place + 1 :])
        yield prod(sizes[letter] for letter in held)


def _refuse_sizes(labels: _Labels, shapes: list[Shape], label: str, known: int, size: int) -> None:
    if label not in labels.ellipsis:
        raise Invalid("SHAPE_MISMATCH", f"{label!r} is {known} in one input and {size} in another")
    try:
        broadcast_shapes(
            *(
                tuple(
                    extent
                    for letter, extent in zip(term, shape, strict=True)
                    if letter in labels.ellipsis
                )
                for term, shape in zip(labels.terms, shapes, strict=True)
            )
        )
    except Invalid as refusal:
        raise refusal.at("'...' of the inputs") from None


def _spread(xp: Namespace, pulled: Array, found: str, term: str, sizes: dict[str, int]) -> Array:
    """A gradient with the axes `found`, laid out as `term`: repeated along the letters it lacks,
    zero off the diagonals of letters that the term repeats.
    """
    added = tuple(
        place for place, label in enumerate(term) if label not in found or label in term[:place]
    )
    if added:
        pulled = xp.expand_dims(pulled, axis=added)
    for label in dict.fromkeys(term):
        if term.count(label) > 1:
            # chosen, not multiplied: an infinite gradient leaves no NaN beside the diagonal
            pulled = xp.where(xp.constant(_diagonal(label, term, sizes[label])), pulled, 0.0)
    shape = tuple(sizes[label] for label in term)
    return pulled if pulled.shape == shape else xp.broadcast_to(pulled, shape)


def _diagonal(label: str, term: str, size: int) -> Tensor:
    """True where all axes of a letter have one index; of size 1 along the other axes."""
    shape = tuple(size if other == label else 1 for other in term)
    between = sum(size**power for power in range(term.count(label)))
    data = (b"\x01" + bytes(between - 1)) * size
    return Tensor("bool", shape, data[: prod(shape)])


def products(out: TensorSpec, a: TensorSpec, b: TensorSpec) -> int:
    """Operations of a matrix product."""
    return out.size * a.shape[-1] + out.size + a.size + b.size


def _product(xp: Namespace, a: Array, b: Array) -> Array:
    """a @ b, as a single product of two matrices where one operand is a lone matrix."""
    if _is_lone(b, a) and len(a.shape) > 2:
        out = xp.matmul(_flat(xp, a), _matrix(xp, b))
        return xp.reshape(out, (*a.shape[:-1], b.shape[-1]))
    if _is_lone(a, b) and len(b.shape) > 2 and b.shape[-1] == 1:
        rows = xp.reshape(b, (prod(b.shape[:-2]), b.shape[-2]))
        out = xp.matmul(rows, _transposed(xp, _matrix(xp, a)))
        return xp.reshape(out, (*b.shape[:-2], a.shape[-2], 1))
    return xp.matmul(a, b)


def _pull_left(xp: Namespace, grad: Array, a: Array, b: Array) -> Array:
    """The gradient of a in a @ b, both of rank 2 or more; of a lone matrix, summed at once."""
    if _is_lone(a, b):
        rows, columns = _flat(xp, _transposed(xp, grad)), _flat(xp, _transposed(xp, b))
        found = xp.matmul(_transposed(xp, rows), columns)
        return found if len(a.shape) == 2 else xp.reshape(found, a.shape)
    return _product(xp, grad, _transposed(xp, b))


def _pull_right(xp: Namespace, grad: Array, a: Array, b: Array) -> Array:
    """The gradient of b in a @ b, both of rank 2 or more; of a lone matrix, summed at once."""
    if _is_lone(b, a):
        found = xp.matmul(_transposed(xp, _flat(xp, a)), _flat(xp, grad))
        return found if len(b.shape) == 2 else xp.reshape(found, b.shape)
    return _product(xp, _transposed(xp, a), grad)


def _is_lone(matrix: Array, other: Array) -> bool:
    """Whether one matrix meets every matrix of the other operand."""
    rank = len(matrix.shape)
    return 2 <= rank <= len(other.shape) and prod(matrix.shape[:-2]) == 1


def _matrix(xp: Namespace, lone: Array) -> Array:
    return lone if len(lone.shape) == 2 else xp.reshape(lone, lone.shape[-2:])


def _flat(xp: Namespace, x: Array) -> Array:
    """All rows of all matrices as one matrix."""
    return x if len(x.shape) == 2 else xp.reshape(x, (prod(x.shape[:-1]), x.shape[-1]))


def _transposed(xp: Namespace, x: Array) -> Array:
    """The last two axes swapped."""
    rank = len(x.shape)
    return xp.permute_dims(x, (*range(rank - 2), rank - 1, rank - 2))


def _scaled(x: Array, factor: float) -> Array:
    return x if factor == 1.0 else factor * x


def _padded(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


def _broadcasts_to(shape: Shape, target: Shape) -> bool:
    try:
        return broadcast_shapes(shape, target) == target
    except Invalid:
        return False


class Det(Gate):
    """The determinant of square matrices.

    Formula:   Y = det(X)
    Gradient:  d Y/dX = the cofactors of X: Y * transpose(inverse(X)), where there is an inverse
    Shapes:    X's without the last two axes, which are equal; 1 for a matrix of size 0.
    """

    operator = "Det"
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]],), -2.0, gradients=([[4.0, -3.0], [-2.0, 1.0]],)),
        Example(([[1.0, 2.0], [2.0, 4.0]],), 0.0, gradients=([[4.0, -2.0], [-2.0, 1.0]],)),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 3)),)),
        Sample((TensorSpec((1, 1)),)),
        Sample((TensorSpec((4, 4)),)),
        Sample((TensorSpec((0, 2, 2)),)),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), "X has shape (2, 3) but its last two axes must be equal"),
        Rejection((TensorSpec((3,)),), "X has shape (3,)"),
    )

    def infer(self, x: TensorSpec) -> TensorSpec:
        _require_square(x)
        return TensorSpec(x.shape[:-2], x.dtype)

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec) -> Scratch:
        exact = 0 if x.dtype == "float64" else 8 * x.size  # LAPACK's copy
        return Scratch(exact, int(4.1 * x.nbytes) + exact)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.det(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Any, ...]:
        return (lambda: _over_matrices(xp, grad) * xp.cofactor(x),)

    def operations(self, outs: tuple[TensorSpec, ...], x: TensorSpec) -> int:
        # a third of it is the elimination; the gradient decomposes, which takes some ten times that
        return x.size * (x.shape[-1] + 1)

    def aligned_shapes(self, x: TensorSpec) -> tuple[Shape, ...]:
        return (x.shape,)


class Cofactor(Gate):
    """The cofactors of square matrices: the gradient of Det. This operator is not ONNX's.

    Formula:   Y[i, j] = (-1)^(i + j) * det(X without row i and column j); with directions, its
               derivative along each of them
    Gradient:  to X and to each direction: that derivative along grad too, in place of the direction
    Shapes:    As X, whose last two axes are equal; directions as X. Two of them, as third
               derivatives of Det have, are for up to 101 rows, three for 32, four for 16.
    """

    operator = "Cofactor"
    inputs = (Input("X"), Input("directions", optional=True, variadic=True))
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]],), [[4.0, -3.0], [-2.0, 1.0]],
                gradients=([[1.0, -1.0], [-1.0, 1.0]],)),
        Example(([[1.0, 0.0], [0.0, 0.0]],), [[0.0, 0.0], [0.0, 1.0]],
                gradients=([[1.0, -1.0], [-1.0, 1.0]],)),
        Example(([[3.0]],), [[1.0]], gradients=([[0.0]],)),
        Example(([[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]), [[4.0, -3.0], [-2.0, 1.0]],
                gradients=([[0.0, 0.0], [0.0, 0.0]], [[1.0, -1.0], [-1.0, 1.0]])),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 3)),)),
        Sample((TensorSpec((0, 2, 2)),)),
        Sample((TensorSpec((2, 4, 4)), TensorSpec((2, 4, 4)))),
        Sample((TensorSpec((4, 4)),) * 3),
        Sample((TensorSpec((1, 1)),) * 3),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), "X has shape (2, 3)"),
        Rejection((TensorSpec((2, 2)), TensorSpec((2,))),
                  "directions have shape (2,) but X has shape (2, 2)"),
        Rejection((TensorSpec((102, 102)),) * 3, "along two for up to 101 rows"),
        Rejection((TensorSpec((2, 2)),) * 6, "no derivatives along 5 directions"),
    )  # fmt: skip

    def infer(self, x: TensorSpec, *directions: TensorSpec | None) -> TensorSpec:
        _require_square(x)
        for each in directions:
            if each is None or each.shape != x.shape:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"directions have shape {None if each is None else each.shape} but X has shape "
                    f"{x.shape}",
                )
        _require_computed(x.shape, len(directions))
        return TensorSpec(x.shape, x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *directions: TensorSpec
    ) -> Scratch:
        along = len(directions)
        further = along + 1 if _is_computed(x.shape, along + 1) else along
        return Scratch(self._held(x, along), max(self._held(x, along), self._held(x, further)))

    def forward(self, xp: Namespace, x: Array, *directions: Array) -> Array:
        return xp.cofactor(x, *directions)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *directions: Array
    ) -> tuple[Any, ...]:
        # a derivative of a polynomial, so it is the same in whatever order it is taken
        def to_direction(own: int) -> Array:
            return xp.cofactor(x, *directions[:own], grad, *directions[own + 1 :])

        def to_x() -> Array:
            _require_computed(x.shape, len(directions) + 1)
            return xp.cofactor(x, *directions, grad)

        return (
            to_x,
            *(partial(to_direction, own) for own in range(len(directions))),
        )

    def aligned_shapes(self, x: TensorSpec, *directions: TensorSpec) -> tuple[Shape, ...]:
        return x.shape, *(each.shape for each in directions)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *directions: TensorSpec
    ) -> int:
        rows = x.shape[-1]
        terms = prod(range(1, len(directions) + 2))  # a term for each order of the directions
        summed = prod((*x.shape[:-2], *(rows,) * (len(directions) + 2)))
        return 20 * x.size * (rows + 1) + terms * summed

    def _held(self, x: TensorSpec, directions: int) -> int:
        """Bytes of the arrays that it takes along so many directions."""
        if not directions:
            return int(3.3 * x.nbytes + 7.2 * x.size)
        *batch, rows, _ = x.shape
        places = prod((rows,) * (directions + 1))  # of rows that differ, an integer for each row
        integers = 8 * (directions + 1) * places
        products = 3 * prod(batch) * places * ITEM_SIZES[x.dtype]
        return int((3.4 + directions) * x.nbytes) + integers + max(integers, products)


#: Derivatives of order k take a power k of a matrix's size; so many numbers, and directions.
_MOST_PRODUCTS = 1 << 20
_MOST_DIRECTIONS = 4


def _is_computed(shape: Shape, directions: int) -> bool:
    many = directions > 1 and shape[-1] ** (directions + 1) > _MOST_PRODUCTS
    return directions <= _MOST_DIRECTIONS and not many


def _require_computed(shape: Shape, directions: int) -> None:
    """Whether a derivative of cofactors along so many directions is computed (SHAPE_MISMATCH)."""
    if not _is_computed(shape, directions):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"X has shape {shape}, of which no derivatives along {directions} directions are "
            "computed: along two for up to 101 rows, three for 32, four for 16",
        )


def _require_square(x: TensorSpec) -> None:
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise Invalid(
            "SHAPE_MISMATCH", f"X has shape {x.shape} but its last two axes must be equal"
        )


def _over_matrices(xp: Namespace, numbers: Array) -> Array:
    """One number for each matrix, so that it broadcasts against them."""
    return xp.expand_dims(numbers, axis=(-2, -1))
