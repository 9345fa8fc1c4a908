"""What all reports share: pages of one file each, which load nothing from anywhere.

Templates are Jinja2's, in `templates/`; every value is escaped. A page has no script, and its own
content policy forbids it to load anything, so that it reads the same in ten years and off line.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.imaging.jpeg import encode_jpeg
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.support.files import atomic_write, require_suffix

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_WIDTH_PX = 480
JPEG_QUALITY = 82
SUFFIXES = (".html", ".htm")


def render_page(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: a file in `templates/` that extends `page.html.j2`.
        values: what it names; one that is missing is an error. Text is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(version=__version__, **values)
    return re.sub(r"\n\s*\n+", "\n", page)


def check_name(path: Path, option: str) -> None:
    """Refuse a report's name that no browser would open.

    Raises:
        OptionError: it does not end in `.html`.
    """
    require_suffix(path, SUFFIXES, "a report", option, "a browser")


def save_page(path: Path, page: str) -> None:
    """Write a page, whole."""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def picture_uri(picture: Frame, width_px: int = PICTURE_WIDTH_PX) -> str:
    """A picture as a `data:` address, JPEG.

    Args:
        picture: uint8 RGB `[H, W, 3]`.
        width_px: it is made smaller where it is wider.
    """
    height, width = picture.shape[:2]
    if width > width_px:
        size = width_px, max(1, round(height * width_px / width))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture, JPEG_QUALITY)).decode("ascii")


def described(machine: Machine) -> list[tuple[str, str]]:
    """What a report says of the machine it was made on: pairs of a word and its value."""
    rows = [("system", f"{machine.system}, {machine.architecture}"), ("CPU", f"{machine.cpu}, {machine.cores} cores")]
    rows += [("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}") for gpu in machine.gpus]
    if machine.jetson is not None:
        rows.append(("board", f"{machine.jetson}, Jetson Linux {machine.l4t or 'unknown'}"))
    return [*rows, ("Python", machine.python)]
