"""Weights and activations in few bits."""

from overhaul.quantization._budget import Budget
from overhaul.quantization._calibration import (
    Calibration,
    Entropy,
    MinMax,
    MovingAverage,
    Percentile,
    SquaredError,
)
from overhaul.quantization._fake_quantization import FakeQuantization
from overhaul.quantization._integer_map import WeightForm
from overhaul.quantization._quantize import Quantize
from overhaul.quantization._quantize_layers import LayerForm, QuantizeLayers
from overhaul.quantization._repair import QuantizationRepair

__all__ = [
    "Budget",
    "Calibration",
    "Entropy",
    "FakeQuantization",
    "LayerForm",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "QuantizationRepair",
    "Quantize",
    "QuantizeLayers",
    "SquaredError",
    "WeightForm",
]
