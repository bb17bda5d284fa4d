"""How fast batches are built: ours beside Grain's and seqio's own pipelines, over the same documents in one process.

    python benchmarks/loader.py
    python benchmarks/loader.py --hosts=16,256

Documents are one image of 1,024 codes and a caption of 9 tokens on average, in a vocabulary of 64,640 ids; each gets
two of its four neighbors in front. Ours and Grain shuffle, look neighbors up, mask (CM3) and pack; Grain reads the
same files through the same functions. seqio is spared all but packing: it gets whole examples, in order, from memory
or from TFRecords of `tf.Example` as its cache has them.

Real tokens (no padding) a second of CPU time of the whole process, so threads count; counting them does not. The
contenders take turns, each with a new iterator and some batches before the clock starts; the best round counts.
TensorFlow gets one thread of each kind unless told otherwise. With `--hosts` ours is measured alone, as one of so many
hosts, each of which plans all 2,048 rows of a batch and builds its own.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import grain
import numpy as np
from packing import synthetic_corpus

from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.objective import apply_span_masks, positions_in_image, sample_spans, segments
from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource, iterate
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary

RETRIEVAL = RetrievalConfig(enabled=True, num_retrieved=2)
OBJECTIVE = ObjectiveConfig()
# Rows that Grain fills at once; with two neighbors any number packs as well.
GRAIN_BINS = 16

Batches = Iterator[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--seqio-documents", type=int, default=8_000, help="of them, those that are inlined for seqio")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds a contender and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tensorflow-threads", type=int, default=1, help="of each kind; 0 is TensorFlow's choice")
    parser.add_argument("--hosts", help="numbers of hosts, such as 16,256")
    arguments = parser.parse_args()
    vocabulary = Vocabulary.train(
        [f"word {index}" for index in range(100)],
        num_text_tokens=56_320,
        num_image_codes=8192,
        num_masks=64,
        progress=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic_corpus(Path(folder), vocabulary, arguments.documents)
        if arguments.hosts:
            for hosts in map(int, arguments.hosts.split(",")):
                speed = max(_as_one_host(corpus, vocabulary, hosts, arguments.seconds) for _ in range(arguments.rounds))
                print(f"one of {hosts:>4} hosts: {speed / 1e6:8.1f} Mtok of whole batches a CPU second of each")
            return
        inlined = _inlined(corpus, vocabulary, arguments.seqio_documents)
        _register(Path(folder), inlined, vocabulary, arguments.tensorflow_threads)
        print(f"{'Mtok a CPU second':34}" + "".join(f"{f'rows of {length:,}':>28}" for length in (4224, 4096)))
        contenders = {length: _contenders(corpus, vocabulary, length, arguments.batch) for length in (4224, 4096)}
        best = {(name, length): (0.0, 0.0) for length in contenders for name in contenders[length]}
        for _ in range(arguments.rounds):
            for name, length in best:
                found = _measure(contenders[length][name], vocabulary.pad, arguments.seconds)
                best[name, length] = max(best[name, length], found)
        for name in contenders[4224]:
            print(f"{name:34}" + "".join(_cell(best, name, length) for length in contenders))


def _as_one_host(corpus: PreparedCorpus, vocabulary: Vocabulary, hosts: int, seconds: float) -> float:
    """Tokens of whole batches, padding too, per CPU second that one of the hosts spends on its rows."""
    config = BatchConfig(batch_size=2048, sequence_length=4224)
    source = BatchSource(
        corpus,
        vocabulary,
        OBJECTIVE,
        config,
        rows=range(config.batch_size // hosts),
        retrieval=open_retrieval(corpus, RETRIEVAL, "train"),
    )
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        source[steps]
        steps += 1
    return steps * config.batch_size * config.sequence_length / spent


def _cell(best: dict[tuple[str, int], tuple[float, float]], name: str, length: int) -> str:
    (speed, fill), (ours, _) = best[name, length], best["ours: source[t]", length]
    return f"{speed / 1e6:8.2f} (1/{ours / speed:4.1f}) {fill:6.1%} full"


def _measure(open_batches: Callable[[], Batches], pad: int, seconds: float) -> tuple[float, float]:
    """Real tokens a CPU second, and their share of a batch."""
    gc.collect()
    # What the contender before has still in its threads.
    time.sleep(0.5)
    batches = open_batches()
    for _ in range(20):
        next(batches)
    real = size = 0
    counting = 0.0
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds:
        tokens = next(batches)
        began = time.thread_time()
        # We pad with 1, seqio with 0; no document has either.
        real, size = real + int(np.count_nonzero(tokens > pad)), size + tokens.size
        counting += time.thread_time() - began
    return real / (spent - counting), real / size


def _contenders(
    corpus: PreparedCorpus, vocabulary: Vocabulary, length: int, batch: int
) -> dict[str, Callable[[], Batches]]:
    config = BatchConfig(batch_size=batch, sequence_length=length)

    def source() -> BatchSource:
        retrieval = open_retrieval(corpus, RETRIEVAL, "train")
        return BatchSource(corpus, vocabulary, OBJECTIVE, config, retrieval=retrieval)

    def direct() -> Batches:
        ours = source()
        return (ours[step].tokens for step in itertools.count())

    def prefetched() -> Batches:
        return (found.tokens for found in iterate(source(), 0, 1 << 40))

    def of_grain(options: grain.ReadOptions | None) -> Callable[[], Batches]:
        return lambda: _grain_batches(corpus, vocabulary, length, batch, options)

    def of_seqio(task: str) -> Callable[[], Batches]:
        return lambda: _seqio_batches(task, length, batch)

    return {
        "ours: source[t]": direct,
        "ours: iterate, Grain's prefetch": prefetched,
        "Grain, default options": of_grain(None),
        "Grain, no read threads": of_grain(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        "seqio, TFRecords": of_seqio("records"),
        "seqio, memory": of_seqio("memory"),
    }


def _framed(parts: list[np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """`</s> (neighbor <break>) .. document </s>`."""
    mark = np.array([vocabulary.break_], np.int32)
    with_breaks = [part for neighbor in parts[:-1] for part in (neighbor, mark)]
    end = np.array([vocabulary.end], np.int32)
    return np.concatenate([end, *with_breaks, parts[-1], end], dtype=np.int32)


def _grain_batches(
    corpus: PreparedCorpus, vocabulary: Vocabulary, length: int, batch: int, options: grain.ReadOptions | None
) -> Batches:
    documents = corpus.task_split("pairs", "train")
    retrieval = open_retrieval(corpus, RETRIEVAL, "train")
    assert retrieval is not None
    kept, _ = retrieval.lists.of_split("pairs", "train")
    memory = retrieval.lists.documents

    def example(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = rng.permutation(kept[index])[: RETRIEVAL.num_retrieved]
        tokens = _framed([memory.stored(int(place)) for place in drawn] + [documents.stored(index)], vocabulary)
        count = min(int(rng.poisson(OBJECTIVE.mean_spans)), OBJECTIVE.max_spans)
        is_whole = rng.random() < OBJECTIVE.segment_mask_prob
        spans = sample_spans(len(tokens), segments(tokens, vocabulary), count, is_whole, rng)
        masked, places = apply_span_masks(tokens, positions_in_image(tokens, vocabulary), spans, vocabulary)
        return {"tokens": masked, "places": places}

    examples = grain.MapDataset.range(documents.num_documents).seed(0).shuffle().repeat().random_map(example)
    packed = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(options),
        length_struct={"tokens": length, "places": length},
        num_packing_bins=GRAIN_BINS,
        padding_struct={"tokens": vocabulary.pad, "places": 0},
    )
    return (found["tokens"] for found in packed.batch(batch, drop_remainder=True))


def _inlined(corpus: PreparedCorpus, vocabulary: Vocabulary, count: int) -> list[np.ndarray]:
    """Documents behind their first two neighbors."""
    documents = corpus.task_split("pairs", "train")
    retrieval = open_retrieval(corpus, RETRIEVAL, "train")
    assert retrieval is not None
    kept, _ = retrieval.lists.of_split("pairs", "train")
    memory = retrieval.lists.documents
    return [
        _framed([memory.stored(place) for place in kept[index, :2].tolist()] + [documents.stored(index)], vocabulary)
        for index in range(count)
    ]


def _register(folder: Path, examples: list[np.ndarray], vocabulary: Vocabulary, threads: int) -> None:
    """The seqio tasks `records` and `memory` of the same examples."""
    import seqio
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    file = str(folder / "examples.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for example in examples:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=example))
            features = tf.train.Features(feature={"targets": feature})
            writer.write(tf.train.Example(features=features).SerializeToString())
    ends = np.cumsum([len(example) for example in examples])
    flat = tf.constant(np.concatenate(examples))
    starts, stops = tf.constant(ends - [len(example) for example in examples]), tf.constant(ends)

    def from_memory(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed
        return tf.data.Dataset.range(len(examples)).map(lambda i: {"targets": flat[starts[i] : stops[i]]})

    description = {"targets": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)}
    sources = {
        "records": seqio.TFExampleDataSource({"train": file}, description),
        "memory": seqio.FunctionDataSource(from_memory, splits=["train"]),
    }

    def as_int32(dataset: Any) -> Any:
        return dataset.map(lambda example: {"targets": tf.cast(example["targets"], tf.int32)})

    feature = seqio.Feature(seqio.PassThroughVocabulary(vocabulary.size), add_eos=False)
    for name, data_source in sources.items():
        seqio.TaskRegistry.add(name, source=data_source, preprocessors=[as_int32], output_features={"targets": feature})


def _seqio_batches(task: str, length: int, batch: int) -> Batches:
    import seqio
    import tensorflow as tf

    dataset = seqio.get_dataset(
        task,
        task_feature_lengths={"targets": length},
        feature_converter=seqio.DecoderFeatureConverter(pack=True),
        num_epochs=None,
        verbose=False,
    )
    batches = dataset.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return (found["decoder_target_tokens"] for found in batches.as_numpy_iterator())


if __name__ == "__main__":
    main()
