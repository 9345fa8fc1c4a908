"""Lengths and shares as people write them: `1.85m`, `25 mm`, `6ft`, `1%`."""

from __future__ import annotations

import re

from mirrordepth_edge.errors import OptionError

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254}
LENGTH = r"(\d+\.?\d*|\.\d+)\s*(mm|cm|m|ft|in)"
"""A pattern of two groups, number and unit, lower case. A comma is refused: it stands for decimals or for thousands."""


def parse_length(text: str, option: str, example: str) -> float:
    """A length in metres.

    Args:
        option: by which it was given, for the message.
        example: a length that would have been right.

    Raises:
        OptionError: it is no length, has no unit, or is 0.
    """
    found = re.fullmatch(LENGTH, text.strip().lower())
    length_m = in_metres(*found.groups()) if found else 0.0
    if length_m <= 0:
        raise OptionError(
            f"{option} {text!r} is no length.",
            f"A length is a number above 0 with a decimal point and a unit: {', '.join(METRES)}.",
            f"{option} {example}",
        )
    return length_m


def in_metres(number: str, unit: str) -> float:
    """What the groups of `LENGTH` say."""
    return float(number) * METRES[unit]


def parse_share(text: str, option: str) -> float:
    """`1%` or `0.01`.

    Raises:
        OptionError: it is no share from 0 to 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise OptionError(f"{option} {text!r} is no share.", "It is a percentage or a share of one.", f"{option} 1%")
    return share
