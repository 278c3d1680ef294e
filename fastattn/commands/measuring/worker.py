"""The process of an engine: ``python -m fastattn.commands.measuring.worker MODULE THREADS``.

The module is that of a :class:`~fastattn.commands.measuring.peers.Peer`. Requests are pickles on standard input,
``(action, arguments)``, and answers are pickles of dicts on standard output: ``prepare`` one or several cases, then
``time`` them. Cases are sent whole, so that callers may have cases of their own. Between requests the process sleeps.
"""

import importlib
import math
import os
import pickle
import sys
from time import perf_counter

from fastattn.commands.measuring import engines

#: To choose the fastest variant: seconds of a trial, number of trials of each variant, and total seconds after which
#: there are no further ones, as long trials are not disturbed for all of their time.
TRIAL_SECONDS, TRIALS, PATIENCE = 0.02, 3, 5.0


class Desk:
    """Answers the requests for one engine."""

    def __init__(self, peer):
        self.peer = peer
        self.calls = {}

    def prepare(self, case, keep=False, variant=""):
        """Choose the fastest variant for the case, or take the given one; forget the other cases unless `keep`."""
        if not keep:
            self.calls.clear()
        check = case.verifier()
        variants = self.peer.VARIANTS[case.operation]
        tried = {name: self._try(build, case, check) for name, build in variants.items() if variant in ("", name)}
        working = {name: found for name, found in tried.items() if not isinstance(found, str)}
        if not working:
            return {"failure": "; ".join(f"{name}: {reason}" for name, reason in tried.items())}
        name = self._fastest(working)
        self.calls[case.name], verdict = working[name]
        return {"variant": name, "error": verdict.error, "allowed": verdict.allowed}

    def time(self, seconds, cases=None):
        """Run the prepared case, or some of several one after the other, for `seconds` in all."""
        calls = [self.calls[name] for name in cases or self.calls]
        return {"seconds": sum(engines.burst(call, seconds / len(calls)) for call in calls)}

    @staticmethod
    def _try(build, case, check):
        """The call and the verdict on its result, or a message if it failed."""
        try:
            call, fetch = build(case, case.inputs())
            verdict = check(fetch(call()))
        except Exception as error:  # an engine may raise anything; the next variant may work
            return f"{type(error).__name__}: {error}".partition("\n")[0]
        return (call, verdict) if verdict.plausible else f"wrong result, error {verdict.error:.1e}"

    @staticmethod
    def _fastest(working):
        """The name of the fastest variant, by several trials in turns, since one may be disturbed."""
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
    """Reserve standard output for answers: whatever an engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    peer = importlib.import_module(module)
    peer.start(int(threads))
    serve(sys.stdin.buffer, answers, desk(peer))


if __name__ == "__main__":
    main(*sys.argv[1:])
