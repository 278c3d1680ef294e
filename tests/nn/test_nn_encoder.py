"""TransformerEncoderLayer and TransformerEncoder against the plain definition, and against themselves."""

import functools
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import fastattn
from fastattn._arguments import ACTIVATIONS
from fastattn._runtime import on_target
from fastattn.nn import TransformerEncoder, TransformerEncoderLayer
from support.arrays import LAYOUTS, WRITABLE_LAYOUTS, assert_nothing_written_around, empty_laid_out
from support.dtypes import ALL, HALF, assert_equal
from support.nn_layers import (
    Layer,
    angles,
    answers,
    assert_as_defined,
    assert_close,
    encoder,
    encoder_layer,
    encoder_weights,
    layer_weights,
    tokens,
)
from support.problems import EVERYTHING_ELSE, OPTIONS, Shape, of_sequence, options_of
from support.targets import multiplies_and_adds_at_once

pytestmark = pytest.mark.usefixtures("one_thread")

# Every activation, with and without gate; every norm, before and after; heads as in test_nn_attention.py; odd sizes.
LAYERS = {
    "relu": Layer(),
    "gelu, pre-norm": Layer(activation="gelu", norm_first=True),
    "tanh, rms": Layer(24, 6, 2, 5, hidden=17, activation="gelu_tanh", norm="rms", bias=False),
    "silu, rms, pre-norm": Layer(33, 4, 1, 9, hidden=65, activation="silu", norm="rms", norm_first=True),
    "swiglu, rms, pre-norm": Layer(
        24, 6, 2, 5, hidden=33, activation="silu", gated=True, norm="rms", norm_first=True, bias=False
    ),
    "geglu": Layer(activation="gelu", gated=True, hidden=9),
    "reglu, pre-norm": Layer(48, 2, 2, 24, gated=True, hidden=31, norm_first=True),
    "narrow": Layer(3, 1, 1, 2, hidden=1, activation="silu", norm="rms", bias=False),
    "wide": Layer(65, 5, 5, 13, hidden=200, activation="gelu_tanh"),
    "heads normed": Layer(32, 6, 2, 8, gated=True, norm="rms", norm_first=True, bias=False, heads_normed="each"),
    "all heads normed": Layer(heads_normed="all"),
    "norms after both": Layer(  # wide, as these norms magnify rounding
        64,
        4,
        1,
        16,
        hidden=96,
        activation="gelu_tanh",
        gated=True,
        norm="rms",
        norm_first=True,
        bias=False,
        post_norms=True,
    ),
    "norms with biases after both": Layer(norm_first=True, post_norms=True, heads_normed="each"),
    "input normed": Layer(activation="gelu", gated=True, norm_first=True, attention_norm=False, bias=False),
}
POST, PRE = LAYERS["relu"], LAYERS["swiglu, rms, pre-norm"]
BOTH = pytest.mark.parametrize("layer", [POST, PRE], ids=["post-norm", "pre-norm"])


def layer_of(layer, stored, **settings):
    weights, settings = layer_weights(layer, stored), {"attention_norm": layer.attention_norm} | settings
    return TransformerEncoderLayer.from_state_dict(weights, **layer.encoder_settings | settings)


def encoder_of(layer, stored, layers=3, **settings):
    weights = encoder_weights(layer, stored, layers)
    return TransformerEncoder.from_state_dict(weights, **layer.encoder_settings | settings)


@functools.lru_cache(maxsize=512)
def _layer_answers(layer, dtype, shape, names, int8, fused):
    del fused  # part of the key, as the formulas depend on it
    call = {"x": tokens(layer, dtype, *shape)} | _options(layer, dtype, shape, names)
    return answers(encoder_layer, layer, layer_weights(layer, np.float32 if int8 else dtype), call, int8)


def _options(layer, dtype, shape, names):
    scores = Shape(shape[0], layer.heads, layer.kv_heads, shape[1], shape[1], layer.head_size, layer.head_size)
    return options_of(names, scores, dtype)


def assert_layer_accurate(layer, dtype, shape, names=(), int8=False):
    """With plain and with packed weights.

    Both give the same to the bit, but where a gate's results are rounded to 16 bits with plain weights alone, or where
    a packed gate is multiplied by its scales first, for tokens of float64.
    """
    stored, settings = (np.float32, {"dtype": "int8"}) if int8 else (dtype, {})
    known = _layer_answers(layer, dtype, shape, names, int8, multiplies_and_adds_at_once())
    results = [
        layer_of(layer, stored, **settings, pack=pack)(
            tokens(layer, dtype, *shape), **_options(layer, dtype, shape, names)
        )
        for pack in (False, True)
    ]
    for result in results:
        assert_as_defined(result, *known)
        if not (layer.gated and (int8 or dtype in HALF)):
            assert_equal(result, results[0])


# What they compute


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_layers(target, dtype, layer, int8):
    for shape in ((200, 1), (3, 17)):
        assert_layer_accurate(layer, dtype, shape, int8=int8)


@BOTH
@pytest.mark.parametrize(
    "names", [("causal", "lengths"), ("window", "float mask"), ("bool mask of keys",), EVERYTHING_ELSE], ids=", ".join
)
def test_options(target, dtype, layer, names):
    assert_layer_accurate(layer, dtype, (3, 17), names)


@BOTH
@pytest.mark.parametrize("final_norm", [True, False], ids=["norm", "no norm"])
def test_encoder(target, dtype, layer, final_norm):
    cos, sin = angles(17, 2, dtype)
    call = {"x": tokens(layer, dtype, 2, 17), "is_causal": True, "cos": cos, "sin": sin}
    weights = encoder_weights(layer, dtype, 3, final_norm)
    made = TransformerEncoder.from_state_dict(weights, **layer.encoder_settings)
    assert_as_defined(made(**call), *answers(encoder, layer, weights, call))


def per_layer(layers, pairs, dtype, positions=17):
    """Layers of two kinds in turn, as in ModernBERT: with other angles, and every other one with a window."""
    kinds = [
        dict(zip(("cos", "sin"), angles(positions, pairs, dtype), strict=True)),
        dict(zip(("cos", "sin"), angles(positions, pairs - 1, dtype), strict=True)) | {"window": (2, 2)},
    ]
    return [kinds[i % 2] for i in range(layers)]


@pytest.mark.parametrize("name", ["gelu, pre-norm", "heads normed", "norms after both", "input normed"])
def test_layers_with_options_of_their_own(target, dtype, name):
    layer = LAYERS[name]
    weights = encoder_weights(layer, dtype, 3)
    call = {"x": tokens(layer, dtype, 2, 17), "layer_options": per_layer(3, 3, dtype)}
    made = TransformerEncoder.from_state_dict(
        weights, **layer.encoder_settings, first_attention_norm=layer.attention_norm
    )
    known = answers(encoder, layer, weights, call)
    out = np.array(call["x"])
    assert_as_defined(made(**call), *known)
    assert made(**call | {"x": out}, out=out) is out
    assert_as_defined(out, *known)


def test_layers_with_options_of_their_own_packed():
    layer = LAYERS["heads normed"]
    made, x = encoder_of(layer, np.float32), tokens(layer, np.float32, 17)
    packed = made(x, cu_seqlens=[0, 5, 17], layer_options=per_layer(3, 3, np.float32))
    for start, end in ((0, 5), (5, 17)):
        alone = made(x[start:end], layer_options=per_layer(3, 3, np.float32))
        assert_equal(packed[start:end], alone)


def test_layers_with_biases_of_their_own():
    """As in umT5: a table by distance for each layer."""
    layer = LAYERS["heads normed"]
    weights, tables = encoder_weights(layer, np.float32, 3), np.random.default_rng(0).normal(size=(3, layer.heads, 5))
    biases = [{"position_bias": table} for table in tables.astype(np.float32)]
    call = {"x": tokens(layer, np.float32, 2, 17), "layer_options": biases}
    made = TransformerEncoder.from_state_dict(weights, **layer.encoder_settings)
    assert_as_defined(made(**call), *answers(encoder, layer, weights, call))


def test_a_layer_that_stands_several_times():
    made, x = encoder_of(POST, np.float32, 1), tokens(POST, np.float32, 5)
    norm, made.norm = made.norm, None
    twice = made(made(x))
    made.layers, made.norm = made.layers * 2, norm
    assert_equal(made(x), norm(twice))


WRONG_LAYER_OPTIONS = [
    ({"window": (1, 1)}, TypeError, "layer_options must be a list of dict, got dict"),
    ([None] * 3, TypeError, "layer_options must be a list of dict, got list"),
    ([{}] * 2, ValueError, "layer_options must hold one for each layer, 3, got 2"),
    ([{}, {}, {"kv_lengths": 3}], TypeError, "layer_options must hold only alibi_slopes, .* got 'kv_lengths'"),
    ([{}, {}, {"window": (-1, 1)}], ValueError, "window"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG_LAYER_OPTIONS)
def test_wrong_layer_options(given, error, message):
    made, x = encoder_of(POST, np.float32), np.array(tokens(POST, np.float32, 5))
    before = x.copy()
    with pytest.raises(error, match=message):
        made(x, layer_options=given, out=x)
    assert_equal(x, before)


def test_attention_norm_belongs_to_pre_norm():
    with pytest.raises(ValueError, match="attention_norm must be True unless norm_first is True, got False"):
        layer_of(POST, np.float32, attention_norm=False)


@pytest.mark.parametrize("size", [7, 16])
def test_sizes_of_head_norms(size):
    layer = LAYERS["heads normed"]
    weights = layer_weights(layer, np.float32) | {"self_attn.k_norm.weight": np.ones(size + 2, np.float32)}
    with pytest.raises(ValueError, match=r"k_norm\.weight must have 8 or 16 elements"):
        TransformerEncoderLayer.from_state_dict(weights, **layer.encoder_settings)


@hypothesis.given(st.sampled_from(fastattn.targets()), st.sampled_from(ALL), st.data())
def test_any_layer_is_what_the_definition_says(target, dtype, data):
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    layer = Layer(
        # A few numbers may all lie close to their mean, and a norm then magnifies their rounding.
        embed=data.draw(st.integers(8, 40)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=data.draw(st.integers(1, 12)),
        bias=data.draw(st.booleans()),
        hidden=data.draw(st.integers(1, 70)),
        activation=data.draw(st.sampled_from(ACTIVATIONS)),
        gated=data.draw(st.booleans()),
        norm=data.draw(st.sampled_from(["layer", "rms"])),
        norm_first=data.draw(st.booleans()),
        heads_normed=data.draw(st.sampled_from([None, None, "all"])),
    )
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    names = tuple(data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=2, unique=True)))
    with on_target(target):
        result = layer_of(layer, dtype)(tokens(layer, dtype, *shape), **_options(layer, dtype, shape, names))
        _, expected = _layer_answers(layer, dtype, shape, names, False, multiplies_and_adds_at_once())
    assert_close(result, expected, 64)


@BOTH
def test_encoder_is_its_layers_one_after_the_other(dtype, layer):
    made, x = encoder_of(layer, dtype), tokens(layer, dtype, 2, 17)
    expected = x
    for own in made.layers:
        expected = own(expected, is_causal=True)
    assert_equal(made(x, is_causal=True), made.norm(expected))


@BOTH
def test_layer_is_its_parts_one_after_the_other(dtype, layer):
    made, x = layer_of(layer, dtype), tokens(layer, dtype, 2, 17)

    def fed_forward(x, residual):
        hidden = made.linear1(x, activation=None if made.gate else made.activation)
        if made.gate:
            hidden = hidden * made.gate(x, activation=made.activation)
        return made.linear2(hidden, residual=residual)

    if layer.norm_first:
        expected = made.self_attn(made.norm1(x), residual=x)
        expected = fed_forward(made.norm2(expected), expected)
    else:
        expected = made.norm1(made.self_attn(x, residual=x))
        expected = made.norm2(fed_forward(expected, expected))
    assert_equal(made(x), expected)


@pytest.mark.parametrize("pack", [True, False])
def test_weights_are_those_of_the_state_dict(pack):
    """Packed, a gate is a part of the weight beside it; plain weights are not copied."""
    weights = layer_weights(PRE, np.float32)
    made = TransformerEncoderLayer.from_state_dict(weights, **PRE.encoder_settings, pack=pack)
    gate, other = np.split(weights["linear1.weight"], 2)
    if pack:
        assert made.gate is None
        assert made.linear1.weight.gated
        found = (*made.linear1.weight.unpack(), made.linear2.weight.unpack())
    else:
        found = made.linear1.weight, made.gate.weight, made.linear2.weight
        assert all(np.shares_memory(x, y) for x, y in zip(found, (other, gate, weights["linear2.weight"]), strict=True))
    for x, y in zip(found, (other, gate, weights["linear2.weight"]), strict=True):
        assert_equal(x, y)


def test_layers_of_another_target_are_refused():
    x = tokens(POST, np.float32, 2, 5)
    made = {}
    for name in fastattn.targets():
        with on_target(name):
            made[name] = encoder_of(POST, np.float32)
    for name, layers in made.items():
        for other in fastattn.targets():
            with on_target(other):
                if name == other:
                    layers(x)
                    continue
                out = np.full_like(x, 7)
                said = f"must be packed for the target in use, '{other}', got .*'{name}'"
                with pytest.raises(ValueError, match=said):
                    layers(x, out=out)
                assert (out == 7).all()


def test_norm_eps(dtype):
    """It reaches every norm: constant rows come out in its proportion."""
    layer = POST._replace(norm="rms", bias=False)
    made = encoder_of(layer, dtype, norm_eps=3.0)
    assert {norm.eps for own in made.layers for norm in (own.norm1, own.norm2)} | {made.norm.eps} == {3.0}
    x = tokens(layer, dtype, 2, 17)
    assert np.abs(made(x)).max() < np.abs(encoder_of(layer, dtype)(x)).max()


def test_attributes_and_repr():
    made = encoder_of(PRE, np.float16)
    assert made.dtype == made.layers[0].dtype == np.float16
    assert repr(made) == (
        "TransformerEncoder(3 x TransformerEncoderLayer(24, num_heads=6, dim_feedforward=33, gated=True, "
        "activation='silu', norm_first=True, weights=float16), RMSNorm)"
    )
    assert encoder_of(POST, np.float64, dtype="int8").dtype == np.float32


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("factor", [2.0**70, 2.0**-70])
def test_norms_of_rows_whose_squares_float32_does_not_hold(target, norm, factor):
    """A layer of zeros, whose residuals alone reach both norms: its input's magnitude makes no difference."""
    entries = {
        "self_attn.in_proj_weight": np.zeros((48, 16)),
        "self_attn.out_proj.weight": np.zeros((16, 16)),
        "linear1.weight": np.zeros((8, 16)),
        "linear2.weight": np.zeros((16, 8)),
        "norm1.weight": np.ones(16),
        "norm2.weight": np.ones(16),
    }
    entries = {name: x.astype(np.float32) for name, x in entries.items()}
    layer = TransformerEncoderLayer.from_state_dict(entries, num_heads=2, norm=norm, norm_eps=0.0, bias=False)
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    np.testing.assert_allclose(layer(x * np.float32(factor)), layer(x), rtol=1e-5, atol=1e-6)


# Packed sequences and caches

LENGTHS = (5, 1, 0, 17, 33)


@BOTH
@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_packed_sequences_are_as_if_alone(target, dtype, layer, int8):
    made = encoder_of(layer, np.float32, 2, dtype="int8" if int8 else dtype)
    cos, sin = angles(max(LENGTHS), 2, dtype)
    x, cu_seqlens = tokens(layer, dtype, sum(LENGTHS)), np.cumsum([0, *LENGTHS])
    options = {"is_causal": True, "kv_lengths": np.array([4, 1, 0, 17, 20])}
    out = made(x, cu_seqlens=cu_seqlens, cos=cos, sin=sin, **options)
    for i in range(len(LENGTHS)):
        rows = slice(*cu_seqlens[i : i + 2])
        assert_equal(out[rows], made(x[rows], cos=cos, sin=sin, **of_sequence(options, i)))


def caches_of(layer, batch, dtype, layers=3, **more):
    return [fastattn.KVCache(batch, layer.kv_heads, 64, layer.head_size, dtype=dtype, **more) for _ in range(layers)]


@BOTH
def test_step_by_step_is_the_whole_prompt(target, dtype, layer):
    cos, sin = angles(20, 2, dtype)
    x, whole = tokens(layer, dtype, 9, 20), {"is_causal": True, "cos": cos, "sin": sin}
    known = answers(encoder, layer, encoder_weights(layer, dtype, 3), {"x": x} | whole)
    made, caches = encoder_of(layer, dtype), caches_of(layer, 9, dtype)
    steps = [made(part, caches=caches, **whole) for part in np.split(x, [11, 12, 13, 18], axis=1)]
    assert_as_defined(np.concatenate(steps, axis=1), *known)
    assert all((cache.lengths == 20).all() for cache in caches)


@BOTH
def test_a_single_layer_with_its_cache(dtype, layer):
    made, x = encoder_of(layer, dtype, 1), tokens(layer, dtype, 2, 17)
    [cache], caches = caches_of(layer, 2, dtype, 1), caches_of(layer, 2, dtype, 1)
    for part in np.split(x, [11, 12], axis=1):
        alone = made.layers[0](part, cache=cache, is_causal=True)
        assert_equal(made.norm(alone), made(part, caches=caches, is_causal=True))


# Where it goes


@BOTH
@pytest.mark.parametrize("make", [layer_of, encoder_of], ids=["layer", "encoder"])
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(dtype, layer, make, layout):
    made, x = make(layer, dtype), tokens(layer, dtype, 2, 17)
    out = empty_laid_out(x.shape, dtype, layout)
    assert made(x, out=out) is out
    assert_equal(out.copy(), made(x))
    assert_nothing_written_around(out)


@BOTH
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(dtype, layer, layout):
    made, x = encoder_of(layer, dtype), LAYOUTS[layout](tokens(layer, dtype, 2, 17))
    before = x.copy()
    assert_equal(made(x), made(np.ascontiguousarray(x)))
    assert_equal(x.copy(), before)


@BOTH
@pytest.mark.parametrize("make", [layer_of, encoder_of], ids=["layer", "encoder"])
@pytest.mark.parametrize("distance", [0, 1, 24, -1, -24])
def test_out_overlaps_the_input(dtype, layer, make, distance):
    made, x = make(layer, dtype), tokens(layer, dtype, 2, 17)
    expected = made(x)
    memory = np.zeros(x.size + 128, dtype)
    here, out = (memory[start:][: x.size].reshape(x.shape) for start in (64, 64 + distance))
    here[...] = x
    assert_equal(made(here, out=out), expected)


@BOTH
@pytest.mark.parametrize("shared", ["attn_mask", "cos", "sinks"])
def test_out_overlaps_what_every_layer_reads(dtype, layer, shared):
    made, x = encoder_of(layer, dtype), tokens(layer, dtype, 2, 17)
    shapes = {"attn_mask": (17, 17), "cos": (17, 2), "sinks": (layer.heads,)}
    options = {name: tokens(layer, dtype, *shape, seed=1)[..., 0] for name, shape in shapes.items()}
    options["sin"] = options["cos"]
    expected, out = made(x, **options), np.empty_like(x)
    here = out.reshape(-1)[: options[shared].size].reshape(options[shared].shape)
    here[...] = options[shared]
    assert_equal(made(x, **options | {shared: here}, out=out), expected)


@BOTH
def test_any_number_of_threads_and_any_company(target, dtype, layer):
    layer = layer._replace(embed=96, hidden=300)
    made, x = encoder_of(layer, dtype, 2), tokens(layer, dtype, 3, 65)
    expected = made(x, num_threads=1)
    for num_threads in (2, 7):
        assert_equal(made(x, num_threads=num_threads), expected)
    for i in range(3):
        assert_equal(made(x[i]), expected[i])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_nothing(dtype, shape):
    for make in (layer_of, encoder_of):
        result = make(POST, dtype)(tokens(POST, dtype, *shape))
        assert result.shape == (*shape, 24)
        assert result.dtype == dtype


@BOTH
@pytest.mark.parametrize("into", ["out", "a new array"])
def test_all_layers_work_in_one_room(layer, into):
    """Memory does not depend on their number, and is what the docstring says."""
    layer = layer._replace(embed=48, hidden=160)
    x = tokens(layer, np.float32, 1, 1000)
    width = 2 * (layer.heads + layer.kv_heads) * layer.head_size
    room = max(width, layer.hidden * (1 + layer.gated)) + layer.embed * layer.norm_first
    for layers in (1, 6):
        made, out = encoder_of(layer, np.float32, layers), np.empty_like(x) if into == "out" else None
        tracemalloc.start()
        made(x, out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= room * 4 * 1000 + (out is None) * x.nbytes + 100_000
