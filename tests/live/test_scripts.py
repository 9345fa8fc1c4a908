"""The scripts in `benchmarks/` that measure the live loop."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.sources.synthetic import SyntheticSource

SCRIPTS = Path(__file__).parents[2] / "benchmarks"

if not SCRIPTS.is_dir():
    pytest.skip("the scripts are in the repository only", allow_module_level=True)


def load(name: str) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
def soak() -> Iterator[ModuleType]:
    yield from load("soak")


@pytest.fixture
def live_loop() -> Iterator[ModuleType]:
    yield from load("live_loop")


def test_the_slope_of_a_line(soak: ModuleType) -> None:
    x = np.linspace(1, 30, 500)
    assert soak.slope(x, 7.0 * x + 3) == pytest.approx((7.0, 7.0, 7.0))


def test_the_interval_of_a_slope_holds_in_noise_that_remembers(soak: ModuleType) -> None:
    """Noise whose neighbours are alike (AR(1), 0.8): a plain interval would miss far more often than 5 %."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 10, 1200)
    held = 0
    for _ in range(200):
        noise = np.zeros(len(x))
        for index, step in enumerate(rng.normal(size=len(x))):
            noise[index] = 0.8 * noise[index - 1] + step
        steepness, low, high = soak.slope(x, 2.0 * x + noise)
        assert low < steepness < high
        held += low <= 2.0 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_an_unplugged_camera_raises(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(soak.time, "perf_counter", lambda: now_s)
    source = soak.UnpluggedCamera(SyntheticSource((4, 6), rate_hz=200.0), seconds=0.05)
    assert source.may_return
    assert source.read().shape == (4, 6, 3)
    now_s += 0.06
    with pytest.raises(InputError, match="unplugged"):
        source.read()


def test_a_round_measures_the_engine_and_the_loop(live_loop: ModuleType) -> None:
    one = live_loop.run_round(live_loop.simulated_engine(4.0), rate_hz=50.0, seconds=1.0)
    assert min(one.engine_ms) >= 4
    assert len(one.engine_ms) == len(one.bare_ages_ms) <= 50
    assert len(one.loop_ages_ms) >= 2
    for ages_ms in (one.bare_ages_ms, one.loop_ages_ms):
        assert min(ages_ms) >= 4
    assert 0 < one.bare_hz < 250
    assert 0 < one.loop_hz < 250
    assert one.loop_cpu_ms > 0


def test_a_row_tells_whether_the_goals_are_met(live_loop: ModuleType) -> None:
    one = live_loop.Round(
        rate_hz=50.0,
        engine_ms=[10.0] * 100,
        bare_hz=50.0,
        loop_hz=50.0,
        bare_ages_ms=[10.0] * 100,
        loop_ages_ms=[10.4] * 98 + [40.0] * 2,
        engine_cpu_ms=1.0,
        loop_cpu_ms=2.0,
    )
    cells = [cell.strip() for cell in live_loop.row("x", [one]).split("|")]
    assert cells[6:8] == ["+4.0% (+4.0% … +4.0%)", "yes"]
    # A period is 20 ms, and 1.5 times the engine 15.
    assert cells[9:11] == ["35.0", "NO"]
    assert len(cells) == live_loop.HEAD.splitlines()[0].count("|") + 1
    # An engine that takes longer than a period is measured by how much it gets done.
    busy = replace(one, engine_ms=[30.0] * 100, bare_hz=33.0, loop_hz=30.0, loop_ages_ms=[45.0] * 100)
    cells = [cell.strip() for cell in live_loop.row("x", [busy]).split("|")]
    assert cells[6:8] == ["+10.0% (+10.0% … +10.0%)", "NO"]
    assert cells[9:11] == ["65.0", "yes"]
