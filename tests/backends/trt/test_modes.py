"""However an engine is run, its depth is that of its ONNX file: with and without a graph, copies, or company.

The same tests run on the fake runtime everywhere, and on real ones where a GPU is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.backends.registry import backend, open_session
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt import session as engine
from mirrordepth_edge.backends.trt.plan import trt_logger
from mirrordepth_edge.backends.trt.runtime_cache import RuntimeCache
from mirrordepth_edge.backends.trt.session import EngineSession
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.machine.unavailable import Unavailable

from .fake_engine import CONTENT, FakeCuda, Machine, Script, depth_of, gpu

FLAVOURS = ("tensorrt", "tensorrt-rtx")
MODES = {
    "as it comes": SessionOptions(),
    "no graph": SessionOptions(cuda_graph=False),
    "mapped": SessionOptions(zero_copy=True),
    "mapped, no graph": SessionOptions(zero_copy=True, cuda_graph=False),
    "copied": SessionOptions(zero_copy=False),
    "two in flight": SessionOptions(in_flight=2),
    "three in flight, mapped": SessionOptions(in_flight=3, zero_copy=True),
}
EMPTY_MS = 0.1
"""Far above what lies between two events with nothing between them."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine to be opened, and what its network answers."""

    real: bool
    flavour: str
    open: Callable[[SessionOptions], EngineSession]
    reference_m: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    """Depth of the network that it was built from, by other means."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Plans of this machine's GPU by flavour, each built at its first use."""
    from mirrordepth_edge.engines.build import BuildPlan, build_engine
    from mirrordepth_edge.machine.device import nvidia_gpus

    made: dict[str, Path] = {}

    def plan_of(flavour: str) -> Path:
        if flavour not in made:
            made[flavour] = tmp_path_factory.mktemp("plans") / f"{flavour}.plan"
            capability = (nvidia_gpus()[0].compute_capability,)
            wanted = BuildPlan(flavour=flavour, compute_capabilities=capability, runs_here=True)  # type: ignore[arg-type]
            build_engine(Artefact.open(NANO_ONNX["fp16"]), made[flavour], wanted)
        return made[flavour]

    return plan_of


@pytest.fixture(
    params=[*(f"fake {flavour}" for flavour in FLAVOURS), *(pytest.param(x, marks=pytest.mark.gpu) for x in FLAVOURS)]
)
def built(
    request: pytest.FixtureRequest, plans: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    def keep_kernels_in(folder: str) -> None:
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / folder / name))

    keep_kernels_in("of the build")
    flavour = request.param.removeprefix("fake ")
    if flavour != request.param:
        fake = FakeCuda()
        monkeypatch.setattr(cuda, "runtime", lambda: fake)
        monkeypatch.setattr(engine, "nvidia_gpus", lambda: (gpu(),))
        plan = tmp_path / "tiny.plan"
        plan.write_bytes(CONTENT)
        machine = Machine(fake, Script(fake), plan, RuntimeCache(tmp_path / "tiny.kernels"))
        opens = machine.open if flavour == "tensorrt" else machine.open_rtx
        yield Engine(real=False, flavour=flavour, open=opens, reference_m=depth_of)
        assert not fake.leaked
        trt_logger.cache_clear()
        return
    probe = backend(flavour).probe()
    if isinstance(probe, Unavailable):
        pytest.skip(f"{flavour}: {probe.reason}")
    plan = plans(flavour)
    keep_kernels_in("of the test")  # which finds none there
    with open_session(NANO_ONNX["fp16"], SessionOptions(device="cpu", threads=2))[0] as onnx:
        yield Engine(
            real=True,
            flavour=flavour,
            open=lambda options: open_session(plan, options)[0],  # type: ignore[arg-type, return-value]
            reference_m=lambda image: onnx.infer({"image": image})["depth"],
        )


def picture(session: EngineSession, seed: int) -> npt.NDArray[Any]:
    """A network input: uint8, `[1, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, session.inputs[0].shape, np.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_depth_is_that_of_the_onnx_file(mode: str, built: Engine) -> None:
    with built.open(MODES[mode]) as session:
        for seed in range(3):
            image = picture(session, seed)
            depth_m, reference_m = session.infer({"image": image})["depth"], built.reference_m(image)
            assert np.mean(np.abs(depth_m - reference_m) / reference_m) < 2e-3


@pytest.mark.parametrize("mode", MODES)
def test_ten_runs_are_one_run(mode: str, built: Engine) -> None:
    with built.open(MODES[mode]) as session:
        first = session.infer({"image": picture(session, 0)})["depth"].copy()
        for number in range(9):
            session.infer({"image": picture(session, number + 1)})
            np.testing.assert_array_equal(session.infer({"image": picture(session, 0)})["depth"], first)


@pytest.mark.parametrize("mode", MODES)
def test_modes_differ_in_time_only(mode: str, built: Engine) -> None:
    with built.open(SessionOptions(cuda_graph=False, zero_copy=False)) as plain, built.open(MODES[mode]) as session:
        image = picture(session, 5)
        expected = plain.infer({"image": image})["depth"]
        np.testing.assert_array_equal(session.infer({"image": image})["depth"], expected)


@pytest.mark.parametrize("in_flight", [2, 3])
def test_frames_in_flight_are_those_of_one_at_a_time(in_flight: int, built: Engine) -> None:
    with built.open(SessionOptions()) as plain, built.open(SessionOptions(in_flight=in_flight)) as session:
        expected = [plain.infer({"image": picture(plain, seed)})["depth"].copy() for seed in range(8)]
        depths = []
        for seed in range(8):
            if seed >= in_flight:
                depths.append(session.collect()["depth"].copy())
            session.submit({"image": picture(session, seed)})
        depths += [session.collect()["depth"].copy() for _ in range(in_flight)]
    np.testing.assert_array_equal(depths, expected)


@pytest.mark.parametrize("mode", MODES)
def test_device_times_separate_copies_from_compute(mode: str, built: Engine) -> None:
    with built.open(MODES[mode]) as session:
        for seed in range(2):
            session.infer({"image": picture(session, seed)})
            to_device_ms, compute_ms, to_host_ms = session.device_ms()
            assert compute_ms > 0
            if session.zero_copy:
                assert max(to_device_ms, to_host_ms) < EMPTY_MS
            else:
                assert min(to_device_ms, to_host_ms) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_is_used_where_it_is_asked_for(mode: str, built: Engine) -> None:
    with built.open(MODES[mode]) as session:
        assert session.notes == ()
        assert session.cuda_graph is MODES[mode].cuda_graph
        assert session.warm_up_ms > 0


def test_a_second_start_compiles_nothing(built: Engine) -> None:
    with built.open(SessionOptions()) as first, built.open(SessionOptions()) as second:
        assert not first.jit_cached
        assert second.jit_cached is (built.flavour == "tensorrt-rtx")
        if built.real and second.jit_cached:
            assert second.warm_up_ms < first.warm_up_ms
