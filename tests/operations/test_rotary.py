"""rotary_embedding against the oracle, and what turning must keep."""

import itertools

import numpy as np
import pytest

import fastattn
from support.accuracy import assert_accurate, by_formula, by_oracle
from support.arrays import (
    LAYOUTS,
    REVERSALS,
    SIZES,
    WRITABLE_LAYOUTS,
    assert_nothing_written_around,
    backwards_over,
    empty_laid_out,
    fenced,
    laid_out,
)
from support.dtypes import ALL, assert_equal, eps, readable
from support.telling import telling

pytestmark = pytest.mark.usefixtures("target")

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.fixture(params=[False, True], ids=["halves", "interleaved"])
def interleaved(request):
    return request.param


def problem(rng, dtype, shape, pairs, rows=None):
    """x, and cos and sin of so many rows or, for None, with a row for each token of each sequence."""
    x = rng.normal(size=shape).astype(dtype)
    angles = rng.normal(0, 10, size=(*shape[:-3], shape[-2], pairs) if rows is None else (rows, pairs))
    return x, np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def assert_rotary_accurate(x, cos, sin, *, out=None, num_threads=None, **options):
    """The operation on these arrays, held to the accuracy rule."""
    before = x.copy()
    expected = by_oracle("rotary_embedding", x.dtype, x, cos, sin, **options)
    formula = by_formula("rotary_embedding", x, cos, sin, **options)
    result = fastattn.rotary_embedding(x, cos, sin, out=out, num_threads=num_threads, **options)
    assert_accurate(result, formula, expected)
    kept = 2 * cos.shape[-1]
    np.testing.assert_array_equal(result[..., kept:], before[..., kept:])
    return result


# Sizes


@pytest.mark.parametrize("pairs", SIZES)
def test_pairs_and_what_is_left(rng, dtype, interleaved, pairs):
    for rest in (0, 1, 3, 64):
        arrays = problem(rng, dtype, (2, 3, 12, 2 * pairs + rest), pairs)
        assert_rotary_accurate(*arrays, interleaved=interleaved)


@pytest.mark.parametrize("pairs", [384, 1000, 2049])
def test_long_rows(rng, dtype, interleaved, pairs):
    assert_rotary_accurate(*problem(rng, dtype, (2, 5, 2 * pairs + 1), pairs), interleaved=interleaved)


@pytest.mark.parametrize(
    "shape", [(70, 64), (3, 70, 64), (2, 3, 20, 64), (2, 3, 4, 10, 64), (2, 1, 3, 2, 9, 64)], ids=str
)
@pytest.mark.parametrize("by_position", [False, True])
def test_dimensions(rng, dtype, interleaved, shape, by_position):
    x, cos, sin = problem(rng, dtype, shape, 30, rows=100 if by_position else None)
    tokens = (*shape[:-3], shape[-2])
    positions = rng.integers(0, 100, size=tokens) if by_position else None
    assert_rotary_accurate(x, cos, sin, positions=positions, interleaved=interleaved)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 3, 6), (0, 2, 3, 6), (2, 3, 0, 6), (2, 3, 5, 0)], ids=str)
def test_nothing_to_turn(rng, dtype, interleaved, shape):
    x, cos, sin = problem(rng, dtype, shape, shape[-1] // 2)
    result = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    assert result.shape == shape
    assert result.dtype == dtype


def test_no_pairs(rng, dtype, interleaved):
    x, cos, sin = problem(rng, dtype, (2, 3, 5), 0)
    np.testing.assert_array_equal(fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved), x)


# Tables and positions


@pytest.mark.parametrize("leading", [(), (1, 1), (2, 1), (1, 4), (4,), (2, 4)], ids=str)
def test_tables_of_tokens_broadcast(rng, dtype, interleaved, leading):
    x, *_ = problem(rng, dtype, (2, 4, 3, 20, 14), 6)
    angles = rng.normal(size=(*leading, 20, 6))
    assert_rotary_accurate(x, np.cos(angles).astype(dtype), np.sin(angles).astype(dtype), interleaved=interleaved)


@pytest.mark.parametrize(
    "shape", [(20,), (1,), (1, 1), (4, 1), (4, 20), (2, 1, 1), (2, 1, 20), (1, 4, 20), (2, 4, 20)], ids=str
)
def test_positions_broadcast(rng, dtype, interleaved, shape):
    arrays = problem(rng, dtype, (2, 4, 3, 20, 14), 6, rows=50)
    assert_rotary_accurate(*arrays, positions=rng.integers(0, 50, size=shape), interleaved=interleaved)


@pytest.mark.parametrize("position", [0, 49, np.int8(3), np.array(7)], ids=repr)
def test_one_position_for_all(rng, dtype, interleaved, position):
    x, cos, sin = problem(rng, dtype, (2, 3, 5, 14), 6, rows=50)
    result = fastattn.rotary_embedding(x, cos, sin, positions=position, interleaved=interleaved)
    expected = fastattn.rotary_embedding(x, cos, sin, positions=[int(position)] * 5, interleaved=interleaved)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", [*INTEGERS, ">i4", "<i8", "list", "range", "nested list", "backwards", "read-only"])
def test_kinds_of_positions(rng, dtype, kind):
    x, cos, sin = problem(rng, dtype, (2, 3, 40, 14), 6, rows=127)
    numbers = rng.integers(0, 127, size=(2, 40))
    read_only = numbers.copy()
    read_only.flags.writeable = False
    special = {
        "list": [int(n) for n in numbers[0]],
        "range": range(40),
        "nested list": numbers.tolist(),
        "backwards": numbers[:, ::-1],
        "read-only": read_only,
    }
    positions = special[kind] if kind in special else numbers.astype(kind)
    before = np.array(positions)
    assert_rotary_accurate(x, cos, sin, positions=positions)
    np.testing.assert_array_equal(positions, before)


def test_position_by_position_is_a_table_row_by_row(rng, dtype, interleaved):
    x, cos, sin = problem(rng, dtype, (3, 40, 14), 6, rows=50)
    positions = rng.permutation(50)[:40]
    result = fastattn.rotary_embedding(x, cos, sin, positions=positions, interleaved=interleaved)
    expected = fastattn.rotary_embedding(x, cos[positions], sin[positions], interleaved=interleaved)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("stored", ALL, ids=str)
def test_tables_of_another_type(rng, dtype, interleaved, by_position, stored):
    if stored == np.float64 and dtype != np.float64:
        pytest.skip("wider than what it is computed in")
    x, cos, sin = problem(rng, dtype, (2, 3, 20, 50), 23, rows=30 if by_position else None)
    positions = np.arange(20) if by_position else None
    for layout in ("aligned", "swapped", "gaps_between_elements"):
        tables = (laid_out(table.astype(stored), layout) for table in (cos, sin))
        result = assert_rotary_accurate(x, *tables, positions=positions, interleaved=interleaved)
        assert result.dtype == dtype


def twice(table, form):
    """A table that holds each number twice, as halves or as neighbours."""
    if form == "halves":
        return np.concatenate([table, table], axis=-1)
    return np.repeat(table, 2, axis=-1)


@pytest.mark.parametrize("form", ["halves", "neighbours"])
@pytest.mark.parametrize(("pairs", "size"), [(8, 64), (8, 32), (8, 16), (1, 8), (3, 13), (16, 33)])
@pytest.mark.parametrize("rows", ["one", "tokens", "each sequence's", "positions", "positions of one"])
def test_tables_that_hold_each_number_twice(rng, dtype, interleaved, form, pairs, size, rows):
    """Refused, whatever they would turn; half of them gives what it should."""
    S = 1 if rows == "one" else 7
    x = rng.normal(size=(2, 3, S, size)).astype(dtype)
    angles = (np.arange(S) + 5)[:, None] / 100.0 ** (np.arange(pairs) / pairs)
    angles = np.stack([angles, angles + 1]) if rows == "each sequence's" else angles
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    more = {"interleaved": interleaved, "out": np.full_like(x, 7)}
    if rows.startswith("positions"):
        more["positions"] = np.zeros(S, int) if rows.endswith("one") else np.arange(S)
    message = r"cos must (hold the number of each pair once, got .* equal|have .* pass half of it)"
    with pytest.raises(ValueError, match=message):
        fastattn.rotary_embedding(x, twice(cos, form), twice(sin, form), **more)
    assert (readable(more["out"]) == 7).all()
    columns = slice(pairs) if form == "halves" else slice(None, None, 2)
    halves = (twice(table, form)[..., columns] for table in (cos, sin))
    del more["out"]
    expected = fastattn.rotary_embedding(x, cos, sin, **more)
    np.testing.assert_array_equal(fastattn.rotary_embedding(x, *halves, **more), expected)
    np.testing.assert_array_equal(fastattn.rotary_embedding(x, cos, sin, **more, rotary_dim=2 * pairs), expected)


def test_a_row_that_is_alike_by_chance(rng, dtype, interleaved):
    """It says nothing where other rows differ, or where nothing turns; alone it must be confirmed."""
    x, cos, sin = problem(rng, dtype, (2, 3, 4, 40), 8, rows=9)
    cos[2:], sin[2:] = twice(cos[2:, :4], "halves"), twice(sin[2:, :4], "halves")
    assert_rotary_accurate(x, cos, sin, positions=[2, 3, 4, 5], interleaved=interleaved)
    assert_rotary_accurate(x, cos[::-1], sin[::-1], positions=[2, 3, 4, 5], interleaved=interleaved)
    with pytest.raises(ValueError, match=r"rotary_dim=16 if there really are 8 pairs"):
        fastattn.rotary_embedding(x, cos[2:6], sin[2:6], interleaved=interleaved)
    confirmed = fastattn.rotary_embedding(x, cos[2:6], sin[2:6], interleaved=interleaved, rotary_dim=16)
    expected = fastattn.rotary_embedding(x, cos, sin, positions=[2, 3, 4, 5], interleaved=interleaved)
    np.testing.assert_array_equal(confirmed, expected)
    ones, zeros = np.ones((4, 8), dtype), np.zeros((4, 8), dtype)
    np.testing.assert_array_equal(fastattn.rotary_embedding(x, ones, zeros, interleaved=interleaved), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tables_that_hold_each_number_twice(rng, layout):
    x, cos, sin = problem(rng, np.float32, (2, 3, 7, 37), 4)
    tables = (LAYOUTS[layout](twice(table, "halves")) for table in (cos, sin))
    with pytest.raises(ValueError, match=r"cos must hold the number of each pair once, got shape \(2, 7, 8\)"):
        fastattn.rotary_embedding(x, *tables)


@pytest.mark.parametrize(
    ("wrong", "error"), [(8, ValueError), (15, ValueError), (17, ValueError), (0, ValueError), (-16, ValueError),
                         (10**30, ValueError), (16.0, TypeError), ("16", TypeError), (True, TypeError)],
)  # fmt: skip
def test_wrong_rotary_sizes(rng, wrong, error):
    x, cos, sin = problem(rng, np.float32, (2, 3, 7, 37), 8)
    with pytest.raises(error, match=r"rotary_dim must .*got"):
        fastattn.rotary_embedding(x, cos, sin, rotary_dim=wrong)


# Values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_stays_in_its_pair(rng, dtype, interleaved, bad):
    x, cos, sin = problem(rng, dtype, (3, 9, 40), 17)
    clean = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    x[1, 4, 10] = bad
    spoiled = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    pair = [10, 11] if interleaved else [10, 27]
    assert not np.isfinite(spoiled[1, 4, pair]).any()
    spoiled[1, 4, pair] = clean[1, 4, pair]
    np.testing.assert_array_equal(spoiled, clean)


def test_table_rows_that_no_position_names_are_not_read(rng, dtype, interleaved):
    x, cos, sin = problem(rng, dtype, (3, 5, 40), 17, rows=20)
    positions = [3, 4, 5, 6, 9]
    cos[~np.isin(np.arange(20), positions)] = np.nan
    assert np.isfinite(fastattn.rotary_embedding(x, cos, sin, positions=positions, interleaved=interleaved)).all()


# Memory order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_x(rng, dtype, interleaved, layout):
    for by_position in (False, True):
        x, cos, sin = problem(rng, dtype, (2, 4, 7, 37), 17, rows=7 if by_position else None)
        positions = rng.permutation(7) if by_position else None
        assert_rotary_accurate(LAYOUTS[layout](x), cos, sin, positions=positions, interleaved=interleaved)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tables(rng, dtype, interleaved, layout):
    for by_position in (False, True):
        x, cos, sin = problem(rng, dtype, (2, 4, 70, 37), 17, rows=70 if by_position else None)
        positions = rng.permutation(70) if by_position else None
        cos, sin = LAYOUTS[layout](cos), LAYOUTS[layout](sin)
        before = cos.copy(), sin.copy()
        assert_rotary_accurate(x, cos, sin, positions=positions, interleaved=interleaved)
        np.testing.assert_array_equal((cos, sin), before)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_one_table_in_another_layout(rng, dtype, interleaved, layout):
    x, cos, sin = problem(rng, dtype, (2, 4, 70, 37), 17, rows=70)
    assert_rotary_accurate(x, laid_out(cos, layout), sin, positions=np.arange(70), interleaved=interleaved)
    assert_rotary_accurate(x, cos, laid_out(sin, layout), positions=np.arange(70), interleaved=interleaved)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_one_table_of_many_rows_in_another_layout(rng, dtype, interleaved, layout):
    """A row for each token, and more of them than are taken at a time."""
    x, cos, sin = problem(rng, dtype, (2, 600, 74), 17)
    assert_rotary_accurate(x, laid_out(cos, layout), sin, interleaved=interleaved)
    assert_rotary_accurate(x, cos, laid_out(sin, layout), interleaved=interleaved)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(rng, dtype, interleaved, layout):
    arrays = problem(rng, dtype, (2, 4, 7, 37), 17)
    out = empty_laid_out((2, 4, 7, 37), dtype, layout)
    assert assert_rotary_accurate(*arrays, out=out, interleaved=interleaved) is out
    assert_nothing_written_around(out)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (1, 0, 3, 2)], ids=str)
def test_results_keep_the_memory_order(rng, dtype, axes):
    x, cos, sin = problem(rng, dtype, (3, 4, 5, 6), 3)
    x = np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))
    assert fastattn.rotary_embedding(x, cos, sin).transpose(axes).flags.c_contiguous


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_in_place(rng, dtype, interleaved, layout):
    x, cos, sin = problem(rng, dtype, (2, 4, 7, 75), 35)
    x = laid_out(x, layout)
    expected = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    assert fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("distance", [1, 3, 16, 50, 64, -1, -16, -64])
def test_out_overlaps_x(rng, dtype, interleaved, distance):
    given, cos, sin = problem(rng, dtype, (40, 50), 25)
    expected = fastattn.rotary_embedding(given, cos, sin, interleaved=interleaved)
    memory = np.zeros(2000 + 128, dtype)
    x, out = (memory[start : start + 2000].reshape(40, 50) for start in (64, 64 + distance))
    x[...] = given
    assert fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_runs_backwards_over_x(rng, interleaved):
    given, cos, sin = problem(rng, np.dtype(np.float32), (3, 9, 21), 10)
    expected = fastattn.rotary_embedding(given, cos, sin, interleaved=interleaved)
    for where, x, out in backwards_over(given, (*REVERSALS, np.s_[::-1])):
        with telling(out=where):
            assert_equal(fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved, out=out), expected)


@pytest.mark.parametrize("name", ["cos", "sin", "positions"])
def test_out_overlaps_another_input(rng, dtype, interleaved, name):
    x, cos, sin = problem(rng, dtype, (40, 50), 25, rows=40)
    arrays = {"cos": cos, "sin": sin, "positions": rng.permutation(40)}
    expected = fastattn.rotary_embedding(x, **arrays, interleaved=interleaved)
    memory = np.zeros(4000, dtype)
    moved = memory.view(arrays[name].dtype)[: arrays[name].size].reshape(arrays[name].shape)
    moved[...] = arrays[name]
    out = memory[:2000].reshape(40, 50)
    fastattn.rotary_embedding(x, **arrays | {name: moved}, interleaved=interleaved, out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("pairs", [*SIZES, 1025])
def test_nothing_outside_is_touched(rng, dtype, interleaved, pairs):
    for rest, at in itertools.product((0, 3), ("start", "end")):
        arrays = dict(zip(("x", "cos", "sin"), problem(rng, dtype, (2, 2 * pairs + rest), pairs), strict=True))
        expected = fastattn.rotary_embedding(**arrays, interleaved=interleaved)
        for name, x in arrays.items():
            arrays[name] = fenced(name).place(x.shape, dtype, at)
            arrays[name][...] = x
        out = fenced("out").place(expected.shape, dtype, at)
        fastattn.rotary_embedding(**arrays, interleaved=interleaved, out=out)
        np.testing.assert_array_equal(out, expected)


# To the bit: threads and company


@pytest.mark.parametrize(
    ("shape", "tokens_first"),
    [
        ((2, 3, 400, 64), True),
        ((4, 8, 1, 5000), False),
        ((3, 64, 50, 40), True),
        ((3, 64, 50, 40), False),
        ((1, 1, 9, 40_001), False),
        ((3000, 2, 3, 8), True),
    ],
    ids=str,
)
def test_any_number_of_threads(rng, dtype, interleaved, shape, tokens_first):
    x, cos, sin = problem(rng, dtype, shape, 4, rows=500)
    if tokens_first:
        x = laid_out(x, "heads_inside")
    positions = rng.integers(0, 500, size=(shape[0], shape[2]))
    arguments = {"cos": cos, "sin": sin, "positions": positions, "interleaved": interleaved}
    expected = fastattn.rotary_embedding(x, **arguments, num_threads=1)
    tolerance = 8 * eps(dtype) * np.abs(readable(x)).max()
    formula = by_formula("rotary_embedding", x, **arguments)
    np.testing.assert_allclose(readable(expected), formula, rtol=0, atol=tolerance)
    for num_threads in (2, 3, 7, None):
        result = fastattn.rotary_embedding(x, **arguments, num_threads=num_threads)
        np.testing.assert_array_equal(result, expected)


def test_any_company_in_the_batch(rng, dtype, interleaved):
    x, cos, sin = problem(rng, dtype, (5, 7, 30, 75), 33)
    together = fastattn.rotary_embedding(x, cos, sin, interleaved=interleaved)
    for i in range(5):
        alone = fastattn.rotary_embedding(x[i], cos[i], sin[i], interleaved=interleaved)
        np.testing.assert_array_equal(together[i], alone)
