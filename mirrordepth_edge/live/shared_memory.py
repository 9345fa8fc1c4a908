"""Depth for other processes on this machine through shared memory, without sockets and without locks.

Layout of the POSIX shared memory NAME, on Linux the file /dev/shm/NAME; little-endian:

    offset  type      content
    0       char[4]   "MDED"
    4       uint32    version of this layout, 1
    8       uint64    n, the number of frames written so far; 0 before the first
    16      uint32    S, the number of slots
    20      uint32    offset of the first slot
    24      uint64    bytes from one slot to the next

Frame n is in slot n mod S:

    offset  type      content
    0       uint64    Unix time of its capture in nanoseconds
    8       uint32    height, H
    12      uint32    width, W
    64      float32   H x W depths in metres, row by row; 0, NaN and infinity mean no depth

To read: load n, copy slot n mod S, load n again. If it has grown by S - 1 or more, the copy may be torn, because the
writer may have started frame n + S in the same slot: start again. With S = 4, this happens only if the reader was
suspended for three frames while copying. On ARM, a reader in C needs an acquire fence after each load of n. See
`examples/shared_memory_reader.py`.
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
MAX_PIXELS = 3840 * 2160
SLOT_BYTES = SLOT_HEADER_BYTES + 4 * MAX_PIXELS
"""Room for the largest frame. The system allocates only the pages that are written."""
HEADER = np.dtype(
    [("magic", "S4"), ("version", "<u4"), ("newest", "<u8"), ("slots", "<u4"), ("first", "<u4"), ("slot_bytes", "<u8")]
)
SLOT = np.dtype([("unix_ns", "<u8"), ("height", "<u4"), ("width", "<u4")])
RAM_DISK = Path("/dev/shm")


class SharedDepth:
    """An output that other processes read.

    Args:
        name: name of the shared memory.

    Raises:
        OptionError: the name is not valid.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) or name.startswith("."):
            why = "A name has letters, digits, '_', '-' and '.', and does not begin with a '.'."
            raise OptionError(f"{name!r} is not a valid name for shared memory.", why, "--shm mde-depth")
        self.name = name
        self.problem: str | None = None
        """Why nothing is written any more, if so."""
        self._barrier = threading.Lock()
        self._max_pixels = 0

    def __enter__(self) -> SharedDepth:
        """
        Raises:
            InputError: the shared memory exists already or cannot be created.
        """
        try:
            self._memory = SharedMemory(self.name, create=True, size=HEADER_BYTES + SLOTS * SLOT_BYTES)
        except FileExistsError as error:
            raise InputError(
                f"Shared memory {self.name} exists already.",
                "Another program uses it, or one was killed and did not remove it.",
                f"Use another name, or remove it: rm {RAM_DISK / self.name}",
            ) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(f"Cannot create shared memory {self.name}.", why, "Free memory.") from error
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
        # Locking and unlocking is a memory barrier (POSIX.1, 4.12): readers must not see the number before the pixels.
        with self._barrier:
            slot[...] = (result.captured_unix_ns, height, width)
            np.copyto(pixels, result.depth_m)
        with self._barrier:
            self._newest[0] = number

    def __exit__(self, *_: object) -> None:
        del self._newest  # the memory cannot be closed while an array refers to it
        self._memory.close()
        self._memory.unlink()  # readers that have it open keep the last frames

    def _has_room(self, pixels: int) -> bool:
        """Check before writing: a write without free memory kills the process (SIGBUS)."""
        if pixels <= self._max_pixels:
            return True
        needed = SLOTS * 4 * pixels
        if pixels > MAX_PIXELS:
            self.problem = f"Frames of {pixels} pixels do not fit into shared memory {self.name}."
        elif RAM_DISK.is_dir() and shutil.disk_usage(RAM_DISK).free < needed:
            self.problem = f"{RAM_DISK} has less than {needed >> 20} MB free; in Docker, increase --shm-size."
        self._max_pixels = pixels
        return self.problem is None
