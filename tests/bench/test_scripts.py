"""The scripts in `benchmarks/`, as far as they run without other people's models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"

if not SCRIPTS.is_dir():
    pytest.skip("the scripts are in the repository only", allow_module_level=True)


@pytest.fixture
def meter() -> ModuleType:
    pytest.importorskip("torch", reason="METER needs PyTorch")
    spec = importlib.util.spec_from_file_location("meter", SCRIPTS / "peers" / "meter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_letterbox_margins_are_cut_off(meter: ModuleType) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    boxed = np.pad(picture, ((3, 4), (5, 6), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(meter.without_margins(boxed), picture)
    np.testing.assert_array_equal(meter.without_margins(picture), picture)


def test_views_begin_with_the_whole_picture(meter: ModuleType) -> None:
    ramp = np.repeat(np.linspace(0, 255, 640)[None, :, None], 480, axis=0).repeat(3, axis=2).astype(np.uint8)
    whole, *windows = meter.views(ramp, 4, np.random.default_rng(0))
    assert (int(whole.min()), int(whole.max())) == (0, 255)
    for window in windows:
        seen = (int(window.max()) - int(window.min())) / 255
        assert window.shape == (240, 320, 3)
        assert meter.MIN_VIEW - 0.02 < seen < 1
