# What tests/gpu.sh and bench/gpu.sh share; to be sourced, in the root of the tree. Sets
#   rehearsal  1: no GPU, the backend over the shim (TIMBRE_GPU_REHEARSAL=1), tiny sizes; else 0
#   build      the folder with the programs
# and the environment that they run in.

rehearsal=${TIMBRE_GPU_REHEARSAL:-0}

# Both programs end with 77 where there is no GPU.
require_gpu() {
  [ "$rehearsal" = 0 ] || return 0
  local why
  why=$(python3 - << 'END'
import ctypes
try:
    driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    raise SystemExit(print("no NVIDIA driver on this machine (libcuda.so.1)"))
count = ctypes.c_int()
error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
if error or not count.value:
    print(f"the NVIDIA driver sees no GPU (error {error})")
END
  ) || { echo "$1: needs python3" >&2; exit 2; }
  [ -z "$why" ] || { echo "$1: skipped: $why; TIMBRE_GPU_REHEARSAL=1 tries the scripts without one" >&2; exit 77; }
}

# A digest of everything that programs are built from, so that carried ones are known to be of this tree.
digest_sources() {
  find CMakeLists.txt base cmake kernels models bench tests/unit tests/CMakeLists.txt -type f \
    \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cmake' -o -name CMakeLists.txt \) -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

# Folders of CUDA's libraries that the loader does not know by itself: the toolkit's, or those PyTorch brings.
find_libraries() {
  local library folder
  for library in libcublas.so.13 libcublasLt.so.13 libcudnn.so.9; do
    if ldconfig -p 2> /dev/null | grep -q "$library"; then continue; fi
    for folder in /usr/local/cuda/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
      $(python3 -c 'import glob, sys; print(*[f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib")], sep="\n")'); do
      if [ -e "$folder/$library" ]; then echo "$folder"; break; fi
    done
  done | sort -u | paste -sd :
}

# Configures and builds the part of the tree that computes. usage: build_core FOLDER OPTION...
build_core() {
  local generator=() jobs
  jobs=${TIMBRE_GPU_JOBS:-$(nproc)}
  if command -v ninja > /dev/null; then generator=(-G Ninja); fi
  mkdir -p "$1"
  echo "building in $1"
  { cmake -S . -B "$1" "${generator[@]}" -DTIMBRE_CORE=ON -DTIMBRE_TESTS=ON -DTIMBRE_WERROR=OFF -DTIMBRE_TESTS_ROOT=. \
      "${@:2}" && cmake --build "$1" -j "$jobs"; } > "$1/build.log" 2>&1 ||
    { tail -n 40 "$1/build.log"; echo "the build failed: $1/build.log"; return 1; }
}

runs() { "$1/bench/timbre_core" devices > /dev/null 2>&1; }

# The programs: those of TIMBRE_GPU_BUILD; else those that scripts/gpu_pack.sh made of this very tree, if they run
# here; else they are built.
choose_build() {
  local libraries stamp
  if [ "$rehearsal" = 1 ]; then
    build=${TIMBRE_GPU_BUILD:-build/gpu-rehearsal}
    [ -n "${TIMBRE_GPU_BUILD-}" ] || build_core "$build" -DTIMBRE_CUDA=OFF
    export TIMBRE_CUDA_MODULE=$build/kernels/cuda/host/libtimbre_cuda_host.so
    LD_LIBRARY_PATH=$build/tests/fake_driver/ok:${LD_LIBRARY_PATH-}
    export LD_LIBRARY_PATH
    runs "$build" || { "$build/bench/timbre_core" devices; return 1; }
    return 0
  fi
  libraries=$(find_libraries)
  # PyTorch runs with its own, which these might not fit.
  export TIMBRE_PLAIN_LIBRARY_PATH=${LD_LIBRARY_PATH-}
  [ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  build=${TIMBRE_GPU_BUILD:-build/gpu}
  stamp=$(cat "$build/sources" 2> /dev/null || true)
  if [ -n "${TIMBRE_GPU_BUILD-}" ] || { [ "$stamp" = "$(digest_sources)" ] && runs "$build"; }; then
    return 0
  fi
  [ -z "$stamp" ] || echo "$build is of another tree or does not run here: $("$build/bench/timbre_core" devices 2>&1 | head -c 300)"
  build=build/gpu-here
  build_core "$build" -DTIMBRE_CUDA=ON "-DTIMBRE_CUDA_ARCHITECTURES=$(find_architecture)-real" || return 1
  runs "$build" || { "$build/bench/timbre_core" devices; return 1; }
}

find_architecture() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ')
  echo "${capability:-90}"
}
