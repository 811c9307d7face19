"""SIGTERM: nothing that was accepted is lost, and it ends."""

import contextlib
import json
import os
import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from raw_http2 import RawClient, frame
from timbre_program import predict, voice, write_wav
from timbre_server import (SLOWNESS, TINY, Server, bits_of, bits_of_answer, calling, connect, raises,
                           request_of, wait_until)

TIMEOUT_S = 60 * SLOWNESS
PATH = "/timbre.v1.Timbre/Predict"
ROUNDS = 4 if SLOWNESS > 1 else 20

pytestmark = [pytest.mark.asan, pytest.mark.tsan]


class Load:
    """Threads that call again and again until they are told that there is nobody any more."""

    def __init__(self, server, clips, expected, threads=32):
        self.server, self.requests, self.expected = server, [request_of(c) for c in clips], expected
        self.served, self.wrong, self.lock = 0, [], threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]
        for t in self.threads:
            t.start()

    def _run(self, i):
        with calling(self.server) as stub:
            while True:
                i = (i + 1) % len(self.requests)
                try:
                    response = stub.Predict(self.requests[i], timeout=TIMEOUT_S)
                except grpc.RpcError as e:
                    if e.code() != grpc.StatusCode.UNAVAILABLE:
                        self.wrong.append(e)
                    return
                with self.lock:
                    self.served += 1
                if bits_of(response) != self.expected[i]:
                    self.wrong.append(response)

    def join(self):
        for t in self.threads:
            t.join()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_no_accepted_call_is_lost(clips, round_):
    expected = [bits_of_answer(a) for a in predict(TINY, clips)]
    with Server("--access-log", "all", "--log-format", "json") as server:
        load = Load(server, clips, expected)
        wait_until(lambda: load.served > 20 + 13 * round_, what="some load")
        server.terminate()
        load.join()
        server.check_end()
        assert not load.wrong, load.wrong[0]
        lines = [json.loads(line) for line in server.log_text().splitlines() if '"method":' in line]
    codes = [line["code"] for line in lines if line["method"] == PATH]
    assert codes.count("OK") == load.served, "an answer did not reach its caller"
    assert set(codes) <= {"OK", "UNAVAILABLE"}


def test_a_full_queue_is_worked_off(tmp_path):
    long = write_wav(tmp_path / "long.wav", voice(1, 25))
    (answer,) = predict(TINY, [long])
    with Server("--threads", "1", "--max-queued-seconds", "5000") as server, calling(server) as stub:
        calls = [stub.Predict.future(request_of(long), timeout=TIMEOUT_S) for _ in range(16)]
        wait_until(lambda: server.metric("timbre_requests_in_flight") + sum(c.done() for c in calls) >= 16)
        server.terminate()
        for c in calls:
            assert bits_of(c.result()) == bits_of_answer(answer)
        server.check_end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_it_ends_at_once(number):
    with Server() as server:
        begin = time.monotonic()
        server.terminate(number)
        server.check_end()
        assert time.monotonic() - begin < 1.5 * SLOWNESS


def test_idle_connections_do_not_hold_it_up(clips):
    with Server() as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            stub = stack.enter_context(calling(server))
            stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
        begin = time.monotonic()
        server.terminate()
        server.check_end()
        assert time.monotonic() - begin < 2 * SLOWNESS


def test_connections_that_never_read_do_not_hold_it_up_for_ever():
    """They do not see that they are asked to go."""
    with Server("--drain-timeout-ms", "500") as server:
        raws = [RawClient(server.grpc) for _ in range(5)]
        for raw in raws:
            raw.read()
        begin = time.monotonic()
        server.terminate()
        server.check_end()
        assert time.monotonic() - begin < 3 * SLOWNESS
        for raw in raws:
            raw.close()


def half_a_call(server):
    raw = RawClient(server.grpc)
    raw.send(raw.call(PATH), frame(b"x" * 100, said_bytes=1000))
    wait_until(lambda: server.metric("timbre_requests_in_flight") > 0, what="the call")
    return raw


def test_a_second_signal_ends_it_at_once():
    options = os.environ.get("TSAN_OPTIONS", "") + " report_thread_leaks=0"  # nothing is joined any more
    with Server(env={"TSAN_OPTIONS": options}) as server:
        raw = half_a_call(server)
        server.terminate()
        time.sleep(0.3)
        assert server.process.poll() is None, "a call is running"
        begin = time.monotonic()
        server.terminate()
        server.check_end()
        assert time.monotonic() - begin < 1 * SLOWNESS
        raw.close()


def test_drain_timeout():
    with Server("--drain-timeout-ms", "400") as server:
        raw = half_a_call(server)
        begin = time.monotonic()
        server.terminate()
        server.check_end()
        assert 0.3 < time.monotonic() - begin < 3 * SLOWNESS
        assert "drain-timeout-ms" in server.log_text()
        raw.close()


def test_new_calls_while_it_drains(clips):
    """Whoever comes now is sent away at once, on an old connection or a new one."""
    with Server("--drain-timeout-ms", 1000 * SLOWNESS) as server, calling(server) as stub:
        stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
        raw = half_a_call(server)
        server.terminate()
        time.sleep(0.3)
        begin = time.monotonic()
        for _ in range(5):
            with raises(grpc.StatusCode.UNAVAILABLE):
                stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
            with calling(server) as fresh, raises(grpc.StatusCode.UNAVAILABLE):
                fresh.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
        assert time.monotonic() - begin < 0.5 * SLOWNESS
        raw.close()


def test_lame_duck(clips):
    """Health says no, so that nobody new is sent here, and calls are still served."""
    (answer,) = predict(TINY, clips[:1])
    with Server("--lame-duck-ms", 1000 * SLOWNESS) as server, calling(server) as stub, connect(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        ask = health_pb2.HealthCheckRequest()
        assert health.Check(ask, timeout=TIMEOUT_S).status == health_pb2.HealthCheckResponse.SERVING
        assert server.get("/readyz")[0] == 200
        begin = time.monotonic()
        server.terminate()
        wait_until(lambda: health.Check(ask, timeout=TIMEOUT_S).status == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert server.get("/readyz")[0] == 503 and server.get("/healthz")[0] == 200
        for _ in range(5):
            assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == bits_of_answer(answer)
        with calling(server) as fresh:
            assert bits_of(fresh.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == bits_of_answer(answer)
        assert time.monotonic() - begin < 1 * SLOWNESS, "too slow for this test"
        server.check_end()
        with raises(grpc.StatusCode.UNAVAILABLE):
            stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)


def test_a_signal_while_it_starts(tmp_path):
    """It ends without ever having been ready, and does not hang."""
    for delay_s in (0.0, 0.02, 0.1):
        server = Server()
        server.start_only()
        time.sleep(delay_s * SLOWNESS)
        server.terminate()
        server.wait(30)
        assert server.process.returncode in (0, -signal.SIGTERM)
        server.close()
