"""A stream that ended early goes on elsewhere: together they give what one that was not interrupted gives, to the bit."""

import threading

import grpc
import numpy as np
import pytest

from stream_client import (StreamClient, ask_stream, by_channel, config_of, cut, encode, frame_bytes, go_on, interleave,
                           key_of, pieces, talk)
from timbre_server import SLOWNESS, Server, calling, details_of, stubs, wait_until

PLACES = 5 if SLOWNESS > 1 else 24  # of each stream, where it is interrupted
DRAIN_ROUNDS = 1 if SLOWNESS > 1 else 4
DRAIN_STREAMS = 6
TELEPHONE = {"encoding": "mulaw", "rate_hz": 8000, "channels": 2}
WIDE = {"encoding": "pcm16", "rate_hz": 16000, "channels": 1}
CASES = {
    "telephone-windows": {**TELEPHONE, "windows": (1.0, 0.5, 0.3)},
    "telephone-utterances": {**TELEPHONE, "utterances": {"interim_every_s": 0.5, "length_s_max": 3.0}},
    "wide-windows": {**WIDE, "windows": (2.0, 0.7)},
    "wide-utterances": {**WIDE, "utterances": {"interim_every_s": 1.0}},
    "float-48k-windows": {"encoding": "float32", "rate_hz": 48000, "channels": 2, "windows": (3.0, 1.1)},
    "alaw-11k-utterances": {"encoding": "alaw", "rate_hz": 11025, "channels": 2, "utterances": {}},
    "telephone-long-windows": {**TELEPHONE, "windows": (10.0, 5.0)},
    "telephone-one-excluded": {**TELEPHONE, "windows": (1.0, 1.0), "exclude": (0,)},
}

pytestmark = [pytest.mark.asan]  # and tsan where several streams or servers are at work


@pytest.fixture(scope="module")
def first():
    with Server() as server, calling(server) as stub:
        yield stub


@pytest.fixture(scope="module")
def second():
    with Server("--threads", "1", "--max-batch-seconds", "30") as server, calling(server) as stub:
        yield stub


def call_of(config, seconds, seed=70):
    """Audio for it: talk with a long silence in the middle of one channel."""
    rate_hz, channels = config.format.sample_rate_hz, config.format.channels
    speech = [talk(seed + c, seconds, rate_hz).copy() for c in range(channels)]
    speech[-1][int(0.4 * len(speech[-1])):int(0.6 * len(speech[-1]))] = 0
    name = stubs().timbre.Encoding.Name(config.format.encoding).removeprefix("ENCODING_").lower()
    return encode(interleave(*speech), name)


def check_interrupted(stub, config, audio, whole, had, seed):
    """`had` are the messages of a stream that was interrupted after them."""
    new, at = go_on(config, had)
    rest = audio[at:]
    again = ask_stream(stub, new, rest, cut(rest, np.random.default_rng(seed)))
    before = [m.result for m in had if m.HasField("result") and m.result.final]
    where = f"after {len(before)} final results, from {new.resume_offset_ms} ms"
    got, expected = by_channel(before + again.finals), by_channel(whole.finals)
    assert sorted(got) == sorted(expected), where
    for c, want in expected.items():
        assert [k[1:3] for k in got[c]] == [k[1:3] for k in want], f"a gap or a double: {where}"
        assert got[c] == want, where
    growing = {key_of(r) for r in whole.results if not r.final}
    assert {key_of(r) for r in again.results if not r.final} <= growing, where
    return again


@pytest.mark.parametrize("name", CASES)
def test_at_any_result(first, second, name):
    """Interrupted after each of many of its messages; the second server gets the audio from the last offset on."""
    config = config_of(**CASES[name], smoothing_s=4.0, summary_every_s=7.0)
    audio = call_of(config, 31.3)
    whole = ask_stream(first, config, audio, cut(audio, np.random.default_rng(1)))
    assert len(whole.finals) >= 5
    places = np.random.default_rng(2).permutation(len(whole.messages) - 1)[:PLACES] + 1
    offsets = set()
    for place in sorted(places):
        again = check_interrupted(second, config, audio, whole, whole.messages[:place], int(place))
        offsets.add(go_on(config, whole.messages[:place])[0].resume_offset_ms)
        final = again.summary
        assert final.end_s == pytest.approx(whole.summary.end_s, abs=0.011)
    if SLOWNESS == 1:
        assert len(offsets) > 2 and max(offsets) > 10000, "nothing of the audio is ever left out"


def test_offsets(first):
    """Whole seconds that never go back, and not further behind the results than a window and what speech detection
    remembers."""
    for case in ("telephone-windows", "wide-windows", "telephone-utterances"):
        config = config_of(**CASES[case])
        audio = call_of(config, 40.0)
        whole = ask_stream(first, config, audio)
        offsets = [m.result.resume_offset_ms if m.HasField("result") else m.summary.resume_offset_ms
                   for m in whole.messages]
        assert all(o % 1000 == 0 and o >= 0 for o in offsets)
        assert offsets == sorted(offsets)
        # 8 s of speech detection's memory, 6 s of the resampler's segment, a window or utterance, a second of rounding.
        assert offsets[-1] / 1000 >= whole.summary.end_s - (8 + 6 + 3 + 1), offsets[-1]


@pytest.mark.tsan
def test_again_and_again(first, second):
    """Interrupted after every few results, from one server to the other and back."""
    config = config_of(**CASES["telephone-windows"], smoothing_s=4.0)
    audio = call_of(config, 31.3)
    whole = ask_stream(first, config, audio)
    had, now, at, stubs_, turns = [], config, 0, (second, first), 0
    while True:
        answer = ask_stream(stubs_[turns % 2], now, audio[at:])
        had += answer.messages[:9]
        turns += 1
        if len(answer.messages) <= 9:
            break
        now, at = go_on(config, had)
    assert turns > 8
    assert by_channel([m.result for m in had if m.HasField("result")]) == by_channel(whole.finals)


def test_without_telling_what_was_had(first, second):
    """resume_end_s 0: all that can be computed from there on, and those have the same bits."""
    config = config_of(**CASES["telephone-windows"])
    audio = call_of(config, 31.3)
    whole = ask_stream(first, config, audio)
    new = stubs().timbre.StreamConfig()
    new.CopyFrom(config)
    new.resume_offset_ms = 10000
    rest = audio[10 * 8000 * 2:]
    again = ask_stream(second, new, rest)
    expected, got = by_channel(whole.results), by_channel(again.results)
    for c in expected:
        assert 0 < len(got[c]) and got[c] == expected[c][-len(got[c]):]
        # A segment of the resampler with what it needs before it, and the memory of speech detection.
        assert got[c][0][1] <= 10.0 + 6 + 8, "later than need be"


def test_the_summary_goes_on(first, second):
    """With the last summary that was had the final one is that of the whole call; without, of the rest."""
    config = config_of(**CASES["telephone-windows"], summary_every_s=5.0)
    audio = call_of(config, 61.0)
    whole = ask_stream(first, config, audio)
    places = [i + 1 for i, m in enumerate(whole.messages) if m.HasField("summary")][:-1]
    assert len(places) >= 10
    for place in places[:: 4 if SLOWNESS > 1 else 1]:
        had = whole.messages[:place]
        new, at = go_on(config, had)
        compare_summaries(ask_stream(second, new, audio[at:]).summary, whole.summary, again=True)
        new.ClearField("resume_summary")
        rest = ask_stream(second, new, audio[at:]).summary
        before = had[-1].summary.channels[0]
        assert rest.channels[0].results == whole.summary.channels[0].results - before.results
        assert rest.start_s >= new.resume_offset_ms / 1000 - 1e-9


def compare_summaries(got, want, again=False):
    """Counts exactly; sums that passed through the message to the precision of its floats. again: forwards whose results
    were not had are run, and counted, once more."""
    assert got.start_s == want.start_s and got.end_s == want.end_s
    assert got.talk_over_s == pytest.approx(want.talk_over_s, abs=1e-6)
    for a, b in zip(got.channels, want.channels, strict=True):
        assert (a.channel, a.excluded, a.results, a.no_speech_results) == (
            b.channel, b.excluded, b.results, b.no_speech_results)
        assert a.forwards >= b.forwards if again else a.forwards == b.forwards
        assert a.speech_s == pytest.approx(b.speech_s, abs=1e-6) and a.silence_s == pytest.approx(b.silence_s, abs=1e-6)
        assert a.no_speech_share == pytest.approx(b.no_speech_share)
        for name in ("scores", "trend"):
            of = [[s.score for s in getattr(x, name)] for x in (a, b)]
            assert np.allclose(*of, atol=1e-4), name
        assert a.dominant.index == b.dominant.index
        assert len(a.timeline) == len(b.timeline)
        for s, t in zip(a.timeline, b.timeline):
            assert (s.start_s, s.end_s) == (t.start_s, t.end_s) and s.speech_s == pytest.approx(t.speech_s, abs=1e-6)
            assert np.allclose(s.scores, t.scores, atol=1e-4)


# ---- a server that ends ---------------------------------------------------------------------------------------------


class Caller:
    """A call that is streamed to one server, faster than it is spoken, until it is over or the server ends."""

    def __init__(self, server, config, audio, speed):
        self.config, self.audio = config, audio
        self.bytes_per_s = speed * config.format.sample_rate_hz * frame_bytes(config)
        self.stop = threading.Event()
        self.channel = calling(server)
        self.stream = StreamClient(self.channel.__enter__(), config)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        self.stream.send_paced(self.audio, self.bytes_per_s)
        self.stream.finish()

    def join(self):
        self.stream.wait()
        self.thread.join()
        self.stream.__exit__()
        self.channel.__exit__(None, None, None)
        return self.stream


@pytest.mark.tsan
@pytest.mark.parametrize("round_", range(DRAIN_ROUNDS))
def test_sigterm_under_load(second, round_):
    """Every live stream ends with its results, a summary and an offset, from which another server goes on."""
    m = stubs().timbre
    names = list(CASES)
    configs = [config_of(**CASES[names[(i + round_) % len(names)]], smoothing_s=4.0) for i in range(DRAIN_STREAMS)]
    calls = [call_of(c, 40.0, 80 + 3 * i) for i, c in enumerate(configs)]
    flags = ["--lame-duck-ms", "200"] if round_ % 2 else []
    with Server(*flags) as server:
        callers = [Caller(server, c, a, 4 + i) for i, (c, a) in enumerate(zip(configs, calls))]
        wait_until(lambda: sum(len(c.stream.finals) for c in callers) > 12 + 7 * round_, 30, "some load")
        server.terminate()
        streams = [c.join() for c in callers]
        server.check_end()
    interrupted = 0
    for stream, config, audio in zip(streams, configs, calls):
        assert stream.messages[-1].HasField("summary") and stream.summary.final
        if stream.code == grpc.StatusCode.OK:  # it was over just then
            continue
        interrupted += 1
        assert stream.code == grpc.StatusCode.UNAVAILABLE, stream.error.details()
        assert details_of(stream.error)["ErrorInfo"].reason == "DRAINING"
        assert stream.summary.end == m.STREAM_END_DRAIN
        whole = ask_stream(second, config, audio)
        again = check_interrupted(second, config, audio, whole, stream.messages, 3)
        compare_summaries(again.summary, whole.summary, again=config.utterances.interim_every_s > 0)
    assert interrupted >= DRAIN_STREAMS - 1


@pytest.mark.tsan
def test_a_stream_that_opens_while_it_drains():
    """Is refused as UNAVAILABLE, so that it goes elsewhere; with --lame-duck-ms it is served until then."""
    config = config_of(windows=(1.0, 1.0))
    with Server("--lame-duck-ms", 1500 * SLOWNESS) as server, calling(server) as stub:
        with StreamClient(stub, config) as held:
            held.send(bytes(64000))
            wait_until(lambda: len(held.results) == 2)
            server.terminate()
            assert len(ask_stream(stub, config, bytes(64000)).results) == 2
            held.wait()
            assert held.code == grpc.StatusCode.UNAVAILABLE and held.summary.end == stubs().timbre.STREAM_END_DRAIN
            server.check_end()
