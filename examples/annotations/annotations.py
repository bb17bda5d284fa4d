"""Annotations: a small model from scratch on a mixture of real data, in which every reader of annotations takes part.

Maps with the pixels of their regions, paintings and scenes with their parts, and emoji in four styles and six skin
tones, all from five public packages. examples/README.md says how to get and convert them; then

    for command in train-text-tokenizer train-image-tokenizer prepare train evaluate; do
      cm3leon $command --config=annotations
    done

On 2 CPU cores: half an hour. Held out are maps of other countries and other emoji. Expected: 63% of edits of the skin
tone and 70% of those between lines and colors are nearest to what was asked for, 86 to 89% of questions about the
color of a region are answered right; objects are not yet where their boxes are.
"""

from ml_collections import ConfigDict

from examples.annotations.colors import COLORS
from examples.annotations.packages import DATA
from examples.scenes import scenes_sft

QUESTIONS = ("middle", "largest", "is_there", "left", "larger", "how_many")
EDITS = ("tones", "lines", "styles")
# Items of a set that are measured; questions are fewer.
_MOST = 200


def get_config() -> ConfigDict:
    # The model, the loss and how the image tokenizer learns are those of the scenes.
    config = scenes_sft.get_config()
    config.modules = ("examples.annotations.metric",)
    config.corpus.update(mixture="annotations", modules=("examples.annotations.tasks",))
    config.vocabulary.update(path="{workdir}/vocabulary", num_text_tokens=1024, num_documents=20_000)
    config.image_tokenizer.update(path="{workdir}/image_tokenizer", base_channels=16, codebook_size=1024)
    config.image_tokenizer.training.num_steps = 1000
    config.optimizer.update(algorithm="adamw", peak_learning_rate=3e-3)
    # It is trained from scratch.
    config.train.update(init_from="", num_tokens=2000 * 16 * 256, save_every=500, eval_every=1000)
    config.sampling.max_text_tokens = 48
    config.evaluate.update(
        num_documents=100, prompts=("a map with a green region in the middle and a pink region at the left",)
    )
    config.evaluate.sets = _sets()
    config.evaluate.metrics = _metrics()
    return config


def _sets() -> dict[str, dict[str, object]]:
    """The held-out halves of the data sets, as they are published, and prompts."""
    questions = dict(
        type="vqav2",
        questions=f"{DATA}/map_questions/v2_OpenEnded_mscoco_val2014_questions.json",
        annotations=f"{DATA}/map_questions/v2_mscoco_val2014_annotations.json",
        images=f"{DATA}/map_questions/val2014",
        file_name="COCO_val2014_{image_id:012d}.jpg",
    )
    sets: dict[str, dict[str, object]] = {
        name: dict(questions, ids=f"{DATA}/map_questions/ids/{name}.txt") for name in QUESTIONS
    }
    sets |= {name: dict(type="prompts", file=f"{DATA}/held_out/{name}.jsonl", count=_MOST) for name in EDITS}
    sets |= {name: dict(type="prompts", file=f"{DATA}/held_out/{name}.jsonl") for name in ("flags", "emoji_questions")}
    # The likeliest image of so small a model is blank.
    sampling = dict(temperature=1.0)
    sets["objects"] = dict(type="prompts", file=f"{DATA}/held_out/objects.jsonl", sampling=sampling)
    sets["sessions"] = dict(type="magicbrush", folder=f"{DATA}/tone_sessions/data", split="validation")
    sets["captions"] = dict(
        type="coco_captions",
        annotations=f"{DATA}/coco/annotations/captions_val2017.json",
        images=f"{DATA}/coco/val2017",
        task="caption",
        count=_MOST,
    )
    return sets


def _metrics() -> dict[str, dict[str, object]]:
    metrics: dict[str, dict[str, object]] = {"loss": dict(type="loss")}
    metrics |= {f"{name}_answers": dict(type="answers", set=name) for name in (*QUESTIONS, "flags", "emoji_questions")}
    for name in EDITS:
        alternatives = f"{DATA}/held_out/{name}_alternatives.jsonl"
        metrics[f"{name}_nearest"] = dict(type="nearest_edits", set=name, alternatives=alternatives)
        metrics[f"{name}_edits"] = dict(type="edits", set=name)
    metrics["sessions"] = dict(type="edits", set="sessions")
    metrics["objects"] = dict(type="objects", set="objects", detector="color_areas")
    metrics["captions"] = dict(type="captions", set="captions", names=COLORS)
    return metrics
