"""The rotary positions of a model in a config.json of `transformers`: by its version, and by the kind of scaling."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig

# Of Llama 3.1's scaling: their names, ours.
_LLAMA3 = {
    "low_freq_factor": "rotary_low_freq_factor",
    "high_freq_factor": "rotary_high_freq_factor",
    "original_max_position_embeddings": "rotary_original_length",
}
_SCALED = {"linear": {}, "llama3": _LLAMA3}


def rotary_fields(stored: StoredConfig) -> dict[str, Any]:
    """The fields of ModelConfig; refuses a kind of scaling that none of them says."""
    # Before transformers 5 the base stood by itself, beside `rope_scaling`.
    rope = stored.part("rope_scaling", "rope_parameters")
    name = "rope_type" if rope.get("rope_type") else "type"
    kind = rope.text(name, "default")
    rope.refuse_if(name, kind != "default" and kind not in _SCALED)
    for each in (stored, rope):
        each.refuse_if("partial_rotary_factor", each.number("partial_rotary_factor", 1.0) != 1.0)
    fields: dict[str, Any] = {"rotary_base": rope.number("rope_theta", stored.number("rope_theta", 10_000.0))}
    if kind != "default":
        fields |= {"rotary_scaling": kind, "rotary_scaling_factor": rope.number("factor")}
    if kind == "llama3":
        fields |= {_LLAMA3[name]: rope.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        longest = stored.size("max_position_embeddings")
        fields["rotary_original_length"] = rope.size("original_max_position_embeddings", longest)
    return fields


def stored_rotary_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json, also where they were before transformers 5, and where engines look."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scaling != "none":
        rope |= {"rope_type": config.rotary_scaling, "factor": config.rotary_scaling_factor}
        rope |= {theirs: getattr(config, ours) for theirs, ours in _SCALED[config.rotary_scaling].items()}
    before = {} if config.rotary_scaling == "none" else {"rope_scaling": rope}
    return {"rope_theta": config.rotary_base, "rope_parameters": rope, **before}
