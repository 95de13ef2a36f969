"""Recurrent networks: a state that each time step changes. Gradients run back through time.

The products with the inputs of all steps are one product, and so are those that the gradients of
the weights need; only what depends on the state is computed step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple

from gradwire_server.errors import Invalid, nearest
from gradwire_server.gates.activations import sigmoid, softplus
from gradwire_server.gates.base import (
    STEP,
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
from gradwire_server.specs import ITEM_SIZES, TensorSpec


class _Curve(NamedTuple):
    """An activation with its slope, and its numbers alpha and beta where it has them."""

    value: Callable[[Namespace, Array, float, float], Array]
    slope: Callable[[Namespace, Array, Array, float, float], Array]
    alpha: float | None = None
    beta: float | None = None


def _step_at(xp: Namespace, x: Array, threshold: float, below: Any = 0.0) -> Array:
    return xp.where(xp.greater(x, threshold), xp.ones_like(x), below)


_CURVES = {
    "Relu": _Curve(
        lambda xp, x, *_: xp.maximum(x, xp.zeros_like(x)),
        lambda xp, x, *_: _step_at(xp, x, 0.0),
    ),
    "Tanh": _Curve(
        lambda xp, x, *_: xp.tanh(x),
        lambda xp, x, y, *_: xp.tanh_slope(x, y),
    ),
    "Sigmoid": _Curve(
        lambda xp, x, *_: sigmoid(xp, x),
        lambda xp, x, y, *_: xp.sigmoid_slope(x, y),
    ),
    "Affine": _Curve(
        lambda _xp, x, a, b: a * x + b,
        lambda xp, x, _y, a, *_: xp.full_like(x, a),
        1.0, 0.0,
    ),
    "LeakyRelu": _Curve(
        lambda xp, x, a, *_: xp.where(xp.greater(x, 0.0), x, a * x),
        lambda xp, x, _y, a, *_: _step_at(xp, x, 0.0, a),
        0.01,
    ),
    "ThresholdedRelu": _Curve(
        lambda xp, x, a, *_: xp.where(xp.greater(x, a), x, 0.0),
        lambda xp, x, _y, a, *_: _step_at(xp, x, a),
        1.0,
    ),
    "ScaledTanh": _Curve(
        lambda xp, x, a, b: a * xp.tanh(b * x),
        lambda xp, x, _y, a, b: a * b * xp.tanh_slope(b * x, xp.tanh(b * x)),
        1.0, 1.0,
    ),
    "HardSigmoid": _Curve(
        lambda xp, x, a, b: xp.minimum(
            xp.maximum(a * x + b, xp.zeros_like(x)), xp.ones_like(x)
        ),
        lambda xp, x, y, a, *_: xp.where(
            xp.logical_and(xp.greater(y, 0.0), xp.less(y, 1.0)), xp.full_like(x, a), 0.0
        ),
        0.2, 0.5,
    ),
    "Elu": _Curve(
        lambda xp, x, a, *_: xp.where(
            xp.greater(x, 0.0), x, a * xp.expm1(xp.minimum(x, xp.zeros_like(x)))
        ),
        lambda xp, x, _y, a, *_: xp.where(
            xp.greater(x, 0.0), xp.ones_like(x), a * xp.exp(xp.minimum(x, xp.zeros_like(x)))
        ),
        1.0,
    ),
    "Softsign": _Curve(
        lambda xp, x, *_: x / (1.0 + xp.abs(x)),
        lambda xp, x, *_: 1.0 / (1.0 + xp.abs(x)) ** 2.0,
    ),
    "Softplus": _Curve(
        lambda xp, x, *_: softplus(xp, x),
        lambda xp, x, *_: sigmoid(xp, x),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Activation:
    """A curve with its numbers, and the bound of its input."""

    curve: _Curve
    alpha: float
    beta: float
    bound: float | None

    def __call__(self, xp: Namespace, x: Array) -> Array:
        return self.curve.value(xp, self._bounded(xp, x), self.alpha, self.beta)

    def pull(self, xp: Namespace, grad: Array, x: Array, out: Array) -> Array:
        slope = self.curve.slope(xp, self._bounded(xp, x), out, self.alpha, self.beta)
        to_x = grad * slope
        if self.bound is None:
            return to_x
        return xp.where(xp.greater(xp.abs(x), self.bound), 0.0, to_x)

    def _bounded(self, xp: Namespace, x: Array) -> Array:
        if self.bound is None:
            return x
        most = xp.full_like(x, self.bound)
        return xp.minimum(xp.maximum(x, -most), most)


@dataclass(frozen=True)
class _Side:
    """One direction of a network: its weights as matrices, and the order of its steps."""

    w: Array  # [gates * hidden, input]
    r: Array  # [gates * hidden, hidden]
    wb: Array | None  # [gates * hidden]
    rb: Array | None
    peepholes: Array | None  # [3 * hidden]
    states: tuple[Array, ...]  # [batch, hidden] each
    order: range
    functions: tuple[_Activation, ...]


@dataclass
class _Step:
    """One step as it went: what its gradient needs."""

    states: tuple[Array, ...]  # before it
    parts: tuple[Array, ...] = ()
    new: tuple[Array, ...] = ()  # before the end of short sequences is looked at


@dataclass
class _Pulled:
    """What the gradients of the weights are made of, by time step."""

    to_inputs: dict[int, Array] = field(default_factory=dict)  # of the products with the inputs
    #: Gradients of the products with the state, and those states, for blocks of R's rows.
    blocks: dict[int, tuple[tuple[Array, Array], ...]] = field(default_factory=dict)
    to_peepholes: Array | None = None


_INPUTS = (
    Input("X"),
    Input("W"),
    Input("R"),
    Input("B", optional=True),
    Input("sequence_lens", ("int32",), "T1", optional=True),
    Input("initial_h", optional=True),
)
_ATTRIBUTES = (
    Attribute("activation_alpha", "floats", doc="Of the activations that have one, in order."),
    Attribute("activation_beta", "floats", doc="Of the activations that have one, in order."),
    Attribute("activations", "strings", doc="Names of the activations, of each direction."),
    Attribute("clip", "float", doc="Bound of the activations' inputs; none by default."),
    Attribute("direction", "string", "forward", choices=("forward", "reverse", "bidirectional"),
              doc="Order of the steps."),
    Attribute("hidden_size", "int", doc="R's last size, which it must equal."),
    Attribute("layout", "int", 0, choices=(0, 1), doc="1 has the batch axis first."),
)  # fmt: skip


def _sample(gates: int, *shape: int, **attributes: Any) -> Sample:
    """(steps, batch, inputs, hidden): every input but lengths and peepholes."""
    steps, batch, inputs, hidden = shape
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    x, h = (steps, batch, inputs), (sides, batch, hidden)
    if attributes.get("layout"):
        x, h = (batch, steps, inputs), (batch, sides, hidden)
    lengths = attributes.pop("lengths", None)
    given = (
        TensorSpec(x),
        TensorSpec((sides, gates * hidden, inputs)),
        TensorSpec((sides, gates * hidden, hidden)),
        TensorSpec((sides, 2 * gates * hidden)),
        None if lengths is None else TensorSpec((batch,), "int32", lengths),
        TensorSpec(h),
    )
    return Sample(given, attributes)


class _Recurrent(Gate):
    """What recurrent networks share; each says what one step does, and what it does to gradients.

    `step` gets the products with the step's input, and fills in the parts and the new states.
    `pull` gets the gradients of the new states and yields those of the states before; it leaves
    what the weights need in `pulled`.
    """

    #: Of all that could be held at once: the shares that are, forward and back.
    shares_held: ClassVar[tuple[float, float]]

    gate_count: ClassVar[int]
    state_count: ClassVar[int] = 1
    defaults: ClassVar[tuple[str, ...]]
    #: States of every step that a backward pass holds at once.
    held_parts: ClassVar[int]

    inputs: ClassVar[tuple[Input, ...]] = _INPUTS
    attributes: ClassVar[tuple[Attribute, ...]] = _ATTRIBUTES

    def step(self, xp: Namespace, side: _Side, step: _Step, inputs: Array, **how: Any) -> None:
        raise NotImplementedError

    def pull(
        self,
        xp: Namespace,
        side: _Side,
        step: _Step,
        time: int,
        grads: tuple[Array, ...],
        pulled: _Pulled,
        **how: Any,
    ) -> tuple[Array, ...]:
        raise NotImplementedError

    def infer(self, x: TensorSpec, w: TensorSpec, r: TensorSpec, *more: Any, **how: Any) -> Any:
        for name, spec in (("X", x), ("W", w), ("R", r)):
            if spec.rank != 3:
                raise Invalid("SHAPE_MISMATCH", f"{name} has rank {spec.rank} but must have rank 3")
        sides = 2 if how["direction"] == "bidirectional" else 1
        steps, batch = x.shape[:2] if not how["layout"] else (x.shape[1], x.shape[0])
        hidden, rows = r.shape[2], self.gate_count * r.shape[2]
        if how["hidden_size"] not in (None, hidden):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"hidden_size is {how['hidden_size']} but R has shape {r.shape}",
                attribute="hidden_size",
            )
        if not steps:
            raise Invalid("SHAPE_MISMATCH", f"X of shape {x.shape} has no time steps")
        state = (batch, sides, hidden) if how["layout"] else (sides, batch, hidden)
        wanted = {
            "W": (sides, rows, x.shape[2]),
            "R": (sides, rows, hidden),
            "B": (sides, 2 * rows),
            "sequence_lens": (batch,),
            "initial_h": state,
            "initial_c": state,
            "P": (sides, 3 * hidden),
        }
        for declared, spec in zip(self.inputs[1:], (w, r, *more), strict=False):
            if spec is not None and spec.shape != wanted[declared.name]:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{declared.name} has shape {spec.shape} but must be {wanted[declared.name]}",
                )
        self._functions(sides, how)
        whole = (batch, steps, sides, hidden) if how["layout"] else (steps, sides, batch, hidden)
        last = TensorSpec(state, x.dtype)
        return TensorSpec(whole, x.dtype), *(last for _ in range(self.state_count))

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *specs: Any, **how: Any
    ) -> Scratch:
        held = self._held(x, *specs, **how) * ITEM_SIZES[x.dtype]
        forward, back = self.shares_held
        if how["direction"] == "bidirectional":  # the first direction's stay
            forward *= 1.8
        return Scratch(int(forward * held), int(back * held))

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        w: TensorSpec,
        r: TensorSpec,
        *_: Any,
        **how: Any,
    ) -> int:
        sides, rows = r.shape[:2]
        steps, batch = x.shape[:2] if not how["layout"] else (x.shape[1], x.shape[0])
        of_step = batch * (w.size + r.size + 20 * sides * rows) + 30 * sides * STEP
        found: int = x.size + steps * of_step
        return found

    def _held(self, x: TensorSpec, w: TensorSpec, r: TensorSpec, *_: Any, **how: Any) -> int:
        parts: int = self.held_parts * x.shape[0] * x.shape[1] * r.shape[2]
        return parts

    def forward(self, xp: Namespace, *inputs: Array | None, **how: Any) -> tuple[Array, ...]:
        x, lengths, sides = self._prepare(xp, inputs, how)
        outs, lasts = [], []
        for side in sides:
            steps, states = self._run(xp, side, x, lengths, how)
            shown = [_shown(xp, steps[time].new[0], lengths, time) for time in sorted(steps)]
            outs.append(_stacked(xp, shown, 0))
            lasts.append(states)
        whole = _stacked(xp, outs, 1)
        ends = (_stacked(xp, each, 0) for each in zip(*lasts, strict=True))
        if how["layout"]:
            whole = xp.permute_dims(whole, (2, 0, 1, 3))
            ends = (xp.permute_dims(each, (1, 0, 2)) for each in ends)
        return whole, *ends

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, *inputs: Array | None, **how: Any
    ) -> tuple[Any, ...]:
        x, lengths, sides = self._prepare(xp, inputs, how)
        to_whole, *to_ends = (*grad, None, None)[: 1 + self.state_count]
        if how["layout"]:
            to_whole = None if to_whole is None else xp.permute_dims(to_whole, (1, 2, 0, 3))
            to_ends = [
                None if each is None else xp.permute_dims(each, (1, 0, 2)) for each in to_ends
            ]

        @cache
        def pulled() -> list[dict[str, Array]]:
            found = []
            for number, side in enumerate(sides):
                shown = None if to_whole is None else _rows(xp, to_whole, 1)[number]
                ends = [None if each is None else _rows(xp, each, 0)[number] for each in to_ends]
                found.append(self._back(xp, side, x, lengths, shown, ends, how))
            return found

        def part(name: str) -> Callable[[], Array]:
            def pull() -> Array:
                parts = [each[name] for each in pulled()]
                if name != "X":
                    stacked = _stacked(xp, parts, 0)
                    turned = how["layout"] and name.startswith("initial")
                    return xp.permute_dims(stacked, (1, 0, 2)) if turned else stacked
                total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
                return xp.permute_dims(total, (1, 0, 2)) if how["layout"] else total

            return pull

        return tuple(
            None if each is None or declared.name == "sequence_lens" else part(declared.name)
            for declared, each in zip(self.inputs, inputs, strict=False)
        )

    def _functions(self, sides: int, how: dict[str, Any]) -> list[tuple[_Activation, ...]]:
        """The activations of each direction (ATTRIBUTE_INVALID)."""
        count = len(self.defaults)
        names = how["activations"]
        if names is None:
            names = self.defaults * sides
        if len(names) != count * sides and names != ("Tanh", "Tanh"):  # ONNX's own default of RNN
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"activations has {len(names)} names but must have {count * sides}",
                attribute="activations",
            )
        alphas, betas = (iter(how[f"activation_{each}"] or ()) for each in ("alpha", "beta"))
        if how["clip"] is not None and how["clip"] < 0:
            raise Invalid(
                "ATTRIBUTE_INVALID", f"clip is {how['clip']} but must be 0 or more",
                attribute="clip",
            )  # fmt: skip
        found = []
        for name in names[: count * sides]:
            if name not in _CURVES:
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"there is no activation {name!r}{nearest(name, _CURVES)}",
                    attribute="activations",
                )
            curve = _CURVES[name]
            alpha = 0.0 if curve.alpha is None else next(alphas, curve.alpha)
            beta = 0.0 if curve.beta is None else next(betas, curve.beta)
            found.append(_Activation(curve, alpha, beta, how["clip"]))
        return [tuple(found[side * count : (side + 1) * count]) for side in range(sides)]

    def _prepare(
        self, xp: Namespace, inputs: Sequence[Array | None], how: dict[str, Any]
    ) -> tuple[Array, Array | None, list[_Side]]:
        """X with time first; the lengths of its sequences, if given; and each direction."""
        x, w, r, b, lengths, h, c, p = self._named(inputs)
        if how["layout"]:
            x = xp.permute_dims(x, (1, 0, 2))
            h, c = (None if each is None else xp.permute_dims(each, (1, 0, 2)) for each in (h, c))
        steps, batch = x.shape[:2]
        count, rows, hidden = r.shape
        zeros = xp.full((batch, hidden), 0, str(x.dtype))
        functions = self._functions(count, how)
        orders = {
            "forward": (range(steps),),
            "reverse": (range(steps - 1, -1, -1),),
            "bidirectional": (range(steps), range(steps - 1, -1, -1)),
        }[how["direction"]]
        sides = []
        for number in range(count):
            own = [None if each is None else _rows(xp, each, 0)[number] for each in (w, r, b, p)]
            given = [None if each is None else _rows(xp, each, 0)[number] for each in (h, c)]
            states = tuple(zeros if each is None else each for each in given[: self.state_count])
            wb, rb = (None, None) if own[2] is None else xp.split(own[2], (rows, rows), 0)
            sides.append(
                _Side(own[0], own[1], wb, rb, own[3], states, orders[number], functions[number])
            )
        return x, lengths, sides

    def _named(self, inputs: Sequence[Array | None]) -> list[Any]:
        """X, W, R, B, lengths, h, c and peepholes; None where there are none."""
        return [*inputs, *(None for _ in range(8 - len(inputs)))]

    def _run(
        self, xp: Namespace, side: _Side, x: Array, lengths: Array | None, how: dict[str, Any]
    ) -> tuple[dict[int, _Step], tuple[Array, ...]]:
        """All steps of one direction, by time, and the states they end in."""
        steps, batch, size = x.shape
        products = xp.matmul(xp.reshape(x, (steps * batch, size)), xp.permute_dims(side.w, (1, 0)))
        if side.wb is not None:
            products = products + side.wb
        by_time = _rows(xp, xp.reshape(products, (steps, batch, side.w.shape[0])), 0)
        states, found = side.states, {}
        for time in side.order:
            xp.stop_if_asked()
            step = found[time] = _Step(states)
            self.step(xp, side, step, by_time[time], **how)
            states = step.new
            if lengths is not None:
                lasts = _lasts(xp, lengths, time)
                states = tuple(
                    xp.where(lasts, new, old)
                    for new, old in zip(step.new, step.states, strict=True)
                )
        return found, states

    def _back(
        self,
        xp: Namespace,
        side: _Side,
        x: Array,
        lengths: Array | None,
        to_shown: Array | None,
        to_ends: list[Array | None],
        how: dict[str, Any],
    ) -> dict[str, Array]:
        """The gradients of one direction, by the name of the input."""
        steps, _ = self._run(xp, side, x, lengths, how)
        zeros = xp.zeros_like(side.states[0])
        grads = tuple(zeros if each is None else each for each in to_ends)
        shown = None if to_shown is None else _rows(xp, to_shown, 0)
        pulled = _Pulled()
        for time in reversed(side.order):
            xp.stop_if_asked()
            to_new = (grads[0] if shown is None else grads[0] + shown[time], *grads[1:])
            kept: tuple[Array, ...] = ()
            if lengths is not None:
                lasts = _lasts(xp, lengths, time)
                kept = tuple(xp.where(lasts, 0.0, each) for each in grads)
                to_new = tuple(xp.where(lasts, each, 0.0) for each in to_new)
            grads = self.pull(xp, side, steps[time], time, to_new, pulled, **how)
            if kept:
                grads = tuple(map(xp.add, grads, kept))
        found = self._weights(xp, side, x, pulled)
        names = ("initial_h", "initial_c")
        found |= dict(zip(names, grads, strict=False))
        return found

    def _weights(self, xp: Namespace, side: _Side, x: Array, pulled: _Pulled) -> dict[str, Array]:
        times = range(x.shape[0])
        rows = x.shape[0] * x.shape[1]

        def flat(parts: list[Array]) -> Array:
            return xp.concat(parts, axis=0)

        to_products = flat([pulled.to_inputs[time] for time in times])
        to_x = xp.reshape(xp.matmul(to_products, side.w), x.shape)
        across = xp.permute_dims(to_products, (1, 0))
        blocks = [
            (flat([each[0] for each in block]), flat([each[1] for each in block]))
            for block in zip(*(pulled.blocks[time] for time in times), strict=True)
        ]
        to_r = [xp.matmul(xp.permute_dims(grad, (1, 0)), state) for grad, state in blocks]
        found = {
            "X": to_x,
            "W": xp.matmul(across, xp.reshape(x, (rows, x.shape[2]))),
            "R": to_r[0] if len(to_r) == 1 else xp.concat(to_r, axis=0),
        }
        if side.wb is not None:
            to_rb = [xp.sum(grad, axis=(0,)) for grad, _ in blocks]
            found["B"] = xp.concat([xp.sum(to_products, axis=(0,)), *to_rb], axis=0)
        if pulled.to_peepholes is not None:
            found["P"] = pulled.to_peepholes
        return found


def _rows(xp: Namespace, x: Array, axis: int) -> list[Array]:
    """The slices along an axis, without it."""
    return [xp.squeeze(each, axis=(axis,)) for each in xp.split(x, (1,) * x.shape[axis], axis)]


def _stacked(xp: Namespace, rows: Sequence[Array], axis: int) -> Array:
    """The inverse of `_rows`."""
    lying = [xp.expand_dims(each, axis=(axis,)) for each in rows]
    return xp.concat(lying, axis=axis) if len(lying) > 1 else lying[0]


def _lasts(xp: Namespace, lengths: Array, time: int) -> Array:
    """Which sequences have this time step."""
    return xp.expand_dims(xp.greater(lengths, time), axis=(1,))


def _shown(xp: Namespace, state: Array, lengths: Array | None, time: int) -> Array:
    """A state as an output: 0 behind the end of a sequence."""
    return state if lengths is None else xp.where(_lasts(xp, lengths, time), state, 0.0)


def _parts(xp: Namespace, x: Array, hidden: int) -> list[Array]:
    """The gates' parts of the last axis."""
    found = xp.split(x, (hidden,) * (x.shape[-1] // hidden), len(x.shape) - 1)
    return list(found)


def _turned(xp: Namespace, matrix: Array) -> Array:
    return xp.permute_dims(matrix, (1, 0))


def _plus(x: Array, more: Array | None) -> Array:
    return x if more is None else x + more


def _rejections(gates: int) -> tuple[Rejection, ...]:
    good = tuple(TensorSpec(shape) for shape in ((3, 2, 4), (1, gates * 5, 4), (1, gates * 5, 5)))
    x, w, r = good
    bad_w = TensorSpec((1, gates * 5, 3))
    return (
        Rejection((TensorSpec((3, 2)), w, r), "X has rank 2 but must have rank 3"),
        Rejection((x, bad_w, r), f"W has shape {bad_w.shape} but must be {w.shape}"),
        Rejection((x, w, r), f"W has shape {w.shape} but must be (2, ", attributes={
            "direction": "bidirectional"}),
        Rejection((*good, TensorSpec((1, 5))), f"B has shape (1, 5) but must be (1, {gates * 10})"),
        Rejection((TensorSpec((0, 2, 4)), w, r), "X of shape (0, 2, 4) has no time steps"),
        Rejection(good, "hidden_size is 4 but R has shape", "ATTRIBUTE_INVALID",
                  {"hidden_size": 4}),
        Rejection(good, "activations has 5 names", "ATTRIBUTE_INVALID",
                  {"activations": ("Tanh",) * 5}),
        Rejection(good, "there is no activation 'Tan'", "ATTRIBUTE_INVALID",
                  {"activations": ("Tan",) * (1 if gates == 1 else gates - 1)}),
        Rejection(good, "clip is -1.0", "ATTRIBUTE_INVALID", {"clip": -1.0}),
    )  # fmt: skip


class RNN(_Recurrent):
    """Simple recurrent network.

    Formula:   H_t = f(X_t @ W^T + H_(t-1) @ R^T + Wb + Rb), B = [Wb, Rb], f = Tanh by default;
               Y = all H_t, 0 behind the end of a sequence;  Y_h = the last of each sequence
    Gradient:  back through time: g_t = grad_t + G_(t+1) @ R, G_t = g_t * f'(..);  to X_t = G_t @
               W,  to W = sum of G_t^T @ X_t,  to R = sum of G_t^T @ H_(t-1),  to both biases = sum
               of G_t
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    X [steps, batch, inputs], W [directions, hidden, inputs], R [directions, hidden,
               hidden], B [directions, 2 * hidden], initial_h [directions, batch, hidden];
               Y [steps, directions, batch, hidden], Y_h as initial_h. With layout 1 batch is first.
    """

    operator = "RNN"
    shares_held = (0.22, 0.65)
    held_parts = 10
    gate_count = 1
    defaults = ("Tanh",)
    outputs = (1, 2)
    examples = (
        Example(([[[1.0]], [[2.0]]], [[[2.0]]], [[[3.0]]]), ([[[[2.0]]], [[[10.0]]]], [[[10.0]]]),
                gradients=([[[8.0]], [[2.0]]], [[[6.0]]], [[[2.0]]]),
                attributes={"activations": ("Affine",)}),
    )  # fmt: skip
    samples = (
        _sample(1, 3, 2, 4, 3),
        _sample(1, 3, 2, 2, 3, direction="bidirectional", activations=("Softsign", "Sigmoid")),
        _sample(1, 4, 3, 2, 2, direction="reverse", lengths=(4, 2, 1)),
        _sample(1, 3, 2, 4, 3, layout=1, clip=0.5, activations=("Softplus",)),
        _sample(1, 2, 2, 1, 2, activations=("ScaledTanh",), activation_alpha=(1.5,),
                activation_beta=(0.5,)),
        _sample(1, 2, 2, 1, 2, activations=("Elu",), activation_alpha=(0.7,)),
        _sample(1, 2, 2, 1, 2, activations=("LeakyRelu",)),
        _sample(1, 2, 2, 1, 2, activations=("HardSigmoid",)),
        _sample(1, 2, 2, 1, 2, activations=("ThresholdedRelu",), activation_alpha=(0.3,)),
        _sample(1, 2, 0, 1, 2, activations=("Relu",)),
    )  # fmt: skip
    rejections = _rejections(1)

    def step(self, xp: Namespace, side: _Side, step: _Step, inputs: Array, **how: Any) -> None:
        (state,) = step.states
        total = _plus(inputs + xp.matmul(state, _turned(xp, side.r)), side.rb)
        step.parts, step.new = (total,), (side.functions[0](xp, total),)

    def pull(
        self,
        xp: Namespace,
        side: _Side,
        step: _Step,
        time: int,
        grads: tuple[Array, ...],
        pulled: _Pulled,
        **how: Any,
    ) -> tuple[Array, ...]:
        to_total = side.functions[0].pull(xp, grads[0], *step.parts, *step.new)
        pulled.to_inputs[time] = to_total
        pulled.blocks[time] = ((to_total, step.states[0]),)
        return (xp.matmul(to_total, side.r),)


class GRU(_Recurrent):
    """Gated recurrent unit.

    Formula:   z = f(X_t @ Wz^T + H @ Rz^T + Wbz + Rbz), r = f(X_t @ Wr^T + H @ Rr^T + Wbr + Rbr),
               n = g(X_t @ Wh^T + (r * H) @ Rh^T + Wbh + Rbh), or with linear_before_reset
               g(X_t @ Wh^T + Wbh + r * (H @ Rh^T + Rbh));  H_t = (1 - z) * n + z * H, H = H_(t-1);
               f = Sigmoid, g = Tanh by default;  Y and Y_h as RNN's
    Gradient:  back through time: from G to H_t, to n = G * (1 - z), to z = G * (H - n), to r by
               the state's product, and to H = G * z + what z, r and n pass on
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    as RNN's, with 3 * hidden rows [z, r, h] in W and R, and B [directions, 6 * hidden].
    """

    operator = "GRU"
    shares_held = (0.45, 1.0)
    held_parts = 24
    gate_count = 3
    defaults = ("Sigmoid", "Tanh")
    outputs = (1, 2)
    attributes = (
        *_ATTRIBUTES,
        Attribute("linear_before_reset", "int", 0, choices=(0, 1),
                  doc="1 multiplies the state by Rh before r resets it."),
    )  # fmt: skip
    examples = (
        Example(([[[2.0]]], [[[0.0], [0.0], [3.0]]], [[[0.0], [0.0], [1.0]]], None, None,
                 [[[4.0]]]),
                ([[[[6.0]]]], [[[6.0]]]),
                gradients=([[[1.5]]], [[[-2.0], [1.0], [1.0]]], [[[-4.0], [2.0], [1.0]]], None,
                           None, [[[0.75]]]),
                attributes={"activations": ("Sigmoid", "Affine")}),
    )  # fmt: skip
    samples = (
        _sample(3, 3, 2, 4, 3),
        _sample(3, 3, 2, 2, 3, linear_before_reset=1, direction="bidirectional"),
        _sample(3, 4, 3, 2, 2, direction="reverse", lengths=(4, 2, 1), linear_before_reset=1),
        _sample(3, 3, 2, 4, 3, layout=1, clip=0.5),
        _sample(3, 2, 2, 1, 2, activations=("Softsign", "Affine"), activation_alpha=(0.5,),
                activation_beta=(0.1,)),
    )  # fmt: skip
    rejections = _rejections(3)

    def step(self, xp: Namespace, side: _Side, step: _Step, inputs: Array, **how: Any) -> None:
        (state,) = step.states
        size = state.shape[1]
        first, last = xp.split(side.r, (2 * size, size), 0)
        bias, last_bias = (None, None)
        if side.rb is not None:
            bias, last_bias = xp.split(side.rb, (2 * size, size), 0)
        to_gates, to_new = xp.split(inputs, (2 * size, size), 1)
        gates = _plus(to_gates + xp.matmul(state, _turned(xp, first)), bias)
        gate_inputs = _parts(xp, gates, size)
        update, reset = (side.functions[0](xp, each) for each in gate_inputs)
        if how["linear_before_reset"]:
            product = _plus(xp.matmul(state, _turned(xp, last)), last_bias)
            total = to_new + reset * product
        else:
            product = xp.matmul(reset * state, _turned(xp, last))
            total = _plus(to_new + product, last_bias)
        fresh = side.functions[1](xp, total)
        step.parts = (*gate_inputs, update, reset, product, total, fresh)
        step.new = (fresh + update * (state - fresh),)

    def pull(
        self,
        xp: Namespace,
        side: _Side,
        step: _Step,
        time: int,
        grads: tuple[Array, ...],
        pulled: _Pulled,
        **how: Any,
    ) -> tuple[Array, ...]:
        ((state,), (grad,)) = step.states, grads
        update_input, reset_input, update, reset, product, total, fresh = step.parts
        size = state.shape[1]
        first, last = xp.split(side.r, (2 * size, size), 0)
        to_total = side.functions[1].pull(xp, grad * (1.0 - update), total, fresh)
        to_state = grad * update
        if how["linear_before_reset"]:
            to_product, seen = to_total * reset, state
            to_reset = to_total * product
            to_state = to_state + xp.matmul(to_product, last)
        else:
            to_product, seen = to_total, reset * state
            to_seen = xp.matmul(to_total, last)
            to_reset = to_seen * state
            to_state = to_state + to_seen * reset
        to_update = grad * (state - fresh)
        curve = side.functions[0]
        to_gates = xp.concat(
            [
                curve.pull(xp, to_update, update_input, update),
                curve.pull(xp, to_reset, reset_input, reset),
            ],
            axis=1,
        )
        pulled.to_inputs[time] = xp.concat([to_gates, to_total], axis=1)
        pulled.blocks[time] = ((to_gates, state), (to_product, seen))
        return (to_state + xp.matmul(to_gates, first),)


class LSTM(_Recurrent):
    """Long short-term memory.

    Formula:   with A = X_t @ W^T + H @ R^T + Wb + Rb in parts i, o, f, c:  i = f(Ai + Pi * C),
               f = f(Af + Pf * C) or 1 - i with input_forget, c = g(Ac);  C_t = f * C + i * c;
               o = f(Ao + Po * C_t);  H_t = o * h(C_t); H = H_(t-1), C = C_(t-1); f = Sigmoid,
               g = h = Tanh by default;  Y and Y_h as RNN's, Y_c = the last C_t
    Gradient:  back through time: to o = G * h(C_t), to C_t = what the next step passes + G * o *
               h'(C_t) + to Ao * Po, to i = to C_t * c, to f = to C_t * C, to c = to C_t * i, to C =
               to C_t * f + to Ai * Pi + to Af * Pf, to H = to A @ R
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    as RNN's, with 4 * hidden rows [i, o, f, c] in W and R, B [directions, 8 * hidden],
               initial_c as initial_h, P [directions, 3 * hidden] as [i, o, f]; Y_c as Y_h.
    """

    operator = "LSTM"
    shares_held = (0.5, 0.8)
    held_parts = 32
    gate_count = 4
    state_count = 2
    defaults = ("Sigmoid", "Tanh", "Tanh")
    inputs = (*_INPUTS, Input("initial_c", optional=True), Input("P", optional=True))
    attributes = (
        *_ATTRIBUTES,
        Attribute("input_forget", "int", 0, choices=(0, 1), doc="1 forgets what the input adds."),
    )
    outputs = (1, 3)
    examples = (
        Example(([[[2.0]]], [[[0.0], [0.0], [0.0], [3.0]]], [[[0.0], [0.0], [0.0], [0.0]]], None,
                 None, None, [[[4.0]]]),
                ([[[[2.5]]]], [[[2.5]]], [[[5.0]]]),
                gradients=([[[0.75]]], [[[1.5], [2.5], [1.0], [0.5]]],
                           [[[0.0], [0.0], [0.0], [0.0]]], None, None, None, [[[0.25]]]),
                attributes={"activations": ("Sigmoid", "Affine", "Affine")}),
    )  # fmt: skip
    samples = tuple(
        Sample((*each.inputs, each.inputs[5], TensorSpec(peepholes)), each.attributes)
        for peepholes, each in (
            ((1, 9), _sample(4, 3, 2, 4, 3)),
            ((2, 9), _sample(4, 3, 2, 2, 3, direction="bidirectional", input_forget=1)),
            ((1, 6), _sample(4, 4, 3, 2, 2, direction="reverse", lengths=(4, 2, 1))),
            ((1, 9), _sample(4, 3, 2, 4, 3, layout=1, clip=0.5)),
            ((1, 6), _sample(4, 2, 2, 1, 2, activations=("HardSigmoid", "Softsign", "Elu"))),
        )
    )  # fmt: skip
    rejections = (
        *_rejections(4),
        Rejection((TensorSpec((3, 2, 4)), TensorSpec((1, 20, 4)), TensorSpec((1, 20, 5)), None,
                   None, None, None, TensorSpec((1, 5))),
                  "P has shape (1, 5) but must be (1, 15)"),
    )  # fmt: skip

    def step(self, xp: Namespace, side: _Side, step: _Step, inputs: Array, **how: Any) -> None:
        state, cell = step.states
        gate, fresh_curve, shown_curve = side.functions
        total = _plus(inputs + xp.matmul(state, _turned(xp, side.r)), side.rb)
        to_in, to_out, to_forget, to_fresh = _parts(xp, total, state.shape[1])
        if side.peepholes is not None:
            at_in, at_out, at_forget = _parts(xp, side.peepholes, state.shape[1])
            to_in, to_forget = to_in + at_in * cell, to_forget + at_forget * cell
        kept_in, fresh = gate(xp, to_in), fresh_curve(xp, to_fresh)
        kept = 1.0 - kept_in if how["input_forget"] else gate(xp, to_forget)
        new = kept * cell + kept_in * fresh
        if side.peepholes is not None:
            to_out = to_out + at_out * new
        shown, out = shown_curve(xp, new), gate(xp, to_out)
        step.parts = (to_in, to_out, to_forget, to_fresh, kept_in, out, kept, fresh, shown)
        step.new = (out * shown, new)

    def pull(
        self,
        xp: Namespace,
        side: _Side,
        step: _Step,
        time: int,
        grads: tuple[Array, ...],
        pulled: _Pulled,
        **how: Any,
    ) -> tuple[Array, ...]:
        (state, cell), (_, new) = step.states, step.new
        (grad, to_new), size = grads, state.shape[1]
        at_in, at_out, at_forget, at_fresh, kept_in, out, kept, fresh, shown = step.parts
        gate, fresh_curve, shown_curve = side.functions
        to_out = gate.pull(xp, grad * shown, at_out, out)
        to_new = to_new + shown_curve.pull(xp, grad * out, new, shown)
        if side.peepholes is not None:
            by_in, by_out, by_forget = _parts(xp, side.peepholes, size)
            to_new = to_new + to_out * by_out
        to_kept = to_new * cell
        if how["input_forget"]:
            to_in = gate.pull(xp, to_new * fresh - to_kept, at_in, kept_in)
            to_forget = xp.zeros_like(to_in)
        else:
            to_in = gate.pull(xp, to_new * fresh, at_in, kept_in)
            to_forget = gate.pull(xp, to_kept, at_forget, kept)
        to_fresh = fresh_curve.pull(xp, to_new * kept_in, at_fresh, fresh)
        to_cell = to_new * kept
        if side.peepholes is not None:
            to_cell = to_cell + to_in * by_in + to_forget * by_forget
            products = (to_in * cell, to_out * new, to_forget * cell)
            own = xp.concat([xp.sum(each, axis=(0,)) for each in products], axis=0)
            before = pulled.to_peepholes
            pulled.to_peepholes = own if before is None else before + own
        to_total = xp.concat([to_in, to_out, to_forget, to_fresh], axis=1)
        pulled.to_inputs[time] = to_total
        pulled.blocks[time] = ((to_total, state),)
        return xp.matmul(to_total, side.r), to_cell
