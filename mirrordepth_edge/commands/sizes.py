"""Sizes as they are typed: of the network's input, and ranges of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.config import SizeHW, SizeRange

Size = Annotated[str | None, typer.Option(metavar="HxW", help="Network input size in pixels, such as 224x288.")]
NetworkSize = Annotated[
    str | None, typer.Option(metavar="HxW", help="Network input size, of models exported for several.")
]


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """`224x288` as (height, width).

    Raises:
        OptionError: it is no size.
    """
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if match is None:
        raise OptionError(f"{option} {text!r} is no size.", "A size is HEIGHTxWIDTH in pixels.", f"{option} 224x288")
    return int(match[1]), int(match[2])


def parse_range(text: str, option: str = "--dynamic") -> SizeRange:
    """Smallest, usual and largest size of text such as `160x224,224x288,448x576`, each with frames before it or not.

    Raises:
        OptionError: there are not three, one is no size, or they do not grow.
    """
    from mirrordepth_edge.config import SizeRange

    sizes = [re.fullmatch(r"(?:([1-9]\d*)[xX×])?([1-9]\d*)[xX×]([1-9]\d*)", part.strip()) for part in text.split(",")]
    try:
        smallest, usual, largest = [(int(each[1] or 1), int(each[2]), int(each[3])) for each in sizes if each]
        if len(sizes) == 3:
            return SizeRange(min=smallest, opt=usual, max=largest)
    except ValueError:
        pass
    raise OptionError(
        f"{option} {text} names no range of sizes.",
        "It is the smallest, the usual and the largest HEIGHTxWIDTH, or FRAMESxHEIGHTxWIDTH; they may be the same.",
        f"{option} 160x224,224x288,448x576",
    )


def asked_sizes(size: str | None, dynamic: str | None) -> tuple[SizeHW | None, SizeRange | None]:
    """The size that `--size` or `--dynamic` names as the usual one, and all that one file shall take.

    Raises:
        OptionError: one is no size, both are given, or nothing is left open.
    """
    if dynamic is None:
        return parse_size(size) if size else None, None
    sizes = parse_range(dynamic)
    if size is not None:
        why = "The second of --dynamic is the usual size."
        raise OptionError("--size and --dynamic exclude each other.", why, "Leave --size out.")
    _, height, width = sizes.opt
    if not sizes.dynamic_axes:
        why = "Its three sizes are the same."
        raise OptionError(f"--dynamic {dynamic} leaves nothing open.", why, f"--size {height}x{width}")
    return (height, width), sizes
