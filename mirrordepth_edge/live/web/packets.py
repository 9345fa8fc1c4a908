"""Frames on their way to browsers: one packet per frame for all of them, made when one waits for it.

A packet is, in this order: the header's length (uint32, little-endian), the header (JSON: `number`,
`captured_ms` on this process's monotonic clock, `latency_ms`, `dropped`, `width`, `height`, `jpeg_bytes`), the photo
(JPEG) and the depth (`coded_depth`).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.imaging.postprocess import DepthMap, to_millimetres

if TYPE_CHECKING:
    from mirrordepth_edge.imaging.preprocess import Frame
    from mirrordepth_edge.live.result import LiveResult

JPEG_QUALITY = 80


@dataclass(frozen=True)
class Packet:
    """One frame, coded."""

    number: int
    data: bytes


@dataclass(frozen=True)
class _Raw:
    number: int
    captured_ms: float
    latency_ms: float
    dropped: int
    frame: Frame
    depth_m: DepthMap


def coded_depth(depth_mm: npt.NDArray[np.uint16]) -> bytes:
    """Millimetres without loss, at half of a PNG's size and time: depth is smooth, so its mixed differences are small.

    The differences down, of these the differences to the right, both modulo 2^16 and over a border of
    zeros; signs folded into the lowest bit (0, -1, 1, -2, … become 0, 1, 2, 3, …); the plane of all high bytes, then
    that of all low bytes; zlib (RFC 1950).

    Args:
        depth_mm: uint16 `[H, W]`.
    """
    zero = np.uint16(0)
    signed = np.diff(np.diff(depth_mm, axis=0, prepend=zero), axis=1, prepend=zero).view(np.int16)
    folded = ((signed << 1) ^ (signed >> 15)).view(np.uint16)
    planes = np.stack([folded >> 8, folded & 0xFF]).astype(np.uint8)
    # Runs and single bytes are all there is to find in noise of a few millimetres, as in a PNG.
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compressor.compress(planes.data) + compressor.flush()


def encode(raw: _Raw) -> Packet:
    """The packet of a frame."""
    bgr = cv2.cvtColor(raw.frame, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    height, width = raw.depth_m.shape
    fields = {
        "number": raw.number,
        "captured_ms": raw.captured_ms,
        "latency_ms": raw.latency_ms,
        "dropped": raw.dropped,
        "width": width,
        "height": height,
        "jpeg_bytes": len(jpeg),
    }
    header = json.dumps(fields).encode("ascii")
    parts = len(header).to_bytes(4, "little"), header, jpeg, coded_depth(to_millimetres(raw.depth_m))
    return Packet(raw.number, b"".join(parts))


class Encoder:
    """The newest frame, coded in a thread of its own, at most once, and only if a client waits for it."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        """What ended the thread; nothing is coded after it."""
        self._changed = threading.Condition()
        self._raw: _Raw | None = None
        self._packet: Packet | None = None
        self._waiting: list[tuple[int, asyncio.Future[Packet]]] = []
        self._stopping = False
        # A daemon, so that nothing holds up a second Ctrl-C.
        self._thread = threading.Thread(target=self._run, name="mde-web-encoder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Code no more; the thread has ended when this returns."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def put(self, result: LiveResult) -> None:
        """Copy a result; it replaces an older one that nobody waited for."""
        # The wall clock may be set while a run lasts; what is shown is counted on the monotonic one.
        captured_ms = time.monotonic() * 1e3 - (time.time_ns() - result.captured_unix_ns) / 1e6
        frame, depth_m = result.frame.copy(), result.depth_m.copy()
        raw = _Raw(result.number, captured_ms, result.latency_ms, result.dropped, frame, depth_m)
        with self._changed:
            self._raw = raw
            if self._waiting:
                self._changed.notify()

    async def newer_than(self, number: int) -> Packet:
        """The newest frame's packet as soon as its number is greater than this one."""
        future: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append((number, future))
            self._changed.notify()
        return await future

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException as error:  # told by `failure`: a picture that fails must not end the run
            self.failure = error

    def _serve(self) -> bool:
        """Wait until a client can be given a newer frame, and give it to all that wait for it; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._is_wanted())
            if self._stopping:
                return False
            raw, self._raw = self._raw, None
        packet = encode(raw) if raw is not None else self._packet
        assert packet is not None
        self._packet = packet
        with self._changed:
            ready = [future for number, future in self._waiting if number < packet.number]
            self._waiting = [(number, future) for number, future in self._waiting if number >= packet.number]
        if ready:
            # All of them belong to the server's one loop, which has ended if the server was stopped first.
            loop = ready[0].get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, ready, packet)
        return True

    def _is_wanted(self) -> bool:
        self._waiting = [(number, future) for number, future in self._waiting if not future.cancelled()]
        newest = self._raw or self._packet
        return newest is not None and any(number < newest.number for number, _ in self._waiting)


def _deliver(futures: Sequence[asyncio.Future[Packet]], packet: Packet) -> None:
    for future in futures:
        if not future.done():
            future.set_result(packet)
