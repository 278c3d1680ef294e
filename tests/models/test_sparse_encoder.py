"""SparseEncoder: weights are those of the definition, in any batch; bad folders and arguments are refused by name."""

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import SparseEncoder, SparseVectors, sparse_vectors
from fastattn.models import splade as splade_module
from support.encoders import ACTIVATIONS, TEXTS, Encoder, modules, random_encoder, safetensors_bytes, write_json

SPLADE = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
STATIC = "sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding"
FAMILY = {"model_type": "SparseEncoder"}


def random_model(**changes):
    """A BERT with the head of a masked language model."""
    encoder = random_encoder("bert", architectures=["BertForMaskedLM"], **changes)
    rng, head = np.random.default_rng(1), "cls.predictions"
    tensors = {f"bert.{name}": x for name, x in encoder.tensors.items()} | {
        f"{head}.transform.dense.weight": rng.normal(size=(24, 24)) / 5,
        f"{head}.transform.dense.bias": rng.normal(size=24) / 5,
        f"{head}.transform.LayerNorm.weight": rng.normal(1, 0.2, 24),
        f"{head}.transform.LayerNorm.bias": rng.normal(size=24) / 5,
        f"{head}.bias": rng.normal(size=encoder.config["vocab_size"]) / 5 - 5,
    }
    return Encoder(encoder.config, {name: x.astype(np.float32) for name, x in tensors.items()})


def weights(encoder, text):
    """Of all words, in float64."""
    bare = Encoder(encoder.config, {name.removeprefix("bert."): x for name, x in encoder.tensors.items()})
    x = bare.hidden_states(bare.token_ids(text))
    x = ACTIVATIONS["gelu"](bare._linear(x, "cls.predictions.transform.dense"))
    x = bare._norm(x, "cls.predictions.transform.LayerNorm")
    logits = x @ bare._parameter("embeddings.word_embeddings.weight").T + bare._parameter("cls.predictions.bias")
    return np.log1p(np.maximum(logits, 0)).max(axis=0)


def listed(pooling=None, **fields):
    rows = [{"path": "", "type": TRANSFORMER}, {"path": "1_SpladePooling", "type": SPLADE}]
    return {
        "modules.json": rows,
        "config_sentence_transformers.json": FAMILY | fields,
        "sentence_bert_config.json": {"transformer_task": "fill-mask"},
        "1_SpladePooling/config.json": pooling or {},
    }


@pytest.fixture(scope="module")
def encoder():
    return random_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder):
    return encoder.save(tmp_path_factory.mktemp("splade"))


@pytest.fixture(scope="module")
def model(folder):
    return SparseEncoder.from_pretrained(folder)


def test_weights(model, encoder):
    pytest.importorskip("scipy")  # the results are its arrays
    expected = np.array([weights(encoder, text) for text in TEXTS])
    assert 0.1 < (expected > 0).mean() < 0.9
    found = model.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5, atol=1e-5)
    assert model.encode(TEXTS[0]).shape == (1, model.embedding_size)
    assert model.encode([]).shape == (0, model.embedding_size)


@pytest.mark.parametrize(("tokens", "words"), [(1, 1), (3, 5), (7, 64), (1000, 7)])
def test_pieces(monkeypatch, folder, model, tokens, words):
    expected = model.encode(TEXTS).toarray()
    monkeypatch.setattr(splade_module, "TOKENS", tokens)
    monkeypatch.setattr(splade_module, "WORDS", words)
    cut = SparseEncoder.from_pretrained(folder)
    np.testing.assert_array_equal(cut.encode(TEXTS).toarray(), expected)


@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("pack", [False, True])
def test_weights_do_not_depend_on_the_batch(folder, model, batch_size, pack):
    texts = TEXTS * 30
    other = SparseEncoder.from_pretrained(folder, pack=pack)
    found = other.encode(texts[::-1], batch_size=batch_size, num_threads=1).toarray()
    np.testing.assert_array_equal(found[::-1], np.tile(model.encode(TEXTS).toarray(), (30, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_types(folder, model, dtype):
    found = SparseEncoder.from_pretrained(folder, dtype).encode(TEXTS).toarray()
    np.testing.assert_allclose(found, model.encode(TEXTS).toarray(), rtol=0, atol=0.3)


def test_without_scipy(monkeypatch, model):
    pytest.importorskip("scipy")
    expected = model.encode(TEXTS)
    monkeypatch.setattr("fastattn.models.sparse_vectors.find_spec", lambda name: None)
    found = model.encode(TEXTS)
    assert isinstance(found, SparseVectors)
    assert found.shape == expected.shape
    for x, y in zip(found[:3], (expected.data, expected.indices, expected.indptr), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    np.testing.assert_array_equal(model.similarity(found, found), model.similarity(expected, expected))
    assert model.decode(found, 2) == model.decode(expected, 2)


def test_similarity_and_words(model):
    pytest.importorskip("scipy")  # the results are its arrays
    found = model.encode(["", *TEXTS])
    dense = found.toarray()
    np.testing.assert_allclose(model.similarity(found, found[:2]), dense @ dense[:2].T, rtol=1e-5)
    for row, words in zip(dense, model.decode(found, top_k=3), strict=True):
        assert [weight for _, weight in words] == sorted(row[row > 0].tolist(), reverse=True)[:3]
    size = (2, model.embedding_size)
    empty = SparseVectors(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(3, np.int64), size)
    assert not model.similarity(found, empty).any()
    assert not model.similarity(empty, found).any()
    assert model.decode(empty) == [[], []]


def test_maximum_number_of_weights(tmp_path, encoder, model):
    dense = model.encode(TEXTS).toarray()
    few = model.encode(TEXTS, max_active_dims=3).toarray()
    np.testing.assert_array_equal(few, np.where(dense >= np.sort(dense)[:, -3:-2], dense, 0))
    limited = SparseEncoder.from_pretrained(encoder.save(tmp_path, listed(max_active_dims=3)))
    assert limited.max_active_dims == 3
    np.testing.assert_array_equal(limited.encode(TEXTS).toarray(), few)
    np.testing.assert_array_equal(limited.encode(TEXTS, max_active_dims=99).toarray(), dense)


def routed(folder, encoder, **parameters):
    """Queries whose words have weights of their own, and documents of the model."""
    encoder.save(folder / "document_0_Transformer", {"sentence_bert_config.json": {"transformer_task": "fill-mask"}})
    encoder.save(folder / "query_0_SparseStaticEmbedding", {"config.json": {"frozen": True}})
    weight = np.random.default_rng(2).random(encoder.config["vocab_size"]).astype(np.float32)
    (folder / "query_0_SparseStaticEmbedding/model.safetensors").write_bytes(safetensors_bytes({"weight": weight}))
    write_json(folder, {
        "modules.json": [{"path": "", "type": "sentence_transformers.base.modules.router.Router"}],
        "config_sentence_transformers.json": FAMILY,
        "document_1_SpladePooling/config.json": {},
        "router_config.json": {
            "types": {"query_0_SparseStaticEmbedding": STATIC, "document_0_Transformer": TRANSFORMER,
                      "document_1_SpladePooling": SPLADE},
            "structure": {"query": ["query_0_SparseStaticEmbedding"],
                          "document": ["document_0_Transformer", "document_1_SpladePooling"]},
            "parameters": {"default_route": "document"} | parameters,
        },
    })  # fmt: skip
    return weight


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_progress(model, capsys, method):
    for shown in (True, False):
        getattr(model, method)(TEXTS, batch_size=2, show_progress=shown)
        assert (f"] {len(TEXTS)}/{len(TEXTS)} " in capsys.readouterr().err) == shown


def test_routes(tmp_path, encoder, model):
    weight = routed(tmp_path, encoder)
    other = SparseEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(other.encode_document(TEXTS).toarray(), model.encode(TEXTS).toarray())
    np.testing.assert_array_equal(other.encode(TEXTS).toarray(), model.encode(TEXTS).toarray())
    ids = sorted({*encoder.token_ids("abba", 100)[1:-1]})
    found = other.encode_query("abba")
    np.testing.assert_array_equal(found.indices, ids)
    np.testing.assert_array_equal(found.data, weight[ids])
    assert other.encode_query("").data.size == 0


@pytest.mark.parametrize(("parameters", "message"), [
    ({"default_route": "image"}, "router_config.json: default_route must be one of query, document, got 'image'"),
    ({"route_mappings": {"(None, 'text')": "query"}}, "router_config.json: route_mappings must be"),
])  # fmt: skip
def test_routers_refused(tmp_path, encoder, parameters, message):
    routed(tmp_path, encoder, **parameters)
    with pytest.raises(ValueError, match=message):
        SparseEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"structure": {"image": []}}, "structure must have the routes query and document, got image"),
    ({"structure": {}}, "structure must have the routes query and document, got"),
    ({"structure": []}, "structure must be an object"),
    ({"structure": {"query": ["none"]}}, "structure must list modules of types for query"),
    ({"structure": {"query": "query_0_SparseStaticEmbedding"}}, "structure must list modules of types for query"),
    ({"structure": {"query": []}}, "type must be Transformer, then .*SparseStaticEmbedding alone, got none"),
    ({"types": {"../x": STATIC}, "structure": {"query": ["../x"]}}, "router_config.json.* must be a path below"),
    ({"types": {"x": "custom.Thing"}, "structure": {"query": ["x"]}}, "type must be one of .*, got 'custom.Thing'"),
    ({"structure": {"query": ["query_0_SparseStaticEmbedding"]}}, "must hold a Transformer for queries or documents"),
])  # fmt: skip
def test_routes_refused(tmp_path, encoder, changes, message):
    routed(tmp_path, encoder)
    types = {"query_0_SparseStaticEmbedding": STATIC}
    write_json(tmp_path, {"router_config.json": {"types": types, "structure": {}, "parameters": {}} | changes})
    with pytest.raises(ValueError, match=message):
        SparseEncoder.from_pretrained(tmp_path)


def test_weights_of_other_words(tmp_path, encoder):
    routed(tmp_path, encoder)
    path = tmp_path / "query_0_SparseStaticEmbedding" / "model.safetensors"
    path.write_bytes(safetensors_bytes({"weight": np.ones(7, np.float32)}))
    with pytest.raises(ValueError, match="the routes must have one vocabulary, got sizes 7, 62"):
        SparseEncoder.from_pretrained(tmp_path)
    path.write_bytes(safetensors_bytes({"weight": np.ones((7, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"must hold the tensor weight, a vector, got \(7, 2\)"):
        SparseEncoder.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 3e38), (np.float64, 1e300)])
def test_cosine_of_any_length(dtype, largest):
    data = np.array([largest, -largest, 3, 4, 1e-30, 1e10], dtype)
    x = SparseVectors(data, np.array([0, 2, 1, 2, 0, 1]), np.array([0, 2, 2, 4, 5, 6]), (5, 3))
    half = 0.5**0.5
    expected = [[half, 0, -half], [0, 0, 0], [0, 0.6, 0.8], [1e-18, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(sparse_vectors.unit(x).toarray(), expected, rtol=1e-6)


def with_head(folder, **tensors):
    """A folder like BGE-M3's: its modules are those of dense embeddings."""
    encoder = random_encoder("roberta")
    marks = {"cls_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    encoder.save(folder, modules(normalize=True) | {
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "tokenizer_config.json": marks,
    })  # fmt: skip
    (folder / "sparse_linear.safetensors").write_bytes(safetensors_bytes(tensors))
    return encoder


HEAD = {"weight": np.random.default_rng(3).normal(size=(1, 24)).astype(np.float32), "bias": np.full(1, 9, np.float32)}


def test_weights_of_tokens(tmp_path):
    encoder = with_head(tmp_path, **HEAD)
    model = SparseEncoder.from_pretrained(tmp_path)
    expected, special = np.zeros((len(TEXTS), encoder.config["vocab_size"])), []
    for row, text in zip(expected, TEXTS, strict=True):
        ids = np.array(encoder.token_ids(text))
        found = np.maximum(encoder.hidden_states(ids) @ HEAD["weight"][0].astype(float) + HEAD["bias"], 0)
        special += found[ids < 4].tolist()
        np.maximum.at(row, ids, np.where(ids < 4, 0, found))
    assert min(max(special), expected.max()) > 0.1
    np.testing.assert_allclose(model.encode(TEXTS).toarray(), expected, rtol=1e-5, atol=1e-5)
    assert model.similarity_fn_name == "dot"


def test_heads_of_tokens_refused(tmp_path):
    with_head(tmp_path, weight=HEAD["weight"][:, :23].copy(), bias=HEAD["bias"])
    with pytest.raises(ValueError, match=r"weight must have shape \(1, 24\), got \(1, 23\)"):
        SparseEncoder.from_pretrained(tmp_path)
    (tmp_path / "sparse_linear.safetensors").rename(tmp_path / "sparse_linear.pt")
    with pytest.raises(ValueError, match=r"must hold sparse_linear.safetensors, got sparse_linear.pt, a pickle"):
        SparseEncoder.from_pretrained(tmp_path)


FOLDERS_REFUSED = {
    "no head": ({"architectures": ["BertModel"]}, {}, "architectures must name a ...ForMaskedLM, .* got BertModel"),
    "another family": ({}, listed() | {"config_sentence_transformers.json": {"model_type": "CrossEncoder"}},
                       "must be a SparseEncoder's folder, got that of a CrossEncoder"),
    "another task": ({}, listed() | {"sentence_bert_config.json": {"max_seq_length": 9}}, "transformer_task must be"),
    "another pooling": ({}, listed({"pooling_strategy": "mean"}), "pooling_strategy must be \"max\" or \"sum\""),
    "another activation": ({}, listed({"activation_function": "gelu"}), "activation_function must be \"relu\" or"),
    "another similarity": ({}, listed(similarity_fn_name="euclidean"), "similarity_fn_name must be dot or cosine"),
    "no pooling": ({}, listed() | {"modules.json": listed()["modules.json"][:1]}, "type must be Transformer, then"),
    "no number": ({}, listed(max_active_dims=0), "max_active_dims must be an int of at least 1"),
    "hostile sizes": ({"vocab_size": 2**60}, {}, "word_embeddings.weight must have shape"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "files", "message"), FOLDERS_REFUSED.values(), ids=FOLDERS_REFUSED)
def test_folders_refused(tmp_path, encoder, config, files, message):
    encoder.save(tmp_path, {"config.json": encoder.config | config} | files)
    with pytest.raises(ValueError, match=message):
        SparseEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "cls.predictions.transform.dense.weight"])
def test_missing_tensors(tmp_path, encoder, name):
    encoder.save(tmp_path, tensors={key: x for key, x in encoder.tensors.items() if key != name})
    with pytest.raises(ValueError, match=f"must hold the tensor {name}"):
        SparseEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("call", "error", "message"), [
    ({"texts": 3}, TypeError, "texts must be a str or a list of str, got int"),
    ({"texts": ["a", None]}, TypeError, r"texts\[1\] must be a str, got NoneType"),
    ({"texts": "\ud800"}, ValueError, "texts must be Unicode"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"max_active_dims": 0}, ValueError, "max_active_dims must be at least 1, got 0"),
    ({"prompt_name": "ask"}, ValueError, "prompt_name must be one of .* got 'ask'"),
])  # fmt: skip
def test_arguments_of_encode(model, call, error, message):
    with pytest.raises(error, match=message):
        model.encode(**{"texts": ["a"], **call})


def test_what_is_not_sparse(model):
    pytest.importorskip("scipy")  # the results are its arrays
    found = model.encode(TEXTS)
    with pytest.raises(TypeError, match="embeddings2 must be sparse vectors as encode returns them, got ndarray"):
        model.similarity(found, found.toarray())
    with pytest.raises(ValueError, match="embeddings must be of one size, got 62 and 61"):
        model.similarity(found, found[:, :61])
    with pytest.raises(ValueError, match=r"embeddings must have shape \(N, 62\), got shape \(9, 61\)"):
        model.decode(found[:, :61])
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        model.decode(found, 0)
