"""Scenes, pretraining: captions and images of a sky, a ground and one to four emoji.

The start for `scenes_sft`, which tunes it on instructions. Images are 32 pixels, 64 codes that each see their own patch
alone, so that an edit of a part changes the codes of that part alone.

    for command in train-text-tokenizer train-image-tokenizer; do cm3leon $command --config=scenes_sft; done
    for command in prepare train; do cm3leon $command --config=scenes; done

Both tokenizers see the instructions, too, as their words and structure maps are in no caption.
"""

from ml_collections import ConfigDict

from examples.digits import demo


def get_config() -> ConfigDict:
    # The model, and how its image tokenizer learns, are those of the digits.
    config = demo.get_config()
    config.modules = ("examples.scenes.metric",)
    config.corpus.update(mixture="scenes", modules=("examples.scenes.tasks",))
    config.vocabulary.update(num_text_tokens=640, num_documents=6000)
    config.vocabulary.path = "runs/scenes/vocabulary"
    config.image_tokenizer.path = "runs/scenes/image_tokenizer"
    config.image_tokenizer.update(
        resolution=32,
        in_channels=3,
        base_channels=8,
        channel_multipliers=(1, 2, 8),
        norm_groups=2,
        latent_channels=64,
        codebook_size=512,
    )
    config.image_tokenizer.training.update(num_images=12_000, num_steps=2000, batch_size=8)
    config.batch.update(batch_size=16, sequence_length=256)
    config.optimizer.update(algorithm="muon", warmup_steps=100)
    config.train.update(num_tokens=700 * 16 * 256, log_every=50, save_every=350, eval_every=350, sample_every=0)
    config.sampling.update(temperature=0.0, max_text_tokens=96, batch_size=100)
    config.sampling.guidance = 1.0
    config.sampling.edit_guidance = 1.0
    config.sampling.edit_image_guidance = 1.0
    config.evaluate.update(num_documents=200, prompts=("a panda and a rose under a pink sky",), samples_per_prompt=1)
    config.evaluate.metrics = {
        "loss": dict(type="loss"),
        "scenes": dict(type="scenes", num=100, tasks=("short", "long")),
    }
    return config
