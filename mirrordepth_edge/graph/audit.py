"""Precision audit of an artefact: which layers run in INT8, FP16 and FP32, and what reduces the speed-up.

The precision of a layer follows from the graph, not from the file's name: TensorRT builds strongly typed networks, and
ONNX Runtime uses integer kernels only if both operands are quantised.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mirrordepth_edge.config import Precision
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.audit_findings import CHECKS, AuditFinding
from mirrordepth_edge.graph.audit_graph import HALF, Attention, Graph, name_of
from mirrordepth_edge.graph.cost import node_cost
from mirrordepth_edge.manifest import Manifest

if TYPE_CHECKING:
    import onnx

MIN_FP16_SHARE = 0.9
"""Share of MACs in an FP16 file; the metric head and little else stays FP32."""
MIN_INT8_SHARE = 0.5
"""Share of MACs in an INT8 file whose manifest does not list its layers."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an artefact has the requested precision."""

    asked: Precision
    holds: bool
    text: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Result of a precision audit."""

    unit: Literal["multiply-adds", "layers"]
    work: dict[str, int]
    """Amount in `unit` per precision, such as `INT8`. An engine's layers are counted by the type of their outputs,
    since their run times are unknown."""
    parts: dict[str, dict[str, int]]
    """Number of operators per kind and precision."""
    attention: tuple[Attention, ...]
    casts: int
    """Number of type conversions at run time; for an engine, of reformatting layers."""
    cast_bytes: int | None
    """Bytes that they read and write in one inference; unknown for an engine."""
    findings: tuple[AuditFinding, ...]
    verdict: Verdict | None
    """None if the requested precision is unknown."""

    def share(self, *precisions: str) -> float:
        """Return the share of some precisions, 0 to 1."""
        return sum(self.work.get(precision, 0) for precision in precisions) / max(1, sum(self.work.values()))


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file of any origin, with its weights.

    Raises:
        InputError: it is not an ONNX file, or the file with its weights is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx

    try:
        model = onnx.load(path)
        why = "" if model.graph.node else "it contains no graph"
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        why = str(error)
    if why:
        raise InputError(
            f"{path} cannot be read as an ONNX file.",
            f"It is truncated, another format, or the file with its weights is missing: {why}.",
            "Copy it again with everything beside it, or make it again with mde export.",
        )
    return model


def audit_onnx(model: onnx.ModelProto, manifest: Manifest | None) -> Audit:
    """Report which layers run in which precision.

    A layer with weights, or a product of two activations, runs in INT8 if both sides come through DequantizeLinear of
    int8 or uint8; otherwise in the type of its inputs. No integers are multiplied where only one side is quantised.

    Args:
        model: an ONNX model with fixed shapes.
        manifest: states the requested precision; None for a foreign file, which gets no verdict.

    Raises:
        InputError: a shape is not fixed.
    """
    graph = Graph(model)
    work: Counter[str] = Counter()
    for node in graph.products:
        work[graph.arithmetic(node)] += node_cost(node, graph.tensors).macs
    attention = tuple(graph.attention())
    casts = graph.casts()
    audit = Audit(
        unit="multiply-adds",
        work=dict(work),
        parts={label: dict(counts) for label, counts in graph.parts().items() if counts},
        attention=attention,
        casts=len(casts),
        cast_bytes=sum(node_cost(node, graph.tensors).activation_bytes for node in casts),
        findings=tuple(finding for check in CHECKS for finding in check(graph)),
        verdict=None,
    )
    if manifest is None:
        return audit
    return replace(audit, verdict=_verdict(audit, graph, manifest))


def _verdict(audit: Audit, graph: Graph, manifest: Manifest) -> Verdict:
    asked = manifest.precision
    low = audit.share(*HALF, "INT8", "FP8", "INT4")
    if asked == "fp32":
        holds = low == 0
        text = f"{low:.1%} of the MACs run below FP32."
    elif asked == "fp16":
        holds = low >= MIN_FP16_SHARE
        text = f"{low:.1%} of the MACs run in FP16 or lower; at least {MIN_FP16_SHARE:.0%} are required."
    else:
        holds, text = _int8_verdict(audit, graph, manifest)
    return Verdict(asked=asked, holds=holds, text=text, cure=f"Export it again: mde export --{asked}")


def _int8_verdict(audit: Audit, graph: Graph, manifest: Manifest) -> tuple[bool, str]:
    """Compare with the layers that the manifest lists, or with half of the MACs if it lists none."""
    share = f"{audit.share('INT8'):.1%} of the MACs run in INT8"
    if manifest.quantisation is None:
        return audit.share("INT8") >= MIN_INT8_SHARE, f"{share}; at least {MIN_INT8_SHARE:.0%} are required."
    if manifest.quantisation.forced:
        share += "; its accuracy gate failed, and it was written by --force"
    if manifest.quantisation.domain_problem is not None:
        share += f"; {manifest.quantisation.domain_problem}"
    named = manifest.quantisation.int8_nodes
    actual = {name_of(node) for node in graph.products if graph.arithmetic(node) == "INT8"}
    missing = [name for name in named if name not in actual]
    if not named:
        return False, f"{share}; its manifest lists no INT8 layers."
    if missing:
        return False, f"{share}; {len(missing)} of {len(named)} layers in its manifest do not, such as {missing[0]}."
    return True, f"{share}, in all {len(named)} layers that its manifest lists."
