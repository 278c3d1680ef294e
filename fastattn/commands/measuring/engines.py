"""Timing calls, and engines that take turns in processes of their own.

Each engine has one process for the whole run (see :mod:`fastattn.commands.measuring.peers`). For a case, every engine
prepares its fastest variant, whose result is compared with the oracle. Then, in each round, every engine runs for a
moment while the others sleep. An engine's time is the median of its rounds; a ratio is the median of the ratios of the
rounds, so that a temporary slowdown of the machine affects both.
"""

import contextlib
import functools
import itertools
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from fastattn.commands.measuring.peers import PEERS

#: A time is taken over as many calls as last this long, so that the cost of the clock does not matter.
SHORTEST = 50e-6

#: A pause before each turn, in which the previous engine's threads stop spinning.
PAUSE = 0.03

#: Thread settings of the engines' libraries, which must be set before these are imported.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",  # tokenizers
)


def environment(threads, *modules):
    """The environment of an engine's process: the number of threads, and a path to this very library and `modules`."""
    packages = dict.fromkeys(module.partition(".")[0] for module in ("fastattn", *modules))
    homes = (str(Path(sys.modules[package].__file__).parents[1]) for package in packages)
    path = os.pathsep.join(filter(None, [*homes, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": path}


def burst(call, seconds):
    """Median time of one call, over about `seconds` of calls and one at least."""
    times, batch = [], 1
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in itertools.repeat(None, batch):
            call()
        now = time.perf_counter()
        times.append((now - start) / batch)
        if now >= end:
            # The first one woke the threads and fetched the data.
            return statistics.median(times[1:] or times)
        if now - start < SHORTEST:
            times, batch = [], 2 * batch


@dataclass
class Outcome:
    """The outcome of one engine on one case: its times by round, or the reason why there are none."""

    variant: str = ""
    error: float = float("nan")
    allowed: float = float("nan")
    failure: str = ""
    times: list = field(default_factory=list)

    @property
    def kept(self):
        """Whether it ran, and its error keeps the contract's rule."""
        return not self.failure and self.error <= self.allowed

    @property
    def seconds(self):
        """Median of the rounds; NaN without any."""
        return statistics.median(self.times) if self.times else float("nan")

    @property
    def scatter(self):
        """The range of the rounds, as a share of their median; NaN without any."""
        return (max(self.times) - min(self.times)) / self.seconds if self.times else float("nan")

    def faster_than(self, other):
        """The other one's time over this one's: the median over the rounds that both ran."""
        ratios = [theirs / ours for ours, theirs in zip(self.times, other.times, strict=False)]
        return statistics.median(ratios) if ratios else float("nan")


class EngineFailure(Exception):
    """An engine cannot do what is requested, or its process ended."""


class Engine:
    """One engine, in a process of its own that is started when it is needed.

    Parameters
    ----------
    name : str
        A key of `peers.PEERS`.
    threads : int
    """

    #: The module that is its process.
    worker = f"{__package__}.worker"

    def __init__(self, name, threads):
        self.name = name
        self.threads = threads
        self._process = None
        self._errors = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._stop()

    @property
    def pid(self):
        """The id of its process; None if there is none now."""
        return self._process and self._process.pid

    def prepare(self, case, keep=False, variant=""):
        """Prepare a case, replacing the previous ones unless `keep`, and compare the result with the oracle.

        The variant is the fastest one, or the given one.
        """
        try:
            return Outcome(**self._ask("prepare", case=case, keep=keep, variant=variant))
        except EngineFailure as failure:
            return Outcome(failure=str(failure))

    def time(self, seconds, cases=None):
        """Median time of one call of the prepared case, or sum of those of some cases, over about `seconds`."""
        names = cases and [case.name for case in cases]
        return self._ask("time", seconds=seconds, cases=names)["seconds"]

    def _ask(self, action, **arguments):
        """Send a request, and return the answer."""
        if self._process is None:
            self._process = self._start()
        try:
            pickle.dump((action, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise EngineFailure(f"its process ended with {self._stop()}") from None
        if "failure" in answer:
            raise EngineFailure(answer["failure"])
        return answer

    def _stop(self):
        """Close the process's input, which ends it; return its exit code and last line of errors."""
        process, self._process = self._process, None
        with contextlib.suppress(BrokenPipeError), process:
            pass
        with self._errors as errors:
            errors.seek(0)
            last_words = errors.read().splitlines()[-1:]
        return ": ".join([f"exit code {process.returncode}", *last_words])

    def _start(self):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, `_stop` closes it
        module = PEERS[self.name].module
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self.worker, module, str(self.threads)],
            env=environment(self.threads, self.worker, module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, seconds of a turn, and total seconds after which an engine gets no further turn."""

    rounds: int
    seconds: float
    patience: float = float("inf")


def contest(entries, pace):
    """Let engines take turns at cases; return the outcomes in the order of the entries.

    Parameters
    ----------
    entries : list of (engine, list of cases)
        The time of an entry is the sum of its cases' times. An engine may have several entries.
    """
    begun, outcomes = set(), []
    for engine, cases in entries:
        prepared = []
        for case in cases:  # an engine's first case replaces those prepared before
            prepared.append(engine.prepare(case, keep=engine in begun))
            begun.add(engine)
        outcomes.append(_closest(prepared))
    timers = [functools.partial(engine.time, cases=cases) for engine, cases in entries]
    _take_turns(list(zip(timers, outcomes, strict=True)), pace)
    return outcomes


def race(case, engines, pace, twin=None):
    """Let engines take turns at a case; return their outcomes by name.

    The first engine also runs the `twin` case, if there is one; the name of that outcome is the twin's dtype.
    """
    entries = {engine.name: (engine, [case]) for engine in engines}
    if twin is not None:
        entries[twin.dtype] = (engines[0], [twin])
    return dict(zip(entries, contest(list(entries.values()), pace), strict=True))


def _closest(outcomes):
    """The one that failed, or else the one with the largest ratio of error to allowed error."""
    return max(outcomes, key=lambda outcome: (bool(outcome.failure), outcome.error / outcome.allowed))


def _take_turns(contenders, pace):
    """Let contenders, (timer, outcome), run round by round, every other round in reverse order."""
    spent = [0.0] * len(contenders)
    for turn in range(pace.rounds):
        for n in range(len(contenders))[:: 1 if turn % 2 else -1]:
            timer, outcome = contenders[n]
            if not outcome.failure and spent[n] < pace.patience:
                spent[n] += _turn(timer, outcome, pace.seconds)


def _turn(timer, outcome, seconds):
    """Let one contender run for a moment, and return the total time."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    try:
        outcome.times.append(timer(seconds))
    except EngineFailure as failure:
        outcome.failure = str(failure)
    return time.perf_counter() - start
