"""Progress output of `mde train`; imports PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mirrordepth_edge.commands.terminal import console, errors, progress_bar
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.training.fit import Callbacks
from mirrordepth_edge.training.runs import EpochResult
from mirrordepth_edge.training.trainer import Progress
from mirrordepth_edge.training.views import UnreadableSample


@contextmanager
def show_progress(epochs: int, protocol: Protocol) -> Iterator[Callbacks]:
    """Show two progress bars, one line per epoch, and one line per skipped sample."""
    with progress_bar() as bar:
        cache, training = bar.add_task("tower features", visible=False), bar.add_task("training", visible=False)

        def on_cached(done: int, views: int) -> None:
            bar.update(cache, total=views, completed=done, visible=done < views)

        def on_step(progress: Progress) -> None:
            text = f"epoch {progress.epoch + 1}/{epochs}  loss {progress.loss:.3f}"
            bar.update(training, total=progress.steps, completed=progress.step, description=text, visible=True)

        def on_epoch(result: EpochResult) -> None:
            line = f"epoch {result.epoch}/{epochs}: loss {result.loss:.3f}, {result.seconds:.1f} s"
            if (m := result.metrics) is not None:
                line += f"; validation: AbsRel {m.abs_rel:.3f}, RMSE {m.rmse:.3f} m, delta1 {m.delta1:.3f} ({protocol})"
            console.print(line + (f"; {result.skipped} samples skipped" if result.skipped else ""))

        def on_problem(problem: UnreadableSample) -> None:
            errors.print(f"skipped: {problem.what} {problem.why}", style="yellow")

        yield Callbacks(step=on_step, epoch=on_epoch, problem=on_problem, cached=on_cached)
