"""From a plan's bytes to an engine, with the runtime's own reason where it refuses.

Not yet run on hardware; what a runtime says of damaged plans before it needs a GPU is tested with real ones.
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

# What a plan says of a dtype, by the name both runtimes give it.
DTYPE_NAMES = {"UINT8": "uint8", "FLOAT": "float32"}


@cache
def trt_logger(trt: Any) -> Any:
    """The logger of a TensorRT module, which keeps errors for `last_error` and prints nothing.

    One for a process: TensorRT tells everything to the first logger that it was given.
    """

    class TrtLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))

    return TrtLogger()


def last_error(trt: Any) -> str:
    """The first error since this was last asked, to be put behind a sentence: later ones are its consequences."""
    errors = trt_logger(trt).errors
    first = errors[0] if errors else None
    errors.clear()
    return "" if first is None else f" It says: {first}"


def start_runtime(trt: Any, backend: str) -> Any:
    """A TensorRT runtime, after CUDA was found to work.

    Raises:
        MissingError: it finds no driver that it can work with.
    """
    last_error(trt)
    try:
        return trt.Runtime(trt_logger(trt))
    except TypeError as error:  # what pybind11 makes of a constructor that gave nothing
        raise MissingError(
            f"{backend} {trt.__version__} does not start on this machine's GPU.",
            "It found no CUDA driver that it can work with, such as one older than its own CUDA." + last_error(trt),
            cuda.DRIVER_CURE,
        ) from error


def load_plan(trt: Any, runtime: Any, backend: str, path: Path, manifest: Manifest) -> Any:
    """An engine of a plan.

    Raises:
        InputError: the runtime refused it; says what it was built by, and the runtime's own reason.
        DeviceError: the GPU has no memory for it.
    """
    last_error(trt)
    options = None if manifest.engine is None else manifest.engine.options
    if options is not None and options.version_compat:
        runtime.engine_host_code_allowed = True  # the plan carries its own lean runtime; its SHA-256 was compared
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is not None:
        if options is not None and options.weights == "stripped":
            refit(trt, engine, _weights_of(path, manifest))
        return engine
    out_of_memory = any("outofmemory" in line.lower().replace(" ", "") for line in trt_logger(trt).errors)
    reason = last_error(trt)
    if out_of_memory:
        raise DeviceError(
            f"{path} does not fit into the GPU's memory.", f"{backend} ran out of it.{reason}", cuda.MEMORY_CURE
        )
    raise InputError(
        f"{backend} {trt.__version__} cannot load {path}.",
        f"It was built by {_built_by(manifest)}; a plan is tied to TensorRT's version, the system and the GPU."
        + reason,
        build_here(path, manifest.parent_sha256),
    )


def _weights_of(path: Path, manifest: Manifest) -> Path:
    """The ONNX file whose weights belong into a plan that was built without them; it lies beside the plan.

    Raises:
        InputError: it is not there, or is another one.
    """
    onnx_path = existing_file(path.with_suffix(".onnx"), "ONNX file with the weights of this stripped engine")
    if sha256_of(onnx_path) != manifest.parent_sha256:
        raise InputError(
            f"{onnx_path} is not the file that {path.name} was built from.",
            f"Its SHA-256 is not {manifest.parent_sha256[:12]}…, and an engine takes back the weights it had only.",
            f"Put that file there, or build the engine again: mde build {onnx_path.name}",
        )
    return onnx_path


def check_tensors(engine: Any, path: Path, manifest: Manifest) -> None:
    """Hold an engine's inputs and outputs to what its manifest says of them; fixed shapes are part of that.

    Raises:
        InputError: a name, dtype or shape differs.
    """
    found = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        dtype = engine.get_tensor_dtype(name).name
        found[name] = (DTYPE_NAMES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)}
    if found != wanted:
        raise InputError(
            f"{path} is not the plan its manifest describes.",
            f"Its tensors are {found}, the manifest has {wanted}.",
            "Build it again with mde build.",
        )


def source_of(path: Path, parent_sha256: str | None = None) -> str:
    """What verbs take for the ONNX file that a plan was built from.

    Args:
        parent_sha256: that file's, by the plan's manifest; None where the plan has none.

    Returns:
        The name of the model that ships as this file; else the path of the file that the plan's name tells.
    """
    onnx_path = path.with_suffix(".onnx")
    if parent_sha256 is not None:
        return shipped_name(parent_sha256) or str(onnx_path)
    return path.stem if path.stem in SHIPPED and not onnx_path.exists() else str(onnx_path)


def build_here(path: Path, parent_sha256: str | None = None) -> str:
    """What to type for a plan of this machine's GPU; see `source_of`."""
    words = ["mde", "build", source_of(path, parent_sha256), "-o", str(path), "--target", "here"]
    return f"Build it here: {shlex.join(words)}"


def _built_by(manifest: Manifest) -> str:
    if manifest.engine is None:
        return "an unknown builder"
    gpus = ", ".join(manifest.engine.compute_capabilities) or "its default GPUs"
    return f"{manifest.engine.flavour} {manifest.engine.version} for compute capability {gpus}"
