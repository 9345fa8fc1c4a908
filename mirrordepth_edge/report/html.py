"""Rendering of reports as self-contained HTML pages.

The Jinja2 templates are in `templates/`; all values are escaped. A page has no scripts, and its content security policy
forbids loading resources, so that it works offline.
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
IMAGE_WIDTH_PX = 480
JPEG_QUALITY = 82
SUFFIXES = (".html", ".htm")


def render_page(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: a file in `templates/` that extends `page.html.j2`.
        values: its variables; a missing one is an error.
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
    """Refuse a file name that a browser would not open as HTML.

    Raises:
        OptionError: it does not end in `.html`.
    """
    require_suffix(path, SUFFIXES, "a report", option, "a browser")


def save_page(path: Path, page: str) -> None:
    """Write a page atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def image_uri(image: Frame, width_px: int = IMAGE_WIDTH_PX) -> str:
    """Encode an image as a JPEG `data:` URI.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        width_px: maximum width; wider images are downscaled.
    """
    height, width = image.shape[:2]
    if width > width_px:
        size = width_px, max(1, round(height * width_px / width))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, JPEG_QUALITY)).decode("ascii")


def describe_machine(machine: Machine) -> list[tuple[str, str]]:
    """List the properties of a machine as pairs of a name and a value."""
    rows = [("system", f"{machine.system}, {machine.architecture}"), ("CPU", f"{machine.cpu}, {machine.cores} cores")]
    rows += [("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}") for gpu in machine.gpus]
    if machine.jetson is not None:
        rows.append(("board", f"{machine.jetson}, Jetson Linux {machine.l4t or 'unknown'}"))
    return [*rows, ("Python", machine.python)]
