"""The team of threads: started once, shared by all calls, waited for by none; forks, signals, other libraries."""

import concurrent.futures
import os
import sys
import threading
import time

import numpy as np
import pytest

import fastattn
from fastattn import _runtime
from fastattn._core import threads as team
from support.processes import output, python

needs_openmp = pytest.mark.skipif(not _runtime.has_openmp(), reason="a serial build")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or "libtsan" in os.environ.get("LD_PRELOAD", ""),
    reason="needs fork, after which ThreadSanitizer ends a process that starts threads",
)

#: What each script begins with: a large call whose result tells whether it was right, and a look at the threads.
#: It imports little: most of what this file costs is to start processes.
SCRIPT = """
    import os, signal, sys, threading, time
    import numpy as np
    import fastattn
    from fastattn._core.threads import team_state

    x = np.sin(np.arange(4 * 4 * 130 * 32, dtype=np.float32)).reshape(4, 4, 130, 32)

    def call(threads=4):
        return fastattn.scaled_dot_product_attention(x, x, x, num_threads=threads)

    expected = call(1)
    first = threading.Thread(target=int)
    first.start()  # a sanitizer starts a thread of its own with the program's first one
    first.join()
    while os.path.exists(f"/proc/self/task/{first.native_id}"):  # it ends a moment after join()
        time.sleep(0.001)

    def right(threads=4):
        return np.array_equal(call(threads), expected)

    def tasks():
        return len(os.listdir("/proc/self/task"))

    def members():
        state = team_state()
        return int(state.split()[0]) if state[0].isdigit() else 0

    def decided():  # whether there is a team
        return members() > 0 or "could" in team_state()

    def until(condition, threads=4):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "never came true"
            assert right(threads)

    def in_child(act):
        child = os.fork()
        if child == 0:
            os._exit(0 if act() else 1)
        return os.waitpid(child, 0)[1] == 0
"""


def said(code, *arguments, **environment):
    """What a script prints that begins with SCRIPT; it must end by itself, in time."""
    return output(SCRIPT + code, *arguments, **environment)


# Size


@needs_openmp
@needs_linux
def test_the_team_grows_when_asked_for_more_and_stays_when_told_less():
    code = """
    before = tasks()
    for threads in 2, 5, 3, 1, 7:
        until(lambda: members() + 1 >= threads, threads)
        until(lambda: tasks() - before == members(), threads)  # what was started on trial has ended
        for _ in range(5): assert right(threads)
        print(tasks() - before + 1)
    """
    assert said(code).split() == ["2", "5", "5", "5", "7"]


@needs_openmp
def test_a_large_layer_shares_after_a_small_one():
    """It must not take the other's size for its own."""
    code = """
    x, weight = np.ones((100_000, 32), np.float32), np.ones((32, 32), np.float32)
    for rows in 1, 100_000:
        fastattn.linear(x[:rows], weight, num_threads=2)
        print("not started" in team_state())
    """
    assert said(code).split() == ["True", "False"]


@needs_openmp
@needs_linux
def test_many_calling_threads_share_one_team():
    code = """
    before = tasks()
    until(lambda: tasks() - before == members() == 3)
    stop, most = threading.Event(), []
    def work():
        while not stop.is_set():
            assert right()
    callers = [threading.Thread(target=work) for _ in range(20)]
    for caller in callers: caller.start()
    for _ in range(20):
        most.append(tasks() - before)
        time.sleep(0.001)
    stop.set()
    for caller in callers: caller.join()
    print(max(most))
    """
    assert said(code) == str(3 + 20)


@needs_openmp
@needs_linux
def test_a_resting_team_uses_no_processor():
    code = """
    for _ in range(30): assert right()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    print(time.process_time() - before < 0.02)
    """
    assert said(code) == "True"


#: Before the rest of a script: calls from a thread that has a processor to itself, and members on the others, so that
#: members share them on a busy machine, too. The first thread's affinity, which the team follows, does not change.
APART = """
    def apart(work, threads):
        before = set(os.listdir("/proc/self/task"))
        until(lambda: members() + 1 == threads == tasks() - len(before) + 1, threads)
        team = [int(task) for task in os.listdir("/proc/self/task") if task not in before]
        own, *others = os.sched_getaffinity(0)
        def run():
            os.sched_setaffinity(threading.get_native_id(), {own})
            work(team)
        for task in team: os.sched_setaffinity(task, others or {own})
        caller = threading.Thread(target=run)
        caller.start()
        caller.join()
"""


@needs_openmp
@needs_linux
def test_a_member_spins_for_no_longer_than_it_should():
    """By its own clock, which stands still while others have its processor."""
    code = """
    def work(team):
        clock = ~team[0] << 3 | 6  # the processor time of a thread, in Linux's terms
        spent = []
        for _ in range(60):
            for _ in range(10): call(2)  # after calls that followed one another soon, it spins
            before = time.clock_gettime(clock)
            time.sleep(0.002)
            spent.append(time.clock_gettime(clock) - before)
        print(*sorted(round(1e6 * each) for each in spent))
    apart(work, 2)
    """
    spent = [int(each) for each in said(APART + code).split()]
    assert len(spent) == 60  # microseconds, in order
    # 100 and the way to sleep: 99 to 126 were measured, alone and beside two busy processes. A few may exceed that: a
    # virtual machine counts the time in which it does not run.
    assert spent[50] < 150, spent


@needs_openmp
@needs_linux
def test_a_resting_team_is_woken():
    code = """
    def others():
        return time.process_time() - time.thread_time()
    until(lambda: members() > 0)
    time.sleep(0.1)
    before, deadline = others(), time.monotonic() + 30
    while others() - before < 0.01 and len(os.sched_getaffinity(0)) > 1:  # on the caller's processor they let it be
        assert time.monotonic() < deadline, "no member ran"
        assert right(2)
        time.sleep(0.002)  # they wait for the next call for 0.1 ms, then they rest
    print("woken")
    """
    assert said(code) == "woken"


# Sharing


@needs_openmp
@needs_linux
def test_a_call_waits_for_every_item_that_members_took():
    """Its first item ends when members are inside the others, of which three, two or one end later."""
    code = """
    import ctypes
    from fastattn._core import threads
    capsule = ctypes.py_object(threads.__pyx_capi__["run"])
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = ctypes.py_object, ctypes.c_char_p
    name = ctypes.pythonapi.PyCapsule_GetName(capsule)
    Item = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p)
    Run = ctypes.CFUNCTYPE(ctypes.c_int, Item, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_ssize_t)
    run = Run(ctypes.pythonapi.PyCapsule_GetPointer(capsule, name))

    def shared(delay, delays):  # the items that members began, and those that were done when the call returned
        caller, begun, done, ended = threading.get_ident(), [], [], threading.Event()
        @Item
        def item(plan, index, memory):
            if threading.get_ident() != caller:
                begun.append(index)
                ended.wait()
                time.sleep(delays[index])
            elif index == 0:
                deadline = time.monotonic() + 0.02
                while len(begun) < 3 and time.monotonic() < deadline:
                    time.sleep(0.0002)
                ended.set()
                time.sleep(delay)
            done.append(index)
        assert run(item, None, 4, 4, 64)
        return begun, sorted(done)

    def work(team):
        for round in range(18):
            begun, done = shared([0, 0.002, 0.005][round // 6], [0, *np.roll([0.001, 0.004, 0.007], round)])
            print(len(begun), *done)
    apart(work, 4)
    """
    lines = said(APART + code).splitlines()
    assert [line[2:] for line in lines] == 18 * ["0 1 2 3"], lines


@needs_openmp
def test_no_call_waits_for_another_ones_items():
    """While every member is inside a long call, short calls come and go."""
    long = np.ones((1, 2, 8192, 64), np.float32)
    short = np.ones((4, 4, 96, 32), np.float32)
    begun, events = threading.Event(), []

    def long_call():
        begun.set()
        fastattn.scaled_dot_product_attention(long, long, long, num_threads=2)
        events.append("long")

    caller = threading.Thread(target=long_call)
    caller.start()
    begun.wait()
    time.sleep(0.02)
    for _ in range(3):
        # One thread of these is the long call's: with three more, this one shares its items.
        fastattn.scaled_dot_product_attention(short, short, short, num_threads=4)
        events.append("short")
    caller.join()
    assert events == 3 * ["short"] + ["long"]


@needs_openmp
@pytest.mark.parametrize("callers", [2, 9, 70], ids="{} callers".format)
def test_results_do_not_depend_on_who_takes_what(callers, target):
    """More callers than slots, too: what finds none is computed by its caller."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 4, 100, 24)).astype(np.float32)
    w = rng.normal(size=(200, 24)).astype(np.float32)
    calls = [
        lambda threads: fastattn.scaled_dot_product_attention(x, x, x, is_causal=True, num_threads=threads),
        lambda threads: fastattn.softmax(x, num_threads=threads),
        lambda threads: fastattn.layer_norm(x, num_threads=threads),
        lambda threads: fastattn.linear(x, w, num_threads=threads),
    ]
    expected = [call(1) for call in calls]
    together = threading.Barrier(callers, timeout=60)

    def work(number):
        together.wait()
        for turn in range(4):
            n = (number + turn) % len(calls)
            assert np.array_equal(calls[n](2 + turn % 4), expected[n])

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, range(callers)))


@needs_openmp
def test_in_place_results_are_complete_when_the_call_returns():
    """Every item was done, though a member may have taken the last one."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2000, 64)).astype(np.float32)
    expected = fastattn.softmax(x, num_threads=1)
    for _ in range(300):
        y = x.copy()
        fastattn.softmax(y, out=y, num_threads=3)
        assert np.array_equal(y, expected)


# Forks


@needs_openmp
@needs_fork
@needs_linux
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "import numpy as np\n"
        "import fastattn\n"
        "def work(seed):\n"
        "    x = np.sin(np.arange(seed, seed + 4 * 4 * 130 * 32, dtype=np.float32)).reshape(4, 4, 130, 32)\n"
        "    return fastattn.scaled_dot_product_attention(x, x, x, num_threads=4).sum()\n"
        "if __name__ == '__main__':\n"
        "    expected = [work(seed) for seed in range(6)]\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:\n"
        "        assert pool.map(work, range(6)) == expected\n"
        "    assert [work(seed) for seed in range(6)] == expected\n"
        "    print('same')\n"
    )
    run = "import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    if method != "fork":  # they import the script by its path
        run = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    assert output(run, str(script), method) == "same"


@needs_openmp
@needs_fork
@pytest.mark.parametrize("moment", ["before", "after", "during"])
def test_fork_from_any_thread_at_any_moment(moment):
    code = """
    moment = sys.argv[1]
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert right()
    callers = [threading.Thread(target=work) for _ in range(3 if moment == "during" else 0)]
    for caller in callers: caller.start()
    if moment == "after":
        assert right()
    results = []
    def fork():
        for threads in 2, 4, 3:
            results.append(in_child(lambda: right(threads) and in_child(lambda: right(threads + 1))))
    fork()
    other = threading.Thread(target=fork)
    other.start()
    other.join()
    stop.set()
    for caller in callers: caller.join()
    assert right()
    print(*results)
    """
    assert said(code, moment).split() == 6 * ["True"]


@needs_openmp
@needs_fork
@needs_linux
def test_a_child_makes_a_team_of_its_own():
    code = """
    until(lambda: tasks() >= 4)
    def grows():
        alone = tasks()
        until(lambda: tasks() == 4)
        return alone == 1
    print(in_child(grows))
    """
    assert said(code) == "True"


# Exit and signals


@needs_openmp
@pytest.mark.parametrize("how", ["end", "sys.exit(0)", "os._exit(0)"])
def test_exit_while_calls_run_in_daemon_threads(how):
    code = f"""
    def work():
        while True:
            assert right()
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(20): assert right()
    print("ends", flush=True)
    {"" if how == "end" else how}
    """
    assert said(code) == "ends"


@needs_openmp
@needs_linux
def test_ctrl_c_reaches_the_program():
    code = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits SIG_IGN
    for _ in range(20): assert right()
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            assert right()
    except KeyboardInterrupt:
        print("interrupted", right())
    """
    assert said(code) == "interrupted True"


@needs_openmp
@needs_linux
def test_a_signal_wakes_the_sleeping_program_not_the_team():
    """A signal to the process is delivered to one of the program's own threads: the members block it."""
    code = """
    for _ in range(20): assert right()
    def raises(*_): raise TimeoutError
    signal.signal(signal.SIGUSR1, raises)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        time.sleep(60)
    except TimeoutError:
        print("awake", right())
    own = os.getpid(), timer.native_id  # the latter may be about to end, even after join()
    others = [task for task in os.listdir("/proc/self/task") if int(task) not in own]
    blocked = [open(f"/proc/self/task/{task}/status").read().split("SigBlk:")[1].split()[0] for task in others]
    print(all(int(mask, 16) & 1 << signal.SIGUSR1 - 1 for mask in blocked))
    """
    assert said(code).split() == ["awake", "True", "True"]


@needs_openmp
@needs_linux
def test_a_signal_handler_may_call():
    code = """
    results = []
    signal.signal(signal.SIGALRM, lambda *_: results.append(right()))
    while len(results) < 20:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        assert right()
        assert right()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(all(results))
    """
    assert said(code) == "True"


# Threads that cannot be had


#: Before the rest of a script: what limits the number of this user's threads.
LIMITED = """
    import resource
    if os.getuid() == 0:  # no limit holds for root; a user that nobody else is
        os.setuid(30000 + os.getpid() % 30000)
    def own():
        count = 0
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{process}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{process}/task"))
            except OSError:
                pass
        return count
    def limit(most):
        resource.setrlimit(resource.RLIMIT_NPROC, (own() + most, own() + most))
"""


@needs_openmp
@needs_fork
@needs_linux
def test_no_thread_to_be_had():
    code = """
    import warnings
    def alone(asked, most):
        limit(most)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            until(lambda: given, asked)
            for _ in range(50): assert right(asked)
        return len(given) == 1 and given[0].category is RuntimeWarning and all(
            "calls run on the calling thread" in text for text in (str(given[0].message), team_state())
        )
    for asked, most in (2, 0), (1000, 0), (7, 1):
        print(in_child(lambda: alone(asked, most)))
    """
    assert said(LIMITED + code).split() == 3 * ["True"]


@needs_openmp
@needs_linux
def test_fewer_threads_than_asked_for():
    code = """
    limit(5)
    until(members, 1000)
    for _ in range(50): assert right(1000)
    print(members())
    """
    assert 1 <= int(said(LIMITED + code)) <= 5


@needs_openmp
@needs_linux
@pytest.mark.parametrize("variable", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
def test_stacks_too_small_for_the_kernels(variable):
    code = """
    for _ in range(5): assert right(4)
    assert in_child(lambda: right(4))
    print(team_state())
    """
    assert "calls run on the calling thread" in said(code, **{variable: "16k"})


@needs_openmp
@needs_linux
@pytest.mark.parametrize("size", ["1000000g", "9" * 19 + "g", "9" * 5000], ids=["no room", "no size", "no number"])
def test_stacks_too_large_for_the_machine(size):
    """OpenMP would end the process; a size that it cannot read it ignores."""
    code = """
    until(decided)
    assert in_child(lambda: right(4))
    print(team_state())
    """
    assert ("calls run on the calling thread" in said(code, OMP_STACKSIZE=size)) == (size[0] == "1")


@needs_openmp
@needs_linux
def test_small_default_stacks():
    again = """
    import os, resource, sys
    if len(sys.argv) < 2:
        resource.setrlimit(resource.RLIMIT_STACK, (65536, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        os.execv(sys.executable, [*sys.orig_argv, "again"])
    """
    code = """
    until(decided)
    print("team:", team_state())
    """
    done = python(again + SCRIPT + code)
    if done.returncode < 0 and "team" not in done.stdout:
        pytest.skip("Python itself does not run in so small a stack")
    assert "calls run on the calling thread" in done.stdout, done.stderr


# The process's affinity


@needs_openmp
@needs_linux
@pytest.mark.skipif(os.cpu_count() < 2, reason="one processor")
def test_the_team_follows_the_affinity():
    code = """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        print("same same same")
        raise SystemExit
    before = set(os.listdir("/proc/self/task")) - {str(os.getpid())}  # a sanitizer's thread
    until(lambda: members() == 3)
    def masks():
        return [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task") if task not in before]
    for mask in {allowed[0]}, {allowed[1]}, set(allowed):
        os.sched_setaffinity(0, mask)
        # A new member applies the affinity itself, maybe before a call has looked at it.
        until(lambda: all(each == mask for each in masks()) and fastattn.get_num_threads() == len(mask))
        print("same")
    """
    assert said(code).split() == ["same"] * 3


# Other libraries


@needs_openmp
@pytest.mark.parametrize("library", ["numpy", "torch", "onnxruntime", "sklearn"])
def test_beside_another_librarys_threads(library):
    if library != "numpy":
        pytest.importorskip(library)
    code = """
    library = sys.argv[1]
    a = np.random.default_rng(1).normal(size=(300, 300)).astype(np.float32)
    if library == "torch":
        import torch
        t = torch.from_numpy(a)
        other = lambda: (t @ t).numpy()
    elif library == "onnxruntime":
        import onnxruntime
        other = lambda: a @ a
    elif library == "sklearn":
        from sklearn.metrics import pairwise_distances
        other = lambda: pairwise_distances(a)
    else:
        other = lambda: a @ a
    wanted = other()
    for _ in range(20):
        assert right()
        assert np.allclose(other(), wanted, rtol=1e-4, atol=1e-3)
    if hasattr(os, "fork"):
        assert in_child(right)
    print("same")
    """
    assert said(code, library, OPENBLAS_NUM_THREADS="2") == "same"


def test_state_in_show_config():
    assert "team" in fastattn.show_config()
    assert fastattn.show_config()["team"] == team.team_state()
