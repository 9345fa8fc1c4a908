"""What TensorRT for RTX compiled for this GPU, kept between processes.

Its plans hold no machine code: kernels are compiled when a context is made, which takes seconds, and can be kept
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
KEPT = 32
"""Files that are kept, newest first: every plan, GPU and driver makes one of its own."""
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class RuntimeCache:
    """One file of compiled kernels: their SHA-256, then what the runtime serialised."""

    path: Path

    def read(self) -> bytes | None:
        """What was kept; None where there is nothing, or not what was written."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, kernels = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        # The runtime maps what it is given as machine code: it never sees a damaged file.
        return kernels if kernels and hashlib.sha256(kernels).digest() == digest else None

    def write(self, kernels: bytes) -> None:
        """Keep kernels, whole or not at all, and drop the oldest files.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(hashlib.sha256(kernels).digest() + kernels)
        with suppress(OSError):  # another process drops them too
            files = sorted(self.path.parent.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            for file in files[KEPT:]:
                file.unlink(missing_ok=True)


def runtime_cache(plan_sha256: str, gpu: Gpu, version: str, folder: Path | None = None) -> RuntimeCache:
    """Where kernels of one plan on one GPU, driver and runtime version are kept.

    Args:
        version: of TensorRT for RTX.
        folder: another one than the user's cache, whose files may be deleted at any time.
    """
    import platformdirs

    folder = folder or Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "kernels"
    parts = (plan_sha256, gpu.name, gpu.compute_capability, gpu.cuda, version)
    return RuntimeCache(folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}{SUFFIX}")
