"""Upload equals stream: the same samples with the same windows give the same bits through StreamingPredict however they
are cut, through Predict with windows and through `timbre predict --window`."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stream_client import (ENCODINGS, TIMEOUT_S, ask_stream, by_channel, config_of, cut, decode, encode,
                           format_of, interleave, key_of, key_of_window, pieces, recordings, talk, windows_of)
from timbre_program import predict, to_pcm16, voice
from timbre_server import SLOWNESS, TINY, Server, bits, calling, request_of, stubs

RATES_HZ = (8000, 11025, 16000, 44100, 48000)
WINDOWS = ((1.0, 0.5), (0.7, 0.13), (2.0, 2.0), (1.5, 0.6), (0.33, 0.25))  # length and hop, one pair for each rate
SPEECH_S_MIN = 0.3
COUNT, MADE_UP = 50, 8
AT_ONCE = 4


@pytest.fixture(scope="module")
def clips():
    """Functions of the rate that give int16 samples."""
    paths = recordings()[:COUNT]
    if not paths:
        return [lambda rate, i=i: to_pcm16(voice(i, 1.0 + 0.37 * i, rate)) for i in range(MADE_UP)]
    return [lambda rate, p=p: decode(p, rate) for p in paths]


def window_keys(results):
    return [key_of_window(r) for r in results]


def through_stream(stub, audio, encoding, rate_hz, windows, seed):
    chunks = cut(audio, np.random.default_rng(seed))
    answer = ask_stream(stub, config_of(encoding, rate_hz, windows=windows), audio, chunks)
    assert len(answer.finals) == len(answer.results), "a window is final"
    return window_keys(answer.results)


def through_predict(stub, audio, encoding, rate_hz, windows):
    request = request_of(audio, format=format_of(encoding, rate_hz), windows=windows_of(*windows))
    return window_keys(stub.Predict(request, timeout=TIMEOUT_S).windows)


def through_program(paths, encoding, rate_hz, windows):
    """[[(start, end, status, bits of scores)]], which is all it prints of a window."""
    answers = predict(TINY, paths, "--raw", encoding, "--rate", rate_hz, "--window", windows[0], "--hop", windows[1])
    status = {"ok": 1, "no_speech": 2, "too_short": 3}
    return [[(w["start_s"], w["end_s"], status[w["status"]], bits(w["scores"] or [])) for w in a["windows"]]
            for a in answers]


def test_there_are_real_recordings():
    if not recordings():
        pytest.skip("no recordings (TIMBRE_DATA names their folder) or no ffmpeg: made-up clips are compared instead")
    assert len(recordings()) >= COUNT and {p.parts[-3] for p in recordings()[:COUNT]} == {"emodb", "ravdess"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_upload_equals_stream(stub, clips, encoding, tmp_path):
    """Every clip, at a rate that changes from clip to clip; with and without speech_s_min, which the program lacks."""
    shift, statuses = ENCODINGS.index(encoding), set()
    groups = {}
    for i, clip in enumerate(clips):
        groups.setdefault((i + shift) % len(RATES_HZ), []).append((i, clip))
    for place, members in groups.items():
        rate_hz, windows = RATES_HZ[place], WINDOWS[(place + shift) % len(WINDOWS)]
        audio = {i: encode(clip(rate_hz), encoding) for i, clip in members}
        paths = []
        for i, data in audio.items():
            paths.append(tmp_path / f"{i}.raw")
            paths[-1].write_bytes(data)
        printed = dict(zip(audio, through_program(paths, encoding, rate_hz, windows)))

        def compare(i):
            plain = through_stream(stub, audio[i], encoding, rate_hz, windows, i)
            assert plain and plain == through_predict(stub, audio[i], encoding, rate_hz, windows), (i, rate_hz)
            assert [(*k[:3], k[3][0]) for k in plain] == printed[i], (i, rate_hz)
            strict = (*windows, SPEECH_S_MIN)
            asked = through_stream(stub, audio[i], encoding, rate_hz, strict, 1000 + i)
            assert asked == through_predict(stub, audio[i], encoding, rate_hz, strict), (i, rate_hz)
            return {k[2] for k in asked}

        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses.update(*pool.map(compare, audio))
    m = stubs().timbre
    assert {m.ANSWER_STATUS_OK, m.ANSWER_STATUS_NO_SPEECH} <= statuses, "the voice-activity rule was not asked"


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("windows", [(0.5, 0.25), (0.05, 0.01), (0.4, 0.01), (4.0, 2.0), (0.0, 0.0)])
def test_windows_of_every_size(stub, windows):
    """From the shortest there are, over 40 in one another, to those that are longer than the audio."""
    samples = talk(3, 3.0, 16000)[:-77]
    audio = encode(samples, "pcm16")
    streamed = through_stream(stub, audio, "pcm16", 16000, windows, 5)
    if windows[0] == 0:  # not said: the defaults of windows, not one answer for the whole
        windows = (10.0, 5.0)
    assert streamed == through_predict(stub, audio, "pcm16", 16000, windows)
    length = round(windows[0] * 16000)
    assert streamed[-1][1] == len(samples) / 16000
    assert all(round((end - start) * 16000) == length for start, end, *_ in streamed[:-1])


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_one_by_one(stub, encoding):
    rate_hz = 8000
    audio = encode(talk(1, 0.4, rate_hz), encoding)
    config = config_of(encoding, rate_hz, windows=(0.2, 0.1))
    whole = ask_stream(stub, config, audio, [audio])
    assert len(whole.results) >= 3
    rng = np.random.default_rng(1)
    for chunks in (pieces(audio, 1), pieces(audio, 3), cut(audio, rng, 20)):
        assert [key_of(r) for r in ask_stream(stub, config, audio, chunks).results] == [key_of(r) for r in whole.results]
    with_nothing = itertools.chain.from_iterable((b"", c) for c in pieces(audio, 1001))
    assert [key_of(r) for r in ask_stream(stub, config, audio, with_nothing).results] == [key_of(r) for r in whole.results]


def check_channels(stub, encoding, rate_hz, channels, windows, utterances, seed):
    mono = [talk(seed + c, 9.0 + c / 3, rate_hz) for c in range(channels)]
    together = interleave(*mono)
    audio = encode(together, encoding)
    config = {"windows": windows, "utterances": utterances, "smoothing_s": 3.0, "embedding": True}
    answer = ask_stream(stub, config_of(encoding, rate_hz, channels, **config), audio,
                        cut(audio, np.random.default_rng(seed), 20_000))
    found = by_channel(answer.results)
    assert sorted(found) == list(range(channels))
    for c in range(channels):
        alone = encode(together[:, c], encoding)
        expected = ask_stream(stub, config_of(encoding, rate_hz, **config), alone).results
        assert len(expected) > 2
        assert [k[1:] for k in found[c]] == [key_of(r)[1:] for r in expected], c
    starts = {c: [k[1] for k in ks] for c, ks in found.items()}
    assert all(s == sorted(s) for s in starts.values()), "a channel's results come in the order of time"


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("encoding,rate_hz,channels,windows,utterances", [
    ("mulaw", 8000, 2, (2.0, 1.0, 0.2), None),
    ("mulaw", 8000, 2, None, {"interim_every_s": 0.5}),
])
def test_two_channels(stub, encoding, rate_hz, channels, windows, utterances):
    check_channels(stub, encoding, rate_hz, channels, windows, utterances, 40)


@pytest.mark.parametrize("encoding,rate_hz,channels,windows,utterances", [
    ("pcm16", 16000, 8, (1.0, 0.5), None),
    ("float32", 48000, 3, (1.5, 0.5), None),
    ("alaw", 11025, 8, (2.0, 0.7, 0.3), None),
    ("pcm16", 44100, 2, None, {"length_s_max": 2.0, "hangover_s": 0.2, "interim_every_s": 0.25}),
])
def test_many_channels(stub, encoding, rate_hz, channels, windows, utterances):
    check_channels(stub, encoding, rate_hz, channels, windows, utterances, 50)


def test_the_shipped_model():
    """Once with what people run: two telephone channels, the default windows, also against Predict of each channel."""
    rate_hz, windows = 8000, (10.0, 5.0)
    mono = [talk(60 + c, 24.0, rate_hz) for c in range(2)]
    audio = encode(interleave(*mono), "mulaw")
    with Server(model=None) as server, calling(server) as stub:
        answer = ask_stream(stub, config_of("mulaw", rate_hz, 2), audio, cut(audio, np.random.default_rng(7)))
        for c in range(2):
            expected = through_predict(stub, encode(mono[c], "mulaw"), "mulaw", rate_hz, windows)
            assert window_keys(answer.of(c)) == expected and len(expected) == 4
            assert all(len(r.scores) == len(stub.GetModel(stubs().timbre.GetModelRequest()).labels) for r in answer.of(c)
                       if r.status == stubs().timbre.ANSWER_STATUS_OK)


@pytest.mark.skipif(SLOWNESS > 1, reason="tells nothing more with a sanitizer")
def test_dominant_and_receipt(stub):
    """What is not compared elsewhere."""
    m = stubs().timbre
    audio = encode(talk(2, 6.0, 16000), "pcm16")
    model = stub.GetModel(m.GetModelRequest())
    for r in ask_stream(stub, config_of(windows=(2.0, 1.0)), audio).results:
        assert r.status == m.ANSWER_STATUS_OK and not r.message
        assert [s.index for s in r.scores] == list(range(len(model.labels)))
        assert [s.label for s in r.scores] == list(model.labels)
        assert r.dominant.index == int(np.argmax([s.score for s in r.scores]))
        assert r.dominant.label == model.labels[r.dominant.index]
        assert sum(s.score for s in r.scores) == pytest.approx(1, abs=1e-5)
        receipt = r.receipt
        assert (receipt.model, receipt.digest, receipt.device) == ("tiny", model.digest, model.device)
        assert receipt.batch_size >= 1 and receipt.compute_ms > 0 and receipt.audio_s == pytest.approx(r.end_s - r.start_s)
