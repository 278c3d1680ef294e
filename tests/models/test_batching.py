"""SentenceEncoder.batching: calls of threads and tasks are packed together, and none affects another."""

import asyncio
import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import SentenceEncoder
from fastattn.models.backbone import Backbone
from support import encoders
from support.encoders import CHARACTERS, TEXTS, modules, random_encoder
from support.processes import output

LONG = 20  # seconds: what takes longer hangs
DEFAULTS = "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    defaults = {"prompts": {"query": "ask. "}}
    files = modules({"pooling_mode": "mean", "include_prompt": False}, normalize=True) | {DEFAULTS: defaults}
    folder = random_encoder("bert").save(tmp_path_factory.mktemp("model"), files)
    return SentenceEncoder.from_pretrained(folder)


@pytest.fixture
def packs(monkeypatch):
    """The number of texts in each pass through the layers."""
    found, compute = [], Backbone.__call__

    def counting(self, packed, num_threads=None):
        found.append(len(packed.cu_seqlens) - 1)
        return compute(self, packed, num_threads)

    monkeypatch.setattr(Backbone, "__call__", counting)
    return found


@pytest.fixture
def held(monkeypatch):
    """An event that lets the model go on; until then it has begun a first pass."""
    goes_on, begun, compute = threading.Event(), threading.Event(), Backbone.__call__

    def waiting(self, packed, num_threads=None):
        begun.set()
        assert goes_on.wait(LONG)
        return compute(self, packed, num_threads)

    monkeypatch.setattr(Backbone, "__call__", waiting)
    goes_on.begun = begun
    yield goes_on
    goes_on.set()


def together(*calls):
    """The results of functions, or their exceptions, each called in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = [threads.submit(call) for call in calls]
        return [future.exception(LONG) or future.result() for future in futures]


# Results


OPTIONS = [
    {},
    {"prompt": "a b "},
    {"prompt_name": "query"},
    {"truncate_dim": 7},
    {"truncate_dim": 7, "normalize": True},
    {"normalize": False},
    {"precision": "int8"},
    {"precision": "ubinary", "truncate_dim": 13},
]


@pytest.mark.parametrize("max_tokens", [None, 1, 50])
@pytest.mark.parametrize("max_wait_ms", [0, 5.0])
def test_results(model, packs, max_tokens, max_wait_ms):
    """Bit for bit those of encode, whatever others ask for at the same time."""
    texts = [TEXTS[i:] + TEXTS[:i] for i in range(len(OPTIONS))]
    expected = [model.encode(several, **options) for several, options in zip(texts, OPTIONS, strict=True)]
    packs.clear()
    with model.batching(max_wait_ms, max_tokens=max_tokens, num_threads=1) as batching:
        for _ in range(3):
            found = together(*(
                lambda several=several, options=options: batching.encode(several, **options)
                for several, options in zip(texts, OPTIONS, strict=True)
            ))  # fmt: skip
            for result, right in zip(found, expected, strict=True):
                np.testing.assert_array_equal(result, right)
                assert result.dtype == right.dtype
    if max_tokens == 1:
        assert set(packs) == {1}


def test_one_text_and_none(model):
    with model.batching() as batching:
        np.testing.assert_array_equal(batching.encode("a cat"), model.encode("a cat"))
        assert batching.encode([]).shape == (0, 24)
        assert batching.encode([], precision="ubinary", truncate_dim=9).shape == (0, 2)
        np.testing.assert_array_equal(batching.encode(text for text in TEXTS), model.encode(TEXTS))


def test_calls_that_come_while_the_model_works_are_packed(model, packs, held):
    with model.batching() as batching, ThreadPoolExecutor(9) as threads:
        futures = [threads.submit(batching.encode, CHARACTERS[:1])]
        assert held.begun.wait(LONG)
        futures += [threads.submit(batching.encode, CHARACTERS[: i + 2]) for i in range(8)]
        wait_for(batching, 8)
        held.set()
        found = [future.result(LONG) for future in futures]
    assert packs == [1, 8]
    for i, result in enumerate(found):
        np.testing.assert_array_equal(result, model.encode(CHARACTERS[: i + 1]))


def test_calls_wait_for_others(model, packs):
    """As long as they may, or until there are tokens enough."""
    with model.batching(max_wait_ms=1000 * LONG, max_tokens=12) as batching:
        together(*(lambda: batching.encode("ab") for _ in range(6)))  # of four tokens each
    assert packs == [3, 3]
    with model.batching(max_wait_ms=1) as batching:
        batching.encode("ab")  # nobody else comes


def test_a_large_call_does_not_hold_up_small_ones(model, held):
    """Texts are taken from all calls in turn: a small call ends though the large one came before and does not."""
    with model.batching(max_tokens=40) as batching, ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(batching.encode, "a")]
        assert held.begun.wait(LONG)
        large = threads.submit(batching.encode, ["ab"] * 500)
        wait_for(batching, 1)
        small = threads.submit(batching.encode, ["b", "c"])
        wait_for(batching, 2)
        done = []
        for future in (*futures, large, small):
            future.add_done_callback(done.append)
        held.set()
        assert large.result(LONG).shape == (500, 24)
    assert done.index(small) < done.index(large)


def wait_for(batching, count):
    """Until so many calls wait."""
    [worker] = batching._workers.values()
    end = time.monotonic() + LONG
    while len(worker._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


# Failures


def test_calls_that_fail_at_once(model):
    with model.batching() as batching:
        for arguments, options, error, message in (
            (7, {}, TypeError, "texts must be a str or a list of str, got int"),
            (["a", 7], {}, TypeError, r"texts\[1\] must be a str"),
            ("\ud800", {}, ValueError, "must be Unicode"),
            ("a", {"prompt_name": "other"}, ValueError, "prompt_name must be one of query, document, got 'other'"),
            ("a", {"truncate_dim": 25}, ValueError, "truncate_dim must be at most 24"),
            ("a", {"precision": "int8"}, ValueError, "must have the range of two embeddings"),
        ):
            with pytest.raises(error, match=message):
                batching.encode(arguments, **options)
            with pytest.raises(error, match=message):
                asyncio.run(batching.encode_async(arguments, **options))
        np.testing.assert_array_equal(batching.encode(TEXTS), model.encode(TEXTS))


def test_a_call_that_fails_in_the_model(tmp_path, model, held):
    """The others in its pack do not: here a token that the model does not know."""
    random_encoder("bert").save(tmp_path, modules(normalize=True))
    tokenizer = encoders.tokenizer()
    tokenizer.add_tokens(["cat"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    broken = SentenceEncoder.from_pretrained(tmp_path)
    texts = ["a", ["b", "the cat", "c"], "d", ["e"] * 100, "cat"]
    with broken.batching() as batching, ThreadPoolExecutor(6) as threads:
        first = threads.submit(batching.encode, "x")
        assert held.begun.wait(LONG)
        futures = [threads.submit(batching.encode, several) for several in texts]
        wait_for(batching, len(texts))
        held.set()
        first.result(LONG)
        for several, future in zip(texts, futures, strict=True):
            if "cat" in str(several):
                with pytest.raises(ValueError, match=r"tokenizer\.json's tokens must be at least 0 and below 62"):
                    future.result(LONG)
            else:
                np.testing.assert_array_equal(future.result(LONG), model.encode(several))
        np.testing.assert_array_equal(batching.encode("a"), model.encode("a"))


def test_a_tokenizer_that_fails(monkeypatch, model):
    with model.batching() as batching:
        monkeypatch.setattr("fastattn.models.tokens.Tokens.__call__", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                batching.encode("a")
        with pytest.raises(ZeroDivisionError):
            asyncio.run(batching.encode_async("a" * 2000))
        monkeypatch.undo()
        batching.encode("a")


# asyncio


def test_tasks(model):
    texts = [TEXTS[: i % 9 + 1] for i in range(40)]
    texts += ["word " * 1000]  # tokenized in another thread

    async def main():
        async with model.batching(max_wait_ms=1) as batching:
            return await asyncio.gather(*map(batching.encode_async, texts))

    for several, result in zip(texts, asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(result, model.encode(several))


def test_tasks_and_threads_and_loops(model):
    """All at once, with one object."""

    async def main(batching):
        return await asyncio.gather(*(batching.encode_async(text) for text in TEXTS))

    with model.batching() as batching:
        calls = [lambda: asyncio.run(main(batching)), lambda: batching.encode(TEXTS)] * 3
        for result in together(*calls):
            np.testing.assert_array_equal(result, model.encode(TEXTS))


@pytest.mark.parametrize("text", ["ab", "ab" * 1000], ids=["short", "long"])
def test_tasks_that_are_cancelled(model, held, text):
    """Others get their results, and nothing is left over."""

    async def main():
        async with model.batching() as batching:
            first = asyncio.create_task(batching.encode_async("a"))
            await asyncio.to_thread(held.begun.wait, LONG)
            tasks = [asyncio.create_task(batching.encode_async(text)) for _ in range(8)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            first.cancel()  # at work already
            await asyncio.sleep(0)
            held.set()
            return await asyncio.gather(first, *tasks, return_exceptions=True)

    first, *results = asyncio.run(asyncio.wait_for(main(), LONG))
    assert isinstance(first, asyncio.CancelledError)
    for i, result in enumerate(results):
        if i % 2:
            np.testing.assert_array_equal(result, model.encode(text))
        else:
            assert isinstance(result, asyncio.CancelledError)


def test_what_was_cancelled_is_not_computed(model, packs, held):
    async def main():
        async with model.batching() as batching:
            first = asyncio.create_task(batching.encode_async("a"))
            await asyncio.to_thread(held.begun.wait, LONG)
            task = asyncio.create_task(batching.encode_async(["ab"] * 1000))
            await asyncio.to_thread(wait_for, batching, 1)
            task.cancel()
            await asyncio.sleep(0)
            held.set()
            await first

    asyncio.run(main())
    assert sum(packs) == 1


def test_the_loop_is_not_blocked(model, held):
    async def main():
        async with model.batching() as batching:
            task = asyncio.create_task(batching.encode_async("a"))
            await asyncio.to_thread(held.begun.wait, LONG)
            assert not task.done()  # and yet we are here
            held.set()
            await task

    asyncio.run(asyncio.wait_for(main(), LONG))


# The end


def test_closing_waits(model, held):
    batching = model.batching()
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(batching.encode, "a")]
        assert held.begun.wait(LONG)
        futures += [threads.submit(batching.encode, "ab") for _ in range(2)]
        wait_for(batching, 2)
        closing = threads.submit(batching.close)
        while not batching._closed:
            time.sleep(0.001)
        with pytest.raises(RuntimeError, match="batching must be open, got one that is closed"):
            batching.encode("a")
        assert not closing.done()
        held.set()
        closing.result(LONG)
        [worker] = batching._workers.values()
        assert not worker._open  # every call has its result, though its thread may not have woken
        assert [future.result(LONG).shape for future in futures] == 3 * [(24,)]
    batching.close()  # once more


def test_closing_in_a_loop_waits_for_its_tasks(model):
    """Also by `with`, which blocks the loop."""

    async def main():
        with model.batching(max_wait_ms=1000 * LONG) as batching:
            tasks = [asyncio.create_task(batching.encode_async(text)) for text in ("ab", "ab" * 2000)]
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    for result in asyncio.run(asyncio.wait_for(main(), LONG)):
        assert result.shape == (24,)


def test_closed(model):
    with model.batching() as batching:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        batching.encode("a")
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(batching.encode_async("a"))


def test_the_thread_ends_with_the_object(model):
    before = threading.active_count()
    batching = model.batching()
    batching.encode("a")
    assert threading.active_count() == before + 1
    gone = weakref.ref(batching)
    del batching
    gc.collect()
    assert gone() is None
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_encoder("bert").save(tmp_path_factory.mktemp("folder"))


def test_the_interpreter_ends_though_nobody_closed_it(folder):
    code = """
    import sys
    from fastattn.models import SentenceEncoder

    batching = SentenceEncoder.from_pretrained(sys.argv[1]).batching(max_wait_ms=1)
    print(batching.encode("a").shape)
    """
    assert output(code, str(folder)) == "(24,)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_children(folder):
    """They have a thread of their own, whatever the parent's is at; and may close it."""
    code = """
    import os, signal, sys, threading
    import numpy as np
    from fastattn.models import SentenceEncoder

    model = SentenceEncoder.from_pretrained(sys.argv[1])
    batching, texts, stop = model.batching(max_wait_ms=1), ["the cat", "a", ""] * 20, threading.Event()
    expected = model.encode(texts)

    def calls():
        while not stop.is_set():
            assert np.array_equal(batching.encode(texts), expected)

    threads = [threading.Thread(target=calls) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(6):
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends it if it hangs
            same = i % 3 == 2 or np.array_equal(batching.encode(texts), expected)
            if i % 3:
                batching.close()
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop.set()
    for thread in threads:
        thread.join()
    batching.close()
    """
    output(code, str(folder), TOKENIZERS_PARALLELISM="false")


# What is refused


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"max_wait_ms": -1}, ValueError, "max_wait_ms"),
    ({"max_wait_ms": float("nan")}, ValueError, "max_wait_ms"),
    ({"max_wait_ms": "2"}, TypeError, "max_wait_ms"),
    ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0"),
    ({"max_tokens": 2.5}, TypeError, "max_tokens"),
    ({"num_threads": 0}, ValueError, "num_threads"),
])  # fmt: skip
def test_refused_options(model, options, error, message):
    with pytest.raises(error, match=message):
        model.batching(**options)


def test_a_model_that_makes_no_embeddings(tmp_path):
    encoder = random_encoder("bert")
    encoder.save(tmp_path, {"config.json": encoder.config | {"architectures": ["BertForMaskedLM"]}})
    with pytest.raises(ValueError, match="must have a model without a head"):
        SentenceEncoder.from_pretrained(tmp_path).batching()
