"""Measure the error of embeddings in each dtype, against sentence-transformers' in float32, and its effect on rankings.

    python benchmarks/embedding_accuracy.py             # print the table; takes a minute
    python benchmarks/embedding_accuracy.py --page      # write docs/performance/embedding-accuracy.md

The weights are those of MiniLM-L6, the texts a thousand of those that benchmarks/encoder.py embeds, and some harder
ones: in short texts, errors average out less. Needs pip install '.[compare]'.
"""

import os
import string

import numpy as np

from fastattn.models import SentenceEncoder, default_folder
from laboratory import judgements
from laboratory.encoder import texts
from report import Page, print_or_write

PAGE = Page(
    "embedding-accuracy",
    "Accuracy of embeddings",
    """\
The cost of narrower types: cosines to sentence-transformers' embeddings in float32, over a thousand sentences and
docstrings and some harder texts, including single letters. If the processor does not multiply 8-bit integers
(AVX512_VNNI, AMX), int8 quantises only the weights.""",
    "embedding_accuracy.py",
)

LEGEND = f"""\
Rankings: {len(judgements.PAIRS)} pairs of sentences, each with a grade of similarity, and {len(judgements.QUERIES)}
queries, each with an answer among {len(judgements.PASSAGES)} passages, written for this page
(`benchmarks/laboratory/judgements.py`). The first two columns are Spearman's correlations of the pairs' cosines: with
the grades, and with sentence-transformers' cosines in float32. nDCG@10 is that of the passages, ranked by cosine."""

DTYPES = ("float32", "float16", "bfloat16", "int8")

#: Single characters and words, accents, emoji, Chinese and Japanese, empty texts, more tokens than the maximum.
HARD = (
    *string.ascii_lowercase, *".?!,0é猫", "yes", "no", "hello", "the", "", " ",
    "Le café était déjà fermé — où aller ?", "ÅNGSTRÖM ΣΊΣΥΦΟΣ İstanbul", "\N{GUITAR}\N{FIRE} emoji",
    "今日は天気がいいですね。我们去公园吧。", "Attention weighs every token against every other one. " * 60,
)  # fmt: skip


def by_sentence_transformers(several):
    """Embeddings in float32 by PyTorch."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(default_folder()), device="cpu").encode(several, show_progress_bar=False)


def cosines(x, y):
    """The cosines between the rows of two arrays."""
    x, y = (rows.astype(np.float64) for rows in (x, y))
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def table():
    """The two tables, in Markdown."""
    several = [*texts()[:1000], *HARD]
    exact = by_sentence_transformers([*several, *judged()])
    lines = ["| dtype | smallest cosine | of the text | median |", "| --- | ---: | --- | ---: |"]
    ranked = ["| dtype | with the grades | with float32 | nDCG@10 |", "| --- | ---: | ---: | ---: |"]
    reference = exact[len(several) :]
    ranked.append(_line_of_ranking("sentence-transformers, float32", reference, reference))
    for dtype in DTYPES:
        embeddings = SentenceEncoder.from_pretrained(dtype=dtype).encode([*several, *judged()])
        found = cosines(embeddings, exact)[: len(several)]
        worst = several[int(found.argmin())]
        lines.append(f"| {dtype} | {found.min():.7f} | `{worst!r:.30}` | {np.median(found):.7f} |")
        ranked.append(_line_of_ranking(dtype, embeddings[len(several) :], reference))
    return "\n\n".join(["\n".join(lines), "\n".join(ranked), LEGEND])


def judged():
    """The texts of the judgements: the pairs, the queries, the passages."""
    pairs = [text for _, *pair in judgements.PAIRS for text in pair]
    return [*pairs, *judgements.QUERIES, *judgements.PASSAGES]


def ranking(embeddings):
    """(cosines of the pairs, cosines of queries and passages) from the embeddings of `judged`."""
    end = 2 * len(judgements.PAIRS)
    queries, passages = np.split(embeddings[end:].astype(np.float64), [len(judgements.QUERIES)])
    queries, passages = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, passages))
    return cosines(embeddings[:end:2], embeddings[1:end:2]), queries @ passages.T


def _line_of_ranking(name, embeddings, reference):
    (pairs, scores), (exact, _) = ranking(embeddings), ranking(reference)
    grades = [grade for grade, *_ in judgements.PAIRS]
    numbers = (judgements.correlation(pairs, grades), judgements.correlation(pairs, exact), judgements.gain(scores))
    return f"| {name} | {' | '.join(f'{number:.4f}' for number in numbers)} |"


if __name__ == "__main__":
    print_or_write(table, PAGE, __doc__)
