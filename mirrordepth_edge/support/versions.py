"""Order the version numbers of runtimes, drivers and packages."""

from __future__ import annotations

import re


def version_key(text: str) -> tuple[int, ...]:
    """Sort key of a version: its leading numbers, such as (10, 3, 0, 30) for "10.3.0.30-1+cuda12.5".

    Trailing zeros are dropped, so that 10.3 equals 10.3.0. Empty if the text does not start with a number.
    """
    # packaging.version is no alternative: it rejects texts such as "unknown", which callers must be able to compare.
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def padded_key(text: str, length: int) -> tuple[int, ...]:
    """The first `length` numbers of a version, zeros appended: (12, 6) for "12.6.2" and 2."""
    return (*version_key(text), *[0] * length)[:length]
