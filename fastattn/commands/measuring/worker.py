"""An engine's process: ``python -m fastattn.commands.measuring.worker MODULE THREADS``.

The module is that of a :class:`~fastattn.commands.measuring.peers.Peer`. Requests are pickles on standard input,
``(action, arguments)``, and answers are pickles of dicts on standard output: ``prepare`` a case or several beside each
other, then ``time`` them. A case comes whole, so that whoever asks may have cases of its own. Between requests the
process sleeps.
"""

import importlib
import math
import os
import pickle
import statistics
import sys
import time
from time import perf_counter

from fastattn.commands.measuring import engines

#: How long a way of computing a case runs when the fastest is chosen, how often, and how long all may take together
#: before there is no further trial: what takes so long is not disturbed for all of the time.
TRIAL_SECONDS, TRIALS, PATIENCE = 0.05, 3, 5.0


#: Calls before those that are watched, and seconds of another library's calls before they take turns with ours.
WARM_UP, FOREIGN_ALONE = 5, 0.5


def _torch_product():
    import torch

    a = torch.ones(384, 384)
    return lambda: a @ a


#: Other libraries' calls on threads of their own: name → what makes one.
FOREIGN = {"PyTorch": _torch_product}


def _duration(call):
    begin = perf_counter()
    call()
    return perf_counter() - begin


def _seconds_of(call, seconds):
    """The durations of calls over so many seconds."""
    begin, times = perf_counter(), []
    while perf_counter() - begin < seconds:
        times.append(_duration(call))
    return times


class Desk:
    """Answers the requests for one engine."""

    def __init__(self, peer):
        self.peer = peer
        self.calls = {}

    def prepare(self, case, beside=False):
        """Choose the fastest way that computes the case; forget the other cases, unless it stands beside them."""
        if not beside:
            self.calls.clear()
        judge = case.verifier()
        ways = self.peer.VARIANTS[case.operation]
        tried = {name: self._try(build, case, judge) for name, build in ways.items()}
        working = {name: found for name, found in tried.items() if not isinstance(found, str)}
        if not working:
            return {"failure": "; ".join(f"{name}: {reason}" for name, reason in tried.items())}
        name = self._fastest(working)
        self.calls[case.name], verdict = working[name]
        return {"variant": name, "error": verdict.error, "allowed": verdict.allowed}

    def time(self, seconds, cases=None):
        """Run the prepared case, or some of several one after the other, for a moment in all."""
        calls = [self.calls[name] for name in cases or self.calls]
        return {"seconds": sum(engines.burst(call, seconds / len(calls)) for call in calls)}

    def watch(self, seconds, start=0.0, gap=0.0, turns=""):
        """Call the prepared case again and again, and tell of each call: as a service would see it.

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

    @staticmethod
    def _try(build, case, judge):
        """The call and the verdict on its result, or in a word why not."""
        try:
            call, fetch = build(case, case.inputs())
            verdict = judge(fetch(call()))
        except Exception as error:  # an engine may raise anything; the next way may work
            return f"{type(error).__name__}: {error}".partition("\n")[0]
        return (call, verdict) if verdict.plausible else f"wrong result, error {verdict.error:.1e}"

    @staticmethod
    def _fastest(working):
        """By name; each has several trials, in turns, since one may be disturbed."""
        if len(working) == 1:
            return next(iter(working))
        best = dict.fromkeys(working, math.inf)
        end = perf_counter() + PATIENCE
        for _ in range(TRIALS):
            for name, (call, _) in working.items():
                best[name] = min(best[name], engines.burst(call, TRIAL_SECONDS))
            if perf_counter() > end:
                break
        return min(best, key=best.get)


def serve(requests, answer, desk):
    """Answer requests until there are no more."""
    while requests.peek(1):
        action, arguments = pickle.load(requests)
        pickle.dump(getattr(desk, action)(**arguments), answer)
        answer.flush()


def main(module, threads, desk=Desk):
    """Keep standard output for the answers: whatever an engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    peer = importlib.import_module(module)
    peer.start(int(threads))
    serve(sys.stdin.buffer, answers, desk(peer))


if __name__ == "__main__":
    main(*sys.argv[1:])
