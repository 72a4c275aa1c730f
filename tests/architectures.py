"""The architectures that the tests try: a tiny configuration of each, and what becomes of it.

The table in docs/serving.md is made of this list (tools/architectures.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

WINDOW = 16


@dataclass(frozen=True, slots=True)
class Architecture:
    """``config``: what the tiny configuration has beside the shared part.

    EXACT: logits, greedy tokens, scores and the routed sums are those of transformers and PEFT. REFUSED: the server
    says at its start that it cannot serve it.
    """

    name: str
    outcome: Literal["exact", "refused"] = "exact"
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)


_EXPERTS = "the experts stay in 16 bits, and adapters cannot touch them"

CASES: dict[str, Architecture] = {
    "llama": Architecture("Llama"),
    "qwen2": Architecture("Qwen2", config={"tie_word_embeddings": True}),
    "qwen3": Architecture("Qwen3", config={"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": Architecture(
        "Mistral", note="with its sliding window", config={"head_dim": 16, "sliding_window": WINDOW}
    ),
    "gemma2": Architecture(
        "Gemma 2",
        note="with sliding windows and soft-capping",
        config={
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3_text": Architecture(
        "Gemma 3 (text)",
        note="with sliding windows",
        config={
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Architecture("Phi-3"),
    "gpt_neox": Architecture("GPT-NeoX"),
    "qwen2_moe": Architecture(
        "Qwen2-MoE",
        note=_EXPERTS,
        config={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "mixtral": Architecture("Mixtral", note=_EXPERTS, config={"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": Architecture(
        "GPT-OSS",
        "refused",
        "its attention has sinks, which the paged attention does not know",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek_v3": Architecture(
        "DeepSeek-V3",
        "refused",
        "its keys and values are of unlike sizes",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 64,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
}
"""model_type -> its case."""
