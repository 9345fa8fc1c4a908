"""TensorRT for RTX: plans on RTX desktop GPUs, built ahead of time on any x86-64 machine."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends import cuda
from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.backends.engine import EngineSession, refuse_other_options, require_gpu
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt-rtx"
INSTALL = "pip install 'mirrordepth-edge[rtx]'  (x86-64 Linux or Windows)"
USE_TENSORRT = "Use TensorRT here: mde build model.onnx --target here"
# GPUs it serves: the members of `tensorrt_rtx.ComputeCapability`, which needs the package to be read.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


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
    """Whether TensorRT for RTX imports, serves this GPU and can call CUDA; building needs no GPU."""
    install = USE_TENSORRT if platform.machine() == "aarch64" else INSTALL
    try:
        if find_spec("tensorrt_rtx") is None:
            return Missing(reason="the package tensorrt-rtx is not installed", cure=install)
        version = str(module().__version__)
    except MissingError as error:
        return Missing(reason=error.why, cure=install)
    except Exception as error:  # whatever a broken installation raises
        return Missing(reason=f"import tensorrt_rtx: {error!r}", cure=install)
    gpus = nvidia_gpus()
    if not gpus:
        return Missing(
            reason="no NVIDIA GPU is visible (engines can be built here, not run)",
            cure="Run the engine on a machine with an RTX GPU.",
        )
    gpu = gpus[0]  # the one that sessions run on
    if gpu.compute_capability not in COMPUTE_CAPABILITIES:
        return Missing(
            reason=f"it does not serve {gpu.name}, compute capability {gpu.compute_capability}", cure=USE_TENSORRT
        )
    try:
        cuda.runtime()
    except MissingError as error:
        return Missing(reason=error.what, cure=error.cure)
    except Exception as error:
        return Missing(reason=f"import cuda: {error!r}", cure="pip install --force-reinstall cuda-python")
    return Available(version=version, devices=(gpu.name,))


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan that `mde build --target rtx-…` wrote."""
    refuse_other_options(path, options)
    require_gpu(path, "TensorRT for RTX")
    assert manifest is not None, "the registry reads it for every plan"
    return EngineSession(module(), NAME, path, manifest)
