"""What TensorRT timed kernels at, kept between builds: a later build of the same layers on the same GPU times nothing.

TensorRT refuses a cache of another version, device or CUDA, so each has its own file
(https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/performance/builder-performance.html).
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.support.files import atomic_write


def timing_cache_path(gpu: Gpu, flavour: str, version: str, driver: str) -> Path:
    """The file for one GPU, runtime and driver, in the user's cache directory."""
    import platformdirs

    parts = (flavour, version, gpu.name, f"sm{gpu.compute_capability}", driver)
    name = "-".join(re.sub(r"[^0-9A-Za-z.]+", "_", part).strip("_") for part in parts)
    return Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "timing" / f"{name}.cache"


def take(cache: Path, copy: Path) -> None:
    """Copy a kept cache to where a builder may change it.

    Where there is none, or no room for the copy, the builder times its kernels anew.
    """
    try:
        shutil.copyfile(cache, copy)
    except OSError:
        with suppress(OSError):
            copy.unlink(missing_ok=True)  # half of one


def keep(copy: Path, cache: Path) -> bool:
    """Put what a builder left in the cache's place, whole; False where there is nothing, or no room for it."""
    try:
        with atomic_write(cache, durable=False) as temporary:
            shutil.copyfile(copy, temporary)
    except (InputError, FileNotFoundError):
        return False
    return True
