"""What long exports work in, and how they tell where they are."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.quantise.pipeline import ProgressCallback


@contextmanager
def room_for_scratch() -> Iterator[None]:
    """A full disk is no bug: candidates, activations and depth are kept in temporary files."""
    from mirrordepth_edge.errors import InputError

    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = tempfile.gettempdir()
        why = f"{error.strerror}: candidates and what they are compared with are kept there meanwhile."
        raise InputError(f"There is no room left in {where}.", why, "TMPDIR=/another/folder mde export …") from error


@contextmanager
def stages() -> Iterator[ProgressCallback]:
    """A bar for each stage, gone when the next begins."""
    from mirrordepth_edge.commands.terminal import progress_bar
    from mirrordepth_edge.quantise.pipeline import ProgressCallback

    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        yield ProgressCallback(
            stage=lambda name, steps: bar.reset(task, description=name, total=steps or None),
            step=lambda: bar.advance(task),
        )
