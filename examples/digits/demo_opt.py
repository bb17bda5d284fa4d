"""The demo with the paper's architecture and nothing beside it: a small CM3Leon that can be exported.

The paper's model is OPT's, which inference engines know; the demo itself has rotary positions and image places, which
they do not. It shares the demo's corpus and tokenizers, so `make demo` comes first. On 2 CPU cores: 5 minutes.
Expected: 95% of the drawn digits are read as the digit that was asked for, 88% of unseen digits are captioned right,
and 53% are still the right digit after their middle half was drawn anew: a moved code does not know its place.

    cm3leon train    --config=examples/digits/demo_opt.py
    cm3leon evaluate --config=examples/digits/demo_opt.py
    cm3leon export   --config=examples/digits/demo_opt.py --output=runs/demo_opt/huggingface
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.corpus.path = "runs/demo/corpus"
    config.vocabulary.path = "runs/demo/vocabulary"
    config.image_tokenizer.path = "runs/demo/image_tokenizer"
    config.model.update(positions="learned", image_position_embedding=False)
    return config
