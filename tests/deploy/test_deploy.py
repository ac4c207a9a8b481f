import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    ArtifactError,
    Context,
    MissingExtraError,
    OrderError,
    SpecError,
    Trait,
    model_fingerprint,
)
from overhaul.deploy import Artifact, Deploy, OnnxRuntime, Runner, Signature, Torch, verify
from overhaul.tasks import Classification, Normalize
from tests.deploy.networks import Features, network, rows_of, task_of, whole
from tests.deploy.row_task import RowTask, fact

MakeContext = Callable[..., Context]
QUICK = Deploy(timing_s=0.01, cost=False)
TORCH_ONLY = Deploy(engines=(Torch(),), timing_s=0.01, cost=False)
KINDS = (
    *("images", "recurrent", "attention", "recommender"),
    *("keywords", "two_heads", "tutorial"),
)


class Off(Torch):
    """An engine that adds something to the last output."""

    file_name: ClassVar[str] = "off.pt2"

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        run = super().open(path, signature, threads)

        def off(inputs: Sequence[Tensor]) -> list[Tensor]:
            (out,) = run(inputs)
            shift = torch.zeros_like(out)
            shift[:, -1] = 0.2
            return [out + shift]

        return off


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_is_deployed_by_both_engines(
    kind: str, make_context: MakeContext, capfd: pytest.CaptureFixture[str]
) -> None:
    model = network(kind)
    before = model_fingerprint(model)
    ctx = make_context(model, task=task_of(kind))

    assert QUICK.apply(model, ctx) is model
    assert capfd.readouterr() == ("", "")
    assert model_fingerprint(model) == before
    assert all(module.training for module in model.modules())
    for engine in ("torch", "onnxruntime"):
        parity = fact(ctx, "output_error", f"artifact/{engine}")
        assert isinstance(parity.value, float)
        assert parity.value < 1e-5
        assert parity.detail["equal_predictions"] == 1.0
    assert isinstance(ctx.deployed, Artifact)
    assert verify(ctx.artifact_folder).max_relative_error < 1e-6
    for size in (1, 2, 3, 20, 33):
        batch = ctx.data.val.read(torch.arange(size) % 20)
        with torch.no_grad():
            wanted = batch.forward(model.eval())
        found = batch.forward(ctx.deployed)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_facts_say_what_was_measured_and_why_the_engine_was_chosen(
    make_context: MakeContext,
) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"), label="3 deploy")
    QUICK.apply(model, ctx)

    chosen = fact(ctx, "engine_chosen", "artifact")
    assert chosen.value in ("torch", "onnxruntime")
    assert str(chosen.value) in str(chosen.reason)
    for engine in ("torch", "onnxruntime"):
        timing = fact(ctx, "latency_ms", f"artifact/{engine}")
        assert timing.detail["reference"] == "original"
        assert timing.detail["engine"] == engine
        assert (timing.detail["batch_size"], timing.detail["threads"]) == (1, 1)
        size = fact(ctx, "size_bytes", f"artifact/{engine}").value
        assert isinstance(size, int)
        assert size > 84
    for subject in ("original", "3 deploy"):
        assert fact(ctx, "latency_ms", subject).detail["engine"] == "torch"
    for name in ("latency_ms", "accuracy", "loss", "size_bytes", "output_error"):
        copy = fact(ctx, name, "artifact")
        assert copy.value == fact(ctx, name, f"artifact/{chosen.value}").value
        assert not copy.reproducible
    own = (ctx.artifact_folder / f"model.{'pt2' if chosen.value == 'torch' else 'onnx'}").stat()
    assert fact(ctx, "size_bytes", "artifact").value == own.st_size


def test_opening_memory_and_throughput_are_measured(make_context: MakeContext) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(Torch(),), timing_s=0.01).apply(model, ctx)
    for name, low, high in (("load_s", 1e-4, 100), ("peak_memory_bytes", 0, 1e9)):
        value = fact(ctx, name, "artifact/torch").value
        assert isinstance(value, int | float), name
        assert low <= value < high
    found = fact(ctx, "throughput", "artifact/torch")
    assert isinstance(found.value, float)
    assert found.value > 0
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.detail["batch_size"] == 32


def test_the_artifact_is_all_that_is_left_on_disk(make_context: MakeContext) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    ctx.artifact_folder.mkdir()
    (ctx.artifact_folder / "of an earlier run").touch()
    TORCH_ONLY.apply(model, ctx)
    assert [path.name for path in ctx.artifact_folder.parent.iterdir()] == ["artifact"]
    assert sorted(path.name for path in ctx.artifact_folder.iterdir()) == [
        *("golden.safetensors", "manifest.json", "model.pt2", "signature.json")
    ]


def test_exporting_twice_gives_the_same_bytes_and_no_trace_of_the_source(
    make_context: MakeContext,
) -> None:
    for engine in (Torch(), OnnxRuntime()):
        written = []
        for _ in range(2):
            model = network("features")
            ctx = make_context(model, task=task_of("features"))
            Deploy(engines=(engine,), timing_s=0.01, cost=False).apply(model, ctx)
            written.append((ctx.artifact_folder / engine.file_name).read_bytes())
        assert written[0] == written[1]
        assert b"tests/deploy" not in written[0]
        assert b"Features" not in written[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: y.reshape(7, 3), r"any number of samples, and this one fails on 5: shape"),
        (lambda m, x, y: y.view(len(x), 3), r"the forward pass fixes it\. Look for `len\(x\)`"),
        (lambda m, x, y: y if x.shape[0] > 1 else 2 * y, r"depend on the number of samples"),
        (lambda m, x, y: y if x.sum() > 0 else 2 * y, r"test_deploy\.py:\d+.*use `torch\.where`"),
        (lambda m, x, y: y * m.calls.add_(1), r"changes `calls` in place"),
        (lambda m, x, y: y + x.mul_(2).sum(), r"changes `input x` in place"),
        (
            lambda m, x, y: y + torch.randn(x.shape[0], 3),
            r"differ from the model's .* on randomness",
        ),
    ],
    ids=["fixed", "len", "branch", "data", "state", "input", "random"],
)
def test_a_forward_pass_that_would_compute_something_else_is_refused(
    change: Callable[..., Tensor], message: str, make_context: MakeContext
) -> None:
    model = Features(change)
    ctx = make_context(model, task=task_of("features"))
    with pytest.raises(ArtifactError, match=message):
        TORCH_ONLY.apply(model, ctx)
    assert not ctx.artifact_folder.exists()
    assert list(ctx.artifact_folder.parent.iterdir()) == []


def test_an_engine_that_cannot_run_the_model_is_left_out_with_the_reason(
    make_context: MakeContext,
) -> None:
    model = Features(lambda m, x, y: torch.special.bessel_j0(y))
    ctx = make_context(model, task=task_of("features"), label="1 deploy")
    QUICK.apply(model, ctx)
    skipped = fact(ctx, "skipped", "1 deploy")
    assert skipped.value == "onnxruntime"
    assert skipped.reason == "ONNX has no counterpart of the operation `prims.bessel_j0`"
    chosen = fact(ctx, "engine_chosen", "artifact")
    assert (chosen.value, chosen.reason) == (
        "torch",
        "torch is the only engine that passed every check",
    )


def test_outputs_that_are_off_are_refused(make_context: MakeContext) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    with pytest.raises(ArtifactError, match=r"off: its outputs differ .* at most 0\.001"):
        Deploy(engines=(Off(),), timing_s=0.01, cost=False).apply(model, ctx)


def test_a_loss_of_quality_is_refused_and_a_tolerated_one_is_not(make_context: MakeContext) -> None:
    model = network("features")
    with torch.no_grad():
        right = model.eval()(rows_of("features")[0]).argmax(1)  # type: ignore[index]
    task = task_of("features").model_copy(update={"targets": right})
    loose = Deploy(engines=(Off(),), tolerance=0.9, timing_s=0.01, cost=False)
    with pytest.raises(ArtifactError, match=r"its accuracy on val is 0\.\d+ and the model's 1:"):
        loose.apply(model, make_context(model, task=task))
    ctx = make_context(model, task=task)
    loose.model_copy(update={"quality_tolerance": 0.9}).apply(model, ctx)
    assert fact(ctx, "engine_chosen", "artifact").value == "off"


def test_a_quality_that_val_does_not_define_is_no_loss(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    undefined = lambda self, outputs, targets: {"accuracy": math.nan}  # noqa: E731
    monkeypatch.setattr(RowTask, "metrics", undefined)
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    TORCH_ONLY.apply(model, ctx)
    assert math.isnan(fact(ctx, "accuracy", "artifact").value)  # type: ignore[arg-type]


def test_an_original_that_takes_other_inputs_is_not_timed(make_context: MakeContext) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"), original=nn.Linear(99, 3), label="2 deploy")
    TORCH_ONLY.apply(model, ctx)
    assert not [f for f in ctx.facts if f.subject == "original"]
    assert fact(ctx, "latency_ms", "artifact").detail["reference"] == "2 deploy"


def test_what_the_task_knows_is_in_the_signature(make_context: MakeContext) -> None:
    x, y = torch.randn(60, 6), whole(3, 60)
    names, normalize = ("ant", "bee", "cat"), Normalize(mean=0.5, std=2.0)
    task = Classification(train=(x, y), class_names=names, preprocess=normalize)
    model = network("features")
    ctx = make_context(model, task=task)
    TORCH_ONLY.apply(model, ctx)
    assert isinstance(ctx.deployed, Artifact)
    signature = ctx.deployed.signature
    assert signature.class_names == names
    assert Normalize.from_data(signature.preprocessing) == normalize
    assert (signature.task, signature.engine) == ("classification", "torch")


def test_sixteen_bit_outputs_get_the_tolerance_of_their_rounding(make_context: MakeContext) -> None:
    model = Features(lambda m, x, y: y.bfloat16())
    ctx = make_context(model, task=task_of("features"))
    TORCH_ONLY.apply(model, ctx)
    assert verify(ctx.artifact_folder).tolerance == 0.0625


def test_large_weights_go_into_a_file_of_their_own(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module("torch.onnx._internal.exporter._onnx_program")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 0)
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(OnnxRuntime(),), timing_s=0.01, cost=False).apply(model, ctx)
    beside = ctx.artifact_folder / "model.onnx.data"
    own = ctx.artifact_folder / "model.onnx"
    assert fact(ctx, "size_bytes", "artifact").value == beside.stat().st_size + own.stat().st_size
    assert verify(ctx.artifact_folder).files == 4


def test_a_missing_package_is_reported_before_any_work(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    traits = frozenset({Trait.EDITABLE, Trait.FITS_TASK})
    with pytest.raises(MissingExtraError, match=r'pip install "overhaul\[onnx\]"'):
        Deploy().check(traits)
    assert Trait.DEPLOYED in TORCH_ONLY.check(traits)
    model = nn.Linear(1, 1)
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        Deploy().apply(model, make_context(model, task=task_of("features")))


def test_a_deployed_model_can_no_longer_be_changed() -> None:
    after = TORCH_ONLY.check(frozenset({Trait.EDITABLE, Trait.FITS_TASK}))
    with pytest.raises(OrderError, match="it no longer may be changed"):
        TORCH_ONLY.check(after)
    with pytest.raises(OrderError, match="outputs of the shape that the task takes"):
        TORCH_ONLY.check(frozenset({Trait.EDITABLE}))


def test_engines_are_written_by_name_or_as_objects() -> None:
    by_name: dict[str, Any] = {"engines": ("torch", "onnxruntime")}
    assert Deploy() == Deploy(**by_name)
    assert Deploy(engines=(OnnxRuntime(),)) == Deploy.from_yaml("deploy: {engines: [onnxruntime]}")
    assert Deploy.from_yaml(TORCH_ONLY.to_yaml()) == TORCH_ONLY


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engines": ("onnx",)}, r"unknown engine 'onnx'\. .*onnxruntime"),
        ({"engines": ()}, "`engines` of deploy .* At least one engine"),
        ({"engines": ("torch", "torch")}, r"`engines` must name each engine once, got"),
        ({"threads": 0}, "`threads` of deploy must be greater than or equal to 1, got 0"),
        ({"tolerance": 1.5}, "`tolerance` of deploy must be less than 1, got 1.5"),
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Deploy(**fields)
