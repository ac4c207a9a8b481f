"""A small causal language model on real sentences: three divergences from a transformer's outputs.

The text is that of CLINC150 (in `../shared/data`), what people ask of an assistant, in its own
train, val and test. A token is a word that occurs at least MIN_COUNT times in `train`; a sentence
is cut after WORDS words, and one of val or test that is then equal to one of another split is left
out. The teacher is a transformer of two layers that learned from all 15,000 sentences; the student
has one layer, half the width, and STUDENT_SENTENCES of them. Temperature (1) and weight (0.5, the
default) were not searched for; the epoch is chosen on VAL_SENTENCES of `val`. The control of a run
is the same student with the same sentences and epochs, and without the teacher.

    python benchmarks/learning_language.py --out benchmarks/results/learning_language.json

A run that was interrupted goes on; `--minutes 5` ends it after so long.

Overhaul does not check that a model looks at earlier tokens alone: here `is_causal` sees to it.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from learning_runs import QUIET, over_seeds, read, row, without_test, write
from torch import Tensor, nn
from torch.nn import functional

import overhaul as oh
from overhaul.evaluation import count_parameters

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("OVERHAUL_SHARED", ROOT.parent / "shared/data")) / "clinc150"
SEEDS = (0, 1, 2)
MIN_COUNT, WORDS = 10, 12
STUDENT_SENTENCES, VAL_SENTENCES = 5000, 1000
PAD, BEGIN, END, UNKNOWN = range(4)
TEACHER = {"width": 64, "layers": 2, "heads": 4, "dropout": 0.1}
STUDENT = {"width": 32, "layers": 1, "heads": 2}
TEACHER_EPOCHS, EPOCHS = 6, 4
DIVERGENCES = ("forward", "reverse", "jensen_shannon")


class Block(nn.Module):
    """Attention to earlier tokens, and two linear layers."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self._drop(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self._drop(self.down(functional.gelu(self.up(self.norm2(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """A causal language model whose output layer is its embedding."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(WORDS + 2, width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits; padding is at the end alone, so no earlier token sees it."""
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        return functional.linear(self.norm(self.blocks(self.dropout(x))), self.tokens.weight)


@cache
def task_of_text(limit: int | None = STUDENT_SENTENCES) -> oh.LanguageModel:
    """Return the task with so many sentences to learn from; `val` and `test` are the same."""
    whole = json.loads((DATA / "data_full.json").read_text())
    texts = {name: [text.split() for text, _ in whole[name]] for name in ("train", "val", "test")}
    counts = Counter(word for words in texts["train"] for word in words)
    known = sorted(word for word, count in counts.items() if count >= MIN_COUNT)
    number = {word: UNKNOWN + 1 + place for place, word in enumerate(known)}
    seen: set[tuple[int, ...]] = set()
    splits = {}
    for name, sentences in texts.items():
        rows = [(BEGIN, *(number.get(w, UNKNOWN) for w in s[:WORDS]), END) for s in sentences]
        kept = [ids for ids in rows if name == "train" or ids not in seen]
        seen |= set(kept)
        kept = kept[:: len(kept) // VAL_SENTENCES][:VAL_SENTENCES] if name == "val" else kept
        tokens = torch.full((len(kept), WORDS + 2), PAD)
        for place, ids in enumerate(kept):
            tokens[place, : len(ids)] = torch.tensor(ids)
        splits[name] = {"input_ids": tokens, "attention_mask": (tokens != PAD).long()}
    vocabulary = UNKNOWN + 1 + len(known)
    return oh.LanguageModel(**splits, vocabulary=vocabulary, train_limit=limit)


def vocabulary() -> int:
    return task_of_text().output_size(task_of_text().prepare())


@cache
def teacher_of(runs: Path) -> nn.Module:
    """Return the one teacher of all students."""
    torch.manual_seed(0)
    network = Transformer(vocabulary(), **TEACHER)
    step = oh.Train(epochs=TEACHER_EPOCHS, optimizer=oh.AdamW(lr=2e-3), clip_norm=1.0)
    return without_test(step, network, task_of_text(None), runs / "teacher", 0)


def into_student(divergence: str) -> oh.DistillInto:
    # A Jensen-Shannon divergence is a quarter of the others where both networks are alike.
    factor = 4.0 if divergence == "jensen_shannon" else 1.0
    match = oh.SoftTargets(temperature=1, divergence=divergence, weight=factor)
    student = oh.Network(factory=Transformer, arguments={"vocabulary": vocabulary(), **STUDENT})
    train = oh.Train(
        epochs=EPOCHS,
        optimizer=oh.AdamW(lr=5e-3),
        clip_norm=1.0,
        objective=oh.Distill(match=[match]),
    )
    return oh.DistillInto(student=student, train=train)


def one(divergence: str, seed: int, runs: Path) -> dict[str, Any]:
    run = oh.Recipe(into_student(divergence)).run(
        teacher_of(runs),
        task_of_text(),
        out=runs / f"{divergence}-{seed}",
        seed=seed,
        cost=False,
        progress=QUIET,
    )
    parameters = [count_parameters(network) for network in (teacher_of(runs), run.model)]
    return row(run) | {"parameters": parameters}


def tables(results: dict[str, Any]) -> str:
    lines = [
        "| divergence | seed | perplexity on test: teacher | alone | distilled "
        "| loss against alone, 95 % interval | the run says |",
        "|---|---|---|---|---|---|---|",
    ]
    for divergence in DIVERGENCES:
        rows = results.get(divergence, {})
        for seed, each in rows.items():
            values = [f"{math.exp(each[k]):.2f}" for k in ("teacher", "control", "student")]
            low, high = each["interval"]
            lines.append(
                f"| {divergence} | {seed} | {' | '.join(values)} "
                f"| {each['difference']:+.4f} ({low:+.4f} to {high:+.4f}), n = {each['n']} "
                f"| {each['effect']} |"
            )
        if len(rows) > 1:
            mean, half = over_seeds([each["difference"] for each in rows.values()])
            lines.append(
                f"| {divergence} | all | | | | {mean:+.4f} ({mean - half:+.4f} to "
                f"{mean + half:+.4f}), over seeds | |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the recipes, write JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/learning_language")
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    results = read(options.out)
    for seed, name in product(SEEDS, DIVERGENCES):
        if str(seed) in results.get(name, {}):
            continue
        if time.monotonic() > until:
            print("there is more to do")
            return
        found = one(name, seed, options.runs)
        results.setdefault(name, {})[str(seed)] = found
        write(options.out, results)
        print(name, seed, *found["says"], sep="\n", flush=True)
    print(tables(results))


if __name__ == "__main__":
    main()
