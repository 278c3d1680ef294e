"""What `bench`, `check` and benchmarks/ stand on: cases, the rule of accuracy, timing, engines, tables."""

import contextlib
import dataclasses
import html
import io
import json
import math
import pickle
import platform
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

import fastattn
from fastattn import _arguments
from fastattn._runtime import on_target
from fastattn.commands import check
from fastattn.commands.measuring import accuracy, dtypes, engines, erf, formulas, limits, machine, tables
from fastattn.commands.measuring.cases import (
    ARRAYS,
    AWKWARD,
    CASES,
    INTENSE,
    OPERATIONS,
    SHORT,
    STORING,
    Case,
    chosen,
    in_dtype,
    long_tailed,
    packed_lengths,
    selected,
)
from fastattn.commands.measuring.peers import Peer
from fastattn.commands.measuring.results import Result, collect, geometric_mean
from fastattn.commands.measuring.worker import TRIALS, Desk, serve
from laboratory import instructions
from laboratory.decode import DECODING, Loop, Reader, cached, largest_cache
from laboratory.peers import PEERS, Unsuitable, folded
from laboratory.variants import PACKED, duel
from support.scripts import pages_in, script

HALF = ("float16", "bfloat16")


def needs(name):
    """Skip where a type cannot be had."""
    if dtypes.absent(name):
        pytest.skip(f"{dtypes.absent(name)} not installed")


SIZES = {"B": 1, "Hq": 4, "Hkv": 2, "Sq": 30, "Sk": 50, "D": 8, "Dv": 8}


def small(sizes=SIZES, **changes):
    return Case("small", "scaled_dot_product_attention", sizes, **changes)


def small_layer(**changes):
    return Case("small", "linear", {"rows": 30, "K": 8, "N": 50}, **changes)


def small_rows(**changes):
    return Case("small", "softmax", {"rows": 3, "n": 50}, **changes)


# Cases


def test_names_are_the_cases_own():
    assert all(name == case.name for name, case in CASES.items())


def test_the_short_table_has_something_of_each_kind():
    assert 10 <= len(SHORT) <= 12
    short = {name.partition("-")[0] for name in SHORT}
    assert short >= {"attention", "softmax", "layer_norm", "rms_norm", "add_layer_norm", "linear", "rotary_embedding"}
    assert {CASES[name].dtype for name in SHORT} == {"float32"}  # NumPy alone is needed


@pytest.mark.parametrize("name", CASES)
def test_a_name_selects_its_case_alone(name):
    assert selected([name]) == [CASES[name]]


def test_names_are_selected_by_patterns_and_types():
    assert selected(["attention-tiny-float16"], ("float16",)) == []
    assert selected(["attention-tiny"], ("float16",)) == [CASES["attention-tiny-float16"]]
    shown = [case.name for case in selected(["attention-bert-512*", "no such name"])]
    assert shown == [case.name for case in chosen(re.compile("attention-bert-512"))]
    assert len(shown) == 5
    assert selected(["*"], tuple(dtypes.NEEDS)) == list(CASES.values())


def test_types_are_chosen():
    everything = re.compile("")
    assert {case.dtype for case in chosen(everything, ("bfloat16",))} == {"bfloat16"}
    unasked = [case.name.removeprefix("attention-") for case in chosen(everything) if "bert-512" in case.name]
    assert unasked == ["bert-512", "bert-512-float64", "bert-512-float16", "bert-512-bfloat16", "bert-512-batch-8"]
    for case in CASES.values():
        in_float32 = CASES[case.name.removesuffix(f"-{case.dtype}")]
        assert dataclasses.replace(case, name=in_float32.name, dtype="float32") == in_float32
        assert case.title == in_float32.title


@pytest.mark.parametrize("dtype", HALF)
def test_inputs_are_drawn_in_float32_and_rounded(dtype):
    needs(dtype)
    drawn, rounded = small().inputs(), small(dtype=dtype).inputs()
    for name, array in rounded.items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array, drawn[name].astype(array.dtype))


@pytest.mark.parametrize("kv_dtype", [*HALF, "int8"])
def test_keys_and_values_may_be_stored_in_less(kv_dtype):
    """A cache rounds to int8 what it is given; the inputs are what it is given."""
    needs(kv_dtype)
    case = small(kv_dtype=kv_dtype)
    kinds = {name: array.dtype.name for name, array in case.inputs().items()}
    stored = "float32" if kv_dtype == "int8" else kv_dtype
    assert kinds == {"query": "float32", "key": stored, "value": stored}
    assert case.types == f"float32/{kv_dtype}"


@pytest.mark.parametrize(("kv_dtype", "row"), [("", 4 * 8), ("float16", 2 * 8), ("int8", 8 + 4)])
def test_traffic_counts_what_is_stored(kv_dtype, row):
    """Queries and results of 4 heads and 30 tokens; keys and values of 2 heads and 50."""
    case = small(kv_dtype=kv_dtype)
    assert case.stored == 2 * 2 * 50 * row
    assert case.traffic == 2 * 4 * 30 * 4 * 8 + case.stored


@pytest.mark.parametrize(("kv_dtype", "row"), [("", 4 * 8), ("float16", 2 * 8), ("int8", 8 + 4)])
def test_traffic_counts_a_weight_once(kv_dtype, row):
    case = small_layer(kv_dtype=kv_dtype)
    assert case.stored == 50 * row
    assert case.traffic == 4 * 30 * (8 + 50) + case.stored
    assert case.flops == 2 * 30 * 8 * 50


@pytest.mark.parametrize("kv_dtype", [*HALF, "int8"])
def test_weights_may_be_stored_in_less(kv_dtype):
    """int8 is made by whoever calls: the inputs are what is rounded to it."""
    needs(kv_dtype)
    case = small_layer(kv_dtype=kv_dtype, arrays=("residual",))
    kinds = {name: array.dtype.name for name, array in case.inputs().items()}
    stored = "float32" if kv_dtype == "int8" else kv_dtype
    assert kinds == {"x": "float32", "weight": stored, "bias": "float32", "residual": "float32"}
    for build in PEERS["fastattn"].load().VARIANTS["linear"].values():
        call, fetch = build(case, case.inputs())
        assert accuracy.check(fetch(call()), accuracy.expected(case)).kept


def test_keys_behind_the_end_of_a_sequence_are_not_read():
    case = small(arrays=("kv_lengths",))
    assert case.stored == 2 * 2 * 4 * 8 * case.inputs()["kv_lengths"].sum()


def test_every_operation_has_awkward_cases_and_every_peer_a_way():
    assert {case.operation for case in AWKWARD} == set(OPERATIONS)
    timed = {case.operation for case in CASES.values()}
    assert all(timed <= set(PEERS[name].load().VARIANTS) for name in ("fastattn", "numpy"))


def test_awkward_cases_have_every_option():
    options = {"attn_mask", "is_causal", "q_offset", "window", "scale"}
    options |= {"softcap", "sinks", "alibi_slopes", "position_bias", "kv_lengths"}
    for operation in ("scaled_dot_product_attention", "varlen_attention", "attention_weights"):
        cases = [case for case in AWKWARD if case.operation == operation]
        found = {name for case in cases for name in (*case.options, *(ARRAYS[label][0] for label in case.arrays))}
        assert found >= options - ({"attn_mask", "scale"} if operation == "varlen_attention" else set())


def test_awkward_layers_have_every_option():
    cases = [case for case in AWKWARD if case.operation == "linear"]
    activations = {case.options.get("activation") for case in cases}
    assert activations == {None, *_arguments.ACTIVATIONS}
    assert {"residual" in case.inputs() for case in cases} == {True, False}


def test_lengths_have_a_long_tail_and_their_ends():
    lengths = long_tailed(64, 16, 512)
    assert (lengths.min(), lengths.max()) == (16, 512)
    assert np.median(lengths) < lengths.mean() < 200


def test_packed_cases_pack():
    ((_, case, _),) = PACKED
    queries, keys = packed_lengths(case.sizes)
    assert case.inputs()["query"].shape == (queries.sum(), 12, 64)
    assert case.shape == "64×12×16…512×64"
    assert case.flops == 4 * 12 * 64 * (queries @ keys)


def test_inputs_are_the_same_every_time():
    first = small().inputs()["query"].copy()
    small(dtype="float64").inputs()
    assert np.array_equal(first, small().inputs()["query"])


@pytest.mark.parametrize(("options", "seen"), [({}, 30 * 50), ({"is_causal": True}, sum(range(21, 51)))])
def test_flops_count_what_is_seen(options, seen):
    assert small(options=options).flops == 2 * 4 * seen * (8 + 8)


@pytest.mark.parametrize(
    ("operation", "dtype", "kv_dtype"),
    [(name, *types) for types in check.TYPES for name in check.offering(types[1])],
)
def test_formulas_keep_the_rule_that_they_define(operation, dtype, kv_dtype):
    """And stay in the type of their input; logarithms of sums are float32 at least."""
    needs(dtype)
    needs(kv_dtype)
    for case in [case for case in AWKWARD if case.operation == operation][::4]:
        case = dataclasses.replace(case, dtype=dtype, kv_dtype=kv_dtype)
        result = getattr(formulas, operation)(**case.inputs(), **case.options)
        assert accuracy.check(result, accuracy.expected(case)).kept
        kinds = [array.dtype.name for array in (result if isinstance(result, tuple) else (result,))]
        lse = dtypes.wide(dtypes.named(dtype)).name if operation in (*STORING, "merge_states") else dtype
        assert kinds == [dtype, lse][: len(kinds)]


@pytest.mark.parametrize("dtype", HALF)
def test_sums_of_16_bits_are_rounded_once(dtype):
    """4,096 equal weights: bfloat16 that is added up one by one stops at 256."""
    needs(dtype)
    x = np.zeros((1, 4096), dtypes.named(dtype))
    np.testing.assert_array_equal(formulas.softmax(x), np.full_like(x, 2**-12))
    y = formulas.layer_norm(np.tile(np.array([-3, 3], x.dtype), (1, 2048)))
    np.testing.assert_array_equal(np.abs(y), np.ones_like(y))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": (7, 2), "softcap": 2.0}])
@pytest.mark.parametrize(
    "arrays", [(), ("bool mask by head", "sinks", "position_bias"), ("float mask", "kv_lengths", "alibi_slopes")]
)
def test_samples_are_parts_of_the_whole(options, arrays):
    case = small(options=options, arrays=arrays)
    whole = formulas.scaled_dot_product_attention(**case.inputs(), **options)
    parts = list(case.parts(sampled=True))
    assert len(parts) == 3
    for index, arguments, changed in parts:
        np.testing.assert_allclose(
            formulas.scaled_dot_product_attention(**arguments, **changed), whole[index], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("arrays", [(), ("residual",)])
def test_samples_of_a_layer_are_parts_of_the_whole(arrays):
    case = small_layer(options={"activation": "gelu_tanh"}, arrays=arrays)
    whole = formulas.linear(**case.inputs(), **case.options)
    parts = list(case.parts(sampled=True))
    assert len(parts) == 3
    for index, arguments, options in parts:
        np.testing.assert_allclose(formulas.linear(**arguments, **options), whole[index], rtol=1e-5, atol=1e-6)


# NumPy at its best


@pytest.mark.parametrize(
    "name",
    [
        "attention-tiny",
        "attention-vit-197",
        "softmax-64x32000",
        "layer_norm-128x768",
        "log_softmax-64x32000",
        "rms_norm-1x4096",
        "add_layer_norm-128x768",
        "add_rms_norm-2048x4096",
        "linear-1x768x3072-gelu",
        "linear-1x3072x768",
        "rotary_embedding-8x32x1x128",
        "rotary_embedding-1x32x128x128",
    ],
)
@pytest.mark.parametrize("dtype", dtypes.NEEDS)
def test_numpy_in_place_is_as_exact_as_the_formula(name, dtype):
    """Within four times of what a formula may be off, whose operations have another order; and the same twice."""
    needs(dtype)
    case = in_dtype(CASES[name], dtype)
    for given in (case, dataclasses.replace(case, out=True)):
        (build,) = PEERS["numpy"].load().VARIANTS[given.operation].values()
        call, fetch = build(given, given.inputs())
        for _ in range(2):
            found = accuracy.check(fetch(call()), accuracy.expected(given, sampled=True))
            assert found.error <= 4 * found.allowed


@pytest.mark.parametrize(
    "case",
    [
        small(options={"is_causal": True}),
        small(sizes=SIZES | {"B": 2, "Hq": 6, "Dv": 5}),
        small_layer(options={"activation": "gelu_tanh"}),
        dataclasses.replace(CASES["rotary_embedding-1x32x128x128"], options={"interleaved": True}),
    ],
    ids=lambda case: case.shape,
)
def test_numpy_in_place_has_the_options_of_its_cases(case):
    (build,) = PEERS["numpy"].load().VARIANTS[case.operation].values()
    call, fetch = build(case, case.inputs())
    found = accuracy.check(fetch(call()), accuracy.expected(case))
    assert found.error <= 2 * found.allowed


@pytest.mark.parametrize("out", [True, False])
def test_numpy_writes_into_the_same_arrays_where_a_case_has_out(out):
    case = dataclasses.replace(CASES["add_layer_norm-128x768"], out=out)
    (build,) = PEERS["numpy"].load().VARIANTS[case.operation].values()
    call, fetch = build(case, case.inputs())
    first, second = fetch(call()), fetch(call())
    assert [np.shares_memory(a, b) for a, b in zip(first, second, strict=True)] == [out, out]
    assert not np.shares_memory(*first)


@pytest.mark.parametrize(
    ("function", "dtype", "error"), [("in_float32", np.float32, 6.5e-8), ("in_float64", float, 6e-16)]
)
def test_erf_of_arrays(function, dtype, error):
    """In the place of its argument, to half a unit in the last place of 1 or nearly; with its limits and its sign."""
    x = np.concatenate([np.linspace(-7, 7, 40001), np.logspace(-30, 0, 2001), [erf.EDGE, 0, -0.0, np.inf, -np.inf]])
    x = x.astype(dtype)
    exact = np.array([math.erf(number) for number in x.tolist()])
    y = x.copy()
    assert getattr(erf, function)(y) is y
    assert np.abs(y - exact).max() < error
    assert (np.signbit(y) == np.signbit(exact)).all()
    assert np.isnan(getattr(erf, function)(np.array([np.nan], dtype))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_with_and_without_scipy(monkeypatch, rng, dtype):
    x = rng.standard_normal((3, erf.BLOCK // 2 + 1)).astype(dtype)
    exact = np.array([math.erf(number) for number in x.ravel().tolist()]).reshape(x.shape)
    for scipys in {erf._scipys, None}:
        monkeypatch.setattr(erf, "_scipys", scipys)
        y = x.copy()
        assert erf.erf(y) is y
        np.testing.assert_allclose(y, exact, rtol=0, atol=3 * np.finfo(dtype).eps)


# The rule


def verdict(result, oracle, formula):
    return accuracy.check(result, [accuracy.Part(..., (oracle,), (formula,))])


def test_twice_the_formulas_error_and_one_ulp():
    oracle = np.array([1.0, -4.0])
    formula = np.array([1.0, -4.0 + 2**-10], np.float32)
    allowed = 2 * 2**-10 + np.spacing(np.float32(4))
    assert verdict(formula, oracle, formula).allowed == allowed
    assert verdict(np.array([1 + 2**-9, -4], np.float32), oracle, formula).kept
    assert not verdict(np.array([1 + 2**-8, -4], np.float32), oracle, formula).kept


@pytest.mark.parametrize(("dtype", "ulp"), [("float16", 2**-8), ("bfloat16", 2**-5)])
def test_one_ulp_of_16_bits(dtype, ulp):
    needs(dtype)
    oracle, kind = np.array([1.0, -4.0]), dtypes.named(dtype)
    exact, near, far = (np.array([1 + n * ulp, -4], kind) for n in range(3))
    assert verdict(near, oracle, exact).allowed == ulp
    assert verdict(near, oracle, exact).kept
    assert not verdict(far, oracle, exact).kept


def test_int8_is_held_to_rows_of_integers():
    case = small(kv_dtype="int8", cached=True)
    inputs = case.inputs()
    rounded = inputs | {name: accuracy.quantised(inputs[name], 127) for name in ("key", "value")}
    assert np.abs(rounded["key"] - inputs["key"]).max() <= np.abs(inputs["key"]).max() / 254 * (1 + 1e-6)
    expectation = accuracy.expected(case)
    found = accuracy.check(formulas.scaled_dot_product_attention(**rounded), expectation)
    assert 0 < found.error < found.allowed < found.tolerable
    assert accuracy.check(formulas.scaled_dot_product_attention(**inputs), expectation).error < 1e-6
    coarse = inputs | {name: accuracy.quantised(inputs[name], 15) for name in ("key", "value")}
    assert not accuracy.check(formulas.scaled_dot_product_attention(**coarse), expectation).kept


def test_int8_weights_are_held_to_rows_of_integers():
    case = small_layer(kv_dtype="int8")
    inputs = case.inputs()
    expectation = accuracy.expected(case)
    for levels, kept in ((127, True), (15, False)):
        rounded = inputs | {"weight": accuracy.quantised(inputs["weight"], levels)}
        assert accuracy.check(formulas.linear(**rounded), expectation).kept == kept


def test_rows_of_nothing_are_quantised_to_nothing():
    assert not accuracy.quantised(np.zeros((2, 3), np.float32), 127).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_misses(wrong):
    oracle = np.array([1.0, 2.0])
    found = verdict(np.array([1, wrong], np.float32), oracle, oracle.astype(np.float32))
    assert not found.kept
    assert not found.plausible
    assert found.share == math.inf


def test_equal_infinities_are_right():
    oracle = np.array([-np.inf, 1.0])
    assert verdict(oracle.astype(np.float32), oracle, oracle.astype(np.float32)).error == 0


@pytest.mark.parametrize(
    "result", [np.zeros((2, 1), np.float32), np.zeros(2, np.float64), (np.zeros(2, np.float32), np.zeros(2))]
)
def test_another_shape_dtype_or_number_of_arrays_is_no_result(result):
    with pytest.raises(ValueError, match="the result is"):
        verdict(result, np.zeros(2), np.zeros(2, np.float32))


# Timing


def test_a_burst_takes_its_time_and_tells_that_of_one_call():
    start = time.perf_counter()
    seconds = engines.burst(lambda: time.sleep(0.01), 0.05)
    assert time.perf_counter() - start >= 0.05
    assert seconds >= 0.01


def test_a_slow_call_runs_once():
    calls = []
    engines.burst(lambda: calls.append(time.sleep(0.02)), 0.01)
    assert len(calls) == 1


def test_ratios_are_of_rounds_that_both_ran():
    ours, theirs = engines.Outcome(times=[1.0, 2.0, 4.0]), engines.Outcome(times=[3.0, 4.0])
    assert ours.faster_than(theirs) == 2.5
    assert math.isnan(ours.faster_than(engines.Outcome()))


# Engines


def test_an_engine_prepares_and_times():
    with engines.Engine("fastattn", 1) as engine:
        outcome = engine.prepare(CASES["attention-tiny"])
        assert outcome.kept
        assert engine.time(0.01) > 0


def test_an_engine_whose_process_ends_says_so_and_starts_again():
    with engines.Engine("numpy", 1) as engine:
        engine.prepare(CASES["attention-tiny"])
        engine._process.kill()
        with pytest.raises(engines.EngineFailure, match="its process ended"):
            engine.time(0.01)
        assert not engine.prepare(CASES["attention-tiny"]).failure


@pytest.mark.parametrize("target", [name for name in instructions.CAPS if name in fastattn.targets()])
def test_instructions_may_be_capped(compare, monkeypatch, target):
    """In this process, which describes itself, and in those that it starts."""
    for name in ("FASTATTN_TARGET", instructions.CAP_VARIABLE):
        monkeypatch.setenv(name, "put back afterwards")
    with on_target(fastattn.targets()[0]):
        compare.parse(["--isa", target], "")
        facts = machine.describe([], 1)
    assert (facts["target"], facts[instructions.CAP_VARIABLE]) == (target, instructions.CAPS[target])
    begun = engines.environment(1)
    assert (begun["FASTATTN_TARGET"], begun[instructions.CAP_VARIABLE]) == (target, instructions.CAPS[target])


def test_unknown_instructions_are_refused(compare):
    with pytest.raises(SystemExit):
        compare.parse(["--isa", "avx1024"], "")


@pytest.mark.parametrize(
    ("text", "processor", "features"),
    [
        (
            "processor\t: 0\nmodel name\t: A processor\nvmx flags\t: avx2\nflags\t\t: fpu amx_bf16 avx512f\n",
            "A processor",
            "avx512f amx_bf16",
        ),
        ("processor\t: 0\nFeatures\t: fp asimddp bf16\n", None, "asimddp bf16"),
        (None, None, "features unknown"),
    ],
)
def test_what_the_processor_has_is_told(monkeypatch, tmp_path, text, processor, features):
    file = tmp_path / "cpuinfo"
    if text:
        file.write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", file)
    facts = machine.describe([], 1)
    assert facts["features"] == features
    assert facts["processor"] == (processor or platform.processor() or platform.machine())
    assert f" · {features} · cores" in machine.line(facts)


def test_an_engine_that_fails_in_the_race_leaves_it():
    class Failing(engines.Engine):
        def time(self, seconds, cases=None):
            raise engines.EngineFailure("out of memory")

    with Failing("numpy", 1) as failing, engines.Engine("fastattn", 1) as fine:
        outcomes = engines.race(CASES["attention-tiny"], [failing, fine], engines.Pace(3, 0.001))
    assert outcomes["numpy"].failure == "out of memory"
    assert len(outcomes["fastattn"].times) == 3


def test_cases_of_one_engine_take_turns_in_its_process():
    tiny, row = CASES["attention-tiny"], CASES["softmax-1x128"]
    with engines.Engine("fastattn", 1) as engine:
        outcomes = duel({"one": [tiny], "two": [tiny, row]}, engine, engines.Pace(3, 0.01))
    assert [len(outcome.times) for outcome in outcomes.values()] == [3, 3]
    assert all(outcome.kept for outcome in outcomes.values())


def test_turns_alternate_and_time_what_takes_them_together():
    turns = []

    class Scripted(engines.Engine):
        def prepare(self, case, keep=False):
            return engines.Outcome(error=0.0, allowed=1.0)

        def time(self, seconds, cases=None):
            turns.append([case.name for case in cases])
            return float(len(turns))

    tiny, row = CASES["attention-tiny"], CASES["softmax-1x128"]
    one, two = [tiny.name], [tiny.name, row.name]
    with Scripted("fastattn", 1) as engine:
        outcomes = duel({"one": [tiny], "two": [tiny, row]}, engine, engines.Pace(3, 0.001))
    assert turns == [two, one, one, two, two, one]
    assert [outcome.times for outcome in outcomes.values()] == [[2.0, 3.0, 6.0], [1.0, 4.0, 5.0]]


def test_a_group_is_as_good_as_its_worst_case():
    fine, close = engines.Outcome(error=1.0, allowed=9.0), engines.Outcome(error=8.0, allowed=9.0)
    assert engines._closest([fine, close]) is close
    assert engines._closest([close, failed := engines.Outcome(failure="no"), fine]) is failed


def test_patience_ends_and_one_round_is_kept():
    with engines.Engine("fastattn", 1) as engine:
        outcomes = engines.race(CASES["attention-tiny"], [engine], engines.Pace(5, 0.01, patience=0.01))
    assert len(outcomes["fastattn"].times) == 1


def wrong(case, arguments):
    return (lambda: arguments["x"] * 2), lambda result: result


def impossible(case, arguments):
    raise Unsuitable("no such kernel\nand more about it")


def right(case, arguments):
    return (lambda: formulas.softmax(**arguments)), lambda result: result


def desk(*ways):
    """The desk of an engine that offers these ways."""
    return Desk(SimpleNamespace(VARIANTS={"softmax": {way.__name__: way for way in ways}}))


def test_the_time_of_several_cases_is_their_sum(monkeypatch):
    told = iter([1.0, 2.0])
    monkeypatch.setattr(engines, "burst", lambda call, seconds: next(told) if seconds == 0.5 else None)
    both = desk(right)
    both.calls = {"one": None, "two": None, "three": None}
    assert both.time(1.0, ["one", "two"]) == {"seconds": 3.0}


def test_a_wrong_way_is_not_timed():
    assert desk(wrong, impossible, right).prepare(CASES["softmax-1x128"])["variant"] == "right"


def test_a_given_way_is_the_only_one():
    assert desk(right, wrong).prepare(CASES["softmax-1x128"], variant="right")["variant"] == "right"
    assert "right" not in desk(right, wrong).prepare(CASES["softmax-1x128"], variant="wrong")["failure"]


@pytest.mark.parametrize(("patience", "trials"), [(0.0, 1), (60.0, TRIALS)])
def test_ways_that_take_long_have_one_trial(monkeypatch, patience, trials):
    """Beside the call whose result is judged."""
    calls = []

    def slow(case, arguments):
        return (lambda: calls.append(time.sleep(0.06)) or formulas.softmax(**arguments)), lambda result: result

    monkeypatch.setattr("fastattn.commands.measuring.worker.PATIENCE", patience)
    assert desk(slow, right).prepare(CASES["softmax-1x128"])["variant"] == "right"
    assert len(calls) == 1 + trials


def test_without_a_right_way_every_reason_is_told():
    failure = desk(wrong, impossible).prepare(CASES["softmax-1x128"])["failure"]
    assert re.fullmatch(r"wrong: wrong result, error \S+; impossible: Unsuitable: no such kernel", failure)


def test_requests_and_answers_are_pickles():
    """A case comes whole: the worker need not know it by name."""
    requests = [("prepare", {"case": small_rows()}), ("time", {"seconds": 0.001})]
    answers = io.BytesIO()
    serve(io.BufferedReader(io.BytesIO(b"".join(map(pickle.dumps, requests)))), answers, desk(right))
    answers.seek(0)
    prepared, timed = pickle.load(answers), pickle.load(answers)
    assert prepared["error"] <= prepared["allowed"]
    assert timed["seconds"] > 0


def test_folding_is_for_grouped_heads_that_see_everything():
    case = small()
    assert folded(case, case.inputs()["query"]).shape == (1, 2, 60, 8)
    with pytest.raises(Unsuitable):
        folded(small(options={"is_causal": True}), case.inputs()["query"])
    with pytest.raises(Unsuitable):
        folded(small(arrays=("bool mask",)), case.inputs()["query"])


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_installed_peers_run(name):
    if PEERS[name].absent:
        pytest.skip(f"{PEERS[name].absent} not installed")
    with engines.Engine(name, 1) as engine:
        rows = ("softmax-1x128-out", "layer_norm-1x768", "rms_norm-1x4096", "add_layer_norm-128x768-out")
        for case in ("attention-tiny", *rows):
            assert engine.prepare(CASES[case]).failure == ""
        for case in ("rotary_embedding-1x32x1x128-out", "rotary_embedding-1x32x128x128"):
            assert engine.prepare(CASES[case]).failure == ""
        for case in ("linear-1x768x3072-gelu-out", "linear-512x768x3072-gelu_tanh", "linear-1x3072x768-out"):
            assert engine.prepare(CASES[case]).failure == ""


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_installed_peers_run_in_16_bits(name, dtype):
    """ONNX Runtime has the norms alone in bfloat16."""
    needs(dtype)
    if PEERS[name].absent:
        pytest.skip(f"{PEERS[name].absent} not installed")
    with engines.Engine(name, 1) as engine:
        rows = ("softmax-1x128-out", "layer_norm-1x768-out", "rotary_embedding-1x32x128x128")
        for case in ("attention-bert-128", *rows, "linear-1x768x3072-gelu-out"):
            outcome = engine.prepare(CASES[f"{case}-{dtype}"])
            if (name, dtype) == ("onnxruntime", "bfloat16") and not case.startswith("layer_norm"):
                assert "NOT_IMPLEMENTED" in outcome.failure
            else:
                assert outcome.failure == ""
                assert outcome.error > 1e-6  # results are in 16 bits


def test_pytorch_runs_every_variant():
    if PEERS["torch"].absent:
        pytest.skip(f"{PEERS['torch'].absent} not installed")
    torch = PEERS["torch"].load()
    cases = [small(arrays=(name,)) for name in ("bool mask", "float mask", "padding", "kv_lengths")]
    cases += [small(options={"is_causal": True}), small(dtype="float16", arrays=("float mask",))]
    decoding = {"B": 3, "Hq": 4, "Hkv": 2, "Sq": 1, "Sk": 70, "D": 8, "Dv": 8}
    cases.append(small(sizes=decoding, arrays=("kv_lengths",)))
    for case in cases:
        for name, build in torch.VARIANTS[case.operation].items():
            with contextlib.suppress(Unsuitable):
                call, fetch = build(case, case.inputs())
                assert accuracy.check(fetch(call()), accuracy.expected(case)).plausible, name
    sizes = {"B": 5, "Hq": 2, "Hkv": 2, "shortest": 3, "longest": 40, "roll": 0, "D": 8, "Dv": 8}
    packed = Case("packed", "varlen_attention", sizes)
    for build in torch.VARIANTS["varlen_attention"].values():
        call, fetch = build(packed, packed.inputs())
        assert accuracy.check(fetch(call()), accuracy.expected(packed)).plausible


# Limits and results


def test_limits_are_measured():
    assert limits.arithmetic("float32", 1) > 1e8
    assert limits.memory("read", 1e6, 1) > 1e8
    assert limits.memory("copy", 1e6, 1) > 1e8


def test_the_limit_of_bfloat16_is_that_of_its_dot_product(monkeypatch):
    """Where the target has one; else that of float32, which float16 always has."""
    rates = {"float32": 100.0, "float64": 50.0, "bfloat16": 200.0}
    asked = []

    def fma(dtype, num_threads):
        asked.append(dtype)
        return rates[dtype]

    for dot, limit in ((lambda dtype, num_threads: rates[dtype], 200e9), (lambda dtype, num_threads: 0.0, 100e9)):
        monkeypatch.setattr(limits, "probe", SimpleNamespace(fma=fma, dot=dot))
        assert limits.arithmetic.__wrapped__("bfloat16", 1) == limit
        assert limits.arithmetic.__wrapped__("float16", 1) == 100e9
        assert limits.arithmetic.__wrapped__("float64", 1) == 50e9
    assert set(asked) == {"float32", "float64"}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("attention-bert-128", "FLOP/s"),
        ("attention-decode-32768", "B/s"),
        ("linear-512x768x3072-gelu-out", "FLOP/s"),
        ("linear-1x768x3072-gelu-out", "B/s"),
        ("softmax-6144x512-out", "B/s"),
        ("rotary_embedding-1x32x2048x128-out", "B/s"),
    ],
)
def test_a_unit_is_the_cases_own(name, unit):
    """Whatever limits were measured: on a busy machine they are anything. And no case is near the other unit."""
    case, outcomes = CASES[name], {"fastattn": engines.Outcome(times=[0.5])}
    for arithmetic, memory in ((1e9, 1e12), (1e12, 1e9)):
        shown = Result(case, outcomes, arithmetic, memory).as_json()
        assert (shown["unit"], shown["rate"]) == (unit, 2 * (case.flops if unit == "FLOP/s" else case.traffic))
    for dtype in dtypes.present(dtypes.NEEDS):
        assert in_dtype(case, dtype).unit == unit
        intensity = in_dtype(case, dtype).flops / in_dtype(case, dtype).traffic
        assert intensity <= INTENSE / 2 or intensity >= 2 * INTENSE


def test_a_share_is_of_the_limit_that_takes_longer():
    outcomes, case = {"fastattn": engines.Outcome(times=[1.0])}, CASES["attention-bert-512"]
    assert Result(case, outcomes, arithmetic=case.flops, memory=1e15).share == 1.0
    assert Result(case, outcomes, arithmetic=1e15, memory=2 * case.traffic).share == 0.5


def test_a_layer_of_one_row_is_bound_by_reading_its_weight():
    one, many = (CASES[f"linear-{rows}x768x3072-gelu-out"] for rows in (1, 512))
    assert one.streaming == "read"
    shown = Result(one, {"fastattn": engines.Outcome(times=[1e-4])}, arithmetic=2e11, memory=3e10)
    assert (one.unit, shown.rate) == ("B/s", pytest.approx(768 * 3072 * 4 / 1e-4, rel=0.002))
    assert shown.share == pytest.approx(shown.rate / 3e10)
    assert many.unit == "FLOP/s"


def test_rounds_that_lie_apart_scatter():
    def result(*times):
        return Result(CASES["attention-tiny"], {"fastattn": engines.Outcome(times=list(times))}, 1e9, 1e9)

    assert not result(1.0, 1.1, 1.2).scatters
    assert result(1.0, 1.1, 1.4).scatters
    assert not result(1.0).scatters
    assert not result().scatters


def test_rows_know_what_others_did_meanwhile(monkeypatch):
    monkeypatch.setattr(machine.Others, "taken", lambda self: 0.5)
    pace = engines.Pace(1, 0.001)
    (found,) = collect([CASES["attention-tiny"]], ["numpy", "fastattn"], pace, 1)
    assert found.disturbed
    assert not dataclasses.replace(found, taken=machine.Others.ALLOWED).disturbed


def test_results_without_numbers_are_null_in_json():
    outcomes = {"fastattn": engines.Outcome(failure="no"), "numpy": engines.Outcome(times=[1.0])}
    shown = Result(CASES["attention-tiny"], outcomes, 1e9, 1e9).as_json()
    assert shown["rate"] is None
    assert shown["engines"]["numpy"]["speedup"] is None
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_geometric_mean_leaves_out_what_is_missing():
    assert geometric_mean([1.0, 4.0, math.nan]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([math.nan]))


# Text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(8.124e-7, "812 ns"), (1.23e-5, "12.3 µs"), (9.9999e-4, "1.00 ms"), (0.5, "500 ms"), (1234.0, "1234 s")],
)
def test_durations(seconds, shown):
    assert tables.duration(seconds) == shown


def test_numbers():
    assert tables.ratio(0.999) == "1.00×"
    assert tables.ratio(12.34) == "12.3×"
    assert tables.percent(0.876) == "88 %"
    assert tables.scientific(0.0) == "0"
    assert tables.rate(2.116e11, "FLOP/s") == "212 GFLOP/s"
    assert tables.duration(math.nan) == "—"


def test_tables():
    header, rows = ("name", "time"), [("a", "1 s"), ("long name", "12 s")]
    assert tables.text(header, rows, "lr") == (
        "name       time\n"
        "─────────  ────\n"
        "a           1 s\n"
        "long name  12 s"
    )  # fmt: skip
    painted = tables.text(header, rows, "lr", lambda row, column, cell: f"<{cell}>" if row == column else cell)
    assert painted.splitlines()[2:] == ["<a        >   1 s", "long name  <12 s>"]
    assert tables.markdown(header, rows, "lr").splitlines()[:3] == ["| name | time |", "| --- | ---: |", "| a | 1 s |"]


def test_progress_shows_on_terminals_alone():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), "\r\x1b[K[1/2] bert\r\x1b[K"), (io.StringIO(), "")):
        with tables.Progress(2, stream) as progress:
            progress.step("bert")
        assert stream.getvalue() == shown


# benchmarks/compare.py and benchmarks/variants.py


@pytest.fixture(scope="module")
def compare():
    return script("compare")


@pytest.fixture(scope="module")
def variants():
    return script("variants")


def results():
    """One case that is won and one that is lost; ONNX Runtime cannot run the second."""
    times = {"attention-tiny": (1e-6, 2e-6, 3e-6), "softmax-1x128-out": (4e-6, 3e-6, math.nan)}
    return [
        Result(
            CASES[name],
            {
                engine: engines.Outcome(times=[] if math.isnan(seconds) else [seconds])
                for engine, seconds in zip(("fastattn", "torch", "onnxruntime"), line, strict=True)
            },
            1e11,
            1e10,
        )
        for name, line in times.items()
    ]


def test_the_table_shows_losses(compare):
    table = compare.render(results(), ["torch", "onnxruntime"], {"processor": "a processor", "threads": 2})
    assert "| attention tiny | 1×8×8×16 | float32 | 1.00 µs | 2.00 µs | 3.00 µs | 2.00× |" in table
    assert "| softmax out= | 1×128 | float32 | 4.00 µs | 3.00 µs | — | **0.75×** |" in table
    assert "slower in 1 of 1" in table
    assert "OpenVINO was not installed." in table
    assert table.endswith("a processor · threads 2")


def test_a_page_is_written_whole(compare, tmp_path):
    with pages_in(tmp_path):
        for results in ("old", "new"):
            compare.PAGE.write(results)
    text = (tmp_path / "operations.md").read_text()
    assert text.startswith(compare.PAGE.head)
    assert text.removeprefix(compare.PAGE.head) == "\nnew\n"


# benchmarks/picture.py


@pytest.fixture(scope="module")
def picture():
    return script("picture")


def test_a_picture_has_the_times_of_the_table(picture, tmp_path, monkeypatch):
    """A bar is as long as its engine is fast beside fastattn; who has no time has no bar."""
    page = """\
## A section

|  | shape | fastattn | PyTorch | ONNX Runtime | vs. fastest |
| --- | --- | ---: | ---: | ---: | ---: |
| a row | 1×2 | 500 µs · 12 | 1.00 ms · 6 | — | 2.00× |

A legend.

A processor · avx2 · threads 2 · target avx2 · 2026-01-02
"""
    (tmp_path / "a-page.md").write_text(page)
    monkeypatch.setitem(picture.PICTURES, "a picture", ("a-page", "A title <1>", [("A row", "A section", "a row 1×2")]))
    monkeypatch.setattr(picture, "FOLDER", tmp_path)
    drawn = picture.draw("a picture")
    assert [float(width) for width in re.findall(r'<rect .* width="(\S+)"', drawn)] == [picture.UNIT, picture.UNIT / 2]
    shown = [html.unescape(text) for text in re.findall("<text.*>(.*)</text>", drawn)]
    assert shown == [
        "A title <1>",
        "longer is faster · A processor · threads 2 · target avx2 · 2026-01-02",
        *("A row", "fastattn", "500 µs", "PyTorch", "1.00 ms", "ONNX Runtime", "—"),
    ]


def test_the_table_of_types_has_its_own_sections_and_float32(compare):
    """And the ratio to float32; the first table has neither."""
    shown = results()
    for result in shown:
        result.outcomes["float32"] = engines.Outcome(times=[5e-6])
    halves = [dataclasses.replace(result, case=in_dtype(result.case, "bfloat16")) for result in shown]
    table = compare.render(halves, ["torch", "onnxruntime"], {}, ["float16 is skipped"])
    assert "## Attention, bfloat16\n" in table
    assert "| attention tiny | 1×8×8×16 | bfloat16 | 1.00 µs | 2.00 µs | 3.00 µs | 2.00× | 5.00× |" in table
    assert "slower in 0 of 1. Against float32: 5.00×." in table
    assert "float16 is skipped" in table
    assert "vs. float32" not in compare.render(results(), ["torch"], {})


def test_types_are_compared_with_float32_in_the_same_rounds(compare, tmp_path, monkeypatch):
    """And their own page is written."""
    monkeypatch.setattr(compare, "OTHERS", ())
    measurements = tmp_path / "measured.json"
    options = ["--dtype", "float16,float64", "--only", "^attention-tiny|^softmax-1x128-"]
    options += ["--rounds", "1", "--seconds", "0.01"]
    with pages_in(tmp_path):
        compare.main([*options, "--threads", "1", "--page", "--json", str(measurements)])
    page = (tmp_path / "16-bits.md").read_text()
    assert page.startswith("# Operations in 16 bits\n")
    assert "## Attention, float16\n" in page
    measured = {result["case"]: result for result in json.loads(measurements.read_text())["results"]}
    rows = ("attention-tiny", "softmax-1x128-out")
    assert list(measured) == [f"{name}-{dtype}" for dtype in ("float16", "float64") for name in rows]
    assert measured["attention-tiny-float64"]["engines"]["float32"]["speedup"] > 0


def test_the_first_table_is_of_float32_and_float64(compare):
    cases = compare.of_float(SimpleNamespace(only=re.compile("")))
    assert {case.dtype for case in cases} == {"float32", "float64"}


def rows(variants, ours, other, **changes):
    outcomes = (engines.Outcome(times=[seconds] if seconds else []) for seconds in (ours, other))
    return [variants.Row("a label", "1×2×3×4", *outcomes, **changes)]


def test_the_second_table_shows_shortfalls(variants):
    measured = {
        "Options, against the same call without": rows(variants, 3.0, 2.0, asked=1.25),
        "Against PyTorch": rows(variants, 1.0, 2.0, asked=1.0),
        "Packed sequences": rows(variants, 1.0, 2.0),
    }
    table = variants.render(measured, ["torch"], {"processor": "a processor"})
    assert "| a label | 1×2×3×4 | 2.00 s | 3.00 s | **1.50×** | ≤ 1.25× |" in table
    assert "| a label | 1×2×3×4 | 1.00 s | 2.00 s | 2.00× | ≥ 1.00× |" in table
    assert "| a label | 1×2×3×4 | 1.00 s | 2.00 s | 2.00× |  |" in table
    assert "Geometric mean: 2.00×" in table
    assert table.endswith("a processor")


def test_the_second_table_without_pytorch(variants):
    table = variants.render({"Against PyTorch": rows(variants, 1.0, None, asked=1.0)}, [], {})
    assert "| a label | 1×2×3×4 | 1.00 s | — | — | ≥ 1.00× |" in table
    assert "PyTorch was not installed." in table
    (row,) = rows(variants, 1.0, None)
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["speedup"] is None


def test_the_second_table_is_measured(variants, tmp_path, monkeypatch):
    """One option, nothing from PyTorch, and the page is written."""
    tiny = CASES["attention-tiny"]
    title = "Options, against the same call without"
    monkeypatch.setitem(variants.PARTS, title, ([("an option", tiny, tiny, 1.5)], *variants.PARTS[title][1:]))
    measurements = tmp_path / "measured.json"
    options = ["--only", "^an option", "--rounds", "1", "--seconds", "0.01", "--threads", "1"]
    with pages_in(tmp_path):
        variants.main([*options, "--page", "--json", str(measurements)])
    assert "| an option | 1×8×8×16 |" in (tmp_path / "options.md").read_text()
    assert json.loads(measurements.read_text())[title][0]["speedup"] > 0


# benchmarks/decode.py


@pytest.fixture(scope="module")
def decoding():
    return script("decode")


def decoded(decoding, arrays, cache=None, torch=None, float32=None, stored="bfloat16"):
    """A row of 8 sequences and a megabyte that is read in 1 ms; the times in ms."""
    times = ([] if seconds is None else [seconds / 1e3] for seconds in (arrays, cache, torch, 1.0, float32))
    outcomes = (engines.Outcome(times=found, error=1.0, allowed=2.0) for found in times)
    return decoding.Row("ragged", "8×1", stored, 8, 10**6, *outcomes)


def test_the_table_of_decoding_shows_what_falls_short(decoding):
    good = decoded(decoding, 1.1, cache=1.25, torch=11.0, float32=2.2)
    assert decoding._line(good)[3:] == ["7273", "91 %", "6400", "**80 %**", "0.91", "2.00×", "727", "10.0×"]
    poor = decoded(decoding, None, cache=2.0, torch=4.0, float32=3.0)
    assert decoding._line(poor)[3:] == ["—", "—", "4000", "**50 %**", "0.50", "**1.50×**", "2000", "**2.00×**"]
    alone = decoded(decoding, 1.0, float32=1.0, stored="float32")
    assert decoding._line(alone)[3:] == ["8000", "100 %", "—", "—", "1.00", "", "—", "—"]


def test_decoding_that_is_wrong_or_fails_is_told(decoding):
    row = decoded(decoding, 1.0)
    row.arrays.error = 3.0
    row.cache.failure = "no cache"
    assert list(decoding._remarks([row])) == [
        "ragged, bfloat16, arrays: WRONG, error 3.0e+00 where 2.0e+00 is allowed",
        "ragged, bfloat16, KVCache: no cache",
    ]
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["cache"]["share_of_read"] is None


def test_the_table_of_steps(decoding):
    steps = {
        "float32": {"step": 0.1, "bare": 0.096, "calls": 0.002, "outside": 0.04},
        "bfloat16": {"step": 0.1, "bare": 0.09, "calls": 0.001, "outside": 0.1},
    }
    table = decoding.render([], steps, ["torch"], {})
    assert "| float32 | 100 ms | 96.0 ms | 4 % | 6 % |" in table
    assert "| bfloat16 | 100 ms | 90.0 ms | **10 %** | 11 % |" in table


def test_decoding_reads_more_than_a_cache_holds():
    for cases in DECODING.values():
        assert set(cases) == {"float32", "bfloat16", "float16", "int8"}
        assert 2**25 < cases["int8"].stored < cases["bfloat16"].stored < cases["float32"].stored
        assert cases["int8"].stored > largest_cache()
        short = dataclasses.replace(cases["int8"], sizes={**cases["int8"].sizes, "Sk": 128})
        assert short.inputs()["key"].dtype == np.float32


def test_reading_takes_turns_with_engines():
    case = small(sizes={**SIZES, "Sk": 2**15})
    reader = Reader(1)
    assert reader.prepare(case).failure == ""
    assert 1e-5 < reader.time(0.01, [case]) < 1


def test_an_engine_may_have_several_cases_of_a_contest():
    tiny, row = CASES["attention-tiny"], CASES["softmax-1x128"]
    with engines.Engine("fastattn", 1) as ours, engines.Engine("numpy", 1) as other:
        outcomes = engines.contest([(ours, [tiny]), (other, [row]), (ours, [row])], engines.Pace(2, 0.01))
    assert [outcome.variant for outcome in outcomes] == ["scaled_dot_product_attention", "in place", "softmax"]
    assert all(len(outcome.times) == 2 for outcome in outcomes)


class PlainCache:
    """As much of a KVCache as measuring needs, in plain arrays."""

    def __init__(self, batch, num_kv_heads, max_length, head_dim, *, dtype, value_dim=None):
        self.keys = np.full((batch, num_kv_heads, max_length, head_dim), np.nan, dtypes.named(dtype))
        self.values = np.full((batch, num_kv_heads, max_length, value_dim or head_dim), np.nan, dtypes.named(dtype))
        self.lengths = np.zeros(batch, int)

    def append(self, key, value, *, kv_lengths=None):
        counts = np.full(len(key), key.shape[2]) if kv_lengths is None else kv_lengths
        for n, (begin, count) in enumerate(zip(self.lengths, counts, strict=True)):
            self.keys[n, :, begin : begin + count] = key[n, :, :count]
            self.values[n, :, begin : begin + count] = value[n, :, :count]
        self.lengths += counts

    def truncate(self, length):
        self.lengths[:] = length

    def attend(self, query, *, out=None, **options):
        return fastattn.scaled_dot_product_attention(
            query, self.keys, self.values, kv_lengths=self.lengths, out=out, **options
        )


@pytest.mark.parametrize("arrays", [(), ("kv_lengths",)])
def test_a_cache_is_filled_with_what_is_attended_to(monkeypatch, arrays):
    monkeypatch.setattr(fastattn, "KVCache", PlainCache, raising=False)
    case = cached(small(sizes={**SIZES, "B": 3, "Sq": 1, "Sk": 70}, arrays=arrays))
    (build,) = PEERS["fastattn"].load().VARIANTS[case.operation].values()
    call, fetch = build(case, case.inputs())
    assert accuracy.check(fetch(call()), accuracy.expected(case)).kept


def test_a_step_of_the_loop_is_compared_with_its_attention(monkeypatch):
    monkeypatch.setattr(fastattn, "KVCache", PlainCache, raising=False)
    loop = Loop("float32", layers=3, tokens=40)
    times = loop.measure(4)
    assert [cache.lengths.tolist() for cache in loop.caches] == [[39]] * 3
    assert 0 < times["calls"] < times["step"]
    assert times["outside"] < 1
    loop.step()
    attended = loop.out.copy()
    loop.out[:] = 0
    loop.bare()
    np.testing.assert_allclose(loop.out, attended, rtol=1e-5)


def test_decoding_is_measured(decoding, tmp_path, monkeypatch):
    """One small shape without PyTorch; and the page is written."""
    tiny = {stored: CASES[f"attention-tiny-{stored}".removesuffix("-float32")] for stored in ("float32", "float16")}
    monkeypatch.setattr(decoding, "DECODING", {"a shape": tiny})
    monkeypatch.setattr(decoding, "cached", lambda case: case)
    monkeypatch.setitem(PEERS, "torch", Peer("PyTorch", "pytorch", ("no_such_package",)))
    measurements = tmp_path / "measured.json"
    options = ["--only", "^a shape", "--rounds", "1", "--seconds", "0.01", "--threads", "1"]
    with pages_in(tmp_path):
        decoding.main([*options, "--page", "--json", str(measurements)])
    page = (tmp_path / "decoding.md").read_text()
    assert "| a shape | 1×8×8×16 | float32 |" in page
    assert "PyTorch was not installed." in page
    first, _ = json.loads(measurements.read_text())["rows"]
    assert first["arrays"]["tokens_per_second"] > 0
    assert 0 < first["arrays"]["share_of_read"] < 1
    assert first["growth"] == 1
