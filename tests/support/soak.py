"""Calls of every operation from several threads, with forks between them, for as long as asked; memory must stay flat.

    PYTHONPATH=. python tests/support/soak.py --minutes 60

prints the process's memory after each twelfth of the time, and fails if it grew by more than 4 MB after the first.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

# Beside scratch memory, which each thread keeps, what glibc keeps of freed memory goes up and down by a megabyte.
ALLOWED = 4_000_000
THREADS = 4


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_a_child(call):
    """Run it in a fork, which must end well."""
    child = os.fork()
    if not child:
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a child ended with {status}")


def run(call, seconds):
    """(rounds, memory at the end) after so many seconds."""
    end, rounds, errors = time.monotonic() + seconds, [0] * THREADS, []

    def work(i):
        try:
            while time.monotonic() < end and not errors:
                call()
                rounds[i] += 1
        except BaseException as error:  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end and not errors:
        time.sleep(min(1, seconds / 10))
        in_a_child(call)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rounds), resident()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    from support.every_call import run_all

    first = None
    for part in range(1, 13):
        rounds, memory = run(run_all, 5 * minutes)
        first = memory if first is None else first
        print(f"{part * minutes / 12:.2f} minutes: {rounds} rounds of calls, {memory / 1e6:.1f} MB", flush=True)
    if memory - first > ALLOWED:
        raise SystemExit(f"memory grew by {(memory - first) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
