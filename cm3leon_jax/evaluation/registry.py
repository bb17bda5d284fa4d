"""The metrics and the evaluation sets that a config can name."""

from cm3leon_jax.registry import Registry

# A metric is a frozen dataclass of its options that can be called: `metrics.Metric`, docs/add_a_metric.md.
METRICS = Registry(
    "the type in config.evaluate.metrics",
    {
        "loss": "cm3leon_jax.evaluation.loss:EvalLoss",
        "likelihood": "cm3leon_jax.evaluation.likelihood:Likelihood",
        "fid": "cm3leon_jax.evaluation.fid:FrechetInceptionDistance",
        "encoder_distance": "cm3leon_jax.evaluation.encoder_distance:EncoderDistance",
        "clip_score": "cm3leon_jax.evaluation.clip_score:ClipScore",
        "copies": "cm3leon_jax.evaluation.copies:Copies",
        "objects": "cm3leon_jax.evaluation.objects:Objects",
        "captions": "cm3leon_jax.evaluation.captions:Captions",
        "answers": "cm3leon_jax.evaluation.answers:Answers",
        "multiple_choice": "cm3leon_jax.evaluation.multiple_choice:MultipleChoice",
        "edits": "cm3leon_jax.evaluation.image_edits:ImageEdits",
        "reconstruction": "cm3leon_jax.evaluation.reconstruction:Reconstruction",
    },
)

# An evaluation set is a frozen dataclass of its options: `sets/base.EvaluationSet`, docs/evaluation.md.
SETS = Registry(
    "the type in config.evaluate.sets",
    {
        "coco_captions": "cm3leon_jax.evaluation.sets.coco:CocoCaptions",
        "karpathy": "cm3leon_jax.evaluation.sets.coco:Karpathy",
        "vqav2": "cm3leon_jax.evaluation.sets.vqa:VqaV2",
        "magicbrush": "cm3leon_jax.evaluation.sets.magicbrush:MagicBrush",
        "geneval": "cm3leon_jax.evaluation.sets.geneval:GenEval",
        "prompts": "cm3leon_jax.evaluation.sets.prompts_file:PromptsFile",
    },
)

# What finds the objects of an `objects` metric: `detections.Detector`.
DETECTORS = Registry("the detector of an objects metric", {})

# What says which color they have: `color_judge.ColorJudge`.
COLOR_JUDGES = Registry("colors of an objects metric", {"encoder": "cm3leon_jax.evaluation.color_judge:EncoderColors"})
