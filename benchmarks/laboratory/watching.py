"""Engines whose calls are timed one by one, as a service sees them: alone, or in turns with another library.

``python -m laboratory.watching MODULE THREADS`` runs the process of such an engine.
"""

import statistics
import sys
import time
from time import perf_counter

from fastattn.commands.measuring import engines, worker

#: Number of calls before those that are timed, and seconds of another library's calls before they take turns with ours.
WARM_UP, FOREIGN_ALONE = 5, 0.5


class Engine(engines.Engine):
    """An engine whose calls can be timed one by one."""

    worker = __name__

    def watch(self, seconds, start=0.0, gap=0.0, turns=""):
        """Call the prepared case for some seconds, alone or in turns with another library; see `Desk.watch`."""
        return self._ask("watch", seconds=seconds, start=start, gap=gap, turns=turns)


def _torch_product():
    import torch

    a = torch.ones(384, 384)
    return lambda: a @ a


#: Other libraries' calls, on threads of their own: name → function that makes one.
FOREIGN = {"PyTorch": _torch_product}


def _duration(call):
    begin = perf_counter()
    call()
    return perf_counter() - begin


def _seconds_of(call, seconds):
    """The durations of calls over some seconds."""
    begin, times = perf_counter(), []
    while perf_counter() - begin < seconds:
        times.append(_duration(call))
    return times


class Desk(worker.Desk):
    """Answers the requests for one engine, including `watch`."""

    def watch(self, seconds, start=0.0, gap=0.0, turns=""):
        """Call the prepared case repeatedly, and time each call as a service sees it.

        Parameters
        ----------
        seconds : float
        start : float
            When to begin, in seconds of `time.time`, so that several processes begin together.
        gap : float
            Seconds of sleep between two calls.
        turns : str
            A key of `FOREIGN`: another library's call that takes turns with ours.
        """
        (call,) = self.calls.values()
        foreign = FOREIGN[turns]() if turns else None
        alone = _seconds_of(foreign, FOREIGN_ALONE) if turns else []
        for _ in range(WARM_UP):
            call()
        time.sleep(max(0.0, start - time.time()))
        ours, theirs = [], []
        begin, busy = perf_counter(), time.process_time()
        while perf_counter() - begin < seconds:
            ours.append(_duration(call))
            if foreign:
                theirs.append(_duration(foreign))
            if gap:
                time.sleep(gap)
        busy, end = time.process_time() - busy, perf_counter()
        return {
            "rate": len(ours) / (end - begin),
            "times": sorted(ours),
            "cpu": busy / len(ours),
            "foreign": statistics.median(theirs) / statistics.median(alone) if turns else None,
        }


if __name__ == "__main__":
    worker.main(*sys.argv[1:], desk=Desk)
