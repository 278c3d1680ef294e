"""Memory beyond inputs and outputs: flat in the sequence length, none for strided views, none left behind."""

import sys

import pytest

from processes import output

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in kilobytes")

# What a call may add to the process: the threads' scratch and their stacks. A single row of scores more for each query
# would be over a hundred times this.
ALLOWANCE = 8_000_000

MEASURE = """
    import resource
    import numpy as np
    import fastattn

    attention = fastattn.scaled_dot_product_attention

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def ones(*shape):
        return np.ones(shape, np.float32)
"""


def growth(code):
    """Bytes by which the peak grew over the last line of `code`."""
    *before, measured = [line for line in code.splitlines() if line.strip()]
    before = "\n".join(before)
    return int(output(f"{MEASURE}\n{before}\n    start = peak()\n{measured}\n    print(peak() - start)"))


def test_scratch_does_not_grow_with_the_scores():
    code = """
    query, key, value, out = ones(1, 16384, 8), ones(1, 16384, 8), ones(1, 16384, 8), ones(1, 16384, 8)
    attention(query[:, :4096], key[:, :4096], value[:, :4096])
    attention(query, key, value, out=out)
    """
    assert growth(code) < ALLOWANCE


def test_split_keys_need_little_more():
    code = """
    query, key, value, out = ones(1, 64, 16), ones(1, 200_000, 16), ones(1, 200_000, 16), ones(1, 64, 16)
    attention(query, key[:, :100], value[:, :100])
    attention(query, key, value, out=out)
    """
    assert growth(code) < ALLOWANCE


@pytest.mark.parametrize("queries", [1, 40])
def test_transposed_views_are_not_copied(queries):
    """Keys and values of 64 MB each, heads inside rows."""
    code = f"""
    query, out = ones(1, {queries}, 8, 64).swapaxes(1, 2), ones(1, {queries}, 8, 64).swapaxes(1, 2)
    key, value = ones(1, 32768, 8, 64).swapaxes(1, 2), ones(1, 32768, 8, 64).swapaxes(1, 2)
    attention(query, key[:, :, :100], value[:, :, :100])
    attention(query, key, value, out=out)
    """
    assert growth(code) < ALLOWANCE


@pytest.mark.parametrize("convert", ["x.astype(np.float32)", "unaligned(x)", "x[..., ::-1]"])
def test_other_keys_and_values_are_not_copied_whole(convert):
    code = f"""
    def unaligned(x):
        return np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    x, query, out = np.ones((1, 100_000, 64)), np.ones((1, 40, 64)), np.ones((1, 40, 64))
    key = value = {convert}
    attention(query, key[:, :100], value[:, :100])
    attention(query, key, value, out=out)
    """
    assert growth(code) < ALLOWANCE


@pytest.mark.parametrize(
    "call",
    [
        "fastattn.softmax(x, out=out)",
        "fastattn.softmax(x, axis=0, out=out)",
        "fastattn.log_softmax(x, out=x)",
        "fastattn.layer_norm(x, out=out)",
        "fastattn.rms_norm(x, out=x)",
        "fastattn.rotary_embedding(x, x[:, :2000], x[:, 2000:], out=out)",
        "fastattn.rotary_embedding(x, angles, angles, positions=np.arange(4000), interleaved=True, out=x)",
    ],
)
def test_rows_need_no_copy(call):
    code = f"""
    x, out, angles = ones(4000, 4000), ones(4000, 4000), ones(4000, 2000)
    fastattn.softmax(x[:10]), fastattn.softmax(x[:10], axis=0), fastattn.layer_norm(x[:10])
    {call}
    """
    assert growth(code) < ALLOWANCE


def test_nothing_is_left_behind():
    """By calls, refused calls, and Python threads that ended."""
    code = """
    import threading
    x = ones(2, 2, 300, 64)

    def work(count):
        for _ in range(count):
            attention(x, x, x, is_causal=True, return_lse=True, num_threads=2)
            fastattn.softmax(x, axis=1), fastattn.add_rms_norm(x, x)
            try:
                attention(x, x, x[..., :5, :], out=x)
            except ValueError:
                pass

    def in_threads(count):
        for _ in range(count):
            thread = threading.Thread(target=work, args=(1,))
            thread.start()
            thread.join()

    work(20), in_threads(5)
    work(100), in_threads(100)
    """
    assert growth(code) < 2_000_000
