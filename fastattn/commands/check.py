"""Compare every operation with the float64 reference, on every target of this machine and in every dtype.

Also attention of float32 queries to 16-bit keys and values, and float32 rows times 16-bit and 8-bit weights. bfloat16
is included if ml_dtypes is installed. The rule is that of the contract: the error is at most twice that of the
straightforward NumPy formula in the same precision, plus one unit in the last place. Sizes are awkward on purpose. The
exit code is 1 if a line misses the rule.
"""

import dataclasses
import json
from collections import defaultdict

import fastattn
from fastattn import _runtime
from fastattn.commands.measuring import accuracy, dtypes, tables
from fastattn.commands.measuring.cases import AWKWARD, OPERATIONS, QUANTISED, STORING
from fastattn.commands.measuring.peers import fastattn_itself

#: The type of all arguments, or those of the first one and of keys and values or a weight.
TYPES = (
    *((name, "") for name in dtypes.NEEDS),
    *(("float32", name) for name in (*dtypes.HALF, "int8")),
)


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments):
    """Print one line for each operation, target and dtype."""
    jobs = plan()
    with tables.Progress(len(jobs)) as progress:
        lines = [line for job in jobs for line in lines_of(*job, progress)]
    print(json.dumps([line.as_json() for line in lines], indent=2) if arguments.json else _text(lines))
    return 0 if all(line.kept for line in lines) else 1


def plan():
    """The checks that can run here: operation, type of the arguments, type of stored ones if another."""
    here = [types for types in TYPES if not any(map(dtypes.absent, types))]
    return [(name, *types) for types in here for name in OPERATIONS if name in offering(types[1])]


def offering(stored):
    """The operations with arguments that may be stored in that, narrower type; all for ""."""
    return {"": OPERATIONS, "int8": QUANTISED}.get(stored, STORING)


@dataclasses.dataclass(frozen=True)
class Line:
    """The worst case of one operation on one target in one dtype."""

    operation: str
    target: str
    dtype: str
    cases: int
    worst: str
    error: float
    allowed: float
    failure: str

    @property
    def kept(self):
        """Whether every case kept the rule."""
        return not self.failure and self.error <= self.allowed

    def as_json(self):
        """The line as plain data."""
        return {**dataclasses.asdict(self), "ok": self.kept}


@dataclasses.dataclass(frozen=True)
class _Failed:
    """Stands in for a verdict when there is no result."""

    failure: str
    error: float = float("nan")
    allowed: float = float("nan")
    share: float = float("inf")


def lines_of(operation, dtype, kv_dtype, progress):
    """The lines of one operation: the reference is computed once per case, for all targets."""
    changes = {"dtype": dtype, "kv_dtype": kv_dtype}
    cases = [dataclasses.replace(case, **changes) for case in AWKWARD if case.operation == operation]
    progress.step(f"{operation} {cases[0].types}")
    verdicts = defaultdict(list)
    for case in cases:
        expectation = accuracy.expected(case)
        for target in fastattn.targets():
            with _runtime.on_target(target):
                verdicts[target].append(_verdict(case, expectation))
    return [_line(operation, target, cases, found) for target, found in verdicts.items()]


def _verdict(case, expectation):
    try:
        call, fetch = fastattn_itself.build(case, case.inputs())
        return accuracy.check(fetch(call()), expectation)
    except Exception as error:  # any exception is a miss; the other cases still run
        return _Failed(f"{type(error).__name__}: {error}")


def _line(operation, target, cases, verdicts):
    case, worst = max(zip(cases, verdicts, strict=True), key=lambda pair: pair[1].share)
    failure = getattr(worst, "failure", "")
    return Line(operation, target, case.types, len(cases), case.described, worst.error, worst.allowed, failure)


def _text(lines):
    header = ("operation", "dtype", "target", "cases", "closest case", "error", "allowed", "")
    rows = [
        (
            line.operation,
            line.dtype,
            line.target,
            f"{line.cases}",
            line.worst,
            tables.scientific(line.error),
            tables.scientific(line.allowed),
            line.failure or ("ok" if line.kept else "MISS"),
        )
        for line in lines
    ]
    missed = sum(not line.kept for line in lines)
    verdict = f"{missed} of {len(lines)} lines miss the rule." if missed else "All results are as exact as required."
    return "\n".join([tables.text(header, rows, "lllrlrrl"), "", verdict, *dtypes.remarks(dtypes.NEEDS)])
