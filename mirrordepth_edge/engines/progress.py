"""How far a builder is, from what its progress monitor is told."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """Where a build stands."""

    phase: str
    """In the builder's own words, such as "Timing graph nodes"."""
    fraction: float
    """0 to 1, never falling; steps of a phase are taken to be equally long, which they are not."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The open phases of a build, as `IProgressMonitor` tells them: each has steps, and may have phases within a step.

    The builder may call from several threads.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ProgressMonitor.html
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._furthest = 0.0
        self._lock = Lock()

    def start(self, name: str, parent: str | None, steps: int) -> BuildProgress:
        """A phase of `steps` steps begins."""
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))
            return self._now()

    def step(self, name: str, step: int) -> BuildProgress:
        """Step number `step`, from 0, of a phase is done."""
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
            return self._now()

    def finish(self, name: str) -> BuildProgress:
        """A phase ends, whether or not all its steps were told."""
        with self._lock:
            gone = self._open.pop(name, None)
            if gone is not None and not gone.parent:
                self._furthest = 1.0
            return self._now()

    def _now(self) -> BuildProgress:
        roots = [name for name, phase in self._open.items() if phase.parent not in self._open]
        self._furthest = max([self._furthest, *map(self._share, roots)])
        return BuildProgress(phase=next(reversed(self._open), ""), fraction=self._furthest)

    def _share(self, name: str) -> float:
        phase = self._open[name]
        within = max((self._share(child) for child, its in self._open.items() if its.parent == name), default=0.0)
        return min(1.0, (phase.done + within) / phase.steps)
