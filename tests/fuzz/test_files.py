"""Whatever somebody made of a file, it is refused by name or it works: no crash, no memory that the file does not have
bytes for, nothing opened outside of a model's folder."""

import contextlib
import functools
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

import fastattn
from fastattn.models import CrossEncoder, MultiVectorEncoder, SentenceEncoder, SparseEncoder
from support import encoders, jina3, model_folders, tokenizer_folders
from support.fuzzing import count, fuzzed, silent

TEXTS = ["ab", "The cat sat.", ""]
PAIRS = [("ab", "The cat sat."), ("", "a")]

# The files have some kilobytes: whoever takes this much memory does so because a number in them says so. A bound for
# the process's addresses; it has no meaning where a sanitizer reserves all of them.
ALLOWED = 1 << 29
BOUNDED = sys.platform.startswith("linux") and "LD_PRELOAD" not in os.environ


@contextlib.contextmanager
def bounded_memory():
    """An allocation of more than ALLOWED is a MemoryError, or ends the process."""
    if not BOUNDED:
        yield
        return
    import resource

    former = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ALLOWED, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


# What is opened while a model is read. A hook cannot be removed: it looks where it is told to.
_opened = []
_watched = [""]


def _watch(event, arguments):
    if event == "open" and _watched[0] and isinstance(arguments[0], str | bytes):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(_watched[0]):
            _opened.append(path)


sys.addaudithook(_watch)


@contextlib.contextmanager
def inside(folder):
    """Nothing beside this folder is opened, in the one that holds it."""
    _watched[0] = str(folder.parent)
    _opened.clear()
    try:
        yield
    finally:
        _watched[0] = ""
    outside = [path for path in _opened if not path.startswith(f"{folder}{os.sep}")]
    assert not outside, outside


# Models: how a folder is made, and what is done with it


def _modules(folder):
    encoder = encoders.random_encoder("bert")
    encoder.save(folder, encoders.modules(dense=1, normalize=True) | {
        "config_sentence_transformers.json": {"prompts": {"query": "ask: "}, "default_prompt_name": "query",
                                              "similarity_fn_name": "dot", "truncate_dim": 3},
        "sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": True},
        "tokenizer_config.json": {"model_max_length": 30, "mask_token": "a", "truncation_side": "left",
                                  "added_tokens_decoder": {"61": {"content": "zz", "special": False}}},
    })  # fmt: skip
    encoders.add_dense(folder, 2, np.ones((4, 24), np.float32), None, encoders.TANH)


def _shards(folder):
    encoders.save_shards(encoders.random_encoder("roberta"), folder)


def _classifier(folder):
    encoder = encoders.random_encoder("distilbert", architectures=["DistilBertForSequenceClassification"])
    heads = {"pre_classifier": 24, "classifier": 2}
    more = {f"{name}.weight": np.ones((rows, 24), np.float32) for name, rows in heads.items()}
    more |= {f"{name}.bias": np.ones(rows, np.float32) for name, rows in heads.items()}
    encoder.save(folder, tensors=encoder.tensors | more)


def _splade(folder):
    encoder = encoders.random_encoder("distilbert", architectures=["DistilBertForMaskedLM"])
    more = {"vocab_transform": 24, "vocab_projector": 62}
    tensors = {f"{name}.weight": np.ones((rows, 24), np.float32) for name, rows in more.items()}
    tensors |= {f"{name}.bias": np.ones(rows, np.float32) for name, rows in (more | {"vocab_layer_norm": 24}).items()}
    names = ("transformer.Transformer", "splade_pooling.SpladePooling")
    rows = [
        {"path": path, "type": f"sentence_transformers.{name}"}
        for path, name in zip(("", "1_SpladePooling"), names, strict=True)
    ]
    encoder.save(folder, {
        "modules.json": rows, "1_SpladePooling/config.json": {"pooling_strategy": "max"},
        "config_sentence_transformers.json": {"model_type": "SparseEncoder", "max_active_dims": 9},
        "sentence_bert_config.json": {"transformer_task": "fill-mask"},
    }, tensors=encoder.tensors | tensors | {"vocab_layer_norm.weight": np.ones(24, np.float32)})  # fmt: skip


def _colbert(folder):
    encoder = encoders.random_encoder("bert", architectures=["HF_ColBERT"])
    metadata = {"query_maxlen": 8, "doc_maxlen": 20, "mask_punctuation": True, "attend_to_mask_tokens": True}
    tensors = encoder.tensors | {"linear.weight": np.ones((5, 24), np.float32)}
    encoder.save(
        folder, {"artifact.metadata": json.dumps(metadata), "tokenizer_config.json": {"mask_token": "a"}}, tensors
    )


def _static(folder):
    folder.mkdir()
    encoders.tokenizer().save(str(folder / "tokenizer.json"))
    tensors = {
        "embeddings": np.ones((9, 5), np.int8),
        "mapping": np.arange(62) % 9,
        "weights": np.ones(62, np.float32),
    }
    (folder / "model.safetensors").write_bytes(encoders.safetensors_bytes(tensors))
    kinds = {"StaticEmbedding": ".", "Normalize": "1_Normalize"}
    rows = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    encoders.write_json(folder, {"modules.json": rows, "config.json": {"model_type": "model2vec"}})


def _masked(folder):
    """Many vectors by sentence-transformers' modules: a dense layer, and what is dropped of documents."""
    kinds = ("Transformer", "Dense", "MultiVectorMask", "Normalize")
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    rows = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in zip(paths, kinds, strict=True)
    ]
    of_tokens, expansion = {"module_input_name": "token_embeddings"}, {"strategy": "fixed", "length": 9, "token": "a"}
    encoders.random_encoder("bert").save(folder, {
        "modules.json": rows, "3_Normalize/config.json": of_tokens,
        "2_MultiVectorMask/config.json": {"skiplist_words": [".", "a"], "keep_only_token_ids": list(range(50))},
        "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim"},
        "sentence_bert_config.json": {"query_length": 9, "document_length": 20, "query_expansion": expansion},
    })  # fmt: skip
    encoders.add_dense(folder, 1, np.ones((5, 24), np.float32), None, encoders.IDENTITY)
    dense = json.loads((folder / "1_Dense/config.json").read_text())
    encoders.write_json(folder, {"1_Dense/config.json": dense | of_tokens})


def _pylate(folder):
    fields = {"query_prefix": "[Q] ", "document_prefix": "a", "query_length": 8, "document_length": 20}
    more = {"skiplist_words": ["."], "attend_to_expansion_tokens": True, "similarity_fn_name": "MaxSim"}
    rows = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    encoders.random_encoder("bert").save(folder, {
        "modules.json": [*rows, {"path": "1_Dense", "type": "pylate.models.Dense.Dense"}],
        "config_sentence_transformers.json": {"model_type": "ColBERT"} | fields | more,
        "tokenizer_config.json": {"mask_token": "a"},
    })  # fmt: skip
    encoders.add_dense(folder, 1, np.ones((5, 24), np.float32), None, encoders.IDENTITY)


def _router(folder):
    """Queries whose words have weights of their own, and documents of a model."""
    _splade(folder / "a")
    (folder / "a/modules.json").unlink()
    encoders.random_encoder("bert").save(folder / "c", {"config.json": {"frozen": True}})
    (folder / "c/model.safetensors").write_bytes(encoders.safetensors_bytes({"weight": np.ones(62, np.float32)}))
    names = {"a": "Transformer", "b": "SpladePooling", "c": "SparseStaticEmbedding"}
    encoders.write_json(folder, {
        "modules.json": [{"path": "", "type": "sentence_transformers.models.Router"}],
        "config_sentence_transformers.json": {"model_type": "SparseEncoder"}, "b/config.json": {},
        "router_config.json": {
            "types": {path: f"sentence_transformers.models.{name}" for path, name in names.items()},
            "structure": {"query": ["c"], "document": ["a", "b"]}, "parameters": {"default_route": "document"},
        },
    })  # fmt: skip


def _bge_m3(folder):
    marks = {"cls_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    files = encoders.modules(normalize=True) | {"tokenizer_config.json": marks}
    encoders.random_encoder("roberta").save(folder, files)
    for name, rows in {"sparse_linear": 1, "colbert_linear": 5}.items():
        tensors = {"weight": np.ones((rows, 24), np.float32), "bias": np.ones(rows, np.float32)}
        (folder / f"{name}.safetensors").write_bytes(encoders.safetensors_bytes(tensors))


class _OfATask:
    """A model with an adapter for each task."""

    from_pretrained = functools.partial(SentenceEncoder.from_pretrained, task=jina3.TASKS[1])


def _tasks(folder):
    jina3.save(jina3.CONFIGURATION, jina3.random_tensors(jina3.CONFIGURATION), folder)


def _vocabulary(folder):
    tokens = tokenizer_folders.tokenizer("bert").get_vocab()
    words = "\n".join(sorted(tokens, key=tokens.get))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    tokenizer_folders.save(folder, "bert", config, {"vocab.txt": words}, tokenizer_json=False)


# What any way of scaling a rotary embedding reads.
SCALING = {
    "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 20,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "mscale": 1.0, "mscale_all_dim": 0.5,
}  # fmt: skip


def _scaled(folder, rope_type):
    model_folders.save(folder, "qwen3")
    config = json.loads((folder / "config.json").read_text())
    encoders.write_json(folder, {"config.json": config | {"rope_parameters": {"rope_type": rope_type} | SCALING}})


def _tokenizer(folder, kind):
    tokenizer_folders.save(folder, kind, {"tokenizer_class": kind} if kind.endswith("Tokenizer") else {})


def _queries(model):
    return model.encode_query(TEXTS)


def _texts(model):
    return model.encode(TEXTS)


def _both(model):
    return [model.encode_query(TEXTS), model.encode_document(TEXTS)]


MODELS = {
    "modules": (_modules, SentenceEncoder, _texts),
    "shards": (_shards, SentenceEncoder, _texts),
    "static": (_static, SentenceEncoder, _texts),
    "cross": (_classifier, CrossEncoder, lambda model: model.predict(PAIRS)),
    "sparse": (_splade, SparseEncoder, _texts),
    "many vectors": (_colbert, MultiVectorEncoder, _queries),
    "masked vectors": (_masked, MultiVectorEncoder, _both),
    "pylate": (_pylate, MultiVectorEncoder, _both),
    "router": (_router, SparseEncoder, _both),
    "weights of tokens": (_bge_m3, SparseEncoder, _texts),
    "vectors of bge-m3": (_bge_m3, MultiVectorEncoder, _texts),
    "adapters": (_tasks, _OfATask, _texts),
    "vocabulary": (_vocabulary, SentenceEncoder, _texts),
}
MODELS |= {
    kind: (lambda folder, kind=kind: model_folders.save(folder, kind), SentenceEncoder, _texts)
    for kind in model_folders.KINDS
}
MODELS |= {
    f"scaled by {kind}": (lambda folder, kind=kind: _scaled(folder, kind), SentenceEncoder, _texts)
    for kind in ("linear", "llama3", "ntk", "yarn")
}
MODELS |= {
    f"tokenizer of {kind}": (lambda folder, kind=kind: _tokenizer(folder, kind), SentenceEncoder, _texts)
    for kind in tokenizer_folders.KINDS
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder}, each made when it is first asked for."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = tmp_path_factory.mktemp("fuzzed") / "model"
            MODELS[name][0](known[name])
        return known[name]

    return get


# What is done to a file


ANYTHING = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 0.5, -0.0, 5e-324, 1e300, float("nan"), float("inf"), 2**31, 2**40,
    2**63, 10**30, "", "x", "a", "bert", "gelu", "..", "../other/config.json", "/etc/hostname", "C:\\x", "\ud800",
    "\0", "x" * 5000,
    [], [1], [None], ["mean"] * 9, [[]], {}, {"x": 1}, {"": None},
]  # fmt: skip


# Fields that may be there, or mean something elsewhere.
FIELDS = [
    "activation_function", "added_tokens_decoder", "additional_special_tokens", "architectures", "attention_bias",
    "bias", "cls_token", "config_kwargs", "default_prompt_name", "do_lower_case", "extra_special_tokens",
    "global_attn_every_n_layers", "head_dim", "id2label", "layer_norm_eps", "layer_types", "local_attention",
    "mask_token", "max_position_embeddings", "max_seq_length", "model_input_names", "model_max_length",
    "normalizer", "num_hidden_groups", "num_key_value_heads", "pad_token_id", "padding", "pooling_mode",
    "post_processor", "pre_tokenizer", "prompts", "query_length", "relative_attention_max_distance",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "sliding_window_pattern",
    "split_special_tokens", "tokenizer_args", "tokenizer_class", "truncate_dim", "truncation", "truncation_side",
    "weight_map",
]  # fmt: skip


def changed_json(draw, x):
    """The content of a JSON file with one part anywhere in it replaced, left out, repeated or called something else."""
    if not isinstance(x, dict | list) or not x or draw(st.integers(0, 29)) == 17:  # not an end, which is drawn often
        if type(x) is int and draw(st.booleans()):
            return draw(st.sampled_from([x + 1, x - 1, 2 * x, -x]))
        return draw(st.sampled_from(ANYTHING))
    at = draw(st.integers(0, len(x) - 1))
    key = list(x)[at] if isinstance(x, dict) else at
    kind = draw(st.sampled_from(["inside"] * 6 + ["new", "new", "out", "again", "other"]))
    if isinstance(x, list):
        if kind == "again":
            return x + [x[at]] * draw(st.sampled_from([1, 2, 100]))
        return [*x[:at], *([] if kind == "out" else [changed_json(draw, x[at])]), *x[at + 1 :]]
    if kind == "inside":
        return x | {key: changed_json(draw, x[key])}
    if kind == "new":
        value = draw(st.sampled_from(ANYTHING)) if draw(st.booleans()) else x[key]
        return x | {draw(st.sampled_from(FIELDS)): value}
    rest = {name: value for name, value in x.items() if name != key}
    if kind == "out":
        return rest
    other = draw(st.sampled_from([*map(str, list(x)[:20]), "", "x", "model_type", "__metadata__"]))
    return (x if kind == "again" else rest) | {other: x[key]}


def changed_bytes(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["byte"] * 4 + ["number"] * 4 + ["out", "again", "end"]))
        if kind == "byte":
            content[at : at + 1] = bytes([draw(st.sampled_from(b'0123456789"[],:{}\n\xff\0LeE-'))])
        elif kind == "number":
            number = draw(st.sampled_from([-1, 0, 1, 2**31, 2**48, 2**62, 2**63 - 1, -(2**63)]))
            content[at // 8 * 8 : at // 8 * 8 + 8] = struct.pack("<q", number)
        elif kind == "out":
            del content[at : at + draw(st.integers(1, 70))]
        elif kind == "again":
            content[at:at] = content[at : at + draw(st.integers(1, 70))]
        else:
            del content[at:]
    return bytes(content)


def changed_tensors(draw, content):
    """A file of tensors, whose header says something else, truthfully long."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(changed_json(draw, json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def change(draw, path):
    content = path.read_bytes()
    kind = draw(st.sampled_from(["structure"] * 9 + ["bytes"] * 3 + ["nothing", "link", "folder"]))
    if kind == "structure" and path.suffix == ".txt":
        kind = "bytes"
    if kind == "structure" and path.suffix == ".safetensors":
        path.write_bytes(changed_tensors(draw, content))
    elif kind == "structure":
        path.write_text(json.dumps(changed_json(draw, json.loads(content))), encoding="utf-8")
    elif kind == "bytes":
        path.write_bytes(changed_bytes(draw, content))
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to(draw(st.sampled_from(["nothing", path.name, "/dev/zero", "."])))
        elif kind == "folder":
            path.mkdir()


def taken(path, load, *arguments, **options):
    """What `load` makes of a file or folder; None if it refuses it by name."""
    try:
        return load(*arguments, **options)
    except (ValueError, FileNotFoundError) as error:
        if str(path) not in str(error):
            raise AssertionError("an error that does not name the file") from error
    return None


def all_numbers(x):
    return (
        all(map(all_numbers, x)) if isinstance(x, list) else bool(np.asarray(getattr(x, "data", x)).dtype.kind == "f")
    )


@hypothesis.given(
    st.sampled_from(sorted(MODELS)), st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.data()
)
@fuzzed(4)
def test_any_folder_of_a_model(folders, tmp_path_factory, name, dtype, data):
    """It loads and then works, or the message names the folder."""
    pristine, (_, kind, call) = folders(name), MODELS[name]
    folder = pristine.parent / "changed"
    shutil.copytree(pristine, folder)
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=2, unique=True)):
            change(data.draw, path)
        with inside(folder), bounded_memory(), silent():
            model = taken(folder, kind.from_pretrained, folder, dtype)
            if model is not None:
                with contextlib.suppress(ValueError):
                    assert all_numbers(call(model))
    finally:
        shutil.rmtree(folder)
    count("folders of models", model is not None)


# Packed weights and caches


def _cache(kind, dtype):
    rng = np.random.default_rng(0)
    if kind == "paged":
        cache = fastattn.PagedKVCache(9, 3, 2, 5, dtype=dtype)
        ids = [cache.allocate() for _ in range(2)]
        cache.append(ids, *rng.normal(size=(2, 2, 2, 4, 5)).astype(np.float32))
        cache.fork(ids[0])
        return cache
    cache = fastattn.KVCache(2, 2, 9, 5, dtype=dtype, window=4 if kind == "ring" else None)
    cache.append(*rng.normal(size=(2, 2, 2, 7, 5)).astype(np.float32), kv_lengths=[7, 3])
    return cache


def _use_cache(cache):
    query = np.ones((len(cache.lengths), 2, 1, 5), np.float64 if "float64" in repr(cache) else np.float32)
    if isinstance(cache, fastattn.PagedKVCache):
        with contextlib.suppress(fastattn.OutOfPages):
            cache.append(list(cache.lengths), query, query)
        cache.attend(list(cache.lengths), query)
    else:
        with contextlib.suppress(ValueError):  # it is full
            cache.append(query, query)
        cache.attend(query)


def _packed(kind, dtype):
    up, gate = np.random.default_rng(0).normal(size=(2, 37, 11)).astype(np.float32)
    return fastattn.pack(up, gate=gate if kind == "gated" else None, dtype=dtype)


def _use_packed(weight):
    x = np.ones((3, weight.shape[1]), np.float64 if weight.dtype == np.float64 else np.float32)
    fastattn.linear(x, weight, activation="silu" if weight.gated else None)
    weight.unpack()


MAKERS = {
    "plain": (_cache, _use_cache),
    "ring": (_cache, _use_cache),
    "paged": (_cache, _use_cache),
    "packed": (_packed, _use_packed),
    "gated": (_packed, _use_packed),
}


@hypothesis.given(
    st.sampled_from(sorted(MAKERS)),
    st.sampled_from(["float32", "float64", "bfloat16", "int8"]),
    st.sampled_from([None, "r", "c"]),
    st.data(),
)
@fuzzed(4)
def test_any_file_of_arrays(tmp_path_factory, kind, dtype, mmap_mode, data):
    make, use = MAKERS[kind]
    made, path = make(kind, dtype), tmp_path_factory.getbasetemp() / "arrays"
    made.save(path)
    path.write_bytes(changed_bytes(data.draw, path.read_bytes()))
    with bounded_memory(), silent():
        loaded = taken(path, type(made).load, path, mmap_mode=mmap_mode)
        if loaded is not None:
            use(loaded) if mmap_mode != "r" else repr(loaded)
    count("files of caches and packed weights", loaded is not None)
