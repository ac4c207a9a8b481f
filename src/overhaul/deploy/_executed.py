"""`executed`: which layers an engine runs in integers, and which conversions are left over."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overhaul.deploy._onnx_weights import INTEGERS_TO_INTEGERS, optimized_nodes
from overhaul.deploy._quiet import quiet
from overhaul.runtime import OpenedArtifact, import_openvino, openvino_core

_WHY = "to see what an engine makes of a model"
_REAL_LAYERS = frozenset(
    [
        "Conv",
        "FusedConv",
        "ConvTranspose",
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "MatMulNBits",
        "Attention",
        "MultiHeadAttention",
        "LSTM",
        "GRU",
        "RNN",
    ]
)
_INTEGER_LAYERS = frozenset(
    [
        "QLinearConv",
        "ConvInteger",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QAttention",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    ]
)
_CONVERSIONS = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
_OPENVINO_LAYERS = frozenset(
    [
        "Convolution",
        "GroupConvolution",
        "Deconvolution",
        "FullyConnected",
        "MatMul",
        "RNNSeq",
        "RNNCell",
        "ScaledDotProductAttention",
    ]
)


@dataclass(frozen=True)
class Executed:
    """What an engine runs after it has optimized a graph.

    Attributes:
        in_integers: Layers (convolutions, products of matrices, recurrent ones) in integers.
        in_real: Such layers in real numbers.
        conversions: Operations that only change between integers and real numbers.
        in_reference: Layers with a plain kernel that is not made for this CPU.
    """

    in_integers: int
    in_real: int
    conversions: int
    in_reference: int = 0

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.in_integers + self.in_real


def executed(artifact: OpenedArtifact[Any]) -> Executed | None:
    """Ask the engine of an artifact what it runs; None if it does not say.

    Args:
        artifact: Opened, by ONNX Runtime or OpenVINO.
    """
    ask = _ASK.get(artifact.engine)
    if ask is None:
        return None
    try:
        with quiet():
            return ask(artifact.path / artifact.signature.file)
    except Exception:  # what is only told must not break what works
        return None


def counted_onnx(nodes: Iterable[Any]) -> Executed:
    """Count the nodes of a graph that ONNX Runtime has optimized."""
    whole = real = conversions = 0
    for node in nodes:
        level = next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
        if node.op_type in _INTEGER_LAYERS or level == INTEGERS_TO_INTEGERS:
            whole += 1
        elif node.op_type in _REAL_LAYERS:
            real += 1
        elif node.op_type in _CONVERSIONS:
            conversions += 1
    return Executed(whole, real, conversions)


def counted_openvino(layers: Iterable[dict[str, str]]) -> Executed:
    """Count the layers of a graph that OpenVINO has compiled.

    Args:
        layers: `layerType`, `runtimePrecision`, `outputPrecisions` and `primitiveType` of each.
    """
    whole = real = conversions = plain = 0
    for layer in layers:
        kind, precision = layer["layerType"], layer["runtimePrecision"]
        is_integer = precision in ("u8", "i8")
        if kind in _OPENVINO_LAYERS:
            whole, real = whole + is_integer, real + (not is_integer)
            plain += layer["primitiveType"].startswith("ref")
        elif kind == "FakeQuantize":
            conversions += 1
        elif kind in ("Convert", "Reorder"):
            conversions += is_integer != (layer["outputPrecisions"] in ("u8", "i8"))
    return Executed(whole, real, conversions, plain)


def _by_onnxruntime(path: Path) -> Executed:
    return counted_onnx(optimized_nodes(path))


def _by_openvino(path: Path) -> Executed:
    core = openvino_core(import_openvino(_WHY, extra="openvino"))
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", options)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    names = ("layerType", "runtimePrecision", "outputPrecisions", "primitiveType")
    return counted_openvino({name: str(info[name].value) for name in names} for info in infos)


_ASK: dict[str, Callable[[Path], Executed]] = {
    "onnxruntime": _by_onnxruntime,
    "openvino": _by_openvino,
}
