"""The part of a graph that a change of some nodes can reach, so that the rest need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mirrordepth_edge.graph.cost import Tensors

if TYPE_CHECKING:
    import onnx


def downstream(model: onnx.ModelProto, nodes: Iterable[str]) -> onnx.ModelProto:
    """A model of `nodes` and of all that depends on them.

    Its inputs are the tensors where it was cut: what it reads and does not make. Its outputs are those of `model` that
    `nodes` can change.

    Args:
        model: static; it is not changed.
        nodes: names of nodes.
    """
    import onnx

    graph, tensors, wanted = model.graph, Tensors.of(model), set(nodes)
    kept: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:  # in the order in which they run
        if node.name in wanted or any(name in made for name in node.input):
            kept.append(node)
            made.update(node.output)
    read = {name for node in kept for name in node.input if name}
    cut = [
        onnx.helper.make_tensor_value_info(name, tensors.dtypes[name], tensors.shape(name))
        for name in sorted(read - made - set(tensors.initializers))
    ]
    constants = [each for each in graph.initializer if each.name in read]
    outputs = [each for each in graph.output if each.name in made]
    part = onnx.helper.make_graph(kept, graph.name, cut, outputs, constants)
    return onnx.helper.make_model(part, ir_version=model.ir_version, opset_imports=model.opset_import)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """`model` with more of its tensors as outputs, after its own."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors, has = Tensors.of(model), {each.name for each in model.graph.output}
    result.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, tensors.dtypes[name], tensors.shape(name))
        for name in names
        if name not in has
    )
    return result
