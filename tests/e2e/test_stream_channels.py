"""Channels of a stream: one that is excluded is not looked at, names and roles come back, and the summary adds up."""

import numpy as np
import pytest

from stream_client import (TIMEOUT_S, ask_stream, by_channel, config_of, cut, encode, interleave, key_of, noise,
                           recordings, sentence, talk)
from timbre_program import to_pcm16, voice
from timbre_server import request_of, stubs

RATE_HZ = 8000
WINDOWS = (1.0, 0.5)

pytestmark = [pytest.mark.asan, pytest.mark.tsan]


def model_work(server):
    """What the engine has computed so far."""
    return (server.metric("timbre_audio_seconds_total", model="tiny"),
            server.metric("timbre_compute_seconds_count", model="tiny"))


# ---- exclusion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("analysis", [{"windows": WINDOWS}, {"utterances": {"interim_every_s": 0.5}}])
def test_an_excluded_channel_is_not_computed(server, stub, analysis):
    """Its forwards are counted, by the stream and by the engine: none beyond those of the other channel alone."""
    agent, customer = talk(1, 8.0, RATE_HZ), talk(2, 8.0, RATE_HZ)

    def run(samples, **fields):
        audio_s, forwards = model_work(server)
        answer = ask_stream(stub, config_of("mulaw", RATE_HZ, samples.shape[1] if samples.ndim > 1 else 1, **analysis,
                                            **fields), encode(samples, "mulaw"))
        more_s, more = model_work(server)
        return answer, more_s - audio_s, more - forwards

    alone, alone_s, _ = run(customer)
    both, both_s, _ = run(interleave(agent, customer))
    one, one_s, _ = run(interleave(agent, customer), exclude=(0,), names=("A", "B"), roles=("agent", "customer"))
    assert one_s == pytest.approx(alone_s, abs=1e-6) and both_s > 1.2 * one_s
    assert {r.channel for r in one.results} == {1} and {r.channel for r in both.results} == {0, 1}
    assert [key_of(r)[1:] for r in one.results] == [key_of(r)[1:] for r in alone.results]
    excluded, kept = one.summary.channels
    assert excluded.excluded and (excluded.channel, excluded.channel_name, excluded.role) == (0, "A", "agent")
    assert excluded.forwards == excluded.results == excluded.no_speech_results == 0
    assert excluded.speech_s == excluded.silence_s == excluded.no_speech_share == 0
    assert not excluded.scores and not excluded.trend and not excluded.timeline and not excluded.HasField("dominant")
    assert not kept.excluded and kept.forwards == sum(r.receipt.batch_size > 0 for r in one.results) > 0
    assert one.summary.talk_over_s == 0
    assert both.summary.channels[0].forwards > 0


def test_nothing_at_all_is_computed_of_silence_and_an_excluded_channel(server, stub):
    """The only sound is in the excluded channel: the engine runs nothing."""
    before = model_work(server)
    samples = interleave(np.zeros(RATE_HZ * 6, np.int16), talk(3, 6.0, RATE_HZ))
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=WINDOWS, exclude=(1,)), encode(samples, "mulaw"))
    assert model_work(server) == before
    assert all(r.status == stubs().timbre.ANSWER_STATUS_NO_SPEECH for r in answer.results) and len(answer.results) == 11


@pytest.mark.parametrize("encoding", ["mulaw", "pcm16", "float32"])
def test_samples_of_an_excluded_channel_change_nothing(stub, encoding):
    """Whatever they are: speech, noise, nothing, bytes that are no numbers."""
    rng = np.random.default_rng(8)
    speech = [talk(10 + c, 8.0, RATE_HZ) for c in range(3)]
    config = config_of(encoding, RATE_HZ, 3, windows=WINDOWS, exclude=(1,), smoothing_s=2.0, summary_every_s=3.0)
    width = len(encode(speech[0][:1], encoding))
    audio = np.frombuffer(encode(interleave(*speech), encoding), np.uint8).reshape(-1, 3, width)
    fillings = [audio[:, 1], np.zeros_like(audio[:, 1]), rng.integers(0, 256, audio[:, 1].shape, np.uint8),
                np.full_like(audio[:, 1], 0xFF)]  # as float32: not a number
    seen = []
    for seed, filling in enumerate(fillings):
        audio = audio.copy()
        audio[:, 1] = filling
        data = audio.tobytes()
        answer = ask_stream(stub, config, data, cut(data, np.random.default_rng(seed), 5000))
        summary = stubs().timbre.StreamSummary()
        summary.CopyFrom(answer.summary)
        summary.ClearField("request_id")
        for c in summary.channels:  # whether a window rode alone is not what was asked for
            assert c.forwards == sum(r.receipt.batch_size > 0 for r in answer.of(c.channel))
        seen.append((by_channel(answer.results), summary.SerializeToString(deterministic=True)))
    assert sorted(seen[0][0]) == [0, 2]
    assert all(s == seen[0] for s in seen[1:])


def test_two_of_eight(stub):
    speech = [talk(20 + c, 5.0, 16000) for c in range(8)]
    answer = ask_stream(stub, config_of("pcm16", 16000, 8, windows=WINDOWS, exclude=(0, 1, 3, 4, 6, 7)),
                        encode(interleave(*speech), "pcm16"))
    found = by_channel(answer.results)
    assert sorted(found) == [2, 5]
    for c in found:
        alone = ask_stream(stub, config_of(windows=WINDOWS), encode(speech[c], "pcm16"))
        assert [k[1:] for k in found[c]] == [key_of(r)[1:] for r in alone.results]
    assert [c.excluded for c in answer.summary.channels] == [True, True, False, True, True, False, True, True]


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_and_roles(stub):
    audio = encode(interleave(talk(1, 3.0, RATE_HZ), talk(2, 3.0, RATE_HZ)), "mulaw")
    named = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=WINDOWS, names=("línea 1", ""),
                                       roles=("customer", "agent")), audio)
    assert {(r.channel, r.channel_name, r.role) for r in named.results} == {(0, "línea 1", "customer"), (1, "1", "agent")}
    assert [(c.channel, c.channel_name, c.role) for c in named.summary.channels] == [(0, "línea 1", "customer"),
                                                                                     (1, "1", "agent")]
    plain = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=WINDOWS), audio)
    assert {(r.channel, r.channel_name, r.role) for r in plain.results} == {(0, "0", ""), (1, "1", "")}


# ---- what the summary says ------------------------------------------------------------------------------------------


def scores_of(result):
    return np.array([s.score for s in result.scores])


def speech_between(seconds, *spans):
    """A quiet line with somebody speaking without a pause in these spans."""
    line = noise(1, seconds, RATE_HZ)
    for k, (start, end) in enumerate(spans):
        words = np.concatenate([trimmed(k + 7 * i) for i in range(8)])[:round((end - start) * RATE_HZ)]
        line[round(start * RATE_HZ):][:len(words)] = words
    return line


def trimmed(i):
    """A sentence without the quiet at its ends."""
    samples = sentence(i, RATE_HZ)
    loud = np.flatnonzero(np.abs(samples.astype(int)) > np.abs(samples.astype(int)).max() // 10)
    return samples[loud[0]:loud[-1]]


def test_speech_silence_and_talk_over(stub):
    """Two speak for known times, together for 4 s of it. Sentences hold short pauses of their own: a quarter may miss."""
    samples = interleave(speech_between(20.0, (2.0, 10.0)), speech_between(20.0, (6.0, 14.0)))
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=(2.0, 1.0)), encode(samples, "mulaw"))
    summary = answer.summary
    assert summary.start_s == 0 and summary.end_s == pytest.approx(20.0, abs=0.05)
    for channel in summary.channels:
        assert 6.0 <= channel.speech_s <= 9.5, channel.speech_s
        assert channel.speech_s + channel.silence_s == pytest.approx(20.0, abs=0.05)
    assert 2.6 <= summary.talk_over_s <= 5.0, summary.talk_over_s
    apart = interleave(speech_between(20.0, (1.0, 8.0)), speech_between(20.0, (10.0, 18.0)))
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, 2, windows=(2.0, 1.0)), encode(apart, "mulaw"))
    assert answer.summary.talk_over_s < 0.1
    # What a result says of its speech is the same measure.
    for c, (start, end) in enumerate(((1.0, 8.0), (10.0, 18.0))):
        for r in answer.of(c):
            if r.end_s <= start or r.start_s >= end + 0.5:
                assert r.speech_s <= 0.1, r
            elif r.start_s >= start and r.end_s <= end:
                assert r.speech_s >= 1.0, r


def test_means_shares_and_counts(stub):
    """From the results that came, weighted by the speech in them."""
    m = stubs().timbre
    samples = np.concatenate([talk(30, 12.0, RATE_HZ), np.zeros(RATE_HZ * 4, np.int16), talk(31, 12.0, RATE_HZ)])
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, windows=(1.0, 1.0, 0.1)), encode(samples, "mulaw"))
    results, channel = answer.results, answer.summary.channels[0]
    ok = [r for r in results if r.status == m.ANSWER_STATUS_OK]
    assert channel.results == len(results) == 28 and channel.forwards == len(ok)
    assert channel.no_speech_results == sum(r.status == m.ANSWER_STATUS_NO_SPEECH for r in results) >= 3
    assert channel.no_speech_share == pytest.approx(channel.no_speech_results / len(results))
    weights = np.array([r.speech_s for r in ok])
    means = (weights[:, None] * np.array([scores_of(r) for r in ok])).sum(axis=0) / weights.sum()
    assert [s.label for s in channel.scores] == [s.label for s in ok[0].scores]
    assert np.allclose([s.score for s in channel.scores], means, atol=1e-5)
    assert channel.dominant.index == int(means.argmax())
    parts = [t for t in channel.timeline if t.scores]
    assert sum(t.speech_s for t in parts) == pytest.approx(sum(t.speech_s for t in channel.timeline))
    assert all(b.start_s == a.end_s for a, b in zip(channel.timeline, channel.timeline[1:]))
    weighted = sum(t.speech_s * np.array(t.scores) for t in parts) / sum(t.speech_s for t in parts)
    assert np.allclose(weighted, means, atol=1e-3)


def test_trend(stub):
    """A call that begins with one sound and ends with another: the last third less the first, by sign and by size."""
    m = stubs().timbre
    first, last = to_pcm16(voice(11, 4.0, RATE_HZ)), noise(2, 4.0, RATE_HZ, 8000)
    if recordings():
        last = to_pcm16(voice(3, 4.0, RATE_HZ))

    def scores(samples):
        answer = stub.Predict(request_of(encode(samples, "mulaw"), format=config_of("mulaw", RATE_HZ).format),
                              timeout=TIMEOUT_S)
        return scores_of(answer)

    step = scores(last) - scores(first)
    assert np.abs(step).max() > 1e-3, "the model hears no difference: choose other sounds"
    samples = np.concatenate([np.tile(first, 12), np.tile(last, 12)])  # 96 s
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, windows=(4.0, 4.0)), encode(samples, "mulaw"))
    assert all(r.status == m.ANSWER_STATUS_OK for r in answer.results) and len(answer.results) == 24
    trend = np.array([s.score for s in answer.summary.channels[0].trend])
    clear = np.abs(step) > np.abs(step).max() / 2
    assert (np.sign(trend[clear]) == np.sign(step[clear])).all()
    assert np.allclose(trend, step, atol=0.35 * np.abs(step).max())
    back = np.concatenate([np.tile(last, 12), np.tile(first, 12)])
    answer = ask_stream(stub, config_of("mulaw", RATE_HZ, windows=(4.0, 4.0)), encode(back, "mulaw"))
    assert np.allclose([s.score for s in answer.summary.channels[0].trend], -trend, atol=0.05 * np.abs(step).max())
    same = ask_stream(stub, config_of("mulaw", RATE_HZ, windows=(4.0, 4.0)), encode(np.tile(first, 24), "mulaw"))
    assert np.allclose([s.score for s in same.summary.channels[0].trend], 0, atol=0.1 * np.abs(step).max())
