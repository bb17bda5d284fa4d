"""Images a CPU second from WebDataset tars to token shards, beside webdataset with PyTorch and torchvision.

    pip install webdataset==1.0.2 torch==2.13.0 torchvision==0.28.0
    taskset -c 0 python benchmarks/prepare.py [--folder=runs/prepare_benchmark] [--images=512]

Both read the same tars of JPEGs (crops of scikit-learn's two photographs) with one thread of computation. "decode" ends
with square pixels, 256 by 256, of larger JPEGs and of such. "prepare" goes on to codes, by the same weights of a VQGAN
(in PyTorch transformers' ChameleonVQVAE), to the captions' ids and to files. Ours is `cm3leon prepare`, whose shards
have checksums and records as well. PyTorch's best batch size of three is taken. CPU seconds are those of the process
with all its threads, after a warm-up that compiles everything.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np  # noqa: E402 - its threads are counted above

sys.path.insert(0, str(Path(__file__).parents[1]))

RESOLUTION = 256
_SIDES = (256, 512, 2048)
_PER_TAR = 256
_WARM_UP = 64
_TORCH_BATCHES = (1, 4, 16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/prepare_benchmark"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--contender", choices=tuple(CONTENDERS), help="measure this one alone, in this process")
    parser.add_argument("--side", type=int, default=RESOLUTION, help="of the JPEGs it reads")
    arguments = parser.parse_args()
    if arguments.contender:
        print(CONTENDERS[arguments.contender](arguments.folder, arguments.side, arguments.images))
        return 0
    for side in _SIDES:
        write_tars(arguments.folder / str(side) / "warm_up", side, _WARM_UP)
        write_tars(arguments.folder / str(side) / "images", side, arguments.images)

    def rate(contender: str, side: int) -> float:
        run = [sys.executable, __file__, "--contender", contender, "--side", str(side)]
        run += ["--folder", str(arguments.folder), "--images", str(arguments.images)]
        return float(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    print("images a CPU second                               ours  webdataset, PyTorch   ratio")
    for side in _SIDES:
        ours = rate("decode_ours", side)
        for contender, resize in (("decode_torch", "bilinear"), ("decode_torch_lanczos", "Lanczos")):
            if side == RESOLUTION and resize == "Lanczos":
                # Nothing is resized.
                continue
            theirs = rate(contender, side)
            what = f"decode, {side:4} pixels to {RESOLUTION}, theirs {resize}"
            print(f"{what:44} {ours:9.1f} {theirs:20.1f} {ours / theirs:7.2f}", flush=True)
    ours, theirs = rate("prepare_ours", RESOLUTION), rate("prepare_torch", RESOLUTION)
    print(f"{'prepare':44} {ours:9.1f} {theirs:20.1f} {ours / theirs:7.2f}")
    return 0


def write_tars(folder: Path, side: int, count: int) -> None:
    """Tars of JPEGs with captions, if they are not there yet."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for start in range(0, count, _PER_TAR):
        file = folder / f"{start // _PER_TAR:05}.tar"
        if file.exists():
            continue
        with tarfile.open(file, "w") as tar:
            for number in range(start, min(count, start + _PER_TAR)):
                photograph = photographs[number % 2]
                size = int(random.integers(200, 400))
                left, top = (int(random.integers(limit - size)) for limit in photograph.size)
                buffer = io.BytesIO()
                crop = photograph.crop((left, top, left + size, top + size)).resize((side, side))
                crop.save(buffer, "JPEG", quality=90)
                caption = f"part {number} of a photograph of a {('temple', 'flower')[number % 2]}"
                for suffix, content in (("jpg", buffer.getvalue()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _seconds(function: Callable[[str, int], Any], count: int) -> float:
    """Images a CPU second of a function of a folder's name and a number of images, once everything is compiled."""
    function("warm_up", _WARM_UP)
    started = time.process_time()
    function("images", count)
    return count / (time.process_time() - started)


def decode_ours(folder: Path, side: int, count: int) -> float:
    """Tars to pixels, as `cm3leon prepare` reads them."""
    from cm3leon_jax.data.corpus.config import CorpusConfig
    from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
    from cm3leon_jax.data.sources.config import FolderConfig
    from cm3leon_jax.data.sources.reading import ShardSlice, open_mixture
    from cm3leon_jax.threads import mapped_ahead

    vocabulary, tokenizer = _models(folder)
    tokens = DocumentTokenizer(vocabulary, tokenizer, 16)

    def read(name: str, count: int) -> None:
        config = CorpusConfig(
            mixture=f"webdataset:{folder / str(side) / name}", folder=FolderConfig(held_out_fraction=0.0)
        )
        (task,) = open_mixture(config)
        documents = mapped_ahead(tokens.decode, task.numbered("train", ShardSlice(1)), num_ahead=32)
        assert sum(len(document.images) for _, document in documents) == count

    return _seconds(read, count)


def decode_torch(folder: Path, side: int, count: int) -> float:
    """Tars to pixels by webdataset and torchvision."""

    def read(name: str, count: int) -> None:
        assert sum(1 for _ in _torch_images(folder / str(side) / name)) == count

    return _seconds(read, count)


def decode_torch_lanczos(folder: Path, side: int, count: int) -> float:
    """The same with the filter that ours has; torchvision's own is bilinear."""

    def read(name: str, count: int) -> None:
        assert sum(1 for _ in _torch_images(folder / str(side) / name, "lanczos")) == count

    return _seconds(read, count)


def prepare_ours(folder: Path, side: int, count: int) -> float:
    """The command."""
    import shutil

    from cm3leon_jax.commands import prepare
    from cm3leon_jax.config import Config
    from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
    from cm3leon_jax.data.sources.config import FolderConfig

    vocabulary, tokenizer = _models(folder)
    vocabulary.save(folder / "vocabulary")
    tokenizer.save(folder / "image_tokenizer")

    def run(name: str, count: int) -> None:
        shutil.rmtree(folder / "corpus", ignore_errors=True)
        config = Config(
            corpus=CorpusConfig(
                path=str(folder / "corpus"), mixture=f"webdataset:{folder / str(side) / name}", num_sample_images=0,
                folder=FolderConfig(held_out_fraction=0.0),
            ),
            vocabulary=VocabularyConfig(path=str(folder / "vocabulary")),
            image_tokenizer=replace(_architecture(), path=str(folder / "image_tokenizer")),
        )  # fmt: skip
        assert prepare.run(config, Path(), argparse.Namespace(dry_run=None)) == 0

    return _seconds(run, count)


def prepare_torch(folder: Path, side: int, count: int) -> float:
    """The same with PyTorch, at the best of a few batch sizes."""
    import torch

    torch.set_num_threads(1)
    vocabulary, tokenizer = _models(folder)
    model = _chameleon(tokenizer.weights)
    image, _ = next(_torch_images(folder / str(side) / "warm_up"))
    codes = model.encode(image[None].float() / 127.5 - 1).image_tokens.reshape(-1).numpy()
    same = np.mean(codes == tokenizer.encode(image.numpy().transpose(1, 2, 0)[None])[0])
    assert same > 0.99, f"{same:.0%} of the codes are those of our model"

    def run(name: str, count: int, batch_size: int) -> None:
        images = _torch_images(folder / str(side) / name)
        with (folder / "tokens.bin").open("wb") as file, torch.inference_mode():
            while batch := list(itertools.islice(images, batch_size)):
                pixels = torch.stack([image for image, _ in batch]).float() / 127.5 - 1
                codes = model.encode(pixels).image_tokens.reshape(len(batch), -1).numpy()
                for (_, caption), row in zip(batch, codes, strict=True):
                    ids = [*vocabulary.encode_text(caption), vocabulary.break_, *vocabulary.encode_image(row)]
                    file.write(np.array(ids, "<u2").tobytes())

    return max(
        _seconds(lambda name, count, size=size: run(name, count, size), count)  # type: ignore[misc]
        for size in _TORCH_BATCHES
    )


CONTENDERS = {
    each.__name__: each for each in (decode_ours, decode_torch, decode_torch_lanczos, prepare_ours, prepare_torch)
}


def _torch_images(folder: Path, resize: str = "bilinear") -> Iterator[tuple[Any, str]]:
    import webdataset
    from torchvision.transforms import InterpolationMode, v2

    scaled = v2.Resize(RESOLUTION, InterpolationMode(resize))
    square = v2.Compose([scaled, v2.CenterCrop(RESOLUTION), v2.PILToTensor()])
    tars = sorted(map(str, folder.glob("*.tar")))
    for image, caption in webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt"):
        yield square(image), caption


def _architecture() -> Any:
    from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig

    return VQGANConfig(
        resolution=RESOLUTION, base_channels=32, channel_multipliers=(1, 1, 2, 2, 4), num_res_blocks=1,
        latent_channels=64, embedding_dim=64, codebook_size=1024,
    )  # fmt: skip


def _models(folder: Path) -> tuple[Any, Any]:
    from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan, initial_parameters
    from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
    from cm3leon_jax.vocabulary import Vocabulary

    captions = ["part 123 of a photograph of a temple", "part 4567890 of a photograph of a flower"]
    vocabulary = Vocabulary.train(captions * 4, num_text_tokens=320, num_image_codes=1024, num_masks=4, progress=False)
    return vocabulary, VQGANTokenizer(_architecture(), initial_parameters(abstract_vqgan(_architecture()), 0))


def _chameleon(weights: dict[str, np.ndarray]) -> Any:
    """Transformers' VQGAN with our weights, which have taming-transformers' names."""
    import torch
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    shape = _architecture()
    config = ChameleonVQVAEConfig(
        embed_dim=shape.embedding_dim, num_embeddings=shape.codebook_size, latent_channels=shape.latent_channels,
        resolution=RESOLUTION, in_channels=3, base_channels=shape.base_channels, num_res_blocks=shape.num_res_blocks,
        channel_multiplier=list(shape.channel_multipliers), attn_resolutions=[], attn_type="vanilla",
    )  # fmt: skip
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "embedding.weight"}
    state = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        state[f"{stem}.{kinds[kind]}"] = torch.tensor(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    model = ChameleonVQVAE(config).eval()
    wanted = model.state_dict()
    if missing := sorted(set(wanted) - set(state)):
        raise AssertionError(f"no weights for {missing[:4]}")
    model.load_state_dict({name: state[name] for name in wanted})
    return model


if __name__ == "__main__":
    sys.exit(main())
