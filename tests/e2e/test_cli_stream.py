"""`timbre stream`: the same answers as `timbre predict --window`, from files and standard input, here and by a server;
and `timbre bench --streams`."""

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import time

import numpy as np
import pytest

import timbre_program as timbre
from timbre_program import predict, run, to_pcm16, voice, wav_bytes, write_wav
from timbre_server import SLOWNESS, TINY, Server, bits

RESULT = {"type", "channel", "channel_name", "role", "start_s", "end_s", "speech_s", "status", "message", "final", "labels",
          "scores", "logits", "dominant", "resume_offset_ms", "lag_ms", "receipt"}
SUMMARY = {"type", "final", "end", "labels", "channels", "talk_over_s", "start_s", "end_s", "resume_offset_ms", "request_id"}
CHANNEL = {"channel", "channel_name", "role", "excluded", "scores", "dominant", "speech_s", "silence_s", "no_speech_share",
           "trend", "results", "no_speech_results", "forwards", "timeline"}
RECEIPT = {"model", "digest", "device", "precision", "batch_size", "queue_ms", "compute_ms", "audio_s"}
WINDOWS = ("--window", "1", "--hop", "0.5")


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """A call of two channels, 6 s at 8 kHz: (file, int16 samples [n, 2])."""
    x = np.stack([to_pcm16(voice(1, 6.0, 8000)), to_pcm16(voice(2, 6.0, 8000))], axis=1)
    return write_wav(tmp_path_factory.mktemp("call") / "call.wav", x, 8000), x


def lines_of(text):
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line["type"] in ("result", "summary", "resume") for line in lines)
    return lines


def stream(path, *options, status=0, pace="0", model=TINY, stdin=None):
    """What `timbre stream --json` prints."""
    pace = ("--pace", pace) if path != "-" else ()
    model = ("--model", model) if model else ()
    done = run("stream", "--json", *model, *pace, *options, "--", path, stdin=stdin)
    assert done.status == status, done.err
    return lines_of(done.out)


def pipe(data, *options, status=0, cuts=(), model=TINY):
    """The same of samples on standard input, cut into pieces that end at `cuts`."""
    model = ("--model", model) if model else ()
    command = [timbre.PROGRAM, "stream", "--json", *map(str, model), *map(str, options), "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    at = 0
    for cut in cuts:
        process.stdin.write(data[at:cut])
        process.stdin.flush()
        time.sleep(0.01)
        at = cut
    out, err = process.communicate(data[at:], timeout=60 * SLOWNESS)
    assert not timbre.REPORT.search(err.decode()), err.decode()
    assert process.returncode == status, err.decode()
    return lines_of(out.decode()), err.decode()


def results(lines, channel=None):
    return [x for x in lines if x["type"] == "result" and channel in (None, x["channel"])]


def last_summary(lines):
    assert [x["final"] for x in lines if x["type"] == "summary"][-1:] == [True] and lines[-1]["type"] == "summary"
    return lines[-1]


def key(x):
    """What must be equal to the bit."""
    scores = [bits(x[k]) if x[k] is not None else None for k in ("scores", "logits") if k in x]
    return x["start_s"], x["end_s"], x["status"], x["final"], *scores


def keys(lines, channel=None):
    return [key(x) for x in results(lines, channel)]


# ---- usage ----------------------------------------------------------------------------------------------------------


def test_help():
    done = run("stream", "--help")
    assert done.status == 0 and done.out.startswith("usage: timbre stream") and not done.err
    assert "stream" in run("--help").out


@pytest.mark.asan
@pytest.mark.parametrize("options, word", [
    ([], "no FILE"),
    (["a.wav", "b.wav"], "more than one FILE"),
    (["--bogus", "a.wav"], "bogus"),
    (["-"], "--raw"),
    (["--raw", "pcm16", "--pace", "1", "-"], "--pace"),
    (["--raw", "mp3", "-"], "mp3"),
    (["--raw", "pcm16", "--rate", "7999", "-"], "--rate"),
    (["--raw", "pcm16", "--channels", "9", "-"], "--channels"),
    (["--rate", "8000", "a.wav"], "--raw"),
    (["--window", "0.01", "a.wav"], "--window"),
    (["--window", "2", "--hop", "3", "a.wav"], "--hop"),
    (["--window", "30", "--hop", "0.5", "a.wav"], "40th"),
    (["--utterances", "--window", "2", "a.wav"], "--window"),
    (["--utterances", "--min-speech", "1", "a.wav"], "--min-speech"),
    (["--interim", "1", "a.wav"], "--utterances"),
    (["--utterance-max", "3", "a.wav"], "--utterances"),
    (["--utterances", "--utterance-max", "300", "a.wav"], "--utterance-max"),
    (["--smoothing", "-1", "a.wav"], "--smoothing"),
    (["--summary-every", "0.5", "a.wav"], "--summary-every"),
    (["--pace", "fast", "a.wav"], "--pace"),
    (["--channel", "x" * 65, "a.wav"], "64 bytes"),
    (["--channel", "\udcff", "a.wav"], "UTF-8"),
    (["--resume-offset", "1500", "a.wav"], "--resume-offset"),
    (["--resume-end", "1,two", "a.wav"], "--resume-end"),
    (["--server", "localhost:1", "--threads", "1", "a.wav"], "--threads"),
    (["--token-file", "x", "a.wav"], "--server"),
    (["--no-resume", "a.wav"], "--server"),
])
def test_wrong_usage(options, word):
    done = run("stream", *options)
    assert done.status == 2
    assert word in done.err and not done.out


@pytest.mark.parametrize("options, word", [
    (["--channel", "a", "--channel", "b", "--channel", "c"], "--channel"),
    (["--exclude", "3"], "--exclude"),
    (["--exclude", "0"], "--exclude"),
    (["--exclude", "nobody"], "nobody"),
    (["--resume-end", "1,2,3"], "--resume-end"),
    (["--resume-offset", "7000"], "behind the end"),
])
def test_wrong_for_this_audio(call, options, word):
    done = run("stream", "--model", TINY, "--pace", "0", *options, call[0])
    assert done.status == 2 and word in done.err and not done.out


@pytest.mark.asan
def test_files_that_cannot_be_streamed(tmp_path):
    files = {"absent.wav": None, "empty.wav": b"", "text.wav": b"no sound",
             "fast.wav": wav_bytes(voice(1, 0.5, 96000), 96000), "slow.wav": wav_bytes(voice(1, 0.5, 4000), 4000),
             "many.wav": wav_bytes(np.zeros((100, 9), np.int16))}
    words = {"fast.wav": "96000 Hz", "slow.wav": "4000 Hz", "many.wav": "9 channels"}
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        done = run("stream", "--model", TINY, tmp_path / name)
        assert done.status == 1 and not done.out
        assert name in done.err and words.get(name, "") in done.err


def test_what_does_not_start(clips):
    done = run("stream", "--model", "/no/such/model", clips[0])
    assert done.status == 3 and "/no/such/model" in done.err
    done = run("stream", "--server", "nonsense://[", clips[0])
    assert done.status in (1, 3) and done.err and not done.out


# ---- the answers ----------------------------------------------------------------------------------------------------


@pytest.mark.asan
@pytest.mark.parametrize("rate_hz, kind", [(16000, "float"), (16000, "pcm16"), (8000, "pcm16"), (44100, "float")])
def test_equals_predict(tmp_path, rate_hz, kind):
    x = voice(3, 5.3, rate_hz)
    path = write_wav(tmp_path / "a.wav", x if kind == "float" else to_pcm16(x), rate_hz)
    answer = predict(TINY, [path], *WINDOWS)[0]
    lines = stream(path, *WINDOWS)
    windows = [(w["start_s"], w["end_s"], w["status"], bits(w["scores"])) for w in answer["windows"]]
    assert [(r["start_s"], r["end_s"], r["status"], bits(r["scores"])) for r in results(lines)] == windows
    assert len(windows) == 10 and last_summary(lines)["channels"][0]["results"] == 10


def test_real_recordings_equal_predict():
    paths = sorted((timbre.DATA / "emodb" / "audio").glob("*.flac"))[:5]
    if not paths:
        pytest.skip(f"no recordings in {timbre.DATA}")
    for path in paths:
        windows = predict(None, [path], "--window", "0.8", "--hop", "0.3")[0]["windows"]
        got = results(stream(path, "--window", "0.8", "--hop", "0.3", model=None))
        assert [(r["start_s"], r["end_s"], r["status"], r["scores"]) for r in got] == [
            (w["start_s"], w["end_s"], w["status"], w["scores"]) for w in windows]


def test_fields(call):
    lines = stream(call[0], *WINDOWS, "--channel", "Anna:customer", "--channel", ":agent")
    labels = list(json.loads((TINY / "config.json").read_text())["id2label"].values())
    for r in results(lines):
        assert set(r) == RESULT and set(r["receipt"]) == RECEIPT
        assert r["labels"] == labels and r["final"] is True and r["message"] == ""
        assert (r["channel_name"], r["role"]) == (("Anna", "customer"), ("2", "agent"))[r["channel"]]
        best = int(np.argmax(r["scores"]))
        assert r["dominant"] == {"label": labels[best], "score": r["scores"][best]}
        assert r["lag_ms"] > 0 and r["resume_offset_ms"] % 1000 == 0 and 0 <= r["speech_s"] <= 1
        assert r["receipt"]["batch_size"] >= 1 and r["receipt"]["model"] == TINY.name
    summary = last_summary(lines)
    assert set(summary) == SUMMARY and summary["end"] == "client" and summary["labels"] == labels
    assert [c["channel_name"] for c in summary["channels"]] == ["Anna", "2"]
    for c, channel in enumerate(summary["channels"]):
        assert set(channel) == CHANNEL and channel["excluded"] is False
        assert channel["results"] == len(results(lines, c)) == 11 and channel["forwards"] == 11
        assert channel["speech_s"] + channel["silence_s"] == pytest.approx(6, abs=0.1)
        weights = sum(s["speech_s"] for s in channel["timeline"])
        mean = sum(np.array(s["scores"]) * s["speech_s"] for s in channel["timeline"]) / weights
        np.testing.assert_allclose(channel["scores"], mean, atol=1e-5)


def test_floats_read_back(call):
    done = run("stream", "--json", "--pace", "0", "--model", TINY, *WINDOWS, "--embedding", "--smoothing", "2", call[0])
    lists = re.findall(r'"(?:scores|logits|embedding|smoothed)":\[([^\]]+)\]', done.out)
    assert len(lists) > 60
    for token in ",".join(lists).split(","):
        value = np.float32(token)
        assert np.isfinite(value)
        assert any(float(f"{value:.{digits}g}") == float(token) for digits in range(6, 10)), token


def test_extras_only_when_asked(call):
    hidden = json.loads((TINY / "config.json").read_text())["hidden_size"]
    lines = stream(call[0], *WINDOWS, "--embedding", "--smoothing", "2", "--summary-every", "2")
    plain = stream(call[0], *WINDOWS)
    for r in results(lines):
        assert set(r) == RESULT | {"embedding", "smoothed"} and len(r["embedding"]) == hidden
        assert sum(r["smoothed"]) == pytest.approx(1, abs=1e-5)
    first, second = results(lines, 0)[:2]
    assert first["smoothed"] == first["scores"] and second["smoothed"] != second["scores"]
    assert keys(lines, 0) == keys(plain, 0)
    assert [s["final"] for s in lines if s["type"] == "summary"][-1:] == [True]
    assert 3 <= sum(s["type"] == "summary" for s in lines) <= 4
    assert [s["end"] for s in lines if s["type"] == "summary" and not s["final"]][:2] == ["", ""]


@pytest.mark.asan
def test_channels_are_apart(call, tmp_path):
    path, x = call
    lines = stream(path, *WINDOWS)
    for c in range(2):
        alone = stream(write_wav(tmp_path / f"{c}.wav", np.ascontiguousarray(x[:, c]), 8000), *WINDOWS)
        assert keys(lines, c) == keys(alone) and len(keys(alone)) == 11


@pytest.mark.parametrize("options", [("--exclude", "1"), ("--channel", "a:x", "--channel", "b", "--exclude", "a"),
                                     ("--channel", "2", "--channel", "1", "--exclude", "2")])
def test_excluded(call, options):
    """By number or by name; a name goes before a number."""
    lines, all_of_them = stream(call[0], *WINDOWS, *options), stream(call[0], *WINDOWS)
    assert not results(lines, 0)
    assert keys(lines, 1) == keys(all_of_them, 1)
    first, second = last_summary(lines)["channels"]
    assert first["excluded"] is True and set(first) == {"channel", "channel_name", "role", "excluded"}
    assert second["excluded"] is False and second["results"] == 11


def test_silence_is_no_speech(tmp_path):
    x = np.concatenate([voice(1, 2), np.zeros(32000, np.float32), voice(2, 2)])
    lines = stream(write_wav(tmp_path / "a.wav", x), "--window", "2", "--hop", "2")
    assert [r["status"] for r in results(lines)] == ["ok", "no_speech", "ok"]
    silent = results(lines)[1]
    assert silent["scores"] is None and silent["logits"] is None and silent["dominant"] is None and silent["message"]
    assert last_summary(lines)["channels"][0]["no_speech_share"] == pytest.approx(1 / 3)


def test_utterances(tmp_path):
    pause = np.zeros(24000, np.float32)
    x = np.concatenate([pause, voice(1, 3), pause, voice(2, 2), pause])
    path = write_wav(tmp_path / "a.wav", to_pcm16(x))
    lines = stream(path, "--utterances", "--interim", "0.5", "--utterance-max", "10")
    final = [r for r in results(lines) if r["final"] and r["status"] == "ok"]
    assert final and all(a["end_s"] <= b["start_s"] for a, b in zip(final, final[1:]))
    assert any(not r["final"] for r in results(lines))
    plain = stream(path, "--utterances", "--utterance-max", "10")
    assert [key(r) for r in results(lines) if r["final"]] == keys(plain)


# ---- where the audio comes from -------------------------------------------------------------------------------------


@pytest.mark.asan
@pytest.mark.tsan
def test_standard_input(call):
    path, x = call
    data = x.tobytes()
    raw = ("--raw", "pcm16", "--rate", "8000", "--channels", "2", *WINDOWS)
    whole, _ = pipe(data, *raw)
    cut, _ = pipe(data, *raw, cuts=(1, 2, 3, 5, 1000, 1003, 20001, 77777))
    expected = stream(path, *WINDOWS)
    for c in range(2):
        assert keys(whole, c) == keys(cut, c) == keys(expected, c)


def test_raw_files(call, tmp_path):
    path, x = call
    (tmp_path / "raw").write_bytes(x.tobytes())
    lines = stream(tmp_path / "raw", "--raw", "pcm16", "--rate", "8000", "--channels", "2", *WINDOWS)
    assert keys(lines, 1) == keys(stream(path, *WINDOWS), 1)


def test_codes_of_a_telephone(tmp_path):
    """A mu-law or A-law file of two channels is sent as its codes."""
    codes = np.random.default_rng(5).integers(0, 256, 2 * 20000, np.uint8).tobytes()
    for tag, name in ((7, "mulaw"), (6, "alaw")):
        form = struct.pack("<HHIIHHH", tag, 2, 8000, 16000, 2, 8, 0)
        body = (b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, 20000) +
                b"data" + struct.pack("<I", len(codes)) + codes)
        (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        lines = stream(tmp_path / "a.wav", *WINDOWS)
        raw, _ = pipe(codes, "--raw", name, "--rate", "8000", "--channels", "2", *WINDOWS)
        for c in range(2):
            assert keys(lines, c) == keys(raw, c) and len(keys(raw, c)) == 4


def test_a_frame_that_is_not_whole(call):
    lines, err = pipe(call[1].tobytes()[:-1], "--raw", "pcm16", "--rate", "8000", "--channels", "2", *WINDOWS, status=1)
    assert results(lines) and "timbre stream: " in err and "byte" in err


def test_other_formats(tmp_path):
    wav = write_wav(tmp_path / "a.wav", to_pcm16(voice(7, 2.0)))
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", wav, tmp_path / "a.flac"], check=True, timeout=60)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", wav, "-c:a", "alac", tmp_path / "a.m4a"], check=True, timeout=60)
    first, flac, alac = (keys(stream(tmp_path / name, *WINDOWS)) for name in ("a.wav", "a.flac", "a.m4a"))
    assert first == flac == alac and first
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", wav, "-c:a", "alac", "-ac", "2", tmp_path / "b.m4a"], check=True,
                   timeout=60)
    done = run("stream", "--model", TINY, tmp_path / "b.m4a")
    assert done.status == 1 and "2 channels" in done.err


# ---- time -----------------------------------------------------------------------------------------------------------


def test_pace(tmp_path):
    path = write_wav(tmp_path / "a.wav", to_pcm16(voice(1, 2.0)))
    expected = keys(stream(path, *WINDOWS))
    for pace, seconds in (("1", 2), ("4", 0.5)):
        begin = time.monotonic()
        assert keys(stream(path, *WINDOWS, pace=pace)) == expected
        assert time.monotonic() - begin >= seconds


@pytest.mark.asan
@pytest.mark.tsan
def test_interrupted(tmp_path, call):
    """Ctrl-C ends the audio; what it held is answered. (Unbuffered, as communicate reads past what readline holds.)"""
    long = write_wav(tmp_path / "a.wav", np.tile(call[1], (20, 1)), 8000)
    raw = ["--raw", "pcm16", "--rate", "8000", "--channels", "2", "-"]
    for arguments, pipes in ((["--pace", "2", str(long)], False), (raw, True)):
        process = subprocess.Popen([timbre.PROGRAM, "stream", "--json", "--model", TINY, *WINDOWS, *arguments],
                                   bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if pipes:
            process.stdin.write(call[1].tobytes()[:-1])
            process.stdin.flush()
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60 * SLOWNESS)
        assert process.returncode == 0, err
        assert not timbre.REPORT.search(err.decode())
        lines = lines_of((first + out).decode())
        summary = last_summary(lines)
        assert summary["end"] == "client" and summary["channels"][0]["results"] == len(results(lines, 0)) < 100


def test_resumed_by_hand(call, tmp_path):
    x = np.tile(call[1], (5, 1))
    path = write_wav(tmp_path / "a.wav", x, 8000)
    whole = stream(path, *WINDOWS)
    offsets_ms = [r["resume_offset_ms"] for r in results(whole)]
    assert offsets_ms == sorted(offsets_ms) and offsets_ms[0] == 0 < offsets_ms[-1] < 30000
    for cut in (0, 5, 50, 90, len(results(whole)) - 1):
        had = results(whole)[:cut + 1]
        ends = [max([r["end_s"] for r in had if r["channel"] == c], default=0) for c in range(2)]
        offset_ms = had[-1]["resume_offset_ms"]
        options = (*WINDOWS, "--resume-offset", offset_ms, "--resume-end", f"{ends[0]},{ends[1]}")
        of_file = stream(path, *options)
        of_input, _ = pipe(x[8 * offset_ms:].tobytes(), "--raw", "pcm16", "--rate", "8000", "--channels", "2", *options)
        for c in range(2):
            rest = [key(r) for r in results(whole)[cut + 1:] if r["channel"] == c]
            assert keys(of_file, c) == rest
            assert keys(of_input, c) == rest


# ---- for people -----------------------------------------------------------------------------------------------------


def test_lines_for_people(call):
    done = run("stream", "--model", TINY, "--pace", "0", *WINDOWS, "--channel", "Ann\x1b[31m", call[0])
    assert done.status == 0 and not done.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.out)
    lines = done.out.splitlines()
    assert sum("Ann" in line and " s  " in line for line in lines) >= 11
    assert any(line.startswith("summary of 0.00 – ") for line in lines)


def test_terminal(tmp_path):
    """Lines of what is not final yet are overwritten in place."""
    path = write_wav(tmp_path / "a.wav", np.concatenate([voice(1, 3), np.zeros(24000, np.float32)]))
    parent, child = pty.openpty()
    process = subprocess.Popen([timbre.PROGRAM, "stream", "--model", TINY, "--pace", "0", "--utterances", "--interim", "0.5",
                                path], stdin=subprocess.DEVNULL, stdout=child, stderr=child)
    os.close(child)
    text = b""
    while True:
        readable, _, _ = select.select([parent], [], [], 30 * SLOWNESS)
        assert readable
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        text += piece
    os.close(parent)
    assert process.wait(30 * SLOWNESS) == 0, text
    shown = [line.split("\r\033[K")[-1] for line in text.decode().split("\r\n")]
    assert "\r\033[K" in text.decode() and "█" in text.decode()
    assert not any("…" in line for line in shown) and any("summary of" in line for line in shown)


def test_output_that_cannot_be_written(call):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([timbre.PROGRAM, "stream", "--json", "--pace", "0", "--model", TINY, call[0]], stdout=full,
                              stderr=subprocess.DEVNULL, timeout=60 * SLOWNESS)
    assert done.returncode == 1


# ---- by a server ----------------------------------------------------------------------------------------------------


@pytest.mark.tsan
def test_server_says_the_same(server, call):
    options = (*WINDOWS, "--channel", "Anna:customer", "--channel", ":agent", "--smoothing", "2", "--embedding")
    here, there = stream(call[0], *options), stream(call[0], *options, "--server", server.grpc, model=None)
    for c in range(2):
        for a, b in zip(results(here, c), results(there, c), strict=True):
            for x in (a, b):
                x["receipt"] = {k: v for k, v in x["receipt"].items() if k in ("digest", "device", "precision", "audio_s")}
                x["lag_ms"] = None
            assert a == b
    a, b = last_summary(here), last_summary(there)
    assert a.pop("request_id") == "" and b.pop("request_id")
    assert a == b


def test_server_standard_input_and_exclusion(server, call):
    raw = ("--raw", "pcm16", "--rate", "8000", "--channels", "2", *WINDOWS, "--exclude", "2")
    lines, _ = pipe(call[1].tobytes(), *raw, "--server", server.grpc, cuts=(7, 30000), model=None)
    assert keys(lines) == keys(stream(call[0], *WINDOWS), 0)
    assert last_summary(lines)["channels"][1] == {"channel": 1, "channel_name": "2", "role": "", "excluded": True}


def test_server_refuses(server, call):
    done = run("stream", "--server", server.grpc, "--model", "nobody", call[0])
    assert done.status == 3 and "NOT_FOUND" in done.err and not done.out
    done = run("stream", "--server", "127.0.0.1:1", "--deadline-ms", "500", call[0])
    assert done.status == 1 and done.err and not done.out


def test_drain_is_gone_on_with(call, tmp_path):
    """A server goes in the middle of a call. Another one, told what the first one's last lines say, gives the rest."""
    path = write_wav(tmp_path / "a.wav", np.tile(call[1], (3, 1)), 8000)
    whole = stream(path, *WINDOWS)
    with Server() as first:
        command = [timbre.PROGRAM, "stream", "--json", "--server", first.grpc, "--no-resume", *WINDOWS, path]
        process = subprocess.Popen(command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        had = [process.stdout.readline() for _ in range(5)]
        first.terminate()
        out, err = process.communicate(timeout=60 * SLOWNESS)
    assert process.returncode == 1 and b"UNAVAILABLE" in err
    lines = lines_of((b"".join(had) + out).decode())
    summary = last_summary(lines)
    assert summary["end"] == "drain" and len(results(lines)) < len(results(whole))
    ends = [max(r["end_s"] for r in results(lines, c)) for c in range(2)]
    rest = stream(path, *WINDOWS, "--resume-offset", summary["resume_offset_ms"], "--resume-end", f"{ends[0]},{ends[1]}")
    for c in range(2):
        assert keys(lines, c) + keys(rest, c) == keys(whole, c)


# ---- bench ----------------------------------------------------------------------------------------------------------


def bench(address, *options, status=0):
    done = run("bench", "--server", address, "--json", *options)
    assert done.status == status, done.err + done.out
    return json.loads(done.out)


@pytest.mark.tsan
def test_bench_streams(server):
    r = bench(server.grpc, "--streams", "5", "--connections", "2", "--duration", "3", "--window", "1", "--hop", "0.5")
    assert (r["streams"], r["channels"], r["encoding"], r["sample_rate_hz"]) == (5, 2, "mulaw", 8000)
    assert r["failed"] == r["resumed"] == 0 and r["errors"] == {}
    assert r["every_stream"]["missing"] == r["every_stream"]["doubled"] == r["every_stream"]["misplaced"] == 0
    assert r["every_stream"]["final"] >= r["results"] == r["results_final"] > 0
    assert sum(r["answers"].values()) == r["results"] and set(r["answers"]) == {"ok"}
    for times in (r["lag_ms"], r["first_result_ms"]):
        assert 0 <= times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["p99_9"] <= times["max"]
    assert r["first_result_ms"]["min"] >= 1000  # which is when the first window ends
    assert r["batch_size_mean"] >= 1 and r["audio_s"] > 0


@pytest.mark.parametrize("encoding", ["pcm16", "float32", "mulaw", "alaw"])
def test_bench_streams_of_files(server, clips, encoding):
    r = bench(server.grpc, "--streams", "2", "--channels", "1", "--encoding", encoding, "--sample-rate", "16000",
              "--chunk-ms", "100", "--duration", "1", "--window", "0.5", *clips[1:])
    assert r["failed"] == 0 and r["every_stream"]["missing"] == 0 and r["every_stream"]["final"] > 4
    assert set(r["answers"]) == {"ok"}


def test_bench_streams_of_utterances(server, clips):
    r = bench(server.grpc, "--streams", "2", "--utterances", "--duration", "2", *clips[1:])
    assert r["failed"] == 0 and r["every_stream"]["missing"] == r["every_stream"]["misplaced"] == 0
    assert r["every_stream"]["final"] > 0


def test_bench_streams_counts_failures():
    with Server("--max-streams", "2") as server:
        r = bench(server.grpc, "--streams", "3", "--duration", "1", "--window", "0.5", "--chunk-ms", "50", "--no-retry",
                  status=1)
        assert r["failed"] == 1 and r["errors"]["RESOURCE_EXHAUSTED"]["count"] == 1
        assert "max-streams" in r["errors"]["RESOURCE_EXHAUSTED"]["message"]
        assert r["resumed"] == r["every_stream"]["missing"] == 0 and r["every_stream"]["final"] > 4


def test_bench_streams_interrupted(server):
    """With a report of what there was, and every stream brought to its end."""
    process = subprocess.Popen([timbre.PROGRAM, "bench", "--server", server.grpc, "--json", "--streams", "2", "--duration",
                                "100", "--window", "0.5"], stdout=subprocess.PIPE, text=True)
    time.sleep(2 * SLOWNESS)
    process.send_signal(signal.SIGINT)
    r = json.loads(process.communicate(timeout=30 * SLOWNESS)[0])
    assert process.returncode == 0 and r["failed"] == r["every_stream"]["missing"] == 0 < r["every_stream"]["final"]
    assert r["duration_s"] < 50


@pytest.mark.parametrize("options, word", [
    (["--streams", "0"], "--streams"),
    (["--streams", "2", "--rate", "5"], "--rate"),
    (["--streams", "2", "--lengths", "1"], "--lengths"),
    (["--streams", "2", "--encoding", "file"], "--encoding"),
    (["--streams", "2", "--sample-rate", "4000"], "Hz"),
    (["--streams", "2", "--sample-rate", "11025"], "--chunk-ms"),
    (["--streams", "2", "--utterances", "--window", "1"], "--utterances"),
    (["--streams", "2", "--window", "1", "--hop", "2"], "--hop"),
    (["--window", "1"], "--streams"),
])
def test_bench_streams_wrong_usage(options, word):
    done = run("bench", "--server", "localhost:1", *options)
    assert done.status == 2 and word in done.err and not done.out
