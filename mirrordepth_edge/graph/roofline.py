"""What a network would need on a target that is not at hand: a roofline estimate, not a measurement.

The roofline (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 2009): a layer
needs at least as long as its arithmetic at the target's peak, and at least as long as its bytes at the memory's peak;
the longer of the two bounds it. Layers follow one another, so their bounds add up.

Only nodes that multiply and add count: those with weights, and the products of attention. All others (activations,
normalisation, softmax, additions) are taken to fuse into them at no cost. Each counted node reads its weights and its
input from memory and writes its output there once. So the estimate is a lower bound: launches, nodes that do not fuse
and kernels below the peak come on top. One thing may beat it: a cache that holds what passes between layers, of tens
of MB on GeForce cards and 2 to 4 MB on Jetson Orin, where nodes bound by memory are concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mirrordepth_edge.config import Precision, TargetConfig
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.graph.cost import NodeCost
from mirrordepth_edge.recipes import load_target, recipe_names

NOT_MEASURED = "roofline estimate, not a measurement"
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of one weight or activation."""


@dataclass(frozen=True, kw_only=True)
class NodeBound:
    """The least that one node needs."""

    name: str
    op_type: str
    precision: Precision
    compute_ms: float
    """Its multiply-adds at the target's peak."""
    memory_ms: float
    """Its weights and activations at the memory's peak."""

    @property
    def bound_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The least that a network needs: an estimate from data sheets, not a measurement."""

    target: str
    nodes: tuple[NodeBound, ...]
    """Those that count, in the graph's order."""

    @property
    def bound_ms(self) -> float:
        """Of one inference."""
        return sum(node.bound_ms for node in self.nodes)

    @property
    def memory_bound(self) -> float:
        """Share of that time in which memory is what limits; 0 of no time."""
        waiting_ms = sum(node.memory_ms for node in self.nodes if node.memory_ms > node.compute_ms)
        return waiting_ms / self.bound_ms if self.bound_ms > 0 else 0.0

    def in_words(self) -> str:
        """What this is, for wherever its figures are shown."""
        return f"{NOT_MEASURED}: a lower bound for {self.target}, from data sheets"


def estimate(
    costs: Sequence[NodeCost],
    precision_of: Callable[[str], Precision] | Mapping[str, Precision],
    target: TargetConfig,
) -> Roofline:
    """The least time of each node, and of all, on a target.

    Args:
        costs: `cost.node_costs` of the FP32 graph: bytes are those of 4-byte numbers, and are scaled from there.
        precision_of: the precision of a node by its name; asked for nodes that multiply and add only.

    Raises:
        OptionError: the target has no bandwidth, or no peak in a precision that is asked for.
    """
    look_up = precision_of if callable(precision_of) else precision_of.__getitem__
    counted = [(cost, look_up(cost.name)) for cost in costs if cost.macs > 0]
    peaks, bandwidth = target.peak_tops or {}, target.bandwidth_gb_s
    missing = sorted({precision for _, precision in counted} - peaks.keys())
    if bandwidth is None or missing:
        raise _no_figures(target, missing)
    return Roofline(
        target=target.name,
        nodes=tuple(
            NodeBound(
                name=cost.name,
                op_type=cost.op_type,
                precision=precision,
                # 1e12 operations a second are 1e9 a millisecond, and 1e9 bytes a second are 1e6.
                compute_ms=2 * cost.macs / (1e9 * peaks[precision]),
                memory_ms=(cost.weight_bytes + cost.activation_bytes) * BYTES[precision] / 4 / (1e6 * bandwidth),
            )
            for cost, precision in counted
        ),
    )


def _no_figures(target: TargetConfig, missing: Sequence[Precision]) -> OptionError:
    known = [
        name
        for name, each in ((name, load_target(name)) for name in recipe_names("export"))
        if each.bandwidth_gb_s is not None and each.peak_tops and set(missing) <= each.peak_tops.keys()
    ]
    lacks = " and ".join([*["bandwidth_gb_s"] * (target.bandwidth_gb_s is None), *(f"peak_tops.{p}" for p in missing)])
    return OptionError(
        f"There is no roofline estimate for the target {target.name!r}.",
        f"Its recipe has no {lacks}, without which time cannot be estimated.",
        f"Use one that has them ({', '.join(known)}), or write them into a recipe of your own: export/README.md.",
    )
