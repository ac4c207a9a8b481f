"""For tests of your own steps and plugs."""

from overhaul.testing._check_spec import check_spec, example_of
from overhaul.testing._check_step import check_step
from overhaul.testing._tiny import (
    TinyCNN,
    TinyResidual,
    tiny_arrays,
    tiny_cnn,
    tiny_multi_task,
    tiny_residual,
    tiny_task,
)

__all__ = [
    "TinyCNN",
    "TinyResidual",
    "check_spec",
    "check_step",
    "example_of",
    "tiny_arrays",
    "tiny_cnn",
    "tiny_multi_task",
    "tiny_residual",
    "tiny_task",
]
