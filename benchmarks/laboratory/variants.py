"""The cases of benchmarks/variants.py: options of attention and packed sequences, as data, and how they take turns."""

from dataclasses import replace
from math import nan

from fastattn.commands.measuring.cases import Case, long_tailed
from fastattn.commands.measuring.engines import contest

_AXES = ("B", "Hq", "Hkv", "Sq", "Sk", "D", "Dv")


def _attention(name, sizes, arrays=(), options=None):
    named = dict(zip(_AXES, sizes, strict=True))
    return Case(name, "scaled_dot_product_attention", named, options or {}, arrays=arrays)


# Options against the same call without any

_SHAPES = (
    # B  Hq Hkv   Sq    Sk    D   Dv
    (1,  8,  8, 4096, 4096,  64,  64),
    (1, 32,  8, 2048, 2048, 128, 128),
)  # fmt: skip

_LONG = (1, 4, 4, 8192, 8192, 64, 64)

_OPTIONS = (
    # label                            asked  shapes      arrays, options
    ("bool padding, nothing excluded",  1.10, _SHAPES,    ("padding 0 %",)),
    ("bool padding, last 10 %",         1.10, _SHAPES,    ("padding 10 %",)),
    ("bool padding, half",              0.58, _SHAPES,    ("padding 50 %",)),
    ("kv_lengths, half",                0.58, _SHAPES,    ("half kv_lengths",)),
    ("bool mask (Sq, Sk), random half", 1.25, _SHAPES,    ("bool mask",)),
    ("float mask (Sq, Sk)",             1.25, _SHAPES,    ("float mask",)),
    ("softcap",                         1.35, _SHAPES,    (), {"softcap": 30.0}),
    ("ALiBi",                           1.15, _SHAPES,    ("alibi_slopes",)),
    ("position bias",                   1.15, _SHAPES,    ("position_bias",)),
    ("sinks",                           1.02, _SHAPES,    ("sinks",)),
    ("causal",                          0.58, _SHAPES,    (), {"is_causal": True}),
    ("window (256, 256)",               0.08, (_LONG,),   (), {"window": (256, 256)}),
    ("window (256, 0), causal",         0.08, (_LONG,),   (), {"window": (256, 0), "is_causal": True}),
)  # fmt: skip


def _option(label, asked, sizes, arrays, options=None):
    tokens = sizes[4]
    case = _attention(f"{label}, {tokens} tokens", sizes, arrays, options)
    return label, case, replace(case, name=f"plain, {tokens} tokens", arrays=(), options={}), asked


#: Label, the case with the option and without, and the target of the ratio of their times.
OPTIONS = tuple(_option(label, asked, sizes, *more) for label, asked, shapes, *more in _OPTIONS for sizes in shapes)


# Against PyTorch

_AGAINST = (
    # label                     B  Hq Hkv   Sq    Sk    D   Dv   arrays, options
    ("bool mask",              (1, 12, 12, 1024, 1024,  64,  64), ("bool mask",)),
    ("bool mask",              (1,  8,  8, 2048, 2048,  64,  64), ("bool mask",)),
    ("float mask",             (1, 12, 12, 1024, 1024,  64,  64), ("float mask",)),
    ("float mask",             (1,  8,  8, 2048, 2048,  64,  64), ("float mask",)),
    ("Dv ≠ D",                 (1, 12, 12, 1024, 1024,  64, 128)),
    ("Dv ≠ D",                 (1,  8,  8, 2048, 2048,  64, 128)),
    ("padded batch",           (8, 12, 12, 1024, 1024,  64,  64), ("padding",)),
    ("causal with offset",     (1, 32,  8,   64, 4096, 128, 128), (), {"is_causal": True}),
)  # fmt: skip

#: Label and case.
AGAINST = tuple((label, _attention(f"{label}, {sizes[3]} queries", sizes, *more)) for label, sizes, *more in _AGAINST)


# Packed sequences of realistic lengths, and alternatives that compute the same

_SIZES = {"B": 64, "Hq": 12, "Hkv": 12, "shortest": 16, "longest": 512, "roll": 0, "D": 64, "Dv": 64}


def _padded(name, count, tokens, arrays=()):
    return _attention(f"{name}, {tokens} tokens", (count, 12, 12, tokens, tokens, 64, 64), arrays)


_ALTERNATIVES = (
    ("padded", [_padded("padded", 64, 512)], 1.5),
    ("padded, kv_lengths", [_padded("padded to lengths", 64, 512, ("packed lengths",))], nan),
    ("sum of each alone", [_padded("alone", 1, length) for length in long_tailed(64, 16, 512).tolist()], 1 / 1.15),
)

#: Label and case, and its alternatives: label, cases whose times add up, and the target of the speed-up.
PACKED = (("packed", Case("packed", "varlen_attention", _SIZES), _ALTERNATIVES),)


def duel(groups, engine, pace):
    """Let calls of one engine take turns in its process; return their outcomes by name.

    Parameters
    ----------
    groups : dict of str to list of cases
        The cases of a group share a turn.
    """
    return dict(zip(groups, contest([(engine, cases) for cases in groups.values()], pace), strict=True))
