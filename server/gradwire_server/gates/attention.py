"""Attention, of all tokens or by a state, and the rotation of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, prod, sqrt
from typing import Any

from gradwire_server.errors import Invalid
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
from gradwire_server.gates.common import integers
from gradwire_server.gates.losses import pull_softmax
from gradwire_server.specs import (
    FLOATS,
    ITEM_SIZES,
    Shape,
    TensorSpec,
    broadcast_shapes,
    computed_in,
)

#: Tensors of scores, and states of each token, that a backward pass holds at once.
_SCORES_HELD, _STATES_HELD = 8, 3


@dataclass(frozen=True)
class _Heads:
    """Sizes of an attention, and whether its tensors have heads packed into their last axis."""

    batch: int
    queries: int
    keys: int  # past ones included
    past: int
    heads: int
    groups: int  # of heads that share keys and values
    size: int
    value_size: int
    packed: bool

    @staticmethod
    def of(q: Any, k: Any, v: Any, past_key: Any, attributes: dict[str, Any]) -> _Heads:
        # a past of another rank is refused once the sizes that it must have are known
        past = 0 if past_key is None or len(past_key.shape) != 4 else past_key.shape[2]
        if len(q.shape) == 3:
            heads, groups = attributes["q_num_heads"], attributes["kv_num_heads"]
            size, value_size = q.shape[2] // heads, v.shape[2] // groups
            keys = k.shape[1]
        else:
            heads, groups = q.shape[1], k.shape[1]
            size, value_size = q.shape[3], v.shape[3]
            keys = k.shape[2]
        queries = q.shape[-2]
        packed = len(q.shape) == 3
        return _Heads(
            q.shape[0], queries, keys + past, past, heads, groups, size, value_size, packed
        )

    @property
    def scores(self) -> Shape:
        return self.batch, self.heads, self.queries, self.keys

    @property
    def grouped_rows(self) -> int:
        """Queries of all heads that share keys."""
        return (self.heads // max(self.groups, 1)) * self.queries


class Attention(Gate):
    """Each query's mean of the values, weighted by how well their keys fit it.

    Formula:   S = scale * Q @ K^T, then softcap * tanh(S / softcap) if softcap;  L = S + attn_mask,
               or minus infinity where not allowed;  P = Softmax(L), 0 where nothing is allowed;
               Y = P @ V
    Gradient:  to V = P^T @ grad;  with D = grad @ V^T, to L = P * (D - sum of D * P) = to
               attn_mask;  to S = to L, times 1 - tanh^2 with softcap;  to Q = scale * to S @ K;  to
               K = scale * (to S)^T @ Q
    Shapes:    Q [N, heads, queries, size], K and V [N, groups, keys, size], groups dividing heads;
               or all of rank 3 with the heads in the last axis, and q_num_heads and kv_num_heads.
               past_key and past_value [N, groups, past, size] come before K and V; both together
               are present_key and present_value. attn_mask broadcasts to [N, heads, queries,
               keys]; keys behind its last axis are not allowed. Query i is at position i + past,
               or with nonpad_kv_seqlen [N], which keys are less than, at i + nonpad_kv_seqlen -
               queries; is_causal allows keys up to it, the windows those around it.
    """

    operator = "Attention"
    inputs = (
        Input("Q"),
        Input("K"),
        Input("V", group="T2"),
        Input("attn_mask", (*FLOATS, "bool"), "U", optional=True),
        Input("past_key", optional=True),
        Input("past_value", group="T2", optional=True),
        Input("nonpad_kv_seqlen", ("int64",), "nonpad_kv_seqlen", optional=True),
    )
    attributes = (
        Attribute("is_causal", "int", 0, choices=(0, 1), doc="1 allows no key behind a query."),
        Attribute("kv_num_heads", "int", doc="Heads of K and V, where they are of rank 3."),
        Attribute("left_window_size", "int", -1, doc="Keys allowed before a query; -1: all."),
        Attribute("q_num_heads", "int", doc="Heads of Q, where it is of rank 3."),
        Attribute("qk_matmul_output_mode", "int", 0, choices=(0, 1, 2, 3),
                  doc="The fourth output is 0: scale * Q @ K^T; 1: S; 2: L; 3: P."),
        Attribute("right_window_size", "int", -1, doc="Keys allowed behind a query; -1: all."),
        Attribute("scale", "float", doc="Scales the products; 1 / sqrt(size) by default."),
        Attribute("softcap", "float", 0.0, doc="Bound of the scores; 0 is none."),
        Attribute("softmax_precision", "int", choices=(1, 10, 11, 16),
                  doc="ONNX's number of a data type: P is computed in it if it is wider."),
    )  # fmt: skip
    outputs = (1, 4)
    output_dtypes = ("input:0", "input:0", "input:2", "input:0")
    mixed_groups = ("T", "T2")
    examples = (
        Example(([[[[0.0], [2.0]]]], [[[[1.0], [1.0]]]], [[[[1.0], [3.0]]]]),
                [[[[2.0], [2.0]]]],
                gradients=([[[[0.0], [0.0]]]], [[[[-1.0], [1.0]]]], [[[[1.0], [1.0]]]])),
        Example(([[[[0.0], [2.0]]]], [[[[1.0], [1.0]]]], [[[[1.0], [3.0]]]],
                 [[False, True], [False, False]]),
                [[[[3.0], [0.0]]]],
                gradients=([[[[0.0], [0.0]]]], [[[[0.0], [0.0]]]], [[[[0.0], [1.0]]]], None)),
    )  # fmt: skip
    samples = tuple(
        Sample(
            tuple(
                each if each is None or isinstance(each, TensorSpec) else TensorSpec(each)
                for each in inputs
            ),
            attributes,
        )
        for *inputs, attributes in (
            ((2, 2, 3, 2), (2, 2, 4, 2), (2, 2, 4, 3), {}),
            ((1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2), {"is_causal": 1, "scale": 0.5}),
            ((2, 3, 8), (2, 4, 4), (2, 4, 6), (3, 4),
             {"q_num_heads": 4, "kv_num_heads": 2, "softcap": 1.5}),
            ((1, 2, 2, 2), (1, 1, 3, 2), (1, 1, 3, 1), (1, 2, 2, 3), (1, 1, 2, 2), (1, 1, 2, 1),
             {"is_causal": 1}),
            ((2, 1, 2, 2), (2, 1, 4, 2), (2, 1, 4, 2), None, None, None,
             TensorSpec((2,), "int64", (3, 2)), {"is_causal": 1}),
            ((1, 1, 4, 2), (1, 1, 4, 2), (1, 1, 4, 2), (4, 4),
             {"left_window_size": 1, "right_window_size": 1, "softmax_precision": 1}),
            ((1, 1, 2, 2), (1, 1, 3, 2), (1, 1, 3, 2), (1, 1, 1, 2), {"softcap": 2.0}),
            ((1, 2, 2, 2), (1, 2, 3, 2), (1, 2, 3, 2), (2, 3), {"qk_matmul_output_mode": 1}),
            ((1, 1, 2, 2), (1, 1, 3, 2), (1, 1, 3, 2), (2, 3), {"qk_matmul_output_mode": 2}),
            ((1, 1, 2, 2), (1, 1, 3, 2), (1, 1, 3, 2), None, {"qk_matmul_output_mode": 3}),
            ((0, 1, 2, 2), (0, 1, 3, 2), (0, 1, 3, 2), {}),
        )
    )  # fmt: skip
    rejections = tuple(
        Rejection(tuple(None if each is None else TensorSpec(*each) for each in inputs), message,
                  reason, attributes)
        for message, reason, attributes, *inputs in (
            ("Q has rank 2 but must have rank 3 or 4", "SHAPE_MISMATCH", {},
             ((2, 3),), ((2, 3),), ((2, 3),)),
            ("Q has rank 4 but K has rank 3", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 2, 3),), ((1, 1, 2, 3),)),
            ("give q_num_heads and kv_num_heads", "ATTRIBUTE_INVALID", {},
             ((1, 2, 3),), ((1, 2, 3),), ((1, 2, 3),)),
            ("q_num_heads is for Q of rank 3", "ATTRIBUTE_INVALID", {"q_num_heads": 1},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),)),
            ("4 numbers of Q are not divisible into 3 heads", "SHAPE_MISMATCH",
             {"q_num_heads": 3, "kv_num_heads": 1}, ((1, 2, 4),), ((1, 2, 4),), ((1, 2, 4),)),
            ("q_num_heads is 0", "ATTRIBUTE_INVALID", {"q_num_heads": 0, "kv_num_heads": 1},
             ((1, 2, 4),), ((1, 2, 4),), ((1, 2, 4),)),
            ("3 heads of Q do not share 2 of K", "SHAPE_MISMATCH", {},
             ((1, 3, 2, 3),), ((1, 2, 2, 3),), ((1, 2, 2, 3),)),
            ("K has shape (1, 1, 2, 4) but Q and V need (1, 1, 2, 3)", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 4),), ((1, 1, 2, 3),)),
            ("past_key has shape (1, 1, 1, 4) but must be (1, 1, 1, 3)", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), None, ((1, 1, 1, 4),),
             ((1, 1, 1, 3),)),
            ("give past_key and past_value, or neither", "INPUT_COUNT_INVALID", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), None, ((1, 1, 1, 3),)),
            ("attn_mask of shape (3, 2) does not broadcast to (1, 1, 2, 2)", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((3, 2),)),
            ("attn_mask of shape (2, 3) has more than 2 keys", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((2, 3),)),
            ("attn_mask is float32 but Q is float64", "DATA_TYPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((2, 2), "float32")),
            ("nonpad_kv_seqlen has shape (2,) but must be (1,)", "SHAPE_MISMATCH", {},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),), None, None, None,
             ((2,), "int64")),
            ("left_window_size is -2", "ATTRIBUTE_INVALID", {"left_window_size": -2},
             ((1, 1, 2, 3),), ((1, 1, 2, 3),), ((1, 1, 2, 3),)),
        )
    )  # fmt: skip

    def infer(
        self,
        q: TensorSpec,
        k: TensorSpec,
        v: TensorSpec,
        mask: TensorSpec | None = None,
        past_key: TensorSpec | None = None,
        past_value: TensorSpec | None = None,
        nonpad: TensorSpec | None = None,
        **attributes: Any,
    ) -> tuple[TensorSpec, ...]:
        _check_heads(q, k, v, attributes)
        for side in ("left_window_size", "right_window_size"):
            if attributes[side] < -1:
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"{side} is {attributes[side]} but must be -1 or more",
                    attribute=side,
                )
        found = _Heads.of(q, k, v, past_key, attributes)
        _check_past(found, past_key, past_value, nonpad)
        _check_mask(found, mask, q.dtype)
        if nonpad is not None and nonpad.shape != (found.batch,):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"nonpad_kv_seqlen has shape {nonpad.shape} but must be ({found.batch},)",
            )
        out: Shape = (found.batch, found.heads, found.queries, found.value_size)
        if found.packed:
            out = (found.batch, found.queries, found.heads * found.value_size)
        kept = (found.batch, found.groups, found.keys)
        return (
            TensorSpec(out, q.dtype),
            TensorSpec((*kept, found.size), q.dtype),
            TensorSpec((*kept, found.value_size), v.dtype),
            TensorSpec(found.scores, q.dtype),
        )

    def scratch(
        self, outs: Sequence[TensorSpec], q: Any, k: Any, v: Any, *more: Any, **attributes: Any
    ) -> Scratch:
        past_key = more[1] if len(more) > 1 else None
        scores = prod(_Heads.of(q, k, v, past_key, attributes).scores) * ITEM_SIZES[q.dtype]
        masked = bool(attributes["is_causal"]) + (bool(more) and more[0] is not None)
        capped = bool(attributes["softcap"])
        forward, back = 2.9 + masked + capped, 4.9 + masked + 4.8 * capped
        return Scratch(int(forward * scores), int(back * scores))

    def operations(
        self, outs: tuple[TensorSpec, ...], q: Any, k: Any, v: Any, *more: Any, **attributes: Any
    ) -> int:
        past_key = more[1] if len(more) > 1 else None
        heads = _Heads.of(q, k, v, past_key, attributes)
        moved: int = sum(each.size for each in (*outs, q, k, v))
        return moved + prod(heads.scores) * (heads.size + heads.value_size + 20)

    def _held(self, q: Any, k: Any, v: Any, *more: Any, **attributes: Any) -> int:
        past_key = more[1] if len(more) > 1 else None
        return _SCORES_HELD * prod(_Heads.of(q, k, v, past_key, attributes).scores)

    def forward(
        self,
        xp: Namespace,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        nonpad: Array | None = None,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        run = _Run.of(xp, q, k, v, mask, past_key, past_value, nonpad, attributes)
        mode = attributes["qk_matmul_output_mode"]
        stages = (run.products, run.capped, run.logits, run.weights)
        out = run.join(xp, xp.matmul(run.to_rows(xp, run.weights), run.values))
        return out, run.keys, run.values, stages[mode]

    def vjp(
        self,
        xp: Namespace,
        grad: Any,
        out: Any,
        q: Array,
        k: Array,
        v: Array,
        *more: Any,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        mask, past_key, past_value, nonpad = (*more, None, None, None, None)[:4]
        run = _Run.of(xp, q, k, v, mask, past_key, past_value, nonpad, attributes)
        to_y, to_present_key, to_present_value, to_stage = (*grad, None, None, None)[:4]
        mode, softcap = attributes["qk_matmul_output_mode"], attributes["softcap"]
        to_rows = None if to_y is None else run.split(xp, to_y)

        def at_stage(number: int, found: Array | None) -> Array | None:
            """With what comes from the fourth output, if it is this stage."""
            if to_stage is None or mode != number:
                return found
            return to_stage if found is None else found + to_stage

        @cache
        def to_logits() -> Array | None:
            found = None
            if to_rows is not None:
                found = run.to_scores(xp, xp.matmul(to_rows, _transposed(xp, run.values)))
            to_weights = at_stage(3, found)
            if to_weights is not None:
                to_weights = pull_softmax(xp, to_weights, run.weights, 3)
            to_all = at_stage(2, to_weights)
            if to_all is None or run.allowed is None:
                return to_all
            return xp.where(run.allowed, to_all, 0.0)

        @cache
        def to_products() -> Array | None:
            found = at_stage(1, to_logits())
            if found is not None and softcap:
                bent = run.products / softcap
                found = found * xp.tanh_slope(bent, run.capped / softcap)
            found = at_stage(0, found)
            return None if found is None else run.to_rows(xp, found * run.scale)

        @cache
        def to_keys() -> Array | None:
            scaled = to_products()
            found = None if scaled is None else xp.matmul(_transposed(xp, scaled), run.queries)
            return _sum_of(found, to_present_key)

        @cache
        def to_values() -> Array | None:
            found = None
            if to_rows is not None:
                found = xp.matmul(_transposed(xp, run.to_rows(xp, run.weights)), to_rows)
            return _sum_of(found, to_present_value)

        def to_q() -> Array:
            scaled = to_products()
            if scaled is None:
                return xp.zeros_like(q)
            return run.join(xp, xp.matmul(scaled, run.keys), run.heads.size)

        def to_mask() -> Array:
            found = to_logits()
            if found is None:
                return xp.zeros_like(mask)
            return xp.slice(found, (0,) * 4, (*found.shape[:3], mask.shape[-1]), (1,) * 4)

        def part(of: Any, x: Array, past: bool) -> Any:
            def pull() -> Array:
                found = of()
                if found is None:
                    return xp.zeros_like(x)
                before, new = xp.split(found, (run.heads.past, run.heads.keys - run.heads.past), 2)
                return before if past else run.pack_keys(xp, new)

            return pull

        is_floating = mask is not None and str(mask.dtype) != "bool"
        entries = (
            to_q,
            part(to_keys, k, False),
            part(to_values, v, False),
            to_mask if is_floating else None,
            None if past_key is None else part(to_keys, past_key, True),
            None if past_value is None else part(to_values, past_value, True),
            None,
        )
        return entries[: 3 + len(more)]


def _check_heads(q: TensorSpec, k: TensorSpec, v: TensorSpec, attributes: dict[str, Any]) -> None:
    """Ranks, numbers of heads, and what K and V must have in common with Q."""
    if q.rank not in (3, 4):
        raise Invalid("SHAPE_MISMATCH", f"Q has rank {q.rank} but must have rank 3 or 4")
    for name, spec in (("K", k), ("V", v)):
        if spec.rank != q.rank:
            raise Invalid("SHAPE_MISMATCH", f"Q has rank {q.rank} but {name} has rank {spec.rank}")
    counts = {name: attributes[name] for name in ("q_num_heads", "kv_num_heads")}
    if q.rank == 4:
        for name, count in counts.items():
            if count is not None:
                raise Invalid("ATTRIBUTE_INVALID", f"{name} is for Q of rank 3", attribute=name)
        heads, groups = q.shape[1], k.shape[1]
        wanted: Shape = (q.shape[0], groups, v.shape[2], q.shape[3])
    else:
        if None in counts.values():
            raise Invalid(
                "ATTRIBUTE_INVALID", "give q_num_heads and kv_num_heads for Q, K and V of rank 3"
            )
        for name, count in counts.items():
            if count < 1:
                raise Invalid(
                    "ATTRIBUTE_INVALID", f"{name} is {count} but must be 1 or more", attribute=name
                )
        heads, groups = counts.values()
        for name, spec, count in (("Q", q, heads), ("K", k, groups), ("V", v, groups)):
            if spec.shape[2] % count:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{spec.shape[2]} numbers of {name} are not divisible into {count} heads",
                )
        wanted = (q.shape[0], v.shape[1], q.shape[2] // heads * groups)
    if k.shape != wanted:
        raise Invalid("SHAPE_MISMATCH", f"K has shape {k.shape} but Q and V need {wanted}")
    if v.shape[:-1] != k.shape[:-1]:
        raise Invalid("SHAPE_MISMATCH", f"K has shape {k.shape} but V has shape {v.shape}")
    if (groups and heads % groups) or (heads and not groups):
        raise Invalid("SHAPE_MISMATCH", f"{heads} heads of Q do not share {groups} of K")


def _check_past(
    found: _Heads,
    past_key: TensorSpec | None,
    past_value: TensorSpec | None,
    nonpad: TensorSpec | None,
) -> None:
    if (past_key is None) != (past_value is None):
        raise Invalid("INPUT_COUNT_INVALID", "give past_key and past_value, or neither")
    if past_key is not None and nonpad is not None:
        raise Invalid("INPUT_COUNT_INVALID", "give nonpad_kv_seqlen or past_key, and not both")
    for name, spec, size in (
        ("past_key", past_key, found.size),
        ("past_value", past_value, found.value_size),
    ):
        wanted = (found.batch, found.groups, found.past, size)
        if spec is not None and spec.shape != wanted:
            raise Invalid("SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be {wanted}")


def _check_mask(found: _Heads, mask: TensorSpec | None, dtype: str) -> None:
    if mask is None:
        return
    if mask.dtype != "bool" and computed_in(mask.dtype) != computed_in(dtype):
        raise Invalid(
            "DATA_TYPE_MISMATCH", f"attn_mask is {mask.dtype} but Q is {dtype}; Cast one of them"
        )
    if mask.rank and mask.shape[-1] > found.keys:
        raise Invalid(
            "SHAPE_MISMATCH", f"attn_mask of shape {mask.shape} has more than {found.keys} keys"
        )
    rows = (*found.scores[:3], 1)
    try:
        fits = mask.rank > 0 and broadcast_shapes((*mask.shape[:-1], 1), rows) == rows
    except Invalid:
        fits = False
    if not fits:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"attn_mask of shape {mask.shape} does not broadcast to {found.scores}",
        )


@dataclass(frozen=True)
class _Run:
    """One attention, computed as far as its weights.

    Queries are [N, groups, rows, size] with the rows of all heads of a group, so that a group's
    keys are never repeated; what has scores is [N, heads, queries, keys].
    """

    heads: _Heads
    scale: float
    queries: Array
    keys: Array
    values: Array
    products: Array
    capped: Array
    allowed: Array | None
    logits: Array
    weights: Array

    @staticmethod
    def of(
        xp: Namespace,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        past_key: Array | None,
        past_value: Array | None,
        nonpad: Array | None,
        attributes: dict[str, Any],
    ) -> _Run:
        heads = _Heads.of(q, k, v, past_key, attributes)
        scale, softcap = attributes["scale"], attributes["softcap"]
        scale = 1.0 / sqrt(heads.size or 1) if scale is None else scale
        queries = _grouped(xp, _by_head(xp, q, heads.heads), heads)
        keys, values = (_by_head(xp, each, heads.groups) for each in (k, v))
        if past_key is not None:
            keys, values = (
                xp.concat([past, each], axis=2)
                for past, each in ((past_key, keys), (past_value, values))
            )
        products = xp.reshape(xp.matmul(queries * scale, _transposed(xp, keys)), heads.scores)
        capped = softcap * xp.tanh(products / softcap) if softcap else products
        logits, allowed = capped, _allowed(xp, heads, nonpad, attributes)
        if mask is not None:
            lacking = heads.keys - mask.shape[-1]
            if lacking:
                lead = (0,) * (len(mask.shape) - 1)
                fill = False if str(mask.dtype) == "bool" else -inf
                mask = xp.pad(mask, (*lead, 0), (*lead, lacking), fill=fill)
            if str(mask.dtype) != "bool":
                logits = logits + mask
            else:
                allowed = mask if allowed is None else xp.logical_and(allowed, mask)
        if allowed is not None:
            logits = xp.where(allowed, logits, -inf)
        weights = _softmax(xp, logits, attributes["softmax_precision"])
        return _Run(heads, scale, queries, keys, values, products, capped, allowed, logits, weights)

    def to_rows(self, xp: Namespace, scores: Array) -> Array:
        """Scores with the rows of a group's heads side by side."""
        return _grouped(xp, scores, self.heads)

    def to_scores(self, xp: Namespace, rows: Array) -> Array:
        return xp.reshape(rows, self.heads.scores)

    def split(self, xp: Namespace, out: Array) -> Array:
        """An output, or its gradient, as rows."""
        return _grouped(xp, _by_head(xp, out, self.heads.heads), self.heads)

    def join(self, xp: Namespace, rows: Array, size: int | None = None) -> Array:
        """The inverse: of the rank that the inputs have."""
        heads = self.heads
        size = heads.value_size if size is None else size
        by_head = xp.reshape(rows, (heads.batch, heads.heads, heads.queries, size))
        return _packed(xp, by_head) if heads.packed else by_head

    def pack_keys(self, xp: Namespace, by_head: Array) -> Array:
        return _packed(xp, by_head) if self.heads.packed else by_head


def _by_head(xp: Namespace, x: Array, heads: int) -> Array:
    """[N, heads, length, size] of the same, or of [N, length, heads * size]."""
    if len(x.shape) == 4:
        return x
    batch, length, whole = x.shape
    return xp.permute_dims(xp.reshape(x, (batch, length, heads, whole // heads)), (0, 2, 1, 3))


def _packed(xp: Namespace, x: Array) -> Array:
    batch, heads, length, size = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, length, heads * size))


def _grouped(xp: Namespace, x: Array, heads: _Heads) -> Array:
    return xp.reshape(x, (heads.batch, heads.groups, heads.grouped_rows, x.shape[3]))


def _transposed(xp: Namespace, x: Array) -> Array:
    return xp.permute_dims(x, (0, 1, 3, 2))


def _sum_of(found: Array | None, more: Array | None) -> Array | None:
    if found is None or more is None:
        return more if found is None else found
    return found + more


def _allowed(
    xp: Namespace, heads: _Heads, nonpad: Array | None, attributes: dict[str, Any]
) -> Array | None:
    """Which keys the positions alone allow; None where that is all of them."""
    left, right = attributes["left_window_size"], attributes["right_window_size"]
    keys = integers(xp, range(heads.keys), (1, heads.keys))
    tests = []
    if attributes["is_causal"] or left >= 0 or right >= 0:
        rows = range(heads.past, heads.past + heads.queries)
        if nonpad is not None:
            rows = range(-heads.queries, 0)
        positions = integers(xp, rows, (heads.queries, 1))
        if nonpad is not None:
            positions = positions + xp.reshape(nonpad, (heads.batch, 1, 1, 1))
        ahead = keys - positions
        if attributes["is_causal"]:
            tests.append(xp.less_equal(ahead, 0))
        if left >= 0:
            tests.append(xp.greater_equal(ahead, -left))
        if right >= 0:
            tests.append(xp.less_equal(ahead, right))
    if nonpad is not None:
        tests.append(xp.less(keys, xp.reshape(nonpad, (heads.batch, 1, 1, 1))))
    found = None
    for test in tests:
        found = test if found is None else xp.logical_and(found, test)
    return found


def _softmax(xp: Namespace, logits: Array, precision: int | None) -> Array:
    """Along the last axis; zeros where all are minus infinity."""
    dtype = str(logits.dtype)
    wide = xp.astype(logits, "float64") if precision == 11 and dtype == "float32" else logits
    largest = xp.max(wide, axis=(3,), keepdims=True)
    parts = xp.exp(wide - xp.where(xp.equal(largest, -inf), 0.0, largest))
    total = xp.sum(parts, axis=(3,), keepdims=True)
    weights = parts / xp.where(xp.equal(total, 0.0), 1.0, total)
    return weights if wide is logits else xp.astype(weights, dtype)


class RotaryEmbedding(Gate):
    """Pairs of numbers turned by angles that grow with their position.

    Formula:   (a, b) of each pair become (cos * a - sin * b, sin * a + cos * b)
    Gradient:  to (a, b) = grad turned back;  to cos = ga * a + gb * b,  to sin = gb * a - ga * b
    Shapes:    X [N, heads, length, size], or [N, length, heads * size] with num_heads; Y as X. The
               first rotary_embedding_dim numbers of a head (0: all) are pairs: halves side by
               side, or neighbours with interleaved. The caches are [N, length, pairs]; or
               [positions, pairs] with position_ids [N, length] that choose their rows.
    """

    operator = "RotaryEmbedding"
    inputs = (
        Input("X"),
        Input("cos_cache"),
        Input("sin_cache"),
        Input("position_ids", ("int64",), "M", optional=True),
    )
    attributes = (
        Attribute("interleaved", "int", 0, choices=(0, 1), doc="1 pairs neighbours."),
        Attribute("num_heads", "int", doc="Heads of X, where it is of rank 3."),
        Attribute("rotary_embedding_dim", "int", 0, doc="How many numbers turn; 0: all."),
    )
    examples = (
        Example(([[[[1.0, 2.0]]]], [[[0.0]]], [[[1.0]]]), [[[[-2.0, 1.0]]]],
                gradients=([[[[1.0, -1.0]]]], [[[3.0]]], [[[-1.0]]])),
        Example(([[[[1.0, 2.0, 3.0]]]], [[1.0], [0.0]], [[0.0], [1.0]], [[1]]),
                [[[[-2.0, 1.0, 3.0]]]],
                gradients=([[[[1.0, -1.0, 1.0]]]], [[0.0], [3.0]], [[0.0], [-1.0]], None),
                attributes={"rotary_embedding_dim": 2}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 2, 4)), TensorSpec((2, 2, 2)), TensorSpec((2, 2, 2)))),
        Sample((TensorSpec((2, 2, 12)), TensorSpec((2, 2, 2)), TensorSpec((2, 2, 2))),
               {"num_heads": 3, "interleaved": 1}),
        Sample((TensorSpec((1, 2, 2, 6)), TensorSpec((3, 2)), TensorSpec((3, 2)),
                TensorSpec((1, 2), "int64", (2, 0))),
               {"rotary_embedding_dim": 4, "interleaved": 1}),
        Sample((TensorSpec((0, 1, 2, 2)), TensorSpec((0, 2, 1)), TensorSpec((0, 2, 1)))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2, 4)), TensorSpec((2, 2)), TensorSpec((2, 2))),
                  "X has rank 2 but must have rank 3 or 4"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((1, 2, 2)), TensorSpec((1, 2, 2))),
                  "give num_heads for X of rank 3", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((1, 2, 2)), TensorSpec((1, 2, 2))),
                  "4 numbers of X are not divisible into 3 heads", attributes={"num_heads": 3}),
        Rejection((TensorSpec((1, 1, 2, 3)), TensorSpec((1, 2, 1)), TensorSpec((1, 2, 1))),
                  "rotary_embedding_dim is 3", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((1, 1, 2, 4)), TensorSpec((1, 2, 1)), TensorSpec((1, 2, 2))),
                  "cos_cache has shape (1, 2, 1) but must be (1, 2, 2)"),
        Rejection((TensorSpec((1, 1, 2, 4)), TensorSpec((5, 2)), TensorSpec((4, 2)),
                   TensorSpec((1, 2), "int64")),
                  "sin_cache has shape (4, 2) but must be (5, 2)"),
        Rejection((TensorSpec((1, 1, 2, 4)), TensorSpec((5, 2)), TensorSpec((5, 2)),
                   TensorSpec((2,), "int64")),
                  "position_ids has shape (2,) but must be (1, 2)"),
    )  # fmt: skip

    def infer(
        self,
        x: TensorSpec,
        cos: TensorSpec,
        sin: TensorSpec,
        positions: TensorSpec | None = None,
        *,
        interleaved: int,
        num_heads: int | None,
        rotary_embedding_dim: int,
    ) -> TensorSpec:
        if x.rank not in (3, 4):
            raise Invalid("SHAPE_MISMATCH", f"X has rank {x.rank} but must have rank 3 or 4")
        size = x.shape[-1]
        if x.rank == 3:
            if not num_heads or num_heads < 1:
                raise Invalid(
                    "ATTRIBUTE_INVALID", "give num_heads for X of rank 3", attribute="num_heads"
                )
            if size % num_heads:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{size} numbers of X are not divisible into {num_heads} heads",
                )
            size //= num_heads
        turned = rotary_embedding_dim or size
        if turned % 2 or not 0 <= turned <= size:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"rotary_embedding_dim is {turned} but must be even and at most {size}",
                attribute="rotary_embedding_dim",
            )
        rows: Shape = (x.shape[0], x.shape[-2])
        if positions is not None:
            if positions.shape != rows:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"position_ids has shape {positions.shape} but must be {rows}",
                )
            rows = cos.shape[:1]
        for name, cache_spec in (("cos_cache", cos), ("sin_cache", sin)):
            if cache_spec.shape != (*rows, turned // 2):
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{name} has shape {cache_spec.shape} but must be {(*rows, turned // 2)}",
                )
        return TensorSpec(x.shape, x.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        cos: TensorSpec,
        sin: TensorSpec,
        positions: Any = None,
        **attributes: Any,
    ) -> Scratch:
        heads = attributes["num_heads"] if x.rank == 3 else 1
        size = x.shape[-1] // max(heads, 1)
        share = (attributes["rotary_embedding_dim"] or size) / max(size, 1)
        turned = int((1 + attributes["interleaved"]) * share * x.nbytes)
        return Scratch(turned, turned + cos.nbytes)

    def forward(
        self,
        xp: Namespace,
        x: Array,
        cos: Array,
        sin: Array,
        positions: Array | None = None,
        *,
        interleaved: int,
        num_heads: int | None,
        rotary_embedding_dim: int,
    ) -> Array:
        if positions is not None:
            xp.require_indices(positions, cos.shape[0], "position_ids")
        first, second, rest = _pairs(xp, x, num_heads, rotary_embedding_dim, interleaved)
        cosine, sine = (_at_positions(xp, each, positions, x) for each in (cos, sin))
        turned = (cosine * first - sine * second, sine * first + cosine * second)
        return _unpaired(xp, *turned, rest, x.shape, interleaved)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        cos: Array,
        sin: Array,
        *positions: Array | None,
        interleaved: int,
        num_heads: int | None,
        rotary_embedding_dim: int,
    ) -> tuple[Any, ...]:
        at = positions[0] if positions else None
        to_first, to_second, to_rest = _pairs(
            xp, grad, num_heads, rotary_embedding_dim, interleaved
        )
        cosine, sine = (_at_positions(xp, each, at, x) for each in (cos, sin))
        heads = 1 if len(x.shape) == 4 else 2

        def to_x() -> Array:
            back = (cosine * to_first + sine * to_second, cosine * to_second - sine * to_first)
            return _unpaired(xp, *back, to_rest, x.shape, interleaved)

        def to_cache(found: Array) -> Array:
            rows = xp.sum(found, axis=(heads,))
            if at is None:
                return rows
            flat = xp.reshape(rows, (rows.shape[0] * rows.shape[1], rows.shape[2]))
            places = xp.broadcast_to(xp.reshape(at, (flat.shape[0], 1)), flat.shape)
            return xp.scatter(xp.zeros_like(cos), places, flat, 0, "add")

        def pairs() -> tuple[Array, Array]:
            return _pairs(xp, x, num_heads, rotary_embedding_dim, interleaved)[:2]

        def to_cos() -> Array:
            first, second = pairs()
            return to_cache(to_first * first + to_second * second)

        def to_sin() -> Array:
            first, second = pairs()
            return to_cache(to_second * first - to_first * second)

        return to_x, to_cos, to_sin, *(None for _ in positions)


def _pairs(
    xp: Namespace, x: Array, num_heads: int | None, turned: int, interleaved: int
) -> tuple[Array, Array, Array]:
    """First and second numbers of the pairs, and what is not in pairs; with an axis of heads."""
    if len(x.shape) == 3:
        assert num_heads is not None
        x = xp.reshape(x, (*x.shape[:2], num_heads, x.shape[2] // num_heads))
    size = x.shape[3]
    turned = turned or size
    if not interleaved:
        half = turned // 2
        first, second, rest = xp.split(x, (half, half, size - turned), 3)
        return first, second, rest
    inside, rest = xp.split(x, (turned, size - turned), 3)
    pairs = xp.reshape(inside, (*x.shape[:3], turned // 2, 2))
    first, second = xp.split(pairs, (1, 1), 4)
    return xp.squeeze(first, axis=(4,)), xp.squeeze(second, axis=(4,)), rest


def _unpaired(
    xp: Namespace, first: Array, second: Array, rest: Array, shape: Shape, interleaved: int
) -> Array:
    """The inverse of `_pairs`."""
    inside: tuple[Array, ...] = (first, second)
    if interleaved:
        pairs = xp.concat([xp.expand_dims(each, axis=(4,)) for each in inside], axis=4)
        inside = (xp.reshape(pairs, (*first.shape[:3], 2 * first.shape[3])),)
    return xp.reshape(xp.concat([*inside, rest], axis=3), shape)


def _at_positions(xp: Namespace, values: Array, positions: Array | None, x: Array) -> Array:
    """The cache's rows of x's positions, with an axis of size 1 where x has its heads."""
    rows = values if positions is None else xp.take(values, positions, axis=0)
    return xp.expand_dims(rows, axis=(1 if len(x.shape) == 4 else 2,))


class LinearAttention(Gate):
    """Attention whose keys and values are kept in one matrix that each token changes.

    Formula:   for each token: S' = exp(decay) * S (gated rules, else S);  u = beta * (value -
               S'^T @ key) (delta rules, else value);  S = S' + key @ u^T;  output = scale * S^T @
               query
    Gradient:  back through the tokens, G the gradient of S: G += scale * query @ grad^T;  to key =
               G @ u - S' @ d,  d = beta * v,  v = G^T @ key;  to value = d;  to beta = v * (value -
               S'^T @ key);  G -= key @ d^T;  to decay = sum of G * S';  then G *= exp(decay);  to
               query = scale * S @ grad
    Shapes:    query [N, tokens, q_num_heads * size], key [N, tokens, kv_num_heads * size], value
               [N, tokens, kv_num_heads * value_size], decay as key or [N, tokens, kv_num_heads],
               beta that or [N, tokens, 1], past_state and present_state [N, kv_num_heads, size,
               value_size]; output [N, tokens, q_num_heads * value_size]. kv_num_heads divides
               q_num_heads.
    """

    operator = "LinearAttention"
    inputs = (
        Input("query"),
        Input("key"),
        Input("value"),
        Input("past_state", group="S", optional=True),
        Input("decay", optional=True),
        Input("beta", optional=True),
    )
    attributes = (
        Attribute("chunk_size", "int", 64, doc="A hint to other servers; it changes nothing."),
        Attribute("kv_num_heads", "int", required=True, doc="Heads of key and value."),
        Attribute("q_num_heads", "int", required=True, doc="Heads of query."),
        Attribute("scale", "float", 0.0, doc="Scales the output; 0 means 1 / sqrt(size)."),
        Attribute("update_rule", "string", "gated_delta",
                  choices=("linear", "gated", "delta", "gated_delta"),
                  doc="Whether S decays, and whether what it holds for a key is replaced."),
    )  # fmt: skip
    outputs = (1, 2)
    output_dtypes = ("input:0", "input:3|input:0")
    mixed_groups = ("T", "S")
    examples = (
        Example(([[[1.0], [2.0]]], [[[1.0], [3.0]]], [[[2.0], [1.0]]]),
                ([[[2.0], [10.0]]], [[[[5.0]]]]),
                gradients=([[[2.0], [5.0]]], [[[6.0], [2.0]]], [[[3.0], [6.0]]]),
                attributes={"update_rule": "linear", "q_num_heads": 1, "kv_num_heads": 1}),
        Example(([[[1.0]]], [[[1.0]]], [[[2.0]]], [[[[4.0]]]], None, [[[0.5]]]),
                ([[[3.0]]], [[[[3.0]]]]),
                gradients=([[[3.0]]], [[[-3.0]]], [[[0.5]]], [[[[0.5]]]], None, [[[-2.0]]]),
                attributes={"update_rule": "delta", "q_num_heads": 1, "kv_num_heads": 1}),
    )  # fmt: skip
    samples = tuple(
        Sample(
            (
                TensorSpec((2, 3, heads * 2)),
                TensorSpec((2, 3, groups * 2)),
                TensorSpec((2, 3, groups * 3)),
                TensorSpec((2, groups, 2, 3)) if past else None,
                TensorSpec((2, 3, decay)) if decay else None,
                TensorSpec((2, 3, beta)) if beta else None,
            ),
            {"update_rule": rule, "q_num_heads": heads, "kv_num_heads": groups, "scale": scale},
        )
        for rule, heads, groups, past, decay, beta, scale in (
            ("linear", 2, 2, None, None, None, 0.0),
            ("linear", 4, 2, True, None, None, 0.5),
            ("gated", 2, 2, True, 4, None, 0.0),
            ("gated", 4, 2, None, 2, None, 0.0),
            ("delta", 2, 1, True, None, 1, 0.0),
            ("gated_delta", 4, 2, True, 4, 2, 0.0),
            ("gated_delta", 2, 2, None, 2, 1, 2.0),
        )
    )
    rejections = tuple(
        Rejection(tuple(None if each is None else TensorSpec(each) for each in shapes), message,
                  reason, {"update_rule": rule, "q_num_heads": heads, "kv_num_heads": groups})
        for message, reason, rule, heads, groups, *shapes in (
            ("query has rank 2 but must have rank 3", "SHAPE_MISMATCH", "linear", 1, 1,
             (1, 2), (1, 1, 2), (1, 1, 2)),
            ("3 heads of query do not share 2 of key", "ATTRIBUTE_INVALID", "linear", 3, 2,
             (1, 1, 6), (1, 1, 4), (1, 1, 4)),
            ("5 numbers of query are not divisible into 2 heads", "SHAPE_MISMATCH", "linear", 2, 1,
             (1, 1, 5), (1, 1, 2), (1, 1, 2)),
            ("key has shape (1, 1, 3) but must be (1, 1, 2)", "SHAPE_MISMATCH", "linear", 1, 1,
             (1, 1, 2), (1, 1, 3), (1, 1, 2)),
            ("the rule 'gated' needs decay", "INPUT_COUNT_INVALID", "gated", 1, 1,
             (1, 1, 2), (1, 1, 2), (1, 1, 2)),
            ("the rule 'linear' takes no beta", "INPUT_COUNT_INVALID", "linear", 1, 1,
             (1, 1, 2), (1, 1, 2), (1, 1, 2), None, None, (1, 1, 1)),
            ("decay has shape (1, 1, 3) but must be (1, 1, 1) or (1, 1, 2)", "SHAPE_MISMATCH",
             "gated", 1, 1, (1, 1, 2), (1, 1, 2), (1, 1, 2), None, (1, 1, 3)),
            ("past_state has shape (1, 1, 2, 3) but must be (1, 1, 2, 2)", "SHAPE_MISMATCH",
             "linear", 1, 1, (1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 2, 3)),
            ("query of shape (1, 0, 2) has no tokens", "SHAPE_MISMATCH",
             "linear", 1, 1, (1, 0, 2), (1, 0, 2), (1, 0, 2)),
        )
    )  # fmt: skip

    def infer(
        self,
        query: TensorSpec,
        key: TensorSpec,
        value: TensorSpec,
        *more: TensorSpec | None,
        q_num_heads: int,
        kv_num_heads: int,
        update_rule: str,
        **_: Any,
    ) -> tuple[TensorSpec, TensorSpec]:
        heads, groups = q_num_heads, kv_num_heads
        if min(heads, groups) < 1 or heads % groups:
            raise Invalid(
                "ATTRIBUTE_INVALID", f"{heads} heads of query do not share {groups} of key"
            )
        for name, spec, count in (("query", query, heads), ("value", value, groups)):
            if spec.rank != 3:
                raise Invalid("SHAPE_MISMATCH", f"{name} has rank {spec.rank} but must have rank 3")
            if spec.shape[2] % count:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{spec.shape[2]} numbers of {name} are not divisible into {count} heads",
                )
        batch, tokens = query.shape[:2]
        if not tokens:
            raise Invalid("SHAPE_MISMATCH", f"query of shape {query.shape} has no tokens")
        size, value_size = query.shape[2] // heads, value.shape[2] // groups
        state = (batch, groups, size, value_size)
        past, decay, beta = (*more, None, None, None)[:3]
        for name, rate, rule in (("decay", decay, "gated"), ("beta", beta, "delta")):
            if (rate is not None) != (rule in update_rule):
                takes = "needs" if rate is None else "takes no"
                raise Invalid("INPUT_COUNT_INVALID", f"the rule {update_rule!r} {takes} {name}")
        each = (batch, tokens)
        for name, given, *wanted in (
            ("key", key, (*each, groups * size)),
            ("value", value, (*each, groups * value_size)),
            ("past_state", past, state),
            ("decay", decay, (*each, groups), (*each, groups * size)),
            ("beta", beta, (*each, 1), (*each, groups)),
        ):
            if given is not None and given.shape not in wanted:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{name} has shape {given.shape} but must be " + " or ".join(map(str, wanted)),
                )
        out = TensorSpec((*each, heads * value_size), query.dtype)
        return out, TensorSpec(state, query.dtype if past is None else past.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        query: TensorSpec,
        key: TensorSpec,
        value: TensorSpec,
        *more: Any,
        **how: Any,
    ) -> Scratch:
        held = self._held(query, key, value, *more, **how) * ITEM_SIZES[query.dtype]
        return Scratch(
            int(2.8 * max(query.nbytes, value.nbytes)), int(0.42 * held + 2 * value.nbytes)
        )

    def operations(self, outs: tuple[TensorSpec, ...], query: Any, *more: Any, **how: Any) -> int:
        _, state = self.infer(query, *more, **how)
        ratio = how["q_num_heads"] // how["kv_num_heads"]
        found: int = query.size + query.shape[1] * (state.size * (ratio + 5) + 20 * STEP)
        return found

    def _held(self, query: Any, key: Any, value: Any, *more: Any, **how: Any) -> int:
        _, state = self.infer(query, key, value, *more, **how)
        tokens: int = query.shape[1]
        return _STATES_HELD * tokens * state.size

    def forward(self, xp: Namespace, *inputs: Array | None, **how: Any) -> tuple[Array, Array]:
        tokens, state, scale = _tokens(xp, inputs, how)
        outs = []
        for token in tokens:
            xp.stop_if_asked()
            state, _ = token.change(xp, state)
            outs.append(xp.matmul(scale * token.query, state))
        return _over_time(xp, outs), state

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, *inputs: Array | None, **how: Any
    ) -> tuple[Any, ...]:
        to_out, to_state = (*grad, None)[:2]

        @cache
        def pulled() -> dict[str, Array]:
            tokens, state, scale = _tokens(xp, inputs, how)
            steps = []
            for token in tokens:
                xp.stop_if_asked()
                state, step = token.change(xp, state)
                steps.append((token, step, state))
            to_next = xp.zeros_like(state) if to_state is None else to_state
            to_outs = [None] * len(tokens)
            if to_out is not None:
                rows = (how["q_num_heads"] // how["kv_num_heads"], state.shape[3])
                to_outs = _by_time(xp, to_out, how["kv_num_heads"], *rows)
            parts: list[dict[str, Array]] = []
            for (token, step, after), to_row in reversed(list(zip(steps, to_outs, strict=True))):
                xp.stop_if_asked()
                own = {}
                if to_row is None:
                    own["query"] = xp.zeros_like(token.query)
                else:
                    own["query"] = xp.matmul(scale * to_row, _transposed(xp, after))
                    to_next = to_next + xp.matmul(scale * _transposed(xp, token.query), to_row)
                to_next = token.pull(xp, step, to_next, own)
                parts.append(own)
            parts.reverse()
            found = {name: _over_time(xp, [own[name] for own in parts]) for name in parts[0]}
            return {**found, "past_state": to_next}

        names = [each.name for each in self.inputs]
        return tuple(
            None if each is None else _named(pulled, name, each.shape, xp)
            for name, each in zip(names, inputs, strict=False)
        )


def _named(pulled: Any, name: str, shape: Shape, xp: Namespace) -> Any:
    def pull() -> Array:
        found = pulled()[name]
        if found.shape[-1] == shape[-1]:
            return found
        return xp.sum(found, axis=(2,), keepdims=True)  # one beta for all heads

    return pull


@dataclass(frozen=True)
class _Change:
    """What one token did to the state, and what it wrote there."""

    before: Array
    decayed: Array
    missed: Array | None
    written: Array


@dataclass(frozen=True)
class _Token:
    """One token: query [N, groups, heads of one, size], key and decay [N, groups, size or 1, 1],
    value [N, groups, 1, value_size], beta [N, groups or 1, 1, 1]."""

    query: Array
    key: Array
    value: Array
    decay: Array | None
    beta: Array | None

    def change(self, xp: Namespace, state: Array) -> tuple[Array, _Change]:
        decayed = state if self.decay is None else state * xp.exp(self.decay)
        missed, written = None, self.value
        if self.beta is not None:
            missed = self.value - xp.matmul(_transposed(xp, self.key), decayed)
            written = self.beta * missed
        return decayed + self.key * written, _Change(state, decayed, missed, written)

    def pull(self, xp: Namespace, step: _Change, grad: Array, own: dict[str, Array]) -> Array:
        """The gradient of the state before; those of the token's numbers go to `own`, as rows."""
        to_written = xp.matmul(_transposed(xp, self.key), grad)
        to_key = xp.sum(grad * step.written, axis=(3,), keepdims=True)
        if self.beta is not None:
            own["beta"] = xp.sum(to_written * step.missed, axis=(3,), keepdims=True)
            to_written = self.beta * to_written
            to_key = to_key - xp.sum(step.decayed * to_written, axis=(3,), keepdims=True)
            grad = grad - self.key * to_written
        own["key"], own["value"] = _transposed(xp, to_key), to_written
        if self.decay is None:
            return grad
        to_decay = xp.sum(grad * step.decayed, axis=(3,), keepdims=True)
        if self.decay.shape[2] == 1:
            to_decay = xp.sum(to_decay, axis=(2,), keepdims=True)
        own["decay"] = _transposed(xp, to_decay)
        return grad * xp.exp(self.decay)


def _tokens(
    xp: Namespace, inputs: tuple[Array | None, ...], how: dict[str, Any]
) -> tuple[list[_Token], Array, float]:
    """The tokens, the state before them, and the scale of the output."""
    given: list[Any] = [*inputs, *(None for _ in range(6 - len(inputs)))]
    query, key, value, past, decay, beta = given
    groups = how["kv_num_heads"]
    heads = how["q_num_heads"] // groups
    size, value_size = query.shape[2] // how["q_num_heads"], value.shape[2] // groups
    columns = [
        None if each is None else _by_time(xp, each, groups, each.shape[2] // groups, 1)
        for each in (key, decay)
    ]
    rates: list[Array | None] = [None] * query.shape[1]
    if beta is not None:
        rates = _by_time(xp, beta, beta.shape[2], 1, 1)
    none: list[Array | None] = [None] * query.shape[1]
    tokens = [
        _Token(*each)
        for each in zip(
            _by_time(xp, query, groups, heads, size),
            columns[0] or none,
            _by_time(xp, value, groups, 1, value_size),
            columns[1] or none,
            rates,
            strict=True,
        )
    ]
    if past is None:
        past = xp.full((query.shape[0], groups, size, value_size), 0, str(query.dtype))
    return tokens, past, how["scale"] or 1.0 / sqrt(size or 1)


def _by_time(xp: Namespace, x: Array, *shape: int) -> list[Array]:
    """The tokens of [N, tokens, ..], each of shape [N, *shape]."""
    batch, tokens = x.shape[:2]
    return [xp.reshape(each, (batch, *shape)) for each in xp.split(x, (1,) * tokens, 1)]


def _over_time(xp: Namespace, rows: list[Array]) -> Array:
    """Tokens of shape [N, ..] as [N, tokens, all of it]."""
    lying = [xp.reshape(each, (each.shape[0], 1, prod(each.shape[1:]))) for each in rows]
    return xp.concat(lying, axis=1)
