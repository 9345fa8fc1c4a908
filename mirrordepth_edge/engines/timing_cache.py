"""TensorRT's kernel timings, kept between builds: a later build of the same layers on the same GPU times nothing.

TensorRT refuses a timing cache of another version, device or CUDA, so each of these has its own file
(https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/performance/builder-performance.html).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.support.cache import Cache, read_checked, user_cache

MAX_FILES = 8
"""One is a few megabytes; a machine that is upgraded leaves one behind for every version and driver."""


def timing_cache_path(gpu: Gpu, flavour: str, version: str, driver: str) -> Path:
    """The stored timings of one GPU, builder and driver, in the user's cache folder."""
    return _cache(user_cache("timing")).path(version, gpu.name, gpu.compute_capability, driver, name=flavour)


def load(stored: Path, copy: Path) -> None:
    """Copy stored timings to a file that the builder may change.

    If there are none, or no space for the copy, the builder times its kernels again.
    """
    timings = read_checked(stored)
    if timings is None:
        return
    try:
        copy.write_bytes(timings)
    except OSError:
        with suppress(OSError):
            copy.unlink(missing_ok=True)  # the builder must not read a truncated file


def save(copy: Path, stored: Path) -> bool:
    """Store the timings that a builder left. False if it left none, or if they cannot be written."""
    try:
        _cache(stored.parent).write(stored, copy.read_bytes(), durable=False)
    except (InputError, OSError):
        return False
    return True


def _cache(folder: Path) -> Cache:
    return Cache(folder=folder, suffix=".cache", max_per_name=MAX_FILES)
