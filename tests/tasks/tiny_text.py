"""A tiny text of counting in steps, padded at the end, and tiny causal models for it."""

from typing import Any

import torch
from torch import Tensor, nn

from overhaul.tasks import LanguageModel

VOCABULARY, LENGTH = 8, 10


def tiny_text(**fields: Any) -> LanguageModel:
    """Return a task whose samples count up by 1 or 2 from somewhere, over 5 to 10 tokens."""
    start, step, size = torch.cartesian_prod(
        torch.arange(VOCABULARY), torch.arange(1, 3), torch.arange(5, LENGTH + 1)
    ).T[..., None]
    position = torch.arange(LENGTH)
    tokens = (start + step * position) % VOCABULARY
    mask = (position < size).long()
    data = {"input_ids": tokens * mask, "attention_mask": mask}
    return LanguageModel(train=data, vocabulary=VOCABULARY, **fields)


class TinyGPT(nn.Module):
    """A transformer of one layer that does not look ahead."""

    def __init__(self, width: int = 16) -> None:
        """Make its layers."""
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits `[B, T, V]`."""
        ahead = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).triu(1)
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.token(input_ids) + self.place
        hidden = self.block(hidden, src_mask=ahead, src_key_padding_mask=padding)
        logits: Tensor = self.head(hidden)
        return logits


def tiny_gpt(width: int = 16) -> TinyGPT:
    """Return a `TinyGPT` whose weights depend on its width alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyGPT(width)


def tiny_gpt2(width: int = 16) -> nn.Module:
    """Return a GPT-2 of Hugging Face with one layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = GPT2LMHeadModel(config)
        return model
