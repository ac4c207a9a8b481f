"""An artifact without torch: opened, verified, called, refused."""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import concrete_subclasses
from overhaul.deploy import Engine, OnnxRuntime, OpenVINO
from overhaul.runtime import (
    ArtifactError,
    CorruptedFileError,
    DataError,
    MissingExtraError,
    load,
    open_openvino,
    read_signature,
    verify,
)
from overhaul.runtime._artifact import _NEED_TORCH, _OPTIONS
from tests.deploy.engine_cases import deployed, installed, signature_of
from tests.runtime.spoiling import change_signature, vouch_for

SOURCE = Path(__file__).parents[2] / "src"
WITHOUT_TORCH = """
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "pydantic", "onnx", "scipy", "yaml", "typer"):
                raise ModuleNotFoundError(f"No module named {name!r}: refused", name=name)

    sys.meta_path.insert(0, Refuse())
"""


def without_torch(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program where torch, and all else that the runtime does without, is refused."""
    text = dedent(WITHOUT_TORCH) + dedent(program)
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)


def test_the_refusal_works() -> None:
    done = without_torch("import torch")
    assert "No module named 'torch': refused" in done.stderr


def test_without_torch_it_computes_what_it_does_with_torch(
    artifact_folder: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    program = """
        import numpy as np
        import overhaul as oh
        from overhaul.runtime import load, verify

        folder, files = sys.argv[1:]
        images = np.load(files + "/images.npy")
        artifact = load(folder, threads=1)
        np.save(files + "/found.npy", artifact(image=images))
        np.save(files + "/again.npy", oh.load(folder)(images))
        print(verify(folder))
        assert oh.verify(folder) == verify(folder)
        assert "torch" not in sys.modules
    """
    done = without_torch(program, artifact_folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{oh.verify(artifact_folder)}\n"
    wanted = oh.load(artifact_folder, threads=1)(images)
    assert isinstance(wanted, Tensor)
    for name in ("found", "again"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), wanted.numpy())


def test_the_command_needs_no_torch(artifact_folder: Path) -> None:
    program = """
        import runpy
        sys.argv[0] = "python -m overhaul.runtime"
        runpy.run_module("overhaul.runtime", run_name="__main__")
    """
    done = without_torch(program, "verify", artifact_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is intact: " in done.stdout
    assert "computes the 4 golden samples again" in done.stdout
    (artifact_folder / "golden.safetensors").unlink()
    done = without_torch(program, "verify", artifact_folder, "--threads", 1)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("Error: ")
    assert "golden.safetensors' is corrupted: the manifest lists it, and it is" in done.stderr


def test_the_command_line_says_what_it_lacks_and_what_does_without(artifact_folder: Path) -> None:
    program = """
        from overhaul.cli import main
        main()
    """
    done = without_torch(program, "verify", artifact_folder)
    assert (done.returncode, done.stdout) == (7, "")
    assert "needs the package 'typer', which is not installed" in done.stderr
    assert "`python -m overhaul.runtime verify ARTIFACT`" in done.stderr
    assert "Traceback" not in done.stderr


def test_arrays_of_any_layout_are_taken_and_nothing_else(
    artifact_folder: Path, images: NDArray[np.float32]
) -> None:
    artifact = load(artifact_folder)
    wanted = artifact(images)
    assert isinstance(wanted, np.ndarray)
    assert wanted.shape == (5, 3)
    assert wanted.dtype == np.float32
    turned = images[::-1]
    read_only = images.copy()
    read_only.setflags(write=False)
    np.testing.assert_allclose(artifact({"image": turned})[::-1], wanted, atol=1e-6)  # type: ignore[index]
    np.testing.assert_array_equal(np.asarray(artifact(read_only)), wanted)
    with pytest.raises(DataError, match=r"must be a NumPy array, got list\. .*numpy\.asarray"):
        artifact(images.tolist())
    with pytest.raises(DataError, match="`image` must be float32, got float64"):
        artifact(images.astype(np.float64))


def test_a_call_like_the_one_before_is_checked_like_the_first(
    artifact_folder: Path, images: NDArray[np.float32]
) -> None:
    artifact = load(artifact_folder)
    wanted = np.asarray(artifact(image=images))
    np.testing.assert_array_equal(np.asarray(artifact(image=images)), wanted)
    wide = np.random.default_rng(1).random((5, 1, 8, 16)).astype(np.float32)
    wide[..., ::2] = images
    np.testing.assert_allclose(np.asarray(artifact(image=wide[..., ::2])), wanted, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(artifact(image=images.view(_Own))), wanted)
    with pytest.raises(DataError, match=r"there is no input 'picture'\. Known: image"):
        artifact(picture=images)
    with pytest.raises(DataError, match="`image` must be float32, got float64"):
        artifact(image=images.astype(np.float64))
    with pytest.raises(
        DataError, match=r"must have the shape \[batch, 1, 8, 8\], got \[5, 1, 8, 16\]"
    ):
        artifact(image=wide)
    np.testing.assert_allclose(np.asarray(artifact(image=images[:2])), wanted[:2], atol=1e-6)


class _Own(np.ndarray[Any, Any]):
    """A class of arrays that is not NumPy's."""


def test_outputs_of_one_call_are_not_overwritten_by_the_next(
    artifact_folder: Path, images: NDArray[np.float32]
) -> None:
    artifact = load(artifact_folder)
    first = artifact(images)
    kept = np.array(first)
    artifact(images + 1)
    np.testing.assert_array_equal(np.asarray(first), kept)


def test_a_changed_byte_and_a_missing_file_are_refused(artifact_folder: Path) -> None:
    for path in sorted(artifact_folder.iterdir()):
        good = path.read_bytes()
        spoiled = bytearray(good)
        spoiled[len(good) // 2] ^= 1
        path.write_bytes(bytes(spoiled))
        with pytest.raises(CorruptedFileError, match=f"{path.name}' is corrupted: .* again"):
            load(artifact_folder)
        path.unlink()
        with pytest.raises((CorruptedFileError, ArtifactError), match=path.name):
            verify(artifact_folder)
        path.mkdir()
        with pytest.raises((CorruptedFileError, ArtifactError), match=path.name):
            load(artifact_folder)
        path.rmdir()
        path.write_bytes(good)
    assert verify(artifact_folder).max_abs_error == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"engine": name}, f"engine {name} of this artifact needs torch.*overhaul.load")
            for name in _NEED_TORCH
        ),
        ({"engine": "onnx_runtime"}, "unknown engine 'onnx_runtime'. Did you mean 'onnxruntime'"),
        ({"engine": "os:system"}, "not a signature .*`engine` must be a short name, got 'os:sys"),
        ({"options": {"hints": "x"}}, r"has no option 'hints'\. .* newer Overhaul, upgrade"),
        ({"options": {"hint": []}}, "not a signature .*`options` must be plain values"),
        ({"inputs": []}, "not a signature .*'inputs' must have at least one entry"),
        ({"outputs": []}, "not a signature .*'outputs' must have at least one entry"),
        ({"format_version": 2}, "must have the format 1, got 2"),
        ({"file": "../elsewhere"}, "names the file '../elsewhere', which is not in the manifest"),
        ({"news": 1}, "not a signature .*unknown field 'news'"),
        ({"task": ...}, "not a signature .*field 'task' is missing"),
        ({"tolerance": "1"}, "not a signature .*field 'tolerance' must be float, got '1'"),
        ({"versions": {"torch": 2}}, "not a signature .*'versions' must have strings only"),
        ({"class_names": [1]}, "not a signature .*'class_names' must have strings only"),
        ({"inputs": ["x"]}, "not a signature .*an object is expected, got 'x'"),
        (
            {"inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}]},
            "not a signature .*`shape` must have whole numbers and names",
        ),
    ],
)
def test_what_it_does_not_know_is_refused_in_words(
    changes: dict[str, Any], message: str, artifact_folder: Path
) -> None:
    change_signature(artifact_folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        load(artifact_folder)


def test_every_engine_is_either_run_here_or_said_to_need_torch() -> None:
    kinds: type[Engine] = Engine  # type: ignore[type-abstract]
    ours = [cls for cls in concrete_subclasses(kinds) if cls.__module__.startswith("overhaul.")]
    assert {cls.spec_name() for cls in ours} == {*_OPTIONS, *_NEED_TORCH}
    assert _OPTIONS["onnxruntime"] == set(OnnxRuntime.model_fields)
    assert _OPTIONS["openvino"] == set(OpenVINO.model_fields)


def test_openvino_is_set_alike_with_and_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model, x = (
        installed("openvino"),
        nn.Linear(6, 3).requires_grad_(False),
        torch.ones(5, 6),
    )
    deployed(engine, model, x, tmp_path)
    signature = signature_of(engine, x, model(x))
    core, settings = importlib.import_module("openvino").Core, []
    compile_model = core.compile_model

    def record(self: Any, model: Any, device: str, options: dict[str, Any]) -> Any:
        settings.append(options)
        return compile_model(self, model, device, options)

    monkeypatch.setattr(core, "compile_model", record)
    engine.open(tmp_path / signature.file, signature, 1)
    open_openvino(tmp_path / signature.file, signature, 1)
    assert settings[0] == settings[1]
    assert settings[0]["INFERENCE_PRECISION_HINT"] == "f32"


def test_openvino_has_a_program_for_one_sample_and_makes_that_for_others_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = installed("openvino"), nn.Linear(6, 3).requires_grad_(False)
    x = torch.randn(5, 6)
    deployed(engine, model, x, tmp_path)
    signature = signature_of(engine, x, model(x))
    core, batches = importlib.import_module("openvino").Core, []
    compile_model = core.compile_model

    def record(self: Any, model: Any, device: str, options: dict[str, Any]) -> Any:
        batches.append(str(model.inputs[0].partial_shape))
        return compile_model(self, model, device, options)

    monkeypatch.setattr(core, "compile_model", record)
    run = open_openvino(tmp_path / signature.file, signature, 1)
    assert batches == ["[1,6]"]
    for count in (1, 5, 1, 2, 5):
        np.testing.assert_allclose(run([x[:count].numpy()])[0], model(x[:count]), rtol=1e-5)
    assert batches == ["[1,6]", "[?,6]"]


def test_openvino_answers_each_of_several_threads(tmp_path: Path) -> None:
    engine, model = installed("openvino"), nn.Linear(6, 3).requires_grad_(False)
    x = torch.randn(40, 2, 6)
    deployed(engine, model, x[0], tmp_path)
    signature = signature_of(engine, x[0], model(x[0]))
    run = open_openvino(tmp_path / signature.file, signature, 1)

    def ask(number: int) -> NDArray[Any]:
        for _ in range(20):
            found = run([x[number, : 1 + number % 2].numpy()])[0]
        return found

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(ask, range(len(x)))):
            wanted = model(x[number, : 1 + number % 2])
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_file_that_the_engine_cannot_read_is_refused(artifact_folder: Path) -> None:
    name = read_signature(artifact_folder).file
    (artifact_folder / name).write_bytes(b"this is not a model")
    vouch_for(artifact_folder)
    with pytest.raises(ArtifactError, match=f"cannot open '{name}'.*It was written"):
        load(artifact_folder)


def test_a_missing_package_is_named_with_the_line_that_installs_it_alone(
    artifact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = read_signature(artifact_folder).engine
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, engine, None)
        with pytest.raises(MissingExtraError, match=f"Run: pip install {engine}$"):
            load(artifact_folder)
    artifact = load(artifact_folder)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"golden samples .*pip install safetensors$"):
        artifact.golden_check()
