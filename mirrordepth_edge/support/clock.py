"""Time that can be replaced in tests."""

from __future__ import annotations

import time
from typing import Protocol

SPIN_NS = 500_000
"""The end of every wait that is spun, not slept."""


class Clock(Protocol):
    """Time as `stream` sees it, in nanoseconds since any one moment."""

    def now_ns(self) -> int:
        """Never less than the time before."""

    def sleep_until_ns(self, due_ns: int) -> None:
        """Return when `now_ns` is `due_ns` or later."""


class RealClock:
    """`perf_counter` and sleep.

    The system wakes a sleeper some 50 µs late (Linux's default timer slack, prctl(2)), and later still from a
    core's idle state or on a busy machine; that would count as age. Thus the last `SPIN_NS` are spun. More would
    warm, and keep from other threads, the core that the step needs.
    """

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        nap_ns = due_ns - SPIN_NS - time.perf_counter_ns()
        if nap_ns > 0:
            time.sleep(nap_ns / 1e9)
        while time.perf_counter_ns() < due_ns:
            pass


REAL_CLOCK = RealClock()
