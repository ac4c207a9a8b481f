"""Integers beside the same network in real numbers, and where an engine begins to differ."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, Context, StoresIntegers
from overhaul.deploy import Deploy, OnnxRuntime, Runner, Signature, Torch, compare_engines
from overhaul.deploy._real_twin import real_twin
from overhaul.deploy._why_not import int8_instructions, what_may_be_behind
from overhaul.quantization import Quantize
from overhaul.tasks import Classification
from tests.deploy.row_task import fact

MakeContext = Callable[..., Context]


class Small(nn.Module):
    """Convolutions, a recurrent layer over rows, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.lstm = nn.LSTM(12 * 6, 64, batch_first=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).relu().permute(0, 2, 1, 3).flatten(2)
        out: Tensor = self.head(self.lstm(rows)[0].mean(1))
        return out


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(train=(torch.rand(96, 1, 6, 6), torch.arange(96) % 3))


def quantized(make_context: MakeContext, step: Quantize) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    model = Small().eval()
    return model, step.apply(deepcopy(model), make_context(model, task=task())).eval()


STEPS = [
    Quantize(batches=1),
    Quantize(activations=None),
    Quantize(weights="int4", block_size=8),
    Quantize(weights="bfloat16"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.weights + str(step.activations))
def test_the_twin_computes_with_the_numbers_that_the_integers_stand_for(
    step: Quantize, make_context: MakeContext
) -> None:
    model, whole = quantized(make_context, step)
    twin = real_twin(whole)
    assert twin is not None
    assert not any(isinstance(module, StoresIntegers) for module in twin.modules())
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(twin.get_parameter("head.weight"), whole.get_submodule("head").weight)  # type: ignore[arg-type]
    x = torch.rand(4, 1, 6, 6)
    with torch.no_grad():
        if step.activations is None:
            assert torch.equal(twin(x), whole(x))
        assert torch.allclose(twin(x), model(x), atol=0.05)
        assert torch.allclose(twin(x), whole(x), atol=0.05)
    assert real_twin(model) is None


def test_what_is_better_is_handed_over_and_the_reason_is_told(make_context: MakeContext) -> None:
    model, whole = quantized(make_context, STEPS[0])
    ctx = make_context(model, task=task())
    Deploy(engines=(Torch(),), timing_s=0.05, cost=False).apply(whole, ctx)
    against = fact(ctx, "integers_against_real", "artifact")
    assert isinstance(against.value, float)
    assert set(against.detail["ms"]) == {"torch", "torch/real"}
    assert against.detail["bytes"]["torch"] < against.detail["bytes"]["torch/real"]
    # PyTorch rounds and computes in real numbers after that, which can only take longer.
    assert against.value > 1
    assert "in real numbers torch takes" in str(against.reason)
    assert fact(ctx, "engine_chosen", "artifact").detail == {"real_numbers": True}
    files = {path.name for path in ctx.artifact_folder.iterdir()}
    assert files == {"golden.safetensors", "manifest.json", "model.pt2", "signature.json"}


def test_bytes_are_preferred_if_asked_for(make_context: MakeContext) -> None:
    model, whole = quantized(make_context, STEPS[0])
    ctx = make_context(model, task=task())
    step = Deploy(engines=(Torch(),), prefer="bytes", timing_s=0.01, cost=False)
    step.apply(whole, ctx)
    chosen = fact(ctx, "engine_chosen", "artifact")
    assert chosen.detail == {"real_numbers": False}
    assert str(chosen.reason).startswith("torch is the smallest: torch ")


def test_what_keeps_integers_from_being_faster_is_named(make_context: MakeContext) -> None:
    _, whole = quantized(make_context, Quantize(batches=1, exclude=("head",)))
    reasons = " ".join(what_may_be_behind(whole, call_ms=0.01))
    assert "1 of 2 layers compute in real numbers" in reasons
    assert "number of channels (12, ...) that does not fill vectors of 16" in reasons
    assert "mostly the overhead of the engine" in reasons
    _, weights = quantized(make_context, STEPS[1])
    assert "Only weights are integers" in " ".join(what_may_be_behind(weights, call_ms=9.0))


class WrongTanh(Torch):
    """An engine that has a coarse `tanh`."""

    file_name: ClassVar[str] = "wrong.pt2"

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        changed = deepcopy(program)
        for node in changed.graph.nodes:
            if node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.sigmoid.default
        changed.graph_module.recompile()
        super().write(changed, signature, folder)


class Deep(nn.Module):
    """Several layers; the third has the function that an engine gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(36 if not n else 8, 8) for n in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for n, layer in enumerate(self.layers):
            x = layer(x)
            x = x.tanh() if n == 2 else x.relu()
        out: Tensor = self.head(x)
        return out


def test_the_first_operation_that_differs_is_named(make_context: MakeContext) -> None:
    model = Deep().eval()
    with pytest.raises(ArtifactError, match=r"first operation that differs is `aten\.tanh\.defaul"):
        Deploy(engines=(WrongTanh(),), timing_s=0.01).apply(model, make_context(model, task=task()))


def test_engines_are_compared_without_a_task() -> None:
    class Broken(Torch):
        def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
            raise ArtifactError("it is broken")

    samples = task().prepare().val
    facts = compare_engines(
        Small(), samples, [Torch(), OnnxRuntime(), Broken()], many=8, time_s=0.01
    )
    skipped = [(f.value, f.reason) for f in facts if f.name == "skipped"]
    assert skipped == [("broken", "it is broken")]
    settings = {(f.subject, f.detail["batch_size"]) for f in facts if f.name == "latency_ms"}
    subjects: Sequence[str] = ("original", "artifact/torch", "artifact/onnxruntime")
    assert settings == {(subject, size) for subject in subjects for size in (1, 8)}
    for name in ("output_error", "size_bytes", "load_s", "peak_memory_bytes"):
        own = [f for f in facts if f.name == name]
        assert [f.subject for f in own] == ["artifact/torch", "artifact/onnxruntime"]
        assert all(isinstance(f.value, int | float) and f.value >= 0 for f in own)


@pytest.mark.parametrize(
    ("features", "wanted"),
    [(("avx2", "avx512_vnni"), True), (("avx2", "avx512f"), False), ((), None)],
)
def test_integer_instructions_are_those_that_the_system_names(
    features: tuple[str, ...], wanted: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overhaul.deploy._why_not.cpu_features", lambda: features)
    assert int8_instructions() is wanted
    behind = " ".join(what_may_be_behind(nn.Sequential(), 1.0))
    assert ("no instructions for sums" in behind) is (wanted is False)


def test_an_engine_is_opened_once_to_be_judged(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = OnnxRuntime.open

    def counting(
        self: OnnxRuntime, path: Path, signature: Signature, threads: int | None
    ) -> Runner:
        opened.append(path)
        return plain(self, path, signature, threads)

    monkeypatch.setattr(OnnxRuntime, "open", counting)
    monkeypatch.setattr("overhaul.deploy._deploy.all_threads", lambda: 1)
    model = Small()
    ctx = make_context(model, task=task())
    Deploy(engines=(OnnxRuntime(),), timing_s=0.01, cost=False).apply(model, ctx)
    assert len(opened) == 2  # to be judged, and in its place at the end
