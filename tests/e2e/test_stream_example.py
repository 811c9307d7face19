"""examples/python/stream.py, as its README tells to run it."""

import os
import re
import struct
import subprocess
import sys
import threading

import pytest

from stream_client import ask_stream, config_of, encode, interleave, talk
from timbre_program import ROOT
from timbre_server import SLOWNESS, Server, calling, stubs

RATE_HZ, SECONDS = 8000, 24
RESULT = re.compile(r" *([\d.]+) to +([\d.]+) s  (agent|customer): (.*)")
SUMMARY = re.compile(r"2[34]\.\d\d s, \d+\.\d\d s of them talked over one another")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    from grpc_tools import protoc

    folder = tmp_path_factory.mktemp("stubs")
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                        "timbre/v1/timbre.proto"]) == 0
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def samples():
    return interleave(talk(1, SECONDS, RATE_HZ), talk(2, SECONDS, RATE_HZ))


@pytest.fixture(scope="module")
def expected(samples):
    """The lines of results, of an uninterrupted stream, sorted."""
    audio, m = encode(samples, "mulaw"), stubs().timbre
    with Server() as server, calling(server) as stub:
        answer = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=(6, 3, 0.5), smoothing_s=10), audio)
    lines = []
    for r in answer.results:
        what = f"{r.dominant.label} {r.dominant.score:.3f}"
        smooth = max(r.smoothed, key=lambda s: s.score, default=None)
        said = f"{what} (smoothed: {smooth.label} {smooth.score:.3f})" if r.status == m.ANSWER_STATUS_OK else "no_speech"
        lines.append((f"{r.start_s:.2f}", f"{r.end_s:.2f}", ("agent", "customer")[r.channel], said))
    return sorted(lines)


def wav(samples, kind, bits):
    encoding = {1: "pcm16", 6: "alaw", 7: "mulaw"}[kind]
    data, frame = encode(samples, encoding), bits // 8 * samples.shape[1]
    form = struct.pack("<HHIIHH", kind, samples.shape[1], RATE_HZ, RATE_HZ * frame, frame, bits)
    body = (b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
            + b"data" + struct.pack("<I", len(data)) + data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def start(environment, *arguments):
    return subprocess.Popen([sys.executable, ROOT / "examples" / "python" / "stream.py", *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def results_of(lines):
    return sorted(m.groups() for m in map(RESULT.fullmatch, lines) if m)


def test_a_call(environment, samples, expected, tmp_path):
    """Raw and WAV give the same."""
    files = {"call.ulaw": encode(samples, "mulaw"), "call.wav": wav(samples, 7, 8)}
    with Server() as server:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            done = start(environment, server.grpc, tmp_path / name, 24)
            out, err = done.communicate(timeout=60 * SLOWNESS)
            assert done.returncode == 0, err
            lines = out.splitlines()
            assert results_of(lines) == expected
            assert SUMMARY.fullmatch(lines[-3]), lines[-3]
            assert re.fullmatch(r"agent: \w+ 0\.\d+; 7 results, [\d.]+ s of speech", lines[-2]), lines[-2]
            assert lines[-1].startswith("customer: ")
        for kind, bits in ((6, 8), (1, 16)):
            (tmp_path / "other.wav").write_bytes(wav(samples, kind, bits))
            done = start(environment, server.grpc, tmp_path / "other.wav", 100)
            out, err = done.communicate(timeout=60 * SLOWNESS)
            assert done.returncode == 0 and len(results_of(out.splitlines())) == len(expected), err


def test_it_goes_on_elsewhere(environment, samples, expected, tmp_path):
    """The server ends in the middle of the call; the second one takes it on, and nothing is missing or told twice."""
    (tmp_path / "call.ulaw").write_bytes(encode(samples, "mulaw"))
    with Server() as first, Server() as second:
        process = start(environment, f"ipv4:{first.grpc},{second.grpc}", tmp_path / "call.ulaw", 6)
        lines, enough = [], threading.Event()

        def read():
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if len(results_of(lines)) >= 5:
                    enough.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert enough.wait(60 * SLOWNESS), lines
        first.terminate()
        first.check_end()
        reader.join(60 * SLOWNESS)
        assert process.wait(10 * SLOWNESS) == 0, process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        assert second.metric("timbre_streams_ended_total") == 1
    assert any(line.startswith("goes on from ") for line in lines)
    assert results_of(lines) == expected
    assert SUMMARY.fullmatch(lines[-3]), lines[-3]
    assert all("; 7 results" in line for line in lines[-2:]), lines[-2:]


def test_what_goes_wrong(environment, tmp_path):
    (tmp_path / "odd.ulaw").write_bytes(bytes(8001))
    with Server() as server:
        done = start(environment, server.grpc, tmp_path / "odd.ulaw", 100)
        out, _ = done.communicate(timeout=60 * SLOWNESS)
        assert done.returncode == 1 and "INVALID_ARGUMENT" in out
