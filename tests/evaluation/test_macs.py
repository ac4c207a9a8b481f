"""Multiply-accumulates, against numbers worked out by hand and published ones."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import Batch, tensor_hash
from overhaul.evaluation import count_macs

B, T, E = 2, 5, 8


def batch_of(*inputs: Tensor) -> Batch:
    return Batch(inputs, torch.zeros(len(inputs[0])), torch.arange(len(inputs[0])))


SEQUENCE, PIXELS = torch.randn(B, T, E), torch.randn(B, 4, 6, 6)
HEADS = torch.randn(B, 2, T, E)

ATTENTION = 4 * T * E * E + 2 * T * T * E  # four projections, scores, weighted values


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _SelfAttention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return attended


class _PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(len(x), T, dtype=torch.bool)
        padding[0, 3:] = True
        encoded: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return encoded


class _Inference(nn.Module):
    """Hides composite operators from who looks on, as `inference_mode` does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = self.inner(*inputs)
        return outputs


def lstm_layer(inputs: int, hidden: int, out: int | None = None) -> int:
    """MACs of one LSTM layer and direction at one time step."""
    return 4 * hidden * (inputs + (out or hidden)) + (hidden * out if out else 0)


LAYERS: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {
    "linear": (nn.Linear(E, 3), (SEQUENCE,), T * E * 3),
    "bilinear": (nn.Bilinear(3, 4, 5), (torch.ones(B, 3), torch.ones(B, 4)), 3 * 4 * 5),
    "conv": (nn.Conv2d(4, 8, 3, padding=1), (PIXELS,), 36 * 8 * 4 * 9),
    "strided conv": (nn.Conv2d(4, 8, 3, stride=2), (PIXELS,), 4 * 8 * 4 * 9),
    "grouped conv": (nn.Conv2d(4, 8, 3, padding=1, groups=2), (PIXELS,), 36 * 8 * 2 * 9),
    "depthwise conv": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (PIXELS,), 36 * 4 * 9),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 3, stride=2), (PIXELS,), 36 * 4 * 6 * 9),
    "grouped transposed conv": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        (PIXELS,),
        36 * 4 * 3 * 9,
    ),
    "conv 1d": (nn.Conv1d(T, 6, 3), (SEQUENCE,), 6 * 6 * T * 3),
    "lstm": (nn.LSTM(E, 16, batch_first=True), (SEQUENCE,), T * lstm_layer(E, 16)),
    "two-layer bidirectional lstm": (
        nn.LSTM(E, 16, 2, bidirectional=True, batch_first=True),
        (SEQUENCE,),
        T * 2 * (lstm_layer(E, 16) + lstm_layer(32, 16)),
    ),
    "two-layer bidirectional gru": (
        nn.GRU(E, 16, 2, bidirectional=True, batch_first=True),
        (SEQUENCE,),
        T * 2 * 3 * 16 * ((E + 16) + (32 + 16)),
    ),
    "rnn": (nn.RNN(E, 16, batch_first=True), (SEQUENCE,), T * 16 * (E + 16)),
    "multi-head attention": (_SelfAttention(False), (SEQUENCE,), ATTENTION),
    "multi-head attention with weights": (_SelfAttention(True), (SEQUENCE,), ATTENTION),
    "encoder layer": (
        nn.TransformerEncoderLayer(E, 2, 16, batch_first=True),
        (SEQUENCE,),
        ATTENTION + 2 * T * E * 16,
    ),
    "padded encoder": (_PaddedEncoder(), (SEQUENCE,), 2 * (ATTENTION + 2 * T * E * 16)),
    "attention": (
        _Call(lambda q: F.scaled_dot_product_attention(q, q, q)),
        (HEADS,),
        2 * T * T * (E + E),
    ),
    "grouped-query attention": (
        _Call(lambda q: F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True)),
        (HEADS,),
        2 * T * T * (E + E),
    ),
    "einsum": (_Call(lambda a: torch.einsum("bij,bkj->bik", a, a)), (SEQUENCE,), T * T * E),
    "matmul": (_Call(lambda a: a @ a.mT), (SEQUENCE,), T * T * E),
    "matrix times vector": (_Call(lambda a: a @ torch.ones(E)), (SEQUENCE,), T * E),
    "baddbmm": (_Call(lambda a: torch.baddbmm(a, a, torch.ones(B, E, E))), (SEQUENCE,), T * E * E),
    "embedding": (nn.Embedding(10, 4), (torch.zeros(B, 3, dtype=torch.long),), 0),
    "embedding bag": (nn.EmbeddingBag(10, 4), (torch.zeros(B, 3, dtype=torch.long),), 0),
    "elementwise": (nn.Sequential(nn.ReLU(), nn.LayerNorm(E), nn.Softmax(-1)), (SEQUENCE,), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_by_hand(name: str) -> None:
    model, inputs, expected = LAYERS[name]
    found = count_macs(model, batch_of(*inputs))
    assert (found.per_sample, found.uncounted) == (expected, ())


@pytest.mark.parametrize("name", LAYERS)
def test_by_hand_under_inference_mode(name: str) -> None:
    model, inputs, expected = LAYERS[name]
    assert count_macs(_Inference(model), batch_of(*inputs)).per_sample == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_lstm_with_projections() -> None:
    model = nn.LSTM(E, 16, 2, proj_size=4, batch_first=True)
    expected = T * (lstm_layer(E, 16, 4) + lstm_layer(4, 16, 4))
    assert count_macs(model, batch_of(SEQUENCE)).per_sample == expected


def test_fused_attention_operators() -> None:
    layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=True)
    inner = layer.self_attn
    weights = (inner.in_proj_weight, inner.in_proj_bias, inner.out_proj.weight, inner.out_proj.bias)
    norms = (layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias)
    ends = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
    attention = _Call(lambda x: torch._native_multi_head_attention(x, x, x, E, 2, *weights)[0])
    encoder = _Call(
        lambda x: torch._transformer_encoder_layer_fwd(
            x, E, 2, *weights, False, False, 1e-5, *norms, *ends
        )
    )
    assert count_macs(attention, batch_of(SEQUENCE)).per_sample == ATTENTION
    assert count_macs(encoder, batch_of(SEQUENCE)).per_sample == ATTENTION + 2 * T * E * 16


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1.81), ("mobilenet_v2", 0.30)])
def test_published_figures(name: str, giga: float) -> None:
    # torchvision publishes these as "GFLOPS" of its weights, meaning multiply-accumulates.
    models = pytest.importorskip("torchvision.models")
    model = models.get_model(name, weights=None)
    found = count_macs(model, batch_of(torch.randn(1, 3, 224, 224)))
    assert found.per_sample / 1e9 == pytest.approx(giga, abs=0.005)


def test_the_batch_size_does_not_matter(network: nn.Sequential) -> None:
    counts = {count_macs(network, batch_of(torch.randn(n, 1, 8, 8))).per_sample for n in (1, 2, 7)}
    assert counts == {36 * 4 * 9 + 4 * 36 * 2}


def test_what_has_no_formula_is_named_and_elementwise_work_is_not() -> None:
    found = count_macs(_Call(lambda a: torch.cdist(a, a).exp() * 2), batch_of(SEQUENCE))
    assert found.uncounted == ("aten::_cdist_forward",)


@torch.library.custom_op("overhaul_tests::scaled", mutates_args=())
def scaled(x: Tensor) -> Tensor:
    return x * 2


def test_an_operator_of_another_library_is_named() -> None:
    found = count_macs(_Call(lambda a: scaled(a)), batch_of(SEQUENCE))
    assert found.uncounted == ("overhaul_tests::scaled",)


def test_the_model_and_torch_are_left_as_they_were(network: nn.Sequential, images: Batch) -> None:
    before = tensor_hash(network.state_dict())
    count_macs(network, images)
    assert network.training
    assert network[4].training
    assert tensor_hash(network.state_dict()) == before
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks for module in network.modules())


def test_learned_queries_are_counted_and_stay_trainable() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(1, 3, E))
            self.fc = nn.Linear(E, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.queries.expand(len(x), -1, -1))
            return out + x.mean()

    model = Queries()
    assert count_macs(model, batch_of(SEQUENCE)).per_sample == 3 * E * 2
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_copy_of_a_scripted_layer_is_counted() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(E, 3)), nn.Linear(3, 2))
    copied = deepcopy(model)
    assert not next(copied.parameters()).is_leaf
    assert count_macs(copied, batch_of(SEQUENCE)).per_sample == T * (E * 3 + 3 * 2)
