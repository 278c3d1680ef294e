"""Models of transformers with "fastattn" as their attention: what "eager" computes, for tiny random models."""

import os

import numpy as np
import pytest

import fastattn
from support.processes import output

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
ml_dtypes = pytest.importorskip("ml_dtypes")

from torch.autograd import forward_ad
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fastattn.integrations import transformers as integration
from fastattn.integrations._transformers_masks import CompactMask, attention_mask

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


# Generation


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"num_beams": 3}],
    ids=["dynamic cache", "static cache", "no cache", "prefill in chunks", "beams"],
)
@models(DECODERS)
def test_greedy_generation(case, options):
    model = made(case)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **options}
    eager, ours = both(model, lambda model: model.generate(**batch("left"), **settings))
    assert eager.shape == (3, TOKENS + 12)
    assert torch.equal(ours, eager)


@models(SEQ2SEQ)
def test_greedy_generation_of_seq2seq(case):
    model = made(case)
    inputs = seq2seq_inputs(model, "right")
    eager, ours = both(model, lambda model: model.generate(**inputs, max_new_tokens=12, do_sample=False))
    assert torch.equal(ours, eager)


@models({name: DECODERS[name] for name in ("Llama", "Mistral", "Gemma3", "GPT-OSS")})
def test_several_tokens_after_a_cache(case):
    """Of a dialogue, or tokens that another model proposed."""

    def run(model):
        ids, first = batch("none")["input_ids"], 13
        cache = model(ids[:, :first], use_cache=True).cache
        return model(ids[:, first:], cache=cache).logits

    eager, ours = both(made(case), run)
    assert_alike(ours, eager)


# Packed sequences

BOUNDS = torch.tensor([0, 6, 7, 21], dtype=torch.int32)
POSITIONS = torch.cat([torch.arange(n) for n in BOUNDS.diff()])[None]
LENGTHS = {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS, "max_length_q": 14, "max_length_k": 14}


@models({name: DECODERS[name] for name in ("Llama", "Mistral", "Gemma2")})
def test_packed_by_position_ids(case):
    positions = torch.stack([POSITIONS[0], torch.arange(21), POSITIONS[0].roll(14)])  # the last is no sequence from 0
    options = {"input_ids": batch("none")["input_ids"], "position_ids": positions, "use_cache": False}
    eager, ours = both(made(case), lambda model: model(**options).logits)
    assert_alike(ours, eager)


@models({name: DECODERS[name] for name in ("Llama", "Mistral", "Gemma2", "GPT-OSS")})
def test_packed_by_lengths(case):
    """What the sequences give alone. transformers' own masks do not know the lengths, nor do all read the positions."""

    def run(model):
        ids = batch("none")["input_ids"][:1]
        if model.config._attn_implementation == "fastattn":
            return model(ids, position_ids=POSITIONS, use_cache=False, **LENGTHS).logits
        return torch.cat([model(ids[:, i:j]).logits for i, j in BOUNDS.unfold(0, 2, 1)], dim=1)

    alone, packed = both(made(case), run)
    assert_alike(packed, alone)


# Masks of the user's, weights


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_the_user(kind):
    mask = torch.rand(3, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(TOKENS, dtype=torch.bool)
    bias = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    ids = batch("none")["input_ids"]

    def run(model):
        takes_bool = kind == "bool" and model.config._attn_implementation != "eager"
        return model(ids, attention_mask=mask if takes_bool else bias).logits

    eager, ours = both(made(DECODERS["Llama"]), run)
    assert_alike(ours, eager)


@pytest.mark.parametrize("options", [{}, {"position_ids": POSITIONS.expand(3, -1)}], ids=["padded", "packed"])
@models({name: DECODERS[name] for name in ("Llama", "Gemma2")} | {"BERT": ENCODERS["BERT"]})
def test_weights(case, options):
    inputs = (batch("none") | options) if options else batch("left")
    eager, ours = both(made(case), lambda model: model(**inputs, output_attentions=True).attentions)
    valid = valid_of(inputs)
    assert len(ours) == len(eager) > 0
    for found, expected in zip(ours, eager, strict=True):
        assert_alike(found.transpose(1, 2)[valid], expected.transpose(1, 2)[valid])


# Masks


def problem(queries, keys, rows=3, heads=(4, 2), size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, heads[0], queries, size), *[(rows, heads[1], keys, size)] * 2)
    return [torch.randn(shape, generator=generator) for shape in shapes]


MODULE = torch.nn.Module().eval()


def attend(query, key, value, mask, module=MODULE, **options):
    return integration.attention(module, query, key, value, mask, **options)[0]


def left_padding(valid):
    return torch.zeros(3, dtype=int) if valid is None else (valid.long().cumsum(1) == 0).sum(1)


PATTERNS = {
    "causal": lambda valid: masking_utils.causal_mask_function,
    "bidirectional": lambda valid: masking_utils.bidirectional_mask_function,
    "window": lambda valid: masking_utils.sliding_window_causal_mask_function(4),
    "window to both sides": lambda valid: masking_utils.sliding_window_bidirectional_mask_function(3),
    "chunks": lambda valid: masking_utils.chunked_causal_mask_function(5, left_padding(valid)),
    "one chunk": lambda valid: masking_utils.chunked_causal_mask_function(50, left_padding(valid)),
}

#: queries, keys, position of the first query, position of the first key
CACHES = {
    "no cache": (21, 21, 0, 0),
    "prefill": (9, 9, 0, 0),
    "static prefill": (9, 21, 0, 0),
    "later tokens": (5, 21, 16, 0),
    "static, later": (5, 21, 7, 0),
    "ring": (6, 12, 15, 9),
    "decoding": (1, 21, 20, 0),
    "static decoding": (1, 21, 11, 0),
}


@pytest.mark.parametrize("side", ["none", "all", "left", "right", "holes"])
@pytest.mark.parametrize("sizes", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_lowered_masks(pattern, sizes, side):
    """Each compact mask is the one that it stands for, and there is one where one is promised."""
    queries, keys, first, first_key = sizes
    end = first_key + keys if pattern.startswith("bidirectional") else first + queries
    valid = None
    if side != "none":
        valid = torch.ones_like(batch("none")["input_ids"]) if side == "all" else batch(side)["attention_mask"]
        valid = valid.bool()[:, :end]
    mask = attention_mask(
        3, queries, keys, torch.tensor(first), first_key, PATTERNS[pattern](valid), valid,
        allow_is_causal_skip=pattern != "bidirectional", allow_is_bidirectional_skip=pattern == "bidirectional",
    )  # fmt: skip
    real = masking_utils.sdpa_mask(
        3, queries, keys, first, first_key, PATTERNS[pattern](valid), valid, allow_is_causal_skip=False
    )
    has_to_be_real = pattern == "chunks" and (queries == 1 or (side == "holes" and first_key == 0))
    assert type(mask) is torch.Tensor if has_to_be_real else mask is None or type(mask) is CompactMask
    if type(mask) is CompactMask:
        assert mask.shape == real.shape
        assert torch.equal(mask | False, real)
        assert mask.options.get("attn_mask", np.empty(1)).size <= 3 * keys
    module = torch.nn.Module().eval()
    module.is_causal = pattern != "bidirectional"
    q, k, v = problem(queries, keys)
    rows = real.any(-1)[:, 0] if valid is None else real.any(-1)[:, 0] & valid[:, first : first + queries]
    found, expected = (attend(q, k, v, m, module)[rows] for m in (mask, real))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def other_mask_function(batch, head, query, key):
    return (query + key) % 3 != 1


UNKNOWN = {
    "of somebody else": other_mask_function,
    "a union": masking_utils.or_masks(masking_utils.causal_mask_function, other_mask_function),
    "an intersection": masking_utils.and_masks(masking_utils.causal_mask_function, other_mask_function),
    "blocks": masking_utils.or_masks(
        masking_utils.causal_mask_function, masking_utils.blockwise_overlay(torch.zeros(3, 9, dtype=int))
    ),
    "two chunkings": masking_utils.and_masks(
        *(masking_utils.chunked_overlay(n, torch.zeros(3, dtype=int)) for n in (2, 3))
    ),
    "positions alone": masking_utils.remap_positions_for_packed_sequence(
        masking_utils.causal_mask_function, torch.arange(9).flip(0).expand(3, 9)
    ),
}


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_functions_that_are_not_recognised(function):
    mask = attention_mask(3, 9, 9, mask_function=function)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, masking_utils.sdpa_mask(3, 9, 9, mask_function=function, allow_is_causal_skip=False))


def test_what_models_do_with_masks():
    """Operations get the real mask; those that leave everything as it is keep the compact one."""
    valid = batch("left")["attention_mask"].bool()
    mask = attention_mask(3, TOKENS, TOKENS, attention_mask=valid)
    real = masking_utils.sdpa_mask(3, TOKENS, TOKENS, attention_mask=valid)
    assert isinstance(mask, torch.Tensor)
    assert (mask.ndim, mask.dtype, mask.shape, mask.is_cpu) == (4, torch.bool, real.shape, True)
    for same in (mask[:, :, :, :TOKENS], mask[:, :, :, : TOKENS + 9], mask.to("cpu"), mask.bool(), mask.contiguous()):
        assert type(same) is CompactMask
        assert torch.equal(same | False, real)
    bias = torch.randn(1, 4, TOKENS, TOKENS)
    operations = (
        lambda m: m[:, :, :, 3:], lambda m: m[:, :, -5:, :], lambda m: m[:, 0], lambda m: m[..., :7], lambda m: ~m,
        lambda m: m & real, lambda m: real & m, lambda m: m.to(torch.float32), lambda m: m.expand(-1, 4, -1, -1),
        lambda m: torch.where(m, 0.0, -1.0), lambda m: bias.masked_fill(m, 1.0), lambda m: torch.cat([m, m], dim=-1),
        lambda m: m.sum(), lambda m: m.clone(), lambda m: m[torch.tensor([2, 0])], lambda m: m.repeat(2, 1, 1, 1),
    )  # fmt: skip
    for operation in operations:
        found = operation(mask)
        assert type(found) is torch.Tensor
        assert torch.equal(found, operation(real))
    assert "attn_mask" in repr(mask)


def test_positions_as_older_versions_pass_them():
    valid = batch("left")["attention_mask"].bool()
    found = attention_mask(batch_size=3, cache_position=torch.arange(16, 21), kv_length=21, attention_mask=valid)
    expected = attention_mask(3, 5, 21, 16, attention_mask=valid)
    assert (found.shape, repr(found)) == (expected.shape, repr(expected))


def test_padding_beside_a_position_bias():
    q, k, v = problem(TOKENS, TOKENS)
    bias = torch.randn(1, 4, TOKENS, TOKENS)
    for side in ("left", "right", "holes"):
        valid = batch(side)["attention_mask"].bool()
        for function in (masking_utils.causal_mask_function, PATTERNS["chunks"](valid)):
            mask = attention_mask(3, TOKENS, TOKENS, mask_function=function, attention_mask=valid)
            real = masking_utils.sdpa_mask(3, TOKENS, TOKENS, mask_function=function, attention_mask=valid)
            expected = attend(q, k, v, torch.where(real, bias, -torch.inf))
            for given in (mask, real, torch.where(real, 0.0, -torch.inf)):
                found = attend(q, k, v, given, position_bias=bias)
                torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=2e-6)


# The function itself


@pytest.mark.parametrize("is_causal", [None, True, False])
@pytest.mark.parametrize("of_module", [None, True, False])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 9), (1, 9)])
def test_causality_without_a_mask(is_causal, of_module, queries, keys):
    module = torch.nn.Module().eval()
    if of_module is not None:
        module.is_causal = of_module
    query, key, value = problem(queries, keys, heads=(4, 4))
    expected, _ = sdpa_attention_forward(module, query, key, value, None, is_causal=is_causal)
    found = attend(query, key, value, None, module, is_causal=is_causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    if is_causal is not False and of_module is not False:
        real = masking_utils.sdpa_mask(3, queries, keys, allow_is_causal_skip=False)
        assert torch.equal(attend(query, key, value, real, module, is_causal=False), attend(query, key, value, real))


@pytest.mark.parametrize("is_causal", [True, False])
def test_windows_without_a_mask(is_causal):
    q, k, v = problem(9, 9)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    mask = (distance < 3) & (distance >= 0 if is_causal else distance > -3)
    found = attend(q, k, v, None, is_causal=is_causal, sliding_window=3)
    torch.testing.assert_close(found, attend(q, k, v, mask[None, None]), rtol=0, atol=2e-6)
    assert torch.equal(attend(q, k, v, mask[None, None], sliding_window=1), attend(q, k, v, mask[None, None]))


TYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("name", TYPES)
def test_types_without_copies(name, monkeypatch):
    """fastattn gets the tensors' memory; the result has the bits of its own."""
    own, seen = fastattn.scaled_dot_product_attention, []

    def spy(*arrays, **options):
        seen.append((arrays, options))
        return own(*arrays, **options)

    monkeypatch.setattr(fastattn, "scaled_dot_product_attention", spy)
    q, k, v = (x.to(getattr(torch, name)).transpose(1, 2).contiguous().transpose(1, 2) for x in problem(7, 9))
    sinks = torch.nn.Parameter(torch.randn(4).to(q.dtype), requires_grad=False)
    found = attend(q, k, v, None, is_causal=False, scaling=0.3, softcap=2.0, s_aux=sinks)
    assert found.shape == (3, 7, 4, 8)
    assert found.is_contiguous()
    assert found.dtype == q.dtype
    [(arrays, options)] = seen
    for given, tensor in zip((*arrays, options["sinks"], options["out"]), (q, k, v, sinks, found), strict=True):
        assert given.data_ptr() == tensor.data_ptr()
    expected = own(*arrays, scale=0.3, softcap=2.0, sinks=options["sinks"])
    assert expected.dtype == TYPES[name]
    np.testing.assert_array_equal(found.double().numpy(), expected.swapaxes(1, 2).astype(np.float64))


def test_shapes():
    """A value size of its own; queries that all rows share."""
    q, k, _ = problem(5, 9)
    v = torch.randn(3, 2, 9, 11)
    for query in (q, q[:1]):
        found = attend(query, k, v, None, is_causal=False)
        assert found.shape == (3, 5, 4, 11)
        torch.testing.assert_close(found, attend(query.expand(3, -1, -1, -1), k, v, None, is_causal=False))


def test_leaves_that_require_gradients():
    """Learned queries, where no gradient is recorded."""
    q, k, v = problem(5, 9)
    with torch.no_grad():
        assert torch.equal(attend(torch.nn.Parameter(q), k, v, None), attend(q, k, v, None))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@models({name: (ENCODERS | DECODERS)[name] for name in ("BERT", "Llama", "GPT-OSS")})
def test_models_in_16_bits(case, dtype):
    """At most twice as far from float32 as "eager" in the same type, as the accuracy rule says of each call."""
    inputs = batch("left")
    exact, _ = both(made(case), lambda model: model(**inputs)[0])
    eager, ours = both(made(case, dtype), lambda model: model(**inputs)[0])
    valid = valid_of(inputs)
    assert ours.dtype == getattr(torch, dtype)
    errors = [torch.linalg.norm((x - exact)[valid].float()) for x in (ours, eager)]
    assert errors[0] <= 2 * errors[1]


def test_compiled_models():
    """The attention itself stays out of the graphs."""
    model = made(DECODERS["Llama"])
    model.set_attn_implementation("fastattn")
    inputs = batch("left")
    with torch.inference_mode():
        compiled = torch.compile(model, backend="eager")(**inputs, use_cache=False).logits
        assert_alike(compiled[valid_of(inputs)], model(**inputs, use_cache=False).logits[valid_of(inputs)])


# What is refused


def test_training_and_gradients():
    model = made(DECODERS["Llama"])
    model.set_attn_implementation("fastattn")
    ids = batch("none")["input_ids"]
    with pytest.raises(ValueError, match=r"no gradients: call the model under torch.inference_mode\(\)"):
        model(ids)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        model.train()(ids)


@pytest.mark.parametrize("learned", [{"s_aux": (4,)}, {"position_bias": (1, 4, 5, 9)}])
def test_learned_options(learned):
    """Their gradients are not lost either."""
    [(name, shape)] = learned.items()
    x = torch.nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match="no gradients"):
        attend(*problem(5, 9), None, **{name: x})
    with torch.no_grad():
        attend(*problem(5, 9), None, **{name: x})


def test_tangents():
    """Of forward-mode differentiation."""
    q, k, v = problem(5, 9)
    with forward_ad.dual_level():
        expected = attend(q, k, v, None)
        for part in range(3):
            parts = [forward_ad.make_dual(x, x) if n == part else x for n, x in enumerate((q, k, v))]
            with pytest.raises(ValueError, match="no derivatives, got a dual tensor"):
                attend(*parts, None)
    assert torch.equal(attend(q, k, v, None), expected)


Q, K, V = problem(5, 5)
REFUSED = {
    "dropout": ({"dropout": 0.1}, ValueError, "dropout must be 0, .* got 0.1"),
    "device": ({"query": Q.to("meta")}, ValueError, "query must be an array that NumPy can share"),
    "device of a mask": ({"mask": torch.ones(1, 1, 5, 5, device="meta")}, ValueError, "attn_mask must be an array"),
    "dtype": ({"key": K.to(torch.float8_e4m3fn)}, TypeError, "key must be .* torch.float8_e4m3fn"),
    "dtype of a mask": ({"mask": torch.ones(1, 1, 5, 5, dtype=int)}, TypeError, "attn_mask must .* int64"),
    "sparse keys": ({"block_indices": torch.ones(1)}, TypeError, "does not know these options .*: block_indices"),
    "a number": ({"tree": 3, "cache_position": 1}, TypeError, "does not know these options of attention: tree"),
    "shape of a mask": ({"mask": torch.ones(1, 1, 5, 4) > 0}, ValueError, "attn_mask"),
    "a compact mask": ({"mask": attention_mask(3, 5, 7, 2)}, ValueError, r"attention_mask must have \(5, 5\) queries"),
    "one cu_seq_lens": ({"cu_seq_lens_q": BOUNDS}, ValueError, "and cu_seq_lens_k must be given together"),
    "packed rows": ({"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS}, ValueError, "needs a query of shape"),
    "packed with a mask": (
        {"query": Q[:1], "key": K[:1], "value": V[:1], "mask": torch.ones(1, 1, 5, 5) > 0,
         "cu_seq_lens_q": torch.tensor([0, 5]), "cu_seq_lens_k": torch.tensor([0, 5])},
        ValueError, "cu_seq_lens_q cannot be combined with an attention_mask",
    ),
    "packed weights": (
        {"query": Q[:1], "key": K[:1], "value": V[:1], "output_attentions": True,
         "cu_seq_lens_q": torch.tensor([0, 5]), "cu_seq_lens_k": torch.tensor([0, 5])},
        ValueError, "output_attentions=True cannot be combined with cu_seq_lens_q",
    ),
    "window": ({"softcap": -1.0}, ValueError, "softcap"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(wrong, error, message):
    arguments = {"query": Q, "key": K, "value": V, "mask": None} | wrong
    with pytest.raises(error, match=message):
        attend(**arguments)


def test_options_that_say_nothing():
    arguments = {"indices": None, "block_indices": None, "use_cache": True, "position_ids": POSITIONS, "tree": False}
    assert torch.equal(attend(Q, K, V, None, **arguments), attend(Q, K, V, None))


def test_only_this_module_imports_them():
    code = "import sys, fastattn.integrations; print({'torch', 'transformers'} & set(sys.modules))"
    assert output(code) == "set()"
