"""Parse lengths and fractions as users write them: `1.85m`, `25 mm`, `6ft`, `1%`."""

from __future__ import annotations

import re

from mirrordepth_edge.errors import OptionError

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254}
LENGTH = r"(\d+\.?\d*|\.\d+)\s*(mm|cm|m|ft|in)"
"""Pattern with two groups, number and unit, in lower case. No comma: it could separate decimals or thousands."""


def parse_length(text: str, option: str, example: str) -> float:
    """Parse a length.

    Args:
        option: whose value it is, for the message.
        example: a valid length, for the message.

    Returns:
        Metres.

    Raises:
        OptionError: it is not a length, has no unit, or is 0.
    """
    match = re.fullmatch(LENGTH, text.strip().lower())
    length_m = in_metres(*match.groups()) if match else 0.0
    if length_m <= 0:
        raise OptionError(
            f"{option} {text!r} is not a length.",
            f"A length is a positive number with a unit: {', '.join(METRES)}. Decimals follow a point, not a comma.",
            f"{option} {example}",
        )
    return length_m


def in_metres(number: str, unit: str) -> float:
    """Convert the groups of `LENGTH` to metres."""
    return float(number) * METRES[unit]


def parse_share(text: str, option: str) -> float:
    """Parse a fraction such as `1%` or `0.01`.

    Raises:
        OptionError: it is not from 0 to 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise OptionError(
            f"{option} {text!r} is not a fraction.", "It is a percentage, or a number from 0 to 1.", f"{option} 1%"
        )
    return share
