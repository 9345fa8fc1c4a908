"""Sensitivity from partial graphs matches that of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from onnx import ModelProto

from mirrordepth_edge.backends.onnxruntime import create_inference_session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.graph.activations import Ranges, collect
from mirrordepth_edge.graph.subgraph import downstream, with_outputs
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.quantise.qdq import calibrated_tensors, layer_groups, quantisable, quantise
from mirrordepth_edge.quantise.sensitivity import measure_sensitivity

CPU = SessionOptions(device="cpu")


@pytest.fixture(scope="module")
def model(tiny_network: DepthNetwork, exported: Callable[[DepthNetwork], ModelProto]) -> ModelProto:
    return exported(tiny_network)


@pytest.fixture(scope="module")
def images() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def ranges(model: ModelProto, images: list[Any]) -> Ranges:
    return collect(model, calibrated_tensors(model, quantisable(model), "gpu"), images).ranges("max", symmetric=True)


def depth(model: ModelProto, image: Any) -> Any:
    return create_inference_session(model.SerializeToString(), CPU, qdq_as_written=True).run(None, {"image": image})[0]


def test_sensitivity_matches_the_whole_model(model: ModelProto, images: list[Any], ranges: Ranges) -> None:
    groups = layer_groups(quantisable(model))
    few = {group: groups[group] for group in [*groups][:: len(groups) // 3]}
    found = measure_sensitivity(model, few, ranges, "gpu", images)
    for group, sensitivity in found.items():
        whole = quantise(model, groups[group], ranges, "gpu")
        errors = [np.abs(depth(whole, each) - depth(model, each)) / depth(model, each) for each in images]
        assert sensitivity == pytest.approx(np.mean(errors, dtype=np.float64), rel=1e-3, abs=1e-7)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_known_sensitivity_is_not_measured_again(model: ModelProto, images: list[Any], ranges: Ranges) -> None:
    groups = layer_groups(quantisable(model))
    first, second, *_ = groups
    told: list[str] = []
    found = measure_sensitivity(
        model,
        {each: groups[each] for each in (first, second)},
        ranges,
        "gpu",
        images,
        {first: 0.5},
        lambda group, sensitivity: told.append(group),
    )
    assert found[first] == 0.5
    assert told == [second]


def test_part_gives_the_same_depth_as_the_whole_model(model: ModelProto, images: list[Any]) -> None:
    """Cut in front of the last block of the tower, and fed what the whole model has there."""
    names = [node.name for node in model.graph.node]
    last = next(name for name in reversed(names) if name.startswith("tower/") and name.endswith("MatMul"))
    part = downstream(model, [last])
    assert 0 < len(part.graph.node) < len(model.graph.node)
    assert [each.name for each in part.graph.output] == ["depth"]
    cut = [each.name for each in part.graph.input]
    assert "image" not in cut
    whole = create_inference_session(with_outputs(model, cut).SerializeToString(), CPU)
    expected, *values = whole.run(["depth", *cut], {"image": images[0]})
    (found,) = create_inference_session(part.SerializeToString(), CPU).run(None, dict(zip(cut, values, strict=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_part_from_the_first_layer_reads_the_image(model: ModelProto) -> None:
    first = next(iter(quantisable(model)))
    part = downstream(model, [first])
    assert "image" not in {name for node in part.graph.node for name in node.output}
    assert len(part.graph.node) > 0.9 * len(model.graph.node)
