"""Sequences whose length may change from call to call."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from overhaul.core import ArtifactError, Context, CorruptedFileError, DataError, SpecError
from overhaul.deploy import (
    Artifact,
    Deploy,
    Engine,
    Runner,
    Signature,
    TensorInfo,
    Torch,
    compare_engines,
    load,
)
from overhaul.deploy._interface import Interface, real_batch
from overhaul.deploy._lengths import of_length, with_lengths
from overhaul.runtime import load as load_without_torch
from overhaul.runtime import read_signature
from tests.deploy.engine_cases import installed
from tests.deploy.networks import network, normal, task_of, whole
from tests.deploy.row_task import Rows, RowTask, fact

MakeContext = Callable[..., Context]
TOKENS = whole(20, 20, 5)


class Positions(nn.Module):
    """A transformer with a table of positions, which ends somewhere, and causal attention."""

    def __init__(self, positions: int = 12) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 8), nn.Embedding(positions, 8)
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        out: Tensor = self.head(self.encode(self.embed(tokens) + self.place(places))[:, 0])
        return out


class Steps(nn.Module):
    """Two recurrent layers over real numbers, one of them in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.gru = nn.GRU(6, 5, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.lstm(x)[0].transpose(0, 1)
        out: Tensor = self.head(self.gru(steps)[0].mean(0))
        return out


class Filters(nn.Module):
    """A convolution over tokens, which needs at least three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(20, 8), nn.Conv1d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(self.embed(tokens).transpose(1, 2)).amax(2))
        return out


class Flat(nn.Module):
    """A network that knows how many tokens there are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(40, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(tokens).flatten(1))
        return out


class Tagger(nn.Module):
    """An output for each token, and one for each two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        each = self.embed(tokens)
        return {"each": each, "pair": each[:, 1:] + each[:, :-1]}


class ShortOnly(Torch):
    """An engine that computes nonsense with short sequences."""

    file_name: ClassVar[str] = "short.pt2"

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        run = super().open(path, signature, threads)
        return lambda inputs: [y + (inputs[0].shape[1] < 3) for y in run(inputs)]


BOTH = (Positions, Steps)


def tokens_task() -> RowTask:
    return RowTask(inputs=(TOKENS,), targets=whole(3, 20, seed=3))


def steps_task() -> RowTask:
    return RowTask(inputs=(normal(20, 5, 4),), targets=whole(3, 20, seed=3))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def deployed(
    model: nn.Module, task: RowTask, ctx: Context, *engines: Engine, **fields: object
) -> Artifact:
    step = Deploy(engines=engines or (Torch(),), timing_s=0.01, cost=False, **fields)
    step.apply(model, ctx)
    assert isinstance(ctx.deployed, Artifact)
    return ctx.deployed


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        *((engine, kind) for engine in ("torch", "onnxruntime", "openvino") for kind in BOTH),
        ("torch", Filters),
    ],
)
def test_a_call_may_have_other_lengths(
    engine: str, kind: type[nn.Module], make_context: MakeContext
) -> None:
    model, task = made(kind), steps_task() if kind is Steps else tokens_task()
    ctx = make_context(model, task=task)
    artifact = deployed(model, task, ctx, installed(engine), max_length=9)

    shortest = 4 if kind is Filters else 1  # torch takes a size of one for a constant
    assert artifact.signature.length == (shortest, 9)
    told = fact(ctx, "dynamic_length", f"artifact/{engine}")
    assert (told.value, told.detail) == (True, {"shortest": shortest, "longest": 9})
    parity = fact(ctx, "output_error", f"artifact/{engine}")
    assert set(parity.detail["by_length"]) == {shortest, (shortest + 9) // 2, 9}
    for length in range(shortest, 10):
        for size in (1, 4):
            x = normal(size, length, 4) if kind is Steps else whole(20, size, length)
            with torch.no_grad():
                torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
    x = normal(2, 10, 4) if kind is Steps else whole(20, 2, 10)
    with pytest.raises(DataError, match=rf"one length from {shortest} to 9, got \[10\]"):
        artifact(x)


def test_without_torch_the_length_may_change_too(make_context: MakeContext) -> None:
    model, task = made(Positions), tokens_task()
    ctx = make_context(model, task=task)
    artifact = deployed(model, task, ctx, installed("onnxruntime"))
    portable = load_without_torch(ctx.artifact_folder)
    assert read_signature(ctx.artifact_folder).length == (1, 5)
    short = TOKENS[:2, :2]
    found = portable(short.numpy())
    assert isinstance(found, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(found), artifact(short))
    with pytest.raises(DataError, match=r"one length from 1 to 5, got \[7\]\. Cut or pad"):
        portable(whole(20, 2, 7).numpy())


def test_masks_go_with_their_tokens(make_context: MakeContext) -> None:
    model, task = network("keywords").eval(), task_of("keywords")
    artifact = deployed(model, task, make_context(model, task=task))
    shapes = [info.shape for info in artifact.signature.inputs]
    assert shapes == [("batch", "length"), ("batch", "length")]
    ids, mask = whole(20, 2, 3), torch.ones(2, 3, dtype=torch.int64)
    with torch.no_grad():
        wanted = model(ids, mask).logits
    found = artifact(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match=r"all sequences of a call must have one length .*\[2, 3\]"):
        artifact(input_ids=ids, attention_mask=mask[:, :2])


def test_a_model_that_knows_its_length_keeps_it_and_the_reason_is_told(
    make_context: MakeContext,
) -> None:
    model, task = made(Flat), tokens_task()
    ctx = make_context(model, task=task)
    artifact = deployed(model, task, ctx)
    assert artifact.signature.inputs[0].shape == ("batch", 5)
    assert artifact.signature.length is None
    told = fact(ctx, "dynamic_length", "artifact/torch")
    assert told.value is False
    assert "the model takes sequences of 5 and not of 4: " in str(told.reason)
    with pytest.raises(ArtifactError, match="the model takes sequences of 5 and not of 4"):
        deployed(model, task, make_context(model, task=task), dynamic_length=True)


def test_a_length_beyond_what_the_model_knows_is_refused(make_context: MakeContext) -> None:
    model, task = made(Positions), tokens_task()
    with pytest.raises(ArtifactError, match="sequences of 5 and not of 13: index out of range"):
        deployed(model, task, make_context(model, task=task), max_length=13)
    with pytest.raises(ArtifactError, match="at least the length of the data, 5, got 4"):
        deployed(model, task, make_context(model, task=task), max_length=4)


def test_an_engine_that_cannot_gets_one_length_or_is_refused(make_context: MakeContext) -> None:
    model, task = made(Positions), tokens_task()
    ctx = make_context(model, task=task)
    artifact = deployed(model, task, ctx, ShortOnly())
    assert artifact.signature.length is None
    told = fact(ctx, "dynamic_length", "artifact/short_only")
    assert told.value is False
    assert "with sequences of 1 its outputs differ from the model's by" in str(told.reason)
    assert "by_length" not in fact(ctx, "output_error", "artifact/short_only").detail
    with pytest.raises(ArtifactError, match=r"no engine .* with sequences of 1 its outputs"):
        deployed(model, task, make_context(model, task=task), ShortOnly(), dynamic_length=True)


def test_nothing_is_tried_or_told_where_it_does_not_apply(make_context: MakeContext) -> None:
    model, task = made(Positions), tokens_task()
    ctx = make_context(model, task=task)
    assert deployed(model, task, ctx, dynamic_length=False).signature.length is None
    assert not [f for f in ctx.facts if f.name == "dynamic_length"]
    model, task = network("images").eval(), task_of("images")
    ctx = make_context(model, task=task)
    assert deployed(model, task, ctx).signature.length is None
    assert not [f for f in ctx.facts if f.name == "dynamic_length"]
    with pytest.raises(ArtifactError, match="no input is a sequence"):
        deployed(model, task, make_context(model, task=task), max_length=9)
    with pytest.raises(SpecError, match="`max_length` needs lengths that may change"):
        Deploy(max_length=9, dynamic_length=False)


def test_outputs_that_follow_from_the_length_are_told_apart() -> None:
    model, rows = made(Tagger), Rows("val", (TOKENS,), torch.zeros(20))
    batch = real_batch(rows, 5)
    found = with_lengths(model, batch, Interface.of(model, rows), longest=None, wanted=False)
    assert found.length == (1, 5)
    assert [info.shape for info in found.outputs] == [
        ("batch", "varies", 3),
        ("batch", "varies", 3),
    ]
    assert found.inputs == (TensorInfo(name="tokens", dtype="int64", shape=("batch", "length")),)


def test_sequences_are_cut_or_repeated() -> None:
    info = TensorInfo(name="x", dtype="int64", shape=("batch", "length"))
    rows = Rows("val", (torch.arange(6).view(2, 3),), torch.zeros(2))
    interface, batch = Interface((info,), (), False, False, (1, 7)), real_batch(rows, 2)
    for length, wanted in ((2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])):
        assert of_length(batch, interface, length).inputs[0][0].tolist() == wanted  # type: ignore[index]


def test_engines_are_compared_with_lengths_that_may_change() -> None:
    facts = compare_engines(made(Steps), steps_task().prepare().val, [Torch()], many=8, time_s=0.01)
    (told,) = [f for f in facts if f.name == "dynamic_length"]
    assert (told.value, told.detail) == (True, {"shortest": 1, "longest": 5})


def test_a_limit_that_is_none_is_no_signature(make_context: MakeContext) -> None:
    model, task = made(Positions), tokens_task()
    ctx = make_context(model, task=task)
    deployed(model, task, ctx)
    path = ctx.artifact_folder / "signature.json"
    path.write_text(path.read_text().replace('"length": [\n    1,\n    5', '"length": [\n    1.5'))
    with pytest.raises(ArtifactError, match="`length` must be two whole numbers"):
        read_signature(ctx.artifact_folder)
    with pytest.raises(CorruptedFileError, match="SHA-256"):
        load(ctx.artifact_folder)
