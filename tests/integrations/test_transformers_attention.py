"""Models of transformers with "fastattn" as their attention: what "eager" computes, for tiny random models."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
ml_dtypes = pytest.importorskip("ml_dtypes")


from fastattn.integrations import transformers as integration

integration.register()

# Tiny random models

COMMON = {
    "vocab_size": 99, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 16}
WINDOW = {"sliding_window": 7}
MIXED = GROUPED | WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
QWEN = MIXED | {"use_sliding_window": True, "max_window_layers": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WHISPER = {
    "vocab_size": 99, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8,
    "max_source_positions": 30, "max_target_positions": 64, "init_std": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
T5 = {
    "vocab_size": 99, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": None, "decoder_start_token_id": 0, "initializer_factor": 1.0,
}  # fmt: skip
VISION = {"image_size": 16, "patch_size": 4, "num_channels": 3}

ENCODERS = {
    "BERT": ("BertModel", COMMON),
    "RoBERTa": ("RobertaModel", COMMON),
    "DistilBERT": ("DistilBertModel", {"vocab_size": 99, "dim": 48, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "ModernBERT": ("ModernBertModel", COMMON | {"local_attention": 8, "global_attn_every_n_layers": 3}),
    "CLIP text": ("CLIPTextModel", COMMON | {"eos_token_id": 98}),
}
DECODERS = {
    "GPT-2": ("GPT2LMHeadModel", {"vocab_size": 99, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128,
                                  "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": None}),
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", GROUPED | WINDOW),
    "Qwen2": ("Qwen2ForCausalLM", QWEN),
    "Qwen3": ("Qwen3ForCausalLM", QWEN),
    "Gemma2": ("Gemma2ForCausalLM", MIXED | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}),
    "Gemma3": ("Gemma3ForCausalLM", MIXED),
    "GPT-OSS": ("GptOssForCausalLM", MIXED | EXPERTS),
    "Phi": ("PhiForCausalLM", COMMON),
}  # fmt: skip
SEQ2SEQ = {"T5": ("T5ForConditionalGeneration", T5), "Whisper": ("WhisperForConditionalGeneration", WHISPER)}
PICTURES = {
    "ViT": ("ViTModel", COMMON | VISION),
    "CLIP vision": ("CLIPVisionModel", COMMON | VISION),
}


def made(case, dtype="float32"):
    """A model with random weights, with "eager" attention."""
    name, options = case
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    return cls._from_config(cls.config_class(**options), attn_implementation="eager").to(getattr(torch, dtype)).eval()


def models(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


@torch.inference_mode()
def both(model, run):
    """What `run` returns with "eager" and with "fastattn"."""
    eager = run(model)
    model.set_attn_implementation("fastattn")
    try:
        return eager, run(model)
    finally:
        model.set_attn_implementation("eager")


def assert_alike(found, expected, bound=2e-5):
    """Hidden states or logits: the largest error of a token, relative to its length."""
    found, expected = found.double(), expected.double()
    error = torch.linalg.norm(found - expected, dim=-1) / torch.linalg.norm(expected, dim=-1)
    assert error.max() <= bound


TOKENS = 21


def batch(side):
    """Token ids and the mask of a batch of three lengths, padded on a side; `side` "none" has no mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 99, (3, TOKENS), generator=generator)
    if side == "none":
        return {"input_ids": ids}
    valid = torch.arange(TOKENS) < torch.tensor([[TOKENS], [9], [15]])
    valid = valid.flip(1) if side == "left" else valid
    if side == "holes":
        valid = valid.clone()
        valid[:, 3:5] = False
    return {"input_ids": ids * valid, "attention_mask": valid.long()}


def valid_of(inputs):
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else ...


@pytest.mark.parametrize("side", ["none", "left", "right", "holes"])
@models(ENCODERS | DECODERS)
def test_padded_batches(case, side):
    inputs = batch(side)
    eager, ours = both(made(case), lambda model: model(**inputs)[0])
    assert_alike(ours[valid_of(inputs)], eager[valid_of(inputs)])


@models(PICTURES)
def test_pictures(case):
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    eager, ours = both(made(case), lambda model: model(pixel_values=pixels).last_hidden_state)
    assert_alike(ours, eager)


def seq2seq_inputs(model, side):
    if model.config.model_type == "whisper":
        return {"input_features": torch.randn(3, 8, 60, generator=torch.Generator().manual_seed(0))}
    return batch(side)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@models(SEQ2SEQ)
def test_encoders_with_decoders(case, side):
    model = made(case)
    inputs = seq2seq_inputs(model, side)
    targets = {f"decoder_{name}": x[:, :11] for name, x in batch("right").items()}
    eager, ours = both(model, lambda model: model(**inputs, **targets).logits)
    valid = targets["decoder_attention_mask"].bool()
    assert_alike(ours[valid], eager[valid])
