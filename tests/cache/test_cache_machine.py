"""KVCache and PagedKVCache driven at random, against plain lists of arrays and the oracle.

FASTATTN_EXAMPLES sets how many runs of each are made.
"""

import copy
import os
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastattn
from fastattn import _runtime
from support.caches import DTYPES, Padding, as_stored, assert_attends, held_rows, positions_matter

# Rows that a ring has beyond its window.
SLACK = 64


class Machine(RuleBasedStateMachine):
    """What both have in common: sizes, random numbers, a file, a target."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "cache"
        self.former_target = None

    def teardown(self):
        self.folder.cleanup()
        if self.former_target:
            _runtime.use_target(self.former_target)

    def set_up(self, target_name, dtype, kv_heads, group, head_dim, value_dim, seed):
        self.former_target = _runtime.use_target(target_name)
        self.dtype, self.kv_heads, self.heads = dtype, kv_heads, kv_heads * group
        self.head_dim, self.value_dim = head_dim, value_dim
        self.rng = np.random.default_rng(seed)

    def new_rows(self, sequences, tokens):
        """k and v of new tokens, as heads of one array where heads lie inside."""
        sizes = (self.head_dim, self.value_dim)
        arrays = (self.rng.normal(size=(sequences, tokens, self.kv_heads, size)).astype(np.float32) for size in sizes)
        return [x.swapaxes(1, 2) for x in arrays]

    def add(self, sequence, k, v):
        """To a list of rows that are there, (kv heads, tokens, size)."""
        return [
            np.concatenate([old, as_stored(x, self.dtype)], axis=1) for old, x in zip(sequence, (k, v), strict=True)
        ]

    def nothing(self):
        return [np.zeros((self.kv_heads, 0, size)) for size in (self.head_dim, self.value_dim)]

    def new_query(self, sequences, queries):
        shape = (sequences, self.heads, queries, self.head_dim)
        return self.rng.normal(size=shape).astype(np.float64 if self.dtype == "float64" else np.float32)

    def some_options(self, data, sequences, queries, longest):
        kind = np.float64 if self.dtype == "float64" else np.float32
        every = {
            "is_causal": lambda: True,
            "scale": lambda: 0.3,
            "softcap": lambda: 2.0,
            "sinks": lambda: self.rng.normal(size=self.heads).astype(kind),
            "alibi_slopes": lambda: self.rng.uniform(0, 0.5, size=(sequences, self.heads)).astype(kind),
            "position_bias": lambda: self.rng.normal(size=(self.heads, self.rng.choice([1, 9]))).astype(kind),
            "window": lambda: (data.draw(st.none() | st.integers(0, 9)), data.draw(st.none() | st.integers(0, 9))),
            "q_offset": lambda: self.rng.integers(-2, longest + 3, size=sequences),
            "attn_mask": lambda: self.rng.random((sequences, 1, queries, longest)) < 0.8,
            "num_threads": lambda: data.draw(st.sampled_from([1, 2])),
        }
        return {name: every[name]() for name in data.draw(st.lists(st.sampled_from(list(every)), unique=True))}

    def told(self, options, paddings, lengths, queries, matters):
        """Those options with the `q_offset` that applies by default; None where it must be given."""
        if "q_offset" in options:
            return options
        offsets = [padding.offset(own, queries) for padding, own in zip(paddings, lengths, strict=True)]
        if None in offsets and matters:
            return None
        offsets = [own - queries if offset is None else offset for offset, own in zip(offsets, lengths, strict=True)]
        return options | {"q_offset": np.array(offsets, int)}

    def some_queries(self, data, tokens):
        """How many: often as many as the last append took."""
        return data.draw(st.sampled_from([tokens, 0, 1, 2, 3, 4, 5, 12, 30]))

    def reloaded(self, data):
        """The cache from its file, to go on with or, mapped read-only, to look at."""
        self.cache.save(self.path)
        return type(self.cache).load(self.path, data.draw(st.sampled_from([None, "c"])))

    def mapped(self):
        self.cache.save(self.path)
        return type(self.cache).load(self.path, "r")


class FixedMachine(Machine):
    @initialize(
        target_name=st.sampled_from(fastattn.targets()),
        dtype=st.sampled_from(DTYPES),
        batch=st.integers(1, 4),
        kv_heads=st.integers(1, 2),
        group=st.integers(1, 3),
        sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        max_length=st.integers(1, 24) | st.just(100),
        window=st.none() | st.integers(1, 24),
        seed=st.integers(0, 2**32),
    )
    def make(self, target_name, dtype, batch, kv_heads, group, sizes, max_length, window, seed):
        self.set_up(target_name, dtype, kv_heads, group, *sizes, seed)
        self.batch, self.max_length = batch, max_length
        self.window = None if window is None else min(window, max_length)
        self.cache = fastattn.KVCache(
            batch, kv_heads, max_length, sizes[0], dtype=dtype, window=self.window, value_dim=sizes[1]
        )
        self.rows = max_length if window is None else min(max_length, self.window + SLACK)
        self.sequences = [self.nothing() for _ in range(batch)]  # rows of the whole stream
        self.firsts = [0] * batch
        self.paddings, self.tokens = [Padding() for _ in range(batch)], 0

    @property
    def lengths(self):
        return np.array([k.shape[1] for k, _ in self.sequences])

    @rule(tokens=st.integers(0, 6) | st.integers(0, 30), ragged=st.booleans(), data=st.data())
    def append(self, tokens, ragged, data):
        k, v = self.new_rows(self.batch, tokens)
        lengths = self.rng.integers(0, tokens + 1, self.batch) if ragged else None
        counts = np.full(self.batch, tokens) if lengths is None else lengths
        if not self.window and (self.lengths + counts > self.max_length).any():
            with pytest.raises(ValueError, match=r"key must hold at most .* got"):
                self.cache.append(k, v, kv_lengths=lengths)
            return
        self.cache.append(k, v, kv_lengths=lengths, num_threads=data.draw(st.sampled_from([1, 2])))
        self.tokens = tokens
        for b, count in enumerate(counts):
            self.paddings[b].append(self.lengths[b], count, tokens)
            self.sequences[b] = self.add(self.sequences[b], k[b, :, :count], v[b, :, :count])
            self.firsts[b] = max(self.firsts[b], self.lengths[b] - self.rows if self.window else 0)

    @rule(data=st.data())
    def attend(self, data):
        queries = self.some_queries(data, self.tokens)
        query = self.new_query(self.batch, queries)
        options = self.some_options(data, self.batch, queries, max(self.lengths))
        told = self.told(options, self.paddings, self.lengths, queries, self.window or positions_matter(options))
        if told is None:
            with pytest.raises(ValueError, match=r"q_offset must be given .* got None"):
                self.cache.attend(query, **options)
            return
        left, right = options.get("window") or (None, None)
        if self.window:
            wide = left is not None and left >= self.window
            left = self.window - 1 if left is None else left
            offsets = told["q_offset"]
            gone = any(
                first and queries and offset - left < first for first, offset in zip(self.firsts, offsets, strict=True)
            )
            if wide or gone or (any(self.firsts) and "attn_mask" in options):
                with pytest.raises(ValueError, match=r"(window|query|attn_mask) must .* got"):
                    self.cache.attend(query, **options)
                return
        expected_options = told | {"window": (left, right)}
        assert_attends(self.cache.attend, query, self.sequences, options, expected_options, self.dtype)

    @rule(data=st.data())
    def truncate(self, data):
        lengths = np.array([data.draw(st.integers(max(0, own - 5), own)) for own in self.lengths])
        least = [first + self.window - 1 if first else 0 for first in self.firsts] if self.window else [0] * self.batch
        if any(0 < length < most for length, most in zip(lengths, least, strict=True)):
            with pytest.raises(ValueError, match=r"length must be 0 or, .* got"):
                self.cache.truncate(lengths)
            return
        self.cache.truncate(int(lengths[0]) if len(set(lengths)) == 1 else lengths)
        for padding, own, new in zip(self.paddings, self.lengths, lengths, strict=True):
            padding.cut(own, new)
        self.sequences = [[x[:, :n] for x in rows] for n, rows in zip(lengths, self.sequences, strict=True)]
        self.firsts = [first if n else 0 for first, n in zip(self.firsts, lengths, strict=True)]

    @rule()
    def reset(self):
        self.cache.reset()
        self.sequences, self.firsts = [self.nothing() for _ in range(self.batch)], [0] * self.batch
        self.paddings = [Padding() for _ in range(self.batch)]

    @rule(data=st.data())
    def reorder(self, data):
        indices = data.draw(st.lists(st.integers(0, self.batch - 1), min_size=self.batch, max_size=self.batch))
        self.cache.reorder(indices)
        self.sequences = [self.sequences[i] for i in indices]
        self.firsts = [self.firsts[i] for i in indices]
        self.paddings = [copy.copy(self.paddings[i]) for i in indices]

    @rule(data=st.data())
    def save_and_load(self, data):
        self.cache = self.reloaded(data)

    @rule()
    def map_read_only(self):
        cache = self.mapped()
        for change in (lambda: cache.append(*self.new_rows(self.batch, 0)), lambda: cache.reorder(range(self.batch))):
            with pytest.raises(ValueError, match=r"mmap_mode must .* got 'r'"):
                change()
        query, next_ones = self.new_query(self.batch, 1), self.lengths
        expected = self.cache.attend(query, q_offset=next_ones)
        np.testing.assert_array_equal(cache.attend(query, q_offset=next_ones), expected)

    @invariant()
    def all_is_there(self):
        if not hasattr(self, "sequences"):
            return
        np.testing.assert_array_equal(self.cache.lengths, self.lengths)
        for b, (first, rows) in enumerate(zip(self.firsts, self.sequences, strict=True)):
            for x, expected in zip(held_rows(self.cache._store, [b], first, self.lengths[b]), rows, strict=True):
                np.testing.assert_array_equal(x, expected[:, first:])


class PagedMachine(Machine):
    @initialize(
        target_name=st.sampled_from(fastattn.targets()),
        dtype=st.sampled_from(DTYPES),
        num_pages=st.integers(1, 20),
        page_size=st.integers(1, 5) | st.just(16),
        kv_heads=st.integers(1, 2),
        group=st.integers(1, 3),
        sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        seed=st.integers(0, 2**32),
    )
    def make(self, target_name, dtype, num_pages, page_size, kv_heads, group, sizes, seed):
        self.set_up(target_name, dtype, kv_heads, group, *sizes, seed)
        self.num_pages, self.page_size = num_pages, page_size
        self.cache = fastattn.PagedKVCache(num_pages, page_size, kv_heads, sizes[0], dtype=dtype, value_dim=sizes[1])
        self.sequences, self.pages, self.ended = {}, {}, []  # by id: rows; pages, each an object of its own
        self.paddings, self.tokens = {}, 0

    def some(self, data, least=1):
        return data.draw(st.lists(st.sampled_from(list(self.sequences)), unique=True, min_size=least))

    def one(self, data):
        return data.draw(st.sampled_from(list(self.sequences)))

    def length(self, id):
        return self.sequences[id][0].shape[1]

    @rule()
    def allocate(self):
        id = self.cache.allocate()
        assert id not in [*self.sequences, *self.ended]
        self.sequences[id], self.pages[id], self.paddings[id] = self.nothing(), [], Padding()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        source = self.one(data)
        id = self.cache.fork(source)
        assert id not in [*self.sequences, *self.ended]
        self.sequences[id], self.pages[id] = self.sequences[source], list(self.pages[source])
        self.paddings[id] = copy.copy(self.paddings[source])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data):
        id = self.one(data)
        self.cache.free(id)
        del self.sequences[id], self.pages[id], self.paddings[id]
        self.ended.append(id)

    @precondition(lambda self: self.ended)
    @rule()
    def what_was_freed_is_gone(self):
        k, v = self.new_rows(1, 0)
        for call in (
            lambda: self.cache.free(self.ended[-1]),
            lambda: self.cache.fork(self.ended[0]),
            lambda: self.cache.append([self.ended[-1]], k, v),
        ):
            with pytest.raises(ValueError, match=r"ids? must belong to a live sequence, got"):
                call()

    @precondition(lambda self: self.sequences)
    @rule(tokens=st.integers(0, 4) | st.integers(0, 30), ragged=st.booleans(), data=st.data())
    def append(self, tokens, ragged, data):
        ids = self.some(data)
        k, v = self.new_rows(len(ids), tokens)
        lengths = self.rng.integers(0, tokens + 1, len(ids)) if ragged else None
        counts = np.full(len(ids), tokens) if lengths is None else lengths
        pages = self.pages | {id: list(self.pages[id]) for id in ids}
        for id, count in zip(ids, counts, strict=True):
            own, length = pages[id], self.length(id)
            if count and length % self.page_size and sum(own[-1] in other for other in pages.values()) > 1:
                own[-1] = object()
            own += [object() for _ in range(-(-(length + count) // self.page_size) - len(own))]
        if len({page for own in pages.values() for page in own}) > self.num_pages:
            with pytest.raises(fastattn.OutOfPages, match=r"num_pages must .* got"):
                self.cache.append(ids, k, v, kv_lengths=lengths)
            return
        self.cache.append(ids, k, v, kv_lengths=lengths, num_threads=data.draw(st.sampled_from([1, 2])))
        self.pages, self.tokens = pages, tokens
        for n, (id, count) in enumerate(zip(ids, counts, strict=True)):
            self.paddings[id].append(self.length(id), count, tokens)
            self.sequences[id] = self.add(self.sequences[id], k[n, :, :count], v[n, :, :count])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def attend(self, data):
        queries = self.some_queries(data, self.tokens)
        ids = self.some(data) + data.draw(st.sampled_from([[], list(self.sequences)[:1]]))
        sequences = [self.sequences[id] for id in ids]
        options = self.some_options(data, len(ids), queries, max(self.length(id) for id in ids))

        def attend(query, **options):
            return self.cache.attend(ids, query, **options)

        query, paddings, lengths = self.new_query(len(ids), queries), *self.stand(ids)
        told = self.told(options, paddings, lengths, queries, positions_matter(options))
        if told is None:
            with pytest.raises(ValueError, match=r"q_offset must be given .* got None"):
                attend(query, **options)
            return
        assert_attends(attend, query, sequences, options, told, self.dtype)

    def stand(self, ids):
        return [self.paddings[id] for id in ids], [self.length(id) for id in ids]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data):
        id = self.one(data)
        length = data.draw(st.integers(0, self.length(id)))
        self.cache.truncate(id, length)
        self.paddings[id].cut(self.length(id), length)
        self.sequences[id] = [x[:, :length] for x in self.sequences[id]]
        del self.pages[id][-(-length // self.page_size) :]

    @rule(data=st.data())
    def save_and_load(self, data):
        self.cache = self.reloaded(data)

    @precondition(lambda self: self.sequences)
    @rule()
    def map_read_only(self):
        cache, ids = self.mapped(), list(self.sequences)
        with pytest.raises(ValueError, match=r"mmap_mode must .* got 'r'"):
            cache.append(ids, *self.new_rows(len(ids), 0))
        query = self.new_query(len(ids), 1)
        np.testing.assert_array_equal(cache.attend(ids, query), self.cache.attend(ids, query))

    @invariant()
    def all_is_there(self):
        if not hasattr(self, "sequences"):
            return
        assert self.cache.lengths == {id: self.length(id) for id in self.sequences}
        used = {page for own in self.pages.values() for page in own}
        assert self.cache.free_pages == self.num_pages - len(used)
        tables = {id: self.cache.block_table(id).tolist() for id in self.sequences}
        assert len({page for own in tables.values() for page in own}) == len(used)
        for id, rows in self.sequences.items():
            for x, expected in zip(held_rows(self.cache._store, tables[id], 0, self.length(id)), rows, strict=True):
                np.testing.assert_array_equal(x, expected)


hard = hypothesis.settings(
    max_examples=int(os.environ.get("FASTATTN_EXAMPLES", hypothesis.settings().max_examples)),
    stateful_step_count=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
TestKVCache = FixedMachine.TestCase
TestKVCache.settings = hard
TestPagedKVCache = PagedMachine.TestCase
TestPagedKVCache.settings = hard
