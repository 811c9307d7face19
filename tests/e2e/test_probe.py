"""Where there is no GPU, or no module for it: --device cuda says in one line why, --device auto computes on the CPU, and
the program pays nothing for what it does not load."""

import os
import subprocess
import sys

import pytest

from gpu_shim import REAL_MODULE, build_tree, driver_environment, fake_module, find_or_skip, shim_environment
from timbre_program import GOLDEN, PROGRAM, is_sanitized, predict, run

MODEL, CLIP = GOLDEN / "base", GOLDEN / "clips" / "n1600.f32"
RAW = ("--raw", "float32", "--rate", "16000")
HAS_DRIVER = any(os.path.exists(f"{folder}/libcuda.so.1") for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"))
START_MS_MAX, START_BYTES_MAX = 50, 20 << 20


def with_driver(name, module=None):
    """Environment with the fake driver `name` (None: without any) and the module at a path."""
    env = driver_environment(PROGRAM, name) if name else {}
    if name is None and HAS_DRIVER:
        pytest.skip("this machine has an NVIDIA driver")
    return {**env, "TIMBRE_CUDA_MODULE": str(module or find_or_skip(PROGRAM, "kernels/cuda/host/libtimbre_cuda_host.so"))}


def check_without_gpu(env, *words):
    """cuda is refused in one line that has each of `words`; auto is the CPU."""
    refused = run("predict", "--json", "--model", MODEL, "--device", "cuda", *RAW, "--", CLIP, env=env)
    assert refused.status == 3 and not refused.out
    lines = refused.err.splitlines()
    assert len(lines) == 1 and "device cuda" in lines[0], refused.err
    for word in words:
        assert word in lines[0], lines[0]
    answer = predict(MODEL, [CLIP], "--device", "auto", *RAW, env=env)[0]
    assert answer["status"] == "ok" and answer["receipt"]["device"].startswith("cpu-")


@pytest.mark.asan
@pytest.mark.parametrize("driver, words", [
    (None, ["no NVIDIA driver", "libcuda.so.1"]), ("none", ["sees no GPU"]), ("stub", ["stub"]), ("broken", ["803"])])
def test_drivers(driver, words):
    check_without_gpu(with_driver(driver), *words)


@pytest.mark.asan
def test_driver_without_gpus():
    check_without_gpu({**with_driver("ok"), "TIMBRE_SHIM_GPUS": "0"}, "sees no GPU")


@pytest.mark.asan
def test_modules(tmp_path):
    """Nowhere; not a library; of another version; not ours at all."""
    broken = tmp_path / "libtimbre_cuda.so"
    broken.write_bytes(b"this is no library")
    check_without_gpu(with_driver("ok", tmp_path / "nowhere.so"), "module", "nowhere.so")
    check_without_gpu(with_driver("ok", broken), "module", str(broken))
    check_without_gpu(with_driver("ok", fake_module(PROGRAM, "fake_module_abi")), "module", "version 1")
    check_without_gpu(with_driver("ok", fake_module(PROGRAM, "fake_module_other")), "module", "timbre_kernels_cuda")


def test_build_without_module():
    """Nothing beside the program and nothing told."""
    if (build_tree(PROGRAM) / REAL_MODULE).exists():
        pytest.skip("this build has the CUDA module")
    check_without_gpu(driver_environment(PROGRAM, "ok") | {"TIMBRE_CUDA_MODULE": ""}, "module")


def needed_libraries(path):
    """{soname: where the loader finds it, or None}"""
    lines = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout.splitlines()
    return {line.split()[0]: None if "not found" in line else line.split()[2] for line in lines if "=>" in line}


def test_real_module_without_a_gpu(tmp_path):
    """The module itself, with a driver that is a fake: CUDA's runtime says so, and nothing crashes."""
    module = find_or_skip(PROGRAM, *REAL_MODULE.split("/"))
    if None in needed_libraries(module).values():
        check_without_gpu(with_driver("ok", module), "libcublas")
        pytest.skip("no cuBLAS here: the module does not load, and said so")
    check_without_gpu(with_driver("ok", module), "cudaError")


def test_real_module_without_its_libraries(tmp_path):
    """cuBLAS hidden: a file of its name that is no library stands before it."""
    module = find_or_skip(PROGRAM, *REAL_MODULE.split("/"))
    for name in needed_libraries(module):
        if name.startswith("libcublas"):
            (tmp_path / name).write_bytes(b"hidden")
    env = with_driver("ok", module)
    check_without_gpu({**env, "LD_LIBRARY_PATH": f"{tmp_path}:{env['LD_LIBRARY_PATH']}"}, "module", "libcublas")


@pytest.mark.asan
def test_which_gpus():
    env = shim_environment(PROGRAM, gpus=2)
    ask = ("--device", "cuda", "--max-batch-seconds", "30", *RAW)
    for devices in ("0", "1", "0,1", "all"):
        assert predict(MODEL, [CLIP], *ask, "--devices", devices, env=env)[0]["status"] == "ok"
    for devices, status in (("2", 3), ("0,5", 3), ("x", (2, 3)), ("0,0", (2, 3))):
        refused = run("predict", "--model", MODEL, *ask, "--devices", devices, "--", CLIP, env=env)
        assert refused.status in (status if isinstance(status, tuple) else (status,)), devices
        assert devices in refused.err and not refused.out


@pytest.mark.asan
def test_every_failed_allocation_is_told():
    """Of a GPU's memory, one after the other until none is left to fail."""
    env = shim_environment(PROGRAM)
    ask = ("--device", "cuda", "--max-batch-seconds", "30", *RAW)
    for n in range(1, 50):
        result = run("predict", "--json", "--model", MODEL, *ask, "--", CLIP, env={**env, "TIMBRE_CUDA_FAULT": f"memory:{n}"})
        if result.status == 0:
            break
        assert result.status == 3 and not result.out
        assert "cudaErrorMemoryAllocation" in result.err, result.err
    assert result.status == 0 and n > 3


@pytest.mark.asan
def test_a_lost_gpu_is_told():
    """An illegal address: the clips of that batch and of those after it fail, each with the reason."""
    env = {**shim_environment(PROGRAM), "TIMBRE_CUDA_FAULT": "batch:1"}
    answers = predict(MODEL, [CLIP, GOLDEN / "clips" / "n400.f32"], "--device", "cuda", "--max-batch-seconds", "30", *RAW,
                      env=env, status=1)
    for answer in answers:
        assert answer["status"] == "error" and "cudaErrorIllegalAddress" in answer["message"], answer


# Prints the seconds and the peak in KiB of the fastest of some runs. The kernel counts what the process that forks held as
# the program's own, so this is one that holds little.
MEASURE = """
import os, sys, time
best = None
for _ in range(7):
    begin = time.perf_counter()
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    run = time.perf_counter() - begin, usage.ru_maxrss
    best = min(best or run, run)
print(*best)
"""


@pytest.mark.skipif(is_sanitized(), reason="sanitizers take time and memory of their own")
def test_start_costs_nothing():
    """Before it loads a model the program is small and quick, for it has not touched CUDA."""
    said = subprocess.run([sys.executable, "-S", "-E", "-c", MEASURE, PROGRAM, "version"], check=True, capture_output=True,
                          text=True).stdout
    seconds, kib = map(float, said.split())
    assert seconds * 1000 < START_MS_MAX and kib * 1024 < START_BYTES_MAX
