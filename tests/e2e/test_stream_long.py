"""Streams of hours, sent fast: memory does not grow with them, and they say what the same audio says in pieces."""

import pytest

from stream_client import (MINUTE_S, TIMEOUT_S, StreamClient, ask_stream, config_of, format_of, go_on, key_of,
                           key_of_window, minute, pieces, windows_of)
from timbre_server import SLOWNESS, request_of

MB = 1_000_000
HOUR_S = 3600
TOTAL_S = HOUR_S // 10 if SLOWNESS > 1 else HOUR_S

pytestmark = [pytest.mark.asan]


def send_long(server, stub, config, minutes):
    """The stream, and resident bytes after each minute of audio."""
    rss = []
    with StreamClient(stub, config, timeout_s=20 * TIMEOUT_S) as s:
        for audio in minutes:
            s.send_all(pieces(audio, 100_000))
            rss.append(server.rss_bytes())
        s.finish()
        return s.check(20 * TIMEOUT_S), rss


def check_flat(rss):
    if SLOWNESS == 1:
        settled = rss[len(rss) // 10:]
        assert max(settled) - settled[0] < 8 * MB, [round(r / MB, 1) for r in rss]


def test_an_hour_equals_its_pieces(server, stub):
    """One hour at 16 kHz by 10 s windows, and Predict of pieces that begin where a window does."""
    minutes = [minute(k, "pcm16", 16000, 1) for k in range(TOTAL_S // MINUTE_S)]
    answer, rss = send_long(server, stub, config_of(windows=(10.0, 5.0)), minutes)
    check_flat(rss)
    found = [key_of_window(r) for r in answer.results]
    assert len(found) == (TOTAL_S - 10) // 5 + 1
    audio, piece_s, bytes_per_s = b"".join(minutes), 600, 32000
    for start in range(0, TOTAL_S - 5, piece_s - 10):
        piece = audio[start * bytes_per_s:(start + piece_s) * bytes_per_s]
        request = request_of(piece, format=format_of("pcm16", 16000), windows=windows_of(10.0, 5.0))
        windows = [(w[0] + start, w[1] + start, *w[2:]) for w in
                   map(key_of_window, stub.Predict(request, timeout=10 * TIMEOUT_S).windows)]
        assert windows == found[start // 5:start // 5 + len(windows)], start
    assert answer.summary.end_s == pytest.approx(TOTAL_S, abs=0.05)
    channel = answer.summary.channels[0]
    assert channel.results == len(found) and channel.speech_s + channel.silence_s == pytest.approx(TOTAL_S, abs=0.05)
    assert 20 <= len(channel.timeline) <= 48


def test_a_long_call_equals_its_parts(server, stub):
    """Telephone audio of two channels by utterances; the parts are streams that go on after one another."""
    total_s = TOTAL_S // 2
    minutes = [minute(k, "mulaw", 8000, 2) for k in range(total_s // MINUTE_S)]
    config = config_of("mulaw", 8000, 2, utterances={"length_s_max": 8.0}, smoothing_s=10.0, summary_every_s=60.0)
    answer, rss = send_long(server, stub, config, minutes)
    check_flat(rss)
    whole = sorted(key_of(r) for r in answer.finals)
    audio, had = b"".join(minutes), []
    places = [i + 1 for i, m in enumerate(answer.messages) if m.HasField("summary")]
    assert len(places) > total_s // 60 - 2
    places = [0, *places[4::5], len(answer.messages)]
    for begin, end in zip(places, places[1:]):
        had = answer.messages[:begin]
        new, at = go_on(config, had)
        until = total_s if end == len(answer.messages) else min(total_s, answer.messages[end - 1].summary.end_s + 60)
        part = ask_stream(stub, new, audio[at:int(until) * 16000], timeout_s=5 * TIMEOUT_S)
        wanted = [key_of(m.result) for m in answer.messages[begin:end] if m.HasField("result")]
        got = {key_of(r) for r in part.finals}
        assert set(wanted) <= got, (begin, end)
    assert len(set(whole)) == len(whole)
