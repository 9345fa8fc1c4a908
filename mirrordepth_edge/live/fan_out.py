"""Distribute results to windows, recordings and servers, so that none of them can slow the loop or each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mirrordepth_edge.live.stats import OutputStats, Recent
from mirrordepth_edge.sources.latest import POLL_S
from mirrordepth_edge.support.latest import Latest

if TYPE_CHECKING:
    from mirrordepth_edge.live.result import LiveResult

STOP_S = 5.0
"""How long all outputs together may take for their last result. An output that takes longer is abandoned."""


class Output(Protocol):
    """Something that shows, records or sends results.

    `show` is called in a thread of the output's own. If the attribute `main_thread` is True, it is called in the thread
    that called `run_live`, as the windows of OpenCV, Qt and macOS require; prediction then runs in another thread.

    Optional attributes: `name`, for statistics (the class's name by default), and `problem`, a sentence that says why
    the output stopped working while the loop goes on.
    """

    def show(self, result: LiveResult) -> None:
        """Take a result. Its arrays are valid during the call only.

        Raises:
            Exception: a bug, which ends the run. Report what the user can fix in `problem` instead.
        """


class FanOut:
    """Copy each result once and hand it to all outputs: to each the newest one as soon as it is free.

    Copies are reused. At most two per output exist, and one that is being written.

    Args:
        outputs: where results go.
        lossless: wait for the slowest output instead of dropping results, for sources that can wait: files.
    """

    def __init__(self, outputs: Sequence[Output], *, lossless: bool) -> None:
        self._lossless = lossless
        self._changed = threading.Condition()  # guards all mailboxes and the copies' reference counts
        self._spare: list[_Copy] = []
        self._mailboxes = [_Mailbox(output, self._changed) for output in outputs]
        self._served = [mailbox for mailbox in self._mailboxes if mailbox.main_thread]
        self._threads: list[tuple[_Mailbox, threading.Thread]] = []
        self.ended = False
        """No more results are accepted; those that were are still shown."""

    @property
    def main_thread(self) -> bool:
        """Whether the caller must call `serve`."""
        return bool(self._served)

    def __enter__(self) -> FanOut:
        for mailbox in self._mailboxes:
            if not mailbox.main_thread:
                # A daemon, so that an output that hangs cannot keep the process alive.
                name = f"mde-output-{mailbox.name}"
                thread = threading.Thread(target=self._run, args=(mailbox,), name=name, daemon=True)
                self._threads.append((mailbox, thread))
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        until_s = time.perf_counter() + STOP_S
        for mailbox, thread in self._threads:
            thread.join(max(0.0, until_s - time.perf_counter()))
            mailbox.abandoned = thread.is_alive()

    def put(self, result: LiveResult, captured_s: float) -> None:
        """Copy a result for all outputs.

        Args:
            captured_s: `perf_counter` when its frame arrived.
        """
        with self._changed:
            while self._lossless and not self.ended and any(mailbox.is_full for mailbox in self._mailboxes):
                self._changed.wait(POLL_S)
            if self.ended or not self._mailboxes:
                return
            copy = self._spare.pop() if self._spare else _Copy()
        copy.fill(result, captured_s)
        with self._changed:
            copy.users = 1  # this method: the copy must not be reused before all outputs have it
            for mailbox in self._mailboxes:
                if mailbox.failure is None:
                    copy.users += 1
                    self._release(mailbox.results.put(copy))
            self._release(copy)

    def serve(self, timeout_s: float) -> None:
        """Show the newest result on the outputs that need this thread; wait for one up to `timeout_s`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.ended or any(mailbox.results.waiting for mailbox in self._served), timeout_s
            )
        for mailbox in self._served:
            self._show_next(mailbox, 0)
        self.check()

    def check(self) -> None:
        """Raise what an output raised in its thread."""
        for mailbox in self._mailboxes:
            if mailbox.failure is not None:
                raise mailbox.failure

    def end(self) -> None:
        """Accept no more results. Can be called from any thread."""
        with self._changed:
            self.ended = True
            for mailbox in self._mailboxes:
                mailbox.results.close()

    def stats(self) -> tuple[OutputStats, ...]:
        """Return statistics, in the order of the outputs."""
        return tuple(mailbox.stats() for mailbox in self._mailboxes)

    def _run(self, mailbox: _Mailbox) -> None:
        while self._show_next(mailbox, None):
            pass

    def _show_next(self, mailbox: _Mailbox, timeout_s: float | None) -> bool:
        """Wait for a result and show it; return whether there was one."""
        with self._changed:
            copy = mailbox.results.get(timeout_s)
            self._changed.notify_all()  # `put` may wait for room
        if copy is None:
            return False
        try:
            mailbox.output.show(copy.result)
        except BaseException as error:  # re-raised by `check`, in the caller's thread
            with self._changed:
                mailbox.failure = error
                self._changed.notify_all()
            return False
        finally:
            with self._changed:
                self._release(copy)
        mailbox.ages_ms.add((time.perf_counter() - copy.captured_s) * 1e3)
        return True

    def _release(self, copy: _Copy | None) -> None:
        """Count one user less; the last one makes the copy available again."""
        if copy is not None:
            copy.users -= 1
            if copy.users == 0:
                self._spare.append(copy)


class _Copy:
    """A result in arrays of its own."""

    result: LiveResult
    captured_s: float
    users = 0

    def fill(self, result: LiveResult, captured_s: float) -> None:
        own = getattr(self, "result", None)
        if own is None or own.frame.shape != result.frame.shape or own.depth_m.shape != result.depth_m.shape:
            self.result = replace(result, frame=result.frame.copy(), depth_m=result.depth_m.copy())
        else:
            np.copyto(own.frame, result.frame)
            np.copyto(own.depth_m, result.depth_m)
            self.result = replace(result, frame=own.frame, depth_m=own.depth_m)
        self.captured_s = captured_s


class _Mailbox:
    """An output, the result that waits for it, and its statistics."""

    def __init__(self, output: Output, changed: threading.Condition) -> None:
        self.output = output
        self.results = Latest[_Copy](changed)
        self.main_thread = bool(getattr(output, "main_thread", False))
        self.name = str(getattr(output, "name", type(output).__name__))
        self.ages_ms = Recent()
        self.failure: BaseException | None = None
        self.abandoned = False

    @property
    def is_full(self) -> bool:
        """Whether the next result would replace one."""
        return self.results.waiting is not None and self.failure is None

    def stats(self) -> OutputStats:
        problem = getattr(self.output, "problem", None)
        if self.abandoned:
            problem = f"It was still busy {STOP_S:g} s after the end and was abandoned."
        return OutputStats(
            name=self.name,
            shown=self.ages_ms.count,
            dropped=self.results.dropped,
            age_p50_ms=self.ages_ms.percentile(50),
            age_p99_ms=self.ages_ms.percentile(99),
            problem=problem,
        )
