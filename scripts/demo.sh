#!/usr/bin/env bash
# Builds Timbre and tells how real recordings are spoken, with the model that comes with it: on the command line, then from
# a server. Debian packages alone.
#
# usage: scripts/demo.sh [FILE...]     (any audio file; without one, a recording for each emotion of EMO-DB, if it is
#                                       in ../shared/data)
set -euo pipefail
case "${1-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac

files=()
for f in "$@"; do files+=("$(realpath -- "$f")"); done
cd "$(dirname "$0")/.."
if [ ${#files[@]} = 0 ]; then
  # The sixth letter of a file's name is the emotion that was acted, in German.
  for letter in W L E A F N T; do
    for f in ../shared/data/emodb/audio/?????"$letter"?.flac; do
      if [ -f "$f" ]; then files+=("$f"); break; fi
    done
  done
fi
if [ ${#files[@]} = 0 ]; then
  echo "demo: no recordings in ../shared/data/emodb/audio; give one of your own: scripts/demo.sh FILE..." >&2
  exit 1
fi

./scripts/setup.sh
echo "demo: building"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { cmake --preset release -DTIMBRE_TESTS=OFF && cmake --build build/release --target timbre; } > "$log" 2>&1; then
  tail -n 40 "$log" >&2
  exit 1
fi
program=build/release/cli/timbre
echo "demo: $program predict ${files[*]}"
"$program" predict "${files[@]}"

echo "demo: $program serve"
"$program" serve --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0 > "$log" 2> "$log.err" &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -f "$log" "$log.err"' EXIT
for _ in $(seq 100); do
  grep -q '^ready' "$log" && break
  sleep 0.1
done
grep '^ready' "$log" || { cat "$log.err" >&2; exit 1; }
address=$(sed -n 's/^ready grpc=\([^ ]*\).*/\1/p' "$log")
echo "demo: $program predict --server $address ${files[0]}"
"$program" predict --server "$address" "${files[0]}"
echo "demo: $program bench --server $address --concurrency 8 --duration 3"
"$program" bench --server "$address" --concurrency 8 --duration 3
kill -TERM "$server"
wait "$server"
