"""What an audit finds in an ONNX graph that costs speed, size or metric depth, one check each."""

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
"""Operators that a DequantizeLinear in front of them becomes part of."""
FLOAT_ONLY = (
    *("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Erf"),
)
"""Normalisations and activation functions: integers are of no use to them."""
NOT_COUNTED = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Einsum", "Attention", "DeformConv"),
    *("LSTM", "GRU", "RNN", "If", "Loop", "Scan"),
)
"""Operators that multiply, and whose multiply-adds are not counted."""


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """Something that costs speed, size or metric depth."""

    kind: str
    text: str
    """What it is and what it costs, in sentences."""
    cure: str
    nodes: tuple[str, ...]


def _finding(kind: str, nodes: Iterable[onnx.NodeProto], text: str, cure: str) -> Iterator[AuditFinding]:
    """One finding, or none without nodes. `text` may name their number: `{n}`, and `{s}` for a plural."""
    names = tuple(map(name_of, nodes))
    if names:
        number = text.format(n=len(names), s="" if len(names) == 1 else "s")
        yield AuditFinding(kind=kind, text=number, cure=cure, nodes=names)


def _one_sided(graph: Graph) -> Iterator[AuditFinding]:
    sides = {"weights-only": 0, "activations-only": 1}
    for kind, place in sides.items():
        nodes = [
            node
            for node in graph.products
            if graph.quantised(node.input[place]) is None and graph.quantised(node.input[1 - place]) is not None
        ]
        own, other = ("weights", "activations") if kind == "weights-only" else ("activations", "weights")
        text = (
            f"{{n}} layer{{s}} with quantised {own} only: no integer arithmetic. The {other} are floats, so the "
            "integers are turned back first; that saves bytes at most, no multiplications."
        )
        # Of what mde export --int8 gave back to floating point, activations are all that is quantised.
        kept = "Nothing where they were given back to keep the depth, or are the metric head's; otherwise quantise"
        quantise = "Quantise" if kind == "weights-only" else kept
        yield from _finding(kind, nodes, text, f"{quantise} their {other} too.")


def _norms(graph: Graph) -> Iterator[AuditFinding]:
    low = [n for n in graph.nodes if n.op_type == "LayerNormalization" and graph.type_of(n.input[0]) == "FP16"]
    yield from _finding(
        "layernorm-fp16",
        low,
        "{n} LayerNormalization{s} in FP16: the variance of an outlier channel overflows 65504, and depth becomes NaN.",
        "Make the file with mde export --fp16, which keeps them FP32.",
    )
    pieces = [node for node in graph.nodes if graph.is_decomposed_norm(node)]
    types = ", ".join(dict.fromkeys(graph.type_of(node.input[0]) for node in pieces))
    yield from _finding(
        "layernorm-pieces",
        pieces,
        f"{{n}} LayerNormalization{{s}} in pieces (Pow, ReduceMean, Sqrt, Div), in {types}: each piece is a pass over "
        "memory, and in FP16 the square of anything above 255 overflows.",
        "Export with ONNX opset 17 or later, which has LayerNormalization; mde export does.",
    )


def _head(graph: Graph) -> Iterator[AuditFinding]:
    low = [node for node in graph.head() if graph.head_type(node) in (*HALF, "INT8", "FP8", "INT4")]
    yield from _finding(
        "head",
        low,
        "{n} node{s} of the metric head below FP32: what it rounds are metres.",
        "Make the file with mde export, which keeps the head FP32.",
    )


def _attention(graph: Graph) -> Iterator[AuditFinding]:
    blocks = list(graph.attention())
    reasons: dict[str, list[str]] = {}
    for block in blocks:
        if block.unfused is not None:
            reasons.setdefault(block.unfused, []).append(block.node)
    for reason, nodes in reasons.items():
        yield AuditFinding(
            kind="attention",
            text=f"{len(nodes)} of {len(blocks)} attention blocks cannot run as one TensorRT kernel: {reason}. Each "
            "then writes its scores to memory and reads them back.",
            cure="Nothing on a CPU; for a GPU, mde export --fp16 keeps attention FP16 throughout."
            if reason.startswith("it is FP32")
            else "Leave attention FP16, unquantised, with heads divisible by 8.",
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
        "{n} Cast{s} undo the one before, with nothing but layout between: two passes over memory for nothing.",
        "Take both out, or move what is between in front of them.",
    )
    yield from _finding(
        "cast-rounds",
        rounding,
        "{n} Cast{s} back to a type that the one before rounded: the digits are lost for nothing, in FP16 up to 0.05 % "
        "of each value, and values beyond 65504 become infinite.",
        "Take both out; nothing between them needs the smaller type.",
    )
    on_constants = [
        node
        for node in graph.model.graph.node
        if node.op_type == "Cast" and graph.is_constant(node.input[0]) and _size(graph, node.input[0]) > 1
    ]
    yield from _finding(
        "cast-constant",
        on_constants,
        "{n} Cast{s} of constants: the file keeps them in their old type, and is larger than what runs.",
        "Store the constants in the type they are used in.",
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
        f"Quantised values go into {_kinds(float_only)} ({{n}}): they work in floats, so the pair is two passes over "
        "memory, and rounding, for nothing.",
        "Take the Q/DQ in front of them out; but on a CPU, ONNX Runtime's integer convolutions need it behind them.",
    )
    yield from _finding(
        "dq-residual",
        _once(sums),
        "{n} residual sum{s} of transformer blocks with quantised operands: a few outlier channels set the scale of "
        "all others, which costs the most accuracy of all.",
        "Leave residual sums in floats: take the Q/DQ of their operands out, also behind convolutions.",
    )
    yield from _finding(
        "dq-unfused",
        _once(others),
        f"Quantised values go into {_kinds(others)} ({{n}}), which no integer kernel takes along: the pair stays, as "
        "two passes over memory.",
        "Move the Q/DQ to where Conv, MatMul, Gemm or Add read.",
    )


def _once(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return list({name_of(node): node for node in nodes}.values())


def _kinds(nodes: Iterable[onnx.NodeProto]) -> str:
    return ", ".join(dict.fromkeys(node.op_type for node in nodes))


def _is_residual_sum(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a sum of two activations belongs to a transformer: a MatMul, with or without bias, is under it, or a
    LayerNormalization reads it. Sums of convolutions carry no such outliers."""
    if any(graph.is_constant(name) for name in node.input):
        return False
    through = (*LAYOUT, *QUANTISERS, "Cast")
    for name in node.input:
        maker = graph.maker(name, through)
        if maker is not None and maker.op_type == "Add" and any(map(graph.is_constant, maker.input)):
            maker = next((graph.maker(each, through) for each in maker.input if not graph.is_constant(each)), None)
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
        zero = node.input[2] if len(node.input) > 2 else ""
        integers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        unsigned = graph.tensors.dtypes.get(integers) == TensorProto.UINT8
        points = graph.tensors.initializers.get(zero)
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
        "{n} Q/DQ node{s} with uint8 or a zero point other than 0: this file is for CPUs. TensorRT refuses it.",
        "Nothing for a CPU; for a GPU, mde export --int8 --target, which quantises symmetrically.",
    )
    yield from _finding(
        "per-tensor",
        per_tensor,
        "{n} weight{s} with one scale for all channels: the largest channel's scale is too coarse for the others, most "
        "of all in depthwise convolutions.",
        "Quantise weights per channel: mde export --int8 does.",
    )
    yield from _finding(
        "float-weights",
        stored_float,
        f"{{n}} weight{{s}} quantised only when the model is loaded: the file holds floats, {spare / 1e6:.2f} MB more "
        "than their integers.",
        "Store the integers: mde export --int8 does.",
    )


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Output channels of the layer whose weights a DequantizeLinear makes; 0 where it makes none."""
    shape = graph.tensors.shape(node.output[0])
    for reader in graph.tensors.readers.get(node.output[0], ()):
        if reader.op_type in COUNTED and reader.input[1] == node.output[0]:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in reader.attribute)
            return shape[{"Conv": 0, "ConvTranspose": 1}.get(reader.op_type, 0 if transposed else -1)]
    return 0


def _uncounted(graph: Graph) -> Iterator[AuditFinding]:
    foreign = [n for n in graph.nodes if n.domain not in ("", "ai.onnx") and n.op_type not in QUANTISERS]
    own = _once([*(n for n in graph.nodes if n.op_type in NOT_COUNTED), *foreign])
    yield from _finding(
        "not-counted",
        own,
        f"What {_kinds(own)} ({{n}}) multiply is not counted: the shares are those of the rest.",
        "Audit the file before it was optimised for one runtime.",
    )


CHECKS = (_one_sided, _norms, _head, _attention, _casts, _unfused_pairs, _scales, _uncounted)
