"""Addresses as messages, file names and stored settings may show them."""

from __future__ import annotations

import re


def hide_credentials(url: str) -> str:
    """Return an address without user and password."""
    return re.sub(r"//[^/@]*@", "//", url)
