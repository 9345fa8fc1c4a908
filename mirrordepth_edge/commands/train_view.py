"""What a training shows: its progress, a line an epoch, and what it skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.evaluation.evaluate import Protocol
    from mirrordepth_edge.training.fit import Callbacks
    from mirrordepth_edge.training.runs import EpochResult
    from mirrordepth_edge.training.trainer import Progress
    from mirrordepth_edge.training.views import UnreadableSample


@contextmanager
def watched(epochs: int, protocol: Protocol) -> Iterator[Callbacks]:
    """Two bars, a line an epoch, and a line for each sample that was skipped."""
    from mirrordepth_edge.commands.terminal import console, errors, progress_bar
    from mirrordepth_edge.training.fit import Callbacks

    with progress_bar() as bar:
        cache, training = bar.add_task("tower features", visible=False), bar.add_task("training", visible=False)

        def cached(done: int, views: int) -> None:
            bar.update(cache, total=views, completed=done, visible=done < views)

        def step(now: Progress) -> None:
            text = f"epoch {now.epoch + 1}/{epochs}  loss {now.loss:.3f}"
            bar.update(training, total=now.steps, completed=now.step, description=text, visible=True)

        def epoch(result: EpochResult) -> None:
            line = f"epoch {result.epoch}/{epochs}: loss {result.loss:.3f}, {result.seconds:.1f} s"
            if (m := result.metrics) is not None:
                line += f"; held out: AbsRel {m.abs_rel:.3f}, RMSE {m.rmse:.3f} m, delta1 {m.delta1:.3f} ({protocol})"
            console.print(line + (f"; {result.skipped} samples skipped" if result.skipped else ""))

        def problem(problem: UnreadableSample) -> None:
            errors.print(f"skipped: {problem.what} {problem.why}", style="yellow")

        yield Callbacks(step=step, epoch=epoch, problem=problem, cached=cached)
