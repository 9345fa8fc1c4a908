"""Results to windows, recordings and servers, of which none can slow the loop or another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mirrordepth_edge.live.stats import OutputStats, Recent
from mirrordepth_edge.sources.latest import POLL_S

if TYPE_CHECKING:
    from mirrordepth_edge.live.result import LiveResult

STOP_S = 5.0
"""How long an output may take for its last result; then it is left behind, and that is told."""


class Output(Protocol):
    """What shows, records or sends results.

    `show` is called on a thread of the output's own. Where the attribute `main_thread` is True, it is called in the
    thread that called `run_live`, as the windows of OpenCV, Qt and macOS demand; prediction is then on a thread of
    its own. Further attributes are looked for: `name`, for statistics (the class's name otherwise), and `problem`,
    in which an output that can no longer do its work says why while the loop goes on.
    """

    def show(self, result: LiveResult) -> None:
        """Take a result. Its arrays are valid during the call only.

        Raises:
            Exception: a mistake in the program, which ends the run. What a user can mend is told by `problem`.
        """


class FanOut:
    """Copies each result once and hands it to all outputs, the newest one to each as soon as it is free.

    Copies circulate: there are never more than two for each output, and one that is being written.

    Args:
        outputs: where results go.
        lossless: wait for the slowest output instead of dropping, for frames that wait too: files.
    """

    def __init__(self, outputs: Sequence[Output], *, lossless: bool) -> None:
        self._lossless = lossless
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._spare: list[_Copy] = []
        self._serve = threading.Condition(self._lock)
        self._slots = [_OutputSlot(output, self._lock, self._serve) for output in outputs]
        self._served = [slot for slot in self._slots if slot.main_thread]
        self._threads: list[tuple[_OutputSlot, threading.Thread]] = []
        self.ended = False
        """Nothing more is taken; what was taken is still shown."""

    @property
    def main_thread(self) -> bool:
        """Whether somebody must call `serve`."""
        return bool(self._served)

    def __enter__(self) -> FanOut:
        for slot in self._slots:
            if not slot.main_thread:
                # A daemon, so that an output that hangs cannot keep the program.
                thread = threading.Thread(target=self._run, args=(slot,), name=f"mde-output-{slot.name}", daemon=True)
                self._threads.append((slot, thread))
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        until_s = time.perf_counter() + STOP_S
        for slot, thread in self._threads:
            thread.join(max(0.0, until_s - time.perf_counter()))
            slot.left_behind = thread.is_alive()

    def put(self, result: LiveResult, captured_s: float) -> None:
        """Copy a result for all outputs.

        Args:
            captured_s: `perf_counter` when its frame arrived.
        """
        with self._lock:
            while self._lossless and not self.ended and any(slot.holds_back for slot in self._slots):
                self._room.wait(POLL_S)
            if self.ended or not self._slots:
                return
            copy = self._spare.pop() if self._spare else _Copy()
        copy.fill(result, captured_s)
        with self._lock:
            copy.users = 1  # this method: it must not become spare before all have it
            for slot in self._slots:
                if slot.failure is None:
                    if slot.waiting is not None:
                        slot.dropped += 1
                        self._give_back(slot.waiting)
                    slot.waiting = copy
                    copy.users += 1
                    slot.changed.notify()
            self._give_back(copy)

    def serve(self, timeout_s: float) -> None:
        """Show the newest result on outputs that need this thread; wait for one up to `timeout_s`."""
        with self._lock:
            self._serve.wait_for(lambda: self.ended or any(slot.waiting for slot in self._served), timeout_s)
        for slot in self._served:
            self._show_next(slot, 0)
        self.check()

    def check(self) -> None:
        """Raise what an output raised on its thread."""
        for slot in self._slots:
            if slot.failure is not None:
                raise slot.failure

    def end(self) -> None:
        """Take no more; from any thread."""
        with self._lock:
            self.ended = True
            self._room.notify_all()
            for slot in self._slots:
                slot.changed.notify()

    def stats(self) -> tuple[OutputStats, ...]:
        """In the order in which the outputs were given."""
        return tuple(slot.stats() for slot in self._slots)

    def _run(self, slot: _OutputSlot) -> None:
        while self._show_next(slot, None):
            pass

    def _show_next(self, slot: _OutputSlot, timeout_s: float | None) -> bool:
        """Wait for a result and show it; False where none came."""
        with self._lock:
            slot.changed.wait_for(lambda: slot.waiting is not None or self.ended, timeout_s)
            copy, slot.waiting = slot.waiting, None
            self._room.notify()
        if copy is None:
            return False
        try:
            slot.output.show(copy.result)
        except BaseException as error:  # re-raised by `check`, in the caller's thread
            with self._lock:
                slot.failure = error
                self._room.notify()
            return False
        finally:
            with self._lock:
                self._give_back(copy)
        slot.ages_ms.add((time.perf_counter() - copy.captured_s) * 1e3)
        return True

    def _give_back(self, copy: _Copy) -> None:
        copy.users -= 1
        if copy.users == 0:
            self._spare.append(copy)


class _Copy:
    """A result in arrays of its own."""

    result: LiveResult
    captured_s: float
    users = 0

    def fill(self, result: LiveResult, captured_s: float) -> None:
        mine = getattr(self, "result", None)
        if mine is None or mine.frame.shape != result.frame.shape or mine.depth_m.shape != result.depth_m.shape:
            self.result = replace(result, frame=result.frame.copy(), depth_m=result.depth_m.copy())
        else:
            np.copyto(mine.frame, result.frame)
            np.copyto(mine.depth_m, result.depth_m)
            self.result = replace(result, frame=mine.frame, depth_m=mine.depth_m)
        self.captured_s = captured_s


class _OutputSlot:
    """One output and the result that waits for it."""

    def __init__(self, output: Output, lock: threading.Lock, serve: threading.Condition) -> None:
        self.output = output
        self.main_thread = bool(getattr(output, "main_thread", False))
        self.name = str(getattr(output, "name", type(output).__name__))
        self.changed = serve if self.main_thread else threading.Condition(lock)
        self.waiting: _Copy | None = None
        self.dropped = 0
        self.ages_ms = Recent()
        self.failure: BaseException | None = None
        self.left_behind = False

    @property
    def holds_back(self) -> bool:
        """Whether a result that is put now would replace one."""
        return self.waiting is not None and self.failure is None

    def stats(self) -> OutputStats:
        problem = getattr(self.output, "problem", None)
        if self.left_behind:
            problem = f"It was still busy {STOP_S:g} s after the end and was left behind."
        return OutputStats(
            name=self.name,
            shown=self.ages_ms.count,
            dropped=self.dropped,
            age_p50_ms=self.ages_ms.percentile(50),
            age_p99_ms=self.ages_ms.percentile(99),
            problem=problem,
        )
