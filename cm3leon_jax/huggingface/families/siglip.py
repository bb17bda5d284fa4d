"""SigLIP (arXiv 2303.15343) as the run's encoder, and SigLIP 2 (arXiv 2502.14786) of fixed resolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cm3leon_jax.config import Config
from cm3leon_jax.encoders.clip.inputs import ImageNormalization
from cm3leon_jax.encoders.clip.model import CHANNELS
from cm3leon_jax.encoders.siglip.encoder import SiglipEncoder, parameter_shapes
from cm3leon_jax.encoders.siglip.model import SiglipArchitecture
from cm3leon_jax.encoders.siglip.tokenizer import (
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    SiglipTokenizer,
    TextFormat,
    open_sentencepiece,
)
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.families.clip import (
    check_tokenizer_works,
    read_arrays,
    read_normalization,
    read_preprocessing,
    read_tokenizer_config,
    read_tower,
    save_encoder,
    special_token,
    tower_maps,
)
from cm3leon_jax.huggingface.reading_weights import open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import FROM_HEADS, TRANSPOSED, VECTOR, TensorMap, linear_maps, norm_maps
from cm3leon_jax.huggingface.tokenizer_files import check_ordinary, open_tokenizer
from cm3leon_jax.lock import lock

# What transformers takes where a config says nothing: siglip-base-patch16-224.
_TOWER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS = _TOWER_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}
_IMAGE_DEFAULTS = _TOWER_DEFAULTS | {"num_channels": CHANNELS, "image_size": 224, "patch_size": 16}
_COLORS = ImageNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Numbers of Pillow's filters, and the names of the same in `jax.image.resize`.
_FILTERS = {1: "lanczos3", 2: "linear", 3: "cubic"}
_BICUBIC = 3
_PADDING_LEFT = ("GemmaTokenizer", "Siglip2Tokenizer")
# Query, key and value in one tensor, each with its heads merged.
_TO_THREE, _THREE = ((0, 2, 3), (1,)), ((0, 1, 2),)


def tensor_maps() -> dict[str, TensorMap]:
    """Where each parameter of `siglip.Siglip` lies."""
    pooling, head = "image.pooling.", "vision_model.head."
    mlp = {f"{pooling}feed_forward.up": f"{head}mlp.fc1", f"{pooling}feed_forward.down": f"{head}mlp.fc2"}
    return {
        **tower_maps(),
        "logit_scale": TensorMap("logit_scale", VECTOR),
        "logit_bias": TensorMap("logit_bias", VECTOR),
        "image.patch_embedding_bias": TensorMap("vision_model.embeddings.patch_embedding.bias", VECTOR),
        f"{pooling}probe": TensorMap(f"{head}probe", ((0,), (1,), (2,))),
        f"{pooling}query_key_value": TensorMap(f"{head}attention.in_proj_weight", _TO_THREE),
        f"{pooling}query_key_value_bias": TensorMap(f"{head}attention.in_proj_bias", _THREE),
        **linear_maps(FROM_HEADS, {f"{pooling}output": f"{head}attention.out_proj"}),
        **norm_maps({f"{pooling}norm": f"{head}layernorm"}),
        **linear_maps(TRANSPOSED, mlp | {"text.projection": "text_model.head"}),
    }


class SiglipFamily:
    """Reads config.json, the weights, the tokenizer and, where it is there, how images are prepared."""

    def import_folder(self, config: Config, workdir: Path, folder: Path, stored: Mapping[str, Any]) -> None:
        """Writes the encoder to config.encoder.path, given the object in the folder's config.json."""
        del workdir
        path = Path(config.encoder.path)
        with lock(path, "import"):
            architecture = read_architecture(stored, folder)
            tokenizer = read_tokenizer(folder, architecture)
            check_tokenizer_works(tokenizer, folder)
            normalization, resize = read_images(folder, architecture)
            weights = open_weights(folder, ignored=("*.position_ids",))
            arrays = read_arrays(tensor_maps(), parameter_shapes(architecture), weights, folder)
            save_encoder(SiglipEncoder(architecture, arrays, tokenizer, normalization, resize), path, folder)


FAMILY = SiglipFamily()


def read_architecture(stored: Mapping[str, Any], folder: Path) -> SiglipArchitecture:
    """The shapes that a config.json describes.

    Raises a `UserError` that names the first field with a value that is missing, of another type, or has no code here.
    """
    whole = StoredConfig(stored, f"{folder}/config.json")
    text = whole.part("text_config").with_defaults(_TEXT_DEFAULTS)
    image = whole.part("vision_config").with_defaults(_IMAGE_DEFAULTS)
    if image.get("num_channels") != CHANNELS:
        raise image.error("num_channels", image.get("num_channels"), str(CHANNELS))
    if not image.flag("vision_use_head", True):
        raise image.error("vision_use_head", False, "true: without its head the image tower has no vector of an image")
    resolution = image.size("image_size")
    architecture = SiglipArchitecture(
        vocabulary_size=text.size("vocab_size"),
        # At least a token of the text, and the special ones around it.
        max_text_tokens=text.size("max_position_embeddings", least=3),
        resolution=resolution,
        patch_size=image.size("patch_size", most=resolution),
        text=read_tower(text),
        image=read_tower(image),
    )
    width = text.size("projection_size", architecture.text.dim)
    if width != architecture.embedding_dim:
        wanted = f"{architecture.embedding_dim}, vision_config.hidden_size: texts would not compare with images"
        raise text.error("projection_size", width, wanted)
    return architecture


def read_tokenizer(folder: Path, architecture: SiglipArchitecture) -> SiglipTokenizer:
    """The tokenizer in spiece.model, which the first SigLIP has, or else in tokenizer.json."""
    special = read_tokenizer_config(folder)
    if (folder / SENTENCEPIECE_FILE).exists():
        file, text_format = folder / SENTENCEPIECE_FILE, _format_of_sentencepiece(folder, special, architecture)
    elif (folder / TOKENIZER_FILE).exists():
        file, text_format = folder / TOKENIZER_FILE, _format_of_tokenizers(folder, special, architecture)
    else:
        raise UserError(f"no tokenizer in {folder}: neither {SENTENCEPIECE_FILE} nor {TOKENIZER_FILE}")
    try:
        return SiglipTokenizer(file.read_bytes(), text_format, architecture.max_text_tokens)
    except Exception as error:  # Of SentencePiece for a special token that is no UTF-8.
        raise UserError(f"the tokenizer in {folder} cannot be made ({error}): get it again") from None


def _format_of_sentencepiece(folder: Path, special: StoredConfig, architecture: SiglipArchitecture) -> TextFormat:
    file = folder / SENTENCEPIECE_FILE
    check_ordinary(file)
    try:
        model = open_sentencepiece(file.read_bytes())
        ids = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from None
    end = special_token(special, "eos_token", "</s>")
    pad = special_token(special, "pad_token", end)
    _check_ids(folder, ids.values(), {end: ids.get(end), pad: ids.get(pad)}, architecture)
    return TextFormat(
        SENTENCEPIECE_FILE,
        before=(),
        after=(ids[end],),
        pad=ids[pad],
        pads_left=_pads_left(special),
        lower_case=special.flag("do_lower_case", True),
        unknown=special_token(special, "unk_token", "<unk>"),
    )


def _format_of_tokenizers(folder: Path, special: StoredConfig, architecture: SiglipArchitecture) -> TextFormat:
    tokenizer, _ = open_tokenizer(folder)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    pad = special_token(special, "pad_token", "<pad>")
    # What the file puts around a text counts, as in transformers, whatever add_bos_token and add_eos_token say.
    alone, framed = (tokenizer.encode("a", add_special_tokens=is_framed).ids for is_framed in (False, True))
    _check_ids(folder, [*ids.values(), *framed], {pad: ids.get(pad)}, architecture)
    first = next((at for at in range(len(framed)) if framed[at : at + len(alone)] == alone), 0)
    before, after = framed[:first], framed[first + len(alone) :]
    if len(before) + len(after) >= architecture.max_text_tokens:
        raise UserError(
            f"{folder}/{TOKENIZER_FILE} puts {len(before) + len(after)} tokens around a text, and config.json says "
            f"text_config.max_position_embeddings {architecture.max_text_tokens}: they do not belong together"
        )
    return TextFormat(
        TOKENIZER_FILE,
        before=tuple(before),
        after=tuple(after),
        pad=ids[pad],
        pads_left=_pads_left(special),
        lower_case=special.flag("do_lower_case", True),
    )


def _pads_left(special: StoredConfig) -> bool:
    """On which side rows are filled; of Gemma's tokenizers on the left, unless the folder says otherwise."""
    kind = special.text("tokenizer_class", "").removesuffix("Fast")
    return special.text("padding_side", "left" if kind in _PADDING_LEFT else "right") == "left"


def _check_ids(
    folder: Path, ids: Iterable[int], special: Mapping[str, int | None], architecture: SiglipArchitecture
) -> None:
    """Raises a `UserError` if a special token has no id, or an id of the tokenizer no row in the model."""
    absent, largest = [token for token, found in special.items() if found is None], max(ids, default=0)
    if absent or largest >= architecture.vocabulary_size:
        what = f"has no token {absent[0]}" if absent else f"has the id {largest}"
        raise UserError(
            f"{folder}: its tokenizer {what}, its config.json says vocab_size {architecture.vocabulary_size}: they do "
            "not belong together"
        )


def read_images(folder: Path, architecture: SiglipArchitecture) -> tuple[ImageNormalization, str]:
    """What images are normalized by, and the filter of `jax.image.resize`; SigLIP's where the folder does not say."""
    stored = read_preprocessing(folder)
    number = stored.get("resample", _BICUBIC)
    if type(number) is not int or number not in _FILTERS:
        raise stored.error("resample", number, "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
    scale = stored.number("rescale_factor", 1 / 255)
    if not stored.flag("do_rescale", True) or abs(255 * scale - 1) > 1e-3:
        raise stored.error("rescale_factor", scale, "1/255, with do_rescale true")
    return read_normalization(stored, "size", architecture.resolution, _COLORS), _FILTERS[number]
