"""Engines kept from instructions that the processor has: as if they ran on an older one."""

import os

from fastattn import _runtime

#: What keeps oneDNN, and so PyTorch and OpenVINO, from instructions that a target of this library has not.
CAP_VARIABLE = "ONEDNN_MAX_CPU_ISA"
CAPS = {"avx512_bf16": "AVX512_CORE_BF16", "avx512": "AVX512_CORE", "avx2": "AVX2"}


def cap(target):
    """Keep this process, and the engines that it starts, to the instructions of a target.

    ONNX Runtime has no such setting; its matrix products of int8 use all that there is.
    """
    _runtime.use_target(target)
    os.environ |= {"FASTATTN_TARGET": target, CAP_VARIABLE: CAPS[target]}
