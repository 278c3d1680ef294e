"""MultiVectorEncoder: vectors are those of the definition, in any batch; bad folders and arguments are refused."""

import json
import string

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import MultiVectorEncoder
from fastattn.models import late_interaction as late_interaction_module
from support.encoders import (
    AS_IT_IS,
    CHARACTERS,
    IDENTITY,
    TEXTS,
    modules,
    random_encoder,
    safetensors_bytes,
    write_json,
)

PREFIX = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask."
OF_TOKENS = {"module_input_name": "token_embeddings"}
FAMILY = {"model_type": "MultiVectorEncoder"}
NAMES = {
    "Transformer": "sentence_transformers.base.modules.transformer.",
    "Dense": "sentence_transformers.base.modules.dense.",
    "MultiVectorMask": PREFIX,
    "Normalize": "sentence_transformers.base.modules.normalize.",
}


def files(kinds=("Transformer", "Dense", "MultiVectorMask", "Normalize"), *, mask=None, lengths=None, **fields):
    paths = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    rows = [{"path": path, "type": NAMES[kind] + kind} for path, kind in zip(paths, kinds, strict=True)]
    found = {"modules.json": rows, "config_sentence_transformers.json": FAMILY | fields}
    found |= {"sentence_bert_config.json": lengths or {"transformer_task": "feature-extraction"}}
    found |= {f"{path}/config.json": OF_TOKENS for path in paths if path.endswith("Normalize")}
    return found | {f"{path}/config.json": mask or {} for path in paths if path.endswith("MultiVectorMask")}


WEIGHT = np.random.default_rng(1).normal(size=(7, 24)).astype(np.float32)


def save(folder, encoder, found=None, weight=WEIGHT, **options):
    encoder.save(folder, files(**options) if found is None else found)
    dense = {"in_features": 24, "out_features": 7, "bias": False, "activation_function": IDENTITY} | OF_TOKENS
    write_json(folder, {"1_Dense/config.json": dense})
    (folder / "1_Dense/model.safetensors").write_bytes(safetensors_bytes({"linear.weight": weight}))
    return folder


def vectors(encoder, ids, kept=None):
    """Of a text's tokens, in float64."""
    x = encoder.hidden_states(ids) @ WEIGHT.T.astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x if kept is None else x[kept]


@pytest.fixture(scope="module")
def encoder():
    return random_encoder("bert")


PUNCTUATION = {"skiplist_words": list(string.punctuation)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder):
    return save(tmp_path_factory.mktemp("colbert"), encoder, mask=PUNCTUATION)


@pytest.fixture(scope="module")
def model(folder):
    return MultiVectorEncoder.from_pretrained(folder)


def test_vectors(model, encoder):
    skipped = {4 + CHARACTERS.index(x) for x in ".,!?"}
    assert model.embedding_size == 7
    for text, query, document in zip(TEXTS, model.encode_query(TEXTS), model.encode_document(TEXTS), strict=True):
        ids = encoder.token_ids(text)
        np.testing.assert_allclose(query, vectors(encoder, ids), rtol=0, atol=1e-5)
        kept = [token not in skipped for token in ids]
        np.testing.assert_allclose(document, vectors(encoder, ids, kept), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.encode_query(TEXTS[0]), model.encode_query(TEXTS)[0])
    assert model.encode([]) == model.encode_query([]) == []


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_progress(model, capsys, method):
    for shown in (True, False):
        getattr(model, method)(TEXTS, batch_size=2, show_progress=shown)
        assert (f"] {len(TEXTS)}/{len(TEXTS)} " in capsys.readouterr().err) == shown


@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("task", ["encode_query", "encode_document"])
def test_vectors_do_not_depend_on_the_batch(tmp_path, encoder, batch_size, task):
    lengths = {"query_expansion": {"strategy": "min", "length": 12, "token": "z"}}
    model = MultiVectorEncoder.from_pretrained(save(tmp_path, encoder, lengths=lengths, mask=PUNCTUATION))
    encode = getattr(model, task)
    expected = encode(TEXTS)
    for found in (encode(TEXTS[::-1], batch_size=batch_size)[::-1], encode(TEXTS, num_threads=1)):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("attended", [False, True])
def test_expansion(tmp_path, encoder, attended):
    expansion = {"strategy": "fixed", "length": 12, "token": "z", "attend": attended}
    model = MultiVectorEncoder.from_pretrained(save(tmp_path, encoder, lengths={"query_expansion": expansion}))
    assert model.query_length == 12
    assert model.document_length == model.max_length == 40
    assert {x.shape for x in model.encode_query(TEXTS)} == {(12, 7)}
    ids = encoder.token_ids("abc")
    expanded = ids + [4 + CHARACTERS.index("z")] * (12 - len(ids))
    [found] = model.encode_query(["abc"])
    if attended:
        np.testing.assert_allclose(found, vectors(encoder, expanded), rtol=0, atol=1e-5)
    else:  # what is filled in changes no vector of a word
        np.testing.assert_allclose(found[: len(ids)], vectors(encoder, ids), rtol=0, atol=1e-5)


def test_normalisation(tmp_path, encoder, model):
    kinds = ("Transformer", "Dense", "MultiVectorMask")
    plain = MultiVectorEncoder.from_pretrained(save(tmp_path, encoder, kinds=kinds))
    raw, unit = plain.encode(TEXTS[0]), plain.encode(TEXTS[0], normalize=True)
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 0.1
    np.testing.assert_array_equal(unit, model.encode_query(TEXTS[0]))


def test_normalisation_of_large_vectors(tmp_path, encoder, model):
    """Their squares overflow in float32."""
    large = MultiVectorEncoder.from_pretrained(save(tmp_path, encoder, weight=WEIGHT * np.float32(2.0**100)))
    np.testing.assert_array_equal(large.encode(TEXTS[0]), model.encode_query(TEXTS[0]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_types(folder, model, dtype):
    narrow = MultiVectorEncoder.from_pretrained(folder, dtype)
    for x, y in zip(narrow.encode(TEXTS), model.encode(TEXTS), strict=True):
        assert (x * y).sum(axis=1).min() > 0.98


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("products", [1, 100, 1 << 20])
def test_scores(tmp_path, monkeypatch, encoder, mean, products):
    monkeypatch.setattr(late_interaction_module, "AT_ONCE", products)
    fields = {"similarity_fn_name": "meanmaxsim"} if mean else {}
    model = MultiVectorEncoder.from_pretrained(save(tmp_path, encoder, **fields))
    rng = np.random.default_rng(0)
    queries, documents = ([rng.normal(size=(n, 5)).astype(np.float32) for n in lengths]
                          for lengths in ((3, 1, 0), (4, 2, 0, 9, 1)))  # fmt: skip
    scores = model.similarity(queries, documents)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            expected = -1e9 if len(document) == 0 else (query @ document.T).max(axis=1).sum()
            expected /= max(len(query), 1) if mean else 1
            assert scores[i, j] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    np.testing.assert_array_equal(model.similarity_pairwise(queries, documents[:3]), np.diag(scores[:, :3]))
    np.testing.assert_array_equal(model.similarity(queries[0], documents), scores[:1])
    assert model.similarity([], documents).shape == (0, 5)
    assert model.similarity(queries, []).shape == (3, 0)


def test_what_cannot_be_scored(model):
    x = [np.zeros((2, 3), np.float32)]
    with pytest.raises(TypeError, match="embeddings1 must be a list of arrays, got int"):
        model.similarity(3, x)
    with pytest.raises(TypeError, match=r"embeddings2\[0\] must hold floating-point numbers, got dtype int64"):
        model.similarity(x, [np.zeros((2, 3), np.int64)])
    with pytest.raises(ValueError, match=r"embeddings2\[0\] must have shape \(tokens, D\), got shape \(2,\)"):
        model.similarity(x, [np.zeros(2)])
    with pytest.raises(ValueError, match="embeddings must have vectors of one size, got 3, 4"):
        model.similarity(x, [np.zeros((2, 4))])
    with pytest.raises(ValueError, match="embeddings1 and embeddings2 must be as many, got 1 and 2"):
        model.similarity_pairwise(x, x * 2)


@pytest.mark.parametrize(("call", "error", "message"), [
    ({"texts": 3}, TypeError, "texts must be a str or a list of str, got int"),
    ({"texts": ["a", None]}, TypeError, r"texts\[1\] must be a str, got NoneType"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"normalize": "yes"}, TypeError, "normalize must be a bool, got str"),
    ({"prompt_name": "ask"}, ValueError, "prompt_name must be one of .* got 'ask'"),
])  # fmt: skip
def test_arguments_of_encode(model, call, error, message):
    with pytest.raises(error, match=message):
        model.encode_query(**{"texts": ["a"], **call})


def expansion(**fields):
    return {"lengths": {"query_expansion": {"strategy": "fixed", "length": 12, "token": "z"} | fields}}


FOLDERS_REFUSED = {
    "another family": (files(model_type="CrossEncoder"), "must be a MultiVectorEncoder's folder, got that of a Cross"),
    "no family": (files() | {"config_sentence_transformers.json": {}}, "got that of a SentenceTransformer"),
    "no modules": ({}, "must hold modules.json, or architectures in config.json must be HF_ColBERT"),
    "another order": (files(("Transformer", "MultiVectorMask", "Dense")), "type must be Transformer, then any"),
    "no mask": (files(("Transformer", "Dense")), "type must be Transformer, then any number of Dense"),
    "another similarity": (files(similarity_fn_name="cosine"), "similarity_fn_name must be maxsim or meanmaxsim"),
    "another task": (files(lengths={"transformer_task": "fill-mask"}), "transformer_task must be"),
    "ids that are none": (files(mask={"keep_only_token_ids": ["a"]}), "keep_only_token_ids must be a list of ids"),
    "words that are none": (files(mask={"skiplist_words": "abc"}), "skiplist_words must be a list of strings"),
    "a strategy": (files(**expansion(strategy="most")), "query_expansion.strategy must be fixed or min, got 'most'"),
    "a length": (files(**expansion(length=0)), "query_expansion.length must be an int of at least 1, got 0"),
    "a length of none": (files(**expansion(length=None)), "query_expansion.length must be an int"),
    "too long": (files(**expansion(length=41)), "query_expansion.length must be at most 40, the number of"),
    "memory": (files(**expansion(length=2**40)), "query_expansion.length must be an int of at most 65536, got"),
    "attention": (files(**expansion(attend=1)), "query_expansion must have a bool attend"),
    "a token": (files(**expansion(token="unknown")), "must have the token that query_expansion .* got 'unknown'"),
    "no token": (files(**expansion(token=None)), "must have the token that query_expansion .* got None"),
    "a field": (files(**expansion(width=3)), "query_expansion must hold strategy, attend, token and length"),
    "a shorter maximum": (files(lengths={"query_length": 5, **expansion()["lengths"]}), "query_length must be"),
    "a prefix": (files(query_prefix=3), "query_prefix must be a string, got 3"),
    "a document_length": (files(lengths={"document_length": 0}), "document_length must be an int of at least 1"),
}  # fmt: skip


@pytest.mark.parametrize(("found", "message"), FOLDERS_REFUSED.values(), ids=FOLDERS_REFUSED)
def test_folders_refused(tmp_path, encoder, found, message):
    save(tmp_path, encoder, found)
    with pytest.raises(ValueError, match=message):
        MultiVectorEncoder.from_pretrained(tmp_path)


def test_dense_layers_refused(tmp_path, encoder):
    save(tmp_path, encoder)
    config = {"in_features": 24, "out_features": 7, "bias": False, "activation_function": IDENTITY}
    for fields, message in (
        ({"in_features": 23}, r"linear.weight must have shape \(7, 23\), got \(7, 24\)"),
        ({"out_features": 2**60}, "linear.weight must have shape"),
        ({"activation_function": "custom.Thing"}, "activation_function must be"),
        ({"module_input_name": "sentence_embedding"}, "module_input_name must be"),
        ({"bias": True}, "must hold the tensor linear.bias"),
    ):
        write_json(tmp_path, {"1_Dense/config.json": config | fields})
        with pytest.raises(ValueError, match=message):
            MultiVectorEncoder.from_pretrained(tmp_path)
    write_json(tmp_path, {"1_Dense/config.json": config | {"in_features": 23}})
    (tmp_path / "1_Dense/model.safetensors").write_bytes(safetensors_bytes({"linear.weight": WEIGHT[:, :23].copy()}))
    with pytest.raises(ValueError, match=r"in_features of a Dense must be 24, got 23"):
        MultiVectorEncoder.from_pretrained(tmp_path)


def test_colbert_without_its_projection(tmp_path):
    encoder = random_encoder("bert", architectures=["HF_ColBERT"])
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match=r"must hold the tensor linear.weight, a matrix, got none of that name"):
        MultiVectorEncoder.from_pretrained(tmp_path)


def colbert(folder, change=None, **metadata):
    """A folder of the ColBERT repository; `change` is done to its tokenizer's JSON."""
    encoder = random_encoder("bert", architectures=["HF_ColBERT"])
    encoder.save(folder, {"artifact.metadata": json.dumps(metadata)}, encoder.tensors | {"linear.weight": WEIGHT})
    write_json(folder, {"tokenizer_config.json": AS_IT_IS | {"mask_token": "a"}})
    if change:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content["model"])
        write_json(folder, {"tokenizer.json": content})
    return folder


@pytest.mark.parametrize("mark", [" ", "\n", "\u3000"], ids=repr)
def test_marks_that_are_blank(tmp_path, mark):
    """They are text before the query, as every mark that the vocabulary does not have."""
    found = MultiVectorEncoder.from_pretrained(colbert(tmp_path, query_token_id=mark)).encode_query("abc")
    expected = MultiVectorEncoder.from_pretrained(tmp_path).encode("abc", prompt=f"{mark} ")
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1e-6)


def test_marks_that_the_tokenizer_fails_at(tmp_path):
    def change(model):
        model["vocab"]["[unused0]"], model["unk_token"] = 62, "nothing"

    with pytest.raises(ValueError, match=r"tokenizer\.json must be a tokenizer that the tokenizers library can use"):
        MultiVectorEncoder.from_pretrained(colbert(tmp_path, change))


def test_head_of_bge_m3(tmp_path):
    """Beside modules that describe dense embeddings. The first token has no vector."""
    encoder, bias = random_encoder("roberta"), np.arange(7, dtype=np.float32) / 7
    encoder.save(tmp_path, modules(normalize=True))
    path = tmp_path / "colbert_linear.safetensors"
    path.write_bytes(safetensors_bytes({"weight": WEIGHT, "bias": bias}))
    model = MultiVectorEncoder.from_pretrained(tmp_path)
    assert model.similarity_fn_name == "meanmaxsim"
    for text, query, document in zip(TEXTS, model.encode_query(TEXTS), model.encode_document(TEXTS), strict=True):
        x = encoder.hidden_states(encoder.token_ids(text))[1:] @ WEIGHT.T.astype(float) + bias
        np.testing.assert_allclose(query, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(document, query)
    path.rename(tmp_path / "colbert_linear.pt")
    with pytest.raises(ValueError, match=r"must hold colbert_linear.safetensors, got colbert_linear.pt, a pickle"):
        MultiVectorEncoder.from_pretrained(tmp_path)
