"""Threads, targets, forks: what surrounds the kernels."""

import concurrent.futures
import doctest
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import threading

import numpy as np
import pytest

import fastattn
from fastattn import _runtime, reference
from fastattn._core import threads as _threads
from support.processes import output, python

needs_openmp = pytest.mark.skipif(not _runtime.has_openmp(), reason="a serial build")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")

THREADS = "import fastattn; print(fastattn.get_num_threads())"


def _version_1(group, quota):
    """The files of a control group of version 1."""
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": 100000}


@pytest.fixture(autouse=True)
def thread_setting_restored():
    yield
    fastattn.set_num_threads(None)


# How many threads


@needs_openmp
def test_set_num_threads():
    default = fastattn.get_num_threads()
    assert default >= 1
    fastattn.set_num_threads(default + 3)
    assert fastattn.get_num_threads() == default + 3
    fastattn.set_num_threads(np.int64(1))
    assert fastattn.get_num_threads() == 1
    fastattn.set_num_threads(None)
    assert fastattn.get_num_threads() == default


@needs_openmp
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"FASTATTN_NUM_THREADS": "3"}, "3"),
        ({"FASTATTN_NUM_THREADS": "1"}, "1"),
        ({"FASTATTN_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, "3"),
        ({"OMP_NUM_THREADS": "1"}, "1"),
    ],
    ids=str,
)
def test_environment(environment, threads):
    assert output(THREADS, **environment) == threads


@needs_openmp
def test_setting_goes_before_the_environment_and_resets_to_it():
    code = """
    import fastattn
    fastattn.set_num_threads(2)
    print(fastattn.get_num_threads())
    fastattn.set_num_threads(None)
    print(fastattn.get_num_threads())
    """
    assert output(code, FASTATTN_NUM_THREADS="5").split() == ["2", "5"]


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "9" * 30])
def test_wrong_environment_is_an_error_at_import(wrong):
    done = python(THREADS, FASTATTN_NUM_THREADS=wrong)
    assert done.returncode != 0
    complaint = done.stderr.strip().splitlines()[-1]
    assert "FASTATTN_NUM_THREADS" in complaint
    assert wrong in complaint


COUNT_THREADS = """
    import os
    import numpy as np
    import fastattn

    def threads():
        return len(os.listdir("/proc/self/task"))

    x = np.ones((64, 8, 64, 64), np.float32)
    tiny = x[0, :, :2, :8]
    before = threads()
"""


@needs_openmp
@needs_linux
@pytest.mark.parametrize(
    ("call", "environment", "threads"),
    [
        ("attention(x, x, x)", {"FASTATTN_NUM_THREADS": "4"}, 4),
        ("attention(x, x, x, num_threads=3)", {"FASTATTN_NUM_THREADS": "1"}, 3),
        ("attention(x, x, x, num_threads=1)", {"FASTATTN_NUM_THREADS": "4"}, 1),
        ("attention(tiny, tiny, tiny)", {"FASTATTN_NUM_THREADS": "4"}, 1),
        ("fastattn.softmax(x, num_threads=3)", {}, 3),
        ("fastattn.layer_norm(x, num_threads=3)", {}, 3),
        ("fastattn.layer_norm(x[0, 0, :2])", {"FASTATTN_NUM_THREADS": "4"}, 1),
    ],
)
def test_threads_really_started(call, environment, threads):
    """The argument goes before every setting, and small work stays on the calling thread.

    No call waits for threads to start: it is repeated until they are there.
    """
    call = call.replace("attention(", "fastattn.scaled_dot_product_attention(", call.startswith("attention"))
    code = f"""{COUNT_THREADS}
    import time
    end = time.monotonic() + (60 if {threads} > 1 else 0.2)
    while time.monotonic() < end and ({threads} == 1 or threads() - before + 1 < {threads}):
        {call}
    time.sleep(0.05)
    print(threads() - before + 1)
    """
    assert output(code, **environment) == str(threads)


@needs_openmp
def test_threadpoolctl_sees_and_limits_the_threads():
    pytest.importorskip("threadpoolctl")
    code = """
    import threadpoolctl
    import fastattn
    assert "openmp" in {pool["user_api"] for pool in threadpoolctl.threadpool_info()}
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        print(fastattn.get_num_threads())
    """
    assert output(code) == "1"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "800000 100000", "a/b/cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 0),
        ("0::/\n", {}, 0),
        ("3:cpu,cpuacct:/a\n0::/\n", _version_1("cpu,cpuacct/a", 250000), 3),
        ("2:memory:/a\n1:cpu:/\n", _version_1("cpu", -1), 0),
        ("", {}, 0),
    ],
    ids=["parent", "child", "max", "no files", "version 1", "version 1 without", "no groups"],
)
def test_container_quota(groups, files, quota, tmp_path, monkeypatch):
    """In processors, rounded up: the smallest of the process's control groups."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    read = _runtime.read
    monkeypatch.setattr(_runtime, "_CGROUPS", tmp_path)
    monkeypatch.setattr(_runtime, "read", lambda path: groups if path == "/proc/self/cgroup" else read(path))
    assert _runtime.container_quota() == quota


# Targets


def test_targets_are_sorted_and_end_with_the_portable_one():
    known = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "neon_bf16", "neon_dot", "neon", "portable")
    assert fastattn.targets() == tuple(name for name in known if name in fastattn.targets())
    assert fastattn.targets()[-1] == "portable"


@pytest.mark.parametrize("name", fastattn.targets())
def test_target_by_environment(name):
    code = """
    import numpy as np
    import fastattn
    from fastattn import _runtime, reference
    x = np.ones((1, 4, 8), np.float32)
    assert np.allclose(fastattn.scaled_dot_product_attention(x, x, x), 1)
    print(_runtime.use_target("portable"), *fastattn.targets())
    """
    assert output(code, FASTATTN_TARGET=name).split() == [name, *fastattn.targets()]


@pytest.mark.parametrize("wrong", ["avx1024", "AVX2", "avx2,portable", "sse2"])
def test_unknown_target_is_an_error_at_import(wrong):
    done = python("import fastattn", FASTATTN_TARGET=wrong)
    assert done.returncode != 0
    complaint = done.stderr.strip().splitlines()[-1]
    assert "FASTATTN_TARGET" in complaint
    assert wrong in complaint
    assert all(name in complaint for name in fastattn.targets())


def test_use_target_returns_the_former():
    names = fastattn.targets()
    first = _runtime.use_target(names[-1])
    try:
        assert _runtime.use_target(names[0]) == names[-1]
    finally:
        _runtime.use_target(first)
    with pytest.raises(ValueError, match="avx1024"):
        _runtime.use_target("avx1024")
    assert _runtime.use_target(first) == first


# Configuration and import


def test_show_config():
    config = fastattn.show_config()
    assert config["fastattn"] == fastattn.__version__
    assert config["targets here"] == ", ".join(fastattn.targets())
    assert config["threads"].startswith(f"{fastattn.get_num_threads()} ")
    assert all(isinstance(text, str) and text.strip() == text for text in config.values())
    assert all(config.values())
    assert all(flag in config["flags"].split() for flag in ("-fno-math-errno", "-ffp-contract=fast"))
    assert config["numpy"].split(",")[0] == np.__version__


def test_show_config_is_imported_when_it_is_called():
    code = "import sys, fastattn; print('fastattn._report' in sys.modules, len(fastattn.show_config()) > 10)"
    assert output(code) == "False True"


@needs_openmp
@needs_linux
def test_show_config_names_the_openmp_library_in_use():
    """Of the libraries in the process, the one that holds the function which fastattn calls."""
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    [file] = {line.split()[-1] for line in lines if _is_where_openmp_is(line)}
    assert fastattn.show_config()["openmp"].endswith(f", {os.path.realpath(file)}")
    assert "omp" in os.path.basename(file)


def _is_where_openmp_is(line):
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    return start <= _threads.openmp_address < end


def test_show_config_shows_the_variables_that_matter_and_no_others():
    variables = {"OMP_WAIT_POLICY": "passive", "FASTATTN_NUM_THREADS": "2", "A_SECRET": "word", "NOT_OMP_DYNAMIC": "1"}
    said = output("import fastattn; print(fastattn.show_config()['environment'])", **variables)
    assert "FASTATTN_NUM_THREADS=2 OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1" in said
    assert "SECRET" not in said
    assert "DYNAMIC" not in said


@pytest.mark.parametrize("variable", ["OMP_PROC_BIND", "OMP_PLACES"])
def test_show_config_says_what_binds_threads(variable):
    code = "import fastattn; print(fastattn.show_config()['placement'])"
    said = output(code, **{variable: {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}[variable]})
    assert said == f"bound by {variable}"
    assert output(code) == "on all of them"


def test_show_config_says_what_other_libraries_have_threads():
    code = "import sys; {}import fastattn; print(fastattn.show_config()['libraries'])"
    assert output(code.format("sys.modules['threadpoolctl'] = None; ")) == "unknown: threadpoolctl is not installed"
    pytest.importorskip("threadpoolctl")
    assert re.search(r"(^|; )\S+( \S+)? with \d+ threads, /", output(code.format("")))


@pytest.mark.parametrize(
    ("gil", "said"), [(True, " free-threaded, with the GIL on, on "), (False, " free-threaded on ")]
)
def test_show_config_says_whether_there_is_a_gil(gil, said, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    assert said in fastattn.show_config()["python"]


INSTALLED = "import fastattn; print(fastattn.show_config()['installed'])"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"WHEEL": "Tag: cp311-cp311-manylinux_2_28_x86_64\n"}, "wheel cp311-cp311-manylinux_2_28_x86_64"),
        ({"WHEEL": "Root-Is-Purelib: false\nTag: a-b-c\nTag: a-b-d\n"}, "wheel a-b-c a-b-d"),
        (
            {"WHEEL": "Tag: a-b-c\n", "direct_url.json": '{"url": "file:///x", "dir_info": {}}'},
            "wheel a-b-c, from a checkout",
        ),
        ({}, "built in place"),
    ],
    ids=["wheel", "two tags", "checkout", "in place"],
)
def test_show_config_says_how_it_was_installed(files, said, tmp_path):
    """In a folder of its own, where the package is a link."""
    package = tmp_path / "fastattn"
    package.symlink_to(fastattn.__path__[0], target_is_directory=True)
    metadata = tmp_path / "fastattn-0.1.0.dist-info"
    metadata.mkdir()
    for name, text in {"METADATA": "Name: fastattn\nVersion: 0.1.0\n", **files}.items():
        (metadata / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(np.__file__))])
    assert output(INSTALLED, PYTHONPATH=path) == f"{said}, in {package}"


@pytest.mark.parametrize(
    ("what", "variable", "chosen"),
    [("threads", "FASTATTN_NUM_THREADS", "3"), ("target", "FASTATTN_TARGET", "portable")],
)
def test_show_config_says_why(what, variable, chosen):
    said = output(f"import fastattn; print(fastattn.show_config()[{what!r}])", **{variable: chosen})
    assert said == f"{chosen} ({variable})"


def test_show_config_knows_who_set_the_threads():
    fastattn.set_num_threads(3)
    assert fastattn.show_config()["threads"] == "3 (set_num_threads)"


def test_public_names():
    runtime = ("get_num_threads", "set_num_threads", "targets", "show_config", "get_include")
    weights, caches = ("pack", "PackedWeight"), ("KVCache", "PagedKVCache")
    assert {*runtime, *caches, *weights, "OutOfPages", *reference.__all__} == set(fastattn.__all__)
    assert all(callable(getattr(fastattn, name)) for name in fastattn.__all__)


@pytest.mark.parametrize("name", fastattn.__all__)
def test_docstring_runs(name):
    """With no names but those that the example itself imports."""
    [example] = doctest.DocTestFinder(recurse=False).find(getattr(fastattn, name), name, globs={})
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0
    assert result.failed == 0


def test_import_brings_in_nothing_heavy():
    code = "import sys, fastattn; print(*{name.split('.')[0] for name in sys.modules})"
    heavy = {"torch", "scipy", "ml_dtypes", "onnx", "tokenizers", "safetensors", "matplotlib", "threadpoolctl"}
    assert heavy.isdisjoint(output(code).split())


@needs_linux
@pytest.mark.parametrize("environment", [{}, {"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}], ids=str)
def test_import_leaves_the_processors_of_the_thread(environment):
    """Though OpenMP binds the thread that loads it: the next library would count one processor."""
    code = """
    import os
    before = os.sched_getaffinity(0)
    import fastattn
    print(os.sched_getaffinity(0) == before)
    """
    assert output(code, **environment) == "True"


# Python threads, forks


@functools.cache
def work():
    """Name -> a call without arguments: small and large, one kernel and another."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(2, 4, 130, 32)).astype(np.float32)
    long = rng.normal(size=(1, 1, 3000, 32)).astype(np.float32)
    rows = rng.normal(size=(300, 768))
    attention = fastattn.scaled_dot_product_attention
    return {
        "many rows": lambda: attention(x, x, x, is_causal=True),
        "many rows, 2 threads": lambda: attention(x, x, x, num_threads=2),
        "few rows": lambda: attention(x[:, :, -1:], x, x),
        "split keys": lambda: attention(long[:, :, -1:], long, long, num_threads=2),
        "tiny": lambda: attention(x[0, :, :3, :5], x[0, :, :3, :5], x[0, :, :3, :5]),
        "softmax": lambda: fastattn.softmax(rows, num_threads=2),
        "columns": lambda: fastattn.log_softmax(rows, axis=0),
        "layer_norm": lambda: fastattn.layer_norm(rows),
    }


def test_eight_python_threads_at_once(target):
    expected = {name: call() for name, call in work().items()}
    together = threading.Barrier(8)

    def one_thread(number):
        together.wait()
        names = list(work())
        names = names[number:] + names[:number]  # each begins elsewhere
        return [(name, work()[name]()) for name in names for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for results in pool.map(one_thread, range(8)):
            for name, result in results:
                np.testing.assert_array_equal(result, expected[name], err_msg=name)


LONG_CALLS = {
    "attention": lambda x: fastattn.scaled_dot_product_attention(x[:, :64], x[:, :64], x[:, :64], num_threads=1),
    "softmax": lambda x: fastattn.softmax(x, num_threads=1),
    "layer_norm": lambda x: fastattn.layer_norm(x, num_threads=1),
}


@pytest.mark.parametrize("operation", LONG_CALLS)
def test_the_gil_is_released(operation):
    """Without forced switches another thread gets its turn during the call only if the call lets go of the GIL."""
    x = np.ones((4096, 4096), np.float32)
    begun, events = threading.Event(), []

    def call():
        events.append("begin")
        begun.set()
        LONG_CALLS[operation](x)
        events.append("end")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=call)
        thread.start()
        begun.wait()
        events.append("other")
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert events == ["begin", "other", "end"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_fork():
    """Children, and theirs, compute on several threads after the parent has; then so does the parent again."""
    code = """
    import os
    import numpy as np
    import fastattn

    x = np.random.default_rng(0).normal(size=(8, 4, 130, 32)).astype(np.float32)

    def call():
        return fastattn.scaled_dot_product_attention(x, x, x, num_threads=4), fastattn.softmax(x, num_threads=3)

    def same():
        return all(np.array_equal(a, b) for a, b in zip(call(), expected, strict=True))

    def in_child(act):
        child = os.fork()
        if child == 0:
            os._exit(0 if act() else 1)
        return os.waitpid(child, 0)[1] == 0

    expected = call()
    assert all(in_child(same) for _ in range(3))
    assert in_child(lambda: same() and in_child(same))
    assert same()
    """
    output(code)


# Other people's OpenMP

REGION = """
#include <omp.h>

void region(int threads, void (*call)(int)) {
    #pragma omp parallel num_threads(threads)
    call(omp_get_thread_num());
}
"""

CALLS_INSIDE = f"""{COUNT_THREADS}
    import ctypes
    import sys
    import threading
    import time
    from fastattn._core import threads as room

    x = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    together = threading.Barrier(2, timeout=60)
    level = ctypes.CDLL(room.__file__).omp_get_level  # of the OpenMP library that fastattn is linked to
    results, levels, counts, done = {{}}, set(), [], threading.Event()

    def call():
        return fastattn.scaled_dot_product_attention(x, x, x), fastattn.softmax(x), fastattn.layer_norm(x)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def inside(number):
        levels.add(level())
        together.wait()
        results[number] = call()
        together.wait()
        counts.append(threads() - before)

    def watch():  # a nested team's threads may end with the call
        while not done.is_set():
            counts.append(threads() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        # CDLL lets go of the GIL. With PyDLL the region would wait for threads that wait for the GIL.
        ctypes.CDLL(sys.argv[1]).region(2, inside)
        most = max(counts)
        expected = call()
        deadline = time.monotonic() + 60
        while threads() - before < 4 and time.monotonic() < deadline:
            call()
        print(*levels, most, threads() - before)
    finally:
        done.set()
    assert sorted(results) == [0, 1]
    for result in results.values():
        for got, wanted in zip(result, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
"""


@pytest.fixture(scope="module", params=["gcc", "clang"])
def region(request, tmp_path_factory):
    """A library with a parallel region that calls back. Of two compilers, one brings an OpenMP that is not ours."""
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    source, library = folder / "region.c", folder / "region.so"
    source.write_text(REGION)
    options = ["-fopenmp", "-shared", "-fPIC", "-o", str(library)]
    done = subprocess.run([request.param, str(source), *options], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{request.param} has no OpenMP: {done.stderr}")
    return str(library)


@needs_openmp
@needs_linux
@pytest.mark.parametrize("nesting", [{}, {"OMP_MAX_ACTIVE_LEVELS": "2"}], ids=["flat", "nested"])
def test_inside_another_openmp_region(region, nesting):
    """Two threads of a region call at once, each allowed three threads: both share one team of two."""
    said = output(CALLS_INSIDE, region, FASTATTN_NUM_THREADS="3", **nesting)
    level, inside, outside = map(int, said.split())
    others = 2  # the region's second thread, and the one that watches
    if level == 0 or nesting:  # our library does not see the other's region, or was told that regions may nest
        # A thread that was started on trial can be listed for a moment beside the two. Two teams would have four.
        assert inside <= others + 3
    else:
        assert inside == others  # both calls stayed on their threads,
    assert outside == others + 2  # and outside they do not
