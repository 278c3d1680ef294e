"""The names of configuration fields and tensors in each model_type: one row each, nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastattn.models.position_bias import Buckets


class Architecture(NamedTuple):
    """Our names, mapped to those of a model_type."""

    fields: dict[str, str]  # field of `configuration.Configuration` -> field of config.json
    defaults: dict[str, Any]  # of fields that config.json may lack
    tokenizer_class: str  # if no file names one
    skips_padding: bool  # positions start after the padding id, and padding is not counted
    layers: str  # what precedes the number of a layer in the names of its tensors
    # torch.nn.TransformerEncoderLayer's name -> tensors of a layer, both without "weight" and "bias"; several tensors
    # are stacked by rows.
    tensors: dict[str, tuple[str, ...]]
    required: dict[str, Any] = {}  # noqa: RUF012 (a named tuple's) as REQUIRED_VALUES, which it overrules
    position_bias: Buckets | None = None  # of all layers


_BERT = Architecture(
    fields={
        "vocabulary": "vocab_size",
        "hidden": "hidden_size",
        "feed_forward": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "table_rows": "max_position_embeddings",
        "token_types": "type_vocab_size",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "padding_id": "pad_token_id",
    },
    defaults={"token_types": 2, "activation": "gelu", "norm_eps": 1e-12, "padding_id": 0},
    tokenizer_class="BertTokenizer",
    skips_padding=False,
    layers="encoder.layer",
    tensors={
        "self_attn.in_proj_": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
        "self_attn.out_proj.": ("attention.output.dense.",),
        "norm1.": ("attention.output.LayerNorm.",),
        "linear1.": ("intermediate.dense.",),
        "linear2.": ("output.dense.",),
        "norm2.": ("output.LayerNorm.",),
    },
)
_ROBERTA = _BERT._replace(
    defaults=_BERT.defaults | {"padding_id": 1}, tokenizer_class="RobertaTokenizer", skips_padding=True
)
_DISTILBERT = Architecture(
    fields={
        "vocabulary": "vocab_size",
        "hidden": "dim",
        "feed_forward": "hidden_dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "table_rows": "max_position_embeddings",
        "activation": "activation",
        "padding_id": "pad_token_id",
    },
    defaults={"token_types": 0, "activation": "gelu", "norm_eps": 1e-12, "padding_id": 0},
    tokenizer_class="BertTokenizer",
    skips_padding=False,
    layers="transformer.layer",
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
    tensors={
        "self_attn.in_proj_": ("attention.attn.q.", "attention.attn.k.", "attention.attn.v."),
        "self_attn.out_proj.": ("attention.attn.o.",),
        "norm1.": ("attention.LayerNorm.",),
        "linear1.": ("intermediate.dense.",),
        "linear2.": ("output.dense.",),
        "norm2.": ("output.LayerNorm.",),
    },
    # transformers' model uses these numbers whatever config.json says.
    required={"relative_attention_num_buckets": 32, "pad_token_id": 1},
    position_bias=Buckets("encoder.relative_attention_bias.weight", 32, 128),
)

ARCHITECTURES = {
    "bert": _BERT,
    "camembert": _ROBERTA._replace(tokenizer_class="CamembertTokenizer"),
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA._replace(tokenizer_class="XLMRobertaTokenizer"),
}

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

# Fields that change the computation, with the only supported value. All may be absent or null.
REQUIRED_VALUES = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "quantization_config": None,
    "relative_attention": False,  # DeBERTa
    "relative_attention_num_buckets": None,
}
