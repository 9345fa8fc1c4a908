"""Counted multiply-adds against PyTorch's own counter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch's FLOP counter")

from mirrordepth_edge.config import ExportConfig  # noqa: E402
from mirrordepth_edge.core.network import DepthNetwork  # noqa: E402
from mirrordepth_edge.deploy.cost import graph_cost  # noqa: E402
from mirrordepth_edge.deploy.export import export_onnx  # noqa: E402
from mirrordepth_edge.deploy.fold import FoldedNetwork  # noqa: E402


@pytest.mark.parametrize("tower", ["tiny_network", "tiny_map_network"])
def test_multiply_adds_equal_pytorchs_count(tower: str, request: pytest.FixtureRequest) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network: DepthNetwork = request.getfixturevalue(tower)
    folded = FoldedNetwork(network)
    image = torch.zeros(1, *network.config.size_hw, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        folded(image)
    assert 2 * graph_cost(export_onnx(network, ExportConfig())).multiply_adds == counter.get_total_flops()
