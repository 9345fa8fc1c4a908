"""What an ONNX graph costs to run: multiply-adds and parameters, counted from its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """Counts of one inference at the exported size."""

    multiply_adds: int
    """Of Conv, ConvTranspose, MatMul and Gemm; one multiply-add is two FLOPs."""
    parameters: int
    """Elements of all floating-point constants."""
    nodes: int


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Count a static graph.

    Args:
        model: an ONNX model with fixed shapes.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    parameters = 0
    for initializer in inferred.graph.initializer:
        shapes[initializer.name] = tuple(initializer.dims)
        if initializer.data_type in floating:
            parameters += prod(initializer.dims)
    return GraphCost(
        multiply_adds=sum(_multiply_adds(node, shapes) for node in inferred.graph.node),
        parameters=parameters,
        nodes=len(inferred.graph.node),
    )


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type == "Conv":
        # weight: [out, in/groups, kh, kw]; each output element sums over the last three
        return prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        # weight: [in, out/groups, kh, kw]; each input element is spread over the last three
        return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return 0
