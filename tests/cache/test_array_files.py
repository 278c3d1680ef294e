"""The form of files that caches and packed weights share: their text, and the padding after each array."""

import itertools
import tracemalloc

import numpy as np
import pytest

import fastattn

KINDS = {
    "KVCache": lambda: fastattn.KVCache(2, 2, 9, 5),
    "PagedKVCache": lambda: fastattn.PagedKVCache(9, 3, 2, 5),
    "PackedWeight": lambda: fastattn.pack(np.ones((3, 5), np.float32)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mode = pytest.mark.parametrize("mmap_mode", [None, "r"])


@pytest.fixture
def whole(kind, tmp_path):
    """(the class, its file, the file's bytes)"""
    saved, path = KINDS[kind](), tmp_path / "file"
    saved.save(path)
    return type(saved), path, path.read_bytes()


def arrays_of(path):
    """Each array of a file, and where its data ends."""
    with open(path, "rb") as file:
        while file.peek(1):
            yield np.load(file), file.tell()


@each_kind
@each_mode
def test_a_long_text_takes_no_memory(whole, mmap_mode):
    kind, path, content = whole
    (text, _), (_, begin) = itertools.islice(arrays_of(path), 2)
    long = text.tobytes().ljust(1 << 22)  # blanks at the end are JSON
    with open(path, "wb") as file:
        np.save(file, np.frombuffer(long, np.uint8))
        np.save(file, np.zeros(-len(long) % 64, np.uint8))
        file.write(content[begin:])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its first array has shape"):
            kind.load(path, mmap_mode=mmap_mode)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@each_kind
@each_mode
def test_padding_is_zeros(whole, mmap_mode):
    kind, path, content = whole
    paddings = [(end - x.nbytes, end - 1) for x, end in itertools.islice(arrays_of(path), 1, None, 2) if x.nbytes]
    assert paddings
    for at in itertools.chain(*paddings):
        spoiled = bytearray(content)
        spoiled[at] = 1
        path.write_bytes(spoiled)
        with pytest.raises(ValueError, match="the padding after an array is not zeros"):
            kind.load(path, mmap_mode=mmap_mode)
