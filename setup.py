"""The build of fastattn's compiled half. All that is not compiled stands in pyproject.toml.

1. Every fastattn/**/*.pyx becomes an extension module. Cython writes its C to build/, never into the source tree.
2. The C files in fastattn/_core/kernels go into one module only, fastattn._core.targets; the other modules reach the
   kernels through its tables. Each of kernels/instances/*.c is compiled once for each target, with the flags at the top
   of kernels/targets/<target>.h, unless it says there whose kernels in that arithmetic are the same.
3. What the compiler can do is found out by letting it try.

Environment:
    CC=clang                     another compiler: gcc >= 12, clang, or clang-cl on Windows
    FASTATTN_REQUIRE_OPENMP=1    a build without OpenMP is an error
    FASTATTN_NO_OPENMP=1         build without OpenMP, on purpose
    FASTATTN_TARGETS=avx2,...    build these targets only: a quick build while a kernel is written
    FASTATTN_EMULATE=1           build the targets beyond avx512 of plain AVX-512 (kernels/simd/emulation.h), to test
                                 them where the processor lacks their instructions; slow, never the default target
    FASTATTN_SANITIZE=address,undefined or thread
                                 build with these sanitizers of the compiler; .ci/sanitize does so and runs tests
    FASTATTN_SANITIZE=valgrind   the same without them, for valgrind

Tested on x86-64 Linux with gcc and clang, and cross-compiled for arm64 Linux. What stands here for macOS and Windows is
untested.
"""

import functools
import os
import re
import shlex
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Not -ffast-math: the kernels count on infinities, NaN and the order of their additions.
KERNEL_FLAGS = "-std=gnu11 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fvisibility=hidden -Wno-psabi"
KERNELS = Path("fastattn/_core/kernels")
# The slowest first: two are compiled at a time.
INSTANCES = [KERNELS / "instances" / f"{name}.c" for name in ("float32", "float64", "bfloat16", "int8")]
KERNEL_MODULE = "fastattn._core.targets"
OPENMP_MODULES = {"fastattn._core.threads", "fastattn._core.probe"}

MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")]
MODULE_FLAGS = {"win32": ""}.get(sys.platform, "-fvisibility=hidden -Wno-unused-function")
STRIP_FLAGS = {"linux": "-Wl,--strip-all"}.get(sys.platform, "")
# Of the modules alone: kernels keep no buffers on the stack that a size from outside could overrun.
HARDENING = {"linux": "-fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2"}.get(sys.platform, "")
LINK_HARDENING = {"linux": "-Wl,-z,relro,-z,now"}.get(sys.platform, "")
SANITIZE = os.environ.get("FASTATTN_SANITIZE", "")
# -O1 comes after -O3. A file of kernels takes 24 s to compile so; it takes minutes with the checks that are left out,
# which find what AddressSanitizer finds, with the latter's checks inlined, or with the places of variables (-g).
CHECKED_FLAGS = "-O1 -g1 -fno-omit-frame-pointer"
SANITIZER_FLAGS = "-fsanitize={} -fno-sanitize=null,alignment,object-size"
OUTLINED = [f"{prefix}asan-instrumentation-with-call-threshold=0" for prefix in ("--param ", "-mllvm -")]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "binding": False,  # plain built-in functions: a call takes 40 to 380 instructions less
    "freethreading_compatible": True,
}

# Where OpenMP may be: (compiler flags, linker flags), tried in this order. Apple's clang takes libomp from elsewhere.
OPENMP = {
    "win32": [("-fopenmp", "libomp.lib")],
    "darwin": [("-Xpreprocessor -fopenmp", "-lomp")]
    + [
        (f"-Xpreprocessor -fopenmp -I{folder}/include", f"-L{folder}/lib -lomp")
        for folder in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp", "/opt/local")
    ],
}.get(sys.platform, [("-fopenmp", "-fopenmp")])
NO_OPENMP = ("", "")

EMPTY_PROBE = "int nothing;"
PROGRAM_PROBE = "int main(void) { return 0; }"
COMPILER_PROBE = """
typedef int pair __attribute__((vector_size(8)));
pair swap(pair x) { return __builtin_shufflevector(x, x, 1, 0); }
"""
TARGET_PROBE = """
#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif
int size_of_a_pointer[sizeof(void *) == 8 ? 1 : -1];
"""
OPENMP_PROBE = """
#include <omp.h>
int main(void) { return omp_get_max_threads() < 1; }
"""


def announce(message):
    """Say what a user must not miss (pip shows it with -v)."""
    print(f"\n{'=' * 100}\nfastattn: {message}\n{'=' * 100}\n", file=sys.stderr, flush=True)


def is_set(variable):
    """Whether an environment variable is there and is not 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def is_stale(product):
    """Whether an object file is missing or older than a file that its compiler read (the .d beside it lists them)."""
    note = Path(product).with_suffix(".d")
    if not Path(product).exists() or not note.exists():
        return True
    files = note.read_text(encoding="utf-8").replace("\\\n", " ").split(": ", 1)[1].split()
    built = os.path.getmtime(product)
    return any(not os.path.exists(file) or os.path.getmtime(file) > built for file in files)


def differs(note, text):
    """Whether a file is missing or holds another text."""
    return not note.exists() or note.read_text(encoding="utf-8") != text


class Target(NamedTuple):
    """An instruction set that the kernels are compiled for."""

    machines: tuple  # endings of the platform's name: "linux-x86_64", "win-amd64"; "" fits all
    flags: str
    emulated_flags: str  # with FASTATTN_EMULATE=1
    shares: dict  # {arithmetic: the target whose kernels are the same}


def read_targets():
    """{name: target} of the names in kernels/targets/targets.def and the first lines of each target's header.

    A name among the flags stands for the flags of that target.
    """
    folder = KERNELS / "targets"
    names = re.findall(r"^TARGET\((\w+)\)$", (folder / "targets.def").read_text(encoding="utf-8"), re.MULTILINE)
    texts = {name: (folder / f"{name}.h").read_text(encoding="utf-8") for name in names}

    def line(name, label):
        found = re.search(rf"^ \* {label}: *(.*)$", texts[name], re.MULTILINE)
        return found[1] if found else ""

    def flags(name):
        return " ".join(flags(word) if word in names else word for word in line(name, "Flags").split())

    def target(name):
        machines = tuple("" if word == "any" else word for word in line(name, "Machines").split())
        shares = {source.stem: line(name, source.stem) for source in INSTANCES if line(name, source.stem)}
        return Target(machines, flags(name), flags(line(name, "Emulated by") or name), shares)

    return {name: target(name) for name in names}


TARGETS = read_targets()


class BuildExtensions(build_ext):
    """Looks the compiler over, compiles the kernels, and then builds the extension modules as always."""

    def build_extensions(self):
        self.prepare_compiler()
        targets, openmp = self.find_targets(), self.find_openmp()
        macros = [("FA_EMULATE", "1")] if is_set("FASTATTN_EMULATE") else []
        notes = self.notes(macros)
        kernels_changed, modules_changed = (differs(*note) for note in notes.items())
        kernels = self.compile_kernels(targets, macros, self.force or kernels_changed)

        self.force = self.force or modules_changed
        sources = self.write_c()
        for module in self.extensions:
            module.sources = sources[module.name]
            module.define_macros = MACROS + (self.told() if module.name == KERNEL_MODULE else [])
            module.extra_objects = kernels if module.name == KERNEL_MODULE else []
            headers = [*(KERNELS / "abi").glob("*.h"), KERNELS.with_name("sync.h"), Path("fastattn/include/fastattn.h")]
            module.depends = [*module.extra_objects, *map(str, headers)]
            compile_openmp, link_openmp = NO_OPENMP
            if module.name in OPENMP_MODULES:
                compile_openmp, link_openmp = openmp
                module.depends.append(self.openmp_note(openmp))
            module.extra_compile_args = self.spell(f"{MODULE_FLAGS} {compile_openmp} {self.kind_of_build(HARDENING)}")
            module.extra_link_args = f"{link_openmp} {self.kind_of_link()}".split()
        self.parallel = self.parallel or 2
        super().build_extensions()
        for note, text in notes.items():
            note.write_text(text, encoding="utf-8")

    def prepare_compiler(self):
        """Include folders for all, and a word to whoever has a compiler that cannot do it."""
        import numpy

        self.compiler.add_include_dir(str(KERNELS))
        self.compiler.add_include_dir(str(KERNELS.parent))
        self.compiler.add_include_dir("fastattn/include")
        self.compiler.add_include_dir(numpy.get_include())
        if self.compiler.compiler_type == "msvc":  # clang-cl takes the place of cl, which has no vector extensions
            self.compiler.initialize()
            self.compiler.cc = shutil.which("clang-cl") or self.compiler.cc
        command = getattr(self.compiler, "compiler_so", None) or [self.compiler.cc]
        wanted = "gcc >= 12 or clang (Debian, Ubuntu: apt install gcc), or set CC to one"
        if not shutil.which(command[0]):
            raise SystemExit(f"fastattn: no C compiler found: there is no {command[0]!r} here; install {wanted}")
        if not self.tries(EMPTY_PROBE):
            raise SystemExit(f"fastattn: the C compiler does not work: {shlex.join(command)} fails; install {wanted}")
        if not self.tries(COMPILER_PROBE):
            raise SystemExit(f"fastattn: this C compiler, {command[0]}, cannot build the kernels; install {wanted}")
        if not self.tries(PROGRAM_PROBE, self.kind_of_build(), self.kind_of_link()):
            flags = f"{self.kind_of_build()} {self.kind_of_link()}"
            raise SystemExit(f"fastattn: this C compiler, {command[0]}, does not take {flags}: see FASTATTN_SANITIZE")

    def find_targets(self):
        """{name: flags} of those of TARGETS that fit this machine and that the compiler takes."""
        wanted = os.environ.get("FASTATTN_TARGETS", "").replace(",", " ").split() or list(TARGETS)
        if unknown := [name for name in wanted if name not in TARGETS]:
            raise SystemExit(f"fastattn: FASTATTN_TARGETS: {', '.join(unknown)}: the targets are {', '.join(TARGETS)}")
        fitting = {name: target for name, target in TARGETS.items() if self.plat_name.endswith(target.machines)}
        targets = {name: self.flags_of(name) for name in fitting if name in wanted}
        refused = [name for name, flags in targets.items() if flags and not self.tries(TARGET_PROBE, flags)]
        for name in refused:
            announce(f"the target {name} is LEFT OUT: the compiler does not take {targets.pop(name)}")
        return targets

    def flags_of(self, name):
        """The flags of a target in this build."""
        return TARGETS[name].emulated_flags if is_set("FASTATTN_EMULATE") else TARGETS[name].flags

    def find_openmp(self):
        """(compiler flags, linker flags) for OpenMP, or NO_OPENMP for a build that runs one thread."""
        if is_set("FASTATTN_NO_OPENMP"):
            return NO_OPENMP
        for flags in OPENMP:
            if self.tries(OPENMP_PROBE, *flags):
                return flags
        missing = (
            "the compiler finds NO OPENMP, that is libgomp for gcc (Debian, Ubuntu: apt install libgomp1; Fedora: dnf "
            "install libgomp), libomp for clang (apt install libomp-dev; macOS: brew install libomp)"
        )
        if is_set("FASTATTN_REQUIRE_OPENMP"):
            raise SystemExit(f"fastattn: {missing}, and FASTATTN_REQUIRE_OPENMP is set")
        announce(f"{missing}:\nthis build will run ONE THREAD only")
        return NO_OPENMP

    def tries(self, code, flags="", link_flags=None):
        """Whether the compiler takes `code` with `flags` and, where link_flags are given, links it too."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=self.spell(flags))
                if link_flags is not None:
                    self.compiler.link_executable(objects, f"{folder}/probe", extra_postargs=link_flags.split())
            except (CompileError, LinkError):
                return False
        return True

    def spell(self, flags):
        """As a list, for this compiler: clang-cl takes clang's own flags behind /clang:."""
        prefix = "/clang:" if self.compiler.compiler_type == "msvc" else ""
        return [prefix + flag for flag in flags.split()]

    def kind_of_build(self, hardening=""):
        """Flags of the compiler: for a release, for a debugger (build_ext --debug), or for sanitizers."""
        if SANITIZE:
            return f"{CHECKED_FLAGS} {self.sanitizer_flags}"
        return hardening if self.debug else f"{hardening} -g0"

    @functools.cached_property
    def sanitizer_flags(self):
        """The sanitizers, and this compiler's flag, gcc's or clang's, that AddressSanitizer's checks are calls."""
        if SANITIZE == "valgrind":
            return ""
        outlined = next((flags for flags in OUTLINED if self.tries(EMPTY_PROBE, flags)), "")
        return f"{SANITIZER_FLAGS.format(SANITIZE)} {outlined}"

    def kind_of_link(self):
        """The same for the linker."""
        if SANITIZE:
            return "" if SANITIZE == "valgrind" else f"-fsanitize={SANITIZE}"
        return LINK_HARDENING if self.debug else f"{LINK_HARDENING} {STRIP_FLAGS}"

    def told(self):
        """A macro with the flags of the kernels, for show_config(): those of the compiler command, then their own."""
        command = getattr(self.compiler, "compiler_so", None) or [""]
        flags = [word for word in command[1:] if "/" not in word] + KERNEL_FLAGS.split()
        return [("FA_FLAGS", '"{}"'.format(" ".join(flags).replace('"', "'")))]

    def openmp_note(self, openmp):
        """A file as old as the choice of OpenMP's flags: only the modules that use OpenMP depend on it."""
        note = Path(self.build_temp, "openmp.txt")
        if differs(note, str(openmp)):
            note.write_text(str(openmp), encoding="utf-8")
        return str(note)

    def notes(self, macros):
        """What build/ was made with: {a note of it: its text} of the kernels, and of the modules.

        Where a text has changed, all of its kind is built anew: Cython does not see all modules that a .pxd concerns.
        """
        import Cython

        compiler = getattr(self.compiler, "compiler_so", None) or self.compiler.cc
        kernels = (compiler, macros, TARGETS, self.kind_of_build(), Path("setup.py").read_text(encoding="utf-8"))
        headers = [path.read_text(encoding="utf-8") for path in sorted(Path("fastattn").rglob("*.pxd"))]
        modules = (compiler, MACROS, self.kind_of_build(HARDENING), kernels[-1], Cython.__version__, *headers)
        texts = {"kernels.txt": kernels, "modules.txt": modules}
        return {Path(self.build_temp, name): "\n".join(map(str, parts)) for name, parts in texts.items()}

    def write_c(self):
        """Let Cython write the modules' C. {name of the module: its C file}."""
        from Cython.Build import cythonize

        folder = Path(self.build_temp).with_name("cython")
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.c")}
        modules = cythonize(self.extensions, build_dir=str(folder), compiler_directives=DIRECTIVES, force=self.force)
        # numpy's declarations in a new build environment are younger than any C. What is written anew without a change
        # keeps its age: compiling all modules takes 100 s of a core.
        for path, (content, time) in before.items():
            if path.read_bytes() == content:
                os.utime(path, ns=(time, time))
        return {module.name: module.sources for module in modules}

    def compile_kernels(self, targets, macros, force):
        """The object files of the kernels: every instance of the targets, what is the targets' own, what serves all."""
        built = [(f"FA_BUILD_{name}", "1" if name in targets else "0") for name in TARGETS]

        def compile_one(source, folder, own_macros, flags):
            [product] = self.compiler.object_filenames([str(source)], output_dir=folder)
            if force or own_macros is built or is_stale(product):  # no file's age tells which targets are built
                options = self.spell(f"{KERNEL_FLAGS} -MMD {flags} {self.kind_of_build()}")
                self.compiler.compile(
                    [str(source)], folder, macros + own_macros, debug=self.debug, extra_postargs=options
                )
            return product

        def task(source, name, *own_macros):
            return source, str(Path(self.build_temp, name)), [("FA_TARGET", name), *own_macros], self.flags_of(name)

        owners = ((source, TARGETS[name].shares.get(source.stem, name)) for name in targets for source in INSTANCES)
        tasks = [task(source, name) for source, name in dict.fromkeys(owners)]
        for name in targets:
            shares = [(f"FA_{arithmetic.upper()}_OF", other) for arithmetic, other in TARGETS[name].shares.items()]
            tasks.append(task(KERNELS / "targets" / "target.c", name, *shares))
        tasks += [(KERNELS / "targets" / "dispatch.c", self.build_temp, built, "")]
        tasks += [(KERNELS / "abi" / f"{name}.c", self.build_temp, [], "") for name in ("panels", "scratch")]
        with ThreadPoolExecutor(2) as jobs:
            return list(jobs.map(lambda task: compile_one(*task), tasks))


MODULES = sorted(Path("fastattn").rglob("*.pyx"))
setup(
    ext_modules=[Extension(".".join(path.with_suffix("").parts), [str(path)]) for path in MODULES],
    cmdclass={"build_ext": BuildExtensions},
)
