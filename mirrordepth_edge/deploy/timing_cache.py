"""What TensorRT timed kernels at, kept between builds: a later build of the same layers on the same GPU times nothing.

TensorRT refuses a cache of another version, device or CUDA, so each has its own file
(https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/performance/builder-performance.html).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mirrordepth_edge.device import Gpu
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import written_whole


def timing_cache_path(gpu: Gpu, flavour: str, version: str, driver: str) -> Path:
    """The file for one GPU, runtime and driver, in the user's cache directory."""
    import platformdirs

    parts = (flavour, version, gpu.name, f"sm{gpu.compute_capability}", driver)
    name = "-".join(re.sub(r"[^0-9A-Za-z.]+", "_", part).strip("_") for part in parts)
    return Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "timing" / f"{name}.cache"


def take(cache: Path, copy: Path) -> None:
    """Copy a kept cache, if there is one, to where a builder may change it."""
    if cache.is_file():
        shutil.copyfile(cache, copy)


def keep(copy: Path, cache: Path) -> bool:
    """Put what a builder left in the cache's place, whole; False where there is nothing, or no room for it."""
    try:
        with written_whole(cache, durable=False) as temporary:
            shutil.copyfile(copy, temporary)
    except (InputError, FileNotFoundError):
        return False
    return True
