"""Prefixes of node names in exported graphs, by which later passes find parts of the network."""

from __future__ import annotations

HEAD_PREFIX = "decoder/head/"
"""Node names under which the metric head lies, which keeps FP32 in every precision."""


POSITIONS_PREFIX = "tower/positions/"
"""Those of a ViT's position embedding that is resized in the graph, which keeps it too: it counts cells."""
