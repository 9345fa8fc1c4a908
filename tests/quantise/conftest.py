"""What tests of calibration sets share."""

from __future__ import annotations

import pytest

from mirrordepth_edge.quantise.select_frames import TowerFeatures


@pytest.fixture(scope="module")
def features() -> TowerFeatures:
    return TowerFeatures()
