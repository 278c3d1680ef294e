"""What a measurement ran on: processor, threads, versions, date."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

import fastattn
from fastattn._core import targets

_SELF_EVIDENT = ("processor", "system", "date")


def describe(distributions, threads):
    """The facts that a table of times needs beside it, as a dict of strings and numbers."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": threads,
        "target": targets.current(),
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


def _processor():
    """The processor's name; Linux tells it in /proc alone."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _load():
    """Average number of running processes in the last minute: what else the machine did."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown"


def _cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
