"""Integers beside the same network in real numbers, and where an engine begins to differ."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, Context, SpecError, StoresIntegers
from overhaul.deploy import Deploy, OnnxRuntime, Runner, Signature, Torch, compare_engines
from overhaul.deploy._executed import Executed, counted_onnx, counted_openvino, executed
from overhaul.deploy._real_twin import real_twin
from overhaul.deploy._trial import Candidacy, Samples, try_engine
from overhaul.deploy._why_not import (
    in_the_engine,
    many_zeros,
    memory_bound,
    memory_speed,
    what_may_be_behind,
)
from overhaul.quantization import Quantize
from overhaul.runtime import int8_instructions
from overhaul.tasks import Classification
from tests.deploy.engine_cases import installed
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


def test_a_model_with_integers_is_compared_with_its_twin(make_context: MakeContext) -> None:
    _, whole = quantized(make_context, STEPS[0])
    samples = task().prepare().val
    facts = compare_engines(whole, samples, [Torch(), OnnxRuntime()], many=8, time_s=0.02)
    timed = {f.subject for f in facts if f.name == "latency_ms"}
    names = ("torch", "onnxruntime", "torch/real", "onnxruntime/real")
    assert timed == {"original", *(f"artifact/{name}" for name in names)}
    (against,) = [f for f in facts if f.name == "integers_against_real"]
    assert isinstance(against.value, float)
    assert len(against.detail["ms"]) == 2


def test_what_an_engine_runs_is_asked_of_it(make_context: MakeContext, tmp_path: Path) -> None:
    _, whole = quantized(make_context, Quantize(batches=1, exclude=("head",)))
    candidacy = Candidacy.of(whole, Samples(task().prepare().val))
    found = {}
    for name in ("torch", "onnxruntime", "openvino"):
        trial = try_engine(
            installed(name),
            candidacy,
            tmp_path / name,
            threads=1,
            tolerance=0.05,
            quality_tolerance=1,
            log=lambda fact: None,
        )
        found[name] = executed(trial.artifact)
    assert found["torch"] is None
    for done in (found["onnxruntime"], found["openvino"]):
        assert done is not None
        assert done.layers >= 3
        # The convolution alone, of three layers: nobody asked for more, and no engine has more.
        assert done.in_integers <= 1
        assert done.in_real >= 2
        assert done.conversions >= 1
    reasons = " ".join(in_the_engine("onnxruntime", found["onnxruntime"], whole))
    assert "layers in real numbers" in reasons
    assert "only change between integers and real numbers are left in the graph" in reasons
    assert "torch has no layers in integers: 1 are" in " ".join(in_the_engine("torch", None, whole))


def test_what_is_run_is_counted_by_what_it_is() -> None:
    node, attribute = onnx_node, {"accuracy_level": 4}
    nodes = [
        *(node("QLinearConv"), node("Conv"), node("Relu"), node("QuantizeLinear")),
        *(node("MatMulNBits"), node("MatMulNBits", **attribute), node("DequantizeLinear")),
    ]
    assert counted_onnx(nodes) == Executed(in_integers=2, in_real=2, conversions=2)
    names = ("layerType", "runtimePrecision", "outputPrecisions", "primitiveType")
    layers = [
        ("Convolution", "u8", "u8", "brgconv_avx512_I8"),
        ("FullyConnected", "f32", "f32", "ref_any"),
        ("FakeQuantize", "f32", "u8", "jit_avx512_f32"),
        ("Reorder", "u8", "u8", "reorder_I8"),
        ("Convert", "u8", "f32", "unknown"),
        ("Reduce", "f32", "f32", "jit_avx512_f32"),
    ]
    found = counted_openvino(dict(zip(names, layer, strict=True)) for layer in layers)
    assert found == Executed(in_integers=1, in_real=1, conversions=2, in_reference=1)
    told = " ".join(in_the_engine("openvino", found, Small()))
    assert "1 of 2 layers have a kernel that openvino has not made for this CPU" in told


def onnx_node(kind: str, **attributes: int) -> Any:
    return pytest.importorskip("onnx").helper.make_node(kind, ["x"], ["y"], **attributes)


def test_many_zeros_are_told_with_their_number() -> None:
    layer = nn.Linear(10, 10)
    assert many_zeros(layer) is None
    with torch.no_grad():
        layer.weight[:4] = 0
    found = many_zeros(layer)
    assert found is not None
    assert found.value == 0.4
    assert str(found.reason).startswith("40 of 100 weights are zero (40%)")
    assert any("40 of 100" in each for each in what_may_be_behind(layer, call_ms=9.0))


def test_memory_is_named_where_reading_the_weights_takes_most_of_a_call() -> None:
    big = nn.Linear(3000, 3000)  # 36 MB
    assert "Reading 36 MB of weights takes" in str(memory_bound(big, call_ms=0.1))
    assert memory_bound(big, call_ms=1e6) is None
    assert memory_bound(nn.Linear(100, 100), call_ms=1e-6) is None
    assert 1e8 < memory_speed() < 1e13


@pytest.mark.parametrize(
    ("features", "wanted"),
    [(("avx2", "avx512_vnni"), True), (("avx2", "avx512f"), False), ((), None)],
)
def test_integer_instructions_are_those_that_the_system_names(
    features: tuple[str, ...], wanted: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overhaul.runtime._cpu.cpu_features", lambda: features)
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


def test_an_engine_is_tried_with_two_settings(make_context: MakeContext) -> None:
    model, whole = quantized(make_context, Quantize(activations=None))
    ctx = make_context(model, task=task())
    engines = (OnnxRuntime(), OnnxRuntime(round_inputs=True))
    Deploy(engines=engines, timing_s=0.01, cost=False).apply(whole, ctx)
    timed = {f.subject for f in ctx.facts if f.name == "latency_ms"}
    assert {"artifact/onnxruntime", "artifact/onnxruntime(round_inputs=True)"} <= timed
    errors = {f.subject: f.value for f in ctx.facts if f.name == "output_error"}
    assert float(errors["artifact/onnxruntime"] or 0) < 1e-5
    assert float(errors["artifact/onnxruntime(round_inputs=True)"] or 0) > 1e-5
    with pytest.raises(SpecError, match="each engine once"):
        Deploy(engines=(OnnxRuntime(), OnnxRuntime()))
