"""Putting the weights back into an engine that was built without them.

Not yet run on hardware: TensorRT loads no engine without a GPU. Every attribute used here is checked against the real
modules by `tests/deploy/test_trt_versions.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirrordepth_edge.errors import InputError


def refit(trt: Any, engine: Any, onnx_path: Path) -> None:
    """Give a loaded engine the weights of the ONNX file that it was built from.

    As NVIDIA's sample does it: https://github.com/NVIDIA/TensorRT/tree/release/10.3/samples/python/
    sample_weight_stripping. Other weights than those built from are undefined (NvInfer.h, `kREFIT_IDENTICAL`), so
    compare the file's SHA-256 with the manifest's `parent_sha256` first.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        engine: its `ICudaEngine`.

    Raises:
        InputError: the parser or the engine refused the weights.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx_path)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise _refused(onnx_path, errors or "The parser gave no reason.")
    if missing := refitter.get_missing_weights():
        raise _refused(onnx_path, f"It lacks {', '.join(missing[:3])}" + (" …" if len(missing) > 3 else "") + ".")
    if not refitter.refit_cuda_engine():
        raise _refused(onnx_path, "refit_cuda_engine returned False.")


def _refused(onnx_path: Path, why: str) -> InputError:
    return InputError(
        f"The engine cannot be given the weights of {onnx_path}.",
        why,
        f"Use the file that it was built from, or build it whole: mde build {onnx_path.name}",
    )
