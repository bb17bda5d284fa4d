"""Other families are values of the config: Llama's and Chameleon's weights give the logits of transformers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.transformer import Transformer

V, L, D, N, H, K, F = 96, 20, 32, 3, 4, 2, 48


def transformers_model(family: str, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=N,
        num_attention_heads=H,
        num_key_value_heads=K,
        intermediate_size=F,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **changes))
    else:
        tokens = {f"IMGIMG{'ABCD'[i]}Z": i + 4 for i in range(4)} | {"<image>": 8}
        vq = dict(base_channels=32, embed_dim=8, num_embeddings=4, resolution=8, latent_channels=8, num_res_blocks=1)
        config = transformers.ChameleonConfig(**sizes, **changes, vocabulary_map=tokens, vq_config=vq)
        model = transformers.ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def our_parameters(weights: dict[str, np.ndarray], prefix: str, has_head_norms: bool) -> dict[str, Any]:
    """A family's tensors under our names: the layers stacked, heads as axes of their own."""

    def stack(name: str, shape: tuple[int, ...], turn: bool = False) -> np.ndarray:
        layers = [weights[f"{prefix}layers.{n}.{name}"] for n in range(N)]
        return np.stack([(layer.T if turn else layer).reshape(shape) for layer in layers])

    Dh = D // H
    attention = {
        "query": stack("self_attn.q_proj.weight", (D, H, Dh), turn=True),
        "key": stack("self_attn.k_proj.weight", (D, K, Dh), turn=True),
        "value": stack("self_attn.v_proj.weight", (D, K, Dh), turn=True),
        "output": stack("self_attn.o_proj.weight", (H, Dh, D), turn=True),
    }
    if has_head_norms:
        for ours, theirs, heads in (("query_norm", "q_norm", H), ("key_norm", "k_norm", K)):
            scale, bias = (stack(f"self_attn.{theirs}.{part}", (heads, Dh)) for part in ("weight", "bias"))
            attention[ours] = {"scale": scale, "bias": bias}
    return {
        "token_embedding": weights[f"{prefix}embed_tokens.weight"],
        "output_embedding": weights["lm_head.weight"],
        "final_norm": {"scale": weights[f"{prefix}norm.weight"]},
        "blocks": {
            "attention": attention,
            "attention_norm": {"scale": stack("input_layernorm.weight", (D,))},
            "feed_forward_norm": {"scale": stack("post_attention_layernorm.weight", (D,))},
            "feed_forward": {
                "gate": stack("mlp.gate_proj.weight", (D, F), turn=True),
                "up": stack("mlp.up_proj.weight", (D, F), turn=True),
                "down": stack("mlp.down_proj.weight", (F, D), turn=True),
            },
        },
    }


LLAMA = dict(
    num_layers=N,
    model_dim=D,
    num_heads=H,
    num_key_value_heads=K,
    ffn_dim=F,
    activation="silu",
    gated=True,
    norm="rms",
    norm_scale_and_bias=True,
    positions="rotary",
    tied_embeddings=False,
    compute_dtype="float32",
    attention="xla",
)
CHAMELEON = LLAMA | dict(query_key_norm="layer", query_key_norm_per_head=True)


@pytest.mark.parametrize(
    ("family", "theirs", "ours"),
    [
        ("llama", {}, LLAMA),
        ("llama", dict(rope_parameters=dict(rope_type="default", rope_theta=500_000.0)), LLAMA | dict(rotary_base=5e5)),
        ("chameleon", {}, CHAMELEON),
        ("chameleon", dict(swin_norm=True), CHAMELEON | dict(norm_position="output")),
    ],
    ids=["llama", "llama-rotary-base", "chameleon-7b", "chameleon-34b"],
)
def test_logits_equal_those_of_transformers(family, theirs, ours):
    torch = pytest.importorskip("torch")
    reference = transformers_model(family, **theirs)
    weights = {name: value.numpy() for name, value in reference.state_dict().items()}
    prefix = next(name for name in weights if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    model = Transformer(ModelConfig(**ours), V, L, nnx.Rngs(0))
    found = our_parameters(weights, prefix, family == "chameleon")
    abstract = nnx.state(model)
    nnx.update(model, jax.tree.map(lambda leaf, value: jnp.asarray(value), nnx.to_pure_dict(abstract), found))
    tokens = np.random.default_rng(0).integers(10, V, (2, L))
    nothing = jnp.zeros((2, L), jnp.int32)
    hidden = model(jnp.asarray(tokens, jnp.int32), jnp.broadcast_to(jnp.arange(L), (2, L)), nothing, nothing)
    logits = np.array(model.logits(hidden))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    if family == "chameleon":
        # Transformers lets it answer with text alone.
        is_masked = expected[0, 0] == np.finfo(np.float32).min
        logits, expected = logits[..., ~is_masked], expected[..., ~is_masked]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
