"""Weights and activations in few bits."""

from overhaul.quantization._ada_round import AdaRound
from overhaul.quantization._awq import Awq
from overhaul.quantization._bias_correction import BiasCorrection
from overhaul.quantization._budget import Budget
from overhaul.quantization._calibration import (
    Calibration,
    Entropy,
    MinMax,
    MovingAverage,
    Percentile,
    Seen,
    SquaredError,
)
from overhaul.quantization._cross_layer_equalization import CrossLayerEqualization
from overhaul.quantization._fake_quantization import FakeQuantization
from overhaul.quantization._gptq import Gptq
from overhaul.quantization._integer_map import WeightForm
from overhaul.quantization._layer_inputs import Geometry, LayerInputs
from overhaul.quantization._plan import Plan
from overhaul.quantization._quantize import Quantize
from overhaul.quantization._quantize_layers import LayerForm, QuantizeLayers
from overhaul.quantization._repair import QuantizationRepair
from overhaul.quantization._rescaling import Channels, Rescaling
from overhaul.quantization._rounding_repair import RoundingRepair
from overhaul.quantization._smooth_quant import SmoothQuant

__all__ = [
    "AdaRound",
    "Awq",
    "BiasCorrection",
    "Budget",
    "Calibration",
    "Channels",
    "CrossLayerEqualization",
    "Entropy",
    "FakeQuantization",
    "Geometry",
    "Gptq",
    "LayerForm",
    "LayerInputs",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "Plan",
    "QuantizationRepair",
    "Quantize",
    "QuantizeLayers",
    "Rescaling",
    "RoundingRepair",
    "Seen",
    "SmoothQuant",
    "SquaredError",
    "WeightForm",
]
