from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from overhaul.core import ArtifactError
from overhaul.deploy import load, verify
from overhaul.deploy._manifest import write_manifest


def test_an_intact_artifact_computes_what_it_did(artifact_folder: Path) -> None:
    found = verify(artifact_folder)
    assert (found.files, found.samples, found.max_abs_error) == (3, 4, 0.0)
    assert str(found) == (
        f"{artifact_folder} is intact: 3 files have their hashes, and {found.engine} computes the "
        "4 golden samples again with an error of 0 of the largest output (allowed: 0.001). It was "
        f"made with {found.made_with}."
    )


def test_golden_outputs_are_those_of_the_engine(artifact_folder: Path) -> None:
    golden = load_file(artifact_folder / "golden.safetensors")
    assert golden["input.image"].shape == (4, 1, 8, 8)
    found = load(artifact_folder)(golden["input.image"])
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, golden["output.output"])


@pytest.mark.parametrize("spoil", ["swap", "drop"])
def test_golden_outputs_that_are_not_computed_again_are_found(
    spoil: str, artifact_folder: Path
) -> None:
    path = artifact_folder / "golden.safetensors"
    golden = load_file(path)
    if spoil == "swap":
        golden["output.output"] = golden["output.output"].flip(0).contiguous()
    else:
        del golden["output.output"]
    save_file(golden, path)
    (artifact_folder / "manifest.json").unlink()
    write_manifest(artifact_folder, {})
    message = {
        "swap": r"golden outputs differ by [\d.]+ of the largest, and at most 0\.001 is allowed",
        "drop": r"does not hold the golden inputs and outputs: 'output\.output'",
    }[spoil]
    with pytest.raises(ArtifactError, match=message):
        verify(artifact_folder)
