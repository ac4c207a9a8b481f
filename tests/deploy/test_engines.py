"""Every engine on every kind of network, with real numbers and with integers."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overhaul.core import ArtifactError, Batch, Context, MissingExtraError, SpecError
from overhaul.deploy import (
    AOTInductor,
    Deploy,
    ExecuTorch,
    OnnxRuntime,
    OpenVINO,
    Torch,
    TorchCompile,
    load,
    verify,
)
from overhaul.deploy._capture import capture
from overhaul.deploy._interface import Interface
from overhaul.deploy._onnx_export import export_onnx
from overhaul.deploy._onnx_weights import choose_kernels_
from overhaul.deploy._quiet import quiet
from tests.deploy.engine_cases import (
    ENGINES,
    SLOW,
    deployed,
    installed,
    relative_error,
    signature_of,
)
from tests.deploy.integer_networks import (
    INTEGER_NETWORKS,
    IntegerConv,
    IntegerEmbedding,
    IntegerLinear,
    IntegerLSTM,
    Rounded,
    Weight,
    integer_network,
)
from tests.deploy.networks import network, rows_of, task_of
from tests.deploy.row_task import fact

MakeContext = Callable[..., Context]
QUICK = ("torch", "onnxruntime", "openvino")
REAL_CASES = [
    *((name, kind) for name in QUICK for kind in ("images", "attention", "recurrent")),
    *(("executorch", kind) for kind in ("images", "attention", "recurrent")),
    *((name, "images") for name in SLOW),
]
INTEGER_CASES = [
    *((name, kind) for name in QUICK for kind in INTEGER_NETWORKS),
    *(("executorch", k) for k in ("static_cnn", "static_shortcut", "blocks", "transposed_groups")),
    ("executorch", "embedding"),
]
FEW_STEPS = 0.05
"""Where sums are rounded to integers on the way, an engine may round some of them otherwise."""


@pytest.fixture(autouse=True)
def _no_threads_that_compile() -> Iterator[None]:
    with importlib.import_module("torch._inductor.config").patch(compile_threads=1):
        yield


@pytest.mark.parametrize(("name", "kind"), REAL_CASES)
def test_real_numbers_come_out_the_same_at_every_batch_size(
    name: str, kind: str, tmp_path: Path
) -> None:
    rows = rows_of(kind)
    assert isinstance(rows, tuple)
    model = network(kind).eval().requires_grad_(False)
    x = rows[0].repeat(4, *[1] * (rows[0].ndim - 1))[:64]
    run = deployed(installed(name), model, x, tmp_path)
    assert relative_error(run, model, x) < 1e-5


@pytest.mark.parametrize(("name", "kind"), INTEGER_CASES)
def test_integers_mean_the_same_in_every_engine(name: str, kind: str, tmp_path: Path) -> None:
    model, x = integer_network(kind)
    run = deployed(installed(name), model, x, tmp_path)
    assert relative_error(run, model, x) < (FEW_STEPS if kind.startswith("static") else 1e-5)


def test_a_wrong_engine_would_be_seen(tmp_path: Path) -> None:
    model, x = integer_network("static_cnn")
    run = deployed(Torch(), model, x, tmp_path)
    assert relative_error(run, integer_network("static_cnn")[0], x) < 1e-6
    next(iter(model.parameters())).add_(1.0)
    assert relative_error(run, model, x) > FEW_STEPS


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("block", "bits"), [(0, 8), (32, 4)])
def test_weights_stay_integers_in_the_file(
    name: str, block: int, bits: int, tmp_path: Path
) -> None:
    model, x = IntegerLinear(512, 256, block=block).requires_grad_(False), torch.randn(64, 512)
    deployed(installed(name), model, x, tmp_path)
    scales = 4 * 256 * (512 // block if block else 1)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 512 * 256 * bits / 8 + scales * 1.3 + 20_000


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("weight", ["linear", "table"])
def test_scales_that_are_halves_take_two_bytes(name: str, weight: str, tmp_path: Path) -> None:
    model: nn.Module = IntegerLinear(2048, 256, block=32)
    x = torch.randn(64, 2048)
    if weight == "table":
        model, x = IntegerEmbedding(block=4), torch.randint(0, 30, (64, 5))
        model.table = Weight(torch.randn(2048, 32), block=4)
    model = model.eval().requires_grad_(False)
    (scale,) = (each for each_name, each in model.named_buffers() if each_name.endswith("scale"))
    sizes = []
    for kind in ("real", "halves"):
        if kind == "halves":
            scale.copy_(scale.half())
        (tmp_path / kind).mkdir()
        run = deployed(installed(name), model, x, tmp_path / kind)
        assert relative_error(run, model, x) < 1e-5
        sizes.append(sum(path.stat().st_size for path in (tmp_path / kind).iterdir()))
    assert sizes[0] - sizes[1] > 1.9 * scale.numel()


def optimized_operations(folder: Path) -> list[str]:
    """Return what ONNX Runtime makes of the operations of `model.onnx`."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    runtime.InferenceSession(str(folder / "model.onnx"), options)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("kind", ["weights", "weights_of_sequences", "blocks", "conv_weights"])
def test_onnxruntime_dequantizes_no_weights_at_a_call(kind: str, tmp_path: Path) -> None:
    model, x = integer_network(kind)
    deployed(OnnxRuntime(), model, x, tmp_path)
    left = {"DequantizeLinear", "Cast", "DynamicQuantizeLinear"}
    assert left.isdisjoint(optimized_operations(tmp_path))


def test_onnxruntime_computes_with_integers(tmp_path: Path) -> None:
    model, x = integer_network("static_cnn")
    deployed(OnnxRuntime(), model, x, tmp_path)
    names = optimized_operations(tmp_path)
    assert names.count("QLinearConv") == 3
    assert names.count("QGemm") == 1


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_maximum_is_one_of_integers(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(
        IntegerConv(nn.Conv2d(1, 4, 3)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Rounded(positive=True),
        IntegerConv(nn.Conv2d(4, 2, 3)),
        nn.Flatten(),
    )
    model = nn.Sequential(Rounded(), *model).requires_grad_(False)
    x = torch.randn(64, 1, 10, 10)
    run = deployed(installed(name), model, x, tmp_path)
    assert relative_error(run, model, x) < FEW_STEPS
    if name == "onnxruntime":
        assert optimized_operations(tmp_path).count("QuantizeLinear") == 1


class Extreme(nn.Module):
    """The largest or smallest of four units each, between two layers with integers."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(Rounded(), IntegerLinear(16, 32), nn.ReLU())
        self.after = nn.Sequential(Rounded(positive=True), IntegerLinear(8, 5))
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        groups = self.before(x).unflatten(1, (8, 4))
        out: Tensor = self.after(groups.amax(-1) if self.largest else groups.amin(-1))
        return out


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_extreme_along_a_dimension_is_one_of_integers(
    name: str, largest: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = Extreme(largest).requires_grad_(False), torch.randn(64, 16)
    run = deployed(installed(name), model, x, tmp_path)
    assert relative_error(run, model, x) < FEW_STEPS


@pytest.mark.parametrize(("zero_point", "wanted"), [(128, "i8"), (127, "u8")])
def test_openvino_gets_integers_around_zero_without_a_zero_point(
    zero_point: int, wanted: str, tmp_path: Path
) -> None:
    rounded = Rounded()
    rounded.zero_point.fill_(zero_point)
    model = nn.Sequential(rounded, IntegerConv(nn.Conv2d(1, 4, 3))).requires_grad_(False)
    x = torch.randn(2, 1, 9, 9)
    run = deployed(installed("openvino"), model, x, tmp_path)
    assert relative_error(run, model, x) < 1e-5
    text = (tmp_path / "model.xml").read_text()
    found = set(re.findall(r'destination_type="([iu]8)"', text))
    assert found == {wanted}


class PaddedShortcut(nn.Module):
    """Every second pixel of an image, with channels of zeros, beside a convolution of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded, self.also = Rounded(), Rounded()
        self.conv = IntegerConv(nn.Conv2d(2, 4, 3, 2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.rounded(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        out: Tensor = Rounded()(shortcut + self.also(self.conv(x)))
        return out


def test_what_was_moved_is_added_in_integers(tmp_path: Path) -> None:
    model, x = PaddedShortcut().requires_grad_(False), torch.randn(64, 2, 8, 8)
    run = deployed(OnnxRuntime(), model, x, tmp_path)
    assert relative_error(run, model, x) < FEW_STEPS
    assert "QLinearAdd" in optimized_operations(tmp_path)


def test_rounded_inputs_are_asked_for_and_nearly_the_same(tmp_path: Path) -> None:
    model, x = integer_network("blocks")
    run = deployed(OnnxRuntime(round_inputs=True), model, x, tmp_path)
    assert relative_error(run, model, x) < 0.05
    assert b"MatMulNBits" in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize("kind", ["weights", "weights_of_sequences"])
@pytest.mark.parametrize(
    ("features", "kernel"),
    [(("avx512_vnni",), "DynamicQuantizeMatMul"), (("avx2",), "MatMulNBits")],
)
def test_what_would_saturate_is_multiplied_in_blocks(
    features: tuple[str, ...],
    kernel: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("overhaul.runtime._cpu.cpu_features", lambda: features)
    model, x = integer_network(kind)
    run = deployed(OnnxRuntime(round_inputs=True), model, x, tmp_path)
    assert 1e-5 < relative_error(run, model, x) < 0.05
    found = optimized_operations(tmp_path)
    assert kernel in found
    assert ({"DynamicQuantizeMatMul", "MatMulNBits"} - {kernel}).isdisjoint(found)
    assert {"MatMul", "Gemm", "Add"}.isdisjoint(found)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_rounds_its_inputs_if_asked_to(directions: int, tmp_path: Path) -> None:
    model = IntegerLSTM(bidirectional=directions == 2).requires_grad_(False)
    x = torch.randn(64, 7, 8)
    run = deployed(OnnxRuntime(round_inputs=True), model, x, tmp_path)
    assert 1e-5 < relative_error(run, model, x) < 0.05
    assert b"DynamicQuantizeLSTM" in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize("directions", [1, 2])
def test_nothing_is_worked_out_around_a_recurrent_layer(directions: int, tmp_path: Path) -> None:
    model = IntegerLSTM(bidirectional=directions == 2).requires_grad_(False)
    x = torch.randn(3, 7, 8)
    run = deployed(OnnxRuntime(), model, x, tmp_path)
    assert relative_error(run, model, x) < 1e-5
    left = {"Shape", "Expand", "ConstantOfShape", "Slice", "Concat"}
    assert left.isdisjoint(optimized_operations(tmp_path))


def test_torch_dequantizes_weights_on_opening(tmp_path: Path) -> None:
    model, x = integer_network("blocks")
    run = deployed(Torch(), model, x, tmp_path)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run([x])
    called = {event.key for event in profile.key_averages()}
    assert "aten::linear" in called
    assert called.isdisjoint({"aten::__rshift__", "aten::repeat_interleave", "aten::mul"})


def test_openvino_reports_nothing_to_its_maker() -> None:
    installed("openvino")
    code = (
        "import sys, threading\n"
        "from overhaul.deploy import OpenVINO\n"
        "OpenVINO().check_installed()\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
        "print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_the_settings_of_an_engine_come_back_on_opening(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("openvino")
    openvino = importlib.import_module("openvino")
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(OpenVINO(hint="throughput"),), timing_s=0.01, cost=False).apply(model, ctx)
    seen: list[dict[str, Any]] = []
    compile_model = openvino.Core.compile_model

    def watched(self: Any, *args: Any) -> Any:
        seen.append(args[2])
        return compile_model(self, *args)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    artifact = load(ctx.artifact_folder, threads=2)
    assert artifact.signature.options == {"hint": "throughput"}
    assert seen[0]["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert seen[0]["INFERENCE_NUM_THREADS"] == 2
    assert seen[0]["INFERENCE_PRECISION_HINT"] == "f32"
    assert {path.name for path in ctx.artifact_folder.iterdir()} >= {"model.xml", "model.bin"}
    assert verify(ctx.artifact_folder).files == 4


def test_half_weights_are_half_as_large(tmp_path: Path) -> None:
    installed("openvino")
    model, x = nn.Linear(256, 256).requires_grad_(False), torch.randn(64, 256)
    sizes = []
    for half in (False, True):
        folder = tmp_path / str(half)
        folder.mkdir()
        run = deployed(OpenVINO(half_weights=half), model, x, folder)
        assert relative_error(run, model, x) < 1e-2
        sizes.append((folder / "model.bin").stat().st_size)
    assert sizes[1] < 0.51 * sizes[0]


def test_executorch_obeys_threads_and_takes_many_samples_in_parts(tmp_path: Path) -> None:
    installed("executorch")
    with quiet():
        bindings = importlib.import_module("executorch.extension.pybindings.portable_lib")
    model, x = network("features").eval().requires_grad_(False), torch.randn(64, 6)
    first = deployed(ExecuTorch(max_batch=8), model, x, tmp_path, threads=2)
    assert bindings._threadpool_get_thread_count() == 2
    second = deployed(ExecuTorch(max_batch=8), model, x, tmp_path, threads=1)
    assert bindings._threadpool_get_thread_count() == 1
    for run, threads in ((first, 2), (second, 1), (first, 2)):
        for size in (8, 9, 64):
            torch.testing.assert_close(run([x[:size]])[0], model(x[:size]))
        assert bindings._threadpool_get_thread_count() == threads


def test_executorch_is_silent_on_opening(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, x = network("features").eval().requires_grad_(False), torch.randn(8, 6)
    deployed(installed("executorch"), model, x, tmp_path, threads=1)
    assert capfd.readouterr() == ("", "")


def test_executorch_computes_with_integers(tmp_path: Path) -> None:
    model, x = integer_network("static_cnn")
    deployed(installed("executorch"), model, x, tmp_path)
    written = (tmp_path / "model.pte").read_bytes()
    assert b"XnnpackBackend" in written
    assert b"convolution" not in written


@pytest.mark.parametrize("name", SLOW)
def test_compiled_code_runs_on_the_threads_that_were_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = integer_network("blocks")
    asked: list[int] = []
    set_threads = torch.set_num_threads

    def watched(count: int) -> None:
        asked.append(count)
        set_threads(count)

    run = deployed(ENGINES[name], model, x, tmp_path, threads=2)
    monkeypatch.setattr(torch, "set_num_threads", watched)
    torch.testing.assert_close(run([x])[0], model(x))
    assert asked == [2, 1]
    assert relative_error(run, model, x) < 1e-5


def test_compiled_code_is_opened_only_by_who_trusts_it(make_context: MakeContext) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(AOTInductor(),), timing_s=0.01).apply(model, ctx)
    assert isinstance(fact(ctx, "load_s", "artifact/aotinductor").value, float)
    for opening in (load, verify):
        with pytest.raises(
            ArtifactError, match=r"opening it executes it.* load\(path, trust=True\)"
        ):
            opening(ctx.artifact_folder)
    assert verify(ctx.artifact_folder, trust=True).engine == "aotinductor"


def test_code_for_another_cpu_is_refused(tmp_path: Path) -> None:
    x = torch.zeros(2, 6)
    signature = signature_of(AOTInductor(), x, x)
    other = replace(signature, versions={"torch": "2.9", "cpu": "SVE256"})
    with pytest.raises(ArtifactError, match="compiled for a CPU with SVE256, and this one has"):
        AOTInductor().open(tmp_path / "compiled.pt2", other, 1)


@pytest.mark.parametrize("engine", [TorchCompile(), AOTInductor()])
def test_a_missing_compiler_is_named(
    engine: TorchCompile | AOTInductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs a C\+\+ compiler, and none of g\+\+"):
        Deploy(engines=(engine,)).check(frozenset())
    monkeypatch.setenv("CXX", "no_such_compiler")
    with pytest.raises(MissingExtraError, match="CXX is 'no_such_compiler'"):
        engine.check_installed()


@pytest.mark.parametrize("name", ["openvino", "executorch"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "overhaul\[{name}\]"'):
        ENGINES[name].check_installed()


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    engine, x = installed(name), torch.zeros(2, 6)
    path = tmp_path / engine.file_name
    path.write_bytes(b"this is no model" * 10)
    with pytest.raises(ArtifactError, match=f"'{path.name}'"):
        engine.open(path, signature_of(engine, x, x), 1)


def test_openvino_weights_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    engine = installed("openvino")
    model, x = nn.Linear(64, 64).requires_grad_(False), torch.randn(64, 64)
    deployed(engine, model, x, tmp_path)
    weights = tmp_path / "model.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"cannot open 'model\.xml'"):
        engine.open(tmp_path / "model.xml", signature_of(engine, x, model(x)), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenVINO(hint="speed"), "`hint` of openvino .*'latency' or 'throughput'"),
        (lambda: OpenVINO(precision="f8"), "`precision` of openvino"),
        (lambda: ExecuTorch(max_batch=0), "`max_batch` of executorch .*most samples at once"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_engines_convert_a_graph_once_and_do_not_edit_each_others() -> None:
    model, x = integer_network("weights")
    signature = signature_of(OnnxRuntime(), x, model(x))
    interface = Interface(signature.inputs, signature.outputs, False, False)
    program = capture(model, Batch((x[:5],), torch.zeros(5), torch.arange(5)), interface)
    first, second = export_onnx(program, signature), export_onnx(program, signature)
    before = [node.op_type for node in second.model.graph]
    assert "DequantizeLinear" in before
    weights = [each.const_value for each in first.model.graph.initializers.values()]
    shared = [each.const_value for each in second.model.graph.initializers.values()]
    assert all(own is other for own, other in zip(weights, shared, strict=True))
    choose_kernels_(first.model, round_inputs=True)
    assert [node.op_type for node in first.model.graph] != before
    assert [node.op_type for node in second.model.graph] == before
    assert [node.op_type for node in export_onnx(program, signature).model.graph] == before
    other = replace(signature, outputs=(replace(signature.outputs[0], name="y"),))
    assert [y.name for y in export_onnx(program, other).model.graph.outputs] == ["y"]
