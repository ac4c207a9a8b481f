import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    ArtifactError,
    Context,
    CorruptedFileError,
    DataError,
    MissingExtraError,
    file_hash,
)
from overhaul.deploy import Artifact, Deploy, OnnxRuntime, Torch, load, verify
from overhaul.deploy._manifest import write_manifest
from overhaul.runtime import cpu_features, read_manifest
from tests.deploy.networks import network, rows_of, task_of

MakeContext = Callable[..., Context]


def vouch_for(folder: Path) -> None:
    """Write a new manifest for whatever is in the folder, as an attacker would."""
    (folder / "manifest.json").unlink()
    write_manifest(folder, {})


def change_signature(folder: Path, **changes: Any) -> None:
    path = folder / "signature.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    vouch_for(folder)


@pytest.fixture
def images() -> Tensor:
    rows = rows_of("images")
    assert isinstance(rows, tuple)
    return rows[0]


def test_every_way_to_call_it_gives_the_same(
    artifact_folder: Path, deployed_images: nn.Module, images: Tensor
) -> None:
    artifact = load(artifact_folder)
    with torch.no_grad():
        wanted = deployed_images(images)
    read_only = images.numpy().copy()
    read_only.setflags(write=False)
    for found in (
        artifact(images),
        artifact(image=images),
        artifact({"image": images}),
        artifact(images.numpy()),
        artifact(read_only),
        artifact(images.numpy()[::-1])[::1].flip(0),  # type: ignore[index]
        artifact(images.clone().requires_grad_()),
    ):
        assert isinstance(found, Tensor)
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_it_says_what_it_is(artifact_folder: Path) -> None:
    artifact = load(str(artifact_folder))
    assert isinstance(artifact, Artifact)
    version = sys.modules[artifact.engine].__version__
    assert repr(artifact) == (
        f"<Artifact '{artifact_folder}' on {artifact.engine}: "
        "image float32 [batch, 1, 8, 8] -> output float32 [batch, 3]; made with "
        f"{artifact.engine} {version} on a CPU with {' '.join(cpu_features())}>"
    )
    assert artifact.manifest.files.keys() == {
        *("golden.safetensors", "signature.json", artifact.signature.file)
    }
    assert artifact.manifest.versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ((torch.zeros(1, 1, 8, 8).double(),), {}, r"`image` must be float32, got float64\. Conv"),
        ((torch.zeros(1, 1, 9, 8),), {}, r"shape \[batch, 1, 8, 8\], got \[1, 1, 9, 8\]"),
        ((torch.zeros(1, 8, 8),), {}, r"shape \[batch, 1, 8, 8\], got \[1, 8, 8\]"),
        ((torch.zeros(0, 1, 8, 8),), {}, r"at least one, got \[0\]"),
        (([1.0],), {}, r"`image` must be a torch tensor or a NumPy array, got list"),
        ((), {"imgae": torch.zeros(1)}, r"no input 'imgae'\. Did you mean 'image'"),
        ((), {}, r"takes 1 inputs \(image\), each once, got 0 by position and \[\] by name"),
        ((torch.zeros(1), torch.zeros(1)), {}, r"each once, got 2 by position"),
        ((torch.zeros(1),), {"image": torch.zeros(1)}, r"got 1 by position and \['image'\]"),
    ],
)
def test_wrong_inputs_are_refused(
    inputs: tuple[Any, ...], named: dict[str, Any], message: str, artifact_folder: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load(artifact_folder)(*inputs, **named)


def test_inputs_of_different_length_are_refused(make_context: MakeContext) -> None:
    model = network("keywords")
    ctx = make_context(model, task=task_of("keywords"))
    Deploy(engines=(Torch(),), timing_s=0.01, cost=False).apply(model, ctx)
    ids, mask = torch.zeros(2, 5).long(), torch.ones(3, 5).long()
    with pytest.raises(DataError, match=r"the same number of samples, at least one, got \[2, 3\]"):
        load(ctx.artifact_folder)(input_ids=ids, attention_mask=mask)


def test_threads_are_what_was_asked_for_and_only_for_a_call(
    artifact_folder: Path, images: Tensor
) -> None:
    one, two = load(artifact_folder, threads=1), load(artifact_folder, threads=2)
    torch.testing.assert_close(one(images), two(images))
    assert torch.get_num_threads() == 1
    with pytest.raises(DataError, match=r"`threads` must be at least 1, got 0"):
        load(artifact_folder, threads=0)


def test_it_runs_where_the_package_of_the_model_is_absent(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nets" / "their_package.py"
    package.parent.mkdir()
    package.write_text(
        textwrap.dedent(
            """
            from torch import nn

            class Theirs(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.linear = nn.Linear(6, 3)

                def forward(self, x):
                    return self.linear(x).relu()
            """
        )
    )
    monkeypatch.syspath_prepend(str(package.parent))
    task, model = task_of("features"), importlib.import_module("their_package").Theirs()
    for engine in (Torch(), OnnxRuntime()):
        ctx = make_context(model, task=task, artifact_folder=tmp_path / engine.spec_name())
        Deploy(engines=(engine,), timing_s=0.01, cost=False).apply(model, ctx)
    monkeypatch.delitem(sys.modules, "their_package")
    use = """
        import importlib.util, sys, torch
        from overhaul.deploy import load, verify

        assert importlib.util.find_spec("their_package") is None
        for engine in ("torch", "onnxruntime"):
            path = sys.argv[1] + "/" + engine
            print(tuple(load(path)(torch.zeros(7, 6)).shape), verify(path).max_abs_error)
    """
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(use), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "(7, 3) 0.0\n(7, 3) 0.0\n", done.stderr


def test_any_flipped_byte_is_found_and_the_file_named(artifact_folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(artifact_folder.iterdir()):
        good = path.read_bytes()
        for position in rng.integers(0, len(good), 5).tolist():
            spoiled = bytearray(good)
            spoiled[position] ^= 1
            path.write_bytes(bytes(spoiled))
            with pytest.raises(CorruptedFileError, match=f"{path.name}' is corrupted: .* again"):
                load(artifact_folder)
            with pytest.raises(CorruptedFileError, match=path.name):
                verify(artifact_folder)
        path.write_bytes(good)
    assert verify(artifact_folder).files == 3


def test_a_missing_or_added_file_is_found(artifact_folder: Path) -> None:
    stranger = artifact_folder / "model.onnx.data"
    stranger.write_bytes(b"weights of a stranger")
    with pytest.raises(CorruptedFileError, match=r"model\.onnx\.data' does not belong to"):
        load(artifact_folder)
    stranger.unlink()
    for path in sorted(artifact_folder.iterdir()):
        if path.name != "manifest.json":
            good = path.read_bytes()
            path.unlink()
            with pytest.raises(CorruptedFileError, match=f"{path.name}' is corrupted: .*missing"):
                load(artifact_folder)
            path.write_bytes(good)
    (artifact_folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"is not an artifact: it has no manifest\.json"):
        load(artifact_folder)


def test_a_manifest_with_other_hashes_is_found(artifact_folder: Path) -> None:
    path = artifact_folder / "manifest.json"
    manifest = read_manifest(artifact_folder)
    name, entry = next(iter(manifest.files.items()))
    changed = artifact_folder / name
    changed.write_bytes(changed.read_bytes() + b"x")
    path.write_text(path.read_text().replace(entry.sha256, file_hash(changed)))
    with pytest.raises(CorruptedFileError, match=r"manifest\.json' is corrupted: it is not what"):
        load(artifact_folder)


def test_a_signature_cannot_make_overhaul_import_anything(artifact_folder: Path) -> None:
    change_signature(artifact_folder, engine="os:system")
    with pytest.raises(ArtifactError, match="is not a signature that this version"):
        load(artifact_folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format_version": 2}, ArtifactError, "must have the format 1, got 2. Use the version"),
        ({"file": "../elsewhere"}, ArtifactError, "names the file '../elsewhere', which is not"),
        ({"news": 1}, ArtifactError, "is not a signature that this version .* Upgrade Overhaul"),
        ({"engine": "tvm"}, ArtifactError, "unknown engine 'tvm'.* newer Overhaul, upgrade"),
    ],
)
def test_a_signature_of_another_version_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, artifact_folder: Path
) -> None:
    change_signature(artifact_folder, **changes)
    with pytest.raises(error, match=message):
        load(artifact_folder)


def test_a_file_that_the_engine_cannot_read_is_refused(artifact_folder: Path) -> None:
    name = load(artifact_folder).signature.file
    (artifact_folder / name).write_bytes(b"this is not a model")
    vouch_for(artifact_folder)
    with pytest.raises(ArtifactError, match=f"'{name}'"):
        load(artifact_folder)


def test_onnx_weights_outside_the_folder_are_refused(
    make_context: MakeContext, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(OnnxRuntime(),), timing_s=0.01, cost=False).apply(model, ctx)
    path = ctx.artifact_folder / "model.onnx"
    proto = onnx.load(path)
    onnx.save_model(proto, path, save_as_external_data=True, location="weights", size_threshold=0)
    (ctx.artifact_folder / "weights").rename(tmp_path / "weights")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    path.write_bytes(proto.SerializeToString())
    vouch_for(ctx.artifact_folder)
    with pytest.raises(
        ArtifactError, match=r"cannot open 'model\.onnx': .*escapes model directory"
    ):
        load(ctx.artifact_folder)


def test_a_missing_engine_is_named_with_the_line_that_installs_it(
    artifact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    if (artifact_folder / "model.pt2").exists():
        assert load(artifact_folder).engine == "torch"
        return
    with pytest.raises(MissingExtraError, match=r"deployed to ONNX .* pip install onnxruntime"):
        load(artifact_folder)
