"""Emoji: a small CM3Leon that retrieves, on about 3,800 images of 32 pixels with their names.

The corpus is rendered from a color font (`apt-get install fonts-noto-color-emoji`), a tenth of it held out. Neighbors
are found by TF-IDF of the names and by thumbnails, without training. `--config=emoji:64` renders 64 pixels instead of
32.

Image tokenizer: 64 codes of 512 per image, about 400 CPU seconds of training (four times that for 64 pixels). Expected
on held-out emoji: 23.9 dB, all 512 codes in use. Transformer: about 25 CPU minutes, to a perplexity of 11.2 per
held-out code with the two nearest neighbors (`benchmarks/retrieval.py` measures their effect).

    cm3leon train-text-tokenizer  --config=examples/emoji/emoji.py
    cm3leon train-image-tokenizer --config=examples/emoji/emoji.py
    cm3leon train-encoder      --config=examples/emoji/emoji.py
    cm3leon prepare               --config=examples/emoji/emoji.py
    cm3leon inspect               --config=examples/emoji/emoji.py
    cm3leon train                 --config=examples/emoji/emoji.py
    cm3leon evaluate              --config=examples/emoji/emoji.py
"""

from ml_collections import ConfigDict

from cm3leon_jax.errors import UserError


def get_config(size: str = "32") -> ConfigDict:
    if size not in ("32", "64"):
        raise UserError(f"examples/emoji/emoji.py:{size}: the images are of 32 or 64 pixels")
    resolution = int(size)
    config = ConfigDict()
    config.corpus = dict(mixture="emoji", modules=("examples.emoji.tasks",), num_sample_images=64)
    config.vocabulary = dict(num_text_tokens=2048, num_masks=16)
    config.image_tokenizer = dict(
        resolution=resolution,
        base_channels=8,
        channel_multipliers=(1, 2, 8),
        num_res_blocks=0,
        mid_block=False,
        # With one group per channel at full resolution, the means would be lost, and with them the colors of the image.
        norm_groups=2,
        latent_channels=64,
        embedding_dim=8,
        codebook_size=512,
    )
    config.image_tokenizer.training = dict(
        num_images=0,
        num_steps=9000,
        batch_size=8,
        peak_learning_rate=4e-3,
        warmup_steps=50,
        final_learning_rate_fraction=0.05,
        beta1=0.9,
        beta2=0.99,
        codebook_update="ema",
        ema_decay=0.99,
        dead_code_threshold=0.05,
        dead_code_every=50,
        discriminator_weight=0.0,
        log_every=500,
    )
    config.encoder = dict(family="tfidf", embedding_dim=1024, resolution=8)
    config.retrieval = dict(
        enabled=True, num_by_text=4, num_by_image=2, min_similarity=0.15, num_retrieved=2, sampling="uniform"
    )
    # Sequences of five images with their texts: one document with two neighbors, and others next to it.
    config.batch = dict(batch_size=8, sequence_length=384 if size == "32" else 1408)
    config.model = dict(
        num_layers=4,
        model_dim=128,
        num_heads=4,
        positions="learned+rotary",
        image_position_embedding=True,
        rotary_image_positions=True,
        init_std=0.02,
        position_init_std=0.02,
        compute_dtype="float32",
        remat="none",
    )
    config.optimizer = dict(peak_learning_rate=2e-3, warmup_steps=50)
    config.train = dict(
        num_tokens=1500 * 8 * config.batch.sequence_length, log_every=20, save_every=250, keep_checkpoints=8,
        eval_every=250, sample_every=0,
    )  # fmt: skip
    config.sampling = dict(temperature=0.7, max_text_tokens=32)
    config.evaluate = dict(num_documents=96, num_retrieved=2)
    return config
