"""What a model is worth and what it costs, measured; and what that proves."""

from overhaul.evaluation._check_max_drop import check_max_drop
from overhaul.evaluation._comparison import Comparison, Effect, Status, compare
from overhaul.evaluation._cost_facts import cost_facts, peak_memory_fact
from overhaul.evaluation._forward_call import forward_call
from overhaul.evaluation._goal import Goal
from overhaul.evaluation._latency import Latency, latency_facts, measure_latency
from overhaul.evaluation._macs import Macs, count_macs
from overhaul.evaluation._mcnemar import mcnemar_p
from overhaul.evaluation._measured_apart import measured_apart
from overhaul.evaluation._model_device import model_device
from overhaul.evaluation._paired_difference import PairedDifference, paired_difference
from overhaul.evaluation._parameters import count_nonzero_parameters, count_parameters
from overhaul.evaluation._peak_memory import PeakMemory, measure_peak_memory
from overhaul.evaluation._peak_memory_process import peak_bytes, reset_peak
from overhaul.evaluation._predictions import Predictions, predict
from overhaul.evaluation._quality_facts import quality_facts
from overhaul.evaluation._stored_size import StoredSize, stored_size
from overhaul.evaluation._tango import tango_interval
from overhaul.evaluation._verdict import Verdict, verdict_facts

__all__ = [
    "Comparison",
    "Effect",
    "Goal",
    "Latency",
    "Macs",
    "PairedDifference",
    "PeakMemory",
    "Predictions",
    "Status",
    "StoredSize",
    "Verdict",
    "check_max_drop",
    "compare",
    "cost_facts",
    "count_macs",
    "count_nonzero_parameters",
    "count_parameters",
    "forward_call",
    "latency_facts",
    "mcnemar_p",
    "measure_latency",
    "measure_peak_memory",
    "measured_apart",
    "model_device",
    "paired_difference",
    "peak_bytes",
    "peak_memory_fact",
    "predict",
    "quality_facts",
    "reset_peak",
    "stored_size",
    "tango_interval",
    "verdict_facts",
]
