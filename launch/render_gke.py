#!/usr/bin/env python3
"""Fills in a template of this folder for GKE and prints it: render_gke.py TEMPLATE [NAME=value ...] -- COMMAND.

The variables, with what they mean and their defaults, are the comment at the template's top. Needs Python alone.
"""

import json
import math
import re
import sys
from pathlib import Path

_DECLARED = re.compile(r"^#   ([A-Z]+) = ?(\S*)  +\S", re.MULTILINE)


class MistakeError(Exception):
    """A mistake in what was given; says in one line what is wrong, and how to fix it."""


def render(template: str, given: dict[str, str], command: list[str]) -> str:
    """Fills in the variables of a template.

    Args:
      template: the text of a template.
      given: values of the variables that it declares, by name.
      command: the arguments of cm3leon.
    """
    declared = dict(_DECLARED.findall(template))
    if unknown := given.keys() - declared.keys():
        raise MistakeError(f"no variable {', '.join(sorted(unknown))}: there are {', '.join(declared)}")
    values = declared | given
    values |= _derived(values) | _volumes(values["CLAIM"])
    if missing := [name for name in ("IMAGE", "HOSTS") if not values[name]]:
        raise MistakeError(f"no value of {' and '.join(missing)}: add {missing[0]}=VALUE")
    for name in ("DEVICES", "HOSTS", "SLICES", "RESTARTS", "GRACE"):
        if not re.fullmatch("[0-9]+", values.get(name, "1")):
            raise MistakeError(f"{name} is {values[name]!r}: give a whole number")
    # The longest of its pods' names must be a label of DNS.
    if not re.fullmatch("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", values["NAME"]):
        raise MistakeError(f"NAME is {values['NAME']!r}: give up to 40 lower-case letters, digits and dashes")
    if not command:
        raise MistakeError(
            "no command: add what cm3leon takes after a --, as in -- train --config=examples/digits/demo.py"
        )
    if not values["CLAIM"] and (there := [argument for argument in command if re.search("(^|=)/data(/|$)", argument)]):
        raise MistakeError(f"no CLAIM, and {there[0]} is on its volume: add CLAIM=VALUE, or give a path in a bucket")
    values["FAILURES"] = str(2 * int(values["RESTARTS"]) * int(values["HOSTS"]))
    # Kubernetes takes $(NAME) in arguments for a variable of its own.
    values["COMMAND"] = json.dumps([argument.replace("$", "$$") for argument in command])
    body = template[template.index("\napiVersion:") + 1 :]
    return re.sub(r"\$\{([A-Z]+)\}", lambda match: values[match[1]], body)


def _derived(values: dict[str, str]) -> dict[str, str]:
    """The values that follow from the kind of the nodes."""
    accelerator, devices = values["ACCELERATOR"], values["DEVICES"]
    annotations, nodes, limits, ports, hosts = {}, {}, {"cpu": devices}, [], values["HOSTS"]
    if accelerator.startswith("tpu"):
        # A slice is a node pool, and a Job of the set has it for itself.
        annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": values["TOPOLOGY"],
        }
        limits = {"google.com/tpu": devices}
        # Of the TPU runtime, within a slice and between slices.
        ports = [{"containerPort": 8471}, {"containerPort": 8080}]
        hosts = _hosts_of_slice(values["TOPOLOGY"], devices, hosts)
    elif accelerator:
        nodes = {"cloud.google.com/gke-accelerator": accelerator}
        limits = {"nvidia.com/gpu": devices}
    return {
        "ANNOTATIONS": json.dumps(annotations),
        "NODES": json.dumps(nodes),
        "LIMITS": json.dumps(limits),
        "PORTS": json.dumps(ports),
        "HOSTS": hosts,
    }


def _volumes(claim: str) -> dict[str, str]:
    """A folder of each node for copies of what is in buckets and, where there is a claim, its volume."""
    volumes: dict[str, dict] = {"copies": {"emptyDir": {}}}
    if claim:
        volumes["data"] = {"persistentVolumeClaim": {"claimName": claim}}
    return {
        "MOUNTS": json.dumps([{"name": name, "mountPath": f"/{name}"} for name in volumes]),
        "VOLUMES": json.dumps([{"name": name} | volume for name, volume in volumes.items()]),
    }


def _hosts_of_slice(topology: str, devices: str, hosts: str) -> str:
    if not re.fullmatch(r"[0-9]+(x[0-9]+)+", topology):
        raise MistakeError(f"TOPOLOGY is {topology!r}: give that of the node pool, such as 4x4x8")
    chips = math.prod(map(int, topology.split("x")))
    if not devices.isdecimal() or not int(devices) or chips % int(devices):
        raise MistakeError(f"DEVICES is {devices!r} and TOPOLOGY {topology} has {chips} chips: give those of one node")
    found = str(chips // int(devices))
    if hosts and hosts != found:
        raise MistakeError(f"HOSTS is {hosts}, and TOPOLOGY {topology} has {found} of {devices} chips: leave it out")
    return found


def main(arguments: list[str]) -> int:
    """Prints a filled-in template; returns the exit code."""
    try:
        split = arguments.index("--") if "--" in arguments else len(arguments)
        (template, *pairs), command = arguments[:split] or [""], arguments[split + 1 :]
        if not Path(template).is_file():
            raise MistakeError(f"no template {template!r}: give launch/gke_jobset.yaml or launch/gke_job.yaml")
        if wrong := [pair for pair in pairs if "=" not in pair]:
            raise MistakeError(f"{wrong[0]!r}: write NAME=value, and the command after a --")
        print(render(Path(template).read_text(), dict(pair.split("=", 1) for pair in pairs), command), end="")
    except MistakeError as mistake:
        print(f"render_gke.py: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
