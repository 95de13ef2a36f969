"""Who may use the page: its own scripts and programs, and no other site that is open beside it.

Any site that a browser shows can send requests to this machine. What a browser says of them decides
here, and it cannot be made to say otherwise by a script:

- `Host` is an IP address, localhost, or a name given to the server. A foreign name that was made to
  point here (DNS rebinding) is refused. Its port is the browser's affair: behind a tunnel or a
  container it is not ours.
- `Origin`, which browsers send with every POST and WebSocket, is the page's own: that of `Host`.
- `Sec-Fetch-Site` is not another site's, unless somebody follows a link to the page.
- A POST has a content type that no form can send, and other sites not without asking first; they
  ask in vain, as nothing here answers with CORS headers.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradwire_server.errors import Invalid, Refusal

_FORM_TYPES = {"", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}

_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses what another site sends, and tells the browser what the page may do."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        """`names` are those that the server may be called by, beside localhost."""
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except Refusal as refusal:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # before it is accepted: status 403
            else:
                await refused(refusal, 403)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            raise Invalid(
                "HOST_REFUSED",
                f"host: is {host[:80]!r} but must be localhost, an IP address, or a name given "
                "with --web-host",
            )
        origins = [origin.lower() for origin in headers.getlist("origin")]
        if any(origin not in (f"http://{host}", f"https://{host}") for origin in origins):
            raise Invalid(
                "ORIGIN_REFUSED",
                f"origin: is {origins[0][:80]!r} but must be that of the page, {host}",
            )
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not _is_link(scope, headers):
            raise Invalid(
                "ORIGIN_REFUSED", f"sec-fetch-site: is {site[:80]!r} but must be same-origin"
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope.get("method") == "POST" and kind in _FORM_TYPES:
            raise Invalid(
                "CONTENT_TYPE_REFUSED",
                f"content-type: is {kind!r}, which other sites can send; send one of this "
                "protocol, such as application/octet-stream",
            )

    def _is_ours(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name = host
        elif not port.isdecimal():
            return False
        if name in self._names:
            return True
        try:
            ip_address(name[1:-1] if name.startswith("[") else name)
        except ValueError:
            return False
        return True


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether somebody goes to the page from another site, in a window of its own."""
    return (
        scope.get("method") == "GET"
        and scope["path"] == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def refused(refusal: Refusal, status: int) -> JSONResponse:
    """A refusal as the page reads it."""
    content = {"reason": refusal.reason, "message": refusal.message, "facts": refusal.facts}
    return JSONResponse(content, status, {"Cache-Control": "no-store"})
