"""CM3Leon in JAX: train one transformer over interleaved text and image codes (arXiv 2309.02591)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3leon_jax.api import Model, load

__version__ = "0.2.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # JAX takes seconds to import; whoever asks for the version alone does not wait for it.
    if name in ("Model", "load"):
        from cm3leon_jax.accelerators import ignore_absent_tpu

        # JAX reads this when it is imported.
        ignore_absent_tpu()
        from cm3leon_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
