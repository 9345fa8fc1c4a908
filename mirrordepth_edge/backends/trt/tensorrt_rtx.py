"""TensorRT for RTX: runs plans on RTX desktop GPUs, built ahead of time on any x86-64 machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.base import Probe
from mirrordepth_edge.backends.trt.probing import probe_runtime
from mirrordepth_edge.backends.trt.runtime_cache import RuntimeCache, runtime_cache
from mirrordepth_edge.backends.trt.session import Contexts, EngineSession, reject_other_options, require_gpu
from mirrordepth_edge.backends.trt.vendor import import_runtime
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.machine.unavailable import Cause, Unavailable
from mirrordepth_edge.manifest import Manifest

NAME: Final = "tensorrt-rtx"
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Supported GPUs: the members of `tensorrt_rtx.ComputeCapability`, listed here because the package may be missing."""
WITHOUT_GPU: Final = Unavailable(
    reason="no NVIDIA GPU is visible (engines can be built on this machine, but not run)",
    cure="Run engines on a machine with an RTX GPU.",
    cause=Cause.NO_GPU,
)


class RuntimeCacheContexts(Contexts):
    """Contexts that compile the plan's kernels for this GPU, unless they are in the runtime cache.

    The runtime captures the CUDA graph itself, once its kernels are compiled
    (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html).
    Not yet run on hardware.

    Args:
        trt: the module `tensorrt_rtx`.
        engine: its `ICudaEngine`.
        cache: file of compiled kernels. If it cannot be read or written, kernels are compiled at each start.
        cuda_graph: whether the runtime may capture a CUDA graph.
    """

    session_captures_graph = False

    def __init__(self, trt: Any, engine: Any, cache: RuntimeCache, cuda_graph: bool) -> None:
        super().__init__(engine)
        self.cuda_graph = cuda_graph
        self._cache = cache
        strategies = trt.CudaGraphStrategy
        self._strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graph else strategies.DISABLED
        self._specialisation = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._configs: list[Any] = []  # they must outlive their contexts
        config = engine.create_runtime_config()
        self._cached = cache.read()
        self._kernels = config.create_runtime_cache()
        if self._cached is not None and not self._kernels.deserialize(self._cached):
            self._cached, self._kernels = None, config.create_runtime_cache()
        self.jit_cached = self._cached is not None

    def make(self) -> Any:
        config = self._engine.create_runtime_config()
        self._configs.append(config)
        config.cuda_graph_strategy = self._strategy
        # A session keeps one size, so it waits for the kernels of that size instead of compiling them between frames.
        config.dynamic_shapes_kernel_specialization_strategy = self._specialisation
        if config.cuda_graph_strategy != self._strategy:
            self.cuda_graph = False
            self.notes.append(f"TensorRT for RTX rejected the CUDA graph strategy {self._strategy.name}.")
        if not config.set_runtime_cache(self._kernels):
            self.jit_cached = False
            self.notes.append("TensorRT for RTX rejected the runtime cache: kernels are compiled at every start.")
        return self._engine.create_execution_context(config)

    def save_cache(self) -> None:
        kernels = self._kernels.serialize()
        if kernels is None or bytes(kernels) in (b"", self._cached):
            return
        try:
            self._cache.write(bytes(kernels))
        except InputError as error:
            self.notes.append(f"Compiled kernels were not saved; the next start compiles them again: {error.why}.")

    def close(self) -> None:
        self._configs.clear()
        self._kernels = None
        super().close()


def probe() -> Probe:
    """Check that TensorRT for RTX can be imported, supports this GPU and can call CUDA; building needs no GPU."""
    return probe_runtime(NAME, without_gpu=WITHOUT_GPU, compute_capabilities=COMPUTE_CAPABILITIES)


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> EngineSession:  # noqa: A001
    """Open a plan written by `mde build --target rtx-…`."""
    reject_other_options(path, options, manifest)
    require_gpu(path, "TensorRT for RTX", manifest)
    assert manifest is not None, "the registry reads the manifest of every plan"
    trt = import_runtime(NAME)
    cache = runtime_cache(manifest.artefact_sha256, nvidia_gpus()[0], str(trt.__version__))
    return EngineSession(
        trt, NAME, path, manifest, options, lambda engine: RuntimeCacheContexts(trt, engine, cache, options.cuda_graph)
    )
