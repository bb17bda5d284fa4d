"""Generates with vLLM what a JSON file asks for; runs under the Python of an environment that has vLLM.

python run_vllm.py FOLDER REQUESTS.json ANSWERS.json [MOST_REQUESTS_AT_ONCE]
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    folder, requests, answers, *most = sys.argv[1:]
    sys.path.insert(0, folder)
    from vllm_guidance import Guidance, PairScheduler

    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=int(most[0]) if most else 8,
        logits_processors=[Guidance],
        scheduler_cls=PairScheduler,
        disable_log_stats=True,
    )
    prompts, params = [], []
    for request in json.loads(Path(requests).read_text()):
        prompts.append({"prompt_token_ids": request.pop("prompt")})
        params.append(SamplingParams(detokenize=False, **request))
    found = engine.generate(prompts, params, use_tqdm=False)
    Path(answers).write_text(json.dumps([list(each.outputs[0].token_ids) for each in found]))


if __name__ == "__main__":
    main()
