"""Options of SentenceEncoder.encode and its relatives: prompts, sizes, precisions, streams, similarity."""

import itertools
import weakref

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import SentenceEncoder, quantize_embeddings
from fastattn.models.precision import PRECISIONS
from fastattn.models.units import unit
from support.encoders import TEXTS, modules, random_encoder

DEFAULTS = "config_sentence_transformers.json"
PROMPTS = {"query": "ask. ", "document": "say. ", "passage": "pass. ", "other": "oh, "}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a prompt for everything."""
    return saved(tmp_path_factory.mktemp("model"), {"prompts": PROMPTS, "default_prompt_name": "other"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same without prompts."""
    return saved(tmp_path_factory.mktemp("plain"), {})


def saved(folder, defaults, files=None):
    return SentenceEncoder.from_pretrained(random_encoder("bert").save(folder, {DEFAULTS: defaults} | (files or {})))


def behind(prompt, texts=TEXTS):
    return [prompt + text for text in texts]


# Prompts


@pytest.mark.parametrize(("method", "options", "prompt"), [
    ("encode", {}, "oh, "),
    ("encode", {"prompt": ""}, ""),
    ("encode", {"prompt": "a b "}, "a b "),
    ("encode", {"prompt_name": "passage"}, "pass. "),
    ("encode_query", {}, "ask. "),
    ("encode_query", {"prompt": "a b "}, "a b "),
    ("encode_query", {"prompt_name": "other"}, "oh, "),
    ("encode_document", {}, "say. "),
    ("encode_document", {"prompt": ""}, ""),
    ("encode_document", {"prompt_name": "passage"}, "pass. "),
])  # fmt: skip
def test_prompts(model, plain, method, options, prompt):
    expected = plain.encode(behind(prompt))
    np.testing.assert_array_equal(getattr(model, method)(TEXTS, **options), expected)
    np.testing.assert_array_equal(getattr(model, method)(TEXTS[0], **options), expected[0])
    if method == "encode":
        np.testing.assert_array_equal(list(model.encode_iter(TEXTS, **options)), expected)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_a_role_without_a_prompt_does_not_take_the_default_one(tmp_path, plain, method):
    """Nor that for passages."""
    prompts = {"passage": "pass. ", "other": "oh, ", "document": None}
    model = saved(tmp_path, {"prompts": prompts, "default_prompt_name": "other"})
    np.testing.assert_array_equal(getattr(model, method)(TEXTS), plain.encode(TEXTS))
    np.testing.assert_array_equal(model.encode(TEXTS, prompt_name="document"), plain.encode(TEXTS))
    np.testing.assert_array_equal(model.encode(TEXTS), plain.encode(behind("oh, ")))


@pytest.mark.parametrize("defaults", [{"default_prompt_name": "query"}, {"prompts": None}, {"prompts": {}}], ids=str)
def test_prompts_that_are_empty(tmp_path, plain, defaults):
    model = saved(tmp_path, defaults)
    np.testing.assert_array_equal(model.encode(TEXTS), plain.encode(TEXTS))
    np.testing.assert_array_equal(model.encode_query(TEXTS), plain.encode(TEXTS))


def test_each_prompt_is_excluded_by_its_own_length(tmp_path):
    """include_prompt: whichever prompt a call takes."""
    files = modules({"pooling_mode": ["lasttoken", "mean"], "include_prompt": False})
    files["tokenizer_config.json"] = {"sep_token": "[SEP]"}
    model = saved(tmp_path, {"prompts": PROMPTS, "default_prompt_name": "other"}, files)
    for options, prompt in (({}, "oh, "), ({"prompt": "a"}, "a"), ({"prompt_name": "query"}, "ask. ")):
        alone = saved(tmp_path, {"prompts": {"it": prompt}, "default_prompt_name": "it"}, files)
        np.testing.assert_array_equal(model.encode(TEXTS, **options), alone.encode(TEXTS))
    assert not np.array_equal(model.encode("word", prompt=""), model.encode("word"))


# Sizes


@pytest.mark.parametrize("own", [None, 7])
@pytest.mark.parametrize("asked", [None, 1, 9, 24])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_truncation(tmp_path, own, asked, normalize):
    """What a call asks for counts more than what the folder says; the caller's normalisation comes last."""
    model = saved(tmp_path, {"truncate_dim": own}, modules(normalize=True))
    whole = model.encode(TEXTS, normalize=normalize is None, truncate_dim=24)
    expected = whole[:, : asked or own]
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    result = model.encode(TEXTS, truncate_dim=asked, normalize=normalize)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=2e-6)
    np.testing.assert_array_equal(list(model.encode_iter(TEXTS, truncate_dim=asked, normalize=normalize)), result)
    assert model.embedding_size == (own or 24)


# Precisions


@pytest.mark.parametrize("size", [24, 13])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(plain, precision, size):
    embeddings = plain.encode(TEXTS, truncate_dim=size)
    result = plain.encode(TEXTS, truncate_dim=size, precision=precision)
    np.testing.assert_array_equal(result, quantize_embeddings(embeddings, precision))
    assert result.dtype == {"float32": np.float32, "int8": np.int8, "binary": np.int8}.get(precision, np.uint8)
    assert result.shape == (len(TEXTS), (size + 7) // 8 if "binary" in precision else size)
    nothing = plain.encode([], truncate_dim=size, precision=precision)
    assert nothing.shape == (0, result.shape[1])
    assert nothing.dtype == result.dtype


def test_precisions_by_hand():
    x = np.array([[-100, 0.5, 255], [155, 0.5, 0], [0.25, 0.5, 127.5]], np.float32)  # steps of 1, and no range
    np.testing.assert_array_equal(quantize_embeddings(x, "uint8"), [[0, 0, 255], [255, 0, 0], [100, 0, 127]])
    signed = [[-128, -128, 127], [127, -128, -128], [-28, -128, -1]]
    np.testing.assert_array_equal(quantize_embeddings(x, "int8"), signed)
    x = np.array([1, -1, 0, 2, -3, 4, 5, -6, 7], np.float32)
    np.testing.assert_array_equal(quantize_embeddings(x, "ubinary"), [0b10010110, 0b10000000])
    np.testing.assert_array_equal(quantize_embeddings(x, "binary"), [0b10010110 - 128, 0])
    np.testing.assert_array_equal(quantize_embeddings(x, "float32"), x)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges(rng, precision):
    """One embedding, and many, in the ranges of others; numbers beyond are clipped."""
    x, others = (rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 100))
    ranges = np.stack([others.min(axis=0), others.max(axis=0)])
    expected = quantize_embeddings(np.concatenate([others, x]).clip(*ranges), precision)[100:]
    for options in ({"ranges": ranges}, {"ranges": ranges.tolist()}, {"calibration_embeddings": others}):
        np.testing.assert_array_equal(quantize_embeddings(x, precision, **options), expected)
        np.testing.assert_array_equal(quantize_embeddings(x[0], precision, **options), expected[0])
        assert quantize_embeddings(x[:0], precision, **options).shape == (0, 5)


# Streams


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("ahead", [None, 1, 4])
@pytest.mark.parametrize("precision", ["float32", "binary", "ubinary"])
def test_streams(monkeypatch, plain, batch_size, ahead, precision):
    """Bit for bit the embeddings of encode, wherever the stream is cut."""
    if ahead:
        monkeypatch.setattr("fastattn.models.pipeline.TEXTS_AHEAD", ahead)
        monkeypatch.setattr("fastattn.models.pipeline.CHARACTERS_AHEAD", 10 * ahead)
    texts = TEXTS * 5
    expected = plain.encode(texts, precision=precision)
    embeddings = list(plain.encode_iter(iter(texts), batch_size=batch_size, precision=precision))
    np.testing.assert_array_equal(embeddings, expected)
    assert embeddings[0].dtype == expected.dtype
    assert list(plain.encode_iter([])) == []


def test_streams_without_an_end(plain):
    """Little is read ahead, and what was yielded is not kept."""
    read, expected = [], plain.encode([f"text {i}" for i in range(40)])

    def texts():
        for i in itertools.count():
            read.append(i)
            yield f"text {i}"

    embeddings = plain.encode_iter(texts(), batch_size=8)
    assert read == []
    first = weakref.ref(next(embeddings))
    assert first() is None
    assert len(read) == 8
    np.testing.assert_array_equal(list(itertools.islice(embeddings, 39)), expected[1:])
    assert len(read) == 40
    next(plain.encode_iter(texts()))
    assert len(read) == 40 + 1024
    next(plain.encode_iter(itertools.repeat("long " * 10_000)))


def test_a_stream_that_fails(plain):
    """What came before is there, up to what was read together."""
    embeddings = plain.encode_iter(["a", "b", "c", 7, "d"], batch_size=2)
    assert [next(embeddings).shape for _ in range(2)] == [(24,)] * 2
    with pytest.raises(TypeError, match=r"texts\[3\] must be a str, got int"):
        next(embeddings)
    with pytest.raises(StopIteration):
        next(embeddings)


# Similarity

FUNCTIONS = {
    "cosine": lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y),
    "dot": lambda x, y: x @ y,
    "euclidean": lambda x, y: -np.linalg.norm(x - y),
    "manhattan": lambda x, y: -np.abs(x - y).sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_similarity(monkeypatch, tmp_path, rng, name):
    monkeypatch.setattr("fastattn.models.similarity._ROWS_AT_ONCE", 5)
    model = saved(tmp_path, {"similarity_fn_name": name})
    assert model.similarity_fn_name == name
    x, y = rng.normal(size=(4, 24)), rng.normal(size=(13, 24))
    y[3] = x[2] + 1e-4  # where much cancels out
    expected = np.array([[FUNCTIONS[name](a, b) for b in y] for a in x])
    result = model.similarity(x.astype(np.float32), y)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model.similarity(x[1], y), result[1:2])
    np.testing.assert_array_equal(model.similarity(list(x), list(y)), result)
    for shapes in ((0, 13), (4, 0), (0, 0)):
        assert model.similarity(x[: shapes[0]], y[: shapes[1]]).shape == shapes


@pytest.mark.parametrize("defaults", [{}, {"similarity_fn_name": None}], ids=str)
def test_cosine_is_the_default(tmp_path, defaults):
    model = saved(tmp_path, defaults)
    assert model.similarity_fn_name == "cosine"
    assert model.similarity([[3, 0], [0, 0]], [-1, 1]).round(6).tolist() == [[np.float32(-0.707107)], [0]]


@pytest.mark.filterwarnings("error")
def test_cosine_of_any_length(plain, rng):
    """Squares of numbers from 1.8e19 on overflow in float32; those of other rows beside them keep their bits."""
    x = rng.normal(size=(3, 24)).astype(np.float32)
    x /= np.abs(x).max()
    for factor in (2.0**127, 2.0**64, 2.0**-30):
        mixed = x * np.array([1, factor, -factor], np.float32)[:, np.newaxis]
        np.testing.assert_array_equal(unit(mixed), unit(x) * np.array([[1], [1], [-1]]))
        assert plain.similarity(mixed, mixed).diagonal().round(5).tolist() == [1, 1, 1]
    ends = np.array([[3e38, 1e-38, -3e38], [0, 0, 0], [1e-30, 0, 0]], np.float32)
    half = np.float32(0.5**0.5)
    np.testing.assert_allclose(unit(ends), [[half, 0, -half], [0, 0, 0], [1e-18, 0, 0]], rtol=1e-6)


def test_similarity_of_bytes(plain):
    embeddings = plain.encode(TEXTS, precision="int8")
    expected = plain.similarity(embeddings.astype(np.float32), embeddings.astype(np.float32))
    np.testing.assert_array_equal(plain.similarity(embeddings, embeddings), expected)


def test_attributes_cannot_be_set(plain):
    with pytest.raises(AttributeError):
        plain.similarity_fn_name = "dot"


# What is refused

REFUSED = [
    ({"prompt": "a", "prompt_name": "query"}, ValueError, "prompt and prompt_name must not be given together"),
    ({"prompt_name": "nothing"}, ValueError, "prompt_name must be one of query, .*, other, got 'nothing'"),
    ({"prompt_name": 7}, TypeError, "prompt_name must be a str, got int"),
    ({"prompt": 7}, TypeError, "prompt must be a str, got int"),
    ({"prompt": b"ask"}, TypeError, "prompt must be a str, got bytes"),
    ({"prompt": "\ud800"}, ValueError, "prompt must be Unicode"),
    ({"truncate_dim": 0}, ValueError, "truncate_dim must be at least 1, got 0"),
    ({"truncate_dim": -1}, ValueError, "truncate_dim"),
    ({"truncate_dim": 25}, ValueError, "truncate_dim must be at most 24, the size of an embedding, got 25"),
    ({"truncate_dim": 2.0}, TypeError, "truncate_dim"),
    ({"precision": "float16"}, ValueError, "precision must be one of float32, int8, .*, got 'float16'"),
    ({"precision": None}, TypeError, "precision must be a str, got NoneType"),
    ({"normalize": "yes"}, TypeError, "normalize"),
    ({"batch_size": 0}, ValueError, "batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "encode_iter"])
def test_refused_options(model, method, options, error, message):
    """At once, also by encode_iter; and although there is nothing to do."""
    for texts in (TEXTS, []):
        with pytest.raises(error, match=message):
            getattr(model, method)(texts, **options)


@pytest.mark.parametrize("texts", ["a text", b"bytes", None, 7])
def test_streams_of_no_texts(plain, texts):
    with pytest.raises(TypeError, match=f"texts must be an iterable of str, got {type(texts).__name__}"):
        plain.encode_iter(texts)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_precisions_that_need_company(plain, precision):
    for texts in ("a", ["a"]):
        with pytest.raises(ValueError, match=f"precision '{precision}' must have the range of two embeddings or more"):
            plain.encode(texts, precision=precision)
    with pytest.raises(ValueError, match=f"float32, binary, ubinary where .* one by one, got '{precision}'"):
        plain.encode_iter(TEXTS, precision=precision)


X = np.ones((3, 4), np.float32)
REFUSED_EMBEDDINGS = [
    ((X.astype(int), "int8"), {}, TypeError, "embeddings must hold floating-point numbers, got dtype int64"),
    ((X, "int4"), {}, ValueError, "precision must be one of"),
    ((X, 8), {}, TypeError, "precision must be a str, got int"),
    ((X[0], "int8"), {}, ValueError, "must have the range of two embeddings"),
    ((X[None], "int8"), {}, ValueError, r"embeddings must have shape \(N, D\) or \(D,\), got shape \(1, 3, 4\)"),
    ((X[0, 0], "int8"), {}, ValueError, r"embeddings must have shape .* got shape \(\)"),
    (([[1.0], [1.0, 2.0]], "int8"), {}, ValueError, "embeddings must have rows of one length, got a ragged list"),
    ((X, "int8"), {"ranges": X}, ValueError, r"ranges must have shape \(2, 4\), got shape \(3, 4\)"),
    ((X, "int8"), {"ranges": [["a"]]}, TypeError, "ranges must hold numbers"),
    ((X, "int8"), {"calibration_embeddings": X[:, 1:]}, ValueError, r"calibration_embeddings must have shape \(M, 4\)"),
    ((X, "int8"), {"calibration_embeddings": X[:0]}, ValueError, r"M at least 1, got shape \(0, 4\)"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), REFUSED_EMBEDDINGS)
def test_refused_embeddings(arguments, options, error, message):
    with pytest.raises(error, match=message):
        quantize_embeddings(*arguments, **options)


@pytest.mark.parametrize(("x", "y", "error", "message"), [
    (X, X[:, 1:], ValueError, "embeddings1 and embeddings2 must have rows of one size, got 4 and 3 numbers"),
    (X[None], X, ValueError, "embeddings1 must have shape"),
    (X, X[0, 0], ValueError, "embeddings2 must have shape"),
    (X, "text", TypeError, "embeddings2 must hold numbers"),
    (X, X > 0, TypeError, "embeddings2 must hold numbers, got dtype bool"),
])  # fmt: skip
def test_refused_similarities(plain, x, y, error, message):
    with pytest.raises(error, match=message):
        plain.similarity(x, y)
