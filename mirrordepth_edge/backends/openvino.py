"""OpenVINO: runs `.onnx` files on the CPU with `--backend openvino`, in FP32 or, with `--bf16`, in bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Probe, empty_outputs, import_checked
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import Manifest

NAME: Final = "openvino"
INSTALL = "pip install 'mirrordepth-edge[openvino]'"
REPAIR = "pip install --force-reinstall openvino"
TELEMETRY = "openvino_telemetry"
CPU = "CPU"


def module() -> Any:
    """Import `openvino` without its telemetry."""
    # A normal import reports to Google Analytics and writes an ID to the user's home folder. OpenVINO also works
    # without the telemetry package, so that package is hidden during the import.
    telemetry = sys.modules.pop(TELEMETRY, None)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # None makes an import fail
    try:
        import openvino
    finally:
        del sys.modules[TELEMETRY]
        if telemetry is not None:
            sys.modules[TELEMETRY] = telemetry
    return openvino


def probe() -> Probe:
    """Check that OpenVINO can be imported and has its CPU plugin."""

    def load() -> Available:
        openvino = module()
        available = Available(version=str(openvino.__version__), devices=("cpu",))
        cpu_capabilities(openvino.Core())
        return available

    return import_checked(("openvino",), load, install=INSTALL, repair=REPAIR)


def cpu_capabilities(core: Any) -> tuple[str, ...]:
    """Precisions that OpenVINO accelerates on this CPU, such as `FP32`, `BF16` and `INT8`."""
    return tuple(core.get_property(CPU, "OPTIMIZATION_CAPABILITIES"))


def compiled_model(path: Path, options: SessionOptions, shapes: Mapping[str, Sequence[int]] | None = None) -> Any:
    """Compile a model for the CPU, optimised for latency; returns an `openvino.CompiledModel`.

    Args:
        path: ONNX file.
        options: `bf16` and `threads` are used.
        shapes: input shapes, for a model with dynamic shapes.

    Raises:
        MissingError: bfloat16 was requested, and this CPU does not support it.
        InputError: OpenVINO cannot load the file.
    """
    openvino = module()
    core = openvino.Core()
    capabilities = cpu_capabilities(core)
    if options.bf16 and "BF16" not in capabilities:
        raise MissingError(
            "This CPU does not support bfloat16.",
            f"It needs AVX512_BF16, AMX or Arm's BF16; OpenVINO reports {', '.join(capabilities)}.",
            "Leave out --bf16.",
        )
    # By default OpenVINO computes in bfloat16 on any CPU that supports it, whatever the precision of the file.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if options.bf16 else "f32"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    try:
        # Load the ONNX front end by name: if OpenVINO tries all of them, the TensorFlow one prints.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(path)))
        if model.is_dynamic() and shapes is not None:
            model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
        return core.compile_model(model, CPU, settings)
    except Exception as error:  # RuntimeError, or OpenVINO's own classes without a common base
        raise InputError(
            f"OpenVINO cannot load {path}.",
            (str(error).strip() or repr(error)).splitlines()[-1],  # earlier lines name source files of OpenVINO
            "Export the model again with mde export; mde inspect FILE shows its content.",
        ) from error


class OpenVinoSession(CheckedSession):
    """An inference request whose tensors share memory with the feeds and the output arrays."""

    backend = NAME
    device = "cpu"

    def __init__(self, path: Path, manifest: Manifest, options: SessionOptions) -> None:
        self._openvino = module()
        self.version = str(self._openvino.__version__)
        manifest = manifest.at(options.network_hw, options.batch)
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.precision = "bf16" if options.bf16 else manifest.precision
        shapes = {spec.name: spec.shape for spec in self.inputs}
        self._request = compiled_model(path, options, shapes).create_infer_request()
        self._bound: dict[str, int] = {}
        self._results = empty_outputs(self.outputs)
        for name, array in self._results.items():
            self._share(name, array)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self._request is None:
            raise InputError("The session is closed.", "Its buffers were freed.", "Open the model again.")
        self.check(feeds)
        for name, array in feeds.items():
            address = array.ctypes.data
            if self._bound.get(name) != address:  # a buffer that is reused every frame is bound once
                self._share(name, array)
                self._bound[name] = address
        self._request.infer(share_outputs=True)  # without it, OpenVINO returns copies
        return self._results

    def _share(self, name: str, array: npt.NDArray[Any]) -> None:
        """Use the array's memory as the tensor of that name."""
        # Not with `shared_memory=True`, which rejects read-only arrays.
        tensor = self._openvino.Tensor(array, self._openvino.Shape(array.shape), self._openvino.Type(array.dtype))
        self._request.set_tensor(name, tensor)

    def close(self) -> None:
        self._request = None
        self._bound.clear()
        self._results = {}


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> OpenVinoSession:  # noqa: A001
    """Open an ONNX file written by `mde export`."""
    if options.device == "cuda":
        raise OptionError(
            f"OpenVINO cannot run {path} on an NVIDIA GPU.",
            "The OpenVINO backend runs on the CPU only.",
            "Use --device cpu, or leave out --backend.",
        )
    problem = probe()
    if isinstance(problem, Unavailable):
        raise MissingError("--backend openvino needs OpenVINO.", problem.reason, problem.cure)
    assert manifest is not None, "the registry reads the manifest of every .onnx file"
    return OpenVinoSession(path, manifest, options)
