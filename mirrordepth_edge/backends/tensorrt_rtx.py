"""TensorRT for RTX: plans on RTX desktop GPUs, built ahead of time on any x86-64 machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.backends.engine import EngineSession, require_gpu
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt-rtx"
SUFFIXES: Final = (".plan", ".engine")
INSTALL = "pip install 'mirrordepth-edge[rtx]'  (x86-64 Linux or Windows)"


def module() -> Any:
    """The `tensorrt_rtx` package.

    Raises:
        MissingError: it is not installed, or its libraries do not load.
    """
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise MissingError("TensorRT for RTX is not usable here.", f"import tensorrt_rtx: {error}", INSTALL) from error
    return tensorrt_rtx


def probe() -> Probe:
    """Whether TensorRT for RTX imports and a GPU is visible; building needs no GPU."""
    if find_spec("tensorrt_rtx") is None:
        return Missing(reason="the package tensorrt-rtx is not installed", cure=INSTALL)
    gpus = nvidia_gpus()
    if not gpus:
        return Missing(
            reason="no NVIDIA GPU is visible (engines can be built here, not run)",
            cure="Run the engine on a machine with an RTX GPU.",
        )
    try:
        version = module().__version__
    except MissingError as error:
        return Missing(reason=error.why, cure=error.cure)
    return Available(version=version, devices=tuple(gpu.name for gpu in gpus))


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan that `mde build --target rtx-…` wrote."""
    require_gpu(path, "TensorRT for RTX")
    assert manifest is not None, "the registry reads it for every plan"
    return EngineSession(module(), NAME, path, manifest)
