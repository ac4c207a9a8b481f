"""How many bytes a model takes on disk."""

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

_CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredSize:
    """The bytes of a model on disk.

    Attributes:
        size_bytes: Of the safetensors file.
        compressed_bytes: Of the same file deflated (zlib, level 6). Zeros nearly vanish here, and
            only here: weights pruned to zero take full size in `size_bytes`.
    """

    size_bytes: int
    compressed_bytes: int


def stored_size(model: nn.Module) -> StoredSize:
    """Write the model's state dict to a temporary safetensors file and measure it.

    Tensors that are shared under several names are stored once. The file is deleted.

    Raises:
        ValueError: a tensor of the state is of a kind that safetensors cannot hold.

    Example:
        >>> stored_size(nn.Linear(10, 10)).size_bytes >= 440
        True
    """
    with tempfile.TemporaryDirectory(prefix="overhaul-") as folder:
        path = Path(folder) / "model.safetensors"
        try:
            save_file(_own_tensors(model), path)
        except (KeyError, RuntimeError, TypeError, NotImplementedError) as error:
            raise ValueError(f"safetensors cannot hold the state of this model: {error}") from error
        return StoredSize(path.stat().st_size, _deflated_bytes(path))


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.layout is torch.strided:
            key = (
                tensor.device,
                tensor.untyped_storage().data_ptr(),
                tensor.storage_offset(),
                tensor.dtype,
                *tensor.shape,
                *tensor.stride(),
            )
            if key in seen and tensor.numel():
                continue
            seen.add(key)
        # A copy: safetensors refuses views that overlap, such as the slices of one weight.
        own[name] = tensor.detach().cpu().contiguous().clone()
    return own


def _deflated_bytes(path: Path) -> int:
    deflate = zlib.compressobj(level=6)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(deflate.compress(chunk))
    return size + len(deflate.flush())
