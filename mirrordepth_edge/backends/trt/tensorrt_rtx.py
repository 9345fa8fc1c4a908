"""TensorRT for RTX: plans on RTX desktop GPUs, built ahead of time on any x86-64 machine."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.runtime_cache import RuntimeCache, runtime_cache
from mirrordepth_edge.backends.trt.session import EngineSession, refuse_other_options, require_gpu
from mirrordepth_edge.backends.trt.vendor import INSTALL, import_runtime
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt-rtx"
USE_TENSORRT = "Use TensorRT here: mde build model.onnx --target here"
# GPUs it serves: the members of `tensorrt_rtx.ComputeCapability`, which needs the package to be read.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


class JitContexts:
    """Contexts that compile the plan's kernels for this GPU, unless `store` has them, and replay them as a CUDA graph.

    The runtime captures by itself, once its kernels are compiled
    (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html).
    Not yet run on hardware.

    Args:
        trt: the module `tensorrt_rtx`.
        store: where compiled kernels are kept. One that cannot be read or written costs time, nothing else.
        cuda_graph: whether the runtime may.
    """

    captures = False

    def __init__(self, trt: Any, engine: Any, store: RuntimeCache, cuda_graph: bool) -> None:
        self.notes: list[str] = []
        self.cuda_graph = cuda_graph
        self._engine, self._store = engine, store
        strategies = trt.CudaGraphStrategy
        self._strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graph else strategies.DISABLED
        self._specialisation = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._configs: list[Any] = []  # they must outlive their contexts
        first = engine.create_runtime_config()
        self._kept = store.read()
        self._kernels = first.create_runtime_cache()
        if self._kept is not None and not self._kernels.deserialize(self._kept):
            self._kept, self._kernels = None, first.create_runtime_cache()
        self.jit_cached = self._kept is not None

    def make(self) -> Any:
        config = self._engine.create_runtime_config()
        self._configs.append(config)
        config.cuda_graph_strategy = self._strategy
        # A session keeps one size, so kernels made for it are worth waiting for; else they come while frames run.
        config.dynamic_shapes_kernel_specialization_strategy = self._specialisation
        if config.cuda_graph_strategy != self._strategy:
            self.cuda_graph = False
            self.notes.append(f"TensorRT for RTX did not take the CUDA graph strategy {self._strategy.name}.")
        if not config.set_runtime_cache(self._kernels):
            self.jit_cached = False
            self.notes.append("TensorRT for RTX took no runtime cache: kernels are compiled at every start.")
        return self._engine.create_execution_context(config)

    def ran(self) -> None:
        kernels = self._kernels.serialize()
        if kernels is None or bytes(kernels) in (b"", self._kept):
            return
        try:
            self._store.write(bytes(kernels))
        except InputError as error:
            self.notes.append(f"Compiled kernels were not kept, and the next start compiles them again: {error.why}.")

    def close(self) -> None:
        self._configs.clear()
        self._kernels = None
        self._engine = None


def probe() -> Probe:
    """Whether TensorRT for RTX imports, serves this GPU and can call CUDA; building needs no GPU."""
    install = USE_TENSORRT if platform.machine() == "aarch64" else INSTALL[NAME]
    try:
        if find_spec("tensorrt_rtx") is None:
            return Missing(reason="the package tensorrt-rtx is not installed", cure=install)
        version = str(import_runtime(NAME).__version__)
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
    if problem := cuda.too_new(gpu):
        return Missing(reason=problem, cure=cuda.install(gpu))
    try:
        cuda.runtime()
    except MissingError as error:
        return Missing(reason=error.what, cure=error.cure)
    except Exception as error:
        return Missing(reason=f"import cuda: {error!r}", cure="pip install --force-reinstall cuda-python")
    return Available(version=version, devices=(gpu.name,))


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan that `mde build --target rtx-…` wrote."""
    refuse_other_options(path, options, manifest)
    require_gpu(path, "TensorRT for RTX", manifest)
    assert manifest is not None, "the registry reads it for every plan"
    trt = import_runtime(NAME)
    store = runtime_cache(manifest.artefact_sha256, nvidia_gpus()[0], str(trt.__version__))
    return EngineSession(
        trt, NAME, path, manifest, options, lambda engine: JitContexts(trt, engine, store, options.cuda_graph)
    )
