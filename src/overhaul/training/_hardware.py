"""`Hardware`: device, precision and processes of one training, by Hugging Face Accelerate."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from overhaul.core import SpecError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


class Hardware:
    """Where and how one training runs.

    Under `accelerate launch` there are several processes. Each computes its part of every batch;
    the gradients are averaged so that the step is the one that a single process would have made.
    """

    def __init__(self, precision: Precision) -> None:
        """Take the device that Accelerate chooses.

        Raises:
            SpecError: this device cannot train in this precision.
        """
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, PartialState

        if precision == "fp16" and PartialState().device.type == "cpu":
            raise SpecError(
                "`precision` 'fp16' needs a GPU and there is none. Use 'bf16' or 'fp32'."
            )
        # Accelerate keeps the precision of the first training of a process; ours differ by step.
        AcceleratorState._reset_state()
        self._accelerator = Accelerator(
            # Without a GPU, Accelerate joins the processes of a launch only when it is told so.
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device: torch.device = self._accelerator.device
        self.processes: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self._loose_parameters: list[nn.Parameter] = []
        self._wrapped: nn.Module | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training: the model, or its data-parallel wrapper."""
        if self.processes > 1:
            self._wrapped = self._accelerator.prepare_model(model)
            return self._wrapped
        return model

    def unwrap_(self) -> None:
        """Take the traces of `wrap` off the model again."""
        if self._wrapped is not None:
            self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)

    def synchronize_also(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters outside of the model (a projector's) as well."""
        self._loose_parameters = list(parameters)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer with loss scaling where the precision needs it."""
        if self._accelerator.scaler is None:
            # Accelerate's wrapper searches for optional packages in each step: 0.3 ms of it.
            return optimizer
        prepared: torch.optim.Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return prepared

    @contextmanager
    def forward_pass(self, model: nn.Module, *, last_part: bool) -> Iterator[None]:
        """Compute in the chosen precision; share gradients in the last part of a step only."""
        apart = self.processes > 1 and not last_part
        alone = self._accelerator.no_sync(model) if apart else nullcontext()
        with alone, self._accelerator.autocast():
            yield

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar."""
        self._accelerator.backward(loss)

    def finish_gradients_(
        self, networks: Sequence[Sequence[nn.Parameter]], clip_norm: float | None
    ) -> None:
        """Average what `wrap` does not, and clip the norm of each network's whole gradient."""
        if self.processes > 1:
            for parameter in self._loose_parameters:
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
        if clip_norm is not None:
            self._accelerator.unscale_gradients()
            for parameters in networks:
                nn.utils.clip_grad_norm_(parameters, clip_norm)

    def total(self, value: Tensor) -> float:
        """Return the sum of a scalar over all processes."""
        if self.processes > 1:
            value = self._accelerator.reduce(value, reduction="sum")
        return float(value)

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: the loss scale."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)
