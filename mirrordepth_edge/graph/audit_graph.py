"""The graph that an audit inspects: precision of the layers, attention blocks and the metric head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mirrordepth_edge.graph.cost import COUNTED, LAYOUT, QUANTISERS, Tensors
from mirrordepth_edge.graph.names import HEAD_PREFIX

if TYPE_CHECKING:
    import onnx

HALF = ("FP16", "BF16")
HEAD_DIMS = range(16, 257, 8)
"""Head dimensions that TensorRT's fused attention supports."""
MAX_INT8_SEQUENCE = 512
"""Longest sequence of fused INT8 attention."""

MOVING = (*LAYOUT, "Split", "Slice", "Gather", "Expand", "Pad", "MaxPool", "Resize")
"""Operators that work on integers as well, so that Q and DQ can move past them; Concat is another."""
BETWEEN_PRODUCTS = (*LAYOUT, *QUANTISERS, "Cast", "Add", "Mul", "Div", "Sub", "Where")
"""Operators between the products and the Softmax of an attention: scale, mask and type conversion."""
SHORT_NAMES: Final = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "DOUBLE": "FP64",
    "UINT8": "INT8",
    "UINT4": "INT4",
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention block: product, Softmax, product."""

    node: str
    """Name of the Softmax."""
    precision: str
    """Precision of the first product."""
    dtype: str
    """Type of its tensors; several if it changes, such as `FP16, FP32`."""
    sequence: int
    head_dim: int
    unfused: str | None
    """Why TensorRT cannot run it as one kernel; None if it can."""


class Graph:
    """A graph with its tensors, and queries for the checks."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.tensors = Tensors.of(model)
        self.nodes = [n for n in model.graph.node if not all(name in self.tensors.constants for name in n.output)]
        """Nodes that depend on the input; runtimes fold the others into constants."""
        self.products = [node for node in self.nodes if node.op_type in COUNTED]
        self.outputs = {value.name for value in model.graph.output}

    def type_of(self, tensor: str) -> str:
        """Return the type of a tensor, such as `FP32`; `unknown` if shape inference did not determine it."""
        import onnx

        name = onnx.TensorProto.DataType.Name(self.tensors.dtypes.get(tensor, 0))
        return "unknown" if name == "UNDEFINED" else SHORT_NAMES.get(name, "FP8" if "FLOAT8" in name else name)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.tensors.constants

    def maker(self, tensor: str, through: Sequence[str]) -> onnx.NodeProto | None:
        """Return the node that computes a tensor, looking through the operators in `through`."""
        while (maker := self.tensors.makers.get(tensor)) is not None and maker.op_type in through:
            tensor = next((name for name in maker.input if not self.is_constant(name)), maker.input[0])
        return maker

    def readers(self, tensor: str, through: Sequence[str]) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that read a tensor, looking through the operators in `through`."""
        for reader in self.tensors.readers.get(tensor, ()):
            if reader.op_type in through:
                for output in reader.output:
                    yield from self.readers(output, through)
            else:
                yield reader

    def quantised(self, tensor: str) -> str | None:
        """Return the integer type of a dequantised tensor, such as `INT8`; None if it is not dequantised."""
        maker = self.maker(tensor, MOVING)
        if maker is not None and maker.op_type == "Concat":
            types = {self.quantised(name) for name in maker.input}
            return types.pop() if len(types) == 1 else None
        return None if maker is None or maker.op_type != "DequantizeLinear" else self.type_of(maker.input[0])

    def arithmetic(self, node: onnx.NodeProto) -> str:
        """Return the precision in which a layer or product multiplies."""
        sides = {self.quantised(name) for name in node.input[:2]}
        return (len(sides) == 1 and sides.pop()) or self.type_of(node.input[0])

    def is_decomposed_norm(self, node: onnx.NodeProto) -> bool:
        """Whether a node is the Sqrt of a decomposed LayerNormalization: it reads a mean of squares, a Div reads it."""
        if node.op_type != "Sqrt":
            return False
        mean = self.maker(node.input[0], ("Add", "Cast"))
        if mean is None or mean.op_type != "ReduceMean":
            return False
        square = self.maker(mean.input[0], ("Cast",))
        squared = square is not None and (
            square.op_type == "Pow" or (square.op_type == "Mul" and square.input[0] == square.input[1])
        )
        return squared and any(r.op_type in ("Div", "Reciprocal") for r in self.readers(node.output[0], ("Cast",)))

    def head(self) -> list[onnx.NodeProto]:
        """Return the nodes of the metric head: those with its prefix, and a Softplus or Exp that makes an output."""
        nodes = [node for node in self.nodes if node.name.startswith(HEAD_PREFIX)]
        for output in self.outputs:
            last = self.maker(output, (*LAYOUT, "Cast", *QUANTISERS))
            if last is not None and last.op_type in ("Softplus", "Exp") and last not in nodes:
                nodes.append(last)
        return [node for node in nodes if node.op_type not in (*QUANTISERS, "Cast")]

    def head_type(self, node: onnx.NodeProto) -> str:
        return self.arithmetic(node) if node.op_type in COUNTED else self.type_of(node.output[0])

    def parts(self) -> dict[str, Counter[str]]:
        """Count the nodes that are sensitive to precision, by kind and precision."""
        parts = {
            kind: Counter(self.type_of(node.input[0]) for node in self.nodes if node.op_type == kind)
            for kind in ("LayerNormalization", "Softmax")
        }
        norms = Counter(self.type_of(node.input[0]) for node in self.nodes if self.is_decomposed_norm(node))
        parts["LayerNormalization in pieces"] = norms
        head = map(self.head_type, self.head())
        # Comparisons in the head return booleans, which are not a precision.
        parts["metric head"] = Counter(precision for precision in head if precision not in ("BOOL", "unknown"))
        return parts

    def casts(self) -> list[onnx.NodeProto]:
        """Return the Cast nodes that run and change the type."""
        casts = (node for node in self.nodes if node.op_type == "Cast")
        return [node for node in casts if self.type_of(node.input[0]) != self.type_of(node.output[0])]

    def attention(self) -> Iterator[Attention]:
        """Yield the attention blocks."""
        for node in self.nodes:
            if node.op_type != "Softmax":
                continue
            scores = self._product_behind(node.input[0])
            after = self.readers(node.output[0], (*LAYOUT, *QUANTISERS, "Cast"))
            values = next((reader for reader in after if reader.op_type == "MatMul"), None)
            if scores is None or values is None:
                continue
            types = dict.fromkeys(map(self.type_of, (scores.output[0], node.input[0], values.output[0])))
            sequence, dtype = max(self.tensors.shape(node.input[0])[-2:]), ", ".join(types)
            yield Attention(
                node=name_of(node),
                precision=self.arithmetic(scores),
                dtype=dtype,
                sequence=sequence,
                head_dim=self.tensors.shape(scores.input[0])[-1],
                unfused=self._why_unfused(scores, values, dtype, sequence),
            )

    def _product_behind(self, tensor: str) -> onnx.NodeProto | None:
        maker = self.tensors.makers.get(tensor)
        if maker is None or maker.op_type == "MatMul":
            return maker
        if maker.op_type not in BETWEEN_PRODUCTS:
            return None
        behind = (self._product_behind(name) for name in maker.input if name and not self.is_constant(name))
        return next((product for product in behind if product is not None), None)

    def _why_unfused(self, scores: onnx.NodeProto, values: onnx.NodeProto, dtype: str, sequence: int) -> str | None:
        # Requirements of TensorRT's fused attention (docs.nvidia.com/deeplearning/tensorrt, Working with Transformers):
        # FP16 or BF16 throughout, head dimensions of 16 to 256 divisible by 8, and in INT8 sequences of at most 512.
        # Both products need Q/DQ or neither (TensorRT issue 3243 on GitHub).
        first, second = self.arithmetic(scores), self.arithmetic(values)
        dims = {self.tensors.shape(scores.input[0])[-1], self.tensors.shape(values.output[0])[-1]}
        if first != second:
            return f"one product is {first}, the other is {second}"
        if "," in dtype:
            return f"its type changes ({dtype})"
        if dtype not in HALF:
            return f"it is {dtype}, not FP16 or BF16"
        if not dims <= set(HEAD_DIMS):
            return f"its head dimension {max(dims - set(HEAD_DIMS))} is not a multiple of 8 from 16 to 256"
        if first == "INT8" and sequence > MAX_INT8_SEQUENCE:
            return f"its sequence of {sequence} is longer than {MAX_INT8_SEQUENCE}, the maximum in INT8"
        return None


def name_of(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
