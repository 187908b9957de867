"""UniPELT (Mao et al. 2022, arXiv 2110.07577): LoRA, prefixes and a bottleneck together, each behind a gate.

The paper's gates depend on the input, which cannot be folded into weights. Here each is one trained number, sigmoid(0)
= 0.5 at the start (a prefix has its own, zero): the part of LoRA folds, the others stay in an exported graph.
"""

from __future__ import annotations

from cvpeft.peft.inject import MethodSpec

__all__ = ["expand"]


def expand(*, rank: int = 8, tokens: int = 10, width: int = 48) -> list[MethodSpec]:
    """Three methods. rank: of LoRA at q and v. tokens: of the prefixes. width: of the bottleneck after the mlp."""
    return [
        MethodSpec("lora", ("attn.qkv",), {"rank": rank, "qkv": "qv", "gated": True}),
        MethodSpec("prefix", settings={"tokens": tokens}),
        MethodSpec("adapter", settings={"width": width, "gated": True}),
    ]
