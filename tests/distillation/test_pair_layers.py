import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, ModelError
from overhaul.distillation import Layer, Pair, pair_layers, see
from overhaul.testing import tiny_cnn


def images(size: int = 16) -> Batch:
    return Batch((torch.randn(2, 3, size, size),), torch.zeros(2).long(), torch.arange(2))


def stages(width: int, blocks: int) -> nn.Sequential:
    """Three stages that halve the image, of several blocks each."""
    made: list[nn.Module] = []
    channels = 3
    for stage in range(3):
        inner: list[nn.Module] = []
        for number in range(blocks):
            stride = 2 if number == 0 else 1
            inner += [nn.Conv2d(channels, width << stage, 3, stride, 1), nn.ReLU()]
            channels = width << stage
        made.append(nn.Sequential(*inner))
    return nn.Sequential(*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def sequence(length: int = 6) -> Batch:
    return Batch((torch.randn(2, length, 8),), torch.zeros(2).long(), torch.arange(2))


class Encoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x.mean(1))
        return out


def paths(student: nn.Module, teacher: nn.Module, batch: Batch) -> list[tuple[str, str]]:
    found = pair_layers(student.eval(), teacher.eval(), batch)
    return [(pair.student.path, pair.teacher.path) for pair in found]


def test_stages_of_images_are_paired_by_size() -> None:
    assert paths(stages(2, 1), stages(4, 3), images()) == [
        ("0", "0"),
        ("1", "1"),
        ("2", "2"),
        ("3", "3"),
    ]


def test_pairs_are_in_the_order_of_the_layers() -> None:
    class Gate(nn.Module):
        """Makes a vector of the image early on, as squeeze-and-excitation does."""

        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            gated: Tensor = x * self.pool(x).sigmoid()
            return gated

    student, teacher = stages(2, 1), stages(4, 3)
    student.insert(1, Gate())
    assert paths(student, teacher, images())[-1] == ("4", "3")


def test_blocks_of_encoders_are_paired_by_relative_depth() -> None:
    assert paths(Encoder(2), Encoder(6), sequence()) == [
        ("blocks.0", "blocks.2"),
        ("blocks.1", "blocks.5"),
    ]


def test_layers_of_an_mlp_are_paired_but_not_the_outputs() -> None:
    def mlp(depth: int) -> nn.Sequential:
        hidden = [each for _ in range(depth) for each in (nn.Linear(8, 8), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(8, 2))

    batch = Batch((torch.randn(2, 8),), torch.zeros(2).long(), torch.arange(2))
    assert paths(mlp(1), mlp(3), batch) == [("0", "4")]


def test_the_channels_of_a_sequence_are_the_last_dimension_and_of_conv1d_the_second() -> None:
    batch = sequence()
    (pair,) = pair_layers(Encoder(1).eval(), Encoder(1).eval(), batch, [("blocks.0", "blocks.0")])
    assert (pair.student.channels, pair.student.places) == (8, (6,))
    assert pair.student.by_place(torch.zeros(2, 6, 8)).shape == (2, 8, 6)
    network = nn.Sequential(nn.Conv1d(6, 5, 1), nn.Flatten(), nn.Linear(40, 2))
    (pair,) = pair_layers(network, network, batch, [("0", "0")])
    assert (pair.student.channels, pair.student.places) == (5, (8,))
    assert pair.student.by_place(torch.zeros(2, 5, 8)).shape == (2, 5, 8)


def test_a_layer_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"the teacher has no layer 'blocks\.9'.*blocks\.0"):
        pair_layers(Encoder(1).eval(), Encoder(1).eval(), sequence(), [("blocks.0", "blocks.9")])


def test_a_layer_that_is_called_twice_is_refused() -> None:
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Linear(8, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 2))
    batch = Batch((torch.randn(2, 8),), torch.zeros(2).long(), torch.arange(2))
    with pytest.raises(ModelError, match=r"'1' of the student must be called once"):
        pair_layers(twice, twice, batch, [("1", "1")])


def test_a_layer_that_is_changed_in_place_is_refused_and_never_paired_by_itself() -> None:
    batch = Batch((torch.randn(2, 3, 8, 8),), torch.zeros(2).long(), torch.arange(2))

    def network() -> nn.Sequential:
        stage = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        rest = (nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        return nn.Sequential(*stage, *rest).eval()

    with pytest.raises(ModelError, match=r"'1' of the student must .* not be changed in place"):
        pair_layers(network(), network(), batch, [("1", "2")])
    assert ("2", "2") in paths(network(), network(), batch)
    assert "1" not in see(network(), batch, ["1", "2"]).features


def test_networks_without_a_pair_are_refused_with_what_to_do() -> None:
    batch = Batch((torch.randn(2, 8),), torch.zeros(2).long(), torch.arange(2))
    with pytest.raises(ModelError, match=r"Name pairs of module paths: layers="):
        pair_layers(nn.Linear(8, 2), nn.Linear(8, 2), batch)


def test_watching_leaves_no_hook_behind() -> None:
    student, teacher = tiny_cnn(2).eval(), tiny_cnn(3).eval()
    batch = Batch((torch.randn(2, 1, 8, 8),), torch.zeros(2).long(), torch.arange(2))
    assert pair_layers(student, teacher, batch)
    for module in (*student.modules(), *teacher.modules()):
        assert not module._forward_hooks


def test_layers_without_places_may_be_compared() -> None:
    pooled, vector = Layer("pool", 4, (1, 1), False), Layer("fc", 4, (), False)
    pair = Pair(pooled, vector)
    pair.check_places("hints")
    own_BCP, theirs_BCP = pair.at_one_size(torch.zeros(2, 4, 1), torch.ones(2, 4, 1))
    assert own_BCP.shape == theirs_BCP.shape


def test_an_image_and_a_sequence_are_not_compared_place_by_place() -> None:
    pair = Pair(Layer("conv", 4, (4, 4), False), Layer("block", 4, (17,), True))
    with pytest.raises(ModelError, match=r"hints: two layers must have one length"):
        pair.check_places("hints")
