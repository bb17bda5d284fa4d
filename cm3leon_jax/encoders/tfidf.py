"""An encoder without weights, for corpora with no CLIP at hand: TF-IDF of words and pairs of words, and a thumbnail.

A vector has two parts, one for text and one for images; a text's is zero in the second, an image's in the first. So
a product compares texts with texts and images with images, and a text tells nothing of an image without a text.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from cm3leon_jax import counter_random
from cm3leon_jax.config import Config
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.encoders.base import Encoder, dropped, l2_normalize
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.files import write_json
from cm3leon_jax.images import UnreadableImage, decode_image

# Words and pairs share the counts of this many buckets; a bucket is a sparse vector of this many entries of +1 or -1.
_NUM_BUCKETS, _ENTRIES = 1 << 18, 8
_CHANNELS = 3


class TfidfEncoder(Encoder):
    """Word statistics and a mean thumbnail; `fit_documents` makes one of a corpus."""

    family = "tfidf"
    is_joint = False

    def __init__(
        self,
        dim: int,
        side: int,
        num_texts: int,
        document_frequency: Int64[np.ndarray, "buckets"],
        mean_thumbnail: Float32[np.ndarray, "pixels"],
    ) -> None:
        """
        Args:
          dim: width of a vector, of which the thumbnail takes 3 * side * side.
          side: of the thumbnail, in pixels.
          num_texts: texts that were counted.
          document_frequency: how many of them have a word or pair of each bucket.
          mean_thumbnail: of the corpus, 0 to 1; what differs from it tells images apart.
        """
        self.dim, self.side, self._num_texts = dim, side, num_texts
        self._document_frequency, self._mean_thumbnail = document_frequency, mean_thumbnail
        self._text_dim = dim - len(mean_thumbnail)
        # As scikit-learn smooths it: a word of every text still counts a little, one of no text the most.
        self._idf = np.log((1 + num_texts) / (1 + document_frequency)) + 1
        super().__init__(
            {"embedding_dim": dim, "resolution": side, "num_texts": num_texts},
            {"document_frequency": document_frequency, "mean_thumbnail": mean_thumbnail},
        )

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `Encoder` says; a token is a word."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            words = _words(text)
            if dropout and keys is not None:
                out = dropped(len(words), dropout, int(keys[row]))
                words = [word for word, is_out in zip(words, out.tolist(), strict=True) if not is_out]
            for bucket, count in Counter(map(_bucket, _terms(words))).items():
                places, signs = _projection(bucket, self._text_dim)
                np.add.at(vectors[row], places, signs * (1 + np.log(count)) * self._idf[bucket])
        return l2_normalize(vectors)

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `Encoder` says; a patch is a pixel of the thumbnail."""
        vectors = np.zeros((len(images), self.dim), np.float32)
        for row, image in enumerate(images):
            centered = (_thumbnail(image, self.side) - self._mean_thumbnail).reshape(-1, _CHANNELS)
            if dropout and keys is not None:
                centered[dropped(len(centered), dropout, int(keys[row]))] = 0
            vectors[row, self._text_dim :] = centered.ravel()
        return l2_normalize(vectors)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> TfidfEncoder:
        """The encoder that `save` wrote."""
        sizes = (settings["embedding_dim"], settings["resolution"], settings["num_texts"])
        return cls(*sizes, arrays["document_frequency"], arrays["mean_thumbnail"])


class TfidfTrainer:
    """Counts the words and averages the thumbnails of the mixture's training split."""

    is_distributed = False

    def __init__(self, config: Config) -> None:
        self._config = config
        # What it depends on beside its own config and the mixture.
        self.record = {"image_resolution": config.image_tokenizer.resolution}

    def train(self, workdir: Path, record: dict[str, Any]) -> tuple[Encoder, None]:
        """The encoder; its texts and images do not compare, so there is nothing to measure.

        Raises:
          UserError: if the mixture cannot be read.
        """
        from cm3leon_jax.data.sources.reading import provenance_of, read_documents

        config = self._config
        assert isinstance(config.encoder, TfidfConfig)
        sources = provenance_of(config.corpus)
        encoder = fit_documents(
            read_documents(config.corpus, config.corpus.train_split),
            config.encoder.embedding_dim,
            config.encoder.resolution,
            config.image_tokenizer.resolution,
            config.encoder.training.num_pairs or None,
        )
        write_json(Path(config.encoder.path) / "trained_on.json", {"sources": sources})
        return encoder, None


def fit_documents(
    documents: Iterable[Document], dim: int, side: int, resolution: int, most: int | None = None
) -> TfidfEncoder:
    """An encoder of vectors of `dim` entries and thumbnails of `side` pixels.

    Args:
      documents: what is counted.
      dim: width of a vector.
      side: of a thumbnail.
      resolution: side to which images are opened first, as they will be when they are encoded.
      most: documents counted; None means all.
    """
    document_frequency = np.zeros(_NUM_BUCKETS, np.int64)
    total, num_texts, num_images = np.zeros(side * side * _CHANNELS), 0, 0
    for number, document in enumerate(documents):
        if number == most:
            break
        buckets = set(map(_bucket, _terms(_words(document.text))))
        document_frequency[list(buckets)] += 1
        num_texts += bool(buckets)
        for segment in document.segments:
            if not isinstance(segment, ImageSegment):
                continue
            try:
                total += _thumbnail(decode_image(segment.encoded, resolution, _CHANNELS), side)
            except UnreadableImage:
                continue
            num_images += 1
    mean = (total / max(1, num_images)).astype(np.float32)
    return TfidfEncoder(dim, side, num_texts, document_frequency, mean)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _terms(words: list[str]) -> Iterator[str]:
    yield from words
    for first, second in itertools.pairwise(words):
        yield f"{first} {second}"


@lru_cache(maxsize=1 << 16)
def _bucket(term: str) -> int:
    # Python's own hash differs from process to process.
    digest = hashlib.blake2b(term.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _NUM_BUCKETS


@lru_cache(maxsize=1 << 16)
def _projection(bucket: int, dim: int) -> tuple[Int64[np.ndarray, "entries"], Float32[np.ndarray, "entries"]]:
    """Where a bucket falls, and with which signs: products of texts stay about what they were (Achlioptas, 2003)."""
    bits = counter_random.hash64(bucket, np.arange(_ENTRIES))
    return (bits % np.uint64(dim)).astype(np.int64), np.where(bits >> np.uint64(63), 1, -1).astype(np.float32)


def _thumbnail(image: UInt8[np.ndarray, "R R C"], side: int) -> Float32[np.ndarray, "pixels"]:
    """Mean colors of a grid of cells, 0 to 1."""
    opened = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    if opened.size != (side, side):
        opened = opened.resize((side, side), Image.Resampling.BOX)
    return np.asarray(opened, np.float32).ravel() / 255
