"""Libraries that narrate to the log, kept quiet while they work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_log(level: int) -> Iterator[None]:
    """Drop log records up to `level`, such as `logging.WARNING`; logging is as it was afterwards.

    Around a vendor's call whose outcome we judge ourselves, never around our own code.
    """
    previous = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(previous)
