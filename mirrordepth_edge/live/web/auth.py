"""Who may come in to the web view, and what every answer says to the browser.

On this machine's own address everybody, provided that the request names that address, which keeps out other sites'
pages (DNS rebinding). On any other address who knows the token: as `?token=`, which leaves a cookie, as that cookie, or
as `Authorization: Bearer`. A page of another origin gets no WebSocket.
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
    """Lets in who may, and gives every answer the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, token: str | None, names: set[str] | None, cookie: str) -> None:
        """
        Args:
            token: what a client must know; None lets everybody in.
            names: hosts that a request may name; None takes any.
            cookie: the name under which browsers keep the token.
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
        refusal = self._refusal(connection)
        if refusal is None and "token" in connection.query_params and self._token is not None:
            headers["set-cookie"] = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                answer = MutableHeaders(scope=message)
                answer.update(headers)
                if message["type"] == "websocket.http.response.start":
                    del answer["content-length"]  # uvicorn before 0.53 adds its own to a refused handshake
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_guarded)
        else:
            status, text = refusal
            await PlainTextResponse(text + "\n", status)(scope, receive, send_guarded)

    def _refusal(self, connection: HTTPConnection) -> tuple[int, str] | None:
        """Status and reason, or None for who may come in."""
        named = connection.headers.get("host", "")
        if self._names is not None and _host(f"//{named}") not in self._names:
            return (
                421,
                "This server answers to localhost alone. To reach it from elsewhere: mde live --web --host 0.0.0.0",
            )
        if self._token is not None and not self._knows_token(connection):
            return 401, "Open the address that mde live printed: it ends in ?token=..."
        # Browsers always say it; a program that does not is no page.
        origin = connection.headers.get("origin", f"http://{named}")
        if connection.scope["type"] == "websocket" and origin not in (f"http://{named}", f"https://{named}"):
            return 403, "A page of another site may not watch."
        return None

    def _knows_token(self, connection: HTTPConnection) -> bool:
        assert self._token is not None
        kind, _, bearer = connection.headers.get("authorization", "").partition(" ")
        told = (
            connection.query_params.get("token"),
            connection.cookies.get(self._cookie),
            bearer.strip() if kind.lower() == "bearer" else None,
        )
        return any(hmac.compare_digest(words.encode(), self._token) for words in told if words is not None)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
