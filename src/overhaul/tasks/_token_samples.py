"""`TokenSamples`: sequences of tokens, whose targets are the tokens that come next."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from overhaul.core import DataError, nearest
from overhaul.tasks._samples import Inputs, Pair, Samples

NOT_COUNTED = -100
"""The target of a position that does not count."""
TOKENS, MASK = "input_ids", "attention_mask"


class TokenSamples(Samples):
    """Sequences of tokens, whose targets are the tokens that come next.

    The target of position t is token t + 1; it is -100 at the last position, where either of the
    two is padding, and where the user's label of token t + 1 is -100.

    Args:
        samples: Read with their labels among the inputs: `(tokens,)`, `(tokens, labels)`, or by
            name `input_ids` with `attention_mask` and labels, as far as there are any.
        where: Which split this is, for errors.
        labels_key: The key of the labels among named inputs.
        vocabulary: How many tokens there are; None if that is not known.

    Raises:
        DataError: while reading, if a sequence breaks a rule; the message names the sample.

    Example:
        >>> from overhaul.tasks import ArraySamples
        >>> tokens = {"input_ids": torch.tensor([[5, 6, 7, 0]])}
        >>> mask = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> given = ArraySamples(tokens | mask, torch.zeros(1, 0))
        >>> next(TokenSamples(given, "train").batches([torch.tensor([0])]))[1]
        tensor([[   6,    7, -100, -100]])
    """

    def __init__(
        self,
        samples: Samples,
        where: str,
        labels_key: str = "labels",
        vocabulary: int | None = None,
    ) -> None:
        """Hold the samples; nothing is read yet."""
        self._samples, self._where = samples, where
        self._labels_key, self._vocabulary = labels_key, vocabulary
        self._length: int | None = None
        self.rows_per_read, self.notes = samples.rows_per_read, samples.notes

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._samples)

    def batches(self, index_batches: Iterable[Tensor], workers: int = 0) -> Iterator[Pair]:
        """Yield the sequences at each tensor of positions, in that order."""
        positions = list(index_batches)
        pairs = self._samples.batches(positions, workers)
        for index_B, (inputs, _) in zip(positions, pairs, strict=True):
            yield self._pair(inputs, index_B)

    def known_targets(self) -> None:
        """Return None: the tokens have to be read."""
        return

    def _pair(self, inputs: Inputs, index_B: Tensor) -> Pair:
        if isinstance(inputs, dict):
            named = dict(inputs)
            if TOKENS not in named:
                raise DataError(
                    f"`{self._where}` has no key '{TOKENS}' for the tokens. "
                    f"{nearest(TOKENS, named)} Rename the one that holds them."
                )
            labels_BT = named.pop(self._labels_key, None)
            tokens_BT, mask_BT = self._tokens(named[TOKENS], index_B), named.get(MASK)
            inputs = {**named, TOKENS: tokens_BT}
        else:
            if len(inputs) > 2:
                raise DataError(
                    f"`{self._where}` must give tokens, or (tokens, labels), got {len(inputs)} "
                    f"tensors. Give a dict: {{'{TOKENS}': ..., '{MASK}': ...}}."
                )
            tokens_BT, mask_BT = self._tokens(inputs[0], index_B), None
            labels_BT = inputs[1] if len(inputs) == 2 else None
            inputs = (tokens_BT,)
        counts_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        if mask_BT is not None:
            counts_BT = self._checked_mask(mask_BT, tokens_BT, index_B)
            if isinstance(inputs, dict) and not mask_BT.is_floating_point():
                # Bytes would be read as pixels.
                inputs[MASK] = mask_BT.long()
        targets_BT = torch.full_like(tokens_BT, NOT_COUNTED)
        pairs_BT = counts_BT[:, :-1] & counts_BT[:, 1:]
        if labels_BT is not None:
            self._check_labels(labels_BT, tokens_BT, counts_BT, index_B)
            pairs_BT = pairs_BT & (labels_BT[:, 1:] != NOT_COUNTED)
        targets_BT[:, :-1] = tokens_BT[:, 1:].where(pairs_BT, NOT_COUNTED)
        return inputs, targets_BT

    def _tokens(self, tokens: Tensor, index_B: Tensor) -> Tensor:
        where = self._where
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            kind = str(tokens.dtype).removeprefix("torch.")
            raise DataError(
                f"tokens of `{where}` must be whole numbers, got {kind}. Turn text into token ids."
            )
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise DataError(
                f"tokens of `{where}` must be [N, T] with T of 2 or more, so that a token follows, "
                f"got the shape {[len(index_B), *tokens.shape[1:]]}. Cut a long text into "
                "sequences of one length."
            )
        if self._length not in (None, tokens.shape[1]):
            raise DataError(
                f"the sequences of `{where}` must have one length, got {self._length} and "
                f"{tokens.shape[1]} tokens. Pad all to one length, with '{MASK}' 0 at the padding."
            )
        self._length = tokens.shape[1]
        tokens = tokens.long()
        highest = tokens.max() + 1 if self._vocabulary is None else self._vocabulary
        wrong_B = ((tokens < 0) | (tokens >= highest)).any(1)
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            limit = "0 or above" if self._vocabulary is None else f"in 0..{self._vocabulary - 1}"
            worst = tokens[row].min() if bool((tokens[row] < 0).any()) else tokens[row].max()
            remedy = (
                f"Pad with any token that there is, and '{MASK}' 0 there."
                if worst < 0
                else f"If there are {int(worst) + 1} tokens, pass vocabulary={int(worst) + 1}."
            )
            raise DataError(
                f"tokens of `{where}` must be {limit}, got {int(worst)} in sample "
                f"{int(index_B[row])}. {remedy}"
            )
        return tokens

    def _checked_mask(self, mask_BT: Tensor, tokens_BT: Tensor, index_B: Tensor) -> Tensor:
        self._check_shape(MASK, mask_BT, tokens_BT)
        wrong_B = ((mask_BT != 0) & (mask_BT != 1)).any(1)
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            raise DataError(
                f"'{MASK}' of `{self._where}` must be 1 for tokens and 0 for padding; sample "
                f"{int(index_B[row])} has something else."
            )
        return mask_BT != 0

    def _check_labels(
        self, labels_BT: Tensor, tokens_BT: Tensor, counts_BT: Tensor, index_B: Tensor
    ) -> None:
        self._check_shape("labels", labels_BT, tokens_BT)
        other_BT = (labels_BT != tokens_BT) & (labels_BT != NOT_COUNTED) & counts_BT
        wrong_B = other_BT.any(1)
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            at = int(other_BT[row].nonzero()[0])
            raise DataError(
                f"labels of `{self._where}` must be the tokens themselves, or {NOT_COUNTED} where "
                f"a token does not count, got {int(labels_BT[row, at])} for token "
                f"{int(tokens_BT[row, at])} at position {at} of sample {int(index_B[row])}. The "
                "task itself makes the next token the target: if the labels are shifted already, "
                "leave them out and give the whole sequences."
            )

    def _check_shape(self, what: str, tensor: Tensor, tokens_BT: Tensor) -> None:
        if tensor.shape != tokens_BT.shape:
            raise DataError(
                f"'{what}' of `{self._where}` must have the shape of the tokens, "
                f"[N, {tokens_BT.shape[1]}], got [N, {', '.join(map(str, tensor.shape[1:]))}]."
            )
