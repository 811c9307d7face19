"""Clients and machines that behave badly: the others do not notice, and nothing is left behind."""

import asyncio
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest

from raw_http2 import RawClient, frame
from timbre_program import predict, voice, write_wav
from timbre_server import (SLOWNESS, TINY, Server, bits_of, bits_of_answer, calling, connect, details_of, raises,
                           request_of, stubs, wait_until)

TIMEOUT_S = 60 * SLOWNESS
PATH = "/timbre.v1.Timbre/Predict"
MB = 1 << 20

pytestmark = [pytest.mark.asan]


@pytest.fixture(scope="module")
def expected(clips):
    return [bits_of_answer(a) for a in predict(TINY, clips)]


def is_quiet(server):
    """Nothing is open, queued or running."""
    return server.metric("timbre_requests_in_flight") == 0 and server.metric("timbre_queue_requests") == 0


def still_well(server, clips, expected):
    wait_until(lambda: is_quiet(server), what="the server's rest")
    with calling(server) as stub:
        assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected[0]


@pytest.mark.tsan
def test_a_thousand_cancels_at_once(clips, expected):
    async def begin_and_cancel(server):
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)
            random.seed(1)
            calls = [stub.Predict(request_of(clips[i % 4]), timeout=TIMEOUT_S) for i in range(1000)]
            await asyncio.sleep(0.05)
            for call in random.sample(calls, len(calls)):
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for i, result in enumerate(results):
                if isinstance(result, asyncio.CancelledError):
                    continue
                assert bits_of(result) == expected[i % 4]
            return sum(isinstance(r, asyncio.CancelledError) for r in results)

    with Server("--max-queued-seconds", "10000") as server:
        assert asyncio.run(begin_and_cancel(server)) > 100
        still_well(server, clips, expected)


@pytest.mark.tsan
def test_deadlines_of_a_millisecond(server, clips, expected):
    with calling(server) as stub:
        stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
        calls = [stub.Predict.future(request_of(clips[3]), timeout=0.001) for _ in range(300)]
        for c in calls:
            if c.exception():
                assert c.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
            else:
                assert bits_of(c.result()) == expected[3]
    still_well(server, clips, expected)


@pytest.mark.tsan
def test_work_of_callers_who_left_is_not_done(clips, expected, tmp_path):
    """A queue full of work that nobody waits for is gone at once."""
    long = write_wav(tmp_path / "long.wav", voice(1, 29))
    with Server("--threads", "1") as server:
        with calling(server) as stub:
            calls = [stub.Predict.future(request_of(long), timeout=TIMEOUT_S) for _ in range(20)]
            wait_until(lambda: server.metric("timbre_queue_requests") > 5, what="the queue")
            for c in calls:
                c.cancel()
        still_well(server, clips, expected)
        assert server.metric("timbre_dropped_total") > 3


@pytest.mark.tsan
def test_clients_that_vanish(server, clips, expected):
    whole = frame(request_of(clips[3]).SerializeToString())
    with calling(server) as stub:
        for i in range(60):
            raw = RawClient(server.grpc)
            if i % 6:
                stream = raw.call(PATH)
                raw.send(stream, whole[: (0, 3, 100, len(whole) - 1, len(whole))[i % 6 - 1]], end=i % 12 == 5)
            raw.vanish()
            if i % 10 == 0:
                assert bits_of(stub.Predict(request_of(clips[1]), timeout=TIMEOUT_S)) == expected[1]
    still_well(server, clips, expected)


def test_half_a_message_and_then_the_end(server, clips, expected):
    whole = frame(request_of(clips[0]).SerializeToString())
    for part in (b"", whole[:3], whole[:5], whole[:1000]):
        with RawClient(server.grpc) as raw:
            stream = raw.call(PATH)
            raw.send(stream, part, end=True)
            headers = raw.finish(stream)
            assert headers.get("grpc-status") != "0", headers
    still_well(server, clips, expected)


def test_more_than_one_message(server, clips, expected):
    """A unary call has one; whatever follows is not computed."""
    with RawClient(server.grpc) as raw:
        stream = raw.call(PATH)
        raw.send(stream, frame(request_of(clips[0]).SerializeToString()) * 2, end=True)
        raw.finish(stream)
    still_well(server, clips, expected)


def test_garbage_on_the_port(server, clips, expected):
    for data in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\x02\x00\x01",
                 b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(5000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 900):
        with socket.create_connection(tuple(server.grpc.rsplit(":", 1))) as s:
            s.sendall(data)
            s.settimeout(0.05)
            try:
                s.recv(1000)
            except OSError:
                pass
    still_well(server, clips, expected)


@pytest.mark.tsan
def test_clients_that_never_read(clips, expected):
    """Answers wait for them within bounds, and leave with them."""
    message = frame(request_of(clips[0], embedding=True).SerializeToString())
    with Server() as server:
        before = server.rss_bytes()
        raws = [RawClient(server.grpc, window_bytes=0) for _ in range(8)]
        for raw in raws:
            for _ in range(50):
                stream = raw.call(PATH)
                raw.send(stream, message, end=True)
        with calling(server) as stub:
            for _ in range(20):
                assert bits_of(stub.Predict(request_of(clips[1]), timeout=TIMEOUT_S)) == expected[1]
        wait_until(lambda: server.metric("timbre_queue_requests") == 0)
        assert server.rss_bytes() - before < 100 * MB * (10 if SLOWNESS > 1 else 1)
        for raw in raws:
            raw.vanish()
        still_well(server, clips, expected)


def test_watchers_that_never_read(clips, expected):
    """A Watch of someone who does not read holds up neither the server nor its end."""
    from grpc_health.v1 import health_pb2

    with Server("--drain-timeout-ms", "500") as server:
        raws = [RawClient(server.grpc, window_bytes=0) for _ in range(20)]
        for raw in raws:
            stream = raw.call("/grpc.health.v1.Health/Watch")
            raw.send(stream, frame(health_pb2.HealthCheckRequest().SerializeToString()), end=True)
        with calling(server) as stub:
            assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected[0]
        begin = time.monotonic()
        server.terminate()
        server.check_end()
        assert time.monotonic() - begin < 5 * SLOWNESS
        for raw in raws:
            raw.close()


def test_the_model_folder_disappears(tmp_path, clips, expected):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    with Server(model=folder) as server, calling(server) as stub:
        shutil.rmtree(folder)
        for clip, bits in zip(clips, expected):
            assert bits_of(stub.Predict(request_of(clip), timeout=TIMEOUT_S)) == bits
        assert server.get("/readyz")[0] == 200


# ---- ffmpeg ---------------------------------------------------------------------------------------------------------

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg")


@pytest.fixture(scope="module")
def webm(tmp_path_factory, clips):
    """What libsndfile cannot read."""
    path = tmp_path_factory.mktemp("webm") / "clip.webm"
    subprocess.run(["ffmpeg", "-v", "error", "-i", clips[1], path], check=True)
    return path


@needs_ffmpeg
@pytest.mark.parametrize("where, program", [  # an empty variable is as good as none
    ("option", ""), ("option", "/no/such/ffmpeg"), ("option", "script"),
    ("environment", "/no/such/ffmpeg"), ("environment", "script")])
def test_ffmpeg_is_missing(webm, clips, expected, tmp_path, program, where):
    if program == "script":
        program = tmp_path / "ffmpeg"
        program.write_text("#!/bin/sh\nexec ffmpeg \"$@\"\n")
        program.chmod(0o755)
    flags, env = ([], {"FFMPEG_BIN": str(program)}) if where == "environment" else (["--ffmpeg-bin", program], {})
    with Server(*flags, env=env) as server:
        with calling(server) as stub, raises(grpc.StatusCode.FAILED_PRECONDITION, "ffmpeg") as caught:
            stub.Predict(request_of(webm), timeout=TIMEOUT_S)
        assert details_of(caught.error)["ErrorInfo"].reason
        still_well(server, clips, expected)


def children_of(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(p) for p in (task / "children").read_text().split()]
        except OSError:
            pass
    return found


@pytest.fixture(scope="module")
def spinner(tmp_path_factory):
    """A program in place of ffmpeg that never comes to an end."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("spinner") / "spinner"
    source = b"int main(void) { for (volatile int i = 0;; i++) ; }"
    subprocess.run(["cc", "-x", "c", "-o", path, "-"], input=source, check=True)
    return path


@needs_ffmpeg
def test_ffmpeg_is_killed(webm, clips, expected, spinner):
    """Its caller is told; the others are served meanwhile and afterwards."""
    with Server("--ffmpeg-bin", spinner, "--decode-timeout-ms", 1000 * TIMEOUT_S) as server, calling(server) as stub:
        call = stub.Predict.future(request_of(webm), timeout=TIMEOUT_S)
        wait_until(lambda: children_of(server.pid), what="the program")
        assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected[0]
        end = time.monotonic() + TIMEOUT_S
        while not call.done() and time.monotonic() < end:  # it may try several times
            for child in children_of(server.pid):
                os.kill(child, 9)
            time.sleep(0.01)
        assert call.exception().code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)
        assert "ffmpeg" in call.exception().details()
        still_well(server, clips, expected)


@needs_ffmpeg
def test_ffmpeg_that_takes_too_long_holds_up_nobody(webm, clips, expected, spinner):
    """Slow uploads wait for each other alone."""
    with Server("--ffmpeg-bin", spinner, "--decode-timeout-ms", "300") as server, calling(server) as stub:
        slow = [stub.Predict.future(request_of(webm), timeout=TIMEOUT_S) for _ in range(6)]
        wait_until(lambda: children_of(server.pid), what="the program")
        for _ in range(10):
            assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected[0]
        for call in slow:
            assert call.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "decode-timeout-ms" in call.exception().details()
        still_well(server, clips, expected)


# ---- many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.tsan
def test_many_channels_and_threads(server, clips, expected):
    failures = []

    def call_some(seed):
        try:
            with calling(server) as stub:
                for i in range(15):
                    k = (seed + i) % 4
                    assert bits_of(stub.Predict(request_of(clips[k]), timeout=TIMEOUT_S)) == expected[k]
        except BaseException as e:  # noqa: BLE001 - told in the main thread
            failures.append(e)

    threads = [threading.Thread(target=call_some, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]


@pytest.mark.skipif(SLOWNESS > 1, reason="a sanitizer's memory is its own")
def test_a_thousand_idle_connections(clips, expected):
    with Server() as server:
        still_well(server, clips, expected)
        before = server.rss_bytes()
        idle = [RawClient(server.grpc) for _ in range(1000)]
        for raw in idle:
            raw.read()  # its settings: the connection is made
        assert server.rss_bytes() - before < 100 * MB
        still_well(server, clips, expected)
        for raw in idle:
            raw.close()


@pytest.mark.skipif(SLOWNESS > 1, reason="a sanitizer's memory is its own")
def test_memory_stays(server, clips, expected):
    """More calls take no more memory, whatever became of them. (What the first ones took is kept for the next.)"""
    def call_many():
        with connect(server.grpc) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)
            requests = [request_of(c, windows={"length_s": 0.5}, embedding=True) for c in clips]
            requests += [request_of(clips[0], model="nobody"), request_of(clips[0], windows={"hop_s": -1})]
            calls = [stub.Predict.future(requests[i % len(requests)], timeout=TIMEOUT_S) for i in range(300)]
            for c in calls[::7]:
                c.cancel()
            for c in calls:
                try:
                    c.exception()
                except grpc.FutureCancelledError:
                    pass

    for _ in range(4):
        call_many()
    wait_until(lambda: is_quiet(server))
    before = server.rss_bytes()
    for _ in range(8):
        call_many()
    wait_until(lambda: is_quiet(server))
    assert server.rss_bytes() - before < 16 * MB
