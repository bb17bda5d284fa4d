"""The metrics that `config.evaluate.metrics` can name."""

from cm3leon_jax.registry import Registry

# A metric is a frozen dataclass of its options that can be called: `metrics.Metric`, docs/add_a_metric.md.
METRICS = Registry(
    "the type in config.evaluate.metrics",
    {
        "loss": "cm3leon_jax.evaluation.loss:EvalLoss",
        "reconstruction": "cm3leon_jax.evaluation.reconstruction:Reconstruction",
    },
)
