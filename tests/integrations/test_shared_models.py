"""Models that the frameworks' classes share."""

import asyncio
import copy
import gc
import os
import pickle
import threading

import pytest

for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package)

from fastattn.integrations._shared_models import KEPT, Embedder, Shared
from fastattn.models import SentenceEncoder
from support.encoders import TEXTS, random_encoder


def test_one_model_for_all(encoder_folder, monkeypatch):
    monkeypatch.chdir(encoder_folder.parent)
    given = [encoder_folder, str(encoder_folder), encoder_folder.name, encoder_folder / ".." / encoder_folder.name]
    models = [Shared(SentenceEncoder, folder, "float32").model for folder in given]
    assert all(model is models[0] for model in models)
    assert Shared(SentenceEncoder, encoder_folder, "bfloat16").model is not models[0]


def test_read_once_by_threads(encoder_folder):
    read, go = [], threading.Barrier(8)

    class Kind:
        @classmethod
        def from_pretrained(cls, folder, dtype):
            read.append(folder)
            return cls()

    def run():
        go.wait()
        found.append(Shared(Kind, encoder_folder, "float32").model)

    found, threads = [], [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == len({*map(id, found)}) == 1


def test_read_again_when_saved_again(tmp_path):
    shared = Shared(SentenceEncoder, random_encoder("bert").save(tmp_path), "float32")
    first = shared.model.encode("a")
    (tmp_path / "model.safetensors").unlink()  # it is mapped
    random_encoder("bert", seed=1).save(tmp_path)
    os.utime(tmp_path / "config.json", ns=(0, 2**62))  # a clock may be coarse
    assert (Shared(SentenceEncoder, tmp_path, "float32").model.encode("a") != first).any()
    assert (shared.model.encode("a") == first).all()


def test_pickled_by_name(encoder_folder):
    shared = Shared(SentenceEncoder, encoder_folder, "float32")
    assert shared.model is pickle.loads(pickle.dumps(shared)).model
    assert len(pickle.dumps(shared)) < 1000


def test_few_are_kept(tmp_path):
    """And one that fails is tried again."""
    with pytest.raises(FileNotFoundError):
        _ = Shared(SentenceEncoder, tmp_path / "later", "float32").model
    first = Shared(SentenceEncoder, random_encoder("bert").save(tmp_path / "later"), "float32").model
    for i in range(KEPT):
        _ = Shared(SentenceEncoder, random_encoder("bert").save(tmp_path / str(i)), "float32").model
    assert Shared(SentenceEncoder, tmp_path / "later", "float32").model is not first


@pytest.mark.parametrize("folder", [3, b"x", ["x"]])
def test_wrong_folders(folder):
    with pytest.raises(TypeError):
        _ = Shared(SentenceEncoder, folder, "float32").model


def test_asynchronous_calls_are_packed_together(encoder_folder, encoder):
    embedder = Embedder(encoder_folder, "float32")

    async def run():
        queries = asyncio.gather(*map(embedder.queries_async, TEXTS))
        return await queries, await embedder.documents_async(TEXTS)

    for _ in range(2):  # in an event loop of its own each time
        queries, documents = asyncio.run(run())
        assert (queries == encoder.encode_query(TEXTS)).all()
        assert (documents == encoder.encode_document(TEXTS)).all()
    for other in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):
        assert (other.queries(TEXTS) == queries).all()


def test_a_thread_ends_with_its_object(encoder_folder):
    def threads():
        return sum(thread.name == "fastattn-batching" for thread in threading.enumerate())

    before, embedder = threads(), Embedder(encoder_folder, "float32")
    assert asyncio.run(embedder.queries_async("a")).shape == (24,)
    assert threads() == before + 1
    del embedder
    gc.collect()
    assert threads() == before
