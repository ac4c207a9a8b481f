"""The whole way on each family of models that Overhaul serves: prune, train, deploy, reopen."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import seeded


@dataclass(frozen=True)
class Family:
    """A model with a task it fits."""

    name: str
    build: Callable[[], nn.Module]
    task: Callable[[], oh.Task]


def _three(make: Callable[[int, int], object]) -> dict[str, object]:
    return {"train": make(32, 1), "val": make(16, 2), "test": make(16, 3)}


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(states[:, -1])
        return logits


class _Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 6), nn.Embedding(70, 6)
        self.mlp = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rating: Tensor = self.mlp(torch.cat([self.users(user), self.items(item)], dim=1))
        return rating.squeeze(1)


class _GPTStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        logits: Tensor = self.head(self.blocks(x, mask=mask, is_causal=True)[:, -1])
        return logits


def _bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=2, max_position_embeddings=16,
    )  # fmt: skip
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def _vision_transformer() -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2
    )
    return model


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = pytest.importorskip("torchvision.models")
        model: nn.Module = getattr(models, name)(num_classes=3)
        return model

    return build


def _tokens(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (samples, 6), generator=generator)
    return tokens, (tokens[:, 0] > 9).long()


def _token_dicts(samples: int, seed: int) -> dict[str, Tensor]:
    tokens, labels = _tokens(samples, seed)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def _images(samples: int, seed: int, channels: int = 1, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(samples, channels, size, size, generator=generator),
        torch.arange(samples) % 3,
    )


def _ratings(samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(0, 50, (samples,), generator=generator)
    item = torch.randint(0, 70, (samples,), generator=generator)
    return (
        user,
        item,
        (user * 0.01 + item * 0.02 + torch.rand(samples, generator=generator)).float(),
    )


def _tags(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = torch.rand(samples, 10, generator=torch.Generator().manual_seed(seed))
    return rows, (rows[:, :4] > 0.5).float()


def _rgb(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    return _images(samples, seed, channels=3, size=32)


FAMILIES = [
    Family(
        "recurrent",
        _Recurrent,
        lambda: oh.Classification(**_three(_tokens)),
    ),
    Family(
        "recommender",
        _Recommender,
        lambda: oh.Regression(**_three(_ratings)),
    ),
    Family(
        "GPT style",
        _GPTStyle,
        lambda: oh.Classification(**_three(_tokens)),
    ),
    Family("BERT", _bert, lambda: oh.Classification(**_three(_token_dicts))),
    Family(
        "ViT",
        _vision_transformer,
        lambda: oh.Classification(**_three(_images)),
    ),
    Family(
        "MLP, many labels",
        lambda: nn.Sequential(nn.Linear(10, 12), nn.GELU(), nn.Linear(12, 4)),
        lambda: oh.MultiLabel(**_three(_tags)),
    ),
    Family(
        "MobileNet",
        _torchvision("mobilenet_v3_small"),
        lambda: oh.Classification(**_three(_rgb)),
    ),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_prune_train_deploy_reopen(family: Family, tmp_path: Path) -> None:
    with seeded(0):
        model = family.build()
    task = family.task()
    recipe = oh.Recipe(
        oh.PruneWeights(sparsity=0.3),
        oh.Train(epochs=1, batch_size=8, objective=oh.Distill()),
        oh.Deploy(engines=("torch",), timing_s=0.1, cost=False),
    )
    run = recipe.run(
        model, task, out=tmp_path / "run", cost=False, progress=oh.Progress(quiet=True)
    )
    assert run.artifact is not None
    fast = oh.load(run.artifact)
    batch = task.prepare().val.read(torch.arange(5))
    run.model.eval()
    with torch.no_grad():
        expected = batch.forward(run.model)
    torch.testing.assert_close(batch.forward(fast), expected, rtol=1e-3, atol=1e-4)
    macs = {f.subject: f.value for f in run.facts if f.name == "macs"}
    assert float(macs["original"] or 0) > 0
