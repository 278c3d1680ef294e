"""Checks of single fields of JSON files: ValueError names the file and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def one_of(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """A name in a table."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def counted(name: str, value: Any, least: int = 1, most: int = (1 << 63) - 1) -> int:
    """A count that fits 64 bits, as libraries and arrays need it."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be an int of at most {most}, got {value!r}")
    return value


def small(name: str, value: Any) -> float:
    """A number such as the eps of a norm."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number of at least 0 and below 1, got {value!r}")
    return value


def positive(name: str, value: Any) -> float:
    """A finite number above 0, within what float32 can hold."""
    if type(value) not in (int, float) or not 0 < value < 1e38:
        raise ValueError(f"{name} must be a number above 0 and below 1e38, got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """A bool; null stands for False."""
    if value not in (True, False, None) or type(value) is int:
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return bool(value)


def mapping(name: str, value: Any) -> dict[str, Any]:
    """An object; null stands for an empty one."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {value!r:.80}")
    return value or {}
