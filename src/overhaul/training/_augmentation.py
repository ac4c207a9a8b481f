"""`Augmentation`: random changes of the training inputs."""

from abc import ABC, abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from overhaul.core import Batch, Spec


class Augmentation(Spec, ABC):
    """A random change of each training batch. Validation and test data are never augmented."""

    @abstractmethod
    def apply(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the changed batch.

        Args:
            batch: On the CPU.
            generator: The only source of randomness, so that a resumed run draws the same.
        """


class Flip(Augmentation):
    """Mirror each image left to right with a probability.

    Args:
        probability: Chance of each image to be mirrored. Default 0.5.

    Shapes: every input of four dimensions, `[B, C, H, W]`; other inputs stay as they are.

    Example:
        >>> Flip()
        Flip()
    """

    probability: float = Field(
        default=0.5, ge=0, le=1, description="Chance of an image to be mirrored."
    )

    def apply(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with some images mirrored."""
        flipped_B = torch.rand(len(batch), generator=generator) < self.probability

        def flip(images_BCHW: Tensor) -> Tensor:
            if images_BCHW.ndim != 4:
                return images_BCHW
            return torch.where(flipped_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)

        return batch.map_inputs(flip)


class Shift(Augmentation):
    """Move each image by up to some pixels in each direction, filling with zeros.

    This is the usual 'pad, then crop at random'.

    Args:
        pixels: The farthest move. Default 4, which is usual for images of 32 x 32.

    Shapes: every input of four dimensions, `[B, C, H, W]`; other inputs stay as they are.

    Example:
        >>> Shift(pixels=2)
        Shift(pixels=2)

    Paper: He et al., CVPR 2016, section 4.2.
    """

    pixels: int = Field(default=4, ge=1, description="The farthest move in pixels.")

    def apply(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with every image moved."""
        size, reach = len(batch), 2 * self.pixels + 1
        top_B = torch.randint(reach, (size,), generator=generator)
        left_B = torch.randint(reach, (size,), generator=generator)

        def shift(images_BCHW: Tensor) -> Tensor:
            if images_BCHW.ndim != 4:
                return images_BCHW
            height, width = images_BCHW.shape[-2:]
            padded = torch.nn.functional.pad(images_BCHW, [self.pixels] * 4)
            rows_BH = top_B[:, None] + torch.arange(height)
            columns_BW = left_B[:, None] + torch.arange(width)
            index_B = torch.arange(size)
            moved_BHWC = padded[index_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None]]
            return moved_BHWC.permute(0, 3, 1, 2).contiguous()

        return batch.map_inputs(shift)
