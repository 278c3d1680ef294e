"""What the tests of frameworks share: a small encoder and a small cross-encoder."""

import numpy as np
import pytest

PROMPTS = {"query": "ask. ", "document": "say. "}


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A small random encoder that has prompts for queries and documents."""
    encoders = pytest.importorskip("support.encoders")
    files = encoders.modules(normalize=True) | {"config_sentence_transformers.json": {"prompts": PROMPTS}}
    return encoders.random_encoder("bert").save(tmp_path_factory.mktemp("encoder"), files)


@pytest.fixture(scope="session")
def encoder(encoder_folder):
    """The same, as fastattn reads it."""
    return pytest.importorskip("fastattn.models").SentenceEncoder.from_pretrained(encoder_folder)


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory):
    """A small random cross-encoder, in a folder named as the guide names one."""
    encoders = pytest.importorskip("support.encoders")
    encoder = encoders.random_encoder("bert", architectures=["BertForSequenceClassification"], id2label={"0": "score"})
    rng, tensors = np.random.default_rng(1), {f"bert.{name}": x for name, x in encoder.tensors.items()}
    for name, rows in (("bert.pooler.dense", 24), ("classifier", 1)):
        tensors |= {f"{name}.weight": rng.normal(size=(rows, 24)), f"{name}.bias": rng.normal(size=rows)}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    return encoder.save(tmp_path_factory.mktemp("models") / "ms-marco-MiniLM-L6-v2", tensors=tensors)


@pytest.fixture(scope="session")
def reranker(reranker_folder):
    """The same, as fastattn reads it."""
    return pytest.importorskip("fastattn.models").CrossEncoder.from_pretrained(reranker_folder)
