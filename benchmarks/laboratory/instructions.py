"""Limits engines to the instructions of an older processor."""

import os

from fastattn import _runtime

#: Settings that limit oneDNN, and so PyTorch and OpenVINO, to the instructions of a target of this library.
CAP_VARIABLE = "ONEDNN_MAX_CPU_ISA"
CAPS = {"avx512_bf16": "AVX512_CORE_BF16", "avx512_vnni": "AVX512_CORE_VNNI", "avx512": "AVX512_CORE", "avx2": "AVX2"}


def cap(target):
    """Limit this process, and the engines that it starts, to the instructions of a target.

    ONNX Runtime has no such setting; its int8 matrix products use all instructions.
    """
    _runtime.use_target(target)
    os.environ |= {"FASTATTN_TARGET": target, CAP_VARIABLE: CAPS[target]}
