"""TensorRT: runs plans on a Jetson and on desktop or server GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mirrordepth_edge.backends.base import Probe
from mirrordepth_edge.backends.trt.probing import probe_runtime
from mirrordepth_edge.backends.trt.session import Contexts, EngineSession, reject_other_options, require_gpu
from mirrordepth_edge.backends.trt.vendor import import_runtime
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.machine.unavailable import Cause, Unavailable
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt"
WITHOUT_GPU: Final = Unavailable(
    reason="no NVIDIA GPU is visible", cure="Run engines on a machine with an NVIDIA GPU.", cause=Cause.NO_GPU
)


def probe() -> Probe:
    """Check that TensorRT can be imported, a GPU is visible and CUDA can be called."""
    return probe_runtime(NAME, without_gpu=WITHOUT_GPU)


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan written by `mde build`."""
    reject_other_options(path, options, manifest)
    require_gpu(path, "TensorRT", manifest)
    assert manifest is not None, "the registry reads the manifest of every plan"
    return EngineSession(import_runtime(NAME), NAME, path, manifest, options, Contexts)
