"""fastattn.nn beside torch.nn's classes of the same names, with the same weights; masks as the docstrings say.

`pytest -m torch` runs these alone, where PyTorch is installed.
"""

import functools

import numpy as np
import pytest

from fastattn.nn import MultiHeadAttention, TransformerEncoder, TransformerEncoderLayer
from support.dtypes import WIDE
from support.examples import run_named

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

# Of the result's size: both sides err by some roundings of their sums.
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 4e-15}

BATCH, QUERIES, KEYS = 3, 17, 23
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


@pytest.fixture(autouse=True)
def one_thread_of_theirs():
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(params=WIDE, ids=str)
def dtype(request):
    return request.param


def in_torch(x):
    """The same memory, read-only or not; what is no array as it is."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def build(cls, dtype, *arguments, **settings):
    """One of torch's modules in evaluation, every parameter random, biases and norms included."""
    module = cls(*arguments, **settings, dtype=getattr(torch, dtype.name), batch_first=True).eval()
    return with_random_parameters(module)


def with_random_parameters(module):
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.from_numpy(rng.normal(centre, spread, size=parameter.shape)))
    return module


def weights_of(module, prefix=""):
    return {prefix + name: x.numpy() for name, x in module.state_dict().items()}


def call(module, *arrays, **options):
    with torch.inference_mode():
        found = module(*map(in_torch, arrays), **{name: in_torch(x) for name, x in options.items()})
    return tuple(x if x is None else x.numpy() for x in found) if isinstance(found, tuple) else found.numpy()


def normal(dtype, *shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_equal_but_for_rounding(result, expected):
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    error = np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))
    assert error <= TOLERANCE[expected.dtype]


# Attention


@pytest.mark.parametrize(("embed", "heads"), [(8, 1), (64, 4), (90, 6), (384, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_self_attention(dtype, embed, heads, bias):
    theirs = build(torch.nn.MultiheadAttention, dtype, embed, heads, bias=bias)
    ours = MultiHeadAttention.from_state_dict(weights_of(theirs), num_heads=heads, bias=bias)
    x = normal(dtype, BATCH, QUERIES, embed)
    expected, _ = call(theirs, x, x, x, need_weights=False)
    assert_equal_but_for_rounding(ours(x), expected)


@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (40, None), (None, 24), (40, 24), (64, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention(dtype, kdim, vdim, bias):
    """`in_proj_weight` and, where keys or values have another size, separate projections."""
    theirs = build(torch.nn.MultiheadAttention, dtype, 64, 4, bias=bias, kdim=kdim, vdim=vdim)
    ours = MultiHeadAttention.from_state_dict(weights_of(theirs), num_heads=4, bias=bias)
    query = normal(dtype, BATCH, QUERIES, 64)
    key, value = (normal(dtype, BATCH, KEYS, size or 64, seed=i) for i, size in ((2, kdim), (3, vdim)))
    expected, weights = call(theirs, query, key, value, average_attn_weights=False)
    assert_equal_but_for_rounding(ours(query, key, value), expected)
    assert_equal_but_for_rounding(ours.attention_weights(query, key), weights)


def bools(*shape):
    """True where PyTorch hides; every query sees the first key."""
    hidden = np.random.default_rng(4).random(shape) < 0.4
    hidden[..., 0] = False
    return hidden


def padding(lengths=(23, 9, 1)):
    return np.arange(KEYS) >= np.array(lengths)[:, None]


# PyTorch's arguments, and what MultiHeadAttention's docstring says they are here.
MASKS = {
    "bool": lambda dtype: ({"attn_mask": (m := bools(QUERIES, KEYS))}, {"attn_mask": ~m}),
    "bool by head": lambda dtype: (
        {"attn_mask": (m := bools(BATCH * 4, QUERIES, KEYS))},
        {"attn_mask": ~m.reshape(BATCH, 4, QUERIES, KEYS)},
    ),
    "float": lambda dtype: ({"attn_mask": (m := normal(dtype, QUERIES, KEYS))}, {"attn_mask": m}),
    "float by head": lambda dtype: (
        {"attn_mask": (m := normal(dtype, BATCH * 4, QUERIES, KEYS))},
        {"attn_mask": m.reshape(BATCH, 4, QUERIES, KEYS)},
    ),
    "padding anywhere": lambda dtype: (
        {"key_padding_mask": (m := bools(BATCH, KEYS))},
        {"attn_mask": ~m[:, None, None, :]},
    ),
    "padding": lambda dtype: ({"key_padding_mask": (m := padding())}, {"kv_lengths": (~m).sum(-1)}),
    "bool and padding": lambda dtype: (
        {"attn_mask": (m := bools(QUERIES, KEYS)), "key_padding_mask": (p := padding())},
        {"attn_mask": ~m, "kv_lengths": (~p).sum(-1)},
    ),
    "causal": lambda dtype: (
        {"attn_mask": np.triu(np.ones((QUERIES, KEYS), bool), 1)},
        {"is_causal": True, "q_offset": 0},
    ),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(dtype, mask):
    theirs = build(torch.nn.MultiheadAttention, dtype, 64, 4)
    ours = MultiHeadAttention.from_state_dict(weights_of(theirs), num_heads=4)
    query, key = normal(dtype, BATCH, QUERIES, 64), normal(dtype, BATCH, KEYS, 64, seed=2)
    in_theirs, in_ours = MASKS[mask](dtype)
    expected, weights = call(theirs, query, key, key, **in_theirs, average_attn_weights=False)
    assert_equal_but_for_rounding(ours(query, key, **in_ours), expected)
    assert_equal_but_for_rounding(ours.attention_weights(query, key, **in_ours), weights)


def test_causal_self_attention_of_padded_sequences(dtype):
    """Queries stand where their keys do, however many keys are none."""
    theirs = build(torch.nn.MultiheadAttention, dtype, 64, 4)
    ours = MultiHeadAttention.from_state_dict(weights_of(theirs), num_heads=4)
    x, hidden = normal(dtype, BATCH, KEYS, 64), padding()
    causal = np.triu(np.ones((KEYS, KEYS), bool), 1)
    expected, weights = call(
        theirs, x, x, x, attn_mask=causal, key_padding_mask=hidden, is_causal=True, average_attn_weights=False
    )
    options = {"is_causal": True, "kv_lengths": (~hidden).sum(-1)}
    assert_equal_but_for_rounding(ours(x, **options), expected)
    assert_equal_but_for_rounding(ours.attention_weights(x, **options), weights)


@pytest.mark.parametrize("padded", [False, True])
def test_add_zero_attn(dtype, padded):
    """A key and a value of zeros beside the others, which padding does not hide."""
    theirs = build(torch.nn.MultiheadAttention, dtype, 64, 4, add_zero_attn=True)
    ours = MultiHeadAttention.from_state_dict(weights_of(theirs), num_heads=4, add_zero_attn=True)
    x, key = normal(dtype, BATCH, QUERIES, 64), normal(dtype, BATCH, KEYS, 64, seed=2)
    for query, others in ((x, x), (x, key)):
        padding = np.random.default_rng(3).random(others.shape[:2]) < 0.4 if padded else None
        mask = None if padding is None else ~padding[:, None, None, :]
        options = {"key_padding_mask": padding, "average_attn_weights": False}
        expected, weights = call(theirs, query, others, others, **options)
        assert_equal_but_for_rounding(ours(query, others, attn_mask=mask), expected)
        assert_equal_but_for_rounding(ours.attention_weights(query, others, mask), weights[..., :-1])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "plain"])
def test_state_dicts_of_tensors(kind, pack):
    module = build(torch.nn.MultiheadAttention, np.dtype(np.float32), 8, 2).to(kind)
    tensors, settings = module.state_dict(), {"num_heads": 2, "pack": pack}
    arrays = {name: x.float().numpy().astype(str(kind).removeprefix("torch.")) for name, x in tensors.items()}
    x = normal(np.dtype(np.float32), BATCH, QUERIES, 8)
    ours = MultiHeadAttention.from_state_dict(tensors, **settings)
    assert np.array_equal(ours(x), MultiHeadAttention.from_state_dict(arrays, **settings)(x))
    if not pack:  # its memory, not a copy
        module.out_proj.weight.detach().zero_()
        assert not ours.out_proj.weight.any()


def test_parameters_that_require_gradients_are_refused():
    named = dict(build(torch.nn.MultiheadAttention, np.dtype(np.float32), 8, 2).named_parameters())
    for x in named.values():
        x.requires_grad_()
    with pytest.raises(ValueError, match=r"out_proj\.weight must be .* got Parameter .*gradient.*\.detach\(\)"):
        MultiHeadAttention.from_state_dict(named, num_heads=2)


def test_modules_are_no_state_dicts():
    module = build(torch.nn.MultiheadAttention, np.dtype(np.float32), 8, 2)
    with pytest.raises(TypeError, match=r"mapping must be a mapping of .* got MultiheadAttention: .* state_dict\(\)"):
        MultiHeadAttention.from_state_dict(module, num_heads=2)


# Encoders


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_example():
    """That of docs/guide/layers.md runs as printed, and gives what PyTorch gives."""
    names = run_named("layers")
    trained, x = names["trained"], names["x"]
    hidden = np.arange(128) >= np.array([[128], [100]])
    expected = call(trained, x, src_key_padding_mask=hidden)
    assert_equal_but_for_rounding(names["y"][~hidden], expected[~hidden])
    causal = np.triu(np.ones((102, 102), bool), 1)
    assert_equal_but_for_rounding(names["z"], call(trained, x[:, :102], mask=causal)[:, 101:])


def layer_of(dtype, activation="relu", **settings):
    return build(torch.nn.TransformerEncoderLayer, dtype, 64, 4, 150, activation=ACTIVATIONS[activation], **settings)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_layer(dtype, norm_first, activation, bias):
    theirs = layer_of(dtype, activation, norm_first=norm_first, bias=bias, layer_norm_eps=1e-3)
    settings = {"norm_first": norm_first, "activation": activation, "bias": bias, "norm_eps": 1e-3}
    ours = TransformerEncoderLayer.from_state_dict(weights_of(theirs), num_heads=4, **settings)
    x = normal(dtype, BATCH, QUERIES, 64)
    assert_equal_but_for_rounding(ours(x), call(theirs, x))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_layer_with_rms_norms(dtype, norm_first):
    theirs = layer_of(dtype, "silu", norm_first=norm_first, bias=False)
    theirs.norm1, theirs.norm2 = (torch.nn.RMSNorm(64, eps=1e-5, dtype=getattr(torch, dtype.name)) for _ in range(2))
    with_random_parameters(theirs)
    settings = {"norm_first": norm_first, "activation": "silu", "norm": "rms", "bias": False}
    ours = TransformerEncoderLayer.from_state_dict(weights_of(theirs), num_heads=4, **settings)
    x = normal(dtype, BATCH, QUERIES, 64)
    assert_equal_but_for_rounding(ours(x), call(theirs, x))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("final_norm", [False, True], ids=["no norm", "norm"])
def test_encoder(dtype, norm_first, activation, final_norm):
    norm = torch.nn.LayerNorm(64, dtype=getattr(torch, dtype.name)) if final_norm else None
    layer = layer_of(dtype, activation, norm_first=norm_first)
    theirs = torch.nn.TransformerEncoder(layer, 4, norm=norm, enable_nested_tensor=False).eval()
    with_random_parameters(theirs)
    settings = {"num_heads": 4, "activation": activation, "norm_first": norm_first}
    ours = TransformerEncoder.from_state_dict(weights_of(theirs, "model.encoder."), "model.encoder.", **settings)
    x = normal(dtype, BATCH, KEYS, 64)
    assert_equal_but_for_rounding(ours(x), call(theirs, x))

    hidden = np.triu(np.ones((KEYS, KEYS), bool), 1)
    assert_equal_but_for_rounding(ours(x, ~hidden), call(theirs, x, mask=hidden))
    assert_equal_but_for_rounding(ours(x, is_causal=True), call(theirs, x, mask=hidden, is_causal=True))

    # What comes out of padding is of no use, and differs: PyTorch may leave it out.
    hidden = padding()
    expected = call(theirs, x, src_key_padding_mask=hidden)[~hidden]
    lengths = (~hidden).sum(-1)
    assert_equal_but_for_rounding(ours(x, kv_lengths=lengths)[~hidden], expected)
    assert_equal_but_for_rounding(ours(x, ~hidden[:, None, None, :])[~hidden], expected)
    assert_equal_but_for_rounding(ours(x[~hidden], cu_seqlens=np.cumsum([0, *lengths])), expected)
