"""What asks a server: `timbre predict --server`, the C library and the examples. The server is the real one, or one of
Python whose answers are scripted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest

import certificates
import timbre_program as timbre
from scripted_server import Answer, ScriptedServer, prediction
from timbre_program import GOLDEN, ROOT, predict, run, to_pcm16, voice, write_wav
from timbre_server import SLOWNESS, TINY, Server, stubs

pytestmark = pytest.mark.asan

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
OF_THE_MOMENT = ("batch_size", "queue_ms", "compute_ms")  # in a receipt


@pytest.fixture(scope="module")
def server():
    with Server("--model", f"base={TINY}", "--model", f"regression={GOLDEN / 'regression'}", model=None) as s:
        yield s


def ask(address, files, *options, **kwargs):
    return predict(None, files, "--server", address, *options, **kwargs)


def lasting(answer):
    receipt = {k: v for k, v in answer["receipt"].items() if k not in OF_THE_MOMENT}
    return {**answer, "receipt": receipt}


def same(here, there):
    """The same JSON but for what is of the moment."""
    assert len(here) == len(there)
    for a, b in zip(here, there):
        assert set(a["receipt"]) == set(b["receipt"])
        assert lasting(a) == lasting(b)


# ---- the same answers as on this machine ----------------------------------------------------------------------------


@pytest.mark.tsan
def test_same_answers(server, clips, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk" + bytes(range(200)))
    silence = write_wav(tmp_path / "silence.wav", np.zeros(16000, np.float32))
    short = write_wav(tmp_path / "short.wav", voice(1, 0.02))
    files = [*clips, broken, silence, tmp_path / "absent.wav", short, tmp_path, clips[0]]
    same(predict(TINY, files, status=1), ask(server.grpc, files, status=1))
    same(predict(TINY, clips), ask(server.grpc, clips))
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    assert "no bytes" in ask(server.grpc, [empty], status=1)[0]["message"]


def test_windows_and_embedding(server, tmp_path):
    x = np.concatenate([voice(1, 3), np.zeros(48000, np.float32), voice(2, 30)])
    files = [write_wav(tmp_path / "long.wav", x), write_wav(tmp_path / "short.wav", voice(3, 4))]
    for options in ([], ["--embedding"], ["--window", "2"], ["--window", "2", "--hop", "1.5", "--embedding"]):
        here = predict(TINY, files, *options)
        same(here, ask(server.grpc, files, *options))
        assert "windows" in here[0]


def test_raw_samples(server, tmp_path):
    pcm = to_pcm16(voice(5, 1.5, 8000))
    (tmp_path / "s16").write_bytes(np.repeat(pcm, 2).tobytes())
    options = ["--raw", "pcm16", "--rate", "8000", "--channels", "2"]
    same(predict(TINY, [tmp_path / "s16"], *options), ask(server.grpc, [tmp_path / "s16"], *options))


def test_another_model(server, clips):
    same(predict(GOLDEN / "regression", clips), ask(server.grpc, clips, "--model", "regression"))


def test_table_for_people(server, clips, tmp_path):
    files = [*clips, tmp_path / "absent.wav"]
    here = run("predict", "--model", TINY, *files)
    there = run("predict", "--server", server.grpc, *files)
    assert here.out == there.out and here.status == there.status == 1


@pytest.mark.tsan
def test_many_files_keep_their_order(server, clips):
    files = [clips[i * 7 % len(clips)] for i in range(300)]
    expected = {str(f): a["logits"] for f, a in zip(clips, predict(TINY, clips))}
    for answer in ask(server.grpc, files):
        assert answer["logits"] == expected[answer["file"]]


def test_standard_input(server, clips):
    with clips[1].open("rb") as f:
        answer = ask(server.grpc, ["-"], stdin=f)[0]
    assert answer["logits"] == predict(TINY, [clips[1]])[0]["logits"]


def test_unix_socket(clips, tmp_path):
    with Server("--grpc-address", f"unix:{tmp_path}/socket") as s:
        same(predict(TINY, clips[:1])[0:1], [{**ask(f"unix:{tmp_path}/socket", clips[:1])[0],
                                              **{"receipt": predict(TINY, clips[:1])[0]["receipt"]}}])
        assert s.grpc.startswith("unix:")


# ---- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, word", [
    (["--server", "localhost:1", "--threads", "2"], "--threads"),
    (["--server", "localhost:1", "--device", "cpu"], "--device"),
    (["--server", "localhost:1", "--labels", "x"], "--labels"),
    (["--server", "localhost:1", "--silence-dbfs", "-50"], "--silence-dbfs"),
    (["--token-file", "x"], "--token-file"),
    (["--tls"], "--tls"),
    (["--deadline-ms", "100"], "--deadline-ms"),
    (["--server", "localhost:1", "--deadline-ms", "0"], "--deadline-ms"),
])
def test_wrong_usage(options, word):
    result = run("predict", *options, "a.wav")
    assert result.status == 2 and word in result.err and not result.out


def test_no_start(server, clips, tmp_path):
    for options, word in [(["--model", "none"], "none"), (["--token-file", tmp_path / "absent"], "absent"),
                          (["--tls-cert", clips[0]], "tls_key"), (["--tls-ca", clips[0]], str(clips[0]))]:
        result = run("predict", "--server", server.grpc, *options, clips[0])
        assert result.status == 3 and word in result.err and not result.out


def test_server_that_is_not_there(clips):
    answers = ask("127.0.0.1:1", clips, status=1)
    for answer in answers:
        assert answer["status"] == "error" and "UNAVAILABLE" in answer["message"]
        assert answer["labels"] == [] and answer["scores"] is None


# ---- a server that misbehaves ---------------------------------------------------------------------------------------


def test_unavailable_then_ok(clips):
    down = Answer(code=UNAVAILABLE, message="draining")
    with ScriptedServer([down, down, Answer(prediction())]) as s:
        assert ask(s.address, clips[:1])[0]["dominant"] == {"label": "joy", "score": 0.75}
        assert len(s.calls) == 3
        assert s.calls[2].at - s.calls[0].at > 0.1


def test_pushback(clips):
    full = Answer(code=EXHAUSTED, message="queue-depth", trailers=(("grpc-retry-pushback-ms", "300"),))
    with ScriptedServer([full, Answer(prediction())]) as s:
        assert ask(s.address, clips[:1])[0]["status"] == "ok"
        assert s.calls[1].at - s.calls[0].at >= 0.3
    for trailers in ((), (("grpc-retry-pushback-ms", "-1"),), (("grpc-retry-pushback-ms", "later"),)):
        with ScriptedServer([Answer(code=EXHAUSTED, message="a limit", trailers=trailers)]) as s:
            answer = ask(s.address, clips[:1], status=1)[0]
            assert answer["message"] == "RESOURCE_EXHAUSTED: a limit"
            assert len(s.calls) == 1


def test_slow(clips):
    with ScriptedServer([Answer(prediction(), delay_s=3)]) as s:
        begin = time.monotonic()
        answer = ask(s.address, clips[:1], "--deadline-ms", "500", status=1)[0]
        assert "DEADLINE_EXCEEDED" in answer["message"]
        assert time.monotonic() - begin < 3
        assert len(s.calls) == 1


@pytest.mark.parametrize("answer", [
    Answer(b"\xff\xff\xff"),
    Answer(b""),
    Answer(b"\x08\x01"),
    Answer(b"\x22\x00" * 200000),
    Answer(code=grpc.StatusCode.INTERNAL, message="\x1b[2J\n", trailers=(("grpc-status-details-bin", b"\x01\xff"),)),
])
def test_garbage(clips, answer):
    with ScriptedServer([answer]) as s:
        result = run("predict", "--server", s.address, clips[0])
        assert result.status == 1 and ": error: " in result.out
        assert "\x1b" not in result.out and len(result.out.splitlines()) == 1
        assert ask(s.address, clips[:1], status=1)[0]["status"] == "error"


def test_odd_replies(clips):
    m = stubs().timbre
    scores = [m.Score(label="a\x1bb"), m.Score(label="a\x1bb", score=float("nan"))]
    windows = [m.Window(status=m.ANSWER_STATUS_OK, scores=scores[:1]), m.Window(status=m.ANSWER_STATUS_NO_SPEECH)]
    reply = m.PredictResponse(status=m.ANSWER_STATUS_OK, scores=scores, windows=windows)
    with ScriptedServer([Answer(reply)], model=Answer(code=grpc.StatusCode.UNIMPLEMENTED)) as s:
        answer = ask(s.address, clips[:1])[0]
        assert answer["labels"] == ["a\x1bb"] * 2 and answer["scores"] == [0, None] and answer["dominant"] is None
        assert [w["scores"] for w in answer["windows"]] == [None, None]
        assert "\x1b" not in run("predict", "--server", s.address, clips[0]).out
    unknown = m.PredictResponse(status=77)
    with ScriptedServer([Answer(unknown)]) as s:
        assert ask(s.address, clips[:1], status=1)[0]["status"] == "error"


def test_memory_is_bounded(tmp_path):
    """40 files of 8 MB for a slow server: not all are held at once."""
    data = os.urandom(8 << 20)
    files = []
    for i in range(40):
        files.append(tmp_path / str(i))
        files[-1].write_bytes(data)
    with ScriptedServer([Answer(prediction(), delay_s=0.2)], threads=2) as s:
        result = run("predict", "--server", s.address, *files)
    assert result.status == 0
    if not timbre.is_sanitized():
        assert result.resident_bytes < 200e6


# ---- security -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    ca, other = certificates.make_authority(folder, "ca"), certificates.make_authority(folder, "other")
    return {"ca": ca, "other": other, "server": certificates.make_certificate(folder, "server", ca),
            "client": certificates.make_certificate(folder, "client", ca)}


def test_token(clips, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with ScriptedServer([Answer(prediction())]) as s:
        ask(s.address, clips[:1], "--token-file", tmp_path / "token")
        assert s.calls[0].metadata["authorization"] == "Bearer s3cret"
        ask(s.address, clips[:1])
        assert "authorization" not in s.calls[1].metadata


def test_tls(clips, pki, tmp_path):
    pair = [(pki["server"].key.read_bytes(), pki["server"].cert.read_bytes())]
    mutual = grpc.ssl_server_credentials(pair, pki["ca"].cert.read_bytes(), True)
    with ScriptedServer([Answer(prediction())], credentials=grpc.ssl_server_credentials(pair)) as s:
        ca = ["--tls-ca", pki["ca"].cert]
        assert ask(s.address, clips[:1], *ca)[0]["status"] == "ok"
        assert ask(s.address, clips[:1], *ca, "--tls-server-name", "localhost")[0]["status"] == "ok"
        if not timbre.is_sanitized():  # c-ares of Debian 12 leaks ten bytes for a name that is in /etc/hosts
            assert ask(f"localhost:{s.port}", clips[:1], *ca)[0]["status"] == "ok"
        for wrong in (["--tls-ca", pki["other"].cert], ["--tls"], [*ca, "--tls-server-name", "example.org"]):
            assert "UNAVAILABLE" in ask(s.address, clips[:1], *wrong, status=1)[0]["message"]
    with ScriptedServer([Answer(prediction())], credentials=mutual) as s:
        own = ["--tls-ca", pki["ca"].cert, "--tls-cert", pki["client"].cert, "--tls-key", pki["client"].key]
        assert ask(s.address, clips[:1], *own)[0]["status"] == "ok"
        assert "UNAVAILABLE" in ask(s.address, clips[:1], "--tls-ca", pki["ca"].cert, status=1)[0]["message"]
        mixed = run("predict", "--server", s.address, *own[:4], "--tls-key", pki["other"].key, clips[0])
        assert mixed.status == 3 and "not the key" in mixed.err


# ---- the installed library and the examples -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The prefix of an installation that was moved after it was made."""
    build = timbre.PROGRAM.parents[1]
    if not (build / "client" / "libtimbre_client.so").exists():
        pytest.skip(f"{build} has no client library to install")
    if timbre.is_sanitized():
        pytest.skip("a sanitizer's library wants a program that was built for it")
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(["cmake", "--install", build, "--component", "client", "--prefix", folder / "first"], check=True,
                   capture_output=True)
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


def library_environment(prefix):
    folder = next(prefix.glob("lib*/**/pkgconfig"))
    return {**os.environ, "PKG_CONFIG_PATH": str(folder), "LD_LIBRARY_PATH": str(folder.parent)}


def test_c_example(installed, server, clips, tmp_path):
    env = library_environment(installed)
    shutil.copytree(ROOT / "examples" / "c", tmp_path / "c")
    subprocess.run(["make", "-C", tmp_path / "c", "CFLAGS=-Wall -Wextra -Wpedantic -Werror"], check=True, env=env,
                   capture_output=True)
    done = subprocess.run([tmp_path / "c" / "predict", server.grpc, *clips, "/no/such"], env=env, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    expected = [f"{c}: {a['dominant']['label']} {a['dominant']['score']:.3f}" for c, a in zip(clips, predict(TINY, clips))]
    assert sorted(done.stdout.splitlines()) == sorted([*expected, "/no/such: NOT_FOUND: cannot be read"])


def test_installed_header_stands_alone(installed, tmp_path):
    """It compiles by itself, as C11 and as C++, and the library shows nothing but its own names."""
    (tmp_path / "a.c").write_text("#include <timbre/client.h>\nint main(void) { return timbre_client_version()[0] == 0; }\n")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "timbre-client"], check=True, capture_output=True,
                           text=True, env=library_environment(installed)).stdout.split()
    compilers = [["cc", "-std=c11"]] + ([["c++", "-x", "c++"]] if shutil.which("c++") else [])
    for compiler in compilers:
        subprocess.run([*compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", tmp_path / "a.c", "-x", "none", *flags,
                        "-o", tmp_path / "a"], check=True)
        subprocess.run([tmp_path / "a"], check=True, env=library_environment(installed))
    library = next(installed.glob("lib*/**/libtimbre_client.so"))
    names = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in names.splitlines()]
    assert "timbre_predict" in names
    assert all(n.startswith("timbre_") and "__" not in n for n in names)


def test_python_example(server, clips, tmp_path):
    from grpc_tools import protoc

    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
                        "timbre/v1/timbre.proto"]) == 0
    done = subprocess.run([sys.executable, ROOT / "examples" / "python" / "predict.py", server.grpc, *clips],
                          capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    for line, clip, answer in zip(done.stdout.splitlines(), clips, predict(TINY, clips)):
        assert line == f"{clip}: {answer['dominant']['label']} {answer['dominant']['score']:.3f}"


# ---- bench ----------------------------------------------------------------------------------------------------------


def bench(address, *options, status=0):
    result = run("bench", "--server", address, "--json", *options)
    assert result.status == status, result.err
    assert not result.err
    return json.loads(result.out)


@pytest.mark.tsan
def test_bench_closed(server, clips):
    r = bench(server.grpc, "--concurrency", "4", "--duration", SLOWNESS, "--warmup", "0.2", "--lengths", "0.2,0.5")
    assert r["loop"] == "closed" and r["concurrency"] == 4 and r["failed"] == 0 and r["errors"] == {}
    assert r["calls"] > 0 and r["answers"] == {"ok": r["calls"]}
    assert r["calls_per_s"] == pytest.approx(r["calls"] / r["duration_s"])
    assert 0.2 * r["calls"] <= r["audio_s"] <= 0.5 * r["calls"]
    latency = r["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    assert 1 <= r["batch_size_mean"] <= 4 and r["compute_ms_mean"] > 0
    r = bench(server.grpc, "--requests", "37", "--concurrency", "5", "--connections", "2", *clips)
    assert r["calls"] == 37 and r["attempts"] == 37


@pytest.mark.parametrize("encoding", ["file", "pcm16", "float32", "mulaw", "alaw"])
def test_bench_makes_clips_that_are_heard(server, encoding):
    r = bench(server.grpc, "--requests", "6", "--lengths", "0.5,1", "--encoding", encoding)
    assert r["answers"] == {"ok": 6}
    assert 3 <= r["audio_s"] <= 6
    r = bench(server.grpc, "--requests", "3", "--bytes", "16044", "--encoding", encoding)
    assert r["answers"] == {"ok": 3}


def test_bench_open(server):
    r = bench(server.grpc, "--rate", "50", "--duration", "2", "--lengths", "0.2", "--arrivals", "constant")
    assert r["loop"] == "open" and r["rate"] == 50
    assert 98 <= r["calls"] <= 102 and r["unsent"] == 0
    r = bench(server.grpc, "--rate", "100", "--duration", "2", "--lengths", "0.2", "--seed", "7")
    assert 140 <= r["calls"] <= 260


def test_bench_counts_failures():
    full = Answer(code=EXHAUSTED, message="queue-depth", trailers=(("grpc-retry-pushback-ms", "1"),))
    answers = lambda n, request: full if n % 2 else Answer(prediction())
    with ScriptedServer(answers) as s:
        r = bench(s.address, "--requests", "40", "--concurrency", "4", "--lengths", "0.1", status=1)
        assert r["calls"] == 20 and r["failed"] == 20 and r["attempts"] == 40
        assert r["errors"] == {"RESOURCE_EXHAUSTED": {"count": 20, "message": "queue-depth"}}
    with ScriptedServer(answers) as s:
        r = bench(s.address, "--requests", "20", "--concurrency", "1", "--lengths", "0.1", "--retry")
        assert r["calls"] == 20 and r["failed"] == 0 and r["attempts"] == 39


def test_bench_is_not_held_up_by_a_stall():
    """The server stands still for a second. In an open loop all calls of that second are late, and counted so."""
    begin = time.monotonic()

    def stall(n, request):
        into = time.monotonic() - begin
        return Answer(prediction(), delay_s=max(0.0, 2.0 - into) if into > 1.0 else 0.0)

    with ScriptedServer(stall, threads=8) as s:
        begin = time.monotonic()
        r = bench(s.address, "--rate", "50", "--arrivals", "constant", "--warmup", "0", "--duration", "3", "--lengths", "0.1")
    assert r["calls"] + r["failed"] >= 140
    assert r["latency_ms"]["max"] > 500
    assert r["latency_ms"]["p90"] > 200


def test_bench_at_its_limit_says_so():
    with ScriptedServer([Answer(prediction(), delay_s=0.5)], threads=64) as s:
        r = bench(s.address, "--rate", "200", "--max-in-flight", "4", "--warmup", "0", "--duration", "2", "--lengths", "0.1",
                  status=1)
        assert r["unsent"] > 200 and r["late_ms_max"] > 500


def test_bench_interrupted(server):
    process = subprocess.Popen([timbre.PROGRAM, "bench", "--server", server.grpc, "--json", "--duration", "100", "--warmup",
                                "0", "--lengths", "0.2"], stdout=subprocess.PIPE, text=True)
    time.sleep(SLOWNESS)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    r = json.loads(out)
    assert process.returncode == 0 and r["failed"] == 0 and r["calls"] > 0 and r["duration_s"] < 50


@pytest.mark.parametrize("options, word", [
    ([], "--server"),
    (["--server", "localhost:1", "--rate", "5", "--concurrency", "3"], "--rate or --concurrency"),
    (["--server", "localhost:1", "--lengths", "1,two"], "--lengths"),
    (["--server", "localhost:1", "--lengths", "0"], "--lengths"),
    (["--server", "localhost:1", "--lengths", "1", "--bytes", "5"], "not both"),
    (["--server", "localhost:1", "--lengths", "1", "a.wav"], "not both"),
    (["--server", "localhost:1", "--concurrency", "0"], "--concurrency"),
    (["--server", "localhost:1", "--encoding", "mp3"], "--encoding"),
    (["--server", "localhost:1", "--duration", "nan"], "--duration"),
])
def test_bench_wrong_usage(options, word):
    result = run("bench", *options)
    assert result.status == 2 and word in result.err and not result.out


def test_bench_no_start(server):
    result = run("bench", "--server", "127.0.0.1:1")
    assert result.status == 3 and "UNAVAILABLE" in result.err and not result.out
    assert run("bench", "--server", server.grpc, "--model", "none").status == 3
    assert run("bench", "--server", server.grpc, "/no/such/file").status == 3


def test_bench_help():
    for flag in ("--help", "-h"):
        result = run("bench", flag)
        assert result.status == 0 and result.out.startswith("usage: timbre bench") and not result.err


def test_bench_for_people(server):
    result = run("bench", "--server", server.grpc, "--requests", "10", "--lengths", "0.2")
    assert result.status == 0
    for word in ("calls", "audio", "latency", "p99.9", "batches", "answers"):
        assert word in result.out
