"""The runtime cache of TensorRT for RTX: kernels compiled for this GPU, stored between processes.

Its plans hold no machine code: kernels are compiled when a context is created, which takes seconds
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html).

Not yet run on hardware.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.support.files import atomic_write

SUFFIX = ".kernels"
MAX_FILES = 32
"""Each combination of plan, GPU, driver and runtime version has its own file; the oldest are deleted."""
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class RuntimeCache:
    """A file of compiled kernels: their SHA-256, followed by the runtime's serialised cache."""

    path: Path

    def read(self) -> bytes | None:
        """Read the kernels; None if the file is missing or damaged."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, kernels = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        # The runtime executes these bytes as machine code, so it must never get a damaged file.
        return kernels if kernels and hashlib.sha256(kernels).digest() == digest else None

    def write(self, kernels: bytes) -> None:
        """Write the kernels atomically and delete the oldest files.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(hashlib.sha256(kernels).digest() + kernels)
        with suppress(OSError):  # another process may delete them too
            files = sorted(self.path.parent.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            for file in files[MAX_FILES:]:
                file.unlink(missing_ok=True)


def runtime_cache(plan_sha256: str, gpu: Gpu, version: str, folder: Path | None = None) -> RuntimeCache:
    """The cache file of a plan for a GPU, driver and runtime version.

    Args:
        plan_sha256: SHA-256 of the plan.
        gpu: GPU that runs it, which also tells the driver's CUDA version.
        version: version of TensorRT for RTX.
        folder: None for the user's cache folder.
    """
    import platformdirs

    folder = folder or Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "kernels"
    parts = (plan_sha256, gpu.name, gpu.compute_capability, gpu.cuda, version)
    return RuntimeCache(folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}{SUFFIX}")
