"""Subgraphs that depend on some nodes, so that the rest of a graph need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mirrordepth_edge.graph.cost import Tensors

if TYPE_CHECKING:
    import onnx


def downstream(model: onnx.ModelProto, nodes: Iterable[str]) -> onnx.ModelProto:
    """Extract `nodes` and all nodes that depend on them.

    The inputs of the result are the tensors that it reads and does not compute. Its outputs are those of `model` that
    depend on `nodes`.

    Args:
        model: an ONNX model with fixed shapes; it is not changed.
        nodes: names of nodes.
    """
    import onnx

    graph, tensors, selected = model.graph, Tensors.of(model), set(nodes)
    kept: list[onnx.NodeProto] = []
    computed: set[str] = set()
    for node in graph.node:  # in execution order
        if node.name in selected or any(name in computed for name in node.input):
            kept.append(node)
            computed.update(node.output)
    read = {name for node in kept for name in node.input if name}
    cut = [
        onnx.helper.make_tensor_value_info(name, tensors.dtypes[name], tensors.shape(name))
        for name in sorted(read - computed - set(tensors.initializers))
    ]
    constants = [initializer for initializer in graph.initializer if initializer.name in read]
    outputs = [value for value in graph.output if value.name in computed]
    part = onnx.helper.make_graph(kept, graph.name, cut, outputs, constants)
    return onnx.helper.make_model(part, ir_version=model.ir_version, opset_imports=model.opset_import)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of a model with additional outputs, after its own; the model's inputs are left out."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    existing = {value.name for value in (*model.graph.input, *model.graph.output)}
    # Without types and shapes, which ONNX Runtime infers.
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    return result
