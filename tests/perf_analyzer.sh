#!/usr/bin/env bash
# Runs perf_analyzer, the load generator of Triton, against the server: unary, over a stream, and at a fixed rate. Every
# request must be answered, and the server's own statistics must agree. perf_analyzer comes with tritonclient; two
# libraries that it needs are fetched (from Debian and PyPI, not installed). Takes a minute and is no part of
# scripts/test.sh.
#
# usage: tests/perf_analyzer.sh
#        TIMBRE_BIN   the program; default build/release/cli/timbre
#        MODEL        a model's folder; default tests/golden/base
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
program=$(realpath "${TIMBRE_BIN:-build/release/cli/timbre}")
model=$(realpath "${MODEL:-tests/golden/base}")
python=$PWD/.venv/bin/python
analyzer=$PWD/.venv/bin/perf_analyzer
fetched=$PWD/build/perf_analyzer
[ -x "$program" ] || { echo "perf_analyzer: no program $program: build it, or set TIMBRE_BIN" >&2; exit 3; }
[ -x "$analyzer" ] || { echo "perf_analyzer: no .venv: run scripts/setup.sh --tests" >&2; exit 3; }

work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then kill "$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

if [ ! -e "$fetched/libb64.so.0d" ] || [ ! -e "$fetched/libcudart.so.12" ]; then
  mkdir -p "$fetched"
  (cd "$work" && apt-get download -qq libb64-0d && dpkg-deb -x libb64-0d_*.deb b64)
  "$python" -m pip download -q --disable-pip-version-check --no-deps -d "$work" nvidia-cuda-runtime-cu12
  "$python" -m zipfile -e "$work"/nvidia_cuda_runtime_cu12-*.whl "$work/cuda"
  find "$work/b64" -name 'libb64.so.0d' -exec cp -L {} "$fetched/" \;
  find "$work/cuda" -name 'libcudart.so.12' -exec cp -L {} "$fetched/" \;
fi
export LD_LIBRARY_PATH=$fetched

# Clips of 0.3 to 3 s, as the raw form of BYTES has them: the length in front.
PYTHONPATH=tests/e2e "$python" - "$work/data.json" << 'END'
import base64, json, struct, sys
from timbre_program import to_pcm16, voice, wav_bytes

files = [wav_bytes(to_pcm16(voice(i, s))) for i, s in enumerate((0.3, 1.0, 2.0, 3.0))]
rows = [{"AUDIO": {"b64": base64.b64encode(struct.pack("<I", len(f)) + f).decode()}} for f in files]
json.dump({"data": rows}, open(sys.argv[1], "w"))
END

env -u LD_LIBRARY_PATH "$program" serve --model "m=$model" --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0 \
  > "$work/ready" 2> "$work/log" &
server=$!
for _ in $(seq 600); do
  if grep -q '^ready' "$work/ready" || ! kill -0 "$server" 2> /dev/null; then break; fi
  sleep 0.1
done
address=$(sed -n 's/^ready grpc=\([^ ]*\).*/\1/p' "$work/ready")
[ -n "$address" ] || { cat "$work/log" >&2; exit 1; }

failed=0
analyze() { # NAME OPTION...; a measurement that varies is none of our concern here
  local name=$1
  shift
  if "$analyzer" -m m -u "$address" -i grpc --input-data "$work/data.json" -p 2000 -s 500 -r 5 "$@" > "$work/$name" 2>&1 &&
    ! grep -q 'had error' "$work/$name"; then
    echo "$name: $(sed -n 's/^ *\(Throughput: .*\|p50 latency: .*\|p99 latency: .*\|Avg request latency: .*\)/\1;/p' "$work/$name" | tr '\n' ' ')"
  else
    echo "$name: FAILED"
    tail -n 20 "$work/$name"
    failed=1
  fi
}
analyze unary-8 --concurrency-range 8 --async
analyze stream-8 --concurrency-range 8 --async --streaming
analyze rate-50 --request-rate-range 50

"$python" - "$address" << 'END' || failed=1
import sys
import tritonclient.grpc as triton

(model,) = triton.InferenceServerClient(sys.argv[1]).get_inference_statistics("m").model_stats
stats = model.inference_stats
print(f"statistics: {stats.success.count} answers, {stats.fail.count} failures, {model.execution_count} batches")
assert stats.success.count == model.inference_count > 100 and stats.fail.count == 0
assert stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns <= stats.success.ns
END
exit $failed
