"""Depth for another process on this machine, through shared memory: no socket, and nobody waits for anybody.

POSIX shared memory NAME, which on Linux is the file /dev/shm/NAME; little-endian:

    offset  type      what
    0       char[4]   "MDED"
    4       uint32    version of this layout, 1
    8       uint64    n, the number of frames so far; 0 before the first
    16      uint32    slots, S
    20      uint32    offset of the first slot
    24      uint64    bytes from one slot to the next

Frame n is in slot n mod S:

    offset  type      what
    0       uint64    Unix time of its capture in nanoseconds
    8       uint32    height, H
    12      uint32    width, W
    64      float32   H x W metres, row after row; 0, NaN and infinity mean none

To read: take n, copy slot n mod S, take n again. Where it has grown by S - 1 or more, the copy may be torn: the
writer may have begun frame n + S in its place. With S = 4 that means a reader that slept for three frames in the
middle of copying; it starts again. On ARM a reader in C puts an acquire fence after each taking of n.
`examples/shared_memory_reader.py` is such a reader.
"""

from __future__ import annotations

import re
import shutil
import threading
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.live.result import LiveResult

MAGIC, VERSION = b"MDED", 1
SLOTS = 4
HEADER_BYTES = SLOT_HEADER_BYTES = 64
MOST_PIXELS = 3840 * 2160
SLOT_BYTES = SLOT_HEADER_BYTES + 4 * MOST_PIXELS
"""Room for the largest frame; the system gives only memory that is written to."""
HEADER = np.dtype(
    [("magic", "S4"), ("version", "<u4"), ("newest", "<u8"), ("slots", "<u4"), ("first", "<u4"), ("slot_bytes", "<u8")]
)
SLOT = np.dtype([("unix_ns", "<u8"), ("height", "<u4"), ("width", "<u4")])
RAM_DISK = Path("/dev/shm")


class SharedDepth:
    """An output that other processes read.

    Args:
        name: of the shared memory, by which readers open it.

    Raises:
        OptionError: it cannot be a name.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) or name.startswith("."):
            why = "It takes letters, digits, '_', '-' and '.', and does not begin with a '.'."
            raise OptionError(f"{name!r} is no name for shared memory.", why, "--shm mde-depth")
        self.name = name
        self.problem: str | None = None
        """Why nothing is written any more, in words."""
        self._in_order = threading.Lock()
        self._most_pixels = 0

    def __enter__(self) -> SharedDepth:
        """
        Raises:
            InputError: there is such a shared memory already, or none can be had.
        """
        try:
            self._memory = SharedMemory(self.name, create=True, size=HEADER_BYTES + SLOTS * SLOT_BYTES)
        except FileExistsError as error:
            raise InputError(
                f"There is shared memory {self.name} already.",
                "Another program writes to it, or one was killed and left it behind.",
                f"Take another name, or remove it: rm {RAM_DISK / self.name}",
            ) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(f"Shared memory {self.name} cannot be made.", why, "Free memory.") from error
        header = np.ndarray((), HEADER, self._memory.buf)
        header[...] = (MAGIC, VERSION, 0, SLOTS, HEADER_BYTES, SLOT_BYTES)
        self._newest = np.ndarray(1, "<u8", self._memory.buf, offset=8)
        return self

    def show(self, result: LiveResult) -> None:
        if self.problem is not None or not self._has_room(result.depth_m.size):
            return
        number = int(self._newest[0]) + 1
        start = HEADER_BYTES + number % SLOTS * SLOT_BYTES
        height, width = shape = result.depth_m.shape
        slot = np.ndarray((), SLOT, self._memory.buf, offset=start)
        pixels = np.ndarray(shape, "<f4", self._memory.buf, offset=start + SLOT_HEADER_BYTES)
        # One lock after the other, so that no processor shows the number before the pixels (POSIX.1, 4.12).
        with self._in_order:
            slot[...] = (result.captured_unix_ns, height, width)
            np.copyto(pixels, result.depth_m)
        with self._in_order:
            self._newest[0] = number

    def __exit__(self, *_: object) -> None:
        del self._newest  # the memory cannot be closed while an array looks into it
        self._memory.close()
        self._memory.unlink()  # readers that have it open keep it, and see nothing new

    def _has_room(self, pixels: int) -> bool:
        """Writing to memory that the system does not have would kill the process."""
        if pixels <= self._most_pixels:
            return True
        needed = SLOTS * 4 * pixels
        if pixels > MOST_PIXELS:
            self.problem = f"Frames of {pixels} pixels do not fit into shared memory {self.name}."
        elif RAM_DISK.is_dir() and shutil.disk_usage(RAM_DISK).free < needed:
            self.problem = f"{RAM_DISK} has no room for {needed >> 20} MB; in Docker, --shm-size gives more."
        self._most_pixels = pixels
        return self.problem is None
