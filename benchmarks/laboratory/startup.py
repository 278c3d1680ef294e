"""The start-up part of benchmarks/encoder.py: a new process, up to the embedding of one sentence.

The programs are written as a user would write them, in three steps: imports, loading, and one sentence. Their variables
are `folder`, `dtype`, `threads`, `graph` (the model as ONNX, if needed) and `text`.
"""

import json
import math
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np

from fastattn.commands.measuring.accuracy import Verdict
from fastattn.commands.measuring.engines import environment
from laboratory import encoder

TEXT = "Attention weighs every token of a sequence against every other one."

#: The targets: seconds of loading, seconds from the start of the process to the first embedding, and resident bytes
#: beyond the weights.
ASKED = {"load": 0.3, "first": 1.0, "beyond": 60e6}


@dataclass(frozen=True)
class Program:
    """One way to the first embedding.

    Attributes
    ----------
    imports, load, embed : str
        Statements; the last ones leave an array `embedding`.
    dtypes : tuple of str
        What it can be started in.
    graph : str
        The file of `peers.exported` that it loads; "" where it reads the model's folder.
    """

    imports: str
    load: str
    embed: str
    dtypes: tuple = ("float32",)
    graph: str = ""


_ARRAYS = """
ids = tokenizer.encode(text).ids
arrays = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "token_type_ids": [[0] * len(ids)]}
"""

_TOKENIZER = """
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.no_padding()
"""

_MEAN = """
embedding = hidden.mean(axis=0)
embedding = embedding / np.linalg.norm(embedding)
"""

PROGRAMS = {
    "fastattn": Program(
        "from fastattn.models import SentenceEncoder",
        "model = SentenceEncoder.from_pretrained(folder, dtype=dtype)",
        "embedding = model.encode(text)",
        dtypes=("float32", "bfloat16", "int8"),
    ),
    "torch": Program(
        "from sentence_transformers import SentenceTransformer",
        "model = SentenceTransformer(folder, device='cpu')",
        "embedding = model.encode(text, show_progress_bar=False)",
    ),
    "onnxruntime": Program(
        "import numpy as np\nimport onnxruntime\nfrom tokenizers import Tokenizer",
        _TOKENIZER
        + """
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
""",
        _ARRAYS
        + """
feeds = {node.name: np.array(arrays[node.name], node.type[7:-1]) for node in session.get_inputs()}  # "tensor(int64)"
hidden = session.run(None, feeds)[0][0]
"""
        + _MEAN,
        graph="fused.onnx",
    ),
    "openvino": Program(
        "import numpy as np\nimport openvino\nfrom tokenizers import Tokenizer",
        _TOKENIZER
        + """
settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
model = openvino.Core().compile_model(graph, "CPU", settings)
""",
        _ARRAYS
        + """
hidden = model({name: np.array(rows) for name, rows in arrays.items()})[0][0]
"""
        + _MEAN,
        graph="converted.xml",
    ),
}

_TIMED = """
import json, sys, time
folder, dtype, threads, graph, text = json.loads(sys.argv[1])
begun = time.perf_counter()
{imports}
imported = time.perf_counter()
{load}
loaded = time.perf_counter()
{embed}
try:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    resident, most = (1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
except FileNotFoundError:
    resident = most = None
answer = {{"import": imported - begun, "load": loaded - imported, "resident": resident, "most": most}}
print(json.dumps(answer | {{"embedding": [float(x) for x in embedding]}}), flush=True)
"""


@dataclass
class Start:
    """The results of several starts of one program.

    Attributes
    ----------
    engine, dtype : str
    times : list of dict
        By start the seconds of `import` and `load`, and from the start of the process to the `first` embedding; bytes
        that are `resident` then, and `most` of them until then.
    verdict : Verdict
        The worst one on the embedding.
    failure : str
    """

    engine: str
    dtype: str
    times: list = field(default_factory=list)
    verdict: Verdict | None = None
    failure: str = ""

    def median(self, what):
        """Of the starts; NaN without any, or where the system does not tell."""
        known = [found[what] for found in self.times if found[what] is not None]
        return statistics.median(known) if known else math.nan

    @property
    def beyond(self):
        """Resident bytes more than the weights have."""
        return self.median("resident") - encoder.weights_size(self.dtype)

    def as_json(self):
        """The start as plain data."""
        numbers = {what: self.median(what) for what in ("import", "load", "first", "resident", "most")}
        numbers |= {"beyond": self.beyond, "error": self.verdict.error if self.verdict else math.nan}
        words = {"engine": self.engine, "dtype": self.dtype, "failure": self.failure or None}
        return words | {what: None if math.isnan(number) else number for what, number in numbers.items()}


def measure(starts, graphs, threads, rounds):
    """Start each program `rounds` times, in turns, after a first time that brings files into memory.

    Parameters
    ----------
    starts : list of Start
        What is found is added to them.
    graphs : path
        The directory of `peers.exported`.
    threads, rounds : int
    """
    exact = encoder.exact_embedding(encoder.tokenizer().encode(TEXT).ids)
    for turn in range(rounds + 1):
        for start in starts:
            if not start.failure:
                _begin(start, graphs, threads, exact, counts=turn > 0)


def _begin(start, graphs, threads, exact, counts):
    """Start a program once; its times are kept if this one counts."""
    program = PROGRAMS[start.engine]
    graph = str(graphs / program.graph) if program.graph else ""
    arguments = [str(encoder.folder()), start.dtype, threads, graph, TEXT]
    line, seconds, start.failure = _answer(program, json.dumps(arguments), threads)
    if not start.failure:
        found = json.loads(line)
        verdict = encoder.check([np.array(found.pop("embedding"))], [exact], start.dtype)
        start.verdict = max(filter(None, [start.verdict, verdict]), key=operator.attrgetter("share"))
        start.times += [found | {"first": seconds}] if counts else []


def _answer(program, arguments, threads):
    """The line that a program prints, after how many seconds, and why it printed none."""
    code = _TIMED.format(imports=program.imports, load=program.load, embed=program.embed)
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-P", "-c", code, arguments],
            env=environment(threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            line = process.stdout.readline()
            seconds = time.perf_counter() - begun
        errors.seek(0)
        last_words = errors.read().splitlines()[-1:]
    return line, seconds, "" if line else ": ".join([f"exit code {process.returncode}", *last_words])
