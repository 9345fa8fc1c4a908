"""Deserialise a plan, with the runtime's own reason in the error if it fails.

Not yet run on hardware; errors for damaged plans, which need no GPU, are tested with the real runtimes.
"""

from __future__ import annotations

import shlex
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from mirrordepth_edge.artefact import SHIPPED, shipped_name
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.refit import refit
from mirrordepth_edge.errors import DeviceError, InputError, MissingError
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.support.files import existing_file, sha256_of

# NumPy dtypes by the names that both runtimes use.
DTYPE_NAMES = {"UINT8": "uint8", "FLOAT": "float32"}


@cache
def trt_logger(trt: Any) -> Any:
    """The logger of a TensorRT module: stores errors for `last_error` and prints nothing."""
    # One per process, because TensorRT sends all messages to the first logger that it is given.

    class TrtLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))

    return TrtLogger()


def last_error(trt: Any) -> str:
    """The first error since the last call, as a sentence that starts with a blank; "" if there is none."""
    errors = trt_logger(trt).errors
    first = errors[0] if errors else None  # later errors follow from the first
    errors.clear()
    return "" if first is None else f" The runtime reports: {first}"


def start_runtime(trt: Any, backend: str) -> Any:
    """Create a TensorRT runtime; CUDA must work already.

    Raises:
        MissingError: the runtime does not work with the driver.
    """
    last_error(trt)
    try:
        return trt.Runtime(trt_logger(trt))
    except TypeError as error:  # pybind11 raises it if the constructor returns null
        raise MissingError(
            f"{backend} {trt.__version__} does not start on this machine's GPU.",
            "It does not work with the CUDA driver, which may be older than the runtime's CUDA version."
            + last_error(trt),
            cuda.DRIVER_CURE,
        ) from error


def load_plan(trt: Any, runtime: Any, backend: str, path: Path, manifest: Manifest) -> Any:
    """Deserialise a plan into an engine, and refit it if it has no weights.

    Raises:
        InputError: the runtime rejected the plan; names the builder and the runtime's reason.
        DeviceError: the GPU's memory is full.
    """
    last_error(trt)
    options = None if manifest.engine is None else manifest.engine.options
    if options is not None and options.version_compat:
        runtime.engine_host_code_allowed = True  # the plan contains a lean runtime; its SHA-256 was checked
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is not None:
        if options is not None and options.weights == "stripped":
            refit(trt, engine, _weights_of(path, manifest))
        return engine
    out_of_memory = any("outofmemory" in line.lower().replace(" ", "") for line in trt_logger(trt).errors)
    reason = last_error(trt)
    if out_of_memory:
        raise DeviceError(
            f"{path} does not fit into the GPU's memory.", f"{backend} ran out of memory.{reason}", cuda.MEMORY_CURE
        )
    raise InputError(
        f"{backend} {trt.__version__} cannot load {path}.",
        f"It was built by {_builder(manifest)}; a plan depends on the TensorRT version, the system and the GPU."
        + reason,
        build_here(path, manifest.parent_sha256),
    )


def _weights_of(path: Path, manifest: Manifest) -> Path:
    """The ONNX file, next to the plan, with the weights of a stripped plan.

    Raises:
        InputError: it is missing, or is a different file.
    """
    onnx_path = existing_file(path.with_suffix(".onnx"), "ONNX file with the weights of this stripped engine")
    if sha256_of(onnx_path) != manifest.parent_sha256:
        raise InputError(
            f"{path.name} was not built from {onnx_path}.",
            f"A stripped engine needs its original weights, and the SHA-256 is not {manifest.parent_sha256[:12]}….",
            f"Put the original file there, or build the engine again: mde build {onnx_path.name}",
        )
    return onnx_path


def check_tensors(engine: Any, path: Path, manifest: Manifest) -> None:
    """Check that an engine's inputs and outputs match its manifest.

    Raises:
        InputError: a name, dtype or shape differs.
    """
    actual = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        dtype = engine.get_tensor_dtype(name).name
        actual[name] = (DTYPE_NAMES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
    expected = {spec.name: (spec.dtype, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)}
    if actual != expected:
        raise InputError(
            f"{path} does not match its manifest.",
            f"Its tensors are {actual}; the manifest has {expected}.",
            "Build it again with mde build.",
        )


def source_of(path: Path, parent_sha256: str | None = None) -> str:
    """The ONNX file that a plan was built from, as a command-line argument.

    Args:
        path: the plan.
        parent_sha256: SHA-256 of the ONNX file in the plan's manifest; None without a manifest.

    Returns:
        Name of the shipped model, or else the plan's path with the suffix .onnx.
    """
    onnx_path = path.with_suffix(".onnx")
    if parent_sha256 is not None:
        return shipped_name(parent_sha256) or str(onnx_path)
    return path.stem if path.stem in SHIPPED and not onnx_path.exists() else str(onnx_path)


def build_here(path: Path, parent_sha256: str | None = None) -> str:
    """The command that builds this plan for this machine's GPU; arguments as for `source_of`."""
    command = ["mde", "build", source_of(path, parent_sha256), "-o", str(path), "--target", "here"]
    return f"Build it here: {shlex.join(command)}"


def _builder(manifest: Manifest) -> str:
    if manifest.engine is None:
        return "an unknown builder"
    gpus = ", ".join(manifest.engine.compute_capabilities) or "its default GPUs"
    return f"{manifest.engine.flavour} {manifest.engine.version} for compute capability {gpus}"
