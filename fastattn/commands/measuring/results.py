"""The results of cases, in relation to the machine's limits."""

import contextlib
import math
import statistics
from dataclasses import dataclass

from fastattn.commands.measuring import limits, machine, tables
from fastattn.commands.measuring.engines import Engine, race

#: Rounds of an engine whose range exceeds this share of their median are marked. On a quiet machine it is within a
#: tenth.
SCATTER = 0.25


@dataclass(frozen=True)
class Result:
    """A case, the outcomes of the engines by name, and the machine's limits.

    Attributes
    ----------
    case : cases.Case
    outcomes : dict of str to engines.Outcome
        The library's own outcome in another type is under the name of that type.
    arithmetic : float
        Floating-point operations per second.
    memory : float
        Bytes per second.
    taken : float
        Number of processors that others used meanwhile.
    """

    case: object
    outcomes: dict
    arithmetic: float
    memory: float
    taken: float = 0.0

    @property
    def ours(self):
        """The library's own outcome."""
        return self.outcomes["fastattn"]

    @property
    def rate(self):
        """Useful operations or bytes per second, by the case's unit; NaN if the library failed."""
        return self.case.work / self.ours.seconds

    @property
    def share(self):
        """The part of the machine's limit that was reached: of arithmetic or of memory, whichever takes longer."""
        return max(self.case.flops / self.arithmetic, self.case.traffic / self.memory) / self.ours.seconds

    @property
    def scatters(self):
        """Whether the rounds of any engine differ so much that its median means little."""
        return any(outcome.scatter > SCATTER for outcome in self.outcomes.values())

    @property
    def disturbed(self):
        """Whether others used the processors meanwhile."""
        return self.taken > machine.Others.ALLOWED

    def speedup(self, name):
        """Another engine's time over the library's; NaN if one of them failed."""
        return self.ours.faster_than(self.outcomes[name])

    def fastest(self, names):
        """The name of the fastest of these engines; None when none ran."""
        ran = [name for name in names if self.outcomes[name].times]
        return min(ran, key=lambda name: self.outcomes[name].seconds, default=None)

    def as_json(self):
        """The result as plain data."""
        return {
            "case": self.case.name,
            "operation": self.case.operation,
            "shape": self.case.shape,
            "dtype": self.case.dtype,
            "out": self.case.out,
            "rate": _or_none(self.rate),
            "unit": self.case.unit,
            "share_of_limit": _or_none(self.share),
            "scatters": self.scatters,
            "disturbed": self.disturbed,
            "engines": {name: self._engine_as_json(name) for name in self.outcomes},
        }

    def _engine_as_json(self, name):
        outcome = self.outcomes[name]
        return {
            "failure": outcome.failure or None,
            "variant": outcome.variant or None,
            "seconds": _or_none(outcome.seconds),
            "scatter": _or_none(outcome.scatter),
            "speedup": _or_none(self.speedup(name)),
            "error": _or_none(outcome.error),
            "allowed": _or_none(outcome.allowed),
        }


def collect(cases, names, pace, threads, twin_of=lambda case: None):
    """Measure cases with the engines of these names, with a progress line.

    `twin_of` returns another case that the first engine runs in the same rounds as a case, or None.
    """
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.Progress(len(cases)))
        engines = [stack.enter_context(Engine(name, threads)) for name in names]
        return [_measure(case, twin_of(case), engines, pace, threads, progress) for case in cases]


def geometric_mean(ratios):
    """The geometric mean of ratios that are not NaN; NaN if there are none."""
    numbers = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.geometric_mean(numbers) if numbers else math.nan


def _measure(case, twin, engines, pace, threads, progress):
    progress.step(case.name)
    others = machine.Others(engines)
    outcomes = race(case, engines, pace, twin)
    taken = others.taken()
    memory = limits.memory(case.streaming, case.traffic, threads)
    return Result(case, outcomes, limits.arithmetic(case.dtype, threads), memory, taken)


def _or_none(number):
    """None for NaN, which JSON does not have."""
    return None if math.isnan(number) else number
