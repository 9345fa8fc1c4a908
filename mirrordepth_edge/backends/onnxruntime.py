"""ONNX Runtime: `.onnx` on the CPU everywhere, on NVIDIA GPUs where its CUDA provider really loads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, Available, CheckedSession, Missing, Probe, empty_outputs
from mirrordepth_edge.config import BatchHW, SessionOptions
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.device import cuda_driver, nvidia_gpus
from mirrordepth_edge.manifest import DIMENSIONS, Manifest

NAME: Final = "onnxruntime"
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install onnxruntime  (onnxruntime-gpu for an NVIDIA GPU on x86-64; never both)"
REPAIR = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install mirrordepth-edge"
GPU_CURE = (
    "an engine (mde build), or onnxruntime-gpu with the CUDA and cuDNN that it names: "
    "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#requirements"
)
# ONNX Runtime's levels of what it logs; it offers no way to read the one that is set.
LOG_WARNING, LOG_FATAL = 2, 4


def probe() -> Probe:
    """Whether ONNX Runtime imports, and which devices it really drives."""
    missing = _missing()
    if missing is not None:
        return missing
    import onnxruntime

    gpus = (nvidia_gpus()[0].name,) if cuda_problem() is None else ()
    return Available(version=str(onnxruntime.__version__), devices=("cpu", *gpus))


def _missing() -> Missing | None:
    """What keeps ONNX Runtime from being imported, if anything does."""
    try:
        if find_spec("onnxruntime") is None:
            return Missing(reason="the package onnxruntime is not installed", cure=INSTALL)
        import onnxruntime

        onnxruntime.get_available_providers()  # a half overwritten install imports, and is empty
    except Exception as error:  # built for another numpy, or half overwritten by its other wheel
        return Missing(reason=f"import onnxruntime: {error!r}", cure=REPAIR)
    return None


@cache
def cuda_problem() -> str | None:
    """Why ONNX Runtime cannot use this machine's GPU; None where a small model ran on it. Tried once.

    What was compiled in is not what works: without the CUDA and cuDNN that the wheel was built for, a
    session on the CUDA provider opens on the CPU instead.
    """
    import onnxruntime

    if not nvidia_gpus():
        return f"No NVIDIA GPU is visible ({cuda_driver().problem})."
    built = f"onnxruntime {onnxruntime.__version__}"
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return f"This {built} was built without CUDA."
    said = StringIO()
    onnxruntime.set_default_logger_severity(LOG_FATAL)
    try:
        with redirect_stdout(said):
            ran = _runs_on_cuda(onnxruntime)
    except Exception as error:
        return f"{built} fails on CUDA: {str(error).strip() or repr(error)}"
    finally:
        onnxruntime.set_default_logger_severity(LOG_WARNING)
    if ran:
        return None
    prefix = "Failed to load "  # what preload_dlls prints: this, the library and the loader's words
    unloaded = [line[len(prefix) :].split(": ")[0] for line in said.getvalue().splitlines() if line.startswith(prefix)]
    needs = ", ".join(unloaded) or "another CUDA or cuDNN than this machine's"
    return f"The CUDA provider of {built} does not load; it needs {needs}."


def _runs_on_cuda(onnxruntime: Any) -> bool:
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: CUDA and cuDNN as pip installs them
        with suppress(Exception):  # the session below finds out, whatever this says
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
    """An ONNX file of one node, of a version that every ONNX Runtime since 1.13 reads."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString())


def create_inference_session(
    model: Path | bytes, options: SessionOptions, *, qdq_as_written: bool = False, size: BatchHW | None = None
) -> Any:
    """An `onnxruntime.InferenceSession` on exactly the provider that was asked for.

    `device="auto"` is the GPU where this machine has one and CUDA loads, else the CPU; the session
    says which it became. A device asked for by name is never replaced by another.

    Args:
        model: a file, or what is in one.
        qdq_as_written: round where Q/DQ says so and multiply in floating point, as a GPU's kernels do up to the last
            bit. ONNX Runtime's own integer kernels for int8 activations are slow on x86, and wrong where the rest is
            FP16: its QuantizeLinear cuts digits off instead of rounding (nano's depth is 9 % off then instead of
            3 %), and a convolution's bias becomes integers of a scale that FP16 cannot hold (32 %). Both in 1.24.
        size: the one that a model whose sizes are open is optimised for, and then runs at; any where None.

    Raises:
        MissingError: `cuda` was asked for and does not load, or does not take this model.
        InputError: the file is no model that ONNX Runtime can run.
    """
    import onnxruntime

    name = str(model) if isinstance(model, Path) else "the model"
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = LOG_FATAL  # errors arrive as exceptions, and are ours to word
    for dimension, length in zip(DIMENSIONS.values(), size or (), strict=False):
        settings.add_free_dimension_override_by_name(dimension, length)
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    if options.yields:
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    if qdq_as_written:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    problem = None if options.device == "cpu" else cuda_problem()
    if options.device == "cuda" and problem is not None:
        raise MissingError("ONNX Runtime cannot use a GPU here.", problem, f"--device cpu; for the GPU, {GPU_CURE}")
    wanted = CPU_PROVIDER if options.device == "cpu" or problem is not None else CUDA_PROVIDER
    try:
        source = _quantised_in_fp32(model) if qdq_as_written else str(model) if isinstance(model, Path) else model
        session = onnxruntime.InferenceSession(source, settings, providers=[wanted], enable_fallback=0)
        session.disable_fallback()  # nor may a run that fails on the GPU go on on the CPU
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(
            f"ONNX Runtime cannot load {name}.",
            (str(error).strip() or repr(error)).splitlines()[0],
            "Make it again with mde export; mde inspect FILE shows what it is.",
        ) from error
    if wanted not in session.get_providers():
        raise MissingError(
            f"ONNX Runtime cannot run {name} on the GPU.",
            "It opened the model on the CPU instead.",
            f"--device cpu; for the GPU, {GPU_CURE}",
        )
    return session


def _quantised_in_fp32(model: Path | bytes) -> bytes:
    """The model with a cast to FP32 in front of each QuantizeLinear of FP16, which is the same by ONNX's definition."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    scales = {each.name: each for each in loaded.graph.initializer if each.data_type == TensorProto.FLOAT16}
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
    """A model bound to fixed host buffers."""

    backend = NAME

    def __init__(self, path: Path, manifest: Manifest, options: SessionOptions) -> None:
        import onnxruntime

        opened, manifest = manifest.sizes is not None, manifest.at(options.network_hw, options.batch)
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.precision = manifest.precision
        for_gpu = manifest.quantisation is not None and manifest.quantisation.scheme == "gpu"
        self._session = create_inference_session(
            path, options, qdq_as_written=for_gpu, size=self.inputs[0].size if opened else None
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
            if self._bound.get(name) != address:  # the same buffer every frame is bound once
                self._binding.bind_input(name, "cpu", 0, np.dtype(array.dtype), array.shape, address)
                self._bound[name] = address
        self._session.run_with_iobinding(self._binding)
        return self._results

    def close(self) -> None:
        self._bound.clear()


def open(path: Path, manifest: Manifest | None, options: SessionOptions) -> OnnxRuntimeSession:  # noqa: A001
    """Open an ONNX file that `mde export` wrote."""
    missing = _missing()  # not `probe`, which would wake a GPU that `--device cpu` leaves alone
    if missing is not None:
        raise MissingError("ONNX files need ONNX Runtime.", missing.reason, missing.cure)
    assert manifest is not None, "the registry reads it for every .onnx"
    return OnnxRuntimeSession(path, manifest, options)
