"""Reading files into dataclasses, refusing what does not belong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from mirrordepth_edge.errors import InputError

T = TypeVar("T")


def upgraded(data: Any, renamed: Mapping[str, str], versions: range, version: int) -> Any:
    """Parsed JSON of an older schema version, with its keys as the current one names them.

    Args:
        data: as parsed. What is no object, or has another version, is returned as it is.
        renamed: new keys by old ones, at any depth.
        versions: older versions that differ in these names alone.
        version: the current one, which the result states.
    """
    if not isinstance(data, dict) or data.get("schema_version") not in versions:
        return data

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed.get(key, key): rename(item) for key, item in value.items()}
        return [rename(item) for item in value] if isinstance(value, list) else value

    return rename(data) | {"schema_version": version}


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
