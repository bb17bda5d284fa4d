"""The shapes of a prepared corpus's records: its manifest, its plan, and what each shard says of itself."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from cm3leon_jax.records import OPEN, Checksum, Count, Name, PositiveCount

# Their numbers have five digits.
_NumShards = Annotated[int, Field(ge=1, le=100_000)]


@with_config(OPEN)
class ShardFiles(TypedDict):
    """What the files of a shard hold, and the checksum of each."""

    num_documents: Count
    num_tokens: Count
    tokens: Checksum
    offsets: Checksum
    checksums: Checksum


@with_config(OPEN)
class SkippedCounts(TypedDict):
    """Documents that were skipped, by reason; the first of them one by one."""

    by_reason: dict[str, Count]
    first: list[dict[str, Any]]


@with_config(OPEN)
class ShardRecord(TypedDict):
    """The record of a complete shard."""

    num_examples: Count
    num_documents: Count
    num_images: Count
    num_tokens: Count
    num_text_tokens: Count
    num_image_tokens: Count
    skipped: SkippedCounts
    last: bool
    files: ShardFiles


@with_config(OPEN)
class SplitEntry(TypedDict):
    """A task's split in the manifest."""

    num_documents: Count
    num_tokens: Count
    num_text_tokens: Count
    num_image_tokens: Count
    num_shards: _NumShards
    shards: list[ShardFiles]
    skipped: SkippedCounts


@with_config(OPEN)
class TaskEntry(TypedDict):
    """A task in the manifest."""

    rate: Annotated[float, Field(ge=0)]
    splits: Annotated[dict[Name, SplitEntry], Field(min_length=1)]


@with_config(OPEN)
class VocabularyEntry(TypedDict):
    """The vocabulary of the ids."""

    fingerprint: str
    size: PositiveCount


@with_config(OPEN)
class ImageTokenizerEntry(TypedDict):
    """What made the image codes."""

    fingerprint: str
    image_length: PositiveCount


@with_config(OPEN)
class Manifest(TypedDict):
    """CORPUS/manifest.json."""

    format_version: int
    created_by: str
    mixture: str
    examples_per_shard: PositiveCount
    vocabulary: VocabularyEntry
    image_tokenizer: ImageTokenizerEntry
    tasks: Annotated[dict[Name, TaskEntry], Field(min_length=1)]


@with_config(OPEN)
class Fingerprint(TypedDict):
    """Something that a corpus depends on."""

    fingerprint: str


@with_config(OPEN)
class OfVocabulary(TypedDict):
    """A manifest or plan, as far as it names its vocabulary."""

    vocabulary: Fingerprint


@with_config(OPEN)
class OfImageTokenizer(TypedDict):
    """A manifest, as far as it names its image tokenizer."""

    image_tokenizer: Fingerprint


@with_config(OPEN)
class OfEncoder(TypedDict):
    """A manifest of neighbor lists, as far as it names what found them."""

    encoder: str


@with_config(OPEN)
class CorpusPlan(TypedDict):
    """CORPUS/plan.json: what the tokens on disk depend on."""

    format_version: int
    vocabulary: Fingerprint
    image_tokenizer: Fingerprint
    sources: NotRequired[dict[str, dict[str, Any]]]


@with_config(OPEN)
class ListCounts(TypedDict):
    """The neighbor lists of a task and split in the manifest."""

    num_documents: Count
    num_without: Count
    num_neighbors: Count
    mean_score: float
    # Of each shard, the checksums of its files by their names.
    shards: list[dict[Name, Checksum]]


@with_config(OPEN)
class NeighborsPlan(TypedDict):
    """CORPUS/retrieval/plan.json: what the neighbor lists depend on."""

    format_version: int
    encoder: str
    corpus: dict[str, Any]
    settings: dict[str, Any]
    datastore: Annotated[list[Name], Field(min_length=1)]
    fingerprint: str


@with_config(OPEN)
class NeighborsManifest(NeighborsPlan):
    """CORPUS/retrieval/manifest.json."""

    num_rows: Count
    neighbors: dict[str, ListCounts]
    files: dict[Name, Checksum]
