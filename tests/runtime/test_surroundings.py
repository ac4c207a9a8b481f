"""Another version of the engine, another CPU: said, and refused where the result is another."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import overhaul as oh
from overhaul.runtime import ArtifactError, cpu_features, load, read_signature, verify
from tests.runtime.spoiling import change_signature, vouch_for

X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm\nCPU part : 0xd49\n"


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (X86, ("avx2", "fma", "avx512f", "avx512_vnni")),
        (ARM, ("asimd", "asimddp", "i8mm")),
        ("model name : something\n", ()),
    ],
)
def test_features_are_read_from_what_linux_says(
    text: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path / "cpuinfo") == features


def test_where_nothing_is_said_nothing_is_known(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "cpuinfo") == ()


def test_the_machine_is_recorded_and_shown(artifact_folder: Path) -> None:
    signature = read_signature(artifact_folder)
    version = signature.versions[signature.engine]
    assert signature.cpu == cpu_features()
    made_with = f"made with {signature.engine} {version} on a CPU with {' '.join(signature.cpu)}"
    assert made_with in str(verify(artifact_folder))
    assert verify(artifact_folder).warnings == ()
    assert repr(load(artifact_folder)).endswith(f"; {made_with}>")


def test_an_artifact_of_before_the_cpu_was_recorded_can_be_read(artifact_folder: Path) -> None:
    change_signature(artifact_folder, cpu=...)
    found = verify(artifact_folder)
    assert found.warnings == ()
    assert "CPU" not in found.made_with


def test_a_cpu_that_lacks_instructions_is_warned_of(
    artifact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_signature(artifact_folder, cpu=["avx2", "avx512_vnni"])
    monkeypatch.setattr("overhaul.runtime._surroundings.cpu_features", lambda: ("avx2",))
    for found in (verify(artifact_folder), oh.verify(artifact_folder)):
        assert str(found).splitlines()[1] == (
            "Warning: This CPU lacks avx512_vnni, which the CPU that it was made on has: it may be "
            "slower than it was there, and may round otherwise."
        )
    monkeypatch.setattr("overhaul.runtime._surroundings.cpu_features", tuple)
    assert verify(artifact_folder).warnings == ()


def test_another_version_that_computes_the_same_is_said(artifact_folder: Path) -> None:
    engine = read_signature(artifact_folder).engine
    change_signature(artifact_folder, versions={"torch": "0.1", engine: "0.0.1"})
    [warning] = verify(artifact_folder).warnings
    assert warning.startswith(f"It was made with {engine} 0.0.1, and here is {engine} ")
    assert load(artifact_folder).differences_here == (warning,)


@pytest.mark.parametrize("spoil", ["values", "shape", "dtype", "missing"])
def test_a_stale_artifact_is_not_even_opened(spoil: str, artifact_folder: Path) -> None:
    path = artifact_folder / "golden.safetensors"
    golden = load_file(path)
    output = golden["output.output"]
    match spoil:
        case "values":
            golden["output.output"] = np.ascontiguousarray(output[::-1])
        case "shape":
            golden["output.output"] = np.ascontiguousarray(output[:, :2])
        case "dtype":
            golden["output.output"] = output.astype(np.float64)
        case "missing":
            del golden["output.output"]
    save_file(golden, path)
    vouch_for(artifact_folder)
    assert load(artifact_folder).engine  # the same version and CPU: only `verify` computes them
    message = {
        "values": r"golden outputs differ by [\d.e+-]+ of the largest",
        "shape": "golden outputs differ by inf",
        "dtype": "golden outputs differ by inf",
        "missing": r"does not hold the golden inputs and outputs: 'output\.output'",
    }[spoil]
    with pytest.raises(ArtifactError, match=message):
        verify(artifact_folder)
    engine = read_signature(artifact_folder).engine
    change_signature(artifact_folder, versions={engine: "0.0.1"})
    stale = "" if spoil == "missing" else f".*It was made with {engine} 0.0.1, and here is"
    for refuse in (load, oh.load):
        with pytest.raises(ArtifactError, match=message + stale):
            refuse(artifact_folder)


def test_a_signature_survives_its_file(artifact_folder: Path) -> None:
    preprocessing = {"normalize": {"mean": [0.5], "by": "Gauß"}}
    change_signature(
        artifact_folder, class_names=["a", "ß"], preprocessing=preprocessing, named_outputs=True
    )
    signature = read_signature(artifact_folder)
    assert signature.class_names == ("a", "ß")
    assert signature.preprocessing == preprocessing
    (artifact_folder / "signature.json").write_text(signature.to_json(), "utf-8")
    assert read_signature(artifact_folder) == signature
    assert json.loads(signature.to_json())["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    vouch_for(artifact_folder)
    found = load(artifact_folder)(np.zeros((2, 1, 8, 8), np.float32))
    assert isinstance(found, dict)
    assert found["output"].shape == (2, 3)
