"""Several frames in one session: overlap of host and GPU, order of results, check of every context."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from queue import SimpleQueue
from time import sleep
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import Reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.in_flight import bench_in_flight, infer_in_flight
from mirrordepth_edge.bench.measure import Candidate, check_depth
from mirrordepth_edge.config import PRESETS, BenchConfig
from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

HEIGHT, WIDTH = 4, 6
MODEL = replace(PRESETS["nano"], size_hw=(HEIGHT, WIDTH))
IMAGE = TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="", unit="")
DEPTH = TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="", unit="metres")
CONFIG = BenchConfig(warmup=4, frame_hw=(8, 12))
DELAY_S = 0.005


def random_image(seed: int) -> Any:
    """A network input: uint8 RGB `[1, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, IMAGE.shape, np.uint8)


def metres(images: Any) -> Any:
    """Depth, float64 `[N, H, W]`: a pixel's mean over its channels, plus 1."""
    return images.astype(np.float64).mean(3) + 1


class Threaded(CheckedSession):
    """A GPU that is a thread: it works on submitted frames in order, in the buffers of one context after another.

    Args:
        contexts: frames that it takes before one is collected.
        works: called on the thread with a frame's number, for as long as the frame takes.
        spoils: changes the depth of a context.
    """

    backend, device, precision, version = "threaded", "a thread", "fp32", "1.0"
    inputs, outputs = (IMAGE,), (DEPTH,)

    def __init__(
        self,
        contexts: int,
        works: Callable[[int], object] = lambda number: sleep(DELAY_S),
        spoils: Callable[[int, Any], Any] = lambda context, depth_m: depth_m,
    ) -> None:
        self.buffers = [np.zeros(DEPTH.shape, np.float32) for _ in range(contexts)]
        self.values: list[int] = []
        """The first value of each submitted image."""
        self.most = 0
        """Frames that were in flight together."""
        self._works, self._spoils = works, spoils
        self._waiting: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._pending: deque[int] = deque()
        self._next = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        number = 0
        while (given := self._waiting.get()) is not None:
            context, image = given
            try:
                self._works(number)
                self.buffers[context][:] = self._spoils(context, metres(image))
            except BaseException as error:
                self._done.put(error)
            else:
                self._done.put(None)
            number += 1

    def submit(self, feeds: Any) -> None:
        self.check(feeds)
        assert len(self._pending) < len(self.buffers)
        self.values.append(int(feeds["image"].flat[0]))
        self._pending.append(self._next)
        self.most = max(self.most, len(self._pending))
        self._waiting.put((self._next, feeds["image"].copy()))
        self._next = (self._next + 1) % len(self.buffers)

    def collect(self) -> Arrays:
        context = self._pending.popleft()
        if (error := self._done.get(timeout=600)) is not None:
            raise error
        return {"depth": self.buffers[context]}

    def infer(self, feeds: Any) -> Arrays:
        assert not self._pending
        self._next = 0
        self.submit(feeds)
        return self.collect()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(120)


class Diary:
    """What happened, in order, written by several threads."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._changed = threading.Condition()

    def write(self, event: str) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, events: set[str], seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: events <= set(self.events), seconds)


def run_with_overlap(in_flight: int, count: int, patience_s: float) -> list[str]:
    """Frames through a GPU that ends each only when the host has prepared the next one and finished the one before."""
    diary = Diary()

    def works(number: int) -> None:
        awaited = {f"prepared {number + 1}", f"finished {number - 1}"} - {f"prepared {count}", "finished -1"}
        if not diary.wait_for(awaited, patience_s):
            raise TimeoutError(f"the host waits for frame {number}")
        diary.write(f"the GPU ends {number}")

    def feeds() -> Iterator[Arrays]:
        for number in range(count):
            diary.write(f"prepared {number}")
            yield {"image": random_image(number)}

    with Threaded(in_flight, works) as session:
        for number, outputs in enumerate(infer_in_flight(session, feeds(), in_flight)):
            np.testing.assert_allclose(outputs["depth"], metres(random_image(number)), rtol=1e-6)
            diary.write(f"finished {number}")
    return diary.events


@pytest.mark.parametrize("in_flight", [2, 3])
def test_the_host_prepares_and_finishes_frames_while_the_gpu_works(in_flight: int) -> None:
    events = run_with_overlap(in_flight, 7, patience_s=120)
    for number in range(6):
        assert events.index(f"prepared {number + 1}") < events.index(f"the GPU ends {number}")
        assert events.index(f"finished {number}") < events.index(f"the GPU ends {number + 1}")


def test_one_frame_at_a_time_overlaps_with_nothing() -> None:
    with pytest.raises(TimeoutError, match="the host waits for frame 0"):
        run_with_overlap(1, 7, patience_s=0.1)


@pytest.fixture
def greys() -> list[Frame]:
    """Three camera frames of one grey each: 10, 20 and 30, whose depth is 11, 21 and 31 m."""
    return [np.full((16, 24, 3), grey, np.uint8) for grey in (10, 20, 30)]


@pytest.fixture
def reference() -> Reference:
    """Two pictures that no turn leaves alike, and their depth."""
    images = np.concatenate([random_image(seed) for seed in range(2)])
    return Reference(images, metres(images).astype(np.float32))


def candidate_of(session: Any, reference: Reference | None = None) -> Candidate:
    return Candidate(predictor=DepthPredictor(session, MODEL), name="tiny.plan", sha256="0" * 64, reference=reference)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_the_result_states_the_frames_in_flight(in_flight: int, greys: list[Frame], reference: Reference) -> None:
    with Threaded(in_flight) as session:
        result = bench_in_flight(candidate_of(session, reference), greys, CONFIG, in_flight, 0.2)
        assert session.most == in_flight
        frames = len(result.samples_ms)
        assert session.values[-frames:] == [*islice(cycle([10, 20, 30]), frames)]
        session.infer({"image": random_image(0)})  # no frame is in flight
    assert (result.in_flight, result.arrangement) == (in_flight, f"{in_flight} in one engine")
    assert result.warmup == 4 + in_flight - 1  # with the frames in flight at its end
    assert result.seconds >= 0.2
    assert result.rate_hz == pytest.approx(frames / result.seconds)
    assert (result.samples_ms >= 1e3 * DELAY_S).all()
    # The times of frames overlap only if several are in flight.
    assert bool(result.samples_ms.sum() > 1.1e3 * result.seconds) is (in_flight > 1)
    assert result.agreement is not None
    assert result.agreement.frames == 2 * in_flight
    assert result.agreement.max_relative < 1e-6
    assert result.to_json()["arrangement"] == result.arrangement


@pytest.mark.parametrize(
    ("wrong", "what"), [(np.nan, "not finite and positive"), (-1.0, "not finite and positive"), (1.1, "wrong depth")]
)
@pytest.mark.parametrize("bad_context", [0, 1, 2])
def test_one_bad_context_is_enough(
    bad_context: int, wrong: float, what: str, greys: list[Frame], reference: Reference
) -> None:
    def spoils(context: int, depth_m: Any) -> Any:
        return depth_m * wrong if context == bad_context else depth_m

    with Threaded(3, lambda number: None, spoils) as session:
        candidate = candidate_of(session, reference)
        if bad_context:
            check_depth(candidate, greys)  # one frame at a time runs in the first context only
        with pytest.raises(GateError, match=what):
            bench_in_flight(candidate, greys, CONFIG, 3, 0.1)


def test_contexts_that_share_a_buffer_are_detected(greys: list[Frame], reference: Reference) -> None:
    """Alone each is right; one frame at a time is all that `check_depth` looks at."""
    with Threaded(2, lambda number: None) as session:
        session.buffers[1] = session.buffers[0]
        candidate = candidate_of(session, reference)
        check_depth(candidate, greys)
        with pytest.raises(GateError, match="wrong depth"):
            bench_in_flight(candidate, greys, CONFIG, 2, 0.1)


def test_a_failure_is_raised_as_it_is(greys: list[Frame]) -> None:
    def works(number: int) -> None:
        if number == 40:  # past the checks and the warm-up
            raise RuntimeError("frame 40")

    with Threaded(2, works) as session, pytest.raises(RuntimeError, match="frame 40"):
        bench_in_flight(candidate_of(session), greys, CONFIG, 2, 60)


def test_a_session_for_one_frame_at_a_time_is_refused(greys: list[Frame]) -> None:
    class Plain(CheckedSession):
        backend, inputs, outputs = "plain", (IMAGE,), (DEPTH,)

    with pytest.raises(OptionError, match="plain cannot keep several"):
        bench_in_flight(candidate_of(Plain()), greys, CONFIG, 2, 0.1)
