"""TensorRT: plans on Jetson and on desktop or server GPUs."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.session import EngineSession, refuse_other_options, require_gpu
from mirrordepth_edge.backends.trt.vendor import INSTALL, JETPACK, import_runtime
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt"
NOT_INSTALLED: Final = "the package tensorrt is not installed"


class PlainContexts:
    """Contexts with nothing to set: the plan is compiled already, and CUDA graphs are left to the caller."""

    captures = True
    cuda_graph = False
    jit_cached = False

    def __init__(self, engine: Any) -> None:
        self.notes: list[str] = []
        self._engine = engine

    def make(self) -> Any:
        return self._engine.create_execution_context()

    def ran(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        self._engine = None


def probe() -> Probe:
    """Whether TensorRT imports, a GPU is visible and CUDA can be called."""
    install = JETPACK if platform.machine() == "aarch64" else INSTALL[NAME]
    try:
        if find_spec("tensorrt") is None:
            return Missing(reason=NOT_INSTALLED, cure=install)
        version = str(import_runtime(NAME).__version__)
    except MissingError as error:
        return Missing(reason=error.why, cure=error.cure)
    except Exception as error:  # whatever a broken installation raises
        return Missing(reason=f"import tensorrt: {error!r}", cure=install)
    gpus = nvidia_gpus()
    if not gpus:
        return Missing(reason="no NVIDIA GPU is visible", cure="Run it on a machine with an NVIDIA GPU.")
    if problem := cuda.too_new(gpus[0]):
        return Missing(reason=problem, cure=cuda.install(gpus[0]))
    try:
        cuda.runtime()
    except MissingError as error:
        return Missing(reason=error.what, cure=error.cure)
    except Exception as error:
        return Missing(reason=f"import cuda: {error!r}", cure="pip install --force-reinstall cuda-python")
    return Available(version=version, devices=(gpus[0].name,))  # the one that sessions run on


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan that `mde build` wrote."""
    refuse_other_options(path, options, manifest)
    require_gpu(path, "TensorRT", manifest)
    assert manifest is not None, "the registry reads it for every plan"
    return EngineSession(import_runtime(NAME), NAME, path, manifest, options, PlainContexts)
