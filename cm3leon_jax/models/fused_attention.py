"""Attention kernels that never write their logits to memory (FlashAttention, arXiv 2205.14135): splash and tokamax.

XLA cannot shard a kernel over devices, so each runs under `shard_map` on a device's rows and heads. The kernels are
imported where they are used, since each is for one platform: splash for TPUs, tokamax for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.sharding import RULES

# Tokens per block are a multiple of this, the lanes of a TPU's vector unit.
_LANES = 128
_LONGEST_BLOCK = 1024

# Fastest first; the last runs everywhere.
_TOKAMAX_KERNELS = ("mosaic_gpu", "triton", "xla_chunked")

Queries = Float[Array, "B H L Dh"]
Keys = Float[Array, "B K L Dh"]


def splash_attention(
    query: Queries, key: Keys, value: Keys, document_start: Int[Array, "B L"], interpret: bool = False
) -> Queries:
    """Pallas's splash attention: blocks above the diagonal are skipped; a document's start is its segment id.

    `interpret` runs it where there is no TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = splash_block(query.shape[2])
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )

    def local(query: Array, key: Array, value: Array, document_start: Array) -> Array:
        B, H, L, Dh = query.shape
        # One kernel call per key head, for its group of query heads.
        grouped = query.reshape(B, key.shape[1], -1, L, Dh)
        causal = masks.MultiHeadMask([masks.CausalMask((L, L))] * grouped.shape[2])
        kernel = splash.make_splash_mqa(
            mask=causal,
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            # The residuals have the name of the output, so that a remat policy keeps both or neither.
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
        segments = splash.SegmentIds(document_start, document_start)
        per_key_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        return jax.vmap(per_key_head)(grouped, key, value, segments).reshape(B, H, L, Dh)

    return _on_every_device(local, query * query.shape[-1] ** -0.5, key, value, document_start)


def splash_block(length: int) -> int:
    """Tokens per block: the longest multiple of 128 up to 1,024 that divides the sequence."""
    fitting = [block for block in range(_LANES, _LONGEST_BLOCK + 1, _LANES) if length % block == 0]
    if not fitting:
        raise UserError(
            f"config.batch.sequence_length {length} is no multiple of {_LANES}, which splash attention needs: change "
            "it, or set config.model.attention to 'xla'"
        )
    return fitting[-1]


def tokamax_attention(query: Queries, key: Keys, value: Keys, document_start: Int[Array, "B L"]) -> Queries:
    """The first of tokamax's kernels that takes this GPU and these shapes.

    A query's keys begin at its document's start: one number per query, where a mask has one per pair. Its public
    function takes only masks, so its kernels are called as that function calls them (tokamax 0.0.12).
    """
    try:
        from absl import flags
        from tokamax._src.ops.attention import api, base
    except ModuleNotFoundError:
        raise UserError(
            "config.model.attention is 'tokamax', which is not installed: pip install 'cm3leon_jax[cuda13]', or set "
            "it to 'xla'"
        ) from None

    if not flags.FLAGS.is_parsed():
        # Otherwise it parses our command line as its own.
        flags.FLAGS.mark_as_parsed()

    def local(query: Array, key: Array, value: Array, document_start: Array) -> Array:
        mask = base.Mask(is_causal=True, k_start=document_start[:, None])
        tokens_first = [jnp.swapaxes(x, 1, 2) for x in (query, key, value)]
        refusals = []
        for name in _TOKAMAX_KERNELS:
            try:
                out = api.IMPLEMENTATIONS[name](*tokens_first, mask=mask)
                return jnp.swapaxes(out, 1, 2)
            except (KeyError, NotImplementedError) as error:
                refusals.append(f"{name}: {error}")
        raise UserError(f"tokamax has no attention for this device ({'; '.join(refusals)}): set it to 'xla'")

    return _on_every_device(local, query, key, value, document_start)


def _on_every_device(local: Callable[..., Array], *arrays: Array) -> Array:
    """Runs a kernel on each device's rows and heads of the context's mesh; without a mesh, on all of them."""
    if jax.sharding.get_abstract_mesh().empty:
        return local(*arrays)
    heads, rows = PartitionSpec(RULES["batch"], RULES["heads"]), PartitionSpec(RULES["batch"])
    run = partial(jax.shard_map, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return run(local)(*arrays)
