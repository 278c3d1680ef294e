"""Instructions beyond the platform's baseline stand in the objects of targets that ask the processor for them, and
nowhere else: by disassembly of what a build in this checkout left in build/.

A flag too many, or a function in a target's header that another object calls, and an older processor stops with an
illegal instruction.
"""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastattn._core import targets as _targets

BUILD = Path(__file__).parents[1] / "build"
KERNELS = "fastattn/_core/kernels"
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}

#: Instruction sets beyond the baseline: their mnemonics, and what else of a line gives them away. Some are parts of
#: others: VNNI's names are AVX's, too.
SETS = {
    "x86_64": {
        "SSE3 to SSE4.2": (
            r"addsubp[sd]|hadd\w+|hsub\w+|lddqu|mov[sd]\w*dup|pabs[bwd]|palignr|ph(?:add|sub)\w+|pmaddubsw|pmulhrsw|pshufb"
            r"|psign[bwd]|dpp[sd]|blendv?p[sd]|extractps|insertps|movntdqa|mpsadbw|packusdw|pblend\w+|pcmpeqq|pcmpgtq"
            r"|pcmp[ei]str[im]|pextr[bdq]|pinsr[bdq]|phminposuw|pm(?:ax|in)(?:s[bd]|u[wd])|pmov[sz]x\w+|pmuldq|pmulld|ptest"
            r"|round[ps][sd]|crc32\w*|popcnt\w*",
            "",
        ),
        "BMI, ADX, MOVBE": (
            r"andnl?q?|bextr\w*|bls\w+|bzhi\w*|mulx\w*|pdep\w*|pext[lq]?|rorx\w*|s[ah][lr]x\w*|lzcnt\w*"
            r"|ad[co]x\w*|movbe\w*",
            "",
        ),
        "PRFCHW": (r"prefetchw\w*", ""),
        "XSAVE": (r"xgetbv|xsave\w*|xrstor\w*", ""),
        "AVX": (r"v(?!err|erw)\w+", ""),
        "F16C": (r"vcvtph2ps|vcvtps2ph", ""),
        "FMA": (r"vfn?m(?:add|sub)\w+", ""),
        "AVX-512": (
            r"k(?:add|and|mov|not|or|shift|test|unpck|xnor|xor)\w+",
            r"%(?:zmm|k[0-7]|[xy]mm(?:1[6-9]|2\d|3[01]))",
        ),
        "VNNI": (r"vpdp\w+", ""),
        "AVX512_BF16": (r"vdpbf16ps|vcvtne2?ps2bf16\w?", ""),
        "AMX": (r"tdp\w+|tile\w+|ldtilecfg|sttilecfg", ""),
        "others": (
            r"vp(?:ermt2b|ermi2b|ermb|compress[bw]|expand[bw]|sh[lr]d\w+|madd52\w+|conflict\w|lzcnt\w|popcnt\w)|v?gf2p8\w+"
            r"|v?aes\w+|v?pclmul\w+|v\w+sh|v(?:add|sub|mul|div|sqrt|max|min|fn?m\w+)ph|sha\d\w+|rdrand\w?|rdseed\w?",
            "",
        ),
    },
    "aarch64": {
        "DotProd": (r"[su]dot", ""),
        "BF16": (r"bfdot|bfm\w+|bfcvt\w*", ""),
        "I8MM": (r"us?mmla|smmla|usdot|sudot", ""),
        "ARMv8.1": (
            r"cas[alb]*[bhp]?|swp[al]*[bh]?|(?:ld|st)(?:add|clr|eor|set|[su]max|[su]min)[al]*[bh]?|crc32\w+|sqrdml[as]h",
            "",
        ),
        "FP16": (r"fml[as]l2?", r"\tf(?!cvt|mov)\w+\s+(?:v\d+\.[48]h|h\d+)"),
        "SVE": (r"ptrue|while\w+", r"\bz\d+\.[bhsdq]|\bp\d+/[mz]"),
    },
}
#: A target's, which its processors have. The dispatch asks the processor before it uses XGETBV.
ALLOWED = {
    "avx2": ("SSE3 to SSE4.2", "AVX", "F16C", "FMA"),
    "avx512": ("SSE3 to SSE4.2", "AVX", "F16C", "FMA", "AVX-512", "PRFCHW"),
    "avx512_vnni": ("SSE3 to SSE4.2", "AVX", "F16C", "FMA", "AVX-512", "PRFCHW", "VNNI"),
    "avx512_bf16": ("SSE3 to SSE4.2", "AVX", "F16C", "FMA", "AVX-512", "PRFCHW", "VNNI", "AVX512_BF16"),
    "amx": ("SSE3 to SSE4.2", "AVX", "F16C", "FMA", "AVX-512", "PRFCHW", "VNNI", "AVX512_BF16", "AMX"),
    "neon_dot": ("DotProd", "ARMv8.1"),
    "neon_bf16": ("DotProd", "ARMv8.1", "BF16"),
    "dispatch": ("XSAVE",),
}


def machine_of(path):
    """The machine of an object file, None if it is not for ELF."""
    head = path.read_bytes()[:20]
    return ELF_MACHINES.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None


@functools.cache
def disassembler(machine):
    """An objdump for the machine, None if there is none."""
    if own := shutil.which("objdump"):
        formats = subprocess.run([own, "--info"], capture_output=True, text=True, timeout=60).stdout
        if machine.replace("_", "-") in formats:
            return own
    return shutil.which(f"{machine}-linux-gnu-objdump")


def disassembled(path, machine):
    """The lines of an object's code, without addresses."""
    command = [disassembler(machine), "-d", "--no-show-raw-insn", "--no-addresses", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def beyond(text, machine, owner):
    """The instructions that an object of this owner, a target or a file, must not hold: {set: some of them}."""
    mnemonics = set(re.findall(r"^\t(?:(?:lock|repn?z?|notrack|bnd|data16|cs) )*([a-z][\w.]*)", text, re.MULTILINE))
    found = {}
    for name, (names, elsewhere) in SETS[machine].items():
        if name in ALLOWED.get(owner, ()):
            continue
        bad = {word for word in mnemonics if re.fullmatch(names, word)}
        bad |= set(re.findall(elsewhere, text)) if elsewhere else set()
        if bad:
            found[name] = sorted(bad)[:5]
    return found


def test_each_instruction_has_its_owner():
    assert beyond("\tvaddps %ymm1,%ymm2,%ymm3\n\tret\n", "x86_64", "portable") == {"AVX": ["vaddps"]}
    assert beyond("\tlock xadd %eax,(%rdi)\n\tvpaddd %zmm1,%zmm1,%zmm1\n", "x86_64", "avx2") == {"AVX-512": ["%zmm"]}
    assert beyond("\tvpdpbusd %zmm1,%zmm1,%zmm1\n", "x86_64", "avx512") == {"VNNI": ["vpdpbusd"]}
    assert beyond("\tsdot\tv0.4s, v1.16b, v2.4b[0]\n", "aarch64", "neon") == {"DotProd": ["sdot"]}
    assert beyond("\tfadd\tv0.8h, v1.8h, v2.8h\n", "aarch64", "neon_bf16") == {"FP16": ["\tfadd\tv0.8h"]}
    assert not beyond("\tfcvtl\tv0.4s, v1.4h\n\tfmla\tv0.4s, v1.4s, v2.s[0]\n", "aarch64", "neon")


@pytest.mark.skipif("-march" in _targets.flags or "-mavx" in _targets.flags, reason="built for another baseline")
def test_no_instruction_is_beyond_the_baseline_of_its_object():
    """Of the latest build for each machine; takes half a second for each target."""
    objects = {}
    for note in sorted(BUILD.glob("*/kernels.txt"), key=lambda path: path.stat().st_mtime):  # the build's last file
        kernels = [(path.parents[4].name, path) for path in note.parent.glob(f"*/{KERNELS}/*/*.o")]
        others = [(path.stem, path) for path in note.parent.glob(f"{KERNELS}/*/*.o")]
        modules = [(path.stem, path) for path in note.parent.glob("build/cython/fastattn/**/*.o")]
        machine = kernels and machine_of(kernels[0][1])
        if machine and disassembler(machine):
            objects[machine] = kernels + others + modules
    if not objects:
        pytest.skip("needs objdump, and a build in this checkout")
    found = {
        str(path): beyond(disassembled(path, machine), machine, owner)
        for machine, paths in objects.items()
        for owner, path in paths
    }
    assert not {path: bad for path, bad in found.items() if bad}
