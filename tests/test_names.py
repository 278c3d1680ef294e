"""Lists of one kind of names agree: a new activation, type or operation that is missing in one of them shows here."""

import pytest

import fastattn
from fastattn import _arguments, _dtypes, reference
from fastattn.commands.measuring import accuracy, cases, formulas
from fastattn.models import architectures, bert, pooling
from fastattn.nn import TransformerEncoderLayer
from support import dtypes
from support.examples import ROOT

ACTIVATIONS = set(_arguments.ACTIVATIONS)


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


def test_models_have_activations_that_there_are():
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


def test_docstrings_name_every_type():
    for function in (fastattn.scaled_dot_product_attention, fastattn.linear, fastattn.varlen_attention):
        assert all(row.name in function.__doc__ for row in _dtypes.REALS)
    assert all(f'"{name}"' in bert.BertEncoder.from_pretrained.__doc__ for name in bert.ACTIVATIONS)


# Operations


def test_operations_are_defined_have_a_formula_and_are_checked():
    assert set(cases.OPERATIONS) == set(reference.__all__) <= set(fastattn.__all__)
    assert all(callable(getattr(formulas, name, None)) for name in reference.__all__)


def test_the_map_of_the_package_names_every_operation():
    assert [name for name in reference.__all__ if name not in fastattn.__doc__] == []
