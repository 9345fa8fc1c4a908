"""Reading files into dataclasses, refusing what does not belong."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from mirrordepth_edge.errors import InputError

T = TypeVar("T")


def read_strict(cls: type[T], data: Any, source: str, cure: str) -> T:
    """Build `cls` from parsed JSON or TOML; every key must be known and every type right.

    Args:
        source: the file's name, for the message.
        cure: what to do about a file that does not fit.

    Raises:
        InputError: naming the first field that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # Through JSON, where a list may become a tuple but text never becomes a number.
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{source} is not valid.", f"{field}: {first['msg']}.", cure) from error
