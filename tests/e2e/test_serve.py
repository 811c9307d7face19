"""timbre.v1 through the real server, by generated stubs: every answer is what `timbre predict` says, bit for bit."""

import asyncio
import re
import shutil
import subprocess

import grpc
import numpy as np
import pytest

from timbre_program import GOLDEN, predict, to_pcm16, voice, wav_bytes, write_wav
from timbre_server import (SLOWNESS, TINY, Server, bits, bits_of, bits_of_answer, calling, connect, details_of, raises,
                           request_of, stubs)

TIMEOUT_S = 20 * SLOWNESS
NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT

pytestmark = pytest.mark.asan


@pytest.fixture(scope="module")
def server():
    with Server("--model", f"large={GOLDEN / 'large'}", "--model", f"number={GOLDEN / 'regression'}") as s:
        yield s


def ask(stub, audio, **fields):
    return stub.Predict(request_of(audio, **fields), timeout=TIMEOUT_S)


def ok(response):
    assert response.status == stubs().timbre.ANSWER_STATUS_OK, response
    return response


# ---- the same answers as the command line ---------------------------------------------------------------------------


def test_files(stub, clips):
    answers = predict(TINY, clips)
    for clip, answer in zip(clips, answers):
        response = ok(ask(stub, clip))
        assert bits_of(response) == bits_of_answer(answer)
        assert [s.label for s in response.scores] == answer["labels"]
        assert response.dominant.label == answer["dominant"]["label"]
        assert bits([response.dominant.score]) == bits([answer["dominant"]["score"]])
        assert response.duration_s == answer["duration_s"]
        assert not response.message and not response.windows and not response.embedding


RAW = {
    "PCM16": ("pcm16", lambda x: to_pcm16(x).tobytes()),
    "FLOAT32": ("float32", lambda x: x.tobytes()),
    "MULAW": ("mulaw", lambda x: to_pcm16(x).view(np.uint8)[::2].tobytes()),
    "ALAW": ("alaw", lambda x: to_pcm16(x).view(np.uint8)[1::2].tobytes()),
}


@pytest.mark.parametrize("rate_hz,channels", [(0, 0), (8000, 1), (16000, 2), (44100, 3)])
@pytest.mark.parametrize("encoding", RAW)
def test_raw_encodings(stub, tmp_path, encoding, rate_hz, channels):
    name, encode = RAW[encoding]
    data = encode(voice(7, 2.5)[: 3 * 13000])
    (tmp_path / "raw").write_bytes(data)
    flags = ["--raw", name, "--rate", str(rate_hz or 16000), "--channels", str(channels or 1)]
    (answer,) = predict(TINY, [tmp_path / "raw"], *flags)
    form = {"encoding": f"ENCODING_{encoding}", "sample_rate_hz": rate_hz, "channels": channels}
    response = ok(ask(stub, data, format=form))
    assert bits_of(response) == bits_of_answer(answer)
    assert response.duration_s == answer["duration_s"]


@pytest.mark.parametrize("encoding", ["ENCODING_UNSPECIFIED", "ENCODING_FILE"])
def test_a_file_has_its_own_rate(stub, clips, encoding):
    response = ok(ask(stub, clips[1], format={"encoding": encoding, "sample_rate_hz": 8000, "channels": 2}))
    assert bits_of(response) == bits_of(ask(stub, clips[1]))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg")
@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "m4a", "webm", "opus"])
def test_formats(stub, clips, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", clips[3], path], check=True)
    (answer,) = predict(TINY, [path])
    assert bits_of(ok(ask(stub, path))) == bits_of_answer(answer)


def test_windows(stub, tmp_path):
    clip = write_wav(tmp_path / "long.wav", voice(3, 7.3))
    for fields, flags in (({"length_s": 2, "hop_s": 0.5}, ["--window", "2", "--hop", "0.5"]),
                          ({"length_s": 2}, ["--window", "2", "--hop", "1"]),
                          ({}, ["--window", "10", "--hop", "5"])):
        (answer,) = predict(TINY, [clip], *flags)
        response = ok(ask(stub, clip, windows=fields))
        assert bits_of(response) == bits_of_answer(answer)
        assert len(response.windows) == len(answer["windows"]) > 0
        for window, expected in zip(response.windows, answer["windows"]):
            assert (window.start_s, window.end_s) == (expected["start_s"], expected["end_s"])
            assert bits([s.score for s in window.scores]) == bits(expected["scores"])


def test_long_audio_goes_by_windows(stub, tmp_path):
    clip = write_wav(tmp_path / "long.wav", voice(4, 31))
    (answer,) = predict(TINY, [clip])
    response = ok(ask(stub, clip))
    assert bits_of(response) == bits_of_answer(answer)
    assert len(response.windows) == len(answer["windows"]) > 1


def test_embedding(stub, clips):
    (answer,) = predict(TINY, clips[:1], "--embedding")
    assert bits(ok(ask(stub, clips[0], embedding=True)).embedding) == bits(answer["embedding"])


def test_top_k(stub, clips):
    everything = sorted(ask(stub, clips[0]).scores, key=lambda s: -s.score)
    for k in range(1, len(everything) + 3):
        response = ok(ask(stub, clips[0], top_k=k, windows={"length_s": 0.2}))
        assert all(len(w.scores) == min(k, len(everything)) for w in response.windows)
        assert list(ok(ask(stub, clips[0], top_k=k)).scores) == everything[:k]
    with raises(INVALID, "top_k"):
        ask(stub, clips[0], top_k=-1)


def test_priority_changes_no_score(stub, clips):
    first = bits_of(ask(stub, clips[2]))
    for priority in (1, 2):
        assert bits_of(ask(stub, clips[2], priority=priority)) == first
    with raises(INVALID, "priority"):
        ask(stub, clips[2], priority=3)


def test_receipt(server, stub, clips):
    (answer,) = predict(TINY, clips[3:])
    receipt, expected = ask(stub, clips[3]).receipt, answer["receipt"]
    assert (receipt.model, receipt.model_version) == ("tiny", "1")
    for field in ("digest", "device", "precision", "audio_s"):
        assert getattr(receipt, field) == expected[field]
    assert receipt.batch_size >= 1 and receipt.queue_ms >= 0 and receipt.compute_ms > 0


def test_what_has_no_score_is_an_answer(stub):
    m = stubs().timbre
    for samples, status in ((np.zeros(16000, np.float32), m.ANSWER_STATUS_NO_SPEECH),
                            (voice(1, 0.01), m.ANSWER_STATUS_TOO_SHORT)):
        response = ask(stub, wav_bytes(samples))
        assert response.status == status and response.message
        assert not response.scores and not response.HasField("dominant")
        assert response.receipt.batch_size == 0 and response.receipt.model == "tiny"


def test_regression_has_no_dominant_label(stub, clips):
    (answer,) = predict(GOLDEN / "regression", clips[:1])
    response = ok(ask(stub, clips[0], model="number"))
    assert answer["dominant"] is None and not response.HasField("dominant")
    assert bits_of(response) == bits_of_answer(answer)


# ---- models ---------------------------------------------------------------------------------------------------------


def test_models_by_name(stub, clips):
    for name, folder in (("tiny", TINY), ("large", GOLDEN / "large"), ("", TINY)):
        (answer,) = predict(folder, clips[:1])
        for version in ("", "1"):
            response = ok(ask(stub, clips[0], model=name, model_version=version))
            assert bits_of(response) == bits_of_answer(answer)
            assert response.receipt.digest == answer["receipt"]["digest"]


def test_unknown_models(stub, clips):
    for fields in ({"model": "nobody"}, {"model": "Tiny"}, {"model": "../base"}, {"model": "é" * 500},
                   {"model": "tiny", "model_version": "7"}, {"model_version": "x"}):
        with raises(NOT_FOUND) as caught:
            ask(stub, clips[0], **fields)
        assert details_of(caught.error)["ErrorInfo"].reason == "MODEL_NOT_FOUND"
        with raises(NOT_FOUND):
            stub.GetModel(stubs().timbre.GetModelRequest(**fields), timeout=TIMEOUT_S)
    with raises(NOT_FOUND, "nobody", "tiny", "large"):
        ask(stub, clips[0], model="nobody")


def test_models_are_described(stub):
    m = stubs().timbre
    models = stub.ListModels(m.ListModelsRequest(), timeout=TIMEOUT_S).models
    assert [x.name for x in models] == ["tiny", "large", "number"]
    for model in models:
        assert stub.GetModel(m.GetModelRequest(model=model.name), timeout=TIMEOUT_S) == model
    tiny = models[0]
    assert stub.GetModel(m.GetModelRequest(), timeout=TIMEOUT_S) == tiny
    assert (tiny.version, tiny.family, tiny.output) == ("1", "wav2vec2", "softmax")
    assert len(tiny.labels) == 4 and tiny.sample_rate_hz == 16000 and len(tiny.digest) == 64
    assert tiny.hidden > 0 and tiny.parameters > 1000 and tiny.device.startswith("cpu") and tiny.precision == "fp32"
    assert 0.02 < tiny.min_audio_s < 0.03 and tiny.frame_s == 0.02
    assert models[2].output == "none"


# ---- wrong requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields,field", [
    ({"format": {"encoding": 17}}, "format.encoding"),
    ({"format": {"encoding": "ENCODING_PCM16", "sample_rate_hz": 999}}, "format.sample_rate_hz"),
    ({"format": {"encoding": "ENCODING_PCM16", "sample_rate_hz": -1}}, "format.sample_rate_hz"),
    ({"format": {"encoding": "ENCODING_ALAW", "channels": 65}}, "format.channels"),
    ({"windows": {"length_s": 0.01}}, "windows.length_s"),
    ({"windows": {"length_s": 30.5}}, "windows.length_s"),
    ({"windows": {"length_s": float("nan")}}, "windows.length_s"),
    ({"windows": {"length_s": 2, "hop_s": 3}}, "windows.hop_s"),
    ({"windows": {"hop_s": float("inf")}}, "windows.hop_s"),
    ({"windows": {"hop_s": -1}}, "windows.hop_s"),
    ({"request_id": "a" * 129}, "request_id"),
    ({"request_id": "é"}, "request_id"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"audio": b""}, "audio"),
])
def test_wrong_fields_are_named(stub, clips, fields, field):
    with raises(INVALID, field) as caught:
        stub.Predict(stubs().timbre.PredictRequest(**{"audio": clips[0].read_bytes(), **fields}), timeout=TIMEOUT_S)
    details = details_of(caught.error)
    assert [v.field for v in details["BadRequest"].field_violations] == [field]
    assert re.fullmatch(r"[A-Z_]+", details["ErrorInfo"].reason) and "RetryInfo" not in details


@pytest.mark.parametrize("audio", [b"\0" * 100, b"hello", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC" + bytes(1000),
                                   b"\xff\xfb\x90\0" * 200, bytes(range(256)) * 50],
                         ids=["zeros", "text", "wav", "flac", "mp3", "bytes"])
def test_bad_audio(stub, audio):
    with raises(INVALID) as caught:
        ask(stub, audio)
    assert len(caught.error.details()) > 10
    assert details_of(caught.error)["ErrorInfo"].reason == "BAD_AUDIO"


def test_audio_longer_than_the_limit(clips):
    with Server("--max-duration", "2") as server, calling(server) as stub:
        ok(ask(stub, clips[1]))
        with raises(grpc.StatusCode.RESOURCE_EXHAUSTED, "max-duration") as caught:
            ask(stub, clips[3])
        assert "RetryInfo" not in details_of(caught.error), "it will never pass"


def test_broken_messages(server, clips):
    whole = request_of(clips[0], model="tiny").SerializeToString()
    with connect(server.grpc) as channel:
        call = channel.unary_unary("/timbre.v1.Timbre/Predict", lambda b: b, lambda b: b)
        cut = [whole[:n] for n in (1, 2, 3, 100, len(whole) - 1)]
        for broken in [b"\xff", b"\0", b"\x0a\xff\xff\xff\xff\x0f", b"\x1a\x02\xff\xfe", b"", *cut]:
            with raises(INVALID):
                call(broken, timeout=TIMEOUT_S)
        assert call(whole, timeout=TIMEOUT_S)


def test_unknown_methods(server):
    with connect(server.grpc) as channel:
        for path in ("/timbre.v1.Timbre/Sing", "/timbre.v1.Timbre/", "/x", "/timbre.v2.Timbre/Predict", "/" + "a" * 3000):
            with raises(grpc.StatusCode.UNIMPLEMENTED) as caught:
                channel.unary_unary(path, lambda b: b, lambda b: b)(b"hello", timeout=TIMEOUT_S)
            details_of(caught.error)
        with raises(grpc.StatusCode.UNIMPLEMENTED):
            list(channel.stream_stream("/a/b", lambda b: b, lambda b: b)(iter([b"x"] * 3), timeout=TIMEOUT_S))


# ---- request ids and the log ----------------------------------------------------------------------------------------


def test_request_ids(stub, clips):
    audio = clips[0].read_bytes()
    id_ = "".join(map(chr, range(32, 127))) + "x" * 33
    assert ask(stub, audio, request_id=id_).request_id == id_
    by_header = stub.Predict(request_of(audio), metadata=[("x-request-id", "abc-1")], timeout=TIMEOUT_S)
    assert by_header.request_id == "abc-1"
    both = stub.Predict(request_of(audio, request_id="mine"), metadata=[("x-request-id", "abc")], timeout=TIMEOUT_S)
    assert both.request_id == "mine"
    made = {ask(stub, audio).request_id for _ in range(10)}
    made.add(stub.Predict(request_of(audio), metadata=[("x-request-id", "x" * 200)], timeout=TIMEOUT_S).request_id)
    assert len(made) == 11 and all(10 < len(i) < 60 for i in made)


def test_the_log_tells_of_calls_and_never_of_audio(clips):
    audio = wav_bytes(voice(1, 0.5)) + b"LIST secret-in-audio"
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Server("--access-log", "all", "--log-format", "json") as server, calling(server) as stub:
        stub.Predict(request_of(audio, request_id="id-7"), metadata=[("traceparent", trace)], timeout=TIMEOUT_S)
        with raises(INVALID):
            ask(stub, b"secret-in-audio" * 10)
        server.terminate()
        server.wait()
        text = server.log_text()
    lines = [line for line in text.splitlines() if "Predict" in line]
    assert len(lines) == 2
    assert "id-7" in lines[0] and "0af7651916cd43dd8448eb211c80319c" in lines[0] and '"OK"' in lines[0]
    assert "INVALID_ARGUMENT" in lines[1]
    assert "secret" not in text


# ---- other clients --------------------------------------------------------------------------------------------------


def test_asyncio(server, clips):
    answers = predict(TINY, clips)

    async def ask_all():
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)
            return await asyncio.gather(*(stub.Predict(request_of(c), timeout=TIMEOUT_S) for c in clips * 5))

    for response, answer in zip(asyncio.run(ask_all()), answers * 5):
        assert bits_of(response) == bits_of_answer(answer)


def test_grpclib(server, clips):
    """An HTTP/2 stack that shares nothing with gRPC's own."""
    from grpclib.client import Channel, UnaryUnaryMethod
    from grpclib.exceptions import GRPCError

    m = stubs().timbre
    answers = predict(TINY, clips)

    async def ask_all():
        host, port = server.grpc.rsplit(":", 1)
        async with Channel(host, int(port)) as channel:
            call = UnaryUnaryMethod(channel, "/timbre.v1.Timbre/Predict", m.PredictRequest, m.PredictResponse)
            with pytest.raises(GRPCError) as caught:
                await call(request_of(clips[0], model="nobody"), timeout=TIMEOUT_S)
            assert caught.value.status.name == "NOT_FOUND" and "nobody" in caught.value.message
            return await asyncio.gather(*(call(request_of(c), timeout=TIMEOUT_S) for c in clips * 3))

    for response, answer in zip(asyncio.run(ask_all()), answers * 3):
        assert bits_of(response) == bits_of_answer(answer)


def test_compressed_requests(server, clips):
    (answer,) = predict(TINY, clips[:1])
    for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with calling(server) as stub:
            response = stub.Predict(request_of(clips[0]), compression=way, timeout=TIMEOUT_S)
            assert bits_of(response) == bits_of_answer(answer)


def test_several_audio_fields_the_last_counts(server, clips):
    """As protobuf has it: a field that comes twice has its last value."""
    twice = request_of(b"junk").SerializeToString() + request_of(clips[0]).SerializeToString()
    (answer,) = predict(TINY, clips[:1])
    with connect(server.grpc) as channel:
        call = channel.unary_unary("/timbre.v1.Timbre/Predict", lambda b: b, stubs().timbre.PredictResponse.FromString)
        assert bits_of(call(twice, timeout=TIMEOUT_S)) == bits_of_answer(answer)


# ---- starting -------------------------------------------------------------------------------------------------------


def test_ready_line_and_http(server):
    assert re.fullmatch(r"127\.0\.0\.1:\d+", server.grpc) and re.fullmatch(r"127\.0\.0\.1:\d+", server.http)
    assert server.get("/healthz")[0] == 200 and server.get("/readyz")[0] == 200
    status, text = server.get("/metrics")
    assert status == 200 and "timbre_" in text


def test_without_http():
    with Server("--http-address", "") as server:
        assert server.http is None


def test_ipv6_and_unix_sockets(clips, tmp_path):
    (answer,) = predict(TINY, clips[:1])
    for address in ("[::1]:0", f"unix:{tmp_path}/socket"):
        with Server("--grpc-address", address) as server, calling(server) as stub:
            assert bits_of(ask(stub, clips[0])) == bits_of_answer(answer)


def test_the_ready_line_comes_when_all_can_be_called(clips):
    for _ in range(3):
        with Server() as server, calling(server) as stub:
            ok(stub.Predict(request_of(clips[0]), wait_for_ready=False, timeout=TIMEOUT_S))

