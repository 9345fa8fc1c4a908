"""FP32 ONNX to strongly typed FP16, by NVIDIA Model Optimizer's AutoCast."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import InputKind, PreprocessConfig
from mirrordepth_edge.deploy.export import HEAD_PREFIX, INPUT_NAME
from mirrordepth_edge.deploy.parity import batches
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.preprocess import Frame, Preprocessor
from mirrordepth_edge.quiet import quiet_log

if TYPE_CHECKING:
    import onnx

FP32_OPERATORS = ("LayerNormalization", "Softplus")
"""Operators that overflow or lose metric depth in FP16, whatever the layer."""
ACTIVATION_LIMIT = 32768.0
"""Half of FP16's range: nodes whose values on the reference frames exceed it stay FP32."""


def to_fp16(
    onnx_path: Path, frames: Sequence[Frame], preprocess: PreprocessConfig, io: InputKind, batch: int = 1
) -> onnx.ModelProto:
    """Convert all but LayerNormalization and the metric head to FP16; inputs and outputs keep their types.

    Args:
        onnx_path: the FP32 model.
        frames: real pictures, whose activations decide what would overflow.
        batch: frames of one inference.

    Raises:
        MissingError: Model Optimizer is not installed.
        InputError: the metric head cannot be told from the rest.
    """
    import onnx

    if not any(node.name.startswith(HEAD_PREFIX) for node in onnx.load(onnx_path, load_external_data=False).graph.node):
        raise InputError(
            f"{onnx_path} has no node under {HEAD_PREFIX}.",
            "The metric head must stay FP32 and is found by its nodes' names.",
            "Use the torch version that constraints.txt names, and export again.",
        )
    with quiet_log(logging.WARNING), warnings.catch_warnings():  # AutoCast logs every tensor it looks at
        warnings.simplefilter("ignore")
        return _autocast(onnx_path, batches(frames, Preprocessor(preprocess, io), batch))


def _autocast(onnx_path: Path, images: Iterable[npt.NDArray[Any]]) -> onnx.ModelProto:
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as error:
        raise missing_package("NVIDIA Model Optimizer", "FP16 export", "export") from error

    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):  # AutoCast takes a folder with one batch a file
            arrays: dict[str, Any] = {INPUT_NAME: image}
            np.savez(Path(folder) / f"{index}.npz", **arrays)
        model: onnx.ModelProto = convert_to_mixed_precision(
            str(onnx_path),
            low_precision_type="fp16",
            nodes_to_exclude=[f"^{re.escape(HEAD_PREFIX)}.*"],
            op_types_to_exclude=list(FP32_OPERATORS),
            data_max=ACTIVATION_LIMIT,
            keep_io_types=True,
            calibration_data=folder,
            providers=["cpu"],
        )
    return model
