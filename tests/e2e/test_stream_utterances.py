"""Utterances: found where speech is, told while they grow, cut when they are long."""

import numpy as np
import pytest

from stream_client import (ask_stream, config_of, cut, encode, interleave, key_of, noise, recordings, sentence)
from timbre_server import SLOWNESS, stubs

SENTENCES = 8 if SLOWNESS > 1 else 40
SLACK_S = 0.3  # of where a sentence begins and ends: frames, hangover and padding

pytestmark = [pytest.mark.asan]


def joined(count, rate_hz, pause_s, first=0):
    """Sentences with pauses between: samples, and where each sentence lies in seconds."""
    rng = np.random.default_rng(first)
    parts, spans, at = [noise(0, 1.5, rate_hz)], [], 1.5
    for i in range(count):
        words = sentence(first + i, rate_hz)
        loud = np.flatnonzero(np.abs(words.astype(int)) > 300)
        words = words[loud[0]:loud[-1]]
        quiet_s = rng.uniform(*pause_s)
        parts += [words, noise(i, quiet_s, rate_hz)]
        spans.append((at, at + len(words) / rate_hz))
        at = spans[-1][1] + len(parts[-1]) / rate_hz
    return np.concatenate(parts), spans


def check_found(results, spans):
    """Each sentence is overlapped by utterances, and none of them lies in a pause."""
    speech = [r for r in results if r.final and r.status != stubs().timbre.ANSWER_STATUS_NO_SPEECH]
    for start, end in spans:
        covered = sum(max(0, min(end, r.end_s) - max(start, r.start_s)) for r in speech)
        assert covered > 0.6 * (end - start), f"the sentence at {start:.2f} to {end:.2f} s was not heard"
    for r in speech:
        inside = sum(max(0, min(end, r.end_s) - max(start, r.start_s)) for start, end in spans)
        assert inside > 0, f"{r.start_s:.2f} to {r.end_s:.2f} s lies in a pause"
    for a, b in zip(speech, speech[1:]):
        assert b.start_s >= a.end_s, "two overlap"
    return speech


@pytest.mark.tsan
@pytest.mark.parametrize("encoding,rate_hz", [("pcm16", 16000), ("mulaw", 8000)])
def test_sentences_are_found(stub, encoding, rate_hz):
    samples, spans = joined(SENTENCES, rate_hz, (0.9, 2.0))
    audio = encode(samples, encoding)
    answer = ask_stream(stub, config_of(encoding, rate_hz, utterances={}), audio, cut(audio, np.random.default_rng(1)))
    speech = check_found(answer.results, spans)
    assert all(r.final for r in answer.results), "interim results that nobody asked for"
    # A sentence may hold a pause that is longer than the hangover; most do not.
    assert len(spans) <= len(speech) <= 1.7 * len(spans)
    for r in speech:
        assert r.status == stubs().timbre.ANSWER_STATUS_OK and r.speech_s >= 0.3 - 1e-9
        assert r.speech_s <= r.end_s - r.start_s + 1e-9
    summary = answer.summary.channels[0]
    assert summary.results == len(answer.results) and summary.forwards == len(speech)


def test_every_sentence_alone(stub):
    """Most begin and end where the sentence does, give or take what the rule needs to decide."""
    if not recordings():
        pytest.skip("no recordings (TIMBRE_DATA names their folder): voices made up have no ends to find")
    samples, spans = joined(SENTENCES, 16000, (1.2, 1.6), first=50)
    answer = ask_stream(stub, config_of(utterances={"hangover_s": 1.0}), encode(samples, "pcm16"))
    speech = check_found(answer.results, spans)
    near = sum(any(abs(r.start_s - start) < SLACK_S for r in speech) for start, _ in spans)
    assert near >= 0.8 * len(spans)
    ends = sum(any(abs(r.end_s - end) < 1.0 + SLACK_S for r in speech) for _, end in spans)
    assert ends >= 0.8 * len(spans)


@pytest.mark.tsan
def test_interim_results(stub):
    """They share their start with the final one that replaces them, and grow."""
    samples, spans = joined(6, 16000, (1.0, 1.5), first=20)
    audio = encode(samples, "pcm16")
    every_s = 0.4
    config = config_of(utterances={"interim_every_s": every_s}, smoothing_s=2.0)
    answer = ask_stream(stub, config, audio, cut(audio, np.random.default_rng(3)))
    plain = ask_stream(stub, config_of(utterances={}, smoothing_s=2.0), audio)
    assert [key_of(r) for r in answer.finals] == [key_of(r) for r in plain.results], "interim results changed final ones"
    check_found(answer.results, spans)
    growing, seen = [], 0
    for r in answer.results:
        if not r.final:
            assert not r.smoothed
            assert not growing or (r.start_s == growing[0].start_s and r.end_s > growing[-1].end_s)
            growing.append(r)
        elif growing:
            assert r.start_s == growing[0].start_s, "the final result of another"
            assert r.end_s >= growing[-1].start_s
            assert len(growing) <= (r.end_s - r.start_s) / every_s + 3
            seen, growing = seen + len(growing), []
    assert not growing and seen >= 6
    assert answer.summary.channels[0].results == len(answer.finals)
    assert answer.summary.channels[0].forwards == sum(r.receipt.batch_size > 0 for r in answer.results)


@pytest.mark.tsan
def test_long_speech_is_cut(stub):
    """Into parts of at most length_s_max that leave nothing out."""
    words = np.concatenate([s[np.flatnonzero(np.abs(s.astype(int)) > 1000)[0]:np.flatnonzero(np.abs(s.astype(int)) > 1000)[-1]]
                            for s in (sentence(i, 16000) for i in range(8))])[:16000 * 14]
    samples = np.concatenate([noise(1, 1.5, 16000), words, noise(2, 2.0, 16000)])
    end_s = 1.5 + len(words) / 16000
    for longest in (1.0, 3.0):
        answer = ask_stream(stub, config_of(utterances={"length_s_max": longest, "hangover_s": 1.0, "interim_every_s": 0.5}),
                            encode(samples, "pcm16"))
        speech = [r for r in answer.finals if r.status == stubs().timbre.ANSWER_STATUS_OK]
        assert all(r.end_s - r.start_s <= longest + 1e-9 for r in answer.results)
        full = [r for r in speech if r.end_s - r.start_s > longest - 1e-3]
        assert len(full) >= int(len(words) / 16000 / longest) - 3
        inside = [(r.start_s, r.end_s) for r in speech]
        covered = sum(min(e, end_s) - max(s, 1.5) for s, e in inside if e > 1.5 and s < end_s)
        assert covered > 0.8 * len(words) / 16000
        for r in full[:-1]:  # the next one begins where this one was cut
            assert any(abs(n.start_s - r.end_s) < 1e-6 for n in speech) or any(n.start_s > r.end_s for n in speech)


def test_short_noises_are_none(stub):
    """What has less speech than length_s_min is no utterance."""
    samples, spans = joined(4, 16000, (1.5, 2.0), first=30)
    answer = ask_stream(stub, config_of(utterances={"length_s_min": 0.3}), encode(samples, "pcm16"))
    strict = ask_stream(stub, config_of(utterances={"length_s_min": 5.0, "length_s_max": 30}), encode(samples, "pcm16"))
    m = stubs().timbre
    assert check_found(answer.results, spans)
    assert not [r for r in strict.results if r.status == m.ANSWER_STATUS_OK]
    assert strict.summary.channels[0].forwards == 0


@pytest.mark.tsan
def test_silence_is_told_every_15_seconds(stub):
    m = stubs().timbre
    samples = noise(5, 50.0, 8000, peak=3)
    config = config_of("mulaw", 8000, 2, utterances={"interim_every_s": 0.25})
    answer = ask_stream(stub, config, encode(interleave(samples, samples), "mulaw"))
    for c in (0, 1):
        results = answer.of(c, final=False)
        assert len(results) in (3, 4)
        for k, r in enumerate(results[:3]):
            assert r.status == m.ANSWER_STATUS_NO_SPEECH and r.final and not r.scores and r.message
            assert (r.start_s, r.end_s) == pytest.approx((15 * k, 15 * (k + 1)), abs=0.05)
            assert r.receipt.batch_size == 0 and r.speech_s == 0
        assert answer.summary.channels[c].forwards == 0
        assert answer.summary.channels[c].silence_s == pytest.approx(50.0, abs=0.05)


def test_silence_between_sentences_is_told(stub):
    """After speech, too; and results come in the order of time."""
    m = stubs().timbre
    samples, spans = joined(2, 16000, (33.0, 34.0), first=40)
    answer = ask_stream(stub, config_of(utterances={}), encode(samples, "pcm16"))
    quiet = [r for r in answer.results if r.status == m.ANSWER_STATUS_NO_SPEECH]
    assert len(quiet) >= 4
    for r in quiet:
        assert all(r.end_s <= start + SLACK_S or r.start_s >= end - SLACK_S for start, end in spans)
    ends = [r.end_s for r in answer.results]
    assert ends == sorted(ends)
