"""Serving on GPUs, through the shim: the cuda backend compiled for the host, behind a driver that tells of GPUs that are
not there. Several workers and devices, and what becomes of callers when a device is lost."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpu_shim import shim_environment
from timbre_program import GOLDEN, PROGRAM, predict, run, voice, write_wav
from timbre_server import (SLOWNESS, TINY, Server, bits_of, bits_of_answer, calling, connect, details_of, refuse,
                           request_of, stubs, wait_until)

TIMEOUT_S = 60 * SLOWNESS
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
FLAGS = ["--device", "cuda", "--max-batch-seconds", "30"]
LOST = "the device failed and is lost to this process"
# Batches that the known answer of one model runs on one GPU: two on each of its workers, and one to compare.
CHECK_BATCHES = 5

pytestmark = [pytest.mark.asan]


@pytest.fixture(scope="module")
def shim():
    return shim_environment(PROGRAM)


@pytest.fixture(scope="module")
def two_gpus():
    return shim_environment(PROGRAM, gpus=2)


@pytest.fixture(scope="module")
def short_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    return [write_wav(folder / f"{i}.wav", voice(i, s)) for i, s in enumerate((0.1, 0.35, 0.6, 0.2, 0.9))]


@pytest.fixture(scope="module")
def expected(shim, short_clips):
    """The bits of each clip alone."""
    answers = [predict(TINY, [c], "--device", "cuda", env=shim)[0] for c in short_clips]
    assert all(a["receipt"]["device"].startswith("cuda") for a in answers)
    return [bits_of_answer(a) for a in answers]


def test_serves_the_bits_that_predict_computes(shim, short_clips, expected):
    """predict makes no graphs, serve makes some."""
    together = predict(TINY, short_clips, "--device", "cuda", env=shim)
    assert [bits_of_answer(a) for a in together] == expected
    with Server(*FLAGS, env=shim) as server, calling(server) as stub:
        for clip, bits in zip(short_clips, expected):
            response = stub.Predict(request_of(clip), timeout=TIMEOUT_S)
            assert bits_of(response) == bits
            assert response.receipt.device.startswith("cuda")
        server.wait_log("on 2 workers of 1 device;")
    with Server(*FLAGS, "--cuda-graphs", "no", env=shim) as server, calling(server) as stub:
        assert bits_of(stub.Predict(request_of(short_clips[2]), timeout=TIMEOUT_S)) == expected[2]


@pytest.mark.tsan
def test_two_devices_and_four_workers(two_gpus, short_clips, expected):
    with Server(*FLAGS, "--devices", "0,1", env=two_gpus) as server:
        server.wait_log("on 4 workers of 2 devices;")
        turns, failures = itertools.count(), []

        def ask(stub):
            for _ in range(6):
                i = next(turns) % len(short_clips)
                if bits_of(stub.Predict(request_of(short_clips[i]), timeout=TIMEOUT_S)) != expected[i]:
                    failures.append(i)

        with calling(server) as stub, ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(ask, stub) for _ in range(16)]:
                done.result()
        assert not failures
        for device in ("0", "1"):
            assert server.metric("timbre_device_busy_seconds_total", device=device) > 0
        assert server.metric("timbre_device_faults_total") == 0


def test_models_of_two_names_on_two_devices(shim, two_gpus, short_clips, expected):
    """The workers of both share the devices."""
    other = GOLDEN / "hubert_base"
    alone = bits_of_answer(predict(other, short_clips[:1], "--device", "cuda", env=shim)[0])
    flags = [*FLAGS, "--devices", "all", "--model", f"other={other}"]
    with Server(*flags, env=two_gpus) as server, calling(server) as stub:
        calls = [stub.Predict.future(request_of(short_clips[0], model=("tiny", "other")[i % 2]), timeout=TIMEOUT_S)
                 for i in range(24)]
        for i, call in enumerate(calls):
            assert bits_of(call.result()) == (expected[0], alone)[i % 2]


# ---- no GPU ---------------------------------------------------------------------------------------------------------


def test_auto_says_why_it_took_the_processor(shim, short_clips):
    env = {**shim, "TIMBRE_CUDA_MODULE": "/nowhere/libtimbre_cuda.so"}
    with Server(env=env) as server, calling(server) as stub:
        assert stub.Predict(request_of(short_clips[0]), timeout=TIMEOUT_S).receipt.device.startswith("cpu")
        lines = [line for line in server.wait_log("serving on the CPU").splitlines() if "serving on the CPU" in line]
        assert len(lines) == 1 and " info " in lines[0] and "/nowhere/libtimbre_cuda.so" in lines[0], lines
    quiet = run("predict", "--model", TINY, short_clips[0], env=env)
    assert quiet.status == 0 and not quiet.err
    assert "/nowhere/libtimbre_cuda.so" in refuse("--device", "cuda", env=env)
    machine = run("version", env=env).out
    assert "gpu none: the CUDA module does not load" in machine and "device cpu" in machine


def test_devices_that_are_not_there(shim, two_gpus):
    for devices, words in (("0,7", "there are 1 GPUs"), ("0,x", "not \"all\" or indexes"), ("0,0", "named twice")):
        message = refuse(*FLAGS, "--devices", devices, env=shim)
        assert devices in message and words in message, message
    machine = run("version", env=two_gpus).out
    assert "gpu 0 cuda" in machine and "gpu 1 cuda" in machine and "device cuda" in machine


def test_memory_that_is_not_there(shim):
    """The start fails, by the name of what did not fit and of the option that needs it."""
    message = refuse(*FLAGS, "--gpu-memory-limit", "1m", env=shim)
    assert "gpu-memory-limit" in message and "max-batch-seconds 30, worker 1 of 2" in message
    for allocation in range(1, 8):
        message = refuse(*FLAGS, env={**shim, "TIMBRE_CUDA_FAULT": f"memory:{allocation}"})
        assert "GPU 0" in message and "bytes for" in message, message
        if allocation > 1:  # the first is the weights
            assert "max-batch-seconds 30, worker" in message, message


# ---- faults ---------------------------------------------------------------------------------------------------------


class Watcher:
    """What Watch told, in its order."""

    def __init__(self, server):
        self.channel = connect(server.grpc)
        self.told = []
        self.stream = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest())
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self):
        try:
            for answer in self.stream:
                self.told.append(answer.status)
        except grpc.RpcError:
            pass

    def close(self):
        self.stream.cancel()
        self.thread.join()
        self.channel.close()


def call_until_lost(server, clips, expected):
    """Calls at concurrency 16 until one fails. All answers before are right, and all failures say the same."""
    failed = []
    with calling(server) as stub:
        for _ in range(50):
            calls = [(i % len(clips), stub.Predict.future(request_of(clips[i % len(clips)]), timeout=TIMEOUT_S))
                     for i in range(16)]
            for i, call in calls:
                error = call.exception()
                if error:
                    failed.append(SimpleNamespace(code=error.code(), text=error.details(), error=error))
                elif call.result().receipt.device.startswith("cuda"):
                    assert bits_of(call.result()) == expected[i]
            if failed:
                return failed
    raise AssertionError("nothing failed")


def fault(shim, batch):
    return {**shim, "TIMBRE_CUDA_FAULT": f"batch:{CHECK_BATCHES + batch}"}


def test_a_lost_device_ends_the_server(shim, short_clips, expected):
    with Server(*FLAGS, env=fault(shim, 3), status=1) as server:
        watcher = Watcher(server)
        wait_until(lambda: watcher.told == [SERVING], what="the first state")
        failed = call_until_lost(server, short_clips, expected)
        assert {f.code for f in failed} == {grpc.StatusCode.UNAVAILABLE}
        lost = [f for f in failed if LOST in f.text]
        assert lost and details_of(lost[0].error)["ErrorInfo"].reason == "DEVICE_FAILED"
        assert all(LOST in f.text or "draining" in f.text for f in failed), failed
        server.told_to_end = True  # by itself
        server.check_end()
        watcher.close()
        assert watcher.told[1:] == [NOT_SERVING], watcher.told
        errors = [line for line in server.log_text().splitlines() if " error " in line]
        assert len(errors) == 1 and LOST in errors[0] and "status 1" in errors[0], errors


def test_health_changes_before_callers_hear_of_it(shim, short_clips, expected):
    """Whoever was told that the device is lost finds the server NOT_SERVING, or gone."""
    with Server(*FLAGS, env=fault(shim, 1), status=1) as server:
        with connect(server.grpc) as channel:
            stub, health = stubs().timbre_grpc.TimbreStub(channel), health_pb2_grpc.HealthStub(channel)
            error = stub.Predict.future(request_of(short_clips[0]), timeout=TIMEOUT_S).exception()
            assert LOST in error.details(), error
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
                assert answer.status == NOT_SERVING
            except grpc.RpcError as e:
                assert e.code() == grpc.StatusCode.UNAVAILABLE
        server.told_to_end = True
        server.check_end()


@pytest.mark.tsan
def test_a_lost_device_is_made_up_for_by_the_processor(two_gpus, short_clips, expected):
    device = predict(TINY, short_clips[:1], "--device", "cuda", env=two_gpus)[0]["receipt"]["device"]
    on_cpu = [bits_of_answer(a) for a in predict(TINY, short_clips, "--device", "cpu")]
    flags = [*FLAGS, "--on-gpu-fault", "cpu", "--devices", "0,1", "--model", f"other={GOLDEN / 'hubert_base'}"]
    # Each model's known answer, on the workers of two GPUs.
    env = {**two_gpus, "TIMBRE_CUDA_FAULT": f"batch:{2 * (2 * 4 + 1) + 4}"}
    with Server(*flags, env=env) as server:
        watcher = Watcher(server)
        wait_until(lambda: watcher.told == [SERVING], what="the first state")
        assert server.metric("timbre_build_info") == server.metric("timbre_build_info", device=device) == 1
        failed = call_until_lost(server, short_clips, expected)
        assert {f.code for f in failed} == {grpc.StatusCode.UNAVAILABLE}
        assert all(LOST in f.text or "being loaded" in f.text for f in failed), failed
        for model in ("tiny", "other"):
            wait_until(lambda m=model: server.metric("timbre_model_state", model=m, state="ready") == 1, timeout_s=60,
                       what=f"{model} on the processor")
        wait_until(lambda: watcher.told[-1] == SERVING, what="SERVING again")
        assert watcher.told == [SERVING, NOT_SERVING, SERVING]
        watcher.close()
        with calling(server) as stub:
            for clip, bits in zip(short_clips, on_cpu):
                response = stub.Predict(request_of(clip), timeout=TIMEOUT_S)
                assert bits_of(response) == bits
                assert response.receipt.device.startswith("cpu")
            other = stub.Predict(request_of(short_clips[0], model="other"), timeout=TIMEOUT_S)
            assert other.receipt.device.startswith("cpu")
        assert server.metric("timbre_device_faults_total", kind="lost") >= 1
        assert server.metric("timbre_build_info", device=device) == 0
        assert server.get("/readyz")[0] == 200
        assert len([line for line in server.wait_log("on-gpu-fault").splitlines() if "on-gpu-fault" in line]) == 1
