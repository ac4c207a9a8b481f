"""`LanguageModel`: each token of a text is to be told from those before it."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from overhaul.core import Batch, DataError, Fact, Outputs, SpecError, SplitName, Splits, Targets
from overhaul.tasks._as_samples import as_samples
from overhaul.tasks._samples import Samples
from overhaul.tasks._separate import as_tensor
from overhaul.tasks._single_task import SingleTask, not_one_tensor, only_target, only_tensor
from overhaul.tasks._token_samples import NOT_COUNTED, TokenSamples

# Of the outputs of a whole split, so many samples are worked on at once.
_CHUNK = 32


class LanguageModel(SingleTask):
    r"""Each token is to be told from those before it (a causal language model).

    A sample is a sequence of :math:`T` tokens. The target of position :math:`t` is token
    :math:`t + 1`. The loss is the cross-entropy of the tokens of a sample that count,
    :math:`M_b`, averaged over them and then over the samples:

    .. math:: L = -\frac{1}{B} \sum_b \frac{1}{|M_b|} \sum_{t \in M_b}
                  \log \operatorname{softmax}(z_{bt})_{x_{b,t+1}}

    So a short sample counts as much as a long one, which is another mean than that over all tokens
    where samples are padded. A mean over samples is what makes parts of a batch, on one process or
    several, add up to the very step of the whole batch, and what the paired statistics of the
    verdict need.

    Metrics: `loss`, `perplexity` (:math:`e^L`) and `token_accuracy` (averaged as the loss is).
    See `DataTask` for the other fields about data, which comes

    - as tokens `[N, T]` (tensor, array, or lists of equal length); the model is called on them;
    - as `(tokens, labels)`, where labels are the tokens themselves, or -100 for one that is not to
      be learned (a prompt);
    - by name, in any form that `as_samples` takes (dict, `datasets.Dataset`, `DataLoader`, ...):
      `input_ids`, with `attention_mask` (1, and 0 for padding) and `labels` as far as there are
      any. All but the labels are given to the model by name.

    Cut a text into train, val and test before it is cut into sequences, and let these not overlap:
    the check of `DataTask` sees equal sequences only, not those that share most of their tokens.

    All sequences have one length; pad shorter ones. Neither padding nor what comes after it is a
    target. The model must not look ahead: that is not checked.

    The outputs of a whole split are kept in memory when a model is measured on it, and at the
    verdict those of each model that is compared: :math:`4 N T V` bytes each. With 1,000 sequences
    of 128 tokens, that is 0.5 GB for a vocabulary of 1,000 and 26 GB for one of 50,257: keep `val`
    and `test` small.

    Args:
        metric: The one number to choose by, `loss` or `token_accuracy`. Default `loss`.
        vocabulary: How many tokens there are. None counts them: the highest target plus one.
        allow_missing: A sample may have no token that counts; it is then left out.

    Shapes: outputs `[B, T, V]` with V of at least `vocabulary`, targets `[B, T]`, -100 where none.

    Raises:
        SpecError: a field is refused.
        DataError: from `prepare`, if the data breaks a rule.

    Example:
        >>> LanguageModel(vocabulary=256)
        LanguageModel(vocabulary=256)
        >>> task = LanguageModel(train=torch.arange(400).reshape(40, 10) % 7)
        >>> task.prepare().train.read(torch.tensor([0])).targets
        tensor([[   1,    2,    3,    4,    5,    6,    0,    1,    2, -100]])
        >>> task.loss(torch.zeros(1, 3, 8), torch.tensor([[5, 0, -100]]))
        tensor(2.0794)
    """

    metric_names: ClassVar[dict[str, bool]] = {
        "loss": False,
        "perplexity": False,
        "token_accuracy": True,
    }

    metric: str = "loss"
    vocabulary: int | None = Field(default=None, ge=2, description="How many tokens there are.")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if not isinstance(self.target_key, str):
            raise SpecError(f"`target_key` must be one key, got {self.target_key!r}.")
        if self.metric == "perplexity":
            raise SpecError(
                "`metric` must be a mean over samples, for a verdict that pairs them, and "
                "perplexity is the exponential of one. Choose by `loss`, which ranks models alike; "
                "the perplexity is reported too."
            )
        return self

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """Logits of classes: each token is one."""
        return "classes"

    @property
    def output_names(self) -> None:
        """Not known: what a token is called is a matter of the tokenizer."""
        return

    def read_data(self) -> dict[SplitName, Samples]:
        """Return the sequences of each split that there is.

        Raises:
            DataError: there is no data, or it is of a form that cannot be read.
        """
        key = str(self.target_key)
        return {
            name: TokenSamples(
                as_samples(_tensor_of_lists(value, name), name, None), name, key, self.vocabulary
            )
            for name, value in self.raw_data().items()
        }

    def output_size(self, data: Splits) -> int:
        """Return the number of tokens that there are."""
        counted = next((fact.value for fact in data.facts if fact.name == "vocabulary"), None)
        size = self.vocabulary or counted
        if not isinstance(size, int):
            raise DataError("the number of tokens is not known: pass vocabulary=...")
        return size

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse a sample without a token that counts."""
        empty_N = (only_target(name, targets) == NOT_COUNTED).all(1)
        if bool(empty_N.any()) and not self.allow_missing:
            row = int(index_N[empty_N.nonzero()[0]])
            raise DataError(
                f"sample {row} of `{name}` has no token to be predicted ({int(empty_N.sum())} such "
                "samples): all is padding, or has the label -100. Drop such samples, or set "
                "allow_missing=True to have them left out."
            )

    def strata(self, targets: Targets) -> Tensor | None:
        """Return None: sequences are of no class."""
        return None

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return the size of the vocabulary and how many targets count in each split."""
        found = {name: only_tensor(values) for name, values in targets.items()}
        if self.vocabulary is None and not complete:
            raise DataError("with scan='sample' tokens cannot be counted: pass vocabulary=...")
        size = self.vocabulary or 1 + max(int(values.max()) for values in found.values())
        facts = [Fact(name="vocabulary", value=size, subject="data")]
        for name, values_NT in found.items():
            counted = int((values_NT != NOT_COUNTED).sum())
            if counted == 0:
                raise DataError(f"`{name}` has no token to be predicted.")
            facts.append(
                Fact(name="tokens", value=counted, split=name, subject="data", n=len(values_NT))
            )
        return facts

    def rows(self, values: Tensor, targets: Tensor) -> Tensor:
        """Return the rows of the tokens that count, `[B, T, ...]` -> `[N, ...]`."""
        return values[targets != NOT_COUNTED]

    def mean_over_rows(self, numbers_N: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over samples of the mean over their tokens; 0 if there are none."""
        counted_BT = targets != NOT_COUNTED
        numbers_BT = numbers_N.new_zeros(counted_BT.shape).masked_scatter(counted_BT, numbers_N)
        return _sample_means(numbers_BT, targets).sum() / _known(targets).sum().clamp(min=1)

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the mean over samples of the mean cross-entropy over their tokens."""
        targets_BT = only_tensor(targets)
        losses_BT = _token_losses(only_tensor(outputs), targets_BT)
        return _sample_means(losses_BT, targets_BT).sum() / _known(targets_BT).sum().clamp(min=1)

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return every metric over the samples with a token that counts; NaN without any."""
        scores = {name: self._scores(name, outputs, targets) for name in ("loss", "token_accuracy")}
        loss = scores["loss"].mean()
        return {
            "loss": float(loss),
            "perplexity": float(loss.exp()),
            "token_accuracy": float(scores["token_accuracy"].mean()),
        }

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return the loss or the accuracy of each sample, `[N]`; None for the perplexity."""
        if self.metric == "perplexity":
            return None
        return self._scores(self.metric, outputs, targets)

    def _scores(self, name: str, outputs: Outputs, targets: Targets) -> Tensor:
        logits_NTV, targets_NT = only_tensor(outputs).detach(), only_tensor(targets)
        found = []
        for logits, wanted in zip(logits_NTV.split(_CHUNK), targets_NT.split(_CHUNK), strict=True):
            numbers_BT = (
                _token_losses(logits, wanted) if name == "loss" else logits.argmax(-1) == wanted
            )
            found.append(_sample_means(numbers_BT.double(), wanted)[_known(wanted)])
        return torch.cat(found)

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the shape of the outputs, or None."""
        if isinstance(outputs, dict):
            return not_one_tensor(outputs)
        size = self.vocabulary or self.output_size(self.prepare())
        wanted = list(only_tensor(batch.targets).shape)
        if outputs.ndim != 3 or list(outputs.shape[:2]) != wanted:
            return (
                f"the model gives {list(outputs.shape)} for sequences of shape {wanted}, and the "
                f"task needs one logit for each token at each position: {[*wanted, size]}"
            )
        if outputs.shape[2] < size:
            return (
                f"the model knows {outputs.shape[2]} tokens, and the data has {size}: put "
                "ReplaceHead first, or use the tokenizer that the model was made with"
            )
        return None

    def predictions(self, outputs: Outputs) -> Tensor:
        """Return the most probable next token at each position, `[B, T]`."""
        return only_tensor(outputs).argmax(-1)


def _tensor_of_lists(raw: object, where: SplitName) -> object:
    """Turn a list of lists, which else is a data set whose samples are tuples, into a tensor."""
    if isinstance(raw, list) and raw and isinstance(raw[0], list):
        return as_tensor(raw, f"tokens of `{where}`")
    return raw


def _token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the cross-entropy of each token, `[B, T]`; 0 for one that does not count."""
    # Without taking out the rows, whose copy would double the time of the loss.
    losses = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=NOT_COUNTED, reduction="none"
    )
    return losses.reshape(targets_BT.shape)


def _sample_means(numbers_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean of the numbers of the tokens that count, `[B]`; 0 where there are none."""
    return numbers_BT.sum(1) / (targets_BT != NOT_COUNTED).sum(1).clamp(min=1)


def _known(targets_BT: Tensor) -> Tensor:
    """Return which samples have a token that counts, `[B]`."""
    return (targets_BT != NOT_COUNTED).any(1)
