#!/usr/bin/env bash
# A cluster of three nodes, made wholly by script: the commands a person would type on three machines.
#
# Run it as any user, without arguments. All three nodes run on this machine, in one temporary directory and on
# free loopback ports; at the end everything is stopped and removed. On real machines each node has its own
# address, and --listen and --advertise can be left out: the agent listens on port 7400 and finds its address.
set -euo pipefail

# -- crnode from PATH, or from the .venv of this checkout (make .venv)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$PATH:$here/.venv/bin"
command -v crnode > /dev/null || { echo "There is no crnode yet. In $here run: make .venv" >&2; exit 1; }

# -- one directory for all, and nothing left behind: agents are stopped by their process ids
work=$(mktemp -d "${TMPDIR:-/tmp}/crnode-three-nodes-XXXXXX")
agents=()
cleanup() {
  trap - EXIT
  for pid in "${agents[@]}"; do kill "$pid" 2> /dev/null || true; done
  for pid in "${agents[@]}"; do wait "$pid" 2> /dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

free_port() {  # a loopback port on which nobody answers
  local port
  while port=$((20000 + RANDOM % 12000)); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || { echo "$port"; return; }
  done
}

start() {  # start NAME ROLE: run the agent of a node and wait until it answers
  crnode --role "$2" --data "$work/$1" >> "$work/$1.log" 2>&1 &
  local pid=$!
  agents+=("$pid")
  for _ in $(seq 100); do
    if crnode node list --data "$work/$1" > /dev/null 2>&1; then return; fi
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.1
  done
  echo "The agent of $1 did not start:" >&2
  cat "$work/$1.log" >&2
  exit 1
}

# -- the first machine makes the cluster and is its master
address=127.0.0.1:$(free_port)
crnode init --name shop1 --cluster shop --listen "$address" --advertise "$address" --data "$work/shop1"
start shop1 master

# -- the others join, each with a token of its own that works once
for name in box2 box3; do
  token=$(crnode invite "$name" --role replica --data "$work/shop1" | grep -o 'crnode1-[^ ]*')
  address=127.0.0.1:$(free_port)
  crnode join "$token" --listen "$address" --advertise "$address" --data "$work/$name"
  start "$name" replica
done

# -- a folder of the master is protected: a mirror on box2, an archive on box3
mkdir -p "$work/files/letters"
for i in 1 2 3 4 5; do echo "Dear customer $i, your order has left our house." > "$work/files/letters/$i.txt"; done
seq 200000 > "$work/files/numbers.txt"
crnode set add shop --source shop1 --path "$work/files" --exclude '*.tmp' \
  --to "box2:$work/mirror" --archive-to "box3:$work/archive" --data "$work/shop1"
crnode sync shop --data "$work/shop1"
diff -r "$work/files" "$work/mirror"
diff -r "$work/files" "$work/archive"
echo "Both copies are equal to the original."

# -- files change and go; sync waits until everything has arrived (nobody needs to call it: copying never stops)
version=$(crnode sync shop --json --data "$work/shop1" | sed -n 's/.*"sequence": \([0-9]*\).*/\1/p')
sleep 1.2  # a state that lasts a second is kept as a version
echo "A new line at the end." >> "$work/files/numbers.txt"
echo "draft" > "$work/files/note.tmp"  # matches --exclude
rm "$work/files/letters/3.txt"
crnode sync shop --data "$work/shop1"
[ ! -e "$work/mirror/letters/3.txt" ] && [ -e "$work/archive/letters/3.txt" ]
echo "The deletion reached the mirror; the archive keeps the letter."
diff -r --exclude '*.tmp' "$work/files" "$work/mirror"
[ ! -e "$work/mirror/note.tmp" ]
crnode status --data "$work/shop1"

# -- the letter comes back from the version before
crnode versions shop letters/3.txt --data "$work/shop1"
crnode restore shop:letters/3.txt --version "$version" --to "$work/back" --data "$work/shop1"
grep -q 'Dear customer 3' "$work/back/3.txt"
echo "The deleted letter was restored from version $version."

# -- what happened, as each node tells it
crnode events --limit 20 --data "$work/shop1"
echo "Done: the three nodes are stopped and their directory is removed."
