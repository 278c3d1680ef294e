"""StaticEmbedding against sentence-transformers, as it saves them and as Model2Vec does."""

import os
import sys

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from ml_dtypes import bfloat16
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from fastattn.models import SentenceEncoder
from support import encoders

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(62, 20)).astype(np.float32)
WEIGHTS, ROWS, EIGHT_BITS = RNG.random(62), RNG.integers(0, 30, 62), RNG.integers(-127, 127, (30, 20)).astype(np.int8)


def saved(folder, *after, tokenizer=None, **options):
    first = modules.StaticEmbedding(tokenizer or encoders.tokenizer(), embedding_weights=TABLE.copy())
    SentenceTransformer(modules=[first, *after], device="cpu", **options).save_pretrained(str(folder))
    return folder


def tensors(folder):
    return next(path for path in folder.rglob("model.safetensors") if "Dense" not in path.parent.name)


def model2vec(folder, **content):
    """A folder as Model2Vec saves it: the module's files are in the folder itself, Normalize has none."""
    folder.mkdir(exist_ok=True)
    encoders.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "model.safetensors").write_bytes(encoders.safetensors_bytes(content))
    kinds = {"StaticEmbedding": ".", "Normalize": "1_Normalize"}
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    encoders.write_json(folder, {"modules.json": rows, "config.json": config})
    return folder


def assert_alike(folder, texts=encoders.TEXTS, **options):
    # In float64: in float32, torch's mean of 5000 rows is off by 1e-5.
    model, peer = SentenceEncoder.from_pretrained(folder), SentenceTransformer(str(folder), device="cpu").double()
    np.testing.assert_allclose(model.encode(texts, **options), peer.encode(texts, **options), rtol=0, atol=1e-6)
    return model


@pytest.mark.parametrize("after", [
    [],
    [modules.Normalize()],
    [modules.Dense(20, 12), modules.Normalize()],
], ids=["alone", "normalised", "dense"])  # fmt: skip
def test_embeddings(tmp_path, after):
    model = assert_alike(saved(tmp_path, *after))
    size = 12 if len(after) == 2 else 20
    assert (model.num_layers, model.num_heads, model.hidden_size, model.embedding_size) == (0, 0, 20, size)
    assert model.max_length == sys.maxsize
    text = "the cat sat on the mat. " * 200
    assert model.tokenize(text)["input_ids"].shape == (1, len(text))
    assert_alike(tmp_path, [text])


def test_empty_text(tmp_path):
    assert not SentenceEncoder.from_pretrained(saved(tmp_path)).encode("").any()


def test_prompts_and_truncation(tmp_path):
    tokenizer = encoders.tokenizer()
    tokenizer.enable_truncation(7, direction="left")
    tokenizer.enable_padding()
    folder = saved(tmp_path, tokenizer=tokenizer, prompts={"query": "Is it "}, truncate_dim=8)
    assert assert_alike(folder, prompt_name="query").max_length == 7
    assert assert_alike(folder).embedding_size == 8


@pytest.mark.parametrize("content", [
    {"embeddings": TABLE},
    {"embeddings": TABLE.astype(np.float16)},
    {"embeddings": TABLE.astype(bfloat16)},
    {"embeddings": TABLE, "weights": WEIGHTS},
    {"embeddings": TABLE[:30], "mapping": ROWS},
    {"embeddings": EIGHT_BITS, "mapping": ROWS, "weights": WEIGHTS.astype(np.float32)},
], ids=["float32", "float16", "bfloat16", "weights", "mapping", "int8"])  # fmt: skip
def test_model2vec(tmp_path, content):
    assert_alike(model2vec(tmp_path, **content))


def test_model2vec_int8_alone(tmp_path):
    """sentence-transformers does not read it."""
    model = SentenceEncoder.from_pretrained(model2vec(tmp_path, embeddings=EIGHT_BITS, mapping=ROWS.astype(np.int32)))
    result = model.encode("ab")
    expected = EIGHT_BITS[ROWS[[4, 5]]].mean(axis=0)
    np.testing.assert_allclose(result, expected / np.linalg.norm(expected), rtol=0, atol=1e-6)


def test_hidden_states(tmp_path):
    model = SentenceEncoder.from_pretrained(saved(tmp_path))
    result = model([[1, 5, 7], [2, 61, 0]], [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(result[0], TABLE[[1, 5, 7]])
    np.testing.assert_array_equal(result[1], [*TABLE[[2, 61]], np.zeros(20)])
    tokens = model.tokenize(["ab", "c"])
    np.testing.assert_array_equal(tokens["input_ids"], [[4, 5], [6, 0]])
    np.testing.assert_array_equal(model(**tokens)[0], TABLE[[4, 5]])
    with pytest.raises(ValueError, match="input_ids must be at least 0 and below 62"):
        model([[62]])
    with pytest.raises(ValueError, match="layer must be"):
        model.attention_map("a", 0, 0)


@pytest.mark.parametrize(("content", "message"), [
    ({"other": TABLE}, "must hold the tensor embedding.weight, a matrix, got none"),
    ({"embedding.weight": TABLE[0]}, r"must hold the tensor embedding.weight, a matrix, got \(20,\)"),
    ({"embedding.weight": TABLE, "mapping": ROWS}, "must hold no tensor mapping beside embedding.weight"),
    ({"embeddings": TABLE, "other": ROWS}, "must hold no tensor other beside embeddings"),
    ({"embeddings": TABLE, "weights": WEIGHTS[:20]}, r"weights must have shape \(62,\), got \(20,\)"),
    ({"embeddings": TABLE[:9], "mapping": ROWS}, "mapping must hold rows from 0 to 8, got 0 to 29"),
    ({"embeddings": TABLE[:29], "mapping": ROWS}, "mapping must hold rows from 0 to 28, got 0 to 29"),
    ({"embeddings": TABLE, "mapping": -ROWS}, "mapping must hold rows from 0 to 61, got -29 to 0"),
    ({"embeddings": TABLE, "mapping": WEIGHTS}, "mapping must be one of I32, I64, got F64"),
])  # fmt: skip
def test_refused_tensors(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(model2vec(tmp_path, **content))


@pytest.mark.parametrize("after", [["Pooling"], ["StaticEmbedding"], ["Normalize", "Normalize"]])
def test_refused_modules(tmp_path, after):
    model2vec(tmp_path, embeddings=TABLE)
    kinds = ["StaticEmbedding", *after]
    rows = [{"path": ".", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    encoders.write_json(tmp_path, {"modules.json": rows})
    with pytest.raises(ValueError, match=f"StaticEmbedding in place of the first two, got {', '.join(kinds)}"):
        SentenceEncoder.from_pretrained(tmp_path)
