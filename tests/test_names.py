"""Lists of one kind of names agree: a new activation, type or operation that is missing in one of them shows here."""

import importlib
import inspect

import numpy as np
import pytest

import fastattn
from fastattn import _arguments, _dtypes, reference
from fastattn.commands.measuring import accuracy, cases, formulas
from fastattn.nn import TransformerEncoderLayer
from support import dtypes, problems
from support.examples import ROOT

ACTIVATIONS = set(_arguments.ACTIVATIONS)


@pytest.fixture
def models():
    """The package, which needs further ones."""
    for package in ("safetensors", "tokenizers"):
        pytest.importorskip(package)
    return importlib.import_module("fastattn.models")


def page(path):
    return (ROOT / path).read_text(encoding="utf-8")


# Activations: those of the kernels, kernels/abi/linear.h


def test_activations_are_defined_and_have_a_formula():
    assert set(reference._ACTIVATIONS) == set(formulas.ACTIVATIONS) == ACTIVATIONS


def test_check_tries_every_activation():
    assert {case.options.get("activation") for case in cases.AWKWARD if case.operation == "linear"} == {
        None,
        *ACTIVATIONS,
    }


def test_models_have_activations_that_there_are(models):
    architectures, pooling = models.architectures, models.pooling
    of_dense_layers = {name for name in pooling.ACTIVATIONS.values() if isinstance(name, str)}
    assert {*architectures.ACTIVATIONS.values(), *of_dense_layers} <= ACTIVATIONS


@pytest.mark.parametrize("function", [fastattn.linear, reference.linear, TransformerEncoderLayer.from_state_dict])
def test_docstrings_name_every_activation(function):
    assert {name for name in ACTIVATIONS if f'"{name}"' not in function.__doc__} == set()


def test_the_guide_names_every_activation():
    text = page("docs/guide/layers.md")
    assert {name for name in ACTIVATIONS if name not in text} == set()


# Types: the rows of _dtypes.py and of kernels/abi/types.h


def test_types_of_the_kernels_have_a_row():
    assert sorted(row.kernels for row in _dtypes.TYPES) == sorted(_arguments.KERNEL_TYPES)


def test_types_are_tested_and_judged():
    assert {str(dtype) for dtype in dtypes.ALL} == {row.name for row in _dtypes.REALS}
    assert set(accuracy.PLAUSIBLE) == {row.name for row in _dtypes.TYPES}


@pytest.mark.parametrize(
    "function", [fastattn.scaled_dot_product_attention, fastattn.varlen_attention, fastattn.linear]
)
def test_docstrings_name_every_type(function):
    assert all(row.name in function.__doc__ for row in _dtypes.REALS)


def test_models_name_every_type_that_they_load(models):
    names = {row.name for row in _dtypes.TYPES if row.activations}
    described = models.SentenceEncoder.from_pretrained.__doc__
    assert {name for name in names if f'"{name}"' not in described} == set()


# Options of attention: those of scaled_dot_product_attention


def parameters(function, *others):
    return set(inspect.signature(function).parameters) - {"self", "query", "key", "value", *others}


CALL = ("out", "return_lse", "num_threads")
OPTIONS = parameters(fastattn.scaled_dot_product_attention, *CALL)


def test_functions_have_the_same_options():
    assert parameters(fastattn.attention_weights, *CALL) == OPTIONS
    assert parameters(fastattn.varlen_attention, *CALL, "cu_seqlens_q", "cu_seqlens_k") == OPTIONS - {"attn_mask"}
    for cache in (fastattn.KVCache, fastattn.PagedKVCache):
        assert parameters(cache.attend, *CALL, "ids") == OPTIONS - {"kv_lengths"}


def test_options_are_defined_and_have_a_formula():
    assert parameters(reference._weights) == OPTIONS
    assert parameters(formulas.attention_weights, "return_lse", "matmul") == OPTIONS


def test_options_are_drawn_by_tests_and_tried_by_check():
    shape, rng = problems.Shape(2, 4, 2, 3, 5, 8, 8), np.random.default_rng(0)
    drawn = {name for kind in problems.OPTIONS.values() for name in kind(shape, np.dtype(np.float32), rng)}
    assert drawn == OPTIONS
    for operation in ("scaled_dot_product_attention", "attention_weights"):
        chosen = [case for case in cases.AWKWARD if case.operation == operation]
        assert {
            name for case in chosen for name in (*case.options, *(cases.ARRAYS[label][0] for label in case.arrays))
        } >= OPTIONS


def test_docstring_and_guide_name_every_option():
    for text in (fastattn.scaled_dot_product_attention.__doc__, page("docs/guide/attention.md")):
        assert {name for name in OPTIONS if name not in text} == set()


# Operations


def test_operations_are_defined_have_a_formula_and_are_checked():
    assert set(cases.OPERATIONS) == set(reference.__all__) <= set(fastattn.__all__)
    assert all(callable(getattr(formulas, name, None)) for name in reference.__all__)


def test_the_map_of_the_package_names_every_operation():
    assert [name for name in reference.__all__ if name not in fastattn.__doc__] == []
