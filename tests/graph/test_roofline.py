"""Roofline estimates match hand calculations and published measurements; targets have sources."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mirrordepth_edge.config import Precision, TargetConfig
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.graph.cost import NodeCost
from mirrordepth_edge.graph.roofline import estimate
from mirrordepth_edge.recipes import load_target, recipe_names

FIGURES = ("memory_gb", "bandwidth_gb_s", "peak_tops")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# 1e12 operations and 1e9 bytes a second are 1e9 operations and 1e6 bytes a millisecond.
TARGET = TargetConfig(
    name="made-up",
    description="",
    backend="tensorrt",
    precision="fp16",
    compute_capabilities=("8.7",),
    bandwidth_gb_s=10,
    peak_tops={"fp32": 1, "fp16": 2, "int8": 8},
)


def cost(name: str, work: int, weights: int = 0, activations: int = 0) -> NodeCost:
    return NodeCost(name=name, macs=work, weight_bytes=weights, activation_bytes=activations)


# At FP32 10 ms of arithmetic and 4 ms of memory; then 1 ms and 12 ms.
COSTS = (
    cost("big", 5_000_000_000, weights=30_000_000, activations=10_000_000),
    cost("wide", 500_000_000, weights=20_000_000, activations=100_000_000),
    cost("relu", 0, activations=900_000_000),
)


@pytest.mark.parametrize(
    ("precision", "bounds_ms"),
    [("fp32", (10, 12)), ("fp16", (5, 6)), ("int8", (10 / 8, 3))],
)
def test_each_node_is_bound_by_the_longer_of_compute_and_memory(
    precision: Precision, bounds_ms: tuple[float, float]
) -> None:
    result = estimate(COSTS, lambda _: precision, TARGET)
    assert [node.name for node in result.nodes] == ["big", "wide"]
    assert [node.bound_ms for node in result.nodes] == pytest.approx(bounds_ms)
    assert [node.compute_ms > node.memory_ms for node in result.nodes] == [True, False]
    assert result.bound_ms == pytest.approx(sum(bounds_ms))


def test_precision_is_chosen_per_node() -> None:
    chosen: dict[str, Precision] = {"big": "int8", "wide": "fp16"}
    result = estimate(COSTS, chosen.__getitem__, TARGET)
    assert [node.compute_ms for node in result.nodes] == pytest.approx([10 / 8, 0.5])
    assert [node.memory_ms for node in result.nodes] == pytest.approx([1, 6])
    assert [node.precision for node in result.nodes] == ["int8", "fp16"]


def test_network_without_macs_takes_no_time() -> None:
    result = estimate(COSTS[2:], lambda _: "fp32", TARGET)
    assert (result.nodes, result.bound_ms) == ((), 0)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"bandwidth_gb_s": None}, "no bandwidth_gb_s,"),
        ({"peak_tops": None}, "no peak_tops.int8,"),
        ({"bandwidth_gb_s": None, "peak_tops": {"fp16": 1.0}}, "no bandwidth_gb_s and peak_tops.int8,"),
    ],
)
def test_target_without_figures_is_refused_with_alternatives(changes: dict[str, Any], lacks: str) -> None:
    with pytest.raises(OptionError) as raised:
        estimate(COSTS, lambda _: "int8", replace(TARGET, **changes))
    assert lacks in raised.value.why
    assert "orin-nano" in raised.value.cure
    assert "cpu" not in raised.value.cure


def vit_b16(tokens: int = 197, width: int = 768, heads: int = 12, layers: int = 12) -> list[NodeCost]:
    """ViT-B/16 at 224 x 224, FP32, by its definition (Dosovitskiy et al. 2021): 196 patches and the class token."""

    def linear(name: str, rows: int, before: int, after: int) -> NodeCost:
        return cost(name, rows * before * after, 4 * before * after, 4 * rows * (before + after))

    nodes = [linear("linear/patches", tokens - 1, 16 * 16 * 3, width)]
    for layer in range(layers):
        product = cost(
            f"attention/{layer}", tokens**2 * width, activations=4 * (2 * tokens * width + heads * tokens**2)
        )
        nodes += [
            linear(f"linear/{layer}/qkv", tokens, width, 3 * width),
            product,
            product,
            linear(f"linear/{layer}/out", tokens, width, width),
            linear(f"linear/{layer}/up", tokens, width, 4 * width),
            linear(f"linear/{layer}/down", tokens, 4 * width, width),
        ]
    return [*nodes, linear("linear/classes", 1, width, 1000)]


@pytest.mark.parametrize(
    ("linear", "rest", "measured_ms"),
    [("fp32", "fp32", 13.06), ("fp16", "fp16", 5.59), ("int8", "fp16", 4.92)],
)
def test_published_measurements_are_above_the_bound(linear: Precision, rest: Precision, measured_ms: float) -> None:
    """TensorRT 10.3 on an Orin Nano at MAXN SUPER, the fastest of each precision:
    github.com/onnxsim/onnxsim, scripts/nvidia/README.md, "Transformer: ViT-B/16"."""
    costs = vit_b16()
    assert sum(node.macs for node in costs) == pytest.approx(17.5e9, rel=0.01)  # 17.6 G are quoted everywhere
    result = estimate(costs, lambda name: linear if name.startswith("linear") else rest, load_target("orin-nano"))
    assert measured_ms / 5 < result.bound_ms < measured_ms


@pytest.mark.parametrize("name", recipe_names("export"))
def test_target_figures_have_sources(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    sources = target.sources or {}
    stated = {figure for figure in FIGURES if getattr(target, figure) is not None}
    assert stated <= sources.keys()
    assert {key.split(".")[0] for key in sources} <= {*FIGURES, "jetpack"}
    assert all(address.startswith("https://") for address in sources.values())
    if target.backend == "onnxruntime":
        assert not stated
        return
    assert stated == set(FIGURES)
    peaks = target.peak_tops or {}
    # Tensor cores multiply INT8 at twice the rate of FP16, and TF32 at half of it or a quarter.
    assert peaks["int8"] == pytest.approx(2 * peaks["fp16"], rel=0.03)
    assert min(abs(peaks["fp16"] / peaks["fp32"] - ratio) for ratio in (2, 4)) < 0.03
    assert (target.jetpack is not None) is (target.backend == "tensorrt")


def test_jetsons_are_ordered_by_speed() -> None:
    jetsons = [load_target(name) for name in ("orin-nano", "orin-nx", "agx-orin", "thor")]
    for precision in PRECISIONS:
        bounds = [estimate(COSTS, lambda _, precision=precision: precision, target).bound_ms for target in jetsons]
        assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize(
    "line",
    ["memory_gb = 0", "bandwidth_gb_s = -1", "bandwidth_gb_s = inf", "peak_tops = { int8 = 0 }", "size_hw = [0, 32]"],
)
def test_impossible_figures_are_refused(line: str, tmp_path: Any) -> None:
    path = tmp_path / "own.toml"
    recipe = 'name = "own"\ndescription = "."\nbackend = "onnxruntime"\nprecision = "fp32"\n'
    path.write_text(recipe, encoding="utf-8")
    assert load_target(str(path)).peak_tops is None
    path.write_text(recipe + line, encoding="utf-8")
    with pytest.raises(InputError):
        load_target(str(path))


def test_peaks_of_unknown_precisions_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "own"\ndescription = "."\nbackend = "onnxruntime"\nprecision = "fp32"\npeak_tops = { fp4 = 1 }\n',
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=r"own\.toml"):
        load_target(str(path))
