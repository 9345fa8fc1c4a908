"""Access control of the web view, and the security headers of its responses.

On a loopback address every client is admitted if the Host header names that address, which prevents DNS rebinding. On
other addresses a client must present the token: as `?token=`, which sets a cookie, as that cookie, or as
`Authorization: Bearer`. WebSockets are refused to pages of another origin.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class AuthMiddleware:
    """ASGI middleware that checks each request and adds security headers to each response."""

    def __init__(self, app: ASGIApp, token: str | None, names: set[str] | None, cookie: str) -> None:
        """
        Args:
            token: the token that clients must present; None admits all.
            names: accepted host names in requests; None accepts any.
            cookie: name of the cookie that holds the token.
        """
        self._app = app
        self._token = None if token is None else token.encode("ascii")
        self._names = names
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import MutableHeaders
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        connection = HTTPConnection(scope)
        headers = dict(HEADERS)
        refusal = self._check(connection)
        if refusal is None and "token" in connection.query_params and self._token is not None:
            headers["set-cookie"] = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                response_headers = MutableHeaders(scope=message)
                response_headers.update(headers)
                if message["type"] == "websocket.http.response.start":
                    del response_headers["content-length"]  # uvicorn before 0.53 adds its own to a refused handshake
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            status, text = refusal
            await PlainTextResponse(text + "\n", status)(scope, receive, send_with_headers)

    def _check(self, connection: HTTPConnection) -> tuple[int, str] | None:
        """Return None to admit a client, else the HTTP status and the reason for refusing it."""
        host = connection.headers.get("host", "")
        if self._names is not None and _hostname(f"//{host}") not in self._names:
            return (
                421,
                "This server answers only as localhost. To reach it from other machines: mde live --web --host 0.0.0.0",
            )
        if self._token is not None and not self._has_token(connection):
            return 401, "Open the address that mde live printed; it ends in ?token=..."
        # Browsers always send an origin, so a client without one is not a web page.
        origin = connection.headers.get("origin", f"http://{host}")
        if connection.scope["type"] == "websocket" and origin not in (f"http://{host}", f"https://{host}"):
            return 403, "Pages of other sites are not allowed to connect."
        return None

    def _has_token(self, connection: HTTPConnection) -> bool:
        assert self._token is not None
        kind, _, bearer = connection.headers.get("authorization", "").partition(" ")
        candidates = (
            connection.query_params.get("token"),
            connection.cookies.get(self._cookie),
            bearer.strip() if kind.lower() == "bearer" else None,
        )
        return any(hmac.compare_digest(candidate.encode(), self._token) for candidate in candidates if candidate)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
