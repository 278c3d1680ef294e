"""What the tests of frameworks share: a small encoder; no telemetry and no network."""

import os

import pytest

# Before a framework is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false"}

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
