"""The engine `executorch`: ExecuTorch with XNNPACK on the CPU, on a `.pte` file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from overhaul.core import ArtifactError, DataError, load_optional
from overhaul.deploy._capture import has_integers, short_reason
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._executorch_integers import with_executorch_integers
from overhaul.deploy._fold import folded
from overhaul.deploy._quiet import quiet_stderr
from overhaul.deploy._recurrent import has_recurrent, unrolled
from overhaul.deploy._signature import dynamic_shapes, example_inputs
from overhaul.runtime import Signature

_TO_WRITE = "to write a model for ExecuTorch"
_TO_RUN = "to run a model that was deployed to ExecuTorch"


class _Threads:
    """The threads of ExecuTorch, one set for the process.

    A method keeps hold of the set that it was loaded with: once there is another, calling it ends
    the process or never returns.
    """

    def __init__(self) -> None:
        self.made = 0

    def use(self, bindings: Any, count: int | None) -> int:
        """Have so many threads, and return how often the set was made: which one it is."""
        if count is not None and bindings._threadpool_get_thread_count() != count:
            with quiet_stderr():
                bindings._unsafe_reset_threadpool(count)
            self.made += 1
        return self.made


_threads = _Threads()


class ExecuTorch(Engine):
    """Run the model in ExecuTorch, with XNNPACK for what it knows.

    ExecuTorch plans its memory before it runs, so the number of samples that it takes at once has
    an upper bound; a call with more is done in parts. Layers whose inputs, weights and outputs are
    integers run as such; other integer weights are stored as real numbers. A process has one set of
    threads: artifacts that are opened for several numbers of them each make it anew when called.

    Args:
        max_batch: The most samples at once. Default 64.

    Example:
        >>> ExecuTorch(max_batch=8)
        ExecuTorch(max_batch=8)
        >>> ExecuTorch().to_data()
        'executorch'
    """

    file_name: ClassVar[str] = "model.pte"

    max_batch: int = Field(default=64, ge=1, description="The most samples at once.")

    @classmethod
    def spec_name(cls) -> str:
        """Return the name of the package."""
        return "executorch"

    def check_installed(self) -> None:
        """Import executorch."""
        with quiet_stderr():
            load_optional("executorch.exir", extra="executorch", why=_TO_WRITE)
            load_optional("executorch.runtime", extra="executorch", why=_TO_RUN)

    def versions(self) -> dict[str, str]:
        """Return the versions of torch and executorch."""
        version = load_optional("executorch.version", extra="executorch", why=_TO_WRITE)
        return {"torch": torch.__version__, "executorch": str(version.__version__)}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write `model.pte`.

        Raises:
            ArtifactError: ExecuTorch cannot take the model.
        """
        if signature.length is not None and has_recurrent(program):
            raise ArtifactError(
                "the steps of a recurrent layer are written out for ExecuTorch, which has no such "
                "layer, so their number cannot change"
            )
        with quiet_stderr():
            exir = load_optional("executorch.exir", extra="executorch", why=_TO_WRITE)
            xnnpack = load_optional(
                "executorch.backends.xnnpack.partition.xnnpack_partitioner",
                extra="executorch",
                why=_TO_WRITE,
            )
        try:
            with quiet_stderr(), torch.no_grad():
                bounded = self._bounded(program, signature)
                edge = exir.to_edge_transform_and_lower(
                    bounded, partitioner=[xnnpack.XnnpackPartitioner()]
                )
                self._bound_(edge.exported_program(), signature)
                written = edge.to_executorch()
        except Exception as error:  # executorch documents no type for what it raises
            raise ArtifactError(
                f"ExecuTorch cannot take the model: {short_reason(str(error))}"
            ) from error
        with (folder / self.file_name).open("wb") as file:
            written.write_to_file(file)

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.pte`.

        Raises:
            ArtifactError: this version of ExecuTorch cannot read it.
        """
        with quiet_stderr():
            runtime = load_optional("executorch.runtime", extra="executorch", why=_TO_RUN)
            bindings = load_optional(
                "executorch.extension.pybindings.portable_lib", extra="executorch", why=_TO_RUN
            )

        def load() -> tuple[int, Any, Any]:
            made = _threads.use(bindings, threads)
            with quiet_stderr():
                program = runtime.Runtime.get().load_program(stored)
                return made, program, program.load_method("forward")

        try:
            stored = path.read_bytes()
            made, program, method = load()
        except Exception as error:  # executorch raises RuntimeError for everything
            made_for = signature.versions.get("executorch", "of unknown version")
            raise ArtifactError(
                f"this version of ExecuTorch cannot open '{path.name}': {error}. It was written by "
                f"executorch {made_for}: use that, or deploy the model again."
            ) from error

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            # The method reads the memory of the program and does not own it.
            nonlocal made, program, method
            if _threads.use(bindings, threads) != made:
                made, program, method = load()  # a program would give the method that it gave
            parts = [
                method.execute([tensor.contiguous() for tensor in part])
                for part in self._parts(signature, inputs)
            ]
            if len(parts) == 1:
                return list(parts[0])
            return [
                torch.cat(found, info.shape.index("batch"))
                for info, found in zip(signature.outputs, zip(*parts, strict=True), strict=True)
            ]

        return run

    def _bounded(self, program: ExportedProgram, signature: Signature) -> ExportedProgram:
        """Trace the program again, with integers that ExecuTorch knows and with an upper bound."""
        module = (
            with_executorch_integers(program)
            if has_integers(program)
            else folded(unrolled(program))
        )
        size = min(self.max_batch, 2)
        dynamic = dynamic_shapes(signature.inputs, signature.length, self.max_batch)
        if size == 1:
            dynamic = tuple({i: d for i, d in each.items() if i > 0} for each in dynamic)
        return torch.export.export(module, example_inputs(signature, size), dynamic_shapes=dynamic)

    def _bound_(self, program: ExportedProgram, signature: Signature) -> None:
        """Set the upper bounds again, which passes narrow: to 15, where there is a convolution."""
        limits = {"batch": (1, self.max_batch), "length": signature.length}
        nodes = {node.name: node for node in program.graph.nodes}
        names = program.graph_signature.user_inputs
        for info, name in zip(signature.inputs, names, strict=True):
            sizes: Any = nodes[str(name)].meta["val"].shape
            for size, wanted in zip(sizes, info.shape, strict=True):
                if isinstance(size, torch.SymInt) and isinstance(wanted, str):
                    limit, shapes = limits[wanted], size.node.shape_env
                    assert limit is not None
                    assert shapes is not None
                    shapes.var_to_range[size.node.expr] = ValueRanges(*limit)

    def _parts(self, signature: Signature, inputs: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Yield the samples of a call, as many at once as there is memory for."""
        places = [
            info.shape.index("batch") if "batch" in info.shape else None
            for info in signature.inputs
        ]
        sizes = {x.shape[i] for x, i in zip(inputs, places, strict=True) if i is not None}
        size = max(sizes, default=0)
        if size <= self.max_batch:
            yield inputs
            return
        if any("batch" not in info.shape for info in signature.outputs):
            raise DataError(
                f"this model takes at most {self.max_batch} samples in a call, got {size}, and has "
                "an output that is not one for each sample. Deploy it again with a larger "
                "`ExecuTorch(max_batch=...)`."
            )
        for start in range(0, size, self.max_batch):
            count = min(self.max_batch, size - start)
            yield [
                x if i is None else x.narrow(i, start, count)
                for x, i in zip(inputs, places, strict=True)
            ]
