"""Encoder without weights, for corpora without a CLIP: TF-IDF of words and pairs of words, and a thumbnail.

A vector has two parts, one for texts and one for images; a text has zeros in the second, an image in the first. So a
product compares texts with texts and images with images, never a text with an image.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from scipy.sparse import csr_array

from cm3leon_jax.config import Config
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.encoders.base import Encoder, dropped, l2_normalize
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.files import write_json
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.squaring import CENTER_CROP, Squaring

# Words and pairs of words are hashed to this many features.
_NUM_FEATURES = 1 << 18
# Non-zero entries per feature of the random projection, on average.
_ENTRIES = 8
_PROJECTION_SEED = 0
_CHANNELS = 3
# Documents counted at a time.
_BLOCK = 1024


class TfidfEncoder(Encoder):
    """Encodes texts by TF-IDF and images by thumbnails; `fit_documents` makes one of a corpus."""

    family = "tfidf"
    is_joint = False

    def __init__(self, dim: int, side: int, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `fit_documents` found; of a vector's `dim` numbers the thumbnail takes 3 * side * side.

        The arrays are "idf" of each feature, "mean_thumbnail" of the corpus, and the random projection as a sparse
        matrix with a row per feature, in "projection.indptr", "projection.indices" and "projection.signs".
        """
        from sklearn.preprocessing import normalize

        super().__init__({"embedding_dim": dim, "resolution": side}, arrays)
        self.dim, self.side = dim, side
        self._idf, self._mean_thumbnail = arrays["idf"], arrays["mean_thumbnail"]
        self._text_dim = dim - len(self._mean_thumbnail)
        sparse = (arrays["projection.signs"], arrays["projection.indices"], arrays["projection.indptr"])
        # With rows of unit norm, all features are projected with their weight.
        self._projection = normalize(csr_array(sparse, shape=(_NUM_FEATURES, self._text_dim), dtype=np.float64))

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Encodes texts; a token is a word."""
        if dropout and keys is not None:
            texts = [_drop_words(text, dropout, int(key)) for text, key in zip(texts, keys, strict=True)]
        vectors = np.zeros((len(texts), self.dim), np.float32)
        if len(texts):
            weights = _vectorizer().transform(texts)
            weights.data = (1 + np.log(weights.data)) * self._idf[weights.indices]
            vectors[:, : self._text_dim] = (weights @ self._projection).toarray()
        return l2_normalize(vectors)

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Encodes images; a patch is a pixel of the thumbnail."""
        vectors = np.zeros((len(images), self.dim), np.float32)
        for row, image in enumerate(images):
            centered = (_thumbnail(image, self.side) - self._mean_thumbnail).reshape(-1, _CHANNELS)
            if dropout and keys is not None:
                centered[dropped(len(centered), dropout, int(keys[row]))] = 0
            vectors[row, self._text_dim :] = centered.ravel()
        return l2_normalize(vectors)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> TfidfEncoder:
        return cls(settings["embedding_dim"], settings["resolution"], arrays)


class TfidfTrainer:
    """Counts the words and averages the thumbnails of the mixture's training split."""

    is_distributed = False

    def __init__(self, config: Config) -> None:
        self._config = config
        # What it depends on besides its own config and the mixture.
        self.record = {"image_resolution": config.image_tokenizer.resolution}

    def train(self, workdir: Path, record: dict[str, Any]) -> tuple[Encoder, None]:
        """The encoder; its texts and images do not compare, so there is nothing to measure."""
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
            config.corpus.squaring,
        )
        write_json(Path(config.encoder.path) / "trained_on.json", {"sources": sources})
        return encoder, None


def fit_documents(
    documents: Iterable[Document],
    dim: int,
    side: int,
    resolution: int,
    most: int | None = None,
    squaring: Squaring = CENTER_CROP,
) -> TfidfEncoder:
    """Counts words and averages thumbnails of at most `most` documents, for vectors of `dim` numbers.

    Images are first decoded to `resolution`, as they are when they are encoded; a thumbnail has `side` pixels a side.
    """
    document_frequency = np.zeros(_NUM_FEATURES, np.int64)
    total, num_texts, num_images = np.zeros(side * side * _CHANNELS), 0, 0
    remaining = itertools.islice(documents, most)
    while block := list(itertools.islice(remaining, _BLOCK)):
        counts = _vectorizer().transform([document.text for document in block])
        document_frequency += np.bincount(counts.indices, minlength=_NUM_FEATURES)
        num_texts += int(np.count_nonzero(np.diff(counts.indptr)))
        for segment in itertools.chain.from_iterable(document.segments for document in block):
            if not isinstance(segment, ImageSegment):
                continue
            try:
                total += _thumbnail(decode_image(segment.encoded, resolution, _CHANNELS, squaring), side)
            except UnreadableImage:
                continue
            num_images += 1
    mean_thumbnail = (total / max(1, num_images)).astype(np.float32)
    arrays = _random_projection(dim - len(mean_thumbnail)) | {
        # As in scikit-learn's TfidfTransformer.
        "idf": np.log((1 + num_texts) / (1 + document_frequency)) + 1,
        "mean_thumbnail": mean_thumbnail,
    }
    return TfidfEncoder(dim, side, arrays)


def _random_projection(dim: int) -> dict[str, np.ndarray]:
    """Samples the projection; its signs are stored because another scikit-learn may sample others."""
    from sklearn.random_projection import SparseRandomProjection

    sampler = SparseRandomProjection(dim, density=min(1.0, _ENTRIES / dim), random_state=_PROJECTION_SEED)
    signs = csr_array(sampler.fit(csr_array((1, _NUM_FEATURES))).components_.sign().T)
    return {
        "projection.indptr": signs.indptr.astype(np.int32),
        "projection.indices": signs.indices.astype(np.int32),
        "projection.signs": signs.data.astype(np.int8),
    }


@functools.cache
def _vectorizer() -> Any:
    # Imported here because scikit-learn takes a second to import.
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        ngram_range=(1, 2), token_pattern=r"\w+", n_features=_NUM_FEATURES, alternate_sign=False, norm=None
    )


def _drop_words(text: str, dropout: float, key: int) -> str:
    words = _vectorizer().build_tokenizer()(text.lower())
    is_dropped = dropped(len(words), dropout, key).tolist()
    return " ".join(word for word, drop in zip(words, is_dropped, strict=True) if not drop)


def _thumbnail(image: UInt8[np.ndarray, "R R C"], side: int) -> Float32[np.ndarray, "pixels"]:
    """Mean colors of a grid of cells, 0 to 1."""
    opened = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    if opened.size != (side, side):
        opened = opened.resize((side, side), Image.Resampling.BOX)
    return np.asarray(opened, np.float32).ravel() / 255
