"""Silence libraries that log too much."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_log(level: int) -> Iterator[None]:
    """Drop log records up to `level`, such as `logging.WARNING`, within the block.

    Only for a call into a library whose result is checked afterwards, never for code of this package.
    """
    previous = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(previous)
