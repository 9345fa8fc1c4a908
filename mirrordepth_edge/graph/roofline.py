"""Roofline estimate: a lower bound for the run time of a network on a target that is not at hand.

The roofline model (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 2009): a
layer takes at least the time of its arithmetic at the target's peak, and at least the time of its memory traffic at
peak bandwidth. The longer of the two bounds the layer; layers run one after another, so their bounds add up.

Only nodes with MACs count: layers with weights, and the products of attention. All others (activation functions,
normalisation, softmax, additions) are assumed to fuse with them at no cost. Each counted node reads its weights and
input from memory and writes its output once. The estimate is therefore a lower bound: kernel launches, nodes that do
not fuse and kernels below the peak add to it. Only a cache that holds tensors between memory-bound layers can beat it:
tens of MB on GeForce cards, 2 to 4 MB on Jetson Orin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirrordepth_edge.config import Precision, TargetConfig
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.graph.cost import NodeCost
from mirrordepth_edge.recipes import load_target, recipe_names

NOT_MEASURED = "roofline estimate, not a measurement"
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Size of one weight or activation."""


@dataclass(frozen=True, kw_only=True)
class NodeBound:
    """Lower bound of one node."""

    name: str
    precision: Precision
    compute_ms: float
    """Time of its MACs at the target's peak."""
    memory_ms: float
    """Time of its weights and activations at peak bandwidth."""

    @property
    def bound_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Lower bound of a network."""

    nodes: tuple[NodeBound, ...]
    """The nodes with MACs, in the graph's order."""

    @property
    def bound_ms(self) -> float:
        """Bound of one inference."""
        return sum(node.bound_ms for node in self.nodes)


def estimate(costs: Sequence[NodeCost], precision_of: Callable[[str], Precision], target: TargetConfig) -> Roofline:
    """Estimate the lower bound of each node on a target.

    Args:
        costs: `cost.node_costs` of the FP32 graph, whose bytes are scaled to other precisions.
        precision_of: returns the precision of a node by its name; called only for nodes with MACs.

    Raises:
        OptionError: the target's recipe has no bandwidth, or no peak for a precision that is used.
    """
    counted = [(cost, precision_of(cost.name)) for cost in costs if cost.macs > 0]
    peaks, bandwidth = target.peak_tops or {}, target.bandwidth_gb_s
    missing = sorted({precision for _, precision in counted} - peaks.keys())
    if bandwidth is None or missing:
        raise _no_figures(target, missing)
    return Roofline(
        nodes=tuple(
            NodeBound(
                name=cost.name,
                precision=precision,
                # 1e12 operations/s are 1e9 per ms, and 1e9 bytes/s are 1e6 per ms; one MAC is two operations.
                compute_ms=2 * cost.macs / (1e9 * peaks[precision]),
                memory_ms=(cost.weight_bytes + cost.activation_bytes) * BYTES[precision] / 4 / (1e6 * bandwidth),
            )
            for cost, precision in counted
        ),
    )


def _no_figures(target: TargetConfig, missing: Sequence[Precision]) -> OptionError:
    complete = [
        recipe.name
        for recipe in map(load_target, recipe_names("export"))
        if recipe.bandwidth_gb_s is not None and recipe.peak_tops and set(missing) <= recipe.peak_tops.keys()
    ]
    lacks = " and ".join([*["bandwidth_gb_s"] * (target.bandwidth_gb_s is None), *(f"peak_tops.{p}" for p in missing)])
    return OptionError(
        f"No roofline estimate for target {target.name!r}.",
        f"Its recipe has no {lacks}, which the estimate needs.",
        f"Use a target that has them ({', '.join(complete)}), or add them to your own recipe: see export/README.md.",
    )
