"""The cuda backend where there is no GPU: a driver that tells of GPUs, and the backend compiled for the host in place of
its module. What a program built with its tests has beside it: tests/fake_driver and kernels/cuda/host."""

import os
from pathlib import Path

import pytest

MODULE, REAL_MODULE = "kernels/cuda/host/libtimbre_cuda_host.so", "kernels/cuda/libtimbre_cuda.so"


def build_tree(program):
    """Of cli/timbre: the folder that it was built in."""
    return Path(program).resolve().parents[1]


def find_or_skip(program, *parts):
    """A file of the build tree."""
    path = build_tree(program).joinpath(*parts)
    if not path.exists():
        why = "no CUDA toolkit where it was built" if path.name == REAL_MODULE.split("/")[-1] else "built without TIMBRE_TESTS"
        pytest.skip(f"no {'/'.join(parts)} beside {program}: {why}")
    return path


def driver_environment(program, name):
    """Environment in which libcuda.so.1 is the one of tests/fake_driver called `name`."""
    folder = find_or_skip(program, "tests", "fake_driver", name, "libcuda.so.1").parent
    others = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{folder}:{others}" if others else str(folder)}


def fake_module(program, name):
    return find_or_skip(program, "tests", "fake_driver", f"{name}.so")


def shim_environment(program, gpus=1):
    """What to add to the environment of `program`, so that --device cuda is the shim, with so many GPUs."""
    return {**driver_environment(program, "ok"), "TIMBRE_CUDA_MODULE": str(find_or_skip(program, *MODULE.split("/"))),
            "TIMBRE_SHIM_GPUS": str(gpus)}
