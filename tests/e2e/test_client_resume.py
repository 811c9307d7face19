"""Streams of the C client when servers go and come: scripted ones of Python, and the real one."""

import os
import random
import signal
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest

import timbre_program as timbre
from scripted_server import ScriptedServer, stream_result, stream_summary
from stream_driver import (EXHAUSTED, LATE, MARKS, OK, QUICK, SECOND, UNAVAILABLE, Driver, answer_seconds, audio)
from timbre_server import SLOWNESS, Server

pytestmark = MARKS


@pytest.mark.parametrize("seed", range(4))
def test_resume_anywhere(seed):
    """The server goes at random moments: every second is answered once, the audio goes on at the right byte, and the
    next server is told what was had."""
    rng = random.Random(seed)
    seconds = 30
    calls = []

    def script(call):
        calls.append(call)
        end = call.config.resume_offset_ms // 1000 + rng.randint(1, 8)
        had = call.config.channels[0].resume_end_s
        for i, message in enumerate(answer_seconds(call, end, lambda s: max(0, s - rng.randint(0, 3)))):
            yield message
            if message.HasField("summary"):
                return
            had = message.result.end_s
        if rng.random() < 0.5:
            yield stream_summary("DRAIN", end, call.config.resume_offset_ms, results=int(had))
        call.end(grpc.StatusCode.UNAVAILABLE, "draining")

    with ScriptedServer([], stream=script) as s, Driver(s.address, *QUICK, "attempts_max=12") as d:
        left = seconds * SECOND
        while left:
            n = min(left, rng.randint(1, 3 * SECOND))
            d.tell(f"send {n}", f"sleep {rng.randint(0, 3)}")
            left -= n
        d.tell("finish")
        end = d.wait("end")
    assert end["code"] == OK and end["attempts"] == len(calls) > 1
    assert [r["end"] for r in d.get("result")] == list(range(1, seconds + 1))
    assert [(x["final"], x["end"]) for x in d.get("summary")] == [(1, 1)]
    assert len(d.get("resume")) == len(calls) - 1
    for call, resume in zip(calls[1:], d.get("resume")):
        assert call.config.resume_offset_ms == resume["offset"] and resume["code"] == UNAVAILABLE
    for call in calls:
        first = call.config.resume_offset_ms // 1000 * SECOND
        assert bytes(call.audio) == audio(first, len(call.audio))
    assert calls[-1].config.resume_offset_ms // 1000 * SECOND + len(calls[-1].audio) == seconds * SECOND


def test_what_a_resume_tells():
    def script(call):
        if call.n == 0:
            call.read_until(3 * SECOND)
            yield stream_result(0, 0, 2, 1000, smoothed=(0.5, 0.25))
            yield stream_result(0, 2, 2.5, 1000, final=False)
            yield stream_result(1, 0, 3, 1000, smoothed=(0.125, 0.0625))
            yield stream_summary(None, 2, 1000, results=2)
            yield stream_summary("LIFETIME", 3, 2000, results=3)
            call.end(grpc.StatusCode.UNAVAILABLE, "--stream-lifetime-s")
        else:
            yield stream_result(0, 0, 2, 2000)  # had
            yield stream_result(1, 2, 3.5, 2000)
            call.read_all()
            yield stream_summary("CLIENT", 4, 3000, results=5)

    with ScriptedServer([], stream=script) as s, Driver(s.address, *QUICK) as d:
        d.tell(f"send {4 * SECOND}", "finish")
        assert d.wait("end")["code"] == OK
        m = s.streams[1].config
        assert m.resume_offset_ms == 2000
        assert [c.resume_end_s for c in m.channels] == [2, 3]
        assert [list(c.resume_smoothed) for c in m.channels] == [[0.5, 0.25], [0.125, 0.0625]]
        assert m.resume_summary.end_s == 3 and m.resume_summary.channels[0].results == 3
        assert bytes(s.streams[1].audio) == audio(2 * SECOND, 2 * SECOND) and s.streams[1].closed
    assert [(r["channel"], r["end"]) for r in d.get("result")] == [(0, 2), (0, 2.5), (1, 3), (1, 3.5)]
    assert [(x["end"], x["results"]) for x in d.get("summary")] == [(0, 2), (1, 5)]
    assert d.get("result")[3]["lag"] is None  # it was given before the resume


def test_pushback():
    trailers = (("grpc-retry-pushback-ms", "300"),)

    def script(call):
        if call.n == 0:
            call.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "max-streams", trailers)
        else:
            yield from answer_seconds(call)

    with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
        d.tell(f"send {SECOND}", "finish")
        assert d.wait("end")["code"] == OK
    assert d.get("resume")[0]["wait"] >= 300 and d.get("resume")[0]["code"] == EXHAUSTED


def test_attempts_count_from_the_last_result():
    def script(call):
        if call.n in (2, 4):
            yield from answer_seconds(call, call.config.resume_offset_ms // 1000 + 1)
        call.end(grpc.StatusCode.UNAVAILABLE, "down")

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address, *QUICK, "attempts_max=3") as d:
            d.tell(f"send {5 * SECOND}")
            end = d.wait("end")
        assert (end["code"], end["attempts"], end["message"]) == (UNAVAILABLE, 7, "down")
        assert len(s.streams) == 7
    assert [r["end"] for r in d.get("result")] == [1, 2]


@pytest.mark.parametrize("code, options, attempts", [
    ("INVALID_ARGUMENT", (), 1),
    ("RESOURCE_EXHAUSTED", (), 1),
    ("DEADLINE_EXCEEDED", (), 1),
    ("UNAVAILABLE", ("no_resume=1",), 1),
    ("UNAVAILABLE", ("attempts_max=1",), 1),
    ("UNAVAILABLE", ("attempts_max=3",), 3),
])
def test_ends_and_shows_the_last_summary(code, options, attempts):
    def script(call):
        if call.n == 0:
            yield from answer_seconds(call, 1)
            yield stream_summary("ERROR", 1, 1000, results=1)
        call.end(grpc.StatusCode[code], "so it is")

    with ScriptedServer([], stream=script) as s, Driver(s.address, *QUICK, *options) as d:
        d.tell(f"send {2 * SECOND}")
        end = d.wait("end")
    assert end["code"] == grpc.StatusCode[code].value[0] and end["message"] == "so it is" and end["attempts"] == attempts
    assert [(x["final"], x["end"], x["resume"]) for x in d.get("summary")] == [(1, 5, 1000)]


def test_finish_then_resume():
    """The sending side is closed again on the second call."""
    def script(call):
        call.read_all()
        if call.n < 2:
            call.end(grpc.StatusCode.UNAVAILABLE, "gone")
        else:
            yield stream_summary("CLIENT", 3)

    with ScriptedServer([], stream=script) as s, Driver(s.address, *QUICK) as d:
        d.tell(f"send {3 * SECOND}", "finish", "finish")
        assert d.wait("end")["code"] == OK
        assert [line["code"] for line in d.get("finish")] == [OK, OK]
        for call in s.streams:
            assert call.closed and bytes(call.audio) == audio(0, 3 * SECOND)


def test_asked_again_after_a_resume():
    def script(call):
        while not call.asks and call.read():
            pass
        if call.n == 0:
            call.end(grpc.StatusCode.UNAVAILABLE, "gone")
            return
        yield stream_summary(None, 1)
        call.read_all()
        yield stream_summary("CLIENT", 2)

    with ScriptedServer([], stream=script) as s, Driver(s.address, *QUICK) as d:
        d.tell(f"send {SECOND}", "ask", f"send {SECOND}")
        d.wait("summary")
        d.tell("finish")
        assert d.wait("end")["code"] == OK
        assert s.streams[1].asks == [SECOND]


def test_lost_after_the_last_summary():
    """All was answered: how the call ends does not matter then."""
    def script(call):
        call.read_all()
        yield stream_summary("CLIENT")
        call.end(grpc.StatusCode.UNAVAILABLE, "gone")

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address) as d:
            d.tell("send 100", "finish")
            assert d.wait("end")["code"] == OK
        assert len(s.streams) == 1


def test_stall():
    """A server that neither reads nor answers is left. One to which nothing is owed is not."""
    def script(call):
        if call.n == 0:
            call.read_all()
            time.sleep(3 * SLOWNESS)
            return
        yield from answer_seconds(call)

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address, "stall_ms=300") as d:
            d.tell(f"send {SECOND}", "sleep 900")
            d.wait("sleep")
            assert len(s.streams) == 1 and not d.get("resume")
            d.tell("finish")
            assert d.wait("end")["code"] == OK
        assert len(s.streams) == 2
    assert d.get("resume")[0]["code"] == UNAVAILABLE


def test_deadline():
    def script(call):
        call.read_all()
        yield from ()

    with ScriptedServer([], stream=script) as s, Driver(s.address, "deadline_ms=300") as d:
        d.tell("send 100")
        assert d.wait("end")["code"] == LATE


def test_no_server():
    with Driver("127.0.0.1:1", *QUICK, "attempts_max=3") as d:
        d.tell("send 100", "finish")
        end = d.wait("end")
    assert end["code"] == UNAVAILABLE and end["attempts"] == 3


def test_server_killed_and_back():
    """Not a word of goodbye: the connection goes, another server listens there."""
    over = threading.Event()

    def until(seconds):
        def script(call):
            for message in answer_seconds(call):
                yield message
                if message.HasField("result") and message.result.end_s == seconds:
                    over.wait(60)
        return script

    with ScriptedServer([], stream=until(2)) as s:
        d = Driver(s.address, "attempts_max=100", "backoff_initial_ms=20", "backoff_max_ms=50")
        address = s.address
        with d:
            d.tell(f"send {5 * SECOND}")
            while d.wait("result")["end"] < 2:
                pass
            s.server.stop(None).wait()
            over.set()
            with ScriptedServer([], stream=answer_seconds, address=address):
                d.tell("finish")
                assert d.wait("end")["code"] == OK
    assert [r["end"] for r in d.get("result")] == [1, 2, 3, 4, 5]


# ---- the example, and a real server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """examples/c/stream.c, and how to run it."""
    library = timbre.PROGRAM.parents[1] / "client"
    if timbre.is_sanitized() or not (library / "libtimbre_client.so").exists():
        pytest.skip(f"no client library to link in {library}")
    folder = tmp_path_factory.mktemp("example")
    (folder / "timbre").mkdir()
    (folder / "timbre" / "client.h").symlink_to(timbre.ROOT / "client" / "client.h")
    subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{folder}", "-o", folder / "stream",
                    timbre.ROOT / "examples" / "c" / "stream.c", f"-L{library}", "-ltimbre_client"], check=True)
    return folder / "stream", {**os.environ, "LD_LIBRARY_PATH": str(library)}


def to_mulaw(samples):
    """G.711 as in ITU-T G.191's ulaw_compress."""
    pcm = timbre.to_pcm16(samples).astype(np.int32)
    magnitude = np.minimum(np.abs(pcm), 32635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    code = exponent << 4 | (magnitude >> (exponent + 3) & 15)
    return (~(np.where(pcm < 0, 128, 0) | code) & 255).astype(np.uint8)


def stream_call(example, address, call, speed):
    program, environment = example
    return subprocess.Popen([program, address, call, str(speed)], env=environment, stdout=subprocess.PIPE, text=True)


def read_heard(process, lines=()):
    """(lines of results by role, the rest) to the end."""
    lines = [*lines, *process.stdout.read().splitlines()]
    process.stdout.close()
    assert process.wait(60) == 0, lines
    heard = {role: [line for line in lines if f" s  {role}: " in line] for role in ("agent", "customer")}
    return heard, [line for line in lines if " s  " not in line]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_example_goes_on(example, tmp_path, end):
    """A server that goes and one that comes make no difference to what is heard."""
    call = tmp_path / "call.ulaw"
    call.write_bytes(to_mulaw(np.stack([timbre.voice(1, 30, 8000), timbre.voice(2, 30, 8000)], 1)).tobytes())
    with Server() as s:
        expected, told = read_heard(stream_call(example, s.grpc, call, 1000))
    assert [len(lines) for lines in expected.values()] == [9, 9] and len(told) == 3
    assert [line.split(":")[0] for line in told[1:]] == ["agent", "customer"]
    first = Server().start()
    try:
        process = stream_call(example, first.grpc, call, 10)
        lines = [process.stdout.readline() for _ in range(3)]
        first.terminate(end)
        first.wait()
        with Server("--grpc-address", first.grpc):
            heard, rest = read_heard(process, [line.rstrip() for line in lines])
    finally:
        first.kill()
        first.close()
    assert heard == expected
    assert any(line.startswith("goes on from ") for line in rest)
    if end == signal.SIGTERM:  # the summary went on too
        assert [line.split(";")[1:] for line in rest[-2:]] == [line.split(";")[1:] for line in told[-2:]]
