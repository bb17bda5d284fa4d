"""The `config.json` of an OPT folder, and the fields of our config that say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cm3leon_jax.config import ModelConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.vocabulary import Vocabulary

# Ours, theirs. transformers knows the approximate function under three more names, of which published folders use two.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_SAME_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_python_tanh": "gelu_pytorch_tanh", "gelu_python": "gelu"}
# OPT has no field for it: it is PyTorch's default.
_NORM_EPSILON = 1e-5


def check_opt_can_express(config: ModelConfig) -> None:
    """Refuses to export a model with parts that OPT has no place for; names every field."""
    fixed = {"positions": "learned", "image_positions": 0, "layer_norm_epsilon": _NORM_EPSILON, "norm": "layer"}
    fixed |= {"key_value_heads": config.num_heads, "gated": False, "query_key_norm": "none", "tied_embeddings": True}
    wrong = [
        f"config.model.{name} is {getattr(config, name)!r} and can only be {value!r}"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
    if config.norm_position == "output":
        wrong.append("config.model.norm_position is 'output' and can only be 'input' or 'sum'")
    if config.activation not in _ACTIVATIONS:
        wrong.append(f"config.model.activation is {config.activation!r} and can only be {' or '.join(_ACTIVATIONS)}")
    if wrong:
        raise UserError(
            f"the architecture of a Hugging Face folder (OPT) cannot express this model: {'; '.join(wrong)}; "
            "a model that is to be exported has to be trained without"
        )


def opt_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "dtype": dtype,
        # The name of the same before transformers 4.56.
        "torch_dtype": dtype,
        "vocab_size": vocabulary_size,
        "hidden_size": config.model_dim,
        "word_embed_proj_dim": config.token_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.hidden_dim,
        "max_position_embeddings": sequence_length,
        "activation_function": _ACTIVATIONS[config.activation],
        "enable_bias": config.biases,
        "layer_norm_elementwise_affine": config.norm_scale_and_bias,
        "do_layer_norm_before": config.norm_position == "input",
        "_remove_final_layer_norm": False,
        "tie_word_embeddings": True,
        "init_std": config.init_std,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "bos_token_id": Vocabulary.end,
        "eos_token_id": Vocabulary.end,
        "pad_token_id": Vocabulary.pad,
        "use_cache": True,
    }


def model_fields(opt: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What an OPT `config.json` says, as fields of `ModelConfig`.

    Raises:
      UserError: if it is no OPT, lacks a size, or has something that no field says.
    """
    stored = StoredConfig(opt, where)
    if opt.get("model_type") != "opt":
        raise UserError(f"{where} is of model_type {opt.get('model_type')!r}: only 'opt' can be imported")
    for name in ("vocab_size", "max_position_embeddings"):
        stored.size(name)
    # Where a folder does not say, OPT's defaults hold.
    before = stored.flag("do_layer_norm_before", True)
    theirs = stored.text("activation_function", "relu")
    theirs = _SAME_ACTIVATIONS.get(theirs, theirs)
    ours = {value: name for name, value in _ACTIVATIONS.items()}
    inexpressible = {
        "activation_function": theirs not in ours,
        "tie_word_embeddings": not stored.flag("tie_word_embeddings", True),
        "_remove_final_layer_norm": before and stored.flag("_remove_final_layer_norm", False),
    }
    for name, refused in inexpressible.items():
        if refused:
            raise UserError(f"{where}: {name} is {opt[name]!r}, which the model of this package cannot express")
    width = stored.size("hidden_size")
    embedded, ffn_dim = stored.size("word_embed_proj_dim", width), stored.size("ffn_dim")
    return {
        "num_layers": stored.num_layers("num_hidden_layers"),
        "model_dim": width,
        "num_heads": stored.size("num_attention_heads"),
        "ffn_dim": 0 if ffn_dim == 4 * width else ffn_dim,
        "activation": ours[theirs],
        "biases": stored.flag("enable_bias", True),
        "norm_scale_and_bias": stored.flag("layer_norm_elementwise_affine", True),
        "norm_position": "input" if before else "sum",
        "embedding_dim": 0 if embedded == width else embedded,
        "positions": "learned",
        "image_positions": 0,
        "layer_norm_epsilon": _NORM_EPSILON,
    }


def differences(config: ModelConfig, folder: Mapping[str, Any]) -> list[str]:
    """One phrase for each field of the model in which a config differs from what `model_fields` found."""
    given = dataclasses.asdict(config)
    for name, implied in {"ffn_dim": 4 * folder["model_dim"], "embedding_dim": folder["model_dim"]}.items():
        # 0 stands for this value.
        given[name] = 0 if given[name] == implied else given[name]
    return [
        f"config.model.{name} is {given[name]!r}, the folder has {value!r}"
        for name, value in folder.items()
        if given[name] != value
    ]
