"""A network as data: its factory and its weights file, from which no code is run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from overhaul.core import CorruptedFileError, ModelError, Network, SpecError
from tests.core.samples import Net


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil_was_here",)


def not_a_network() -> str:
    return "no network"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_the_weights_of_a_file_are_loaded(tmp_path: Path, suffix: str) -> None:
    net, path = Net(), tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(net.state_dict(), path)
    network = Network(factory=Net, arguments={"power": 2}, weights=str(path))
    assert network == Network.from_yaml(network.to_yaml())
    built = network.build()
    assert isinstance(built, Net)
    assert built.power == 2
    assert torch.equal(built.first.weight, net.first.weight)


def test_weights_inside_a_checkpoint_are_found(tmp_path: Path) -> None:
    net = Net()
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    built = Network(factory=Net, weights=str(tmp_path / "a.pt")).build()
    assert torch.equal(built.get_parameter("first.weight"), net.first.weight)


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    with pytest.raises(ModelError, match="Overhaul runs no code from files"):
        Network(factory=Net, weights="evil.pt").build()
    torch.save(Net(), "whole.pt")
    with pytest.raises(ModelError, match=r"Save `model.state_dict\(\)` instead"):
        Network(factory=Net, weights="whole.pt").build()
    assert [path.name for path in tmp_path.iterdir() if "evil_was" in path.name] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_was_cut_off_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptedFileError, match=r"cannot be read as weights.* Get the file again"):
        Network(factory=Net, weights=str(path)).build()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(nn.Linear(1, 1).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"do not belong to this Net: .* is missing"):
        Network(factory=Net, weights=str(tmp_path / "a.safetensors")).build()


def test_weights_of_another_shape_are_named_and_those_of_a_run_point_to_what_loads_them(
    tmp_path: Path,
) -> None:
    narrow = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))

    def wide() -> nn.Module:
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))

    save_file(narrow.state_dict(), tmp_path / "weights.safetensors")
    network = Network(factory=wide, weights=str(tmp_path / "weights.safetensors"))
    with pytest.raises(
        ModelError,
        match=r"0.weight is \[2, 2\] and the model's \[3, 3\]; .*; and 3 more. Give the f",
    ):
        network.build()
    (tmp_path / "manifest.json").write_text("{}", "utf-8")
    (tmp_path / "steps").mkdir()
    with pytest.raises(ModelError, match=rf"`overhaul.load_model\('{tmp_path}', original\)` makes"):
        network.build()


def test_a_missing_file_is_named_with_the_folder_that_was_looked_in() -> None:
    with pytest.raises(ModelError, match=r"no weights file 'absent.pt' \(looked from '/"):
        Network(factory=Net, weights="absent.pt").build()


def test_a_tensor_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "a.pt")
    with pytest.raises(ModelError, match="holds Tensor, not a state dict"):
        Network(factory=Net, weights=str(tmp_path / "a.pt")).build()


def test_a_factory_is_called_as_it_can_be() -> None:
    with pytest.raises(SpecError, match=r"cannot be called so: .*'depth'"):
        Network(factory=Net, arguments={"depth": 2}).build()
    with pytest.raises(SpecError, match=r"must return a torch.nn.Module, got str"):
        Network(factory=not_a_network).build()


def failing(size: int) -> nn.Module:
    raise KeyError(f"no size {size}")


def test_a_factory_that_fails_is_named_with_its_arguments_and_line() -> None:
    with pytest.raises(ModelError, match=r"failing.*'size': 3.*no size 3.*test_network\.py:\d+"):
        Network(factory=failing, arguments={"size": 3}).build()
