"""The shapes of a prepared corpus's records: its manifest, its plan, and what each shard says of itself."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from cm3leon_jax.records import Checksum, Count, Name, PositiveCount

# Their numbers have five digits.
_NumShards = Annotated[int, Field(ge=1, le=100_000)]


class InstructionFiles(TypedDict):
    """The templates in a shard, in the order of their numbers, and the checksums of the files about them."""

    names: list[str]
    templates: Checksum
    fields: Checksum


class ShardFiles(TypedDict):
    """What the files of a shard hold, and the checksum of each."""

    num_documents: Count
    num_tokens: Count
    tokens: Checksum
    offsets: Checksum
    checksums: Checksum
    instructions: NotRequired[InstructionFiles]
    groups: NotRequired[Checksum]


class SkippedCounts(TypedDict):
    """Documents that were skipped, or images left out of documents, by reason; the first of them one by one."""

    by_reason: dict[str, Count]
    # Of them, those that are sound, but that the config does not want.
    num_unwanted: NotRequired[Count]
    first: list[dict[str, Any]]


class TokenCounts(TypedDict):
    """What documents hold."""

    num_documents: Count
    num_tokens: Count
    num_text_tokens: Count
    num_image_tokens: Count


class ShardRecord(TokenCounts):
    """The record of a complete shard."""

    num_examples: Count
    num_images: Count
    skipped: SkippedCounts
    omitted: NotRequired[SkippedCounts]
    last: bool
    files: ShardFiles


class SplitEntry(TokenCounts):
    num_shards: _NumShards
    shards: list[ShardFiles]
    skipped: SkippedCounts
    omitted: NotRequired[SkippedCounts]


class TaskEntry(TypedDict):
    rate: Annotated[float, Field(ge=0)]
    splits: Annotated[dict[Name, SplitEntry], Field(min_length=1)]


class Fingerprint(TypedDict):
    fingerprint: str


class VocabularyEntry(Fingerprint):
    size: PositiveCount


class ImageTokenizerEntry(Fingerprint):
    image_length: PositiveCount


class Manifest(TypedDict):
    """CORPUS/manifest.json."""

    format_version: int
    created_by: str
    mixture: str
    examples_per_shard: PositiveCount
    vocabulary: VocabularyEntry
    image_tokenizer: ImageTokenizerEntry
    tasks: Annotated[dict[Name, TaskEntry], Field(min_length=1)]


class OfVocabulary(TypedDict):
    """A manifest or plan, as far as it names its vocabulary."""

    vocabulary: Fingerprint


class OfImageTokenizer(TypedDict):
    """A manifest, as far as it names its image tokenizer."""

    image_tokenizer: Fingerprint


class OfEncoder(TypedDict):
    """A manifest of neighbor lists, as far as it names what found them."""

    encoder: str


class CorpusPlan(TypedDict):
    """CORPUS/plan.json: what the tokens on disk depend on."""

    format_version: int
    vocabulary: Fingerprint
    image_tokenizer: Fingerprint
    sources: NotRequired[dict[str, dict[str, Any]]]


class ListCounts(TypedDict):
    """The neighbor lists of a task and split in the manifest."""

    num_documents: Count
    num_without: Count
    num_neighbors: Count
    mean_score: float
    # Of each shard, the checksums of its files by their names.
    shards: list[dict[Name, Checksum]]


class NeighborsPlan(TypedDict):
    """CORPUS/retrieval/plan.json: what the neighbor lists depend on."""

    format_version: int
    encoder: str
    corpus: dict[str, Any]
    settings: dict[str, Any]
    datastore: Annotated[list[Name], Field(min_length=1)]
    fingerprint: str


class NeighborsManifest(NeighborsPlan):
    """CORPUS/retrieval/manifest.json."""

    num_rows: Count
    neighbors: dict[str, ListCounts]
    files: dict[Name, Checksum]
