"""TensorRT: plans on Jetson and on desktop or server GPUs."""

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

NAME: Final = "tensorrt"
SUFFIXES: Final = (".plan", ".engine")
INSTALL = (
    "Jetson: it comes with JetPack (make the venv with --system-site-packages); "
    "desktop: pip install 'mirrordepth-edge[tensorrt]'"
)


def module() -> Any:
    """The `tensorrt` package.

    Raises:
        MissingError: it is not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: libnvinfer is not where the bindings look
        raise MissingError("TensorRT is not usable here.", f"import tensorrt: {error}", INSTALL) from error
    return tensorrt


def probe() -> Probe:
    """Whether TensorRT imports and a GPU is visible."""
    if find_spec("tensorrt") is None:
        return Missing(reason="the package tensorrt is not installed", cure=INSTALL)
    gpus = nvidia_gpus()
    if not gpus:
        return Missing(reason="no NVIDIA GPU is visible", cure="Run it on a machine with an NVIDIA GPU.")
    try:
        version = module().__version__
    except MissingError as error:
        return Missing(reason=error.why, cure=error.cure)
    return Available(version=version, devices=tuple(gpu.name for gpu in gpus))


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan that `mde build` wrote."""
    require_gpu(path, "TensorRT")
    assert manifest is not None, "the registry reads it for every plan"
    return EngineSession(module(), NAME, path, manifest)
