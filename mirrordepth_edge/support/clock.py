"""A clock that tests can replace."""

from __future__ import annotations

import time
from typing import Protocol

SPIN_NS = 500_000
"""Last part of every wait, in which the thread spins instead of sleeping."""


class Clock(Protocol):
    """A monotonic clock, in nanoseconds since an arbitrary moment."""

    def now_ns(self) -> int:
        """The current time; it never decreases."""

    def sleep_until_ns(self, due_ns: int) -> None:
        """Wait until `now_ns` is at least `due_ns`."""


class RealClock:
    """`perf_counter` and `sleep`."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        nap_ns = due_ns - SPIN_NS - time.perf_counter_ns()
        if nap_ns > 0:
            time.sleep(nap_ns / 1e9)
        # A sleeping thread wakes about 50 µs late (Linux's default timer slack, prctl(2)), and later from a core's idle
        # state or on a busy machine, which would count as age. Spinning for longer would heat the core that the next
        # step needs, and keep it from other threads.
        while time.perf_counter_ns() < due_ns:
            pass


REAL_CLOCK = RealClock()
