#!/usr/bin/env bash
# Calls the server with the clients of other gRPC stacks (tests/interop): directly, over TLS, and through nginx and
# haproxy. All must get the score bits that `timbre predict` prints. Ends with a table; exits non-zero on any difference.
# Needs root, or all packages installed; takes a few minutes and is no part of scripts/test.sh.
#
# usage: tests/interop.sh [STACK...]     (all by default: go java cpp ruby grpcio grpclib triton)
#        TIMBRE_BIN   the program; default build/release/cli/timbre
#        KEEP=1       leaves the folder with logs and built clients
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
stacks=(go java cpp ruby grpcio grpclib triton)
if [ $# -gt 0 ]; then stacks=("$@"); fi
ways=(direct tls nginx haproxy)
program=$(realpath "${TIMBRE_BIN:-build/release/cli/timbre}")
python=$PWD/.venv/bin/python
interop=$PWD/tests/interop
model=$PWD/tests/golden/base
token=token-of-the-interop-test
client_seconds=120

work=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
  if [ -n "${KEEP-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT

# ---- what it needs ---------------------------------------------------------------------------------------------------

declare -A packages=(
  [go]="golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-3-dev protoc-gen-go-1-3"
  [java]="default-jdk-headless libgrpc-java libnetty-java libnetty-tcnative-java libnetty-tcnative-jni
          libguava-java libperfmark-java libprotobuf-java libgeronimo-annotation-1.3-spec-java
          protobuf-compiler-grpc-java-plugin"
  [cpp]="g++ libgrpc++-dev protobuf-compiler-grpc"
  [ruby]="ruby ruby-grpc protobuf-compiler-grpc"
)
missing=()
for p in nginx-light haproxy openssl protobuf-compiler grpc-proto \
  $(for s in "${stacks[@]}"; do echo "${packages[$s]-}"; done); do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2> /dev/null)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "interop: installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > "$work/apt.log"
fi
[ -x "$program" ] || { echo "interop: no program $program: build it, or set TIMBRE_BIN" >&2; exit 3; }
[ -x "$python" ] || { echo "interop: no .venv: run scripts/setup.sh --tests" >&2; exit 3; }

protos=(timbre/v1/timbre.proto inference/grpc_service.proto)
health=grpc/health/v1/health.proto
search=(-I "$PWD/proto" -I /usr/share/grpc-proto)

# ---- building: build_<stack> leaves something in $work/<stack>; run_<stack> ADDRESS CA TOKEN CLIP... runs it ----------

build_go() {
  mkdir -p "$work/go/src/interop"
  protoc "${search[@]}" --go_out=plugins=grpc:"$work/go/src" "${protos[0]}"
  protoc "${search[@]}" --go_out=plugins=grpc:"$work/go/src" "${protos[1]}"
  cp "$interop/go/main.go" "$work/go/src/interop/"
  (cd "$work/go/src/interop" &&
    GO111MODULE=off GOFLAGS= GOCACHE=$work/go/cache GOPATH=$work/go:/usr/share/gocode go build -o "$work/go/client" .)
}
run_go() { "$work/go/client" "$@"; }

jars=$(printf ':/usr/share/java/%s.jar' grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite \
  grpc-stub protobuf guava perfmark-api netty-all netty-buffer netty-codec netty-codec-http netty-codec-http2 \
  netty-codec-socks netty-common netty-handler netty-handler-proxy netty-resolver netty-transport netty-tcnative \
  geronimo-annotation-1.3-spec)
build_java() {
  mkdir -p "$work/java/src" "$work/java/classes" "$work/java/lib"
  # Netty wants another name than the one Debian gives, and sees through links.
  cp "$(dpkg -L libnetty-tcnative-jni | grep '/libnetty-tcnative\.so$')" "$work/java/lib/libnetty_tcnative.so"
  protoc "${search[@]}" --java_out="$work/java/src" --grpc-java_out="$work/java/src" \
    --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin "${protos[@]}" "$health"
  find "$work/java/src" -name '*.java' > "$work/java/files"
  javac -nowarn -d "$work/java/classes" -cp "$jars" @"$work/java/files" "$interop/java/Client.java"
}
run_java() { java -Djava.library.path="$work/java/lib" -cp "$work/java/classes$jars" Client "$@"; }

build_cpp() {
  mkdir -p "$work/cpp"
  protoc "${search[@]}" --cpp_out="$work/cpp" --grpc_out="$work/cpp" \
    --plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin "${protos[@]}" "$health"
  # shellcheck disable=SC2046
  g++ -std=c++17 -O1 -I "$work/cpp" -o "$work/cpp/client" "$interop/cpp/main.cc" $(find "$work/cpp" -name '*.cc') \
    $(pkg-config --cflags --libs grpc++ protobuf)
}
run_cpp() { "$work/cpp/client" "$@"; }

build_ruby() {
  mkdir -p "$work/ruby"
  protoc "${search[@]}" --ruby_out="$work/ruby" --grpc_out="$work/ruby" \
    --plugin=protoc-gen-grpc=/usr/bin/grpc_ruby_plugin "${protos[@]}" "$health"
}
run_ruby() { ruby -I "$work/ruby" "$interop/ruby/client.rb" "$@"; }

build_grpcio() {
  mkdir -p "$work/python"
  "$python" -m grpc_tools.protoc "${search[@]}" --python_out="$work/python" --grpc_python_out="$work/python" "${protos[@]}"
}
run_grpcio() { PYTHONPATH=$work/python "$python" "$interop/python/client_grpcio.py" "$@"; }
build_grpclib() { build_grpcio; }
run_grpclib() { PYTHONPATH=$work/python "$python" "$interop/python/client_grpclib.py" "$@"; }
build_triton() { :; }
run_triton() { "$python" "$interop/python/client_triton.py" "$@"; }

for stack in "${stacks[@]}"; do
  [ "$(type -t "run_$stack")" = function ] || { echo "interop: no stack called $stack" >&2; exit 2; }
  printf 'building %s\n' "$stack"
  "build_$stack" > "$work/build-$stack.log" 2>&1 || { cat "$work/build-$stack.log"; exit 1; }
done

# ---- clips, and what they must give ----------------------------------------------------------------------------------

PYTHONPATH=tests/e2e "$python" - "$work" <<'PYTHON'
import sys
from pathlib import Path

from certificates import make_authority, make_certificate
from timbre_program import to_pcm16, voice, wav_bytes

work = Path(sys.argv[1])
for i, seconds in enumerate((0.3, 0.9, 2.0, 3.7, 6.5, 10.0)):
    samples = voice(i, seconds)
    (work / f"clip{i}.wav").write_bytes(wav_bytes(samples if i % 2 else to_pcm16(samples)))
make_certificate(work, "server", make_authority(work, "ca"))
PYTHON
clips=("$work"/clip*.wav)

"$program" predict --json --model "$model" "${clips[@]}" | "$python" -c '
import json, struct, sys
lines = [json.loads(line) for line in sys.stdin]
for kind in ("predict", "infer"):
    for a in lines:
        print(kind, a["file"].rsplit("/", 1)[1], struct.pack("<%df" % len(a["scores"]), *a["scores"]).hex())
print("unknown NOT_FOUND\nstreaming UNIMPLEMENTED\nwatch SERVING")' > "$work/expected"
grep '^infer' "$work/expected" > "$work/expected-triton"
expected_of() { if [ "$1" = triton ]; then echo "$work/expected-triton"; else echo "$work/expected"; fi; }

# ---- servers and proxies ---------------------------------------------------------------------------------------------

printf 'tester %s\n' "$(printf %s "$token" | sha256sum | cut -d' ' -f1)" > "$work/tokens"

# serve NAME FLAG...: starts a server and puts its address into $address.
serve() {
  local name=$1
  "$program" serve --model "tiny=$model" --grpc-address 127.0.0.1:0 --http-address '' --token-file "$work/tokens" \
    "${@:2}" > "$work/$name.out" 2> "$work/$name.log" &
  pids+=($!)
  for _ in $(seq 300); do
    if grep -q '^ready ' "$work/$name.out"; then break; fi
    sleep 0.1
  done
  address=$(sed -n 's/^ready grpc=\([^ ]*\).*/\1/p' "$work/$name.out")
  [ -n "$address" ] || { cat "$work/$name.log"; exit 1; }
}

# proxy NAME CONFIG COMMAND...: starts one on a free port in front of $direct and puts its address into $address.
proxy() {
  local name=$1 config=$2 port
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  sed -e "s|@WORK@|$work|g; s|@PORT@|$port|g; s|@SERVER@|$direct|g" "$interop/$config" > "$work/$config"
  "${@:3}" > "$work/$name.log" 2>&1 &
  pids+=($!)
  address=127.0.0.1:$port
  for _ in $(seq 100); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then return; fi
    sleep 0.1
  done
  cat "$work/$name.log"
  exit 1
}

serve plain
direct=$address
declare -A address_of=([direct]=$direct)
serve tls --tls-cert "$work/server.pem" --tls-key "$work/server.key"
address_of[tls]=$address
proxy nginx nginx.conf nginx -c "$work/nginx.conf" -e stderr
address_of[nginx]=$address
proxy haproxy haproxy.cfg haproxy -f "$work/haproxy.cfg"
address_of[haproxy]=$address

# ---- every stack in every way ----------------------------------------------------------------------------------------

export -f run_go run_java run_cpp run_ruby run_grpcio run_grpclib run_triton
export work interop python jars
declare -A result
failed=0
for stack in "${stacks[@]}"; do
  for way in "${ways[@]}"; do
    ca=-
    if [ "$way" = tls ]; then ca=$work/ca.pem; fi
    said=$work/said-$stack-$way
    if ! timeout "$client_seconds" bash -c '"run_$0" "$@"' "$stack" "${address_of[$way]}" "$ca" "$token" "${clips[@]}" \
      > "$said" 2> "$said.err"; then
      result[$stack $way]=FAILED
    elif cmp -s "$(expected_of "$stack")" "$said"; then
      result[$stack $way]=same
      continue
    else
      result[$stack $way]=DIFFERENT
    fi
    failed=1
    printf '\n==== %s, %s: %s\n' "$stack" "$way" "${result[$stack $way]}"
    diff "$(expected_of "$stack")" "$said" | head -n 20 || true
    tail -n 20 "$said.err"
  done
done

printf '\n%-10s' stack
printf '%-12s' "${ways[@]}"
for stack in "${stacks[@]}"; do
  printf '\n%-10s' "$stack"
  for way in "${ways[@]}"; do printf '%-12s' "${result[$stack $way]}"; done
done
printf '\n\n%s calls of Predict and ModelStreamInfer a client, %s\n' "${#clips[@]}" \
  "$([ $failed = 0 ] && echo 'all bits the same as timbre predict' || echo FAILED)"
exit $failed
