#!/usr/bin/env bash
# Packs what a bare machine with a GPU needs to run tests/gpu.sh and bench/gpu.sh, into folders that are carried there
# beside the tree:
#   build/gpu-deps   headers and libraries of cJSON, libcrypto and cmocka, for building from source there
#   build/gpu        the programs, built here for one architecture, where there is a CUDA toolkit
#   build/gpu-clips  with --clips: recordings, as 16 kHz WAV (needs ffmpeg)
#
# usage: scripts/gpu_pack.sh [--architecture 90] [--no-programs] [--clips FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."

architecture=90
programs=1
clips=''
clips_most=64
while [ $# -gt 0 ]; do
  case $1 in
    --architecture) architecture=$2; shift ;;
    --no-programs) programs=0 ;;
    --clips) clips=$2; shift ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done
source tests/gpu/common.sh

header_folder() { # of a header, by the compiler's own search
  local path
  path=$(printf '#include <%s>\n' "$1" | ${CC:-cc} -E -M -x c - | tr -s ' ' '\n' | grep "/$1\$") ||
    { echo "gpu_pack: $1 is missing: scripts/setup.sh --tests" >&2; return 1; }
  path=${path%%$'\n'*}
  echo "${path%/"$1"}"
}
library_file() { # as the loader would find it
  local path
  path=$(ldconfig -p | awk -v name="$1" '$1 == name && /x86-64/ { print $NF; exit }')
  [ -n "$path" ] || { echo "gpu_pack: $1 is missing: scripts/setup.sh --tests" >&2; return 1; }
  readlink -f "$path"
}

pack_deps() {
  local deps=build/gpu-deps header name from
  rm -rf "$deps"
  mkdir -p "$deps/include/cjson" "$deps/include/openssl" "$deps/lib"
  from=$(header_folder cjson/cJSON.h)
  cp "$from/cjson/cJSON.h" "$deps/include/cjson/"
  from=$(header_folder cmocka.h)
  cp "$from"/cmocka*.h "$deps/include/"
  for header in evp.h opensslconf.h; do # Debian keeps two of them apart
    from=$(header_folder "openssl/$header")
    cp "$from"/openssl/*.h "$deps/include/openssl/"
  done
  for name in libcjson.so.1 libcrypto.so.3 libcmocka.so.0; do
    from=$(library_file "$name")
    cp "$from" "$deps/lib/$name"
  done
}

pack_programs() {
  local from=build/gpu-build to=build/gpu stamp
  rm -rf "$to"
  stamp=$(digest_sources)
  # shellcheck disable=SC2016 # the loader's $ORIGIN
  build_core "$from" -DTIMBRE_CUDA=ON "-DTIMBRE_CUDA_ARCHITECTURES=$architecture-real" '-DCMAKE_BUILD_RPATH=$ORIGIN/../lib'
  mkdir -p "$to/bench" "$to/tests" "$to/kernels/cuda" "$to/lib"
  cp "$from"/bench/{timbre_core,bench_gpu_lab,bench_gpu_peak} "$to/bench/"
  cp "$from"/tests/{base,kernels,models}_test_* "$to/tests/"
  cp "$from/kernels/cuda/libtimbre_cuda.so" "$to/kernels/cuda/"
  cp build/gpu-deps/lib/* "$to/lib/"
  [ "$stamp" = "$(digest_sources)" ] || { echo "gpu_pack: the sources changed meanwhile; again" >&2; exit 1; }
  git describe --always --dirty > "$to/commit" 2> /dev/null || true
  echo "$stamp" > "$to/sources"
}

pack_clips() {
  local to=build/gpu-clips file count=0
  rm -rf "$to"
  mkdir -p "$to"
  while IFS= read -r file && [ $count -lt $clips_most ]; do
    ffmpeg -v error -nostdin -i "$file" -ac 1 -ar 16000 -c:a pcm_s16le -bitexact "$to/$(basename "${file%.*}").wav"
    count=$((count + 1))
  done < <(find "$clips" -type f \( -name '*.flac' -o -name '*.wav' \) | LC_ALL=C sort)
}

pack_deps
[ $programs = 0 ] || pack_programs
[ -z "$clips" ] || pack_clips
du -sh build/gpu-deps build/gpu build/gpu-clips 2> /dev/null || true
