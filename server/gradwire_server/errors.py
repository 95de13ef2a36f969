"""Every error a caller can see.

Refusal         the request cannot be done; carries `reason`, the message and its facts
├── Invalid     the request is wrong: change it                       INVALID_ARGUMENT
├── Unsupported this server lacks what is asked: ask another          UNIMPLEMENTED
├── OverLimit   a limit is passed: what helps, and the flag           RESOURCE_EXHAUSTED
├── NotFound    no such graph is saved                                NOT_FOUND
├── Conflict    somebody else was first: look again, then ask again   ABORTED
└── Unavailable the store cannot be reached now: ask again later      UNAVAILABLE

Form of a message: where: what, with both actual values; what to do if we know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Self

#: What clients dispatch on. Reasons are never renamed; new ones may come.
REASONS = {
    "FORMAT_VERSION_UNSUPPORTED": "The graph was written by newer rules than this server reads.",
    "FEATURE_UNSUPPORTED": "The graph requires a feature this server lacks.",
    "OPERATOR_SET_UNSUPPORTED": "The graph's operator set is outside what this server knows.",
    "OPERATOR_UNKNOWN": "No gate has that operator name.",
    "GRAPH_INVALID": "The graph cannot be decoded, or lacks a part.",
    "MODULE_INVALID": "A module, or its gradient, is not what its uses need.",
    "NODE_INVALID": "A node's gate or input ids point nowhere.",
    "NAME_INVALID": "A name is empty, used twice, or not one that a saved graph may have.",
    "LEAF_INVALID": "A leaf's declaration contradicts itself.",
    "LEAF_UNKNOWN": "No input or parameter has that name.",
    "OUTPUT_INVALID": "An output's values do not exist, or cannot be stacked.",
    "OUTPUT_UNKNOWN": "No output has that name.",
    "VALUE_UNKNOWN": "No value has that name or id.",
    "INPUT_COUNT_INVALID": "A gate is given too few or too many inputs.",
    "OUTPUT_COUNT_INVALID": "A gate is asked for too few or too many outputs.",
    "ATTRIBUTE_INVALID": "An attribute is unknown, missing, or has a value the gate refuses.",
    "INPUT_NOT_KNOWN": "A gate needs an input's elements before evaluation, and they are computed.",
    "TENSOR_INVALID": "A tensor's bytes do not fit its shape and type.",
    "DATA_TYPE_UNSUPPORTED": "This server does not compute with that data type here.",
    "DATA_TYPE_MISMATCH": "Two data types differ that must be equal.",
    "SHAPE_MISMATCH": "Shapes cannot be combined.",
    "INDEX_OUT_OF_RANGE": "An index points outside the axis it selects from.",
    "ASSERTION_FAILED": "A value differs from the one that the graph was made for.",
    "BINDING_INVALID": "A leaf is bound twice, or batched without a batch.",
    "INPUT_MISSING": "An input has neither a binding nor a stored value.",
    "SEED_MISSING": "An output needs a seed.",
    "SEED_INVALID": "A seed is given twice or for an output that has no gradient.",
    "SELECTION_INVALID": "A selection contradicts itself.",
    "NOT_DIFFERENTIABLE": "A value of that data type has no gradient.",
    "SYMBOL_UNBOUND": "A symbolic size is needed and not given.",
    "SHARED_MEMORY_INVALID": "No client shares a segment of that name, or of that size.",
    "SHARED_MEMORY_UNSUPPORTED": "This server was started without shared memory.",
    "DIGEST_INVALID": "A digest is not of 32 bytes.",
    "DIGEST_MISMATCH": "The bytes of an upload have another digest than was announced.",
    "GRAPH_NOT_FOUND": "No graph of that digest or name is saved.",
    "NAME_CONFLICT": "A name refers to something else than was expected.",
    "UPLOAD_INVALID": "Bytes of an upload do not follow on those that are there.",
    "PAGE_TOKEN_INVALID": "A page token is not one that this server gave.",
    "STORE_UNSUPPORTED": "This server was started without a store for graphs.",
    "STORE_UNAVAILABLE": "The store cannot be reached, is full, or has lost bytes.",
    "REQUEST_INVALID": "The request cannot be decoded, or comes out of turn.",
    "FILE_INVALID": "The bytes are not a whole graph file.",
    "HOST_REFUSED": "The page is called by a name that is not the server's.",
    "ORIGIN_REFUSED": "Another site called the page's service.",
    "CONTENT_TYPE_REFUSED": "A request to the page has a content type that another site can send.",
    "LIMIT_EXCEEDED": "A limit of this server is passed.",
}


#: What a client can do about a limit, by its flag without dashes.
ADVICE = {
    "max-message-bytes": "send less in one message",
    "max-nodes": "send a smaller graph",
    "max-values": "send a smaller graph",
    "max-memory-bytes": "ask for fewer values and gradients, or for fewer rows at once",
    "max-operations": "ask for fewer rows at once, or evaluate a smaller graph",
    "max-plan-steps": "send a graph of fewer different shapes and known elements",
    "max-graph-bytes": "save a smaller graph",
    "max-stored-bytes": "delete graphs that are not needed",
    "max-stored-graphs": "delete some that are not needed",
    "max-held-bytes": "read the answers that are under way, ask again later",
    "max-waiting": "ask again later",
    "max-streams": "read one to its end, ask again later",
    "max-transfers": "wait for one to end",
    "max-sessions": "close one, ask again later",
    "max-silent": "send a message with each call",
}


class Refusal(Exception):  # noqa: N818 -- the word this project uses
    """The request cannot be done; nothing was changed.

    `field` is the path of what is wrong, as google.rpc.BadRequest has it, in the message that is
    being read: `circuit.inputs[2].value` in a graph. Empty where no one field is to blame.
    """

    status: str

    def __init__(self, reason: str, message: str, *, field: str = "", **facts: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.facts = {key: str(fact) for key, fact in facts.items()}

    def at(self, place: str, *, field: str = "", **facts: object) -> Self:
        """The same refusal, saying where: a gate states the fact, the plan adds the node."""
        message, inner = f"{place}: {self.message}", _path(field, self.field)
        return type(self)(self.reason, message, field=inner, **(self.facts | facts))

    def within(self, field: str) -> Self:
        """The same refusal, its field inside of another."""
        return self.at_field(_path(field, self.field))

    def at_field(self, field: str) -> Self:
        """The same refusal of another field."""
        return type(self)(self.reason, self.message, field=field, **self.facts)


class Invalid(Refusal):
    """The request is wrong."""

    status = "INVALID_ARGUMENT"


class Unsupported(Refusal):
    """This server lacks what is asked."""

    status = "UNIMPLEMENTED"


class OverLimit(Refusal):
    """A limit is passed."""

    status = "RESOURCE_EXHAUSTED"

    @classmethod
    def of(cls, limit: str, value: int, actual: int, what: str, advice: str = "") -> Self:
        """A limit's own refusal; `limit` is the name of its flag without dashes.

        `advice` is what helps here, where that is not what helps with the limit as a rule.
        """
        return cls.because(
            f"{what}: {actual} is over the limit of {value}; {advice or ADVICE[limit]}, "
            f"or start the server with a larger --{limit}",
            limit, value, actual,
        )  # fmt: skip

    @classmethod
    def because(cls, message: str, limit: str, value: int, actual: int) -> Self:
        """The same in other words."""
        flag = f"--{limit}"
        return cls("LIMIT_EXCEEDED", message, limit=limit, value=value, actual=actual, flag=flag)


class NotFound(Refusal):
    """No such graph is saved."""

    status = "NOT_FOUND"


class Conflict(Refusal):
    """What was expected is no longer so."""

    status = "ABORTED"


class Unavailable(Refusal):
    """The store cannot be reached now, is full, or has lost bytes."""

    status = "UNAVAILABLE"


class Stopped(Exception):  # noqa: N818 -- not an error: there is nobody to answer
    """The client cancelled the call, or its deadline passed."""


@contextmanager
def within(field: str) -> Iterator[None]:
    """What is refused here has its field inside of another."""
    try:
        yield
    except Refusal as refusal:
        raise refusal.within(field) from None


def _path(outer: str, inner: str) -> str:
    if not outer or not inner or inner.startswith("["):
        return outer + inner
    return f"{outer}.{inner}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to end a sentence with, or nothing: "; did you mean 'Sigmoid'?"."""
    lowered = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""
