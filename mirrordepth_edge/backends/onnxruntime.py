"""ONNX Runtime: `.onnx` on the CPU everywhere, on NVIDIA GPUs where its CUDA provider really loads."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Missing, Probe, empty_outputs
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "onnxruntime"
SUFFIXES: Final = (".onnx",)
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install onnxruntime  (onnxruntime-gpu for an NVIDIA GPU on x86-64; never both)"


def probe() -> Probe:
    """Whether ONNX Runtime imports, and which devices its wheel may drive."""
    if find_spec("onnxruntime") is None:
        return Missing(reason="the package onnxruntime is not installed", cure=INSTALL)
    try:
        import onnxruntime
    except ImportError as error:
        return Missing(reason=f"onnxruntime does not import: {error}", cure=INSTALL)
    compiled_in = onnxruntime.get_available_providers()
    gpus = tuple(gpu.name for gpu in nvidia_gpus()) if CUDA_PROVIDER in compiled_in else ()
    return Available(version=onnxruntime.__version__, devices=("cpu", *gpus))


def bare_session(path: Path, options: SessionOptions) -> Any:
    """An `onnxruntime.InferenceSession` on exactly the provider that was asked for.

    `device="auto"` is the GPU where this machine has one and CUDA loads, else the CPU; the session
    says which it became. A device asked for by name is never replaced by another.

    Raises:
        MissingError: `cuda` was asked for and does not load.
        InputError: the file is no model that ONNX Runtime can run.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # fatal only: errors arrive as exceptions, and are ours to word
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers() and bool(nvidia_gpus())
    wanted = CUDA_PROVIDER if options.device == "cuda" or (options.device == "auto" and has_cuda) else CPU_PROVIDER
    if wanted == CUDA_PROVIDER and not has_cuda:
        raise MissingError(
            "ONNX Runtime cannot use a GPU here.",
            "No NVIDIA GPU is visible, or this wheel was built without CUDA.",
            "--device cpu, or pip install onnxruntime-gpu on a machine with an NVIDIA GPU.",
        )
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=[wanted])
        # What was compiled in is not what works: a CUDA mismatch leaves only the CPU provider.
        if wanted not in session.get_providers() and options.device == "cuda":
            raise MissingError(
                "ONNX Runtime's CUDA provider does not load.",
                f"onnxruntime {onnxruntime.__version__} does not match this machine's CUDA or cuDNN.",
                "--device cpu, or install the CUDA and cuDNN that this onnxruntime-gpu names.",
            )
    except MissingError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(
            f"ONNX Runtime cannot load {path}.",
            str(error).strip().splitlines()[0],
            "Make it again with mde export; mde inspect FILE shows what it is.",
        ) from error
    return session


class OnnxRuntimeSession(CheckedSession):
    """A model bound to fixed host buffers."""

    backend = NAME

    def __init__(self, path: Path, manifest: Manifest, options: SessionOptions) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.precision = manifest.precision
        self._session = bare_session(path, options)
        self._binding = self._session.io_binding()
        self._bound: dict[str, int] = {}
        self._results = empty_outputs(self.outputs)
        for spec in self.outputs:
            array = self._results[spec.name]
            self._binding.bind_output(spec.name, "cpu", 0, array.dtype, spec.shape, array.ctypes.data)
        on_gpu = CUDA_PROVIDER in self._session.get_providers()
        self.device = nvidia_gpus()[0].name if on_gpu else "cpu"

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.check(feeds)
        for name, array in feeds.items():
            address = array.ctypes.data
            if self._bound.get(name) != address:  # the same buffer every frame is bound once
                self._binding.bind_input(name, "cpu", 0, np.dtype(array.dtype), array.shape, address)
                self._bound[name] = address
        self._session.run_with_iobinding(self._binding)
        return self._results

    def close(self) -> None:
        self._bound.clear()


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> OnnxRuntimeSession:  # noqa: A001
    """Open an ONNX file that `mde export` wrote."""
    missing = probe()
    if isinstance(missing, Missing):
        raise MissingError("ONNX files need ONNX Runtime.", missing.reason, missing.cure)
    assert manifest is not None, "the registry reads it for every .onnx"
    return OnnxRuntimeSession(path, manifest, options)
