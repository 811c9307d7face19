"""The messages of a stream: their order, what is wrong with them, the limits, summaries."""

import hashlib
import math
import threading
import time

import grpc
import numpy as np
import pytest

from raw_http2 import RawClient, frame
from stream_client import (TIMEOUT_S, StreamClient, ask_stream, config_of, encode, go_on, keys, pieces, talk)
from timbre_program import to_pcm16, voice
from timbre_server import (SLOWNESS, TINY, Server, calling, connect, details_of, raises, request_of, stubs, trailer_of,
                           wait_until)
from triton_calls import client_of

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
PATH = "/timbre.v1.Timbre/StreamingPredict"
MB = 1_000_000

pytestmark = [pytest.mark.asan]


@pytest.fixture(scope="module")
def audio():
    return encode(to_pcm16(voice(1, 4.0)), "pcm16")


def request(**fields):
    return stubs().timbre.StreamingPredictRequest(**fields)


def fails(stub, *messages, finish=True):
    """How a stream of these messages ends, and it must not be well: (StreamClient, details)."""
    with StreamClient(stub, *messages) as s:
        if finish:
            s.finish()
        s.wait()
        assert s.error, "it ended well"
        return s, details_of(s.error)


def reason_of(details):
    assert details["ErrorInfo"].domain == "timbre"
    return details["ErrorInfo"].reason


def ended_well(stub, audio):
    assert ask_stream(stub, config_of(windows=(1.0, 0.5)), audio).results


# ---- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.tsan
def test_the_first_message_is_the_config(stub, audio):
    m = stubs().timbre
    for first in (request(audio=audio), request(summary=m.SummaryRequest()), request()):
        s, details = fails(stub, first, finish=False)
        assert s.code == INVALID and "config" in s.error.details() and not s.messages
        assert reason_of(details) == "WRONG_ORDER"
    s, _ = fails(stub)
    assert s.code == INVALID and "config" in s.error.details() and not s.messages


@pytest.mark.tsan
def test_a_second_config(stub, audio):
    """Also the very same one: results of what was complete, a final summary, then the error."""
    m = stubs().timbre
    config = config_of(windows=(1.0, 0.5))
    for second in (config, config_of(rate_hz=8000, windows=(1.0, 0.5))):
        s, details = fails(stub, config, request(audio=audio), request(config=second), request(audio=audio), finish=False)
        assert s.code == INVALID and "config" in s.error.details()
        assert reason_of(details) == "WRONG_ORDER" and "message 3" in s.error.details()
        assert s.summary.final and s.summary.end == m.STREAM_END_ERROR
        assert len(s.results) <= 7 and s.messages[-1].HasField("summary")


def test_an_empty_message_in_a_stream(stub, audio):
    s, details = fails(stub, config_of(), request(audio=audio), request(), finish=False)
    assert s.code == INVALID and reason_of(details) == "WRONG_ORDER" and "message 3" in s.error.details()


def test_what_is_no_message(server, audio):
    with connect(server.grpc) as channel:
        call = channel.stream_stream(PATH)
        for messages in ([b"\xff\xff\xff"], [request(config=config_of()).SerializeToString(), b"\x0a\xff"]):
            with raises(INVALID) as caught:
                list(call(iter(messages), timeout=TIMEOUT_S))
            assert reason_of(details_of(caught.error)) == "MALFORMED_MESSAGE"


@pytest.mark.tsan
def test_a_stream_of_nothing(stub):
    """A config and the end is a stream without results."""
    s = ask_stream(stub, config_of(channels=2, names=("a", "b")), b"")
    assert not s.results and len(s.messages) == 1
    assert [c.channel_name for c in s.summary.channels] == ["a", "b"]
    assert all(c.speech_s == c.silence_s == c.results == 0 and not c.scores for c in s.summary.channels)
    assert s.summary.request_id
    s = ask_stream(stub, config_of(utterances={}), b"", [b"", b""])
    assert not s.results


def test_request_id(stub, audio):
    assert ask_stream(stub, config_of(request_id="call-7"), audio).summary.request_id == "call-7"
    with StreamClient(stub, config_of(), metadata=[("x-request-id", "call-8")]) as s:
        s.finish()
        assert s.check().summary.request_id == "call-8"
    s, details = fails(stub, config_of(request_id="a\n"))
    assert s.code == INVALID and details["BadRequest"].field_violations[0].field.endswith("request_id")


# ---- what is wrong with the audio -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding,channels,bytes_", [("pcm16", 1, 3201), ("pcm16", 2, 3202), ("float32", 1, 6403),
                                                      ("mulaw", 2, 1601), ("alaw", 3, 1600)])
def test_odd_bytes_at_the_end(stub, encoding, channels, bytes_):
    s, details = fails(stub, config_of(encoding, 16000, channels), request(audio=bytes(bytes_)))
    assert s.code == INVALID and str(bytes_) in s.error.details(), s.error.details()
    assert reason_of(details) == "BAD_AUDIO"
    assert s.summary.final and s.summary.end == stubs().timbre.STREAM_END_ERROR


@pytest.mark.tsan
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number(stub, value):
    """What, of which channel, and when; windows that were complete come first."""
    samples = np.stack([voice(1, 3.0), voice(2, 3.0)], axis=1)
    samples[40000, 1] = value  # at 2.5 s
    config = config_of("float32", 16000, 2, windows=(1.0, 0.5))
    s, details = fails(stub, config, *(request(audio=p) for p in pieces(samples.tobytes(), 1001)))
    assert s.code == INVALID and reason_of(details) == "BAD_AUDIO"
    text = s.error.details()
    assert "2.5" in text and "channel 1" in text and ("nan" in text.lower() or "inf" in text.lower() or "finite" in text)
    assert {(r.channel, r.start_s) for r in s.results} >= {(c, t) for c in (0, 1) for t in (0.0, 0.5, 1.0)}
    assert all(r.end_s <= 2.5 for r in s.results)
    assert s.summary.end == stubs().timbre.STREAM_END_ERROR


def test_time_of_an_error_is_that_of_the_call(stub):
    """In a stream that goes on, too."""
    samples = voice(1, 3.0)
    samples[8000] = math.nan
    s, _ = fails(stub, config_of("float32", resume_offset_ms=60000), request(audio=samples.tobytes()))
    assert "60.5" in s.error.details()


# ---- fields ---------------------------------------------------------------------------------------------------------


def wrong_configs():
    m = stubs().timbre
    nan = math.nan
    windows = {"windows.length_s": [0.04, 30.1, -1, nan], "windows.hop_s": [0.009, 1.1, -1, nan],
               "windows.speech_s_min": [-0.1, 1.5, nan]}
    for field, values in windows.items():
        for value in values:
            yield field, config_of(windows=(1.0, 0.5)), {field: value}
    yield "windows.hop_s", config_of(windows=(2.0, 0.04)), {}
    utterances = {"length_s_min": [0.01, 6, nan], "length_s_max": [0.5, 31, nan], "hangover_s": [0.05, 6, -1, nan],
                  "interim_every_s": [0.1, -1, nan]}
    for field, values in utterances.items():
        for value in values:
            yield f"utterances.{field}", config_of(utterances={}), {f"utterances.{field}": value}
    yield "length_s_min", config_of(utterances={"length_s_min": 3, "length_s_max": 2}), {}
    for field, values in {"smoothing_s": [-1, 3601, nan], "summary_every_s": [0.5, -1, nan],
                          "resume_offset_ms": [-1000, 1500, 1]}.items():
        for value in values:
            yield field, config_of(), {field: value}
    formats = {"format.encoding": [m.ENCODING_UNSPECIFIED, m.ENCODING_FILE, 77], "format.channels": [-1, 9, 64],
               "format.sample_rate_hz": [-1, 1000, 7999, 48001, 768000]}
    for field, values in formats.items():
        for value in values:
            yield field, config_of(), {field: value}
    yield "format", m.StreamConfig(), {}
    yield "channels", config_of(channels=2, names=("only",) * 2, exclude=(0, 1)), {}
    config = config_of(channels=2)
    config.channels.add(name="one of two")
    yield "channels", config, {}
    config = config_of(channels=1, names=("a",))
    config.channels.add()
    yield "channels", config, {}
    for field in ("name", "role"):
        config = config_of(channels=2, names=("a", "b"))
        setattr(config.channels[1], field, "x" * 65)
        yield f"channels[1].{field}", config, {}
    for value in (-1.0, nan, math.inf):
        config = config_of(channels=2, names=("a", "b"))
        config.channels[1].resume_end_s = value
        yield "channels[1].resume_end_s", config, {}
    config = config_of(smoothing_s=1, names=("a",))
    config.channels[0].resume_smoothed[:] = [0.5]  # the model has four labels
    yield "channels[0].resume_smoothed", config, {}
    config = config_of(smoothing_s=1, names=("a",))
    config.channels[0].resume_smoothed[:] = [nan] * 4
    yield "channels[0].resume_smoothed", config, {}


def set_field(config, path, value):
    *path, name = path.split(".")
    for p in path:
        config = getattr(config, p)
    setattr(config, name, value)


@pytest.mark.tsan
def test_fields_out_of_range(stub, audio):
    """Each is refused at once, by name, and before any audio."""
    for field, config, changes in wrong_configs():
        for path, value in changes.items():
            set_field(config, path, value)
        s, details = fails(stub, config, finish=False)
        where = f"{field} {changes}: {s.error.details()}"
        assert s.code == INVALID and reason_of(details) == "INVALID_FIELD" and not s.messages, where
        said = details["BadRequest"].field_violations[0].field
        assert field in s.error.details() or field in said, where
        assert said.split("[")[0].split(".")[0] in (field.split("[")[0].split(".")[0], "utterances", "config"), (said, where)
    ended_well(stub, audio)


def test_fields_at_their_ends(stub, audio):
    for config in (config_of(windows=(0.05, 0.05, 0.05)), config_of(windows=(30, 30)), config_of(windows=(1, 0.025)),
                   config_of(utterances={"length_s_min": 0.05, "length_s_max": 1, "hangover_s": 0.1, "interim_every_s": 0.25}),
                   config_of(utterances={"length_s_min": 5, "length_s_max": 30, "hangover_s": 5, "interim_every_s": 30}),
                   config_of(rate_hz=8000), config_of(rate_hz=48000), config_of(channels=8), config_of(smoothing_s=3600),
                   config_of(summary_every_s=1), config_of(names=("x" * 64,), roles=("y" * 64,)),
                   config_of(resume_offset_ms=86400000), config_of(rate_hz=0, channels=0)):
        ask_stream(stub, config, audio)


def test_resume_summary_that_does_not_fit(stub, audio):
    good = ask_stream(stub, config_of(channels=2, windows=(1.0, 0.5)), audio).summary
    for change in (lambda s: s.channels.add(), lambda s: s.channels.pop(), lambda s: s.channels[0].scores.pop(),
                   lambda s: setattr(s.channels[1], "speech_s", -1), lambda s: setattr(s.channels[0], "speech_s", math.nan),
                   lambda s: setattr(s.channels[0], "results", -5),
                   lambda s: setattr(s, "end_s", math.nan), lambda s: setattr(s, "talk_over_s", -1),
                   lambda s: s.channels[0].timeline.extend([s.channels[0].timeline[0]] * 60)):
        config = config_of(channels=2, windows=(1.0, 0.5), resume_offset_ms=2000)
        config.resume_summary.CopyFrom(good)
        change(config.resume_summary)
        s, details = fails(stub, config, finish=False)
        assert s.code == INVALID and "resume_summary" in s.error.details(), s.error.details()
        assert reason_of(details) == "INVALID_FIELD"


def test_unknown_model(stub):
    for config in (config_of(model="none"), config_of(model="tiny", model_version="7")):
        s, details = fails(stub, config, finish=False)
        assert s.code == grpc.StatusCode.NOT_FOUND and reason_of(details) == "MODEL_NOT_FOUND"
        assert config.model in s.error.details() or config.model_version in s.error.details()


# ---- limits ---------------------------------------------------------------------------------------------------------


def streams_open(server):
    return server.metric("timbre_streams")


def all_gone(server):
    wait_until(lambda: streams_open(server) == 0, what="the end of all streams")


@pytest.mark.tsan
def test_max_streams(audio):
    with Server("--max-streams", "2") as server, calling(server) as stub:
        with StreamClient(stub, config_of()) as a, StreamClient(stub, config_of()) as b:
            wait_until(lambda: streams_open(server) == 2)
            s, details = fails(stub, config_of(), finish=False)
            assert s.code == EXHAUSTED and "max-streams" in s.error.details() and "2" in s.error.details()
            assert details["QuotaFailure"].violations[0].subject == "max-streams"
            assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
            assert int(trailer_of(s.error, "grpc-retry-pushback-ms")) > 0
            assert len(stub.Predict(request_of(audio, format=config_of().format), timeout=TIMEOUT_S).scores) == 4
            a.send(audio)
            a.finish()
            a.check()
            wait_until(lambda: streams_open(server) == 1)
            ended_well(stub, audio)
            b.cancel()
        all_gone(server)


def test_message_bytes(audio):
    with Server("--max-stream-message-bytes", "64k") as server, calling(server) as stub:
        ask_stream(stub, config_of(), audio, pieces(audio, 65536 - 16))
        for bytes_ in (65537, 3_000_000):
            s, details = fails(stub, config_of(), request(audio=bytes(bytes_)), finish=False)
            assert s.code == EXHAUSTED and "max-stream-message-bytes" in s.error.details()
            assert details["QuotaFailure"].violations[0].subject == "max-stream-message-bytes"
            assert "RetryInfo" not in details
        ended_well(stub, audio[:60000])


@pytest.mark.tsan
def test_idle(audio):
    """Who sends nothing is told so, after what was complete; who sends keeps the stream."""
    m = stubs().timbre
    idle_ms = 600 * SLOWNESS
    with Server("--stream-idle-ms", idle_ms) as server, calling(server) as stub:
        for first in ([config_of(windows=(1.0, 0.5))], [config_of(windows=(1.0, 0.5)), request(audio=audio)]):
            s, details = fails(stub, *first, finish=False)
            assert s.code == grpc.StatusCode.DEADLINE_EXCEEDED and "stream-idle-ms" in s.error.details()
            assert details["QuotaFailure"].violations[0].subject == "stream-idle-ms"
            assert s.summary.final and s.summary.end == m.STREAM_END_IDLE
            assert len(s.results) == (7 if len(first) > 1 else 0)
            assert time.monotonic() - s.began >= idle_ms / 1000
        with StreamClient(stub) as s:  # not even a config
            s.wait()
            assert s.code == grpc.StatusCode.DEADLINE_EXCEEDED
        with StreamClient(stub, config_of(windows=(1.0, 0.5))) as s:
            for p in pieces(audio, 12000):
                s.send(p)
                time.sleep(idle_ms / 4000)
            s.finish()
            assert len(s.check().results) == 7
        all_gone(server)
        assert server.metric("timbre_streams_ended_total", end="idle") >= 2


def test_lifetime(audio):
    m = stubs().timbre
    with Server("--stream-lifetime-s", 2) as server, calling(server) as stub:
        with StreamClient(stub, config_of(windows=(1.0, 0.5))) as s:
            s.send_paced(audio * 20, 32000)
            s.wait()
        assert s.code == grpc.StatusCode.UNAVAILABLE and "stream-lifetime-s" in s.error.details()
        assert s.summary.final and s.summary.end == m.STREAM_END_LIFETIME and s.messages[-1].HasField("summary")
        assert s.results and s.summary.resume_offset_ms % 1000 == 0
        assert time.monotonic() - s.began >= 2
        all_gone(server)


def push(s, audio, count):
    """Sends without a pause until nobody takes it; on a thread of its own."""
    def run():
        for _ in range(count):
            if not s.send(audio):
                return
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.tsan
@pytest.mark.parametrize("sound", ["speech", "silence"])
def test_a_reader_who_never_reads(sound):
    """It is ended by a limit, and memory does not grow until then: what is not read is not computed, what is not computed
    is not taken. Silence, which costs nothing to compute, is taken in no time if nothing holds it back."""
    block = encode(talk(1, 10.0, 16000), "pcm16") if sound == "speech" else bytes(320_000)
    little = {"http2.lookahead_bytes": 4096, "http2.bdp_probe": 0}  # that the client's gRPC takes unasked
    with Server("--stream-stall-ms", 1000 * SLOWNESS) as server, calling(server, **little) as stub:
        # Many results, and large ones: forty windows over one another, with the embedding.
        config = config_of(windows=(0.4, 0.01), embedding=True)
        ask_stream(stub, config, block[:32000])
        before, audio_s = server.rss_bytes(), server.metric("timbre_stream_audio_seconds_total")
        with StreamClient(stub, config, read=False) as s:
            sender = push(s, block, 500)  # 160 MB
            highest, end = before, time.monotonic() + 60 * SLOWNESS
            wait_until(lambda: streams_open(server) == 1)
            while streams_open(server) > 0:
                assert time.monotonic() < end, "the stream was not ended"
                highest = max(highest, server.rss_bytes())
                time.sleep(0.05)
            s.read()
            s.wait()
            assert s.code == EXHAUSTED and "stream-stall-ms" in s.error.details(), s.error.details()
            sender.join()
        assert server.metric("timbre_streams_ended_total", end="stall") == 1
        # Results that fill the caller's window and the stream's queue, two messages more.
        assert server.metric("timbre_stream_audio_seconds_total") - audio_s < 60
        if SLOWNESS == 1:
            assert highest - before < 20 * MB, f"{(highest - before) / MB:.1f} MB more"
        ended_well(stub, encode(talk(1, 2.0, 16000), "pcm16"))


def test_a_window_of_nothing():
    """The same of a client whose HTTP/2 window is closed from the start."""
    with Server("--stream-stall-ms", 500 * SLOWNESS) as server:
        with RawClient(server.grpc, window_bytes=0) as raw:
            stream = raw.call(PATH)
            config = request(config=config_of(windows=(0.5, 0.1))).SerializeToString()
            raw.send(stream, frame(config) + frame(request(audio=bytes(64000)).SerializeToString()))
            wait_until(lambda: server.metric("timbre_streams_ended_total") == 1, what="the end")
            wait_until(lambda: server.metric("timbre_requests_in_flight") == 0, what="the end of the call")


@pytest.mark.tsan
def test_a_caller_whose_deadline_passes(server, stub, audio):
    with StreamClient(stub, config_of(), timeout_s=0.5) as s:
        s.send(audio)
        s.wait()
        assert s.code == grpc.StatusCode.DEADLINE_EXCEEDED
    all_gone(server)


def test_streams_count_as_calls(audio):
    with Server("--max-calls", "1") as server, calling(server) as stub:
        with StreamClient(stub, config_of()) as s:
            wait_until(lambda: streams_open(server) == 1)
            with raises(EXHAUSTED, "max-calls"):
                stub.Predict(request_of(audio, format=config_of().format), timeout=TIMEOUT_S)
            s.finish()
            s.check()


@pytest.mark.tsan
def test_a_model_that_goes(tmp_path, audio):
    """Its streams end as when the server does, and go on in new ones when it is back."""
    m = stubs().timbre
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(TINY)
    with Server("--models-dir", tmp_path / "models", "--model-control", model=None) as server, calling(server) as stub, \
            client_of(server) as client:
        config = config_of(windows=(1.0, 0.5), model="mine")
        with StreamClient(stub, config) as s:
            s.send(audio)
            wait_until(lambda: len(s.results) == 7)
            client.unload_model("mine")
            s.wait()
        assert s.code == grpc.StatusCode.UNAVAILABLE and "mine" in s.error.details(), s.error.details()
        assert reason_of(details_of(s.error)) == "MODEL_UNLOADED"
        assert s.summary.final and s.summary.end == m.STREAM_END_DRAIN
        again, _ = fails(stub, config, finish=False)
        assert again.code == grpc.StatusCode.UNAVAILABLE and not again.messages
        client.load_model("mine")
        new, at = go_on(config, s.messages)
        whole = ask_stream(stub, config, audio + audio)
        rest = ask_stream(stub, new, (audio + audio)[at:])
        assert keys(s.results + rest.results) == keys(whole.results)


def test_a_token_is_asked_for(tmp_path, audio):
    (tmp_path / "tokens").write_text(f"alice {hashlib.sha256(b'secret').hexdigest()}\n")
    with Server("--token-file", tmp_path / "tokens") as server, calling(server) as stub:
        for metadata in (None, [("authorization", "Bearer wrong")]):
            with StreamClient(stub, config_of(), metadata=metadata) as s:
                s.send(audio)
                s.wait()
                assert s.code == grpc.StatusCode.UNAUTHENTICATED and not s.messages
        with StreamClient(stub, config_of(), metadata=[("authorization", "Bearer secret")]) as s:
            s.send(audio)
            s.finish()
            assert s.check().results
        assert server.metric("timbre_streams_ended_total") == 1


# ---- summaries and results ------------------------------------------------------------------------------------------


@pytest.mark.tsan
def test_a_summary_when_asked_for(stub, audio):
    with StreamClient(stub, config_of(windows=(1.0, 0.5))) as s:
        s.summarise()
        wait_until(lambda: len(s.summaries) == 1)
        assert s.summary.end_s == 0 and s.summary.channels[0].results == 0
        s.send(audio)
        s.summarise()
        wait_until(lambda: len(s.summaries) == 2)
        assert not s.summary.final and s.summary.end == stubs().timbre.STREAM_END_UNSPECIFIED
        assert s.summary.start_s == 0 and s.summary.end_s == pytest.approx(4.0, abs=0.05)
        s.send(audio)
        s.finish()
        s.check()
        assert len(s.summaries) == 3 and s.summary.end_s == pytest.approx(8.0, abs=0.05)
        assert s.summary.channels[0].results == len(s.results) == 15


def test_a_summary_tells_of_the_results_before_it(stub):
    audio = encode(talk(4, 12.0, 16000), "pcm16")
    config = config_of(windows=(1.0, 0.5), summary_every_s=2)
    s = ask_stream(stub, config, audio, pieces(audio, 9999))
    rolling = s.summaries[:-1]
    assert [round(x.end_s) for x in rolling] == [2, 4, 6, 8, 10, 12][:len(rolling)] and len(rolling) in (5, 6)
    results = 0
    for message in s.messages:
        results += message.HasField("result")
        if message.HasField("summary"):
            assert message.summary.channels[0].results == results
            assert message.summary.final == (message is s.messages[-1])
            total = message.summary.channels[0].speech_s + message.summary.channels[0].silence_s
            assert total == pytest.approx(message.summary.end_s, abs=0.05)
    assert s.summary.channels[0].forwards == s.summary.channels[0].results == len(s.results)


@pytest.mark.tsan
def test_results_come_while_audio_does(stub):
    """Not at the end: a window's result is there before the audio after the next window is sent."""
    audio = encode(to_pcm16(voice(3, 10.0)), "pcm16")
    with StreamClient(stub, config_of(windows=(1.0, 1.0))) as s:
        for k in range(10):
            s.send(audio[k * 32000:(k + 1) * 32000])
            wait_until(lambda: len(s.results) == k + 1, what=f"window {k}")
        s.finish()
        assert [(r.start_s, r.end_s) for r in s.check().results] == [(k, k + 1) for k in range(10)]


def test_smoothed_scores(stub):
    """Beside the raw ones: they begin with them, move towards them, and more slowly the longer the time."""
    m = stubs().timbre
    audio = encode(talk(5, 12.0, 16000), "pcm16")
    plain = ask_stream(stub, config_of(windows=(1.0, 0.5)), audio)
    assert not any(r.smoothed for r in plain.results)
    moved = {}
    for time_s in (0.5, 5.0):
        s = ask_stream(stub, config_of(windows=(1.0, 0.5), smoothing_s=time_s), audio)
        assert [key[:7] for key in keys(s.results)] == [key[:7] for key in keys(plain.results)], "raw scores changed"
        of = [r for r in s.results if r.status == m.ANSWER_STATUS_OK]
        raw = np.array([[x.score for x in r.scores] for r in of])
        smooth = np.array([[x.score for x in r.smoothed] for r in of])
        assert np.array_equal(smooth[0], raw[0])
        low, high = np.minimum(raw[1:], smooth[:-1]), np.maximum(raw[1:], smooth[:-1])
        assert ((smooth[1:] >= low - 1e-6) & (smooth[1:] <= high + 1e-6)).all()
        assert np.allclose(smooth.sum(axis=1), 1, atol=1e-4)
        moved[time_s] = np.abs(np.diff(smooth, axis=0)).sum()
    assert moved[5.0] < moved[0.5]


def test_silence_is_an_answer(stub):
    m = stubs().timbre
    s = ask_stream(stub, config_of(windows=(1.0, 1.0), smoothing_s=1.0), bytes(32000 * 5))
    assert len(s.results) == 5
    for r in s.results:
        assert r.status == m.ANSWER_STATUS_NO_SPEECH and r.message and not r.scores and not r.HasField("dominant")
        assert r.receipt.batch_size == 0 and r.final
    channel = s.summary.channels[0]
    assert channel.forwards == 0 and channel.no_speech_results == 5 and channel.no_speech_share == 1
    assert not channel.scores and not channel.HasField("dominant") and not channel.trend
