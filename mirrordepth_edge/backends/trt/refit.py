"""Refit an engine that was built without weights.

Not yet run on hardware; `tests/engines/test_versions.py` checks every attribute used here against the real modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirrordepth_edge.errors import InputError


def refit(trt: Any, engine: Any, onnx_path: Path) -> None:
    """Load the weights of the ONNX file that a stripped engine was built from into that engine.

    Other weights give undefined results (NvInfer.h, `kREFIT_IDENTICAL`), so compare the file's SHA-256 with the
    manifest's `parent_sha256` first.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        engine: its `ICudaEngine`.
        onnx_path: the ONNX file.

    Raises:
        InputError: the parser or the engine rejected the weights.
    """
    # As in https://github.com/NVIDIA/TensorRT/tree/release/10.3/samples/python/sample_weight_stripping.
    logger = trt.Logger(trt.Logger.ERROR)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx_path)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise _refit_error(onnx_path, errors or "The parser gave no reason.")
    if missing := refitter.get_missing_weights():
        names = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise _refit_error(onnx_path, f"It has no weights for {names}.")
    if not refitter.refit_cuda_engine():
        raise _refit_error(onnx_path, "refit_cuda_engine returned False.")


def _refit_error(onnx_path: Path, why: str) -> InputError:
    return InputError(
        f"The engine cannot be refitted with the weights of {onnx_path}.",
        why,
        f"Use the ONNX file it was built from, or build an engine with weights: mde build {onnx_path.name}",
    )
