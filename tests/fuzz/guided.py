"""Files of models, caches and packed weights, changed by libFuzzer, which goes on from those that reach new lines.

    PYTHONPATH=. python tests/fuzz/guided.py CORPUS -max_total_time=3600

needs atheris. CORPUS is a folder, made of the right files if there is none. What test_files.py does not allow ends the
run and leaves the input in a file: `guided.py crash-...` repeats it. The other options are libFuzzer's.
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import hypothesis
import hypothesis.strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["fastattn"]):
    import test_files as files

    import fastattn
from support.fuzzing import silent

# An input: three bytes that choose what is read, which of its files is another one, and how it is read; then that file.
KINDS = [*sorted(files.MODELS), *sorted(files.MAKERS)]
DTYPES, MMAP_MODES = ("float32", "float16", "bfloat16", "int8"), (None, "r", "c")

# The right folders, and all names of files in any of them.
FOLDER = Path(tempfile.mkdtemp())
for _kind, (_make, *_) in files.MODELS.items():
    _make(FOLDER / _kind)
NAMES = sorted({str(Path(*x.relative_to(FOLDER).parts[1:])) for x in FOLDER.rglob("*") if x.is_file()})


def header(content):
    """Of a file of tensors. Their numbers are not a part of an input, which they would fill."""
    return content[: 8 + int.from_bytes(content[:8], "little")]


def read_folder(kind, name, dtype, content):
    folder, former, (_, model_class, call) = FOLDER / "read" / "folder", FOLDER / kind / name, files.MODELS[kind]
    if former.suffix == ".safetensors" and former.exists():
        content += former.read_bytes()[len(header(former.read_bytes())) :]
    shutil.copytree(FOLDER / kind, folder)
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        with files.inside(folder), files.bounded_memory(), silent():
            model = files.taken(folder, model_class.from_pretrained, folder, dtype)
            if model is not None:
                with contextlib.suppress(ValueError):
                    assert files.all_numbers(call(model))
    finally:
        shutil.rmtree(folder)


def read_arrays(kind, mmap_mode, content):
    path, (make, use) = FOLDER / "arrays", files.MAKERS[kind]
    path.write_bytes(content)
    with files.bounded_memory(), silent():
        loaded = files.taken(path, type(make(kind, "float32")).load, path, mmap_mode=mmap_mode)
        if loaded is not None:
            use(loaded) if mmap_mode != "r" else repr(loaded)


def one_input(data):
    if len(data) < 3:
        return
    kind = KINDS[data[0] % len(KINDS)]
    if kind in files.MODELS:
        read_folder(kind, NAMES[data[1] % len(NAMES)], DTYPES[data[2] % 4], data[3:])
    else:
        read_arrays(kind, MMAP_MODES[data[2] % 3], data[3:])


def mutated(data, max_size, seed):
    """Another place for the same file, another value somewhere in its JSON, or libFuzzer's own changes of bytes."""
    rng, found = random.Random(seed), []
    if rng.random() < 0.1:
        return rng.randbytes(3) + data[3:]

    @hypothesis.settings(database=None)
    @hypothesis.given(st.data())
    def change(drawn):
        if data[11:12] == b"{" and data[3:4] not in b"{[":
            found.append(files.changed_tensors(drawn.draw, data[3:]))
        else:
            found.append(json.dumps(files.changed_json(drawn.draw, json.loads(data[3:]))).encode())

    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            change.hypothesis.fuzz_one_input(rng.randbytes(1000))
    return (data[:3] + found[0])[:max_size] if found else atheris.Mutate(data, max_size)


def seeds():
    """The right files."""
    for i, kind in enumerate(KINDS):
        if kind in files.MAKERS:
            for n, dtype in enumerate(DTYPES):
                files.MAKERS[kind][0](kind, dtype).save(FOLDER / "arrays")
                yield bytes([i, 0, n]) + (FOLDER / "arrays").read_bytes()
            continue
        for n, path in enumerate(FOLDER / kind / name for name in NAMES):
            if path.exists():
                content = path.read_bytes()
                yield bytes([i, n, n]) + (header(content) if path.suffix == ".safetensors" else content)


if __name__ == "__main__":
    fastattn.set_num_threads(1)
    corpus = Path(sys.argv[1])
    if not corpus.exists():
        corpus.mkdir()
        for n, seed in enumerate(seeds()):
            (corpus / f"right-{n}").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-max_len=20000", "-keep_seed=1", *sys.argv[1:]], one_input, custom_mutator=mutated)
    atheris.Fuzz()
