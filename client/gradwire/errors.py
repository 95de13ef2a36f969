"""Everything that can go wrong, as one tree.

GradwireError                 .reason (stable, to dispatch on), .message, .facts
├── InvalidRequestError       what was asked is wrong: change it         INVALID_ARGUMENT
│   ├── FileError             the file is not a whole graph file, or cannot be read or written
│   └── TextError             a text or an expression cannot be read; .line, .column
├── UnsupportedError          this server lacks what is asked            UNIMPLEMENTED
├── NotFoundError             no such graph is saved                     NOT_FOUND
├── ConflictError             a name refers to something else            ABORTED
├── LimitError                a limit is passed; says which flag         RESOURCE_EXHAUSTED
├── UnavailableError          no server answers, or its store does not   UNAVAILABLE
├── DeadlineError             the timeout passed first                   DEADLINE_EXCEEDED
├── CancelledError            the call was cancelled                     CANCELLED
└── ServerError               the server failed; its log says why        INTERNAL and others
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

__all__ = [
    "CancelledError",
    "ConflictError",
    "DeadlineError",
    "FileError",
    "GradwireError",
    "InvalidRequestError",
    "LimitError",
    "NotFoundError",
    "ServerError",
    "TextError",
    "UnavailableError",
    "UnsupportedError",
    "error_for",
    "nearest",
    "text_error",
]


class GradwireError(Exception):
    """Anything that goes wrong in Gradwire."""

    def __init__(self, reason: str, message: str, facts: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.facts = dict(facts or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.message, self.facts), self.__dict__


class InvalidRequestError(GradwireError):
    """What was asked is wrong."""


class FileError(InvalidRequestError):
    """The file is not a whole graph file, or cannot be read or written."""


class TextError(InvalidRequestError):
    """A text or an expression cannot be read; the facts `line` and `column` say where."""

    @property
    def line(self) -> int:
        """From 1 on."""
        return int(self.facts["line"])

    @property
    def column(self) -> int:
        """In characters, from 1 on."""
        return int(self.facts["column"])


class UnsupportedError(GradwireError):
    """This server lacks what is asked."""


class NotFoundError(GradwireError):
    """No such graph is saved."""


class ConflictError(GradwireError):
    """A name refers to something else than was expected; `facts["digest"]` says to what."""


class LimitError(GradwireError):
    """A limit of the server is passed."""


class UnavailableError(GradwireError):
    """No server answers at the address, or its store of graphs does not."""


class DeadlineError(GradwireError):
    """The timeout passed before the answer came."""


class CancelledError(GradwireError):
    """The call was cancelled."""


class ServerError(GradwireError):
    """The server failed."""


_BY_STATUS: dict[str, type[GradwireError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "UNIMPLEMENTED": UnsupportedError,
    "NOT_FOUND": NotFoundError,
    "ABORTED": ConflictError,
    "RESOURCE_EXHAUSTED": LimitError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": CancelledError,
}


def error_for(
    status: str, reason: str, message: str, facts: Mapping[str, str] | None = None
) -> GradwireError:
    """The error for a gRPC status, by its name."""
    return _BY_STATUS.get(status, ServerError)(reason or status, message, facts)


def text_error(reason: str, source: str, at: int, what: str) -> TextError:
    """What is wrong with a text, at an offset in it."""
    line, column = source.count("\n", 0, at) + 1, at - source.rfind("\n", 0, at)
    return TextError(
        reason,
        f"line {line}, column {column}: {what}",
        {"line": str(line), "column": str(column)},
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to end a sentence with, or nothing."""
    lowered = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""
