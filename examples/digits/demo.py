"""The demo: a 0.9M-parameter CM3Leon on 1,797 handwritten digits, from raw images to a report; `demo_sft` tunes it.

On 2 CPU cores: 5 to 10 minutes in all. Expected: 95 to 99% of sampled images are classified as the digit of their
prompt, 92 to 96% of unseen images are captioned with the right digit, 94 to 96% are still their digit after the middle
half was infilled.

It differs from the paper where a run of minutes on 8x8 images must: rotary positions next to the paper's table, so that
"one row up" is learned once and not for every position, half of them positions in the image, so that an edit soon
learns to keep what it does not change; a second position embedding of codes in the image; an image tokenizer whose
codes each see their own patch alone; larger initial weights, as a narrow model needs; and Muon, which needs half of
AdamW's steps.

    make demo
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Registers the metric "digits".
    config.modules = ("examples.digits.metric",)
    config.corpus = dict(mixture="digits", modules=("examples.digits.tasks",), num_sample_images=24)
    config.vocabulary = dict(num_text_tokens=512, num_masks=16, num_documents=5000)
    config.image_tokenizer = dict(
        resolution=8,
        in_channels=1,
        encoder="patch",
        base_channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=0,
        mid_block=False,
        norm_groups=4,
        latent_channels=32,
        embedding_dim=8,
        codebook_size=64,
    )
    config.image_tokenizer.training = dict(
        num_images=0,
        num_steps=1200,
        batch_size=32,
        peak_learning_rate=4e-3,
        warmup_steps=20,
        final_learning_rate_fraction=0.05,
        beta1=0.9,
        beta2=0.99,
        codebook_update="ema",
        ema_decay=0.97,
        dead_code_threshold=0.3,
        dead_code_every=20,
        discriminator_weight=0.0,
    )
    config.batch = dict(batch_size=8, sequence_length=128)
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
    config.optimizer = dict(algorithm="muon", peak_learning_rate=3e-3, warmup_steps=50)
    config.train = dict(num_tokens=1300 * 8 * 128, log_every=20, save_every=650, eval_every=130, sample_every=260)
    config.sampling = dict(temperature=0.7, max_text_tokens=16, batch_size=120)
    config.evaluate = dict(
        num_documents=0,
        prompts=tuple(
            f"a handwritten {word}"
            for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        ),
        samples_per_prompt=20,
        metrics={
            "loss": dict(type="loss"),
            "reconstruction": dict(type="reconstruction"),
            "digits": dict(type="digits"),
        },
    )
    return config
