"""vLLM serves an exported folder: greedy tokens, guided images, and an error where a pair was set apart."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.api import Model
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.load import load_model
from examples.vllm_client import image_codes
from tests.huggingface.conftest import greedy

PYTHON = os.environ["ENGINES_PYTHON"]
PROMPTS = ("a handwritten seven", "zero, in pencil", "a photo of the number 9", "the digit 3 written by hand")
GUIDANCE = 3.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_", "XLA_"))} | {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@pytest.fixture
def run(make_run):
    # vLLM has no attention on a CPU for smaller heads.
    return make_run(sequence_length=64, num_layers=3, model_dim=128, num_heads=4)


def guided_prompts(run, name: str, prompt: str, **sampling) -> list[dict]:
    """Both requests of a pair."""
    v = run.vocabulary
    length = run.config.image_tokenizer.image_length
    away = [v.end, v.mask(0), v.break_]
    asked = {"modality": "image", "guidance_pair": name, "guidance_away": away, "guidance_scale": GUIDANCE}
    shared = {"max_tokens": length, "min_tokens": length, "extra_args": asked, "temperature": 0.0} | sampling
    given = [v.end, *v.encode_text(prompt), v.break_]
    return [shared | {"prompt": given}, shared | {"prompt": away}]


def complete(folder: Path, requests: list[dict], *most: str) -> list[list[int]]:
    (folder / "requests.json").write_text(json.dumps(requests))
    script = Path(__file__).with_name("run_vllm.py")
    command = [PYTHON, str(script), str(folder), str(folder / "requests.json"), str(folder / "answers.json"), *most]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads((folder / "answers.json").read_text())


def our_codes(run, guidance: float) -> list[list[int]]:
    model = Model(run.config, load_model(run.config, run.workdir))
    results = model.generate([{"prompt": prompt} for prompt in PROMPTS], temperature=0.0, guidance=guidance)
    return [result.candidates[0].image.tolist() for result in results]


def test_greedy_texts_and_guided_images_equal_ours_token_by_token(run):
    folder, v = run.export(), run.vocabulary
    pairs = [request for number, prompt in enumerate(PROMPTS) for request in guided_prompts(run, str(number), prompt)]
    length = pairs[0]["max_tokens"]
    prompt = np.random.default_rng(0).integers(4, v.size, 10).tolist()
    plain = {"prompt": prompt, "max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    seeded = guided_prompts(run, "seeded", PROMPTS[0], temperature=1.0, seed=3)
    text = {"prompt": pairs[0]["prompt"], "max_tokens": 20, "temperature": 1.0, "seed": 1, "ignore_eos": True}
    text["extra_args"] = {"modality": "text"}
    found = complete(folder, [*pairs, *seeded, plain, text], "12")

    codes = [v.decode_image(np.array(each)).tolist() for each in found[: 2 * len(PROMPTS)]]
    assert codes[::2] == codes[1::2] == our_codes(run, GUIDANCE)
    assert codes[::2] != our_codes(run, 1.0)
    assert found[8] == found[9] and len(found[8]) == length and v.ids.is_image(np.array(found[8])).all()
    assert found[8] not in found[:8]
    assert found[10] == greedy(run.model, prompt, 40)
    is_text = v.ids.is_text(np.array(found[11])) | np.isin(found[11], [v.end, v.eoss])
    assert is_text.all() and len(found[11]) == 20


def test_a_pair_that_was_set_apart_is_an_error(run):
    folder = run.export()
    requests = [request for number in range(2) for request in guided_prompts(run, str(number), PROMPTS[number])]
    with pytest.raises(RuntimeError, match="guidance pair '1': 1 prompts and 0 to guide away from are in this step"):
        complete(folder, requests, "3")


REFUSED = [
    ({"modality": "sound"}, "modality is 'sound'"),
    ({"guidance_scale": None}, "needs a number as guidance_scale"),
    ({"guidance_away": []}, "needs guidance_away"),
    ({"guidance_pair": None}, "guidance_away without guidance_pair"),
]


def test_requests_that_make_no_pair_are_refused(run):
    folder = run.export()
    first, _ = guided_prompts(run, "0", PROMPTS[0])
    del first["prompt"]
    changed = [first["extra_args"] | changes for changes, _ in REFUSED]
    requests = [first | {"extra_args": {k: v for k, v in asked.items() if v is not None}} for asked in changed]
    requests += [first | {"temperature": 1.0}, first]
    (folder / "requests.json").write_text(json.dumps(requests))
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from vllm import SamplingParams; "
        "from vllm_guidance import Guidance\n"
        "for request in json.load(open(sys.argv[1] + '/requests.json')):\n"
        "    try: print(Guidance.validate_params(SamplingParams(**request)))\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([PYTHON, "-c", script, folder], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    said = done.stdout.splitlines()[-len(requests) :]
    for line, message in zip(said, (*(message for _, message in REFUSED), "needs a seed", "None"), strict=True):
        assert message in line


def test_the_client_gets_our_image_from_a_server(run):
    folder = run.export()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    url = f"http://localhost:{port}"
    command = [
        # What `vllm serve` runs; vllm-cpu 0.32's own command looks for a package named vllm.
        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)),
        *("--dtype", "float32"),
        *("--enforce-eager", "--max-num-seqs", "8", "--logits-processors", "vllm_guidance:Guidance"),
        *("--scheduler-cls", "vllm_guidance.PairScheduler"),
    ]
    with pytest.raises(UserError, match="is the server running"):
        image_codes(folder, PROMPTS[0], url)
    log = (folder / "server.log").open("w+")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT | {"PYTHONPATH": str(folder)})
    try:
        wait_for(url, server, folder / "server.log")
        found = image_codes(folder, PROMPTS[0], url, guidance=GUIDANCE, temperature=0.0)
        assert found.tolist() == our_codes(run, GUIDANCE)[0]
        sampled = image_codes(folder, PROMPTS[1], url, seed=5)
        assert sampled.tolist() == image_codes(folder, PROMPTS[1], url, seed=5).tolist()
        with pytest.raises(UserError, match="400"):
            image_codes(folder, PROMPTS[0], url, guidance="much")
    finally:
        server.terminate()
        server.wait()
        log.close()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health")
            return
        except urllib.error.URLError:
            time.sleep(1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")
