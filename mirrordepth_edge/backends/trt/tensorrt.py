"""TensorRT: plans on Jetson and on desktop or server GPUs."""

from __future__ import annotations

import platform
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.backends.trt.session import EngineSession, refuse_other_options, require_gpu
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt"
INSTALL = (
    "Jetson: it comes with JetPack (make the venv with --system-site-packages); "
    "desktop: pip install 'mirrordepth-edge[tensorrt]'"
)
JETPACK = "It comes with JetPack, not from pip: make the venv with --system-site-packages."
NOT_INSTALLED: Final = "the package tensorrt is not installed"
LIBRARY: Final = re.compile(r"\blib([\w-]+)\.so\b(?:\.(\d+))?|DLL load failed")
"""How loaders name a shared library: the bindings are there, and what they need does not load."""


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


def module() -> Any:
    """The `tensorrt` package.

    Raises:
        MissingError: it is not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: libnvinfer is not where the bindings look
        raise MissingError("TensorRT is not usable here.", f"import tensorrt: {error}", _cure(error)) from error
    return tensorrt


def _cure(error: ImportError | OSError) -> str:
    """What to type after an import that failed.

    JetPack's package is a list of others, which apt installs where they are missing; the library's own is named beside
    it so that a damaged one is replaced. Debian names packages after libraries: libnvinfer.so.10 is in libnvinfer10.
    """
    on_jetson = platform.machine() == "aarch64"
    library = LIBRARY.search(str(error))
    if library is None:
        return JETPACK if on_jetson else INSTALL
    if not on_jetson:
        return "pip install --force-reinstall tensorrt"
    own = f" libnvinfer{library[2]}" if library[1] == "nvinfer" and library[2] else ""
    return f"sudo apt update && sudo apt install --reinstall nvidia-jetpack{own}"


def probe() -> Probe:
    """Whether TensorRT imports, a GPU is visible and CUDA can be called."""
    install = JETPACK if platform.machine() == "aarch64" else INSTALL
    try:
        if find_spec("tensorrt") is None:
            return Missing(reason=NOT_INSTALLED, cure=install)
        version = str(module().__version__)
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
    return EngineSession(module(), NAME, path, manifest, options, PlainContexts)
