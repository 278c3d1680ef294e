"""Facts about a measurement: processor, threads, versions, date."""

import datetime
import math
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import fastattn
from fastattn._core import targets

_SELF_EVIDENT = ("processor", "features", "system", "date")

#: Settings of engines that affect a measurement, reported if they are set: the instructions that oneDNN may use.
_SETTINGS = ("ONEDNN_MAX_CPU_ISA",)

_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")

#: Features that decide speed: on x86, 512-bit vectors, dot products of 8 and 16 bits, and AMX; the same on ARM.
_FEATURES = ("avx2", "avx512f", "avx512_fp16", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_FEATURES += ("asimddp", "i8mm", "bf16", "sve")


def describe(distributions, threads):
    """The facts to report with a table of times, as a dict of strings and numbers."""
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": _features(),
        "cores": _cores(),
        "threads": threads,
        "target": targets.current(),
        **{name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fastattn": fastattn.__version__,
        **{name: metadata.version(name) for name in distributions},
        "load": _load(),
        "date": datetime.date.today().isoformat(),
    }


def line(facts):
    """The same facts in one line."""
    return " · ".join(str(value) if name in _SELF_EVIDENT else f"{name} {value}" for name, value in facts.items())


class Others:
    """Measures the processor time that other processes, and other machines on the same host, take.

    It starts when it is made. Our own processes count as ours once they have ended, those of `engines` always.
    """

    #: Number of processors used by others above which the machine counts as busy; background work takes less.
    ALLOWED = 0.1

    def __init__(self, engines=()):
        self._engines = engines
        self._begin = _spent(engines)

    def taken(self):
        """Number of processors that others have used on average until now; 0.0 if the system does not report it."""
        return sum(self._shares())

    def remark(self):
        """A sentence if the machine was busy, else ""; also "" if the system does not report it."""
        processes, host = self._shares()
        if processes + host <= self.ALLOWED:
            return ""
        return (
            f"The machine was busy: other processes took {processes:.1f} of {os.cpu_count()} processors, and its host "
            f"{host:.1f}, while this was measured."
        )

    def _shares(self):
        """Number of processors used by other processes, and by the host."""
        begin, (elapsed, machine, stolen, own) = self._begin, _spent(self._engines)
        if math.isnan(machine) or elapsed <= begin[0]:
            return 0.0, 0.0
        seconds = elapsed - begin[0]
        return max(0.0, machine - begin[1] - (own - begin[3])) / seconds, (stolen - begin[2]) / seconds


def _spent(engines):
    """Seconds: of the clock, of all processors' work, taken by the host, and of our and our children's work."""
    own = sum(os.times()[:4]) + sum(_worked(engine.pid) for engine in engines)
    try:
        user, nice, system, _, _, irq, softirq, stolen = map(int, _STAT.read_text().split(maxsplit=9)[1:9])
    except (OSError, ValueError):
        return time.monotonic(), math.nan, math.nan, own
    tick = os.sysconf("SC_CLK_TCK")
    return time.monotonic(), (user + nice + system + irq + softirq) / tick, stolen / tick, own


def _worked(pid):
    """Processor time of a running process in seconds; 0 if there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _features():
    """The processor's features that decide speed, as reported by Linux."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return " ".join(feature for feature in _FEATURES if feature in flags) or "features unknown"


def _cpuinfo(label):
    """What Linux reports about the first processor under a label, or ""."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(label)), "")


def _load():
    """Average number of running processes in the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown"


def _cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
