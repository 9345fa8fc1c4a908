"""Trace the folded network to ONNX, as a graph with readable node names."""

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
from mirrordepth_edge.config import ExportConfig, ModelConfig, SizeRange
from mirrordepth_edge.errors import missing_package
from mirrordepth_edge.manifest import DEPTH_LAYOUT, DIMENSIONS, INPUT_NAME, OUTPUT_NAME, input_spec
from mirrordepth_edge.support.quiet import quiet_log

if TYPE_CHECKING:
    import onnx

    from mirrordepth_edge.model.network import DepthNetwork


def require_export_packages() -> None:
    """Check that the packages for export are installed, before anything slow is imported.

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
        config: input kind, sizes, batch and opset; its precision is ignored.

    Returns:
        A checked model with input `image` and output `depth`.
    """
    import onnx
    import torch

    from mirrordepth_edge.export.fold import FoldedNetwork

    image, sizes = input_spec(network.config, config), config.sizes
    dynamic_axes = "" if sizes is None else sizes.dynamic_axes
    folded = FoldedNetwork(network, config.io, dynamic_size=dynamic_axes not in ("", "N"))
    # Dynamic axes are traced at their maximum, because torch.export treats a length of 1 as a constant.
    shape = image.shape if sizes is None else image.at(sizes.max).shape
    example = torch.zeros(shape, dtype=getattr(torch, image.dtype))
    with torch.no_grad(), _quiet_exporter():
        program: Any = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            opset_version=config.opset,
            dynamic_shapes=None if sizes is None else (_dynamic_shapes(network.config, sizes, image.layout),),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _name_nodes(model)
    _strip_traces(model)
    _name_dimensions(model, dynamic_axes, image.layout)
    model.producer_name, model.producer_version = "mirrordepth-edge", __version__
    model.graph.name = network.config.preset
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's output on stdout, in logs and in warnings, none of which concerns the user."""
    with quiet_log(logging.WARNING), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes after the module they come from: `decoder/blocks/0/attention/MatMul_2`."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        # Module paths, outermost first, and then the operation; graph rewrites may drop the property.
        scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))
        path = (scopes[-2] if len(scopes) > 1 else "").replace(".", "/")
        stem = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{stem}_{seen[stem]}" if seen[stem] else stem
        seen[stem] += 1


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove stack traces and other metadata, which enlarge the file and contain paths of the exporting machine."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for holder in (model, graph, *graph.node, *values):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del model.functions[:]


def _dynamic_shapes(model: ModelConfig, sizes: SizeRange, layout: str) -> dict[int, Any]:
    """Dynamic axes of the input for `torch.export`; height and width are multiples of the model's size multiple."""
    from torch.export import Dim

    axes: dict[int, Any] = {}
    for letter, low, high in zip("NHW", sizes.min, sizes.max, strict=True):
        if low < high:
            unit = 1 if letter == "N" else model.size_multiple
            axes[layout.index(letter)] = unit * Dim(DIMENSIONS[letter], min=low // unit, max=high // unit)
    return axes


def _name_dimensions(model: onnx.ModelProto, dynamic_axes: str, layout: str) -> None:
    """Name the dynamic axes `batch`, `height` and `width`."""
    if not dynamic_axes:
        return
    # Intermediate shapes are expressions of the trace's own symbols; ONNX infers them again.
    del model.graph.value_info[:]
    for value, letters in ((model.graph.input[0], layout), (model.graph.output[0], DEPTH_LAYOUT)):
        for dimension, letter in zip(value.type.tensor_type.shape.dim, letters, strict=True):
            if letter in dynamic_axes:
                dimension.dim_param = DIMENSIONS[letter]
