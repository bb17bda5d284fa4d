#!/usr/bin/env bash
# Runs a command as several processes of this machine, and all of them again when that is worth it:
#
#   PROCESSES=2 launch/local.sh train --config=examples/digits/demo_opt.py    # after make demo
#
# Process 0 writes here, the others into LOGS. Ctrl-C or SIGTERM stops all of them as a preemption would: they save and
# end; a second one kills. Ends with 0 done, 2 a mistake in what was asked, 1 a fault, or 75: the same command goes on.
set -uo pipefail

PROCESSES=${PROCESSES:-1} # with accelerators 1: a process uses all of its machine
RESTARTS=${RESTARTS:-20}  # after exit code 75 or death by a signal, never after 1 or 2
BACKOFF=${BACKOFF:-5}     # seconds before the first restart, twice as many before each further one, 300 at most
GRACE=${GRACE:-120}       # seconds that the others have to end by themselves once one has ended badly
LOGS=${LOGS:-logs}        # folder of process_1.log and so on
CM3LEON=${CM3LEON:-}      # the program; otherwise that of .venv here, or the one on PATH

exec {messages}>&2
say() { printf 'local.sh: %s\n' "$*" >&"$messages"; }
mistake() { say "$*" && exit 2; }

for name in PROCESSES RESTARTS BACKOFF GRACE; do
  [[ ${!name} =~ ^[0-9]+$ ]] || mistake "$name is '${!name}': give a whole number"
done
((PROCESSES)) || mistake "PROCESSES is 0: give one or more"
(($#)) || mistake "no command: give what cm3leon takes, as in launch/local.sh train --config=examples/digits/demo.py"
if [[ -z $CM3LEON ]]; then
  CM3LEON=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/cm3leon
  [[ -x $CM3LEON ]] || CM3LEON=cm3leon
fi
command -v "$CM3LEON" >/dev/null || mistake "no program $CM3LEON: run make env, or set CM3LEON to where it is"
mkdir -p "$LOGS" || mistake "cannot make the folder $LOGS: set LOGS to one that can be written"

running=() # process number: its id, which is that of its process group, too
signals=0  # how many times this script was asked to stop

terminate() { ((${#running[@]})) && kill -TERM "${running[@]}" 2>/dev/null; }
kill_groups() {
  local pid
  for pid; do kill -KILL -- "-$pid" 2>/dev/null; done
}

stop() {
  signals=$((signals + 1))
  if ((signals == 1)); then
    say "stopping; once more kills"
    terminate
  else
    kill_groups "${running[@]}"
  fi
}
trap stop TERM INT HUP

# Ends the processes where this script itself was killed: the pipe to the guard closes with them still running.
guard() {
  local pids=() word pid
  trap '' TERM INT HUP
  while read -r word pid; do
    if [[ $word == started ]]; then pids+=("$pid"); else pids=(); fi
  done
  ((${#pids[@]})) || return
  kill -TERM "${pids[@]}"
  SECONDS=0
  while kill -0 "${pids[@]}" && ((SECONDS < GRACE)); do sleep 0.2; done
  kill_groups "${pids[@]}"
}
exec {to_guard}> >(guard >/dev/null 2>&1 {messages}>&-)

# Below the range of ephemeral ports, and another one for each attempt.
free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

process() {
  exec env JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$PROCESSES" JAX_PROCESS_ID="$number" \
    PYTHONUNBUFFERED=1 "$CM3LEON" "$@" </dev/null {to_guard}>&-
}

# Ranks exit codes that are seen at one moment: what ends after a killed process only follows from it.
gravity() { echo $(($1 >= 128 ? 3 : $1 == 75 ? 1 : 2)); }

# Runs all processes once; `verdict` becomes the exit code of the first that ended badly, or 0.
attempt() {
  local port number pid code groups=() since="" limit=$GRACE
  port=$(free_port)
  verdict=0
  for ((number = 0; number < PROCESSES; number++)); do
    # A process group of its own: Ctrl-C reaches only this script, and SIGKILL all that the process has started.
    set -m
    if ((number == 0)); then process "$@" & else process "$@" >>"$LOGS/process_$number.log" 2>&1 & fi
    set +m
    running[number]=$!
    groups+=("$!")
    echo "started $!" >&"$to_guard"
  done
  ((signals)) && terminate
  # Without stderr, on which bash reports killed processes.
  while ((${#running[@]})); do
    sleep 0.2
    for number in "${!running[@]}"; do
      pid=${running[number]}
      kill -0 "$pid" 2>/dev/null && continue
      wait "$pid" 2>/dev/null
      code=$?
      unset "running[number]"
      ((code)) || continue
      if [[ -z $since || ($since == now && $(gravity "$code") -gt $(gravity "$verdict")) ]]; then
        verdict=$code since=now
      fi
      say "process $number ended with $code$( ((number)) && printf ', see %s' "$LOGS/process_$number.log")"
    done
    if [[ $since == now ]]; then
      since=$SECONDS
    elif [[ -n $since ]] && ((SECONDS - since >= limit && ${#running[@]})); then
      say "process ${!running[*]} still runs after $limit s (GRACE): killed"
      kill_groups "${running[@]}"
      limit=$((limit + 60))
    fi
  done 2>/dev/null
  kill_groups "${groups[@]}"
  echo "ended" >&"$to_guard"
}

delay=$BACKOFF
for ((restart = 1; ; restart++)); do
  attempt "$@"
  ((verdict == 75 || verdict >= 128)) || exit "$((verdict > 2 ? 1 : verdict))"
  ((signals)) && exit 75
  if ((restart > RESTARTS)); then
    say "ended with $verdict after $RESTARTS restarts (RESTARTS): the same command goes on"
    exit 75
  fi
  say "restart $restart of $RESTARTS in $delay s"
  for ((SECONDS = 0; SECONDS < delay && !signals; )); do sleep 0.2; done
  ((signals)) && exit 75
  delay=$((delay * 2 > 300 ? 300 : delay * 2))
done
