"""Read the newest depth of another process. Run `mde live --shm mde-depth` in one terminal, and in another:

    python examples/shared_memory_reader.py mde-depth

Needs Linux, Python and NumPy; mirrordepth-edge need not be installed. The layout is described in
mirrordepth_edge/live/shared_memory.py.
"""

from __future__ import annotations

import mmap
import struct
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Depth(NamedTuple):
    number: int
    unix_ns: int
    depth_m: np.ndarray
    """float32 `[H, W]`, a copy."""


class DepthReader:
    def __init__(self, name: str) -> None:
        with (Path("/dev/shm") / name).open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, _, self._slots, self._first, self._slot_bytes = struct.unpack_from("<4sIQIIQ", self._memory)
        if (magic, version) != (b"MDED", 1):
            raise ValueError(f"{name} does not hold depth in version 1 of the layout.")
        self._newest = np.frombuffer(self._memory, "<u8", 1, offset=8)
        self._barrier = threading.Lock()

    def newest(self) -> Depth | None:
        """Return the newest depth, or None before the first."""
        while True:
            # Locking and unlocking is a memory barrier, so that the processor reads in this order.
            with self._barrier:
                number = int(self._newest[0])
            if number == 0:
                return None
            start = self._first + number % self._slots * self._slot_bytes
            with self._barrier:
                unix_ns, height, width = struct.unpack_from("<QII", self._memory, start)
                pixels = min(height * width, (self._slot_bytes - 64) // 4)
                depth_m = np.frombuffer(self._memory, "<f4", pixels, start + 64).copy()
            with self._barrier:
                written_since = int(self._newest[0]) - number
            if written_since < self._slots - 1:
                return Depth(number, unix_ns, depth_m.reshape(height, width))


def main() -> None:
    reader, last = DepthReader(sys.argv[1]), 0
    stop_at = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    while not stop_at or last < stop_at:
        depth = reader.newest()
        if depth is not None and depth.number != last:
            age_ms = (time.time_ns() - depth.unix_ns) / 1e6
            print(f"{depth.number}: nearest {np.nanmin(depth.depth_m):.2f} m, {age_ms:.0f} ms old", flush=True)
            last = depth.number
        time.sleep(0.005)


if __name__ == "__main__":
    main()
