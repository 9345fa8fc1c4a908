"""Prefixes of node names in exported graphs, by which later passes identify parts of the network."""

from __future__ import annotations

HEAD_PREFIX = "decoder/head/"
"""Nodes of the metric head, which stays FP32 in every precision."""


POSITIONS_PREFIX = "tower/positions/"
"""Nodes that resize a ViT's position embedding; they stay FP32 too, because they compute with cell indices."""
