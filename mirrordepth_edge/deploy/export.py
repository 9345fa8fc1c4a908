"""PyTorch to ONNX: the folded network as a static graph with readable names."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mirrordepth_edge import __version__
from mirrordepth_edge.config import ExportConfig, InputKind, ModelConfig
from mirrordepth_edge.errors import missing_package
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.quiet import quiet_log

if TYPE_CHECKING:
    import onnx

    from mirrordepth_edge.core.network import DepthNetwork

INPUT_NAME = "image"
OUTPUT_NAME = "depth"
HEAD_PREFIX = "decoder/head/"
"""Node names under which the metric head lies, which keeps FP32 in every precision."""


def require_export_packages() -> None:
    """Say what is missing before anything slow is imported.

    Raises:
        MissingError: PyTorch, open_clip or onnxscript is not installed.
    """
    from importlib.util import find_spec

    for module, package in (("torch", "PyTorch"), ("open_clip", "open_clip"), ("onnxscript", "onnxscript")):
        if find_spec(module) is None:
            raise missing_package(package, "Exporting a checkpoint", "export")


def export_onnx(network: DepthNetwork, config: ExportConfig) -> onnx.ModelProto:
    """Fold `network` and trace it to ONNX in FP32.

    Args:
        network: in eval mode, at the size to export.
        config: input kind, batch and opset; precision is a later pass.

    Returns:
        A checked model with input `image` and output `depth`.
    """
    import onnx
    import torch

    from mirrordepth_edge.deploy.fold import FoldedNetwork

    folded = FoldedNetwork(network, config.io)
    height, width = network.config.size_hw
    example = (
        torch.zeros(config.batch, height, width, 3, dtype=torch.uint8)
        if config.io == "uint8"
        else torch.zeros(config.batch, 3, height, width)
    )
    with torch.no_grad(), _quiet_exporter():
        program: Any = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            opset_version=config.opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _name_nodes(model)
    _strip_traces(model)
    model.producer_name, model.producer_version = "mirrordepth-edge", __version__
    model.graph.name = network.config.preset
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter narrates to stdout, logging and warnings; none of it concerns the user."""
    with quiet_log(logging.WARNING), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes after the module they come from: `decoder/blocks/0/attention/MatMul_2`."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        # A list of module paths, outermost first, then the operation; rewrites may drop it.
        scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))
        path = (scopes[-2] if len(scopes) > 1 else "").replace(".", "/")
        stem = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{stem}_{seen[stem]}" if seen[stem] else stem
        seen[stem] += 1


def _strip_traces(model: onnx.ModelProto) -> None:
    """Drop stack traces and the like: they bloat the file and tell of the exporting machine."""
    for holder in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.functions[:]
    model.doc_string = model.graph.doc_string = ""


def input_spec(config: ModelConfig, io_kind: InputKind, batch: int = 1) -> TensorSpec:
    """The exported network's input."""
    height, width = config.size_hw
    if io_kind == "uint8":
        return TensorSpec(
            name=INPUT_NAME, dtype="uint8", shape=(batch, height, width, 3), layout="NHWC", range="0..255", unit="RGB"
        )
    return TensorSpec(
        name=INPUT_NAME,
        dtype="float32",
        shape=(batch, 3, height, width),
        layout="NCHW",
        range="(rgb/255 - mean) / std",
        unit="normalised RGB",
    )


def output_spec(config: ModelConfig, batch: int = 1) -> TensorSpec:
    """The exported network's output."""
    return TensorSpec(
        name=OUTPUT_NAME,
        dtype="float32",
        shape=(batch, *config.size_hw),
        layout="NHW",
        range="> 0",
        unit="metres",
    )
