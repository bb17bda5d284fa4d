#!/usr/bin/env bash
# Runs a command on every worker of a TPU VM, and on all of them again when that is worth it:
#
#   TPU=NAME ZONE=us-east5-a launch/tpu_vm.sh train --config=configs/cm3leon_7b.py:v5p-1024 --workdir=/mnt/shared/run
#
# The TPU exists already, its workers share the folder of --workdir (or it is gs://), and this machine stays up. Worker 0 writes here, the
# others into LOGS. Signals, restarts and exit codes are those of local.sh, which does the watching.
set -uo pipefail

TPU=${TPU:-}       # its name; the slices of one queued resource: "NAME-0 NAME-1"
ZONE=${ZONE:-}     # where it is
SOURCE=${SOURCE:-} # gs://BUCKET/FILE.tar.gz, as git archive makes it; otherwise REF of this checkout is copied
REF=${REF:-HEAD}
INSTALL=${INSTALL:-yes}       # no: the workers have it from an earlier run
PYTHON=${PYTHON:-python3.11}  # of the workers
export GRACE=${GRACE:-120}    # seconds that the others have to end by themselves once one has ended badly
export RESTARTS=${RESTARTS:-} # as in local.sh
export LOGS=${LOGS:-logs}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'tpu_vm.sh: %s\n' "$*" >&2; }
mistake() { say "$*" && exit 2; }
gcloud_tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE" --quiet </dev/null; }

# Ends what runs on this worker, if anything does; a process id may have become another program's.
# shellcheck disable=SC2016 # The worker's shell is to expand it.
end_remote='if pid=$(cat ~/.cm3leon/pid 2>/dev/null) && grep -qs cm3leon "/proc/$pid/cmdline"; then'
end_remote+=" kill -TERM \$pid; for ((i = 0; i < 5 * $GRACE; i++)); do kill -0 \$pid 2>/dev/null || break; sleep 0.2; done"
# shellcheck disable=SC2016
end_remote+='; kill -KILL -- -$pid 2>/dev/null; fi; true'

# This script is what local.sh starts for each worker, too.
if [[ -n ${ON_WORKERS:-} ]]; then
  read -ra workers <<<"$ON_WORKERS"
  tpu=${workers[JAX_PROCESS_ID]%:*} worker=${workers[JAX_PROCESS_ID]##*:}
  on_worker() { gcloud_tpu ssh "$tpu" --worker="$worker" --command="$1"; }
  # gcloud says again what it had said when a connection broke: this worker alone must not start again.
  token=$$-$RANDOM-$RANDOM
  on_worker "mkdir -p ~/.cm3leon && cd ~/cm3leon || exit 2
    [[ \$(cat ~/.cm3leon/token 2>/dev/null) != $token ]] || exit 75
    $end_remote
    rm -f ~/.cm3leon/code; echo $token > ~/.cm3leon/token
    set -m; PYTHONUNBUFFERED=1 .venv/bin/cm3leon $(printf '%q ' "$@") & echo \$! > ~/.cm3leon/pid; set +m
    wait \$!; code=\$?; echo \$code > ~/.cm3leon/code; exit \$code" &
  ssh=$!
  stopping=
  trap 'stopping=yes; on_worker "kill -TERM \$(cat ~/.cm3leon/pid)" >/dev/null 2>&1 &' TERM
  while
    wait "$ssh"
    code=$?
    [[ -n $stopping ]] && kill -0 "$ssh" 2>/dev/null
  do :; done
  # What gcloud ends with when it cannot reach a worker is not the exit code of the command.
  if [[ $code != 0 && $code != 2 && $code != 75 ]]; then
    code=$(on_worker "[[ \$(cat ~/.cm3leon/token) == $token ]] && cat ~/.cm3leon/code" 2>/dev/null)
    [[ $code =~ ^[0-9]+$ ]] || code=75
  fi
  exit "$code"
fi

[[ -n $TPU && -n $ZONE ]] || mistake "no TPU or no ZONE: TPU=NAME ZONE=us-east5-a launch/tpu_vm.sh train ..."
(($#)) || mistake "no command: give what cm3leon takes, as in launch/tpu_vm.sh train --config=examples/digits/demo.py"
read -ra tpus <<<"$TPU"
for tpu in "${tpus[@]}"; do
  count=$(gcloud_tpu describe "$tpu" --format='value(networkEndpoints.len())')
  [[ $count =~ ^[1-9][0-9]*$ ]] || mistake "no TPU VM $tpu in $ZONE: create it first, and see that gcloud is logged in"
  for ((worker = 0; worker < count; worker++)); do workers+=("$tpu:$worker"); done
done

if [[ $INSTALL == yes ]]; then
  archive=$(mktemp)
  [[ -n $SOURCE ]] || git -C "$here/.." archive --format=tar.gz --output="$archive" "$REF" || mistake "no $REF in this checkout"
  for tpu in "${tpus[@]}"; do
    say "installing ${SOURCE:-$REF} on every worker of $tpu"
    if [[ -z $SOURCE ]]; then
      gcloud_tpu scp "$archive" "$tpu:cm3leon.tar.gz" --worker=all || mistake "cannot copy to $tpu, see above"
    fi
    gcloud_tpu ssh "$tpu" --worker=all --command="set -e; $end_remote
      [[ -z '$SOURCE' ]] || gcloud storage cp '$SOURCE' cm3leon.tar.gz
      mkdir -p cm3leon && tar -xzf cm3leon.tar.gz -C cm3leon && cd cm3leon
      [[ -x .venv/bin/python ]] || $PYTHON -m venv .venv ||
        { sudo apt-get update && sudo apt-get install -y $PYTHON-venv && $PYTHON -m venv .venv; }
      .venv/bin/python -m pip install --quiet -e '.[tpu,data]'" || mistake "cannot install on $tpu, see above"
  done
  rm -f "$archive"
fi

export TPU ZONE ON_WORKERS="${workers[*]}"
PROCESSES=${#workers[@]} RESTARTS=${RESTARTS:-20} CM3LEON=$here/tpu_vm.sh "$here/local.sh" "$@" &
local=$!
trap 'kill -TERM $local' TERM INT HUP
while
  wait "$local"
  code=$?
  kill -0 "$local" 2>/dev/null
do :; done
# A process that local.sh gave up may still run where only ssh was killed.
for tpu in "${tpus[@]}"; do gcloud_tpu ssh "$tpu" --worker=all --command="$end_remote" >/dev/null 2>&1; done
exit "$code"
