#!/usr/bin/env bash
# Measures the CUDA backend on a real GPU, inside ten minutes: peaks of the machine, every operation, the whole forward
# pass, what one way of computing costs beside another, and PyTorch beside it where it is installed. Everything is
# verified before it is timed. Writes bench.json, bench.md (a page for docs/performance.md) and bench.log.
#
# usage: bench/gpu.sh [PART...]       (all by default; bench/gpu/measure.py names them)
#        OUT=build/gpu-report         where to
#        TIMBRE_GPU_SECONDS=570       how long at most; what there is no time for is reported as not run
#        TIMBRE_GPU_BUILD=FOLDER      programs to use; else those of scripts/gpu_pack.sh, or they are built
#        TIMBRE_GPU_REHEARSAL=1       without a GPU, over the shim, at tiny sizes: tests these scripts
#
# Status 0: all measured; 1: something was wrong; 4: some parts could not run; 77: there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
source tests/gpu/common.sh

require_gpu bench/gpu.sh
out=${OUT:-build/gpu-report}
mkdir -p "$out"
deadline=$((SECONDS + ${TIMBRE_GPU_SECONDS:-570}))
choose_build || exit 1
arguments=(--build "$build" --out "$out" --seconds "$((deadline - SECONDS))")
[ "$rehearsal" = 0 ] || arguments+=(--rehearsal)
exec python3 bench/gpu/measure.py "${arguments[@]}" "$@"
