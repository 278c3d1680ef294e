"""The angles of a rotary embedding, with the scalings by which a model's range was extended: the rope types.

transformers' `modeling_rope_utils` defines the types; those whose angles depend on a sequence's length are not here.
Readers only read: nothing is allocated by the sizes they find.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.fields import flag, one_of, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


class Linear(NamedTuple):
    """All pairs turn slower by the same factor."""

    factor: float = 1.0

    def __call__(self, rotary: Rotary) -> NDArray[np.float32]:
        """Angle per position of each pair."""
        return 1 / rotary.periods() / np.float32(self.factor)


class Yarn(NamedTuple):
    """Pairs below `low` turn as before, those above `high` slower by a factor; between them in between.

    Peng et al., "YaRN: Efficient Context Window Extension" (2023).
    """

    factor: float
    low: float
    high: float

    def __call__(self, rotary: Rotary) -> NDArray[np.float32]:
        """Angle per position of each pair."""
        periods = rotary.periods()
        ramp = (np.arange(len(periods), dtype=np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        kept = 1 - ramp.clip(0, 1)
        return 1 / (np.float32(self.factor) * periods) * (1 - kept) + 1 / periods * kept


class Llama3(NamedTuple):
    """Pairs with waves longer than `longest` turn slower by a factor, those shorter than `shortest` as before.

    Between them in between, by how many waves the original range `positions` has.
    """

    factor: float
    low: float
    high: float
    positions: float

    def __call__(self, rotary: Rotary) -> NDArray[np.float32]:
        """Angle per position of each pair."""
        frequencies = 1 / rotary.periods()
        waves = np.float32(self.positions) / (np.float32(2 * math.pi) / frequencies)
        slow = frequencies / np.float32(self.factor)
        share = (waves - np.float32(self.low)) / np.float32(self.high - self.low)
        between = (1 - share) * slow + share * frequencies
        return np.where(waves < self.low, slow, np.where(waves > self.high, frequencies, between))


class Rotary(NamedTuple):
    """The angles of a rotary embedding: pair i of a head turns by position * theta^(-2i / size), or scaled."""

    size: int  # number of elements of a head that turn
    theta: float
    scaling: Linear | Yarn | Llama3 = Linear()
    magnitude: float = 1.0  # of cosine and sine

    def periods(self) -> NDArray[np.float32]:
        """Positions per unit of angle of each pair, unscaled, in float32 step by step, as models were trained."""
        exponents = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        return np.float32(self.theta) ** exponents

    def tables(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(cos, sin) of shape (positions, pairs)."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.scaling(self)
        return np.cos(angles) * np.float32(self.magnitude), np.sin(angles) * np.float32(self.magnitude)


def scaled(where: str, given: Mapping[str, Any], size: int, theta: float, positions: int) -> Rotary:
    """The rotary embedding of a model of so many positions, with what its field `where` holds; ValueError names it."""
    kind = one_of(f"{where}.rope_type", given.get("rope_type", given.get("type", "default")), _KINDS)
    return _KINDS[kind](_Fields(where, given, positions), size, theta)


class _Fields:
    """The numbers of a scaling."""

    def __init__(self, where: str, given: Mapping[str, Any], positions: int) -> None:
        self.where, self.given, self._extended = where, given, positions

    @property
    def positions(self) -> float:
        """The range that the model was trained for, before it was extended."""
        return self.number("original_max_position_embeddings", self._extended)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0; null stands for its default."""
        value = self.given.get(name)
        return positive(f"{self.where}.{name}", default if value is None else value)

    def numbers(self, *names: str) -> list[float] | None:
        """Several of them, if all are there and not 0."""
        return [self.number(name) for name in names] if all(self.given.get(name) for name in names) else None

    def factor(self) -> float:
        """How many times as long the range is now."""
        return self.number("factor", self._extended / self.positions)


def _unscaled(fields: _Fields, size: int, theta: float) -> Rotary:
    del fields
    return Rotary(size, theta)


def _linear(fields: _Fields, size: int, theta: float) -> Rotary:
    return Rotary(size, theta, Linear(fields.number("factor")))


def _ntk(fields: _Fields, size: int, theta: float) -> Rotary:
    """Fixed NTK scaling (GTE): a larger base, and the fastest pair slowed down by as much as keeps the slowest."""
    if fields.given.get("mixed_b") is not None:
        raise ValueError(f"{fields.where}.mixed_b must be null or absent, got {fields.given['mixed_b']!r}")
    factor = fields.number("factor")
    return Rotary(size, positive(f"{fields.where}.factor", theta * factor), Linear(factor ** (2 / size)))


def _llama3(fields: _Fields, size: int, theta: float) -> Rotary:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low >= high:
        raise ValueError(f"{fields.where}.high_freq_factor must be above low_freq_factor, {low}, got {high}")
    return Rotary(size, theta, Llama3(fields.number("factor"), low, high, fields.positions))


def _yarn(fields: _Fields, size: int, theta: float) -> Rotary:
    if theta <= 1:
        raise ValueError(f"{fields.where}.rope_theta must be above 1 with rope_type yarn, got {theta}")
    factor = fields.factor()

    def pair(name: str, default: float) -> float:
        """The pair that turns so often within the original range."""
        wave = fields.positions / (fields.number(name, default) * 2 * math.pi)
        wave = positive(f"{fields.where}: original_max_position_embeddings / (2 pi {name})", wave)
        return size * math.log(wave) / (2 * math.log(theta))

    low, high = pair("beta_fast", 32), pair("beta_slow", 1)
    if flag(f"{fields.where}.truncate", fields.given.get("truncate", True)):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    return Rotary(size, theta, Yarn(factor, low, high), _magnitude(fields, factor))


def _magnitude(fields: _Fields, factor: float) -> float:
    """The given one, or that of the paper: scores grow by the logarithm of the factor."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    scales = fields.numbers("mscale", "mscale_all_dim")
    return fields.number("attention_factor", grown(scales[0]) / grown(scales[1]) if scales else grown(1.0))


# rope_type -> its reader
_KINDS: dict[str, Callable[[_Fields, int, float], Rotary]] = {
    "default": _unscaled,
    "linear": _linear,
    "ntk": _ntk,
    "llama3": _llama3,
    "yarn": _yarn,
}
