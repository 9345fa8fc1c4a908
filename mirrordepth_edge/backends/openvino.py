"""OpenVINO: `.onnx` on CPUs where it is asked for, in FP32, or in bfloat16 where that is asked for too."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Missing, Probe, empty_outputs
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.manifest import Manifest

NAME: Final = "openvino"
INSTALL = "pip install 'mirrordepth-edge[openvino]'"
REPAIR = "pip install --force-reinstall openvino"
TELEMETRY = "openvino_telemetry"
CPU = "CPU"


def module() -> Any:
    """The `openvino` package, imported without its telemetry.

    Imported in the usual way it tells Google Analytics so, unasked, and leaves an identity in the user's home. Where
    the package for that is absent it works on without, so absent it is while `openvino` is imported.
    """
    telemetry = sys.modules.pop(TELEMETRY, None)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's own mark of what must not be imported
    try:
        import openvino
    finally:
        del sys.modules[TELEMETRY]
        if telemetry is not None:
            sys.modules[TELEMETRY] = telemetry
    return openvino


def probe() -> Probe:
    """Whether OpenVINO imports and has its CPU plugin."""
    try:
        if find_spec("openvino") is None:
            return Missing(reason="the package openvino is not installed", cure=INSTALL)
        openvino = module()
        version = str(openvino.__version__)
        cpu_capabilities(openvino.Core())
    except Exception as error:  # a library that does not load, a half removed install
        return Missing(reason=f"import openvino: {error!r}", cure=REPAIR)
    return Available(version=version, devices=("cpu",))


def cpu_capabilities(core: Any) -> tuple[str, ...]:
    """What OpenVINO finds this CPU to be good at, such as `FP32`, `BF16` and `INT8`."""
    return tuple(core.get_property(CPU, "OPTIMIZATION_CAPABILITIES"))


def compiled_model(path: Path, options: SessionOptions, shapes: Mapping[str, Sequence[int]] | None = None) -> Any:
    """An `openvino.CompiledModel` for one frame at a time on the CPU, in the precision that was asked for.

    Left alone, OpenVINO multiplies in bfloat16 on any CPU that can, whatever the file's precision.

    Args:
        shapes: of the inputs, for a file whose sizes are open.

    Raises:
        MissingError: bfloat16 was asked for, and this CPU has none.
        InputError: the file is no model that OpenVINO can run.
    """
    openvino = module()
    core = openvino.Core()
    capabilities = cpu_capabilities(core)
    if options.bf16 and "BF16" not in capabilities:
        raise MissingError(
            "This CPU does not multiply in bfloat16.",
            f"It needs AVX512_BF16, AMX or Arm's BF16; OpenVINO finds {', '.join(capabilities)}.",
            "Leave --bf16 out.",
        )
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if options.bf16 else "f32"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    try:
        # The ONNX reader by name: asked to find one, OpenVINO tries all it has, and TensorFlow's prints.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(path)))
        if model.is_dynamic() and shapes is not None:
            model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
        return core.compile_model(model, CPU, settings)
    except Exception as error:  # RuntimeError, or classes of its own that have no common base
        raise InputError(
            f"OpenVINO cannot load {path}.",
            (str(error).strip() or repr(error)).splitlines()[-1],  # those before say where in its source
            "Make it again with mde export; mde inspect FILE shows what it is.",
        ) from error


class OpenVinoSession(CheckedSession):
    """One request, whose tensors are the caller's arrays and ours."""

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
            if self._bound.get(name) != address:  # the same buffer every frame is bound once
                self._share(name, array)
                self._bound[name] = address
        self._request.infer(share_outputs=True)  # else it would answer with copies
        return self._results

    def _share(self, name: str, array: npt.NDArray[Any]) -> None:
        """Make the array's memory the tensor of that name; with `shared_memory=True` it could not be read-only."""
        tensor = self._openvino.Tensor(array, self._openvino.Shape(array.shape), self._openvino.Type(array.dtype))
        self._request.set_tensor(name, tensor)

    def close(self) -> None:
        self._request = None
        self._bound.clear()
        self._results = {}


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> OpenVinoSession:  # noqa: A001
    """Open an ONNX file that `mde export` wrote."""
    if options.device == "cuda":
        raise OptionError(
            f"OpenVINO cannot run {path} on an NVIDIA GPU.",
            "It runs ONNX on the CPU.",
            "--device cpu, or leave --backend out.",
        )
    missing = probe()
    if isinstance(missing, Missing):
        raise MissingError("--backend openvino needs OpenVINO.", missing.reason, missing.cure)
    assert manifest is not None, "the registry reads it for every .onnx"
    return OpenVinoSession(path, manifest, options)
