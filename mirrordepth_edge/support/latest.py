"""A mailbox for one value, in which a new value replaces one that nobody took."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Hand the newest value from one thread to another.

    All methods and properties are thread-safe. Any number of threads may put and get; each value goes to one `get`.
    None cannot be put: it means "no value".

    Args:
        changed: condition that guards the mailbox and is notified when a value arrives or the mailbox closes. Pass one
            to wait for several mailboxes at once, or to make several calls atomic: hold it around them. Its lock must
            then be reentrant, which is the default of `threading.Condition`.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self._changed = threading.Condition() if changed is None else changed
        self._waiting: T | None = None
        self._dropped = 0
        self._closed = False

    def put(self, value: T) -> T | None:
        """Leave a value, and wake whoever waits for one.

        Returns:
            The value that no `get` will return, so that its buffers can be reused: the replaced one, or `value` itself
            if the mailbox is closed. None if there is no such value.
        """
        with self._changed:
            if self._closed:
                return value
            replaced, self._waiting = self._waiting, value
            self._dropped += replaced is not None
            # Not notify(): a shared condition may have waiters that look for something else.
            self._changed.notify_all()
        return replaced

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the newest value; wait for one if there is none.

        A value that was put before `close` can still be taken after it.

        Args:
            timeout_s: how long to wait; 0 does not wait, None waits until a value arrives or the mailbox closes.

        Returns:
            The value. None if none arrived in time, or if the mailbox is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed, timeout_s)
            value, self._waiting = self._waiting, None
        return value

    def close(self) -> None:
        """Accept no more values, and wake whoever waits for one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def waiting(self) -> T | None:
        """The value that the next `get` returns, or None."""
        with self._changed:
            return self._waiting

    @property
    def dropped(self) -> int:
        """How many values were replaced before they were taken."""
        with self._changed:
            return self._dropped

    @property
    def closed(self) -> bool:
        """Whether `close` was called. Values may still wait to be taken."""
        with self._changed:
            return self._closed
