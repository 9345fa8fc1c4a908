"""Checks of an audit: what costs speed, size or accuracy in an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mirrordepth_edge.graph.audit_graph import HALF, MOVING, Graph, name_of
from mirrordepth_edge.graph.cost import COUNTED, LAYOUT, QUANTISERS, bits

if TYPE_CHECKING:
    import onnx

INTEGER_READERS = (*COUNTED, "Add", "AveragePool", "GlobalAveragePool", "QuantizeLinear")
"""Operators that fuse with a DequantizeLinear in front of them."""
FLOAT_ONLY = (
    *("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Erf"),
)
"""Normalisation and activation functions, which compute in floating point only."""
NOT_COUNTED = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Einsum", "Attention", "DeformConv"),
    *("LSTM", "GRU", "RNN", "If", "Loop", "Scan"),
)
"""Operators that multiply, but whose MACs are not counted."""


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """Something that costs speed, size or accuracy."""

    kind: str
    text: str
    """What it is and what it costs."""
    cure: str
    nodes: tuple[str, ...]


def _finding(kind: str, nodes: Iterable[onnx.NodeProto], text: str, cure: str) -> Iterator[AuditFinding]:
    """Yield a finding if there are nodes. In `text`, `{n}` is their number and `{s}` a plural s."""
    if names := tuple(map(name_of, nodes)):
        text = text.format(n=len(names), s="" if len(names) == 1 else "s")
        yield AuditFinding(kind=kind, text=text, cure=cure, nodes=names)


def _one_sided(graph: Graph) -> Iterator[AuditFinding]:
    # Layers that mde export --int8 keeps in floating point also read quantised activations.
    fallback = "Layers kept in floating point for accuracy and the metric head can stay so; otherwise quantise"
    sides = (("weights", "activations", "Quantise"), ("activations", "weights", fallback))
    for index, (own, other, quantise) in enumerate(sides):
        nodes = [
            node
            for node in graph.products
            if graph.quantised(node.input[index]) is None and graph.quantised(node.input[1 - index]) is not None
        ]
        text = (
            f"{{n}} layer{{s}} with quantised {own} only, computed in floating point: the {other} are floats, so the "
            "integers are converted back first. This saves memory at most, but no time."
        )
        yield from _finding(f"{own}-only", nodes, text, f"{quantise} their {other} too.")


def _norms(graph: Graph) -> Iterator[AuditFinding]:
    low = [n for n in graph.nodes if n.op_type == "LayerNormalization" and graph.type_of(n.input[0]) == "FP16"]
    yield from _finding(
        "layernorm-fp16",
        low,
        "{n} LayerNormalization{s} in FP16: the variance of an outlier channel exceeds 65504, and depth becomes NaN.",
        "Export with mde export --fp16, which keeps them in FP32.",
    )
    pieces = [node for node in graph.nodes if graph.is_decomposed_norm(node)]
    types = ", ".join(dict.fromkeys(graph.type_of(node.input[0]) for node in pieces))
    yield from _finding(
        "layernorm-pieces",
        pieces,
        f"{{n}} decomposed LayerNormalization{{s}} (Pow, ReduceMean, Sqrt, Div), in {types}: each operator is a pass "
        "over memory, and in FP16 squares of values above 255 overflow.",
        "Export with ONNX opset 17 or later, which has LayerNormalization, as mde export does.",
    )


def _head(graph: Graph) -> Iterator[AuditFinding]:
    low = [node for node in graph.head() if graph.head_type(node) in (*HALF, "INT8", "FP8", "INT4")]
    yield from _finding(
        "head",
        low,
        "{n} node{s} of the metric head below FP32: metric depth is rounded.",
        "Export with mde export, which keeps the head in FP32.",
    )


def _attention(graph: Graph) -> Iterator[AuditFinding]:
    blocks = list(graph.attention())
    reasons: dict[tuple[str, bool], list[str]] = {}
    for block in blocks:
        if block.unfused is not None:
            reasons.setdefault((block.unfused, block.dtype == "FP32"), []).append(block.node)
    for (reason, is_fp32), nodes in reasons.items():
        yield AuditFinding(
            kind="attention",
            text=f"{len(nodes)} of {len(blocks)} attention blocks cannot run as one TensorRT kernel: {reason}. Each "
            "then writes its scores to memory and reads them back.",
            cure="Nothing to do for a CPU. For a GPU, mde export --fp16 keeps attention in FP16."
            if is_fp32
            else "Keep attention in FP16, unquantised, with head dimensions divisible by 8.",
            nodes=tuple(nodes),
        )


def _casts(graph: Graph) -> Iterator[AuditFinding]:
    wasted: list[onnx.NodeProto] = []
    rounding: list[onnx.NodeProto] = []
    for node in graph.casts():
        first = graph.maker(node.input[0], LAYOUT)
        if first is None or first.op_type != "Cast" or graph.is_constant(first.output[0]):
            continue
        before, between, after = (
            graph.tensors.dtypes.get(name, 0) for name in (first.input[0], first.output[0], node.output[0])
        )
        if before == after and before != between:
            (rounding if bits(between) < bits(before) else wasted).append(node)
    yield from _finding(
        "cast-pair",
        wasted,
        "{n} Cast{s} undo the previous Cast, with only layout operators between: two redundant passes over memory.",
        "Remove both, or move the operators between in front of them.",
    )
    yield from _finding(
        "cast-rounds",
        rounding,
        "{n} Cast{s} back from a narrower type: precision is lost without a benefit, in FP16 up to 0.05 % of each "
        "value, and values above 65504 become infinite.",
        "Remove both; nothing between them needs the narrower type.",
    )
    on_constants = [
        node
        for node in graph.model.graph.node
        if node.op_type == "Cast" and graph.is_constant(node.input[0]) and _size(graph, node.input[0]) > 1
    ]
    yield from _finding(
        "cast-constant",
        on_constants,
        "{n} Cast{s} of constants: the file stores them in a type that is not used at run time.",
        "Store the constants in the type in which they are used.",
    )


def _size(graph: Graph, tensor: str) -> int:
    return prod(graph.tensors.shape(tensor))


def _unfused_pairs(graph: Graph) -> Iterator[AuditFinding]:
    float_only, sums, others = [], [], []
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear":
            continue
        for reader in graph.readers(node.output[0], (*MOVING, "Concat")):
            if reader.op_type in FLOAT_ONLY:
                float_only.append(reader)
            elif reader.op_type == "Add" and _is_residual_sum(graph, reader):
                sums.append(reader)
            elif reader.op_type not in INTEGER_READERS:
                others.append(reader)
    yield from _finding(
        "dq-float-only",
        _once(float_only),
        f"Q/DQ pairs in front of {_kinds(float_only)} ({{n}}), which compute in floating point: each is two redundant "
        "passes over memory and a rounding.",
        "Remove these pairs. On a CPU, keep those that ONNX Runtime's integer convolutions need on their outputs.",
    )
    yield from _finding(
        "dq-residual",
        _once(sums),
        "{n} residual sum{s} of transformer blocks with quantised operands: a few outlier channels determine the scale "
        "of all others, which costs more accuracy than anything else.",
        "Keep residual sums in floating point: remove the Q/DQ of their operands, also behind convolutions.",
    )
    yield from _finding(
        "dq-unfused",
        _once(others),
        f"Q/DQ pairs in front of {_kinds(others)} ({{n}}), which no integer kernel fuses: each is two passes over "
        "memory.",
        "Move the pairs to the inputs of Conv, MatMul, Gemm or Add.",
    )


def _once(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return list({name_of(node): node for node in nodes}.values())


def _kinds(nodes: Iterable[onnx.NodeProto]) -> str:
    return ", ".join(dict.fromkeys(node.op_type for node in nodes))


def _is_residual_sum(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a sum of two activations is a transformer's: it adds the output of a MatMul, or a LayerNormalization
    reads it. Sums of convolutions have no outlier channels."""
    if any(graph.is_constant(name) for name in node.input):
        return False
    through = (*LAYOUT, *QUANTISERS, "Cast")
    for name in node.input:
        maker = graph.maker(name, through)
        if maker is not None and maker.op_type == "Add" and any(map(graph.is_constant, maker.input)):
            maker = next((graph.maker(term, through) for term in maker.input if not graph.is_constant(term)), None)
        if maker is not None and maker.op_type in ("MatMul", "Gemm"):
            return True
    return any(reader.op_type == "LayerNormalization" for reader in graph.readers(node.output[0], through))


def _scales(graph: Graph) -> Iterator[AuditFinding]:
    from onnx import TensorProto, numpy_helper

    asymmetric, per_tensor, stored_float = [], [], []
    spare = 0
    for node in graph.model.graph.node:
        if node.op_type not in QUANTISERS:
            continue
        zero_point = node.input[2] if len(node.input) > 2 else ""
        integers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        unsigned = graph.tensors.dtypes.get(integers) == TensorProto.UINT8
        points = graph.tensors.initializers.get(zero_point)
        if unsigned or (points is not None and numpy_helper.to_array(points).any()):
            asymmetric.append(node)
        if not graph.is_constant(node.input[0]) or _size(graph, node.input[0]) == 1:
            continue
        if node.op_type == "QuantizeLinear":
            stored_float.append(node)
            spare += graph.tensors.bytes(node.input[0]) - graph.tensors.bytes(integers)
        elif _size(graph, node.input[1]) == 1 and _channels(graph, node) > 1:
            per_tensor.append(node)
    yield from _finding(
        "asymmetric",
        asymmetric,
        "{n} Q/DQ node{s} with uint8 or a zero point other than 0: this file is for CPUs, and TensorRT rejects it.",
        "Nothing to do for a CPU. For a GPU, mde export --int8 --target quantises symmetrically.",
    )
    yield from _finding(
        "per-tensor",
        per_tensor,
        "{n} weight{s} with one scale for all channels: the scale of the largest channel is too coarse for the others, "
        "especially in depthwise convolutions.",
        "Quantise weights per channel, as mde export --int8 does.",
    )
    yield from _finding(
        "float-weights",
        stored_float,
        f"{{n}} weight{{s}} stored in floating point and quantised when the model is loaded: {spare / 1e6:.2f} MB more "
        "than as integers.",
        "Store the integers, as mde export --int8 does.",
    )


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Number of output channels of the layer whose weights a node dequantises; 0 if it dequantises no weights."""
    shape = graph.tensors.shape(node.output[0])
    for reader in graph.tensors.readers.get(node.output[0], ()):
        if reader.op_type in COUNTED and reader.input[1] == node.output[0]:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in reader.attribute)
            return shape[{"Conv": 0, "ConvTranspose": 1}.get(reader.op_type, 0 if transposed else -1)]
    return 0


def _uncounted(graph: Graph) -> Iterator[AuditFinding]:
    foreign = [n for n in graph.nodes if n.domain not in ("", "ai.onnx") and n.op_type not in QUANTISERS]
    uncounted = _once([*(n for n in graph.nodes if n.op_type in NOT_COUNTED), *foreign])
    yield from _finding(
        "not-counted",
        uncounted,
        f"MACs of {_kinds(uncounted)} ({{n}}) are not counted: the shares refer to the other layers.",
        "Audit the file before it was optimised for a runtime.",
    )


CHECKS = (_one_sided, _norms, _head, _attention, _casts, _unfused_pairs, _scales, _uncounted)
