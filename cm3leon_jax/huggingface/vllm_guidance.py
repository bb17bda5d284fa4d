"""Guidance and modalities for vLLM: a logits processor and a scheduler, which `cm3leon export` puts into every folder.

    PYTHONPATH=FOLDER vllm serve FOLDER --logits-processors vllm_guidance:Guidance \\
      --scheduler-cls vllm_guidance.PairScheduler --max-num-seqs 64

A request may say in `SamplingParams.extra_args` (over HTTP: `vllm_xargs`)

    modality         "image" or "text": no other tokens are sampled; a text also ends with `<eoss>` or `</s>`
    guidance_pair    a name that two requests share: one with the prompt, one with the prompt to guide away from
    guidance_away    the ids of the latter, by which it is known
    guidance_scale   s of (arXiv 2309.02591, equation 1): away + s (prompt - away)

Both requests of a pair get the same scores, and with the same `seed`, or greedily, the same tokens. The scheduler
admits them together; with an even `max_num_seqs`, and `max_num_batched_tokens` no less than their prompts, they stay
side by side. A pair that is set apart nevertheless, as when the cache is full, is an error, never a wrong image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

PAIR, AWAY, SCALE, MODALITY = "guidance_pair", "guidance_away", "guidance_scale", "modality"


@dataclass(frozen=True)
class Row:
    """What a row of the batch asks for; `output` is what it has sampled, which grows."""

    output: list[int]
    modality: str
    pair: str = ""
    is_away: bool = False
    scale: float = 1.0


class Guidance(LogitsProcessor):
    """Masks the scores of other modalities, and gives both requests of a pair the guided scores."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises a ValueError that the client of a request gets."""
        found = sampling_params.extra_args or {}
        if (modality := found.get(MODALITY, "image")) not in ("image", "text"):
            raise ValueError(f"{MODALITY} is {modality!r}: 'image' or 'text'")
        if PAIR not in found:
            if given := [name for name in (AWAY, SCALE) if name in found]:
                raise ValueError(f"{given[0]} without {PAIR}: both requests of a pair give the same name")
            return
        if not isinstance(found.get(SCALE), int | float):
            raise ValueError(f"{PAIR} needs a number as {SCALE}")
        if not (isinstance(found.get(AWAY), list) and found[AWAY]):
            raise ValueError(f"{PAIR} needs {AWAY}: the ids of the prompt to guide away from")
        if sampling_params.temperature > 0 and sampling_params.seed is None:
            raise ValueError(f"{PAIR} needs a seed, the same for both requests, or temperature 0")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        model = vllm_config.model_config
        record = get_hf_file_to_dict("cm3leon.json", model.model, model.revision)
        if not record or "ids" not in record:
            raise ValueError(f"{model.model} has no cm3leon.json that names its ids: write it by `cm3leon export`")
        self._device = device
        self._forbidden = {
            name: self._others(record["ids"][name], model.get_vocab_size()) for name in ("image", "text")
        }
        self._rows: dict[int, Row] = {}

    def _others(self, ranges: list[list[int]], size: int) -> torch.Tensor:
        forbidden = torch.ones(size, dtype=torch.bool)
        for start, stop in ranges:
            forbidden[start:stop] = False
        return forbidden.to(self._device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests as they come, go and move from row to row."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            found = params.extra_args or {}
            self._rows.pop(index, None)
            if PAIR in found or MODALITY in found:
                self._rows[index] = _row(found, prompt or [], output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The scores with which tokens are sampled.

        Raises:
          RuntimeError: if only one request of a pair is in the batch, or they are not at the same token.
        """
        pairs: dict[str, list[int]] = defaultdict(list)
        for index, row in self._rows.items():
            if row.modality:
                logits[index, : self._forbidden[row.modality].shape[0]].masked_fill_(
                    self._forbidden[row.modality], float("-inf")
                )
            if row.pair:
                pairs[row.pair].append(index)
        for name, indices in pairs.items():
            prompt, away = self._halves(name, indices)
            guided = logits[away] + self._rows[prompt].scale * (logits[prompt] - logits[away])
            # What either forbids stays forbidden: minus infinity less minus infinity is no number.
            guided.masked_fill_(~torch.isfinite(guided), float("-inf"))
            logits[prompt] = logits[away] = guided
        return logits

    def _halves(self, name: str, indices: list[int]) -> tuple[int, int]:
        prompts = [index for index in indices if not self._rows[index].is_away]
        aways = [index for index in indices if self._rows[index].is_away]
        if (len(prompts), len(aways)) != (1, 1):
            raise RuntimeError(
                f"guidance pair {name!r}: {len(prompts)} prompts and {len(aways)} to guide away from are in this step: "
                "set the scheduler to vllm_guidance.PairScheduler and max_num_seqs to an even number, and give each "
                "pair a name of its own"
            )
        (prompt,), (away,) = prompts, aways
        if self._rows[prompt].output != self._rows[away].output:
            raise RuntimeError(
                f"guidance pair {name!r}: its requests have sampled different tokens: their prompts did not fit into "
                "one step (raise max_num_batched_tokens), or their sampling differs"
            )
        return prompt, away


def _row(found: dict[str, Any], prompt: list[int], output: list[int]) -> Row:
    modality = found.get(MODALITY, "")
    if PAIR not in found:
        return Row(output, modality)
    return Row(output, modality, str(found[PAIR]), list(prompt) == list(found[AWAY]), float(found[SCALE]))


class PairScheduler(AsyncScheduler):
    """Admits the requests of a guidance pair together, whenever each of them comes, and aborts them together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The first of each pair whose second has not come.
        self._waiting_for_other: dict[str, Request] = {}
        self._other: dict[str, str] = {}

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        name = (params.extra_args or {}).get(PAIR) if params is not None else None
        if name is None:
            super().add_request(request)
        elif (first := self._waiting_for_other.pop(name, None)) is None:
            self._waiting_for_other[name] = request
        else:
            self._other |= {first.request_id: request.request_id, request.request_id: first.request_id}
            super().add_request(first)
            super().add_request(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        if request_ids is not None:
            request_ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            request_ids |= {self._other.pop(each) for each in request_ids.copy() if each in self._other}
        self._waiting_for_other = {
            name: request
            for name, request in self._waiting_for_other.items()
            if request_ids is not None and request.request_id not in request_ids
        }
        return super().finish_requests(request_ids, finished_status)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._other.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)
