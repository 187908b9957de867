"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190) with a gate (LLaMA-Adapter: Zhang et al. 2023, arXiv 2303.16199).

Every query also attends to P learned keys and values. They have a softmax of their own and a gate for each head,
tanh(g) with g = 0 at the start, so that the pretrained attention is not diluted: attn(x) + proj(tanh(g) A_P(q) V_P).
The keys have no place in the image: under RoPE neither they nor the queries are rotated here.

Letters: B batch, N tokens, P prefixes, M heads, D channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, plain
from cvpeft.peft.methods.lora_qkv import LoraQkv
from cvpeft.types import Site

__all__ = ["Prefix"]


class Prefix(Adapter):
    """Learned keys and values beside those of an attention with a fused qkv; 2 P M D + M parameters.

    tokens: P. dropout: of what they give, in training.
    """

    targets = ("attn",)
    undecayed = ("keys", "values")  # they are inputs, not weights

    def __init__(self, base: nn.Module, site: Site, *, tokens: int = 10, dropout: float = 0.0) -> None:
        super().__init__(base, site)
        attention = plain(base)
        _check(attention, site)
        _check_queries(base, site)
        if tokens < 1 or not 0 <= dropout < 1:
            what = f"{tokens} tokens with dropout {dropout}"
            raise AdapterError("PREFIX", what, fix="tokens from 1, dropout below 1")
        qkv: Any = plain(attention.get_submodule("qkv"))
        self.heads, depth = site.heads, qkv.out_features // (3 * site.heads)
        device = qkv.weight.device
        self.keys = nn.Parameter(torch.randn(self.heads, tokens, depth, device=device))
        self.values = nn.Parameter(0.02 * torch.randn(self.heads, tokens, depth, device=device))
        self.gate = nn.Parameter(torch.zeros(self.heads, device=device))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (B, N, M D)
        y: Tensor = self.base(x, *args, **kwargs)
        attention: Any = plain(self.base)
        queries = attention.qkv(x).chunk(3, -1)[0].unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, N, D)
        if hasattr(attention, "q_norm"):
            queries = attention.q_norm(queries)
        scores = queries @ self.keys.to(x.dtype).transpose(1, 2) / math.sqrt(queries.shape[-1])  # (B, M, N, P)
        gate = self.gate.tanh()[:, None, None]  # (M, 1, 1)
        seen = scores.softmax(-1) @ (gate * self.values).to(x.dtype)  # (B, M, N, D)
        seen = self.dropout(seen.transpose(1, 2).flatten(2))  # (B, N, M D)
        # proj is affine, with an Adapter on it too: what it makes of nothing is in y already.
        return y + (attention.proj(seen) - attention.proj(torch.zeros_like(seen[:1, :1])))


def _check_queries(base: nn.Module, site: Site) -> None:
    """lora_qkv changes the weight of qkv while it calls the attention, and the prefixes' queries are made outside."""
    while isinstance(base, Adapter):
        if isinstance(base, LoraQkv):
            what, why = f"prefix cannot stand with lora_qkv at {site.path}", "its queries would be those of the base"
            raise AdapterError("PREFIX", what, why=why, fix="use lora at attn.qkv in place of lora_qkv")
        base = base.base


def _check(attention: nn.Module, site: Site) -> None:
    names = dict(attention.named_children())
    why = ""
    if site.role != "attn" or not site.heads:
        why = f"its role is {site.role}"
    elif not {"qkv", "proj"} <= names.keys() or getattr(attention, "q_bias", None) is not None:
        why = "its queries cannot be had from a module named qkv"
    elif names.get("gate") is not None or not isinstance(names.get("norm", nn.Identity()), nn.Identity):
        why = "something stands between its heads and proj"
    elif hasattr(attention, "logit_scale"):
        why = "its scores are cosines"
    if why:
        what = f"prefix cannot take {site.path}: {why}"
        raise AdapterError("PREFIX", what, fix="use it on a ViT, DINOv2, DINOv3 or Swin")
