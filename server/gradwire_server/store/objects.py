"""Objects by key: the few requests that a store in a bucket is made of, and who answers them.

An operation of the store is a generator: it yields requests and is sent their answers. A bucket
answers them one after another; a test answers those of several clients in every order there is.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from gradwire_server.errors import Refusal, Unavailable
from gradwire_server.store.base import StoreError

T = TypeVar("T")

#: Objects that one request lists at most: what S3 itself does.
PAGE = 1000

#: Requests at the same time, where one operation has many.
_PARALLEL = 16

#: Longer, and a call would rather fail: whoever asked can ask again.
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=20)}

#: At the start nobody waits for a store that may come back: what is wrong is said.
_FIRST_RETRIES: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=2)}

#: A request takes 30 seconds at most; those with the bytes of a graph may need longer.
_LONG_BYTES = 4 << 20
_LONG = "15m"

#: What AWS's variables say about connections; obstore forgets them where it is given options.
_CONNECTION_OPTIONS = (
    "allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate",
    "proxy_excludes", "root_certificate", "user_agent",
)  # fmt: skip
_TRUE = ("1", "true", "on", "yes", "y")

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

#: Where keys may come from instead; without one of these nobody is asked for any.
_OTHER_KEYS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
)


class Meta(NamedTuple):
    """What a bucket knows of an object."""

    key: str
    size: int
    tag: str  # of this version of it
    modified: float  # seconds since 1970


class Head(NamedTuple):
    """Asks for an object's Meta, or None."""

    key: str


class Get(NamedTuple):
    """Asks for an object's Meta and its first bytes, all without `most`; None: it is not there."""

    key: str
    most: int | None = None


class Slice(NamedTuple):
    """Asks for bytes of an object, fewer where it ends before; None: it is not there."""

    key: str
    start: int
    length: int


class List(NamedTuple):
    """Asks for the Metas of at most PAGE objects in order of their keys, which follow on one."""

    prefix: str
    after: str = ""


class Swap(NamedTuple):
    """Puts an object in the place of one version, or of none (""); its new tag, None: refused.

    A refusal may come although it was put: the answer to a first try was lost.
    """

    key: str
    pieces: tuple[bytes, ...]
    tag: str


class Put(NamedTuple):
    """Puts an object, whatever is there; its tag."""

    key: str
    data: bytes


class Delete(NamedTuple):
    """Deletes an object, if it is there."""

    key: str


class Each(NamedTuple):
    """Several requests, answered in any order; a list of their answers."""

    requests: tuple[Any, ...]


#: An operation: yields requests, is sent answers, returns T.
Steps = Generator[Any, Any, T]


def listed(prefix: str, after: str = "") -> Steps[list[Meta]]:
    """All objects below a prefix, which ends with a slash."""
    metas: list[Meta] = []
    while True:
        page = yield List(prefix, after)
        metas += page
        if len(page) < PAGE:
            return metas
        after = page[-1].key


class Bucket:
    """Answers requests from an S3-compatible store (STORE_UNAVAILABLE)."""

    def __init__(self, address: str) -> None:
        """The place s3://bucket/prefix; endpoint and keys are in AWS's variables (StoreError)."""
        try:
            import obstore
            from obstore import exceptions
        except ImportError:
            raise StoreError(
                f"the store at {address} needs obstore: pip install 'gradwire[s3]'"
            ) from None
        _require_configuration(address)
        self._address = address
        self._calls: Any = obstore
        self._conflicts = exceptions.AlreadyExistsError, exceptions.PreconditionError
        self._failures = exceptions.BaseError, OSError, ValueError
        self._bad_path = exceptions.InvalidPathError
        self._objects = self._opened(_RETRIES)
        self._large_objects = self._opened(_RETRIES, _patient_options())
        self._pool = ThreadPoolExecutor(_PARALLEL, "gradwire-s3")

    def probe(self) -> None:
        """Asks once, and says what is wrong (StoreError)."""
        first = self._opened(_FIRST_RETRIES)
        try:
            with self._explained():
                next(iter(self._calls.list(first, prefix="names/", chunk_size=1)), None)
        except Refusal as failure:
            raise StoreError(f"the store at {self._address}: {failure.message}") from None

    def run(self, steps: Steps[T]) -> T:
        """Answers what an operation asks for, until it returns (STORE_UNAVAILABLE)."""
        answer = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as end:
                found: T = end.value
                return found
            try:
                answer = self.answer(request)
            except BaseException:
                steps.close()
                raise

    def answer(self, request: Any) -> Any:
        if isinstance(request, Each):
            return list(self._pool.map(self.answer, request.requests))
        with self._explained():
            return getattr(self, f"_{type(request).__name__.lower()}")(request)

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _opened(self, retries: Any, options: Any = None) -> Any:
        from obstore.store import S3Store as Objects

        with self._explained():
            return Objects.from_url(self._address, retry_config=retries, client_options=options)

    def _head(self, request: Head) -> Meta | None:
        try:
            return _meta(self._calls.head(self._objects, request.key))
        except FileNotFoundError:
            return None

    def _get(self, request: Get) -> tuple[Meta, bytes] | None:
        options: Any = {"range": (0, request.most)} if request.most else None
        try:
            found = self._calls.get(self._objects, request.key, options=options)
            return _meta(found.meta), bytes(found.bytes())
        except FileNotFoundError:
            return None
        except self._failures as failure:
            if not _is_beyond_end(failure):
                raise
            meta = self._head(Head(request.key))  # of no bytes at all
            return None if meta is None else (meta, b"")

    def _slice(self, request: Slice) -> bytes | None:
        try:
            return bytes(
                self._calls.get_range(
                    self._objects, request.key, start=request.start, length=request.length
                )
            )
        except FileNotFoundError:
            return None
        except self._failures as failure:
            if not _is_beyond_end(failure):
                raise
            return b""

    def _list(self, request: List) -> list[Meta]:
        pages = self._calls.list(
            self._objects, prefix=request.prefix, offset=request.after or None, chunk_size=PAGE
        )
        return [_meta(meta) for meta in next(iter(pages), [])]

    def _swap(self, request: Swap) -> str | None:
        size = sum(map(len, request.pieces))
        objects = self._large_objects if size > _LONG_BYTES else self._objects
        mode = {"e_tag": request.tag} if request.tag else "create"
        try:
            put = self._calls.put(
                objects, request.key, list(request.pieces), mode=mode, use_multipart=False
            )
        except (*self._conflicts, FileNotFoundError):
            return None
        tag: str = put["e_tag"]
        return tag

    def _put(self, request: Put) -> str:
        tag: str = self._calls.put(self._objects, request.key, request.data)["e_tag"]
        return tag

    def _delete(self, request: Delete) -> None:
        self._calls.delete(self._objects, request.key)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._bad_path as failure:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"the store of graphs: {_first_line(failure)}; delete that object, which is not "
                "one of the store's",
            ) from failure
        except self._failures as failure:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"the store of graphs: {_first_line(failure)}{_advice(failure)}",
            ) from failure


def _require_configuration(address: str) -> None:
    """A bucket's name, and keys or where they are from (StoreError)."""
    bucket = address.removeprefix("s3://").partition("/")[0]
    if not bucket:
        raise StoreError(f"the store at {address} names no bucket; write s3://BUCKET/PREFIX")
    endpoints = (os.environ.get(name) for name in _ENDPOINTS)
    endpoint = next((each for each in endpoints if each), "")
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in _TRUE
    if endpoint.startswith("http://") and not allowed:
        raise StoreError(
            f"the store at {address}: its endpoint {endpoint} is not encrypted; set "
            "AWS_ALLOW_HTTP=true if that is meant, or give one of https"
        )
    missing = [name for name in _KEYS if not os.environ.get(name)]
    if missing and not any(os.environ.get(name) for name in _OTHER_KEYS):
        raise StoreError(
            f"the store at {address} needs keys, but {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set; set them, or AWS_METADATA_ENDPOINT="
            "http://169.254.169.254 for those of an instance, or AWS_SKIP_SIGNATURE=true for a "
            "bucket that asks for none"
        )


def _patient_options() -> dict[str, Any]:
    """What the environment says about connections, with time for the bytes of a graph."""
    options: dict[str, Any] = {"timeout": _LONG}
    for name in _CONNECTION_OPTIONS:
        if text := os.environ.get(f"AWS_{name.upper()}"):
            options[name] = text.lower() in _TRUE if name.startswith("allow_") else text
    return options


def _is_beyond_end(failure: BaseException) -> bool:
    return "416 Range Not Satisfiable" in str(failure)


def _first_line(failure: BaseException) -> str:
    (first, *_) = str(failure).splitlines() or [""]
    return first.partition(": <?xml")[0][:300]


def _advice(failure: BaseException) -> str:
    """What to do about it: not everything passes."""
    text = str(failure)
    if "NoSuchBucket" in text:
        return "; there is no such bucket: make it, or name another"
    if isinstance(failure, PermissionError) or any(
        code in text for code in ("AccessDenied", "403 Forbidden", "InvalidAccessKeyId")
    ):
        return "; check the keys, and what they may do in the bucket"
    if "error sending request" in text:
        return "; nobody answers there: check the endpoint (AWS_ENDPOINT_URL), or ask again later"
    return "; ask again later"


def _meta(meta: Any) -> Meta:
    return Meta(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())
