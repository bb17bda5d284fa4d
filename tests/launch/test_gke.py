"""What launch/render_gke.py makes of its templates is what Kubernetes and JobSet take, and numbers its processes."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
# What GKE's regular channel offered when the templates were written.
KUBERNETES = "1.33"
WHERE = ("NAME=run", "IMAGE=image", "CLAIM=claim")
JOBSETS = {
    "one slice": (),
    "four slices": ("ACCELERATOR=tpu-v6e-slice", "TOPOLOGY=4x4", "SLICES=4"),
    "GPUs": ("ACCELERATOR=nvidia-h100-80gb", "DEVICES=8", "HOSTS=3"),
    "groups of nodes with GPUs": ("ACCELERATOR=nvidia-h100-80gb", "DEVICES=8", "HOSTS=3", "SLICES=2"),
}
JOBS = {
    "CPUs": ("HOSTS=2",),
    "GPUs": ("ACCELERATOR=nvidia-l4", "DEVICES=1", "HOSTS=2"),
    "a slice": ("ACCELERATOR=tpu-v5-lite-podslice", "TOPOLOGY=4x4", "DEVICES=4"),
}


def render(template: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, LAUNCH / "render_gke.py", LAUNCH / template, *arguments], capture_output=True, text=True
    )


def rendered(template: str, *pairs: str, command=("train", "--config=examples/digits/demo.py")) -> list[dict]:
    printed = render(template, *WHERE, *pairs, "--", *command)
    assert printed.returncode == 0, printed.stderr
    return list(yaml.safe_load_all(printed.stdout))


def closed(schema):
    """The schema with no other fields than it names: the API server drops them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(part) for name, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def jobset_schema() -> jsonschema.Draft202012Validator:
    definition = yaml.safe_load((Path(__file__).parent / "jobset" / "crd.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    assert version["name"] == "v1alpha2"
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


@pytest.mark.parametrize("pairs", JOBSETS.values(), ids=JOBSETS)
def test_a_jobset_is_one_by_its_published_schema(jobset_schema, pairs):
    (jobset,) = rendered("gke_jobset.yaml", *pairs)
    jobset_schema.validate(jobset)
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **workers["template"]}
    assert kubernetes_validate.validate(job, KUBERNETES, strict=True) == KUBERNETES


def test_the_schema_of_jobset_finds_mistakes(jobset_schema):
    (jobset,) = rendered("gke_jobset.yaml")
    for path, value, message in (
        (("failurePolicy", "maxRestart"), 3, "'maxRestart' was unexpected"),
        (("failurePolicy", "maxRestarts"), "3", "'3' is not of type 'integer'"),
        (("failurePolicy", "restartStrategy"), "Blocking", "'Blocking' is not one of"),
        (("replicatedJobs", 0, "template", "spec", "backofLimit"), 0, "'backofLimit' was unexpected"),
    ):
        wrong = copy.deepcopy(jobset)
        place = wrong["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError, match=message):
            jobset_schema.validate(wrong)


@pytest.mark.parametrize("pairs", JOBS.values(), ids=JOBS)
def test_a_job_is_one_of_kubernetes(pairs):
    service, job = rendered("gke_job.yaml", *pairs)
    for document in (service, job):
        assert kubernetes_validate.validate(document, KUBERNETES, strict=True) == KUBERNETES
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_the_schema_of_kubernetes_finds_mistakes():
    _, job = rendered("gke_job.yaml", *JOBS["CPUs"])
    for name, value in (("backofLimit", 0), ("completions", "two")):
        with pytest.raises(kubernetes_validate.ValidationError, match=name if name == "backofLimit" else value):
            kubernetes_validate.validate(job | {"spec": job["spec"] | {name: value}}, KUBERNETES, strict=True)


@pytest.mark.parametrize("template", ["gke_jobset.yaml", "gke_job.yaml"])
@pytest.mark.parametrize("claim", ["", "claim"])
def test_a_volume_is_mounted_where_there_is_one_and_copies_of_buckets_have_a_folder(template, claim):
    command = ("train", "--workdir=gs://bucket/data/run", "--config=/database.py")
    *_, found = rendered(template, *JOBS["a slice"], f"CLAIM={claim}", "ACCOUNT=reader", command=command)
    job = found["spec"]
    if template == "gke_jobset.yaml":
        (workers,) = job["replicatedJobs"]
        job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]} == {
        "/copies": {"name": "copies", "emptyDir": {}},
        **({"/data": {"name": "data", "persistentVolumeClaim": {"claimName": claim}}} if claim else {}),
    }
    assert {"name": "CM3LEON_CACHE", "value": "/copies"} in container["env"]
    # The image's user: test_dockerfile.py.
    assert pod["securityContext"]["fsGroup"] == 1000
    assert pod["serviceAccountName"] == "reader"


def started_by(pod: dict, folder: Path, **environment: str) -> dict[str, str]:
    """What the container's command gives cm3leon: its arguments, and the variables of JAX."""
    program = folder / "cm3leon"
    program.write_text('#!/usr/bin/env bash\nenv | grep ^JAX_ ; echo "arguments=$(printf "[%s]" "$@")"\n')
    program.chmod(0o755)
    (container,) = pod["spec"]["containers"]
    given = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_"))}
    printed = subprocess.run(
        [*container["command"], *(argument.replace("$$", "$") for argument in container["args"])],
        env={**given, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return dict(line.split("=", 1) for line in printed.splitlines())


@pytest.mark.parametrize("kind", ["GPUs", "groups of nodes with GPUs"])
def test_processes_of_a_jobset_are_numbered_and_the_first_is_where_all_look(kind, tmp_path):
    (jobset,) = rendered("gke_jobset.yaml", *JOBSETS[kind])
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    names, addresses, counts = {}, set(), set()
    for slice_ in range(workers["replicas"]):
        for index in range(job["completions"]):
            found = started_by(job["template"], tmp_path, JOB_INDEX=str(slice_), JOB_COMPLETION_INDEX=str(index))
            # The name that JobSet documents for a pod.
            names[int(found["JAX_PROCESS_ID"])] = f"run-workers-{slice_}-{index}.run"
            addresses.add(found["JAX_COORDINATOR_ADDRESS"])
            counts.add(int(found["JAX_NUM_PROCESSES"]))
    assert sorted(names) == list(range(workers["replicas"] * job["completions"]))
    assert counts == {len(names)}
    assert addresses == {f"{names[0]}:8476"}


def test_processes_of_a_job_are_numbered(tmp_path):
    service, job = rendered("gke_job.yaml", *JOBS["CPUs"])
    for index in range(2):
        assert started_by(job["spec"]["template"], tmp_path, JOB_COMPLETION_INDEX=str(index)) == {
            "JAX_COORDINATOR_ADDRESS": f"run-0.{service['metadata']['name']}:8476",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "arguments": "[train][--config=examples/digits/demo.py]",
        }


@pytest.mark.parametrize("template", ["gke_jobset.yaml", "gke_job.yaml"])
def test_hosts_of_tpus_are_left_to_gke(template, tmp_path):
    *_, found = rendered(template, "ACCELERATOR=tpu-v5p-slice", "TOPOLOGY=2x2x4", "DEVICES=4")
    job = found["spec"]
    if template == "gke_jobset.yaml":
        (workers,) = job["replicatedJobs"]
        job = workers["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    environment = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "JOB_INDEX": "0", "JOB_COMPLETION_INDEX": "1"}
    assert started_by(job["template"], tmp_path, **environment).keys() == {"arguments"}


def test_arguments_come_through_as_they_are(tmp_path):
    command = ("train", "--config=a b.py", '--config.corpus.mixture="$(HOME)"', "$HOME")
    (jobset,) = rendered("gke_jobset.yaml", *JOBSETS["GPUs"], command=command)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    found = started_by(job["template"], tmp_path, JOB_INDEX="0", JOB_COMPLETION_INDEX="0")
    assert found["arguments"] == "".join(f"[{argument}]" for argument in command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("NAME=run", "--", "train"), "no value of IMAGE: add IMAGE=VALUE"),
        (("ACCELERATOR=nvidia-l4", "--", "train"), "no value of IMAGE and HOSTS: add IMAGE=VALUE"),
        (("IMAGE=image", "--", "train", "--workdir=/data/run"), "no CLAIM, and --workdir=/data/run is on its volume"),
        (("IMAGE=image", "--", "train", "--workdir", "/data"), "no CLAIM, and /data is on its volume"),
        ((*WHERE, "ACCELERATOR=nvidia-l4", "--", "train"), "no value of HOSTS"),
        ((*WHERE, "SLICE=2", "--", "train"), "no variable SLICE: there are NAME, IMAGE"),
        ((*WHERE, "SLICES=two", "--", "train"), "SLICES is 'two'"),
        ((*WHERE, "NAME=My_Run", "--", "train"), "NAME is 'My_Run'"),
        ((*WHERE, "TOPOLOGY=4", "--", "train"), "TOPOLOGY is '4'"),
        ((*WHERE, "DEVICES=3", "--", "train"), "TOPOLOGY 8x8x8 has 512 chips"),
        ((*WHERE, "HOSTS=2", "--", "train"), "HOSTS is 2, and TOPOLOGY 8x8x8 has 128 of 4 chips"),
        (WHERE, "no command"),
        ((*WHERE, "train"), "'train': write NAME=value"),
    ],
)
def test_what_it_is_given_wrongly_is_said_in_a_line(arguments, message):
    printed = render("gke_jobset.yaml", *arguments)
    assert (printed.returncode, printed.stdout) == (2, "")
    assert message in printed.stderr and len(printed.stderr.splitlines()) == 1


@pytest.mark.parametrize("template", ["gke_jobset.yaml", "gke_job.yaml"])
def test_the_command_on_top_of_a_template_works_as_printed(template):
    lines = (LAUNCH / template).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if "python launch/render_gke.py" in line)
    printed = "".join(line.lstrip("#").strip().removesuffix("\\") for line in lines[first : first + 2])
    words = shlex.split(printed.partition("|")[0])
    assert words[:2] == ["python", "launch/render_gke.py"]
    *_, found = yaml.safe_load_all(
        subprocess.run([sys.executable, *words[1:]], cwd=LAUNCH.parent, stdout=subprocess.PIPE, check=True).stdout
    )
    assert json.dumps(found).count("--config=configs/cm3leon_7b.py") == 1
