"""The runtime cache of TensorRT for RTX: kernels compiled for this GPU, stored between processes.

Its plans hold no machine code: kernels are compiled when a context is created, which takes seconds
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html).

Not yet run on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.support.cache import Cache, read_checked, user_cache

SUFFIX = ".kernels"
MAX_FILES = 32
"""Each combination of plan, GPU, driver and runtime version has its own file; the oldest are deleted."""


@dataclass(frozen=True)
class RuntimeCache:
    """A file of compiled kernels."""

    path: Path

    def read(self) -> bytes | None:
        """The stored kernels; None if there are none or the file is damaged."""
        # The runtime maps these bytes as machine code, so it must never get a damaged file.
        return read_checked(self.path)

    def write(self, kernels: bytes) -> None:
        """Store kernels and delete the oldest files.

        Raises:
            InputError: the folder cannot be written.
        """
        Cache(folder=self.path.parent, suffix=SUFFIX, max_per_name=MAX_FILES).write(self.path, kernels)


def runtime_cache(plan_sha256: str, gpu: Gpu, version: str, folder: Path | None = None) -> RuntimeCache:
    """The cache file of a plan for a GPU, driver and runtime version.

    Args:
        plan_sha256: SHA-256 of the plan.
        gpu: GPU that runs it, which also tells the driver's CUDA version.
        version: version of TensorRT for RTX.
        folder: None for the user's cache folder.
    """
    cache = Cache(folder=folder or user_cache("kernels"), suffix=SUFFIX)
    return RuntimeCache(cache.path(plan_sha256, gpu.name, gpu.compute_capability, gpu.cuda, version))
