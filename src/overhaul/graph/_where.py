"""`where_now`: the user's line that is running, and what some known lines are there for."""

import linecache
import os
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_OWN = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parent) + os.sep)


def where_now() -> str:
    """Return the user's line that is running: file, number and text."""
    frame = _user_frame()
    if frame is None:
        return ""
    return _line(frame.f_code.co_filename, frame.f_lineno)


_KERNEL_CHOOSERS = (
    nn.MultiheadAttention.forward.__code__,
    nn.TransformerEncoderLayer.forward.__code__,
    nn.TransformerEncoder.forward.__code__,
)


def chooses_a_kernel() -> bool:
    """Return whether a layer of torch compares sizes only to choose a faster way to the same."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN[1]):
        frame = frame.f_back
    return frame is not None and frame.f_code in _KERNEL_CHOOSERS


_MASK_MAKERS = frozenset(["transformers.masking_utils", "transformers.modeling_attn_mask_utils"])


def chooses_a_mask() -> bool:
    """Return whether the read is of those that leave out an attention mask of ones.

    They ask whether the input has padding. With either answer the layers do the same to everything
    that can be removed, and the positions that a mask goes over are always kept.
    """
    frame = _user_frame()
    return frame is not None and frame.f_globals.get("__name__") in _MASK_MAKERS


def _user_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return frame


def _line(file: str, number: int) -> str:
    text = linecache.getline(file, number).strip()
    short = file.split("site-packages" + os.sep)[-1]
    if short == file:
        short = os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
    return f"{short}:{number}: {text}" if text else f"{short}:{number}"
