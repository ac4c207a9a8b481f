"""`NarrowAttention`: `nn.MultiheadAttention` of which heads are gone and the width is not."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.MultiheadAttention):
    """Multi-head attention whose heads together are not as wide as its input.

    `nn.MultiheadAttention` insists on `num_heads * head_dim == embed_dim`, so it can lose heads
    only together with positions of its input. `RemoveUnits` makes an `nn.MultiheadAttention` one of
    these when it takes heads for themselves. The names of the weights, the arguments and the
    results are the same; the inner width is that of the weights.

    Example:
        >>> from overhaul.graph import Graph
        >>> attention = nn.MultiheadAttention(8, 4, batch_first=True)
        >>> x = torch.rand(2, 3, 8)
        >>> graph = Graph(attention, (x, x, x), {"need_weights": False})
        >>> smaller = graph.remove({graph.groups[0].name: [0]}).apply(attention)
        >>> type(smaller).__name__, smaller.num_heads, smaller.embed_dim
        ('NarrowAttention', 3, 8)
        >>> smaller(x, x, x)[0].shape
        torch.Size([2, 3, 8])
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as `nn.MultiheadAttention` does."""
        swap = self.batch_first and query.dim() == 3
        if swap:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        out, weights = attend(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (out.transpose(0, 1) if swap else out), weights


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: None = None,
    static_v: None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what `F.multi_head_attention_forward` does, for an inner width of any size."""
    if is_causal and attn_mask is None:
        raise ValueError(
            "`is_causal` is a hint about `attn_mask`, and none was given. Give it too."
        )
    batched = query.dim() == 3
    if not batched:
        query, key, value = (each.unsqueeze(1) for each in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    q, k, v = _projected(
        (query, key, value),
        in_proj_weight,
        (q_proj_weight, k_proj_weight, v_proj_weight),
        in_proj_bias,
    )
    batch, extra = query.shape[1], int(add_zero_attn)
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(-1, batch, -1)])
        v = torch.cat([v, bias_v.expand(-1, batch, -1)])
        extra += 1
    q, k, v = (each.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for each in (q, k, v))
    if add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    mask = _mask(attn_mask, key_padding_mask, batch, extra, q)
    dropout = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask
        weights = F.dropout(scores.softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return (out if batched else out.squeeze(1)), weights


def _projected(
    streams: tuple[Tensor, Tensor, Tensor],
    packed: Tensor | None,
    separate: tuple[Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
) -> list[Tensor]:
    weights: Any = separate if packed is None else packed.chunk(3)
    biases: Any = (None, None, None) if bias is None else bias.chunk(3)
    return [F.linear(*each) for each in zip(streams, weights, biases, strict=True)]


def _mask(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batch: int,
    extra: int,
    query: Tensor,
) -> Tensor | None:
    """Return what is added to the scores; keys beyond those of the input are never masked."""
    parts = []
    if attn_mask is not None:
        mask = _additive(attn_mask, query)
        parts.append(mask.unflatten(0, (batch, -1)) if mask.dim() == 3 else mask)
    if key_padding_mask is not None:
        parts.append(_additive(key_padding_mask, query)[:, None, None, :])
    if not parts:
        return None
    return F.pad(sum(parts[1:], parts[0]), (0, extra))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
