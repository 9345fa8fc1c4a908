"""ONNX Runtime: runs `.onnx` files on the CPU, and on an NVIDIA GPU if the CUDA provider loads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Probe, empty_outputs, import_checked
from mirrordepth_edge.config import BatchHW, SessionOptions
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.device import cuda_driver, nvidia_gpus
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import DIMENSIONS, Manifest

NAME: Final = "onnxruntime"
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install onnxruntime  (for an NVIDIA GPU on x86-64: onnxruntime-gpu instead; never both)"
REPAIR = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install mirrordepth-edge"
GPU_CURE = (
    "mde build MODEL  (makes an engine for the GPU), or install the CUDA and cuDNN that onnxruntime-gpu requires: "
    "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#requirements"
)
# ONNX Runtime's log levels; the current level cannot be read, so it is reset to the default.
LOG_WARNING, LOG_FATAL = 2, 4


def probe() -> Probe:
    """Check that ONNX Runtime can be imported, and which devices it runs on."""
    problem = _import_problem()
    if problem is not None:
        return problem
    import onnxruntime

    gpus = (nvidia_gpus()[0].name,) if cuda_problem() is None else ()
    return Available(version=str(onnxruntime.__version__), devices=("cpu", *gpus))


def _import_problem() -> Unavailable | None:
    """Why ONNX Runtime cannot be imported; None if it can."""

    def load() -> None:
        import onnxruntime

        onnxruntime.get_available_providers()  # fails on a partly overwritten package, which imports but is empty

    return import_checked(("onnxruntime",), load, install=INSTALL, repair=REPAIR)


@cache
def cuda_problem() -> str | None:
    """Why ONNX Runtime cannot use this machine's GPU; None if a small model runs on it. Checked once per process."""
    # A CUDA provider in the package is not enough: without the CUDA and cuDNN that the wheel was built for, a session
    # on the CUDA provider silently runs on the CPU.
    import onnxruntime

    if not nvidia_gpus():
        return f"No NVIDIA GPU is visible ({cuda_driver().problem})."
    package = f"onnxruntime {onnxruntime.__version__}"
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return f"{package} was built without CUDA."
    printed = StringIO()
    onnxruntime.set_default_logger_severity(LOG_FATAL)
    try:
        with redirect_stdout(printed):
            works = _runs_on_cuda(onnxruntime)
    except Exception as error:
        return f"{package} fails on CUDA: {str(error).strip() or repr(error)}"
    finally:
        onnxruntime.set_default_logger_severity(LOG_WARNING)
    if works:
        return None
    prefix = "Failed to load "  # preload_dlls prints "Failed to load LIBRARY: REASON"
    lines = printed.getvalue().splitlines()
    missing = [line[len(prefix) :].split(": ")[0] for line in lines if line.startswith(prefix)]
    needs = ", ".join(missing) or "another version of CUDA or cuDNN"
    return f"The CUDA provider of {package} cannot be loaded; it needs {needs}."


def _runs_on_cuda(onnxruntime: Any) -> bool:
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: loads CUDA and cuDNN from pip packages
        with suppress(Exception):  # the session below shows whether CUDA works
            onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = LOG_FATAL
    session = onnxruntime.InferenceSession(_small_model(), settings, providers=[CUDA_PROVIDER], enable_fallback=0)
    if CUDA_PROVIDER not in session.get_providers():
        return False
    session.disable_fallback()
    session.run(None, {"x": np.ones(1, np.float32)})
    return True


def _small_model() -> bytes:
    """An ONNX model with one node, in a version that ONNX Runtime supports since 1.13."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString())


def create_inference_session(
    model: Path | bytes, options: SessionOptions, *, qdq_as_written: bool = False, size: BatchHW | None = None
) -> Any:
    """Create an `onnxruntime.InferenceSession` on exactly one execution provider.

    `device="auto"` is the GPU if CUDA works, else the CPU. An explicit device never falls back to another.

    Args:
        model: path or content of an ONNX file.
        options: session options; `device`, `threads` and `yields` are used.
        qdq_as_written: quantise at each Q/DQ pair and compute in floating point, as the GPU's kernels do, instead of
            with ONNX Runtime's integer kernels.
        size: fixes the dynamic axes of the model to this size; None leaves them dynamic.

    Raises:
        MissingError: `cuda` was requested, and CUDA does not load or does not support this model.
        InputError: ONNX Runtime cannot load the file.
    """
    import onnxruntime

    name = str(model) if isinstance(model, Path) else "the model"
    settings = _session_settings(options, qdq_as_written, size)
    provider = _choose_provider(options)
    try:
        source = _quantised_in_fp32(model) if qdq_as_written else str(model) if isinstance(model, Path) else model
        session = onnxruntime.InferenceSession(source, settings, providers=[provider], enable_fallback=0)
        session.disable_fallback()  # a run that fails on the GPU must not continue on the CPU
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(
            f"ONNX Runtime cannot load {name}.",
            (str(error).strip() or repr(error)).splitlines()[0],
            "Export the model again with mde export; mde inspect FILE shows its content.",
        ) from error
    if provider not in session.get_providers():
        raise MissingError(
            f"ONNX Runtime cannot run {name} on the GPU.",
            "It opened the model on the CPU instead.",
            f"Use --device cpu. For the GPU: {GPU_CURE}",
        )
    return session


def _session_settings(options: SessionOptions, qdq_as_written: bool, size: BatchHW | None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = LOG_FATAL  # errors are raised as exceptions
    for dimension, length in zip(DIMENSIONS.values(), size or (), strict=False):
        settings.add_free_dimension_override_by_name(dimension, length)
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    if options.yields:
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    if qdq_as_written:
        # Integer kernels for int8 activations are slow on x86. In ONNX Runtime 1.24 they are also wrong in FP16 models:
        # QuantizeLinear truncates instead of rounding (depth error of nano 9 % instead of 3 %), and the bias of a
        # convolution is quantised with a scale that FP16 cannot represent (32 %).
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def _choose_provider(options: SessionOptions) -> str:
    problem = None if options.device == "cpu" else cuda_problem()
    if options.device == "cuda" and problem is not None:
        raise MissingError("ONNX Runtime cannot use the GPU.", problem, f"Use --device cpu. For the GPU: {GPU_CURE}")
    return CPU_PROVIDER if options.device == "cpu" or problem is not None else CUDA_PROVIDER


def _quantised_in_fp32(model: Path | bytes) -> bytes:
    """Insert a cast to FP32 before each FP16 QuantizeLinear, which does not change the result by ONNX's definition."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    scales = {tensor.name: tensor for tensor in loaded.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in loaded.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in scales:
            wide, scale = f"{node.output[0]}_wide", f"{node.output[0]}_scale32"
            nodes.append(helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
            value = numpy_helper.to_array(scales[node.input[1]]).astype(np.float32)
            loaded.graph.initializer.append(numpy_helper.from_array(value, scale))
            node.input[0], node.input[1] = wide, scale
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del loaded.graph.node[:]
    loaded.graph.node.extend(nodes)
    return bytes(loaded.SerializeToString())


class OnnxRuntimeSession(CheckedSession):
    """An inference session with outputs bound to fixed host buffers."""

    backend = NAME

    def __init__(self, path: Path, manifest: Manifest, options: SessionOptions) -> None:
        import onnxruntime

        dynamic, manifest = manifest.sizes is not None, manifest.at(options.network_hw, options.batch)
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.precision = manifest.precision
        for_gpu = manifest.quantisation is not None and manifest.quantisation.scheme == "gpu"
        self._session = create_inference_session(
            path, options, qdq_as_written=for_gpu, size=self.inputs[0].size if dynamic else None
        )
        self.version = str(onnxruntime.__version__)
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
            if self._bound.get(name) != address:  # a buffer that is reused every frame is bound once
                self._binding.bind_input(name, "cpu", 0, np.dtype(array.dtype), array.shape, address)
                self._bound[name] = address
        self._session.run_with_iobinding(self._binding)
        return self._results

    def close(self) -> None:
        self._bound.clear()


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> OnnxRuntimeSession:  # noqa: A001
    """Open an ONNX file written by `mde export`."""
    problem = _import_problem()  # not `probe`, which would use the GPU even with `--device cpu`
    if problem is not None:
        raise MissingError("ONNX files need ONNX Runtime.", problem.reason, problem.cure)
    assert manifest is not None, "the registry reads the manifest of every .onnx file"
    return OnnxRuntimeSession(path, manifest, options)
