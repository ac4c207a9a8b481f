"""What the arguments of a convolution say, dimension by dimension."""

from collections.abc import Sequence


def each_dimension(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Return one number for each dimension.

    Example:
        >>> each_dimension(2, 2), each_dimension([1, 3], 2)
        ((2, 2), (1, 3))
    """
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


def border(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Return the zeros around an input in the order of `torch.nn.functional.pad`.

    Args:
        padding: As the convolution got it: numbers, `same` or `valid`.
        kernel: Its sides.
        dilation: For each dimension.

    Example:
        >>> border("same", [4, 3], [1, 1]), border(2, [3], [1])
        ([1, 1, 1, 2], [2, 2])
    """
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(each // 2, each - each // 2) for each in whole]
    elif isinstance(padding, str):
        sides = [(0, 0)] * len(kernel)
    else:
        sides = [(each, each) for each in each_dimension(padding, len(kernel))]
    return [zeros for side in reversed(sides) for zeros in side]
