"""The architectures: names of configuration fields and tensors in each model_type, one row each, nothing else."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fastattn.models import positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastattn.models.positions import Reader

# hidden_act -> the activation of `fastattn.linear`.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# What gated feed-forward networks are called in the configurations of NomicBERT and Jina v2.
GATED = {"geglu": "gelu", "reglu": "relu", "swiglu": "silu"}

_BUCKETS = "relative_attention_num_buckets"

# Fields that change the computation, with the only supported value. All may be absent or null.
REQUIRED_VALUES: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "quantization_config": None,
    "relative_attention": False,  # DeBERTa
    _BUCKETS: None,
}


class Architecture(NamedTuple):
    """Our names, mapped to those of a model_type, and what its layers are made of."""

    # Field of `configuration.Configuration` -> fields of config.json; the first one that is there counts.
    fields: dict[str, tuple[str, ...]]
    defaults: dict[str, Any]  # of fields that config.json may lack
    tokenizer_class: str  # if no file names one
    layers: str  # what precedes the names of a layer's tensors; {} stands for its number
    # torch.nn.TransformerEncoderLayer's name -> tensors of a layer, both without "weight" and "bias"; several tensors
    # are stacked by rows.
    tensors: dict[str, tuple[str, ...]]
    embeddings: dict[str, str]  # argument of `embeddings.Embeddings` -> tensor, without "weight" and "bias"
    required: dict[str, Any] = REQUIRED_VALUES
    activations: dict[str, str] = ACTIVATIONS
    attention: Reader = positions.learned
    # The tensor of the biases of buckets, if the attention has such; {} stands for the number of each layer.
    position_bias: str | None = None
    skips_padding: bool = False  # positions start after the padding id, and padding is not counted
    gated: bool = False
    swapped: tuple[str, ...] = ()  # of `tensors`: the gate is the second half
    # Parts without a bias or, with a name, without one unless that field is true.
    unbiased: Mapping[str, str | None] = MappingProxyType({})
    norm: str = "layer"
    norm_first: bool = False
    lacks_first_norm: bool = False  # the first layer has no norm1
    final_norm: str | None = None  # its tensors, without "weight" and "bias"
    norm_offset: float = 0.0  # added to the weights of norms
    projects: bool = False  # embeddings are projected even if their size is the hidden size
    scales_words: bool = False  # by the square root of the hidden size


_BERT = Architecture(
    fields={
        "vocabulary": ("vocab_size",),
        "hidden": ("hidden_size",),
        "feed_forward": ("intermediate_size",),
        "layers": ("num_hidden_layers",),
        "heads": ("num_attention_heads",),
        "table_rows": ("max_position_embeddings",),
        "token_types": ("type_vocab_size",),
        "activation": ("hidden_act",),
        "norm_eps": ("layer_norm_eps",),
        "padding_id": ("pad_token_id",),
    },
    defaults={"token_types": 2, "activation": "gelu", "norm_eps": 1e-12, "padding_id": 0},
    tokenizer_class="BertTokenizer",
    layers="encoder.layer.{}.",
    tensors={
        "self_attn.in_proj_": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
        "self_attn.out_proj.": ("attention.output.dense.",),
        "norm1.": ("attention.output.LayerNorm.",),
        "linear1.": ("intermediate.dense.",),
        "linear2.": ("output.dense.",),
        "norm2.": ("output.LayerNorm.",),
    },
    embeddings={
        "words": "embeddings.word_embeddings.",
        "positions": "embeddings.position_embeddings.",
        "token_types": "embeddings.token_type_embeddings.",
        "norm": "embeddings.LayerNorm.",
    },
)
_ROBERTA = _BERT._replace(
    defaults=_BERT.defaults | {"padding_id": 1}, tokenizer_class="RobertaTokenizer", skips_padding=True
)
_DISTILBERT = _BERT._replace(
    fields={
        "vocabulary": ("vocab_size",),
        "hidden": ("dim",),
        "feed_forward": ("hidden_dim",),
        "layers": ("n_layers",),
        "heads": ("n_heads",),
        "table_rows": ("max_position_embeddings",),
        "activation": ("activation",),
        "padding_id": ("pad_token_id",),
    },
    defaults={"token_types": 0, "activation": "gelu", "norm_eps": 1e-12, "padding_id": 0},
    layers="transformer.layer.{}.",
    tensors={
        "self_attn.in_proj_": ("attention.q_lin.", "attention.k_lin.", "attention.v_lin."),
        "self_attn.out_proj.": ("attention.out_lin.",),
        "norm1.": ("sa_layer_norm.",),
        "linear1.": ("ffn.lin1.",),
        "linear2.": ("ffn.lin2.",),
        "norm2.": ("output_layer_norm.",),
    },
)
_MPNET = _ROBERTA._replace(
    defaults=_ROBERTA.defaults | {"token_types": 0},
    tokenizer_class="MPNetTokenizer",
    tensors=_BERT.tensors
    | {
        "self_attn.in_proj_": ("attention.attn.q.", "attention.attn.k.", "attention.attn.v."),
        "self_attn.out_proj.": ("attention.attn.o.",),
        "norm1.": ("attention.LayerNorm.",),
    },
    # transformers' model uses these numbers whatever config.json says.
    required=REQUIRED_VALUES | {_BUCKETS: 32, "pad_token_id": 1},
    attention=positions.mpnet,
    position_bias="encoder.relative_attention_bias.weight",
)
_ELECTRA = _BERT._replace(
    fields=_BERT.fields | {"embedding": ("embedding_size",)},
    defaults=_BERT.defaults | {"embedding": 128},
    embeddings=_BERT.embeddings | {"projection": "embeddings_project."},
)
_ALBERT = _BERT._replace(
    fields=_ELECTRA.fields | {"groups": ("num_hidden_groups",)},
    defaults=_ELECTRA.defaults | {"activation": "gelu_new", "groups": 1},
    tokenizer_class="AlbertTokenizer",
    layers="encoder.albert_layer_groups.{}.albert_layers.0.",
    tensors={
        "self_attn.in_proj_": ("attention.query.", "attention.key.", "attention.value."),
        "self_attn.out_proj.": ("attention.dense.",),
        "norm1.": ("attention.LayerNorm.",),
        "linear1.": ("ffn.",),
        "linear2.": ("ffn_output.",),
        "norm2.": ("full_layer_layer_norm.",),
    },
    embeddings=_BERT.embeddings | {"projection": "encoder.embedding_hidden_mapping_in."},
    required=REQUIRED_VALUES | {"inner_group_num": 1},
    projects=True,
)
_WITHOUT_POSITIONS = {name: x for name, x in _BERT.embeddings.items() if name != "positions"}
# The fields that say whether parts have biases.
_BIAS_FIELDS = {
    "self_attn.in_proj_": "attention_bias",
    "self_attn.out_proj.": "attention_bias",
    "linear1.": "mlp_bias",
    "linear2.": "mlp_bias",
}
_MODERNBERT = Architecture(
    fields=_BERT.fields
    | {
        "activation": ("hidden_activation",),
        "norm_eps": ("norm_eps",),
        "attention_bias": ("attention_bias",),
        "mlp_bias": ("mlp_bias",),
        "norm_bias": ("norm_bias",),
    },
    defaults={"token_types": 0, "activation": "gelu", "norm_eps": 1e-5, "padding_id": 50283},
    tokenizer_class="TokenizersBackend",
    layers="layers.{}.",
    tensors={
        "self_attn.in_proj_": ("attn.Wqkv.",),
        "self_attn.out_proj.": ("attn.Wo.",),
        "norm1.": ("attn_norm.",),
        "linear1.": ("mlp.Wi.",),
        "linear2.": ("mlp.Wo.",),
        "norm2.": ("mlp_norm.",),
    },
    embeddings={"words": "embeddings.tok_embeddings.", "norm": "embeddings.norm."},
    attention=positions.modernbert,
    gated=True,
    unbiased={
        **_BIAS_FIELDS,
        **dict.fromkeys(("norm", "norm1.", "norm2.", "final"), "norm_bias"),
    },
    norm_first=True,
    lacks_first_norm=True,
    final_norm="final_norm.",
)
_NOMIC = Architecture(
    fields={  # the names of the model's own code, which are GPT-2's, and transformers'
        "vocabulary": ("vocab_size",),
        "hidden": ("n_embd", "hidden_size"),
        "feed_forward": ("n_inner", "intermediate_size"),
        "layers": ("n_layer", "num_hidden_layers"),
        "heads": ("n_head", "num_attention_heads"),
        "table_rows": ("n_positions", "max_position_embeddings"),
        "token_types": ("type_vocab_size",),
        "activation": ("activation_function", "hidden_act"),
        "norm_eps": ("layer_norm_epsilon", "layer_norm_eps"),
        "padding_id": ("pad_token_id",),
    },
    defaults={"token_types": 2, "activation": "swiglu", "norm_eps": 1e-12, "padding_id": 0},
    tokenizer_class="BertTokenizer",
    layers="encoder.layers.{}.",
    tensors={
        "self_attn.in_proj_": ("attn.Wqkv.",),
        "self_attn.out_proj.": ("attn.out_proj.",),
        "norm1.": ("norm1.",),
        "linear1.": ("mlp.fc12.", "mlp.fc11."),
        "linear2.": ("mlp.fc2.",),
        "norm2.": ("norm2.",),
    },
    embeddings={
        "words": "embeddings.word_embeddings.",
        "token_types": "embeddings.token_type_embeddings.",
        "norm": "emb_ln.",
    },
    required=REQUIRED_VALUES
    | {
        "causal": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "num_experts": 0,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "use_rms_norm": False,
    },
    activations={"swiglu": "silu", "geglu": "gelu", **ACTIVATIONS},
    attention=positions.of_own_code(1000.0),
    gated=True,
    unbiased=dict.fromkeys(("self_attn.in_proj_", "self_attn.out_proj.", "linear1.", "linear2.")),
)
_NEW = _BERT._replace(
    tensors={
        "self_attn.in_proj_": ("attention.qkv_proj.",),
        "self_attn.out_proj.": ("attention.o_proj.",),
        "norm1.": ("attn_ln.",),
        "linear1.": ("mlp.up_gate_proj.",),
        "linear2.": ("mlp.down_proj.",),
        "norm2.": ("mlp_ln.",),
    },
    embeddings=_WITHOUT_POSITIONS,
    required=REQUIRED_VALUES
    | {
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
    },
    attention=positions.rotary(10_000.0),
    gated=True,
    swapped=("linear1.",),
    unbiased={"linear1.": None},
)
_JINA_V2 = _BERT._replace(
    fields=_BERT.fields | {"activation": ("feed_forward_type",)},
    defaults=_BERT.defaults | {"activation": "geglu"},
    tensors={
        **_BERT.tensors,
        "linear1.": ("mlp.gated_layers.",),
        "linear2.": ("mlp.wo.",),
        "norm2.": ("mlp.layernorm.",),
    },
    embeddings=_WITHOUT_POSITIONS,
    required=REQUIRED_VALUES | {"position_embedding_type": "alibi"},
    activations={name: GATED[name] for name in ("geglu", "reglu")},
    attention=positions.alibi,
    gated=True,
    unbiased={"linear1.": None},
)
_JINA_V3 = _BERT._replace(
    defaults=_BERT.defaults | {"token_types": 1, "norm_eps": 1e-5, "padding_id": 1},
    tokenizer_class="XLMRobertaTokenizer",
    layers="encoder.layers.{}.",
    tensors={
        "self_attn.in_proj_": ("mixer.Wqkv.",),
        "self_attn.out_proj.": ("mixer.out_proj.",),
        "norm1.": ("norm1.",),
        "linear1.": ("mlp.fc1.",),
        "linear2.": ("mlp.fc2.",),
        "norm2.": ("norm2.",),
    },
    embeddings=_NOMIC.embeddings,
    attention=positions.rotary(20_000.0),
)
_JINA_V3_OWN = _JINA_V3._replace(  # in the form of the model's own code
    required=REQUIRED_VALUES
    | {"position_embedding_type": "rotary", "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False},
    attention=positions.of_own_code(10_000.0),
)
_EUROBERT = Architecture(
    fields=_BERT.fields
    | {
        "norm_eps": ("rms_norm_eps",),
        "kv_heads": ("num_key_value_heads",),
        "head_dim": ("head_dim",),
        "attention_bias": ("attention_bias",),
        "mlp_bias": ("mlp_bias",),
    },
    defaults={"token_types": 0, "activation": "silu", "norm_eps": 1e-5, "padding_id": 0},
    tokenizer_class="TokenizersBackend",
    layers="layers.{}.",
    tensors={
        "self_attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "self_attn.out_proj.": ("self_attn.o_proj.",),
        "norm1.": ("input_layernorm.",),
        "linear1.": ("mlp.gate_proj.", "mlp.up_proj."),
        "linear2.": ("mlp.down_proj.",),
        "norm2.": ("post_attention_layernorm.",),
    },
    embeddings={"words": "embed_tokens."},
    attention=positions.rotary(10_000.0),
    gated=True,
    unbiased={
        **_BIAS_FIELDS,
        **dict.fromkeys(("norm1.", "norm2.", "final")),
    },
    norm="rms",
    norm_first=True,
    final_norm="norm.",
)
_HEAD_NORMS = {"self_attn.q_norm.": ("self_attn.q_norm.",), "self_attn.k_norm.": ("self_attn.k_norm.",)}
_QWEN3 = _EUROBERT._replace(
    defaults=_EUROBERT.defaults | {"norm_eps": 1e-6, "head_dim": 128},
    tokenizer_class="Qwen2Tokenizer",
    tensors=_EUROBERT.tensors | _HEAD_NORMS,
    required=REQUIRED_VALUES | {"is_causal": True, "use_sliding_window": False},
    attention=positions.rotary(10_000.0, is_causal=True),
    unbiased={**_EUROBERT.unbiased, "linear1.": None, "linear2.": None, **dict.fromkeys(_HEAD_NORMS)},
)
_GEMMA3_NORMS = {
    "norm2.": ("pre_feedforward_layernorm.",),
    "post_norm1.": ("post_attention_layernorm.",),
    "post_norm2.": ("post_feedforward_layernorm.",),
}
_GEMMA3 = _QWEN3._replace(
    fields=_EUROBERT.fields | {"activation": ("hidden_activation",)},
    defaults=_EUROBERT.defaults
    | {"activation": "gelu_pytorch_tanh", "norm_eps": 1e-6, "head_dim": 256, "kv_heads": 4, "heads": 8},
    tokenizer_class="GemmaTokenizer",
    tensors=_QWEN3.tensors | _GEMMA3_NORMS,
    required=REQUIRED_VALUES | {"attn_logit_softcapping": None},
    attention=positions.gemma3,
    unbiased=_QWEN3.unbiased | dict.fromkeys(_GEMMA3_NORMS),
    norm_offset=1.0,
    scales_words=True,
)
_T5 = Architecture(
    fields={
        "vocabulary": ("vocab_size",),
        "hidden": ("d_model",),
        "feed_forward": ("d_ff",),
        "layers": ("num_layers",),
        "heads": ("num_heads",),
        "head_dim": ("d_kv",),
        "table_rows": ("n_positions",),
        "activation": ("feed_forward_proj",),
        "norm_eps": ("layer_norm_epsilon",),
        "padding_id": ("pad_token_id",),
    },
    defaults={
        "token_types": 0,
        "head_dim": 64,
        "table_rows": 512,  # those that T5 was trained with: biases have no limit
        "activation": "relu",
        "norm_eps": 1e-6,
        "padding_id": 0,
    },
    tokenizer_class="T5Tokenizer",
    layers="encoder.block.{}.",
    tensors={
        "self_attn.in_proj_": tuple(f"layer.0.SelfAttention.{part}." for part in "qkv"),
        "self_attn.out_proj.": ("layer.0.SelfAttention.o.",),
        "norm1.": ("layer.0.layer_norm.",),
        "linear1.": ("layer.1.DenseReluDense.wi.",),
        "linear2.": ("layer.1.DenseReluDense.wo.",),
        "norm2.": ("layer.1.layer_norm.",),
    },
    embeddings={"words": "shared."},
    # The encoder of a folder is read, whether it is saved with a decoder or without.
    required={name: x for name, x in REQUIRED_VALUES.items() if name not in ("is_encoder_decoder", _BUCKETS)},
    activations={"relu": "relu"},
    attention=positions.t5,
    position_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    unbiased=dict.fromkeys((*_BERT.tensors, "final")),
    norm="rms",
    norm_first=True,
    final_norm="encoder.final_layer_norm.",
)
_T5_GATED = _T5._replace(  # T5 v1.1
    tensors=_T5.tensors | {"linear1.": ("layer.1.DenseReluDense.wi_0.", "layer.1.DenseReluDense.wi_1.")},
    activations={"gated-gelu": "gelu_tanh", "gated-silu": "silu"},
    gated=True,
)
_MT5 = _T5_GATED._replace(defaults=_T5.defaults | {"activation": "gated-gelu"})
_UMT5 = _MT5._replace(
    tokenizer_class="TokenizersBackend",
    position_bias="encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
)

ARCHITECTURES = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _ROBERTA._replace(tokenizer_class="CamembertTokenizer"),
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "eurobert": _EUROBERT,
    "gemma3_text": _GEMMA3,
    "gte": _NEW._replace(attention=positions.rotary(160_000.0)),
    "jina_embeddings_v3": _JINA_V3,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "mt5": _MT5,
    "new": _NEW,
    "nomic_bert": _NOMIC,
    "qwen3": _QWEN3,
    "roberta": _ROBERTA,
    "t5": _T5,
    "umt5": _UMT5,
    "xlm-roberta": _ROBERTA._replace(tokenizer_class="XLMRobertaTokenizer"),
}

# A table of embeddings alone, whose folder has no config.json.
STATIC = Architecture(fields={}, defaults={}, tokenizer_class="TokenizersBackend", layers="", tensors={}, embeddings={})

# (model_type, field of config.json, its value) -> the architecture of models whose model_type is another one's.
VARIANTS = {
    ("bert", "position_embedding_type", "alibi"): _JINA_V2,
    ("xlm-roberta", "position_embedding_type", "rotary"): _JINA_V3_OWN,
    **{("t5", "feed_forward_proj", name): _T5_GATED for name in _T5_GATED.activations},
}
