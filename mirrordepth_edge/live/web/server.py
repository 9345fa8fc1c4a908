"""Show live depth in browsers: a web page, a WebSocket per client, and metrics for Prometheus.

WebSocket protocol: the server first sends `{"setup", "limits_m", "colours"}` as text. For each `next` from the client
it sends the newest frame once, as a binary packet (see `packets`); frames in between are skipped. It answers `ping`
with its clock and `Metrics.status` as text. Any other message closes the connection.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import ipaddress
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mirrordepth_edge.errors import InputError, OptionError, missing_package
from mirrordepth_edge.live.web.auth import AuthMiddleware
from mirrordepth_edge.live.web.metrics import STALLED_S, Metrics
from mirrordepth_edge.live.web.packets import Encoder

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from mirrordepth_edge.live.result import LiveResult

HOST, PORT = "127.0.0.1", 8000
MAX_CLIENTS = 20
MAX_REQUESTS = 2
"""Packets that a client may request in advance: one can be in flight while it draws another."""
CLIENT_TIMEOUT_S = 90.0
"""Time without a message after which a client is disconnected. A page in the background still pings once a minute."""
MAX_MESSAGE_BYTES = 8
"""Limit for messages from clients."""
STOP_S = 1.0
"""Time for clients to close their connections."""
TRY_AGAIN_LATER, POLICY_VIOLATION = 1013, 1008  # WebSocket close codes
PAGE = Path(__file__).with_name("page")


class WebView:
    """An output of the live loop that shows results on a web page."""

    name = "web"

    def __init__(
        self,
        setup: Mapping[str, str],
        limits_m: tuple[float, float],
        host: str = HOST,
        port: int = PORT,
        token: str | None = None,
    ) -> None:
        """
        Args:
            setup: source, model, backend, device and precision, to show on the page.
            limits_m: initial limits of the colour scale.
            host: address to listen on; 0.0.0.0 for all addresses of this machine.
            port: port to listen on; 0 for any free port.
            token: token that clients must present. If None, a random one is made, unless the address is loopback.

        Raises:
            OptionError: invalid port or token.
        """
        if not 0 <= port <= 65535:
            raise OptionError(f"{port} is not a port number.", "Port numbers go from 0 to 65535.", f"--port {PORT}")
        if token is not None and not re.fullmatch(r"[\w.~-]{16,}", token, re.ASCII):
            why = "It needs at least 16 characters, which may be letters, digits and - . _ ~"
            raise OptionError("The token is too short, or cannot be part of a URL.", why, "Leave it out.")
        self._host, self._port, self._token = host, port, token
        self._metrics = Metrics(setup)
        self._encoder = Encoder()
        self._greeting = {"setup": dict(setup), "limits_m": list(limits_m), "colours": colour_table()}
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> WebView:
        """Start listening.

        Raises:
            InputError: the address or port is not available.
            MissingError: starlette, uvicorn or websockets is not installed.
        """
        try:
            import uvicorn
            import websockets  # noqa: F401 - used by uvicorn

            app = self._app()
        except ImportError as error:
            raise missing_package(error.name or "uvicorn", "mde live --web", "web") from error
        listener = listen(self._host, self._port)
        address, self._port = listener.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local and self._token is None:
            self._token = secrets.token_urlsafe()
        names = {self._host.lower(), "localhost", "127.0.0.1", "::1"} if local else None
        self._server = uvicorn.Server(
            uvicorn.Config(
                AuthMiddleware(app, self._token, names, f"mde-{self._port}"),
                http="h11",
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # packets are compressed already
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(STOP_S),
            )
        )
        self._encoder.start()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="mde-web", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._encoder.stop()
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """The URL to open, with the token if one is required. Valid inside the context."""
        host = reachable_name(self._host)
        query = f"?token={self._token}" if self._token is not None else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/{query}"

    @property
    def problem(self) -> str | None:
        """Why the server or the encoder has stopped; None while both run."""
        failure = self._failure or self._encoder.failure
        return f"The web view stopped: {failure}" if failure is not None else None

    def show(self, result: LiveResult) -> None:
        """Count a result, and copy it for clients that may ask for it."""
        self._metrics.count(result)
        self._encoder.put(result)

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            await self._server.serve(sockets=[listener])
            # A client that does not read would keep its connection open.
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

        try:
            asyncio.run(serve())
        except BaseException as error:  # reported by `problem`; the live loop continues
            self._failure = error
        finally:
            listener.close()

    def _app(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, PlainTextResponse
        from starlette.routing import Route, WebSocketRoute

        page, policy = build_page()

        async def show_page(request: Request) -> Response:
            return HTMLResponse(page, headers={"content-security-policy": policy})

        async def metrics(request: Request) -> Response:
            return PlainTextResponse(self._metrics.prometheus(), media_type="text/plain; version=0.0.4")

        async def health(request: Request) -> Response:
            silent_s = self._metrics.silent_s
            stalled = silent_s > STALLED_S
            text = f"no frame for {silent_s:.0f} s\n" if stalled else "ok\n"
            return PlainTextResponse(text, 503 if stalled else 200)

        return Starlette(
            routes=[
                Route("/", show_page),
                Route("/metrics", metrics),
                Route("/healthz", health),
                WebSocketRoute("/frames", self._client),
            ]
        )

    async def _client(self, client: WebSocket) -> None:
        from starlette.websockets import WebSocketDisconnect

        full = self._metrics.clients >= MAX_CLIENTS
        self._metrics.clients += not full
        try:
            await client.accept()
            if full:
                await client.close(TRY_AGAIN_LATER, f"{MAX_CLIENTS} browsers are already connected")
                return
            await client.send_json(self._greeting)
            requests: asyncio.Queue[None] = asyncio.Queue(MAX_REQUESTS)
            sending = asyncio.create_task(self._send_frames(client, requests))
            try:
                while await asyncio.wait_for(self._handle_message(client, requests), CLIENT_TIMEOUT_S):
                    pass
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except (WebSocketDisconnect, asyncio.TimeoutError):
            pass
        finally:
            self._metrics.clients -= not full

    async def _send_frames(self, client: WebSocket, requests: asyncio.Queue[None]) -> None:
        number = None
        while True:
            await requests.get()
            packet = await self._encoder.newer_than(-1 if number is None else number)
            await client.send_bytes(packet.data)
            self._metrics.sent += 1
            self._metrics.skipped += 0 if number is None else packet.number - number - 1
            number = packet.number

    async def _handle_message(self, client: WebSocket, requests: asyncio.Queue[None]) -> bool:
        """Answer the client's next message; return False when the connection ends."""
        message = await client.receive()
        text = message.get("text")
        if text == "ping":
            await client.send_json({"now_ms": time.monotonic() * 1e3, **self._metrics.status()})
        elif text == "next":
            with suppress(asyncio.QueueFull):
                requests.put_nowait(None)
        elif message["type"] == "websocket.disconnect":
            return False
        else:
            await client.close(POLICY_VIOLATION, "unknown message")
            return False
        return True


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        InputError: the address or port is not available.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # `::` also serves IPv4 clients, which `create_server` turns off by default.
        dual_stack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=dual_stack)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "Another program uses it, perhaps another mde live."
            raise InputError(f"Port {port} is in use.", why, f"--port {port % 65535 + 1}") from error
        if error.errno == errno.EACCES:
            why = "Ports below 1024 need administrator rights."
            raise InputError(f"No permission to listen on port {port}.", why, f"--port {PORT}") from error
        cure = f"--host {HOST} for this machine only, --host 0.0.0.0 for all its addresses"
        raise InputError(f"Cannot listen on {host}.", f"{error.strerror or error}", cure) from error


def reachable_name(host: str) -> str:
    """Return a host name for the URL: this machine's outgoing address if the server listens on all addresses."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    family, remote = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))  # UDP: sends nothing, but selects the outgoing address
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def colour_table() -> list[list[int]]:
    """Return OpenCV's cividis colour map as 256 RGB values, from dark to bright."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_CIVIDIS)
    rgb: list[list[int]] = bgr.reshape(256, 3)[:, ::-1].tolist()
    return rgb


def build_page() -> tuple[str, str]:
    """Return the page with inline style and script, and the content security policy that allows only these two."""
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    page = page.replace("{{ style }}", style).replace("{{ script }}", script)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    """Return the hash source of a content security policy (CSP level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
