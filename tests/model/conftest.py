"""The paper's network, built once for all tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mirrordepth_edge.config import PRESETS

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork


@pytest.fixture(scope="session")
def vitb16() -> DepthNetwork:
    """ViT-B/16 at 352x352 with random weights: some seconds and 600 MB."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    from mirrordepth_edge.model.network import create_network

    return create_network(replace(PRESETS["vitb16"], pretrained="random-0")).eval()
