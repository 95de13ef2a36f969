"""Everything that is served over HTTP."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from starlette.websockets import WebSocket

from gradwire_server.limits import Limits
from gradwire_server.web.bodies import Bodies
from gradwire_server.web.calls import Servicer
from gradwire_server.web.guard import Guard
from gradwire_server.web.page import Readers, Web
from gradwire_server.web.reading import Reading
from gradwire_server.web.rpc import PATH, RpcApplication
from gradwire_server.web.session import converse_over

_NOT_BUILT = """\
The page is not built: {index} is missing.
Build it with `npm ci && npm run build` in the folder web of the source, and load this page again.
gRPC, gRPC-Web and Connect work without it.
"""


def application(service: Servicer, limits: Limits, web: Web, readers: Readers) -> Guard:
    """The page, and what it calls."""
    reading = Reading(readers, limits)
    rpc = RpcApplication(service, limits.max_message_bytes)

    async def session(websocket: WebSocket) -> None:
        await converse_over(websocket, service)

    routes = [
        Route("/", partial(_index, web.ui), methods=["GET"]),
        Route("/open", reading.open, methods=["POST"]),
        Route("/parse", reading.parse, methods=["POST"]),
        WebSocketRoute("/session", session),
        Mount(PATH, rpc),
        Mount("/", _Files(directory=web.ui, check_dir=False)),
    ]
    served = Starlette(routes=routes, exception_handlers={HTTPException: _error})
    return Guard(Bodies(served, service.held), web.names)


async def _index(ui: Path, _: Request) -> Response:
    index = ui / "index.html"
    if not index.is_file():
        return PlainTextResponse(_NOT_BUILT.format(index=index.name), 503)
    return FileResponse(index, headers={"Cache-Control": "no-cache"})


class _Files(StaticFiles):
    """The page's files; those under assets/ have their digest in their name and never change."""

    async def check_config(self) -> None:
        """The page need not be built."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        found = await super().get_response(path, scope)
        immutable = path.startswith("assets/") and found.status_code < 400
        found.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if immutable else "no-cache"
        )
        return found


async def _error(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    return PlainTextResponse(
        f"{request.method} {request.url.path[:80]}: {failure.detail}\n",
        failure.status_code,
        headers=failure.headers,
    )
