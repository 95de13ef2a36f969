"""Stochastic: gates that draw numbers. Each takes a seed, so that a graph is a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from gradwire_server.specs import BOOLS, FLOATS, TensorSpec

_ON = TensorSpec((), "bool", (True,))


class Dropout(Gate):
    """Elements set to 0 by chance, the others made larger; in training mode only.

    Formula:   output = mask * data / (1 - ratio), with mask false at a share of ratio of the places
               that the seed draws; output = data where training_mode is false or left out
    Gradient:  d output/d data = mask / (1 - ratio); none to ratio, which is known beforehand
    Shapes:    As data. The mask depends on seed and shape only: all rows of a batch have the same.
    """

    operator = "Dropout"
    inputs = (
        Input("data"),
        Input("ratio", FLOATS, "R", optional=True, known=True),
        Input("training_mode", BOOLS, "B", optional=True, known=True),
    )
    attributes = (Attribute("seed", "int", doc="What is drawn; needed in training mode."),)
    outputs = (1, 2)
    output_dtypes = ("input:0", "bool")
    examples = (
        Example(([1.0, 2.0],), ([1.0, 2.0], [True, True]), gradients=([1.0, 1.0],)),
        Example(
            ([1.0, 2.0, 3.0], 0.5, True), ([0.0, 4.0, 0.0], [False, True, False]),
            gradients=([0.0, 2.0, 0.0], None, None), attributes={"seed": 1},
        ),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((3, 4)), TensorSpec((), "float32", (0.25,)), _ON), {"seed": 3}),
        Sample((TensorSpec((5,)), None, _ON), {"seed": -1}),
        Sample((TensorSpec((5,)), TensorSpec((), "float64", (0.0,)), _ON), {"seed": 0}),
        Sample((TensorSpec((0, 2)), TensorSpec((), "float64", (0.5,)))),
    )
    rejections = (
        Rejection((TensorSpec((3,)), None, _ON), "give a seed", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((3,)), TensorSpec((), "float64", (1.0,)), _ON), "ratio is 1.0",
                  attributes={"seed": 1}),
        Rejection((TensorSpec((3,)), TensorSpec((2,), "float64", (0.1, 0.2))),
                  "ratio has shape (2,) but must be one number"),
    )  # fmt: skip

    def infer(
        self, data: TensorSpec, *known: TensorSpec | None, seed: int | None
    ) -> tuple[TensorSpec, TensorSpec]:
        ratio, training = (*known, None, None)[:2]
        for name, each in (("ratio", ratio), ("training_mode", training)):
            if each is not None and each.size != 1:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {each.shape} but must be one number"
                )
        if ratio is not None and ratio.value is not None and not 0 <= ratio.value[0] < 1:
            raise Invalid(
                "SHAPE_MISMATCH", f"ratio is {ratio.value[0]} but must be 0 or more and less than 1"
            )
        if training is not None and training.value == (True,) and seed is None:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                "training_mode is true but without a seed the result could not be had again; "
                "give a seed",
                attribute="seed",
            )
        return data, TensorSpec(data.shape, "bool")

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        data, *known = specs
        dropped = self._ratio(tuple(None if each is None else each.value for each in known))
        unseen = data.size if len(outs) == 1 else 0  # a mask that nobody asked for
        if dropped is None or attributes["seed"] is None:
            return Scratch(unseen, 0)
        # a mask is drawn as float64s
        return Scratch(8 * data.size + unseen, max(9 * data.size - data.nbytes, data.nbytes))

    def forward(
        self, xp: Namespace, data: Array, *known: Any, seed: int | None
    ) -> tuple[Array, Array]:
        dropped = self._ratio(known)
        if dropped is None or seed is None:
            return data, xp.full(data.shape, 1, "bool")
        return xp.dropout(data, dropped, seed), xp.dropout_mask(data.shape, dropped, seed)

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, data: Array, *known: Any, seed: int | None
    ) -> tuple[Any, ...]:
        dropped, none = self._ratio(known), (None,) * len(known)
        if dropped is None or seed is None:
            return grad[0], *none
        return lambda: xp.dropout(grad[0], dropped, seed), *none

    def _ratio(self, known: tuple[Any, ...]) -> float | None:
        """The share that is dropped, in training mode."""
        ratio, training = (*known, None, None)[:2]
        if not training or not training[0]:
            return None
        return 0.5 if ratio is None else float(ratio[0])
