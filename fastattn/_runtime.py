"""Threads and targets: what is used, why, and how to change it.

The maximum number of threads of a call is the first of: its num_threads argument; set_num_threads;
FASTATTN_NUM_THREADS; OpenMP's own setting (OMP_NUM_THREADS, threadpoolctl, else the processors this process may use),
limited by the container's CPU quota. Small work always runs on the calling thread, and so does a call inside a parallel
region of the same OpenMP library, unless nesting is on (OMP_MAX_ACTIVE_LEVELS). Regions of other OpenMP libraries
cannot be detected.

It is a limit: how many threads take part depends on which processors are free (fastattn._core.threads).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
bound_by = [name for name in _BINDING if os.environ.get(name)]  # that is, OpenMP's threads to processors

# So told, OpenMP also binds the thread that loads it, which the next lines do. The next OpenMP library in the process
# would find this processor only: PyTorch, imported after fastattn, had one thread.
_allowed = os.sched_getaffinity(0) if bound_by and hasattr(os, "sched_getaffinity") else None

from fastattn import _arguments  # noqa: E402
from fastattn._core import targets as _targets  # noqa: E402
from fastattn._core import threads as _threads  # noqa: E402

if _allowed:
    os.sched_setaffinity(0, _allowed)

_CGROUPS = Path("/sys/fs/cgroup")
_STACK_SIZES = ("OMP_STACKSIZE", "GOMP_STACKSIZE", "KMP_STACKSIZE")
_asked_for = {"set_num_threads": 0, "FASTATTN_NUM_THREADS": 0}  # 0: not set; the first that is set applies


def targets() -> tuple[str, ...]:
    """List the instruction-set targets that this machine can run, best first.

    The first one is used, unless the environment variable FASTATTN_TARGET names another when fastattn is imported.

    Examples
    --------
    >>> import fastattn
    >>> "portable" in fastattn.targets()
    True
    """
    return _targets.supported()


def get_include() -> str:
    """Return the folder of fastattn.h, for compilers of C, C++ and Cython code that calls fastattn.

    Examples
    --------
    >>> import fastattn, os
    >>> os.listdir(fastattn.get_include())
    ['fastattn.h']
    """
    return str(Path(__file__).parent / "include")


def use_target(name: str) -> str:
    """Use this target's kernels from now on, in all threads; return the name of the previous target."""
    former = _targets.current()
    if name not in targets():
        known = "this machine cannot run it" if name in _targets.built() else "there is no such target in this build"
        raise ValueError(f"target must be one of {', '.join(targets())}, got {name!r}: {known}")
    _targets.use(name)
    return former


@contextlib.contextmanager
def on_target(name: str) -> Iterator[None]:
    """Use this target's kernels meanwhile."""
    former = use_target(name)
    try:
        yield
    finally:
        use_target(former)


def get_num_threads() -> int:
    """Return the default maximum number of threads of a call.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.get_num_threads() >= 1
    True
    """
    return _threads.available_threads()


def set_num_threads(num_threads: int | None) -> None:
    """Set the default maximum number of threads of a call, for the whole process.

    Parameters
    ----------
    num_threads : int or None
        At least 1; None restores the default, FASTATTN_NUM_THREADS or OpenMP's own setting.

    Raises
    ------
    TypeError, ValueError
        `num_threads` is not an int, or is less than 1.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.set_num_threads(1)
    >>> fastattn.get_num_threads()
    1
    >>> fastattn.set_num_threads(None)
    """
    _asked_for["set_num_threads"] = _arguments.thread_limit(num_threads)
    _apply_thread_settings()


def show_config() -> dict[str, str]:
    """Describe this build, the machine, and what is used of both, with the reasons: what a bug report needs.

    Returns
    -------
    dict
        Texts by name: versions, how it was installed, compiler and flags, the processor, targets, threads, the OpenMP
        library in use, environment variables, and the libraries with threads beside it (if threadpoolctl is
        installed).

    Examples
    --------
    >>> import fastattn
    >>> fastattn.show_config()["fastattn"] == fastattn.__version__
    True
    """
    from fastattn import _report

    return _report.config()


def has_openmp() -> bool:
    """Whether this build supports threads."""
    return bool(_threads.openmp)


def why_threads() -> str:
    """Say what the default number of threads comes from."""
    for name, count in _asked_for.items():
        if count:
            return name
    quota = container_quota()
    if quota and quota < _threads.openmp_threads():
        return "the container's CPU quota"
    if not has_openmp():
        return "a serial build"
    return "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "OpenMP"


def _apply_thread_settings() -> None:
    _threads.choose(next(filter(None, _asked_for.values()), 0), container_quota())


def _stack_size() -> int:
    """Stack size in bytes that the environment sets for OpenMP's threads; 0 if unset or too large a number."""
    for name in _STACK_SIZES:
        if said := re.fullmatch(r"\s*(\d{1,19})\s*([bkmg]?)\s*", os.environ.get(name, ""), re.IGNORECASE):
            size = int(said[1]) << {"b": 0, "k": 10, "": 10, "m": 20, "g": 30}[said[2].lower()]
            return size if size < 1 << 63 else 0
    return 0


def container_quota() -> int:
    """CPU quota of this process's control groups, in processors, rounded up; 0 without a limit."""
    quotas = [quota for group in _control_groups() if (quota := _group_quota(group))]
    return max(1, math.ceil(min(quotas))) if quotas else 0


def _control_groups() -> list[Path]:
    """This process's group and its parents: version 2 in one tree, version 1 in the tree of the cpu controller."""
    groups = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            root = _CGROUPS / controllers
            group = root / path.strip("/")
            groups += [parent for parent in (group, *group.parents) if parent == root or root in parent.parents]
    return groups


def _group_quota(group: Path) -> float:
    words = read(group / "cpu.max").split()  # "quota period" or "max period", microseconds
    if not words:
        words = [read(group / "cpu.cfs_quota_us").strip(), read(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or no such files
        return 0
    return quota / period if quota > 0 and period > 0 else 0


def read(path: str | Path) -> str:
    """Return the text of one of the system's files; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _read_environment() -> None:
    if name := os.environ.get("FASTATTN_TARGET"):
        try:
            use_target(name)
        except ValueError as error:
            raise ImportError(f"FASTATTN_TARGET: {error}") from None
    if text := os.environ.get("FASTATTN_NUM_THREADS"):
        try:
            _asked_for["FASTATTN_NUM_THREADS"] = _arguments.thread_limit(int(text))
        except ValueError:
            raise ImportError(f"FASTATTN_NUM_THREADS must be an int of at least 1, got {text!r}") from None
    _apply_thread_settings()


_read_environment()
_threads.bind(bool(bound_by), _stack_size())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_threads.rest)
