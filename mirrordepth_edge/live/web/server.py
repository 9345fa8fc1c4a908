"""Live depth in a browser: one page, one WebSocket per client, and figures for Prometheus.

What goes over the WebSocket. The server first sends `{"setup", "limits_m", "colours"}` as text, then packets
(`packets`) as binary messages: one, of the newest frame, for each `next` that a client says; frames that come
in between are not sent to it. On `ping` the server answers with its clock and `Metrics.status` as text. Any
other word ends the connection.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import ipaddress
import os
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
ASKED = 2
"""How many packets a client may ask for in advance: one may travel while it draws another."""
SILENT_S = 90.0
"""A client that says nothing for so long is gone; a page in the background still pings once a minute."""
LONGEST_WORD = 8
"""Bytes of a message from a client."""
STOP_S = 1.0
"""How long clients have to say goodbye."""
TRY_AGAIN_LATER, NOT_UNDERSTOOD = 1013, 1008
PAGE = Path(__file__).with_name("page")


class WebView:
    """A web server that shows live depth; an output of the live loop."""

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
            setup: source, model, backend, device and precision, as the page names them.
            limits_m: the ends of the colour scale that the page begins with.
            host: the address to listen on; 0.0.0.0 is all of this machine's.
            port: 0 takes a free one.
            token: what clients must know. Where None, addresses other than this machine's own get a new one.

        Raises:
            OptionError: port or token cannot be.
        """
        if not 0 <= port <= 65535:
            raise OptionError(f"{port} is no port.", "Ports are numbers from 0 to 65535.", f"--port {PORT}")
        if token is not None and not re.fullmatch(r"[\w.~-]{16,}", token, re.ASCII):
            why = "It takes at least 16 letters, digits and any of - . _ ~"
            raise OptionError("The token is too easy to guess, or no part of an address.", why, "Leave it out.")
        self._host, self._port, self._token = host, port, token
        self._gauges = Metrics(setup)
        self._encoder = Encoder()
        self._hello = {"setup": dict(setup), "limits_m": list(limits_m), "colours": colour_table()}
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> WebView:
        """Listen.

        Raises:
            InputError: the address or the port cannot be had.
            MissingError: starlette, uvicorn or websockets is not installed.
        """
        try:
            import uvicorn
            import websockets  # noqa: F401 - uvicorn's

            app = self._app()
        except ImportError as error:
            raise missing_package(error.name or "uvicorn", "mde live --web", "web") from error
        listening = listen(self._host, self._port)
        address, self._port = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local and self._token is None:
            self._token = secrets.token_urlsafe()
        names = {self._host.lower(), "localhost", "127.0.0.1", "::1"} if local else None
        self._server = uvicorn.Server(
            uvicorn.Config(
                AuthMiddleware(app, self._token, names, f"mde-{self._port}"),
                http="h11",
                ws="websockets-sansio",
                ws_max_size=LONGEST_WORD,
                ws_per_message_deflate=False,  # JPEG and zlib are dense already
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(STOP_S),
            )
        )
        self._encoder.start()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="mde-web", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._encoder.stop()
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """The address to open, with the token where one is needed; inside the context."""
        host = reachable_name(self._host)
        query = f"?token={self._token}" if self._token is not None else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/{query}"

    @property
    def problem(self) -> str | None:
        """What ended the server or the pictures, once one of them has ended."""
        failure = self._failure or self._encoder.failure
        return f"The web view stopped: {failure}" if failure is not None else None

    def show(self, result: LiveResult) -> None:
        """Take the newest result: count it and copy it."""
        self._gauges.count(result)
        self._encoder.put(result)

    def _run(self, listening: socket.socket) -> None:
        async def serve() -> None:
            await self._server.serve(sockets=[listening])
            # A client that does not read keeps its connection from closing by itself.
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

        try:
            asyncio.run(serve())
        except BaseException as error:  # told by `problem`: the live loop goes on
            self._failure = error
        finally:
            listening.close()

    # What is served

    def _app(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, PlainTextResponse
        from starlette.routing import Route, WebSocketRoute

        page, policy = assembled_page()

        async def show_page(request: Request) -> Response:
            return HTMLResponse(page, headers={"content-security-policy": policy})

        async def metrics(request: Request) -> Response:
            return PlainTextResponse(self._gauges.prometheus(), media_type="text/plain; version=0.0.4")

        async def health(request: Request) -> Response:
            silent_s = self._gauges.silent_s
            stalled = silent_s > STALLED_S
            text = f"no frame for {silent_s:.0f} s\n" if stalled else "frames are coming\n"
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

        full = self._gauges.clients >= MAX_CLIENTS
        self._gauges.clients += not full
        try:
            await client.accept()
            if full:
                await client.close(TRY_AGAIN_LATER, f"{MAX_CLIENTS} others are watching")
                return
            await client.send_json(self._hello)
            asked: asyncio.Queue[None] = asyncio.Queue(ASKED)
            sending = asyncio.create_task(self._send_frames(client, asked))
            try:
                await self._answer(client, asked)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except (WebSocketDisconnect, asyncio.TimeoutError):
            pass
        finally:
            self._gauges.clients -= not full

    async def _send_frames(self, client: WebSocket, asked: asyncio.Queue[None]) -> None:
        number = None
        while True:
            await asked.get()
            packet = await self._encoder.newer_than(-1 if number is None else number)
            await client.send_bytes(packet.data)
            self._gauges.sent += 1
            self._gauges.skipped += 0 if number is None else packet.number - number - 1
            number = packet.number

    async def _answer(self, client: WebSocket, asked: asyncio.Queue[None]) -> None:
        while await asyncio.wait_for(self._answer_one(client, asked), SILENT_S):
            pass

    async def _answer_one(self, client: WebSocket, asked: asyncio.Queue[None]) -> bool:
        """Do as the client's next word says; False when it is over."""
        message = await client.receive()
        word = message.get("text")
        if word == "ping":
            await client.send_json({"now_ms": time.monotonic() * 1e3, **self._gauges.status()})
        elif word == "next":
            with suppress(asyncio.QueueFull):
                asked.put_nowait(None)
        elif message["type"] == "websocket.disconnect":
            return False
        else:
            await client.close(NOT_UNDERSTOOD, "not understood")
            return False
        return True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address or the port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_address(host, error) from error
    try:
        # So that a restart need not wait for the last run's connections; on Windows it would take others' ports.
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            why = "Another program listens there, perhaps another mde live."
            raise InputError(f"Port {port} is in use.", why, f"--port {port % 65535 + 1}") from error
        if error.errno == errno.EACCES:
            why = "Ports below 1024 belong to the system."
            raise InputError(f"You may not listen on port {port}.", why, f"--port {PORT}") from error
        raise _no_address(host, error) from error
    return listening


def _no_address(host: str, error: OSError) -> InputError:
    cure = f"--host {HOST} for this machine alone, --host 0.0.0.0 for all of its addresses"
    return InputError(f"Cannot listen on {host}.", f"{error.strerror or error}", cure)


def reachable_name(host: str) -> str:
    """What to call this machine: its outward address where it listens on all of them."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing; the kernel chooses the way
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def colour_table() -> list[list[int]]:
    """OpenCV's cividis from dark to bright: red, green and blue of 256 levels."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_CIVIDIS)
    rgb: list[list[int]] = bgr.reshape(256, 3)[:, ::-1].tolist()
    return rgb


def assembled_page() -> tuple[str, str]:
    """The page with its style and script inside, and the content policy that allows these two alone."""
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    page = page.replace("{{ style }}", style).replace("{{ script }}", script)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    """As a content policy names it (CSP level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
