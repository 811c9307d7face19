#!/usr/bin/env bash
# Tests the CUDA backend on a real GPU, inside ten minutes: goldens, every operation beside ref, bits in any company,
# faults, memory, compute-sanitizer. Writes tests.json, tests.md and tests.log.
#
# usage: tests/gpu.sh [PART...]       (all by default; tests/gpu/suite.py names them)
#        OUT=build/gpu-report         where to
#        TIMBRE_GPU_SECONDS=570       how long at most; what there is no time for is reported as not run
#        TIMBRE_GPU_BUILD=FOLDER      programs to use; else those of scripts/gpu_pack.sh, or they are built
#        TIMBRE_GPU_REHEARSAL=1       without a GPU, over the shim, at tiny sizes: tests these scripts
#
# Status 0: all passed; 1: something failed; 4: nothing failed, but some parts could not run; 77: there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
source tests/gpu/common.sh

require_gpu tests/gpu.sh
out=${OUT:-build/gpu-report}
mkdir -p "$out"
deadline=$((SECONDS + ${TIMBRE_GPU_SECONDS:-570}))
choose_build || exit 1
arguments=(--build "$build" --out "$out" --seconds "$((deadline - SECONDS))")
[ "$rehearsal" = 0 ] || arguments+=(--rehearsal)
exec python3 tests/gpu/suite.py "${arguments[@]}" "$@"
