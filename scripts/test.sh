#!/usr/bin/env bash
# Runs every check: layers, format, builds by gcc and clang without warnings, the CUDA module, unit tests, the program
# against its contract and the goldens, sanitizers, fuzzing, clang-tidy. Ends with a table; exits non-zero if anything
# failed. On a machine with a GPU, tests/gpu.sh is for the rest.
#
# usage: scripts/test.sh [STEP...]     (all by default; the steps are the names in the table)
#        FUZZ_SECONDS=12 time for each fuzz target
set -euo pipefail
cd "$(dirname "$0")/.."

all=(layers format build-gcc unit-gcc build-cuda e2e build-core build-clang build-fuzz build-asan unit-asan e2e-asan
     build-tsan unit-tsan e2e-tsan tidy unit-clang fuzz)
# What only computes is done beside end-to-end tests, which wait for much of their time.
beside_of() {
  case $1 in
    e2e) echo build-core build-clang build-fuzz ;;
    e2e-asan) echo build-tsan ;;
  esac
}
case "${1-}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; printf 'steps: %s\n' "${all[*]}"; exit 0 ;; esac

fuzz_seconds=${FUZZ_SECONDS:-12}
jobs=$(nproc)
logs=build/logs
mkdir -p "$logs"
# The tests of a file share servers, so a file is one process's; they wait more than they compute.
pytest=(.venv/bin/python -m pytest -q -rs -p no:cacheprovider -n 2 --dist loadfile)
# Thread sanitizers of this age want the old layout of memory.
plain_layout=()
if setarch -R true 2> /dev/null; then plain_layout=(setarch -R); fi
export ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 # gRPC is not instrumented

sources() { git ls-files -z --cached --others --exclude-standard -- '*.c' '*.h' '*.cu' '*.cuh' '*.cpp'; }
# The CUDA module has a step of its own.
build() { cmake --preset "$1" -DTIMBRE_TESTS=ON -DTIMBRE_CUDA=OFF && cmake --build --preset "$1"; }
unit() { "${plain_layout[@]}" ctest --preset "$1" -j "$jobs" --no-tests=error "${@:2}"; }
e2e() { TIMBRE_BIN=$PWD/build/$1/cli/timbre "${plain_layout[@]}" "${pytest[@]}" "${@:2}"; }

run_fuzz() { # one target for a while; new inputs stay in the build folder
  local target=$1 name=${1##*/fuzz_}
  mkdir -p "build/fuzz/corpus/$name"
  local seeds=tests/fuzz/corpus/$name
  [ -d "$seeds" ] || seeds=
  "$target" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" $seeds > "$logs/fuzz-$name.log" 2>&1 || {
    echo "fuzz_$name found something:"; tail -n 60 "$logs/fuzz-$name.log"; return 1; }
  grep -E 'stat::(number_of_executed_units|new_units_added)' "$logs/fuzz-$name.log" | sed "s/^/fuzz_$name: /"
}
export -f run_fuzz
export fuzz_seconds logs

step_layers() { /usr/bin/python3 scripts/check_layers.py --self-test; /usr/bin/python3 scripts/check_layers.py; }
step_format() { sources | xargs -0 clang-format --dry-run -Werror; }
# A name that two libraries have: the linker takes one of them without a word.
check_names() {
  local twice
  twice=$(for lib in build/release/{base,audio,models,engine,server,client}/*.a build/release/kernels/*.a; do
    nm --defined-only --extern-only "$lib" 2> /dev/null | awk 'NF == 3 { print $3 }' | sort -u
  done | sort | uniq -d)
  [ -z "$twice" ] || { printf 'defined in more than one library:\n%s\n' "$twice"; return 1; }
}
step_build-gcc() { build release && check_names; }
step_unit-gcc() { unit release; }
step_build-cuda() { # for every GPU, beside the program that build-gcc made
  if ! command -v nvcc && ! [ -x /usr/local/cuda/bin/nvcc ]; then
    echo 'SKIPPED: no CUDA toolkit: not compiled'
    return
  fi
  cmake --preset release -DTIMBRE_CUDA=ON && cmake --build --preset release --target timbre_cuda
}
step_build-core() { # what computes, without what serves; not optimised, as nothing of it is run
  cmake -G Ninja -B build/core -DCMAKE_BUILD_TYPE=Debug -DTIMBRE_CORE=ON -DTIMBRE_CUDA=OFF -DTIMBRE_TESTS=ON && cmake --build build/core
}
step_e2e() { e2e release tests/e2e; }
step_build-asan() { build asan; }
step_unit-asan() { unit asan; }
step_e2e-asan() { e2e asan tests/e2e -m asan; }
step_build-tsan() { build tsan; }
# Those that use threads; and kernels for GPUs, whose threads the shim tells the sanitizer of.
step_unit-tsan() { unit tsan -R '^unit\.(base|kernels|cuda_shim|engine|server|client)\.|^unit\.models\.invariance$' \
  -E '^unit\.engine\.(cutter|cutter_utterances|summary|windows)$'; }
step_e2e-tsan() { e2e tsan tests/e2e -m tsan; }
step_build-clang() { build clang; }
step_unit-clang() { unit clang; }
step_build-fuzz() { build fuzz; }
step_fuzz() {
  find build/fuzz/tests/fuzz -maxdepth 1 -name 'fuzz_*' -type f -perm -u+x -print0 |
    xargs -0 --no-run-if-empty -n 1 -P "$jobs" bash -euo pipefail -c 'run_fuzz "$1"' run_fuzz
}
# Errors are what .clang-tidy says; the rest of what it prints is noise. Each file is read once: of the instruction sets
# that the CPU's files are compiled for, as the one with all precisions.
step_tidy() {
  mkdir -p build/tidy
  /usr/bin/python3 -c '
import json
once = {}
for entry in json.load(open("build/clang/compile_commands.json")):
    if entry["file"] not in once or "CPU_ISA=avx512bf16" in entry["command"]:
        once[entry["file"]] = entry
json.dump(list(once.values()), open("build/tidy/compile_commands.json", "w"))'
  timeout 600 run-clang-tidy -p build/tidy -quiet -j "$jobs" "^$PWD/(base|audio|kernels|models|engine|server|client|cli)/.*\.c\$" 2>&1 |
    sed 's/\x1b\[[0-9;]*m//g' > "$logs/tidy-all.log" && return 0
  grep -E -A 4 '(error|warning):' "$logs/tidy-all.log"
  return 1
}

needs() { # the step that has to have passed before
  case $1 in
    unit-gcc | build-cuda | e2e) echo build-gcc ;;
    unit-asan | e2e-asan) echo build-asan ;;
    unit-tsan | e2e-tsan) echo build-tsan ;;
    unit-clang | tidy) echo build-clang ;;
    fuzz) echo build-fuzz ;;
  esac
}

# What a passed step left out, with the reason: skipped tests of cmocka (once each) and pytest, a whole step.
skips() {
  case $1 in
    unit-*)
      local preset=${1#unit-}
      grep -hE '^\[  SKIPPED \] [a-z]|^SKIPPED:' "build/${preset/gcc/release}/Testing/Temporary/LastTest.log" | sort -u ;;
    e2e* | build-cuda) grep -E '^SKIPPED' "$logs/$1.log" ;;
  esac || true
}

declare -A result seconds
failed=0
run_step() {
  local step=$1 need rc begin=$SECONDS
  need=$(needs "$step")
  if [ -n "$need" ] && [ "${result[$need]-passed}" != passed ]; then
    result[$step]="SKIPPED: $need failed" seconds[$step]=0
    return
  fi
  set +e # in a condition, -e would be off inside the step too
  (set -euo pipefail; "step_$step") > "$logs/$step.log" 2>&1
  rc=$?
  set -e
  seconds[$step]=$((SECONDS - begin))
  if [ $rc = 0 ]; then
    result[$step]=passed
  else
    result[$step]=FAILED
    failed=1
    printf '\n==== %s failed; the end of %s:\n' "$step" "$logs/$step.log"
    tail -n 60 "$logs/$step.log"
  fi
}

./scripts/setup.sh --tests
steps=("${all[@]}")
if [ $# -gt 0 ]; then steps=("$@"); fi
for step in "${steps[@]}"; do
  [ "$(type -t "step_$step")" = function ] || { echo "test: no step called $step" >&2; exit 2; }
done
# Runs steps one after another in the background, with what processors have left; finish_beside takes the results.
beside=()
beside_id=
begin_beside() { # $1: the step that they are beside
  local step
  beside=()
  for step in $(beside_of "$1"); do
    case " ${steps[*]} " in *" $step "*) beside+=("$step") ;; esac
  done
  [ ${#beside[@]} -gt 0 ] || return 0
  (
    chrt --idle --pid 0 "$BASHPID" || true
    for step in "${beside[@]}"; do
      run_step "$step"
      printf '%s %s\n' "${seconds[$step]}" "${result[$step]}" > "$logs/$step.result"
    done
  ) > "$logs/beside.log" 2>&1 &
  beside_id=$!
}
finish_beside() {
  local step
  wait "$beside_id"
  cat "$logs/beside.log"
  for step in "${beside[@]}"; do
    read -r "seconds[$step]" "result[$step]" < "$logs/$step.result"
    [ "${result[$step]}" != FAILED ] || failed=1
  done
  beside_id=
}

for step in "${steps[@]}"; do
  if [ -n "$beside_id" ]; then
    case " ${beside[*]} " in *" $step "*) finish_beside ;; esac
  fi
  if [ -z "$beside_id" ]; then begin_beside "$step"; fi
  printf '%-12s ' "$step"
  [ -n "${result[$step]-}" ] || run_step "$step"
  printf '%s, %s s\n' "${result[$step]}" "${seconds[$step]}"
done

printf '\n%-12s %8s  %s\n' step seconds result
for step in "${steps[@]}"; do
  left_out=
  if [ "${result[$step]}" = passed ]; then left_out=$(skips "$step"); fi
  count=$(printf '%s' "$left_out" | grep -c '' || true)
  printf '%-12s %8s  %s%s\n' "$step" "${seconds[$step]}" "${result[$step]}" \
    "$([ "$count" = 0 ] || echo ", but $count lines of what was SKIPPED:")"
  [ -z "$left_out" ] || printf '%s\n' "$left_out" | head -n 20 | sed 's/^/                         /'
done
printf '\n%s in %d s\n' "$([ $failed = 0 ] && echo 'all passed' || echo FAILED)" "$SECONDS"
exit $failed
