"""The voice-activity rule beside the webrtcvad package, on real speech of speakers that nothing was chosen by
(vad_calls.py tells how the calls are made; bench/vad.py prints the whole table)."""

import functools

import numpy as np
import pytest

import timbre_program as timbre
import vad_calls as calls

EMODB = timbre.DATA / "emodb"
VAD_FRAMES = timbre.PROGRAM.parents[1] / "tests" / "vad_frames"
WEBRTCVAD_MODE = 2
FRAMES_MS = (10, 20, 30)
ALL_NOISE = "all noise"
# A truth with every slot on its own counts each gap within a word as silence: there a detector without hangover, which
# misses more in all other respects, can be ahead in one kind of noise. So it is asked over all kinds together.
BARE = "20 dB, bare"


@pytest.fixture(scope="module")
def made():
    """[(truths, {condition: samples or codes})], a call of each speaker."""
    if not EMODB.is_dir():
        pytest.skip(f"no {EMODB}: voice activity is not compared with webrtcvad (TIMBRE_DATA names its folder)")
    assert VAD_FRAMES.is_file(), f"{VAD_FRAMES} was not built"
    return calls.make_conditions(EMODB, calls.TESTED_ON)


@pytest.fixture(scope="module")
def counted(made):
    """A function: {truth: Score} of each detector in a condition, over all calls."""
    @functools.cache
    def count(condition):
        phone = condition == "mu-law"
        detectors = [lambda call: calls.run_rule(VAD_FRAMES, call, phone=phone)]
        detectors += [functools.partial(calls.run_webrtcvad, frame_ms=ms, mode=WEBRTCVAD_MODE, phone=phone)
                      for ms in FRAMES_MS]
        found = [{t: calls.Score() for t in calls.TRUTHS} for _ in detectors]
        for detect, scores in zip(detectors, found):
            for truths, call in made:
                said = detect(call[condition])
                for t, truth in truths.items():
                    scores[t].add(said, truth)
        return found
    return count


@pytest.mark.parametrize("condition", [*calls.CONDITIONS, ALL_NOISE])
def test_at_least_as_good_as_webrtcvad(counted, condition):
    parts = [counted(c) for c in (calls.NOISES if condition == ALL_NOISE else (condition,))]
    for truth in calls.TRUTHS:
        ours, *theirs = [sum((p[truth] for p in detector), calls.Score()).f1 for detector in zip(*parts)]
        if truth != BARE or condition not in calls.NOISES:
            assert ours >= max(theirs), f"{truth}: F1 {ours:.4f}, webrtcvad {max(theirs):.4f}"


def test_truth_of_a_made_clip():
    """1 s of tone, a hole of 100 ms, tone, a hole of 300 ms, tone 30 dB lower, silence."""
    tone = np.sin(2 * np.pi * 440 * np.arange(calls.RATE_HZ) / calls.RATE_HZ)
    hole = np.zeros(calls.RATE_HZ // 10)
    clip = np.concatenate([hole, tone, hole, tone, hole, hole, hole, tone * 10**-1.5, hole])
    powers = calls.slot_powers(clip)
    near = calls.find_speech(powers, 25.0, 0.2)
    assert [near[a:b].all() for a, b in ((10, 110), (110, 120), (120, 220))] == [True, True, True]
    assert not near[:8].any() and not near[222:].any()
    far = calls.find_speech(powers, 35.0, 0.2)
    assert far[252:348].all() and not far[222:248].any()
    assert not calls.find_speech(powers, 25.0, 0.0)[112:118].any()


def test_mu_law_codes():
    """Every code but one of the two zeros comes back from its own value."""
    codes = np.arange(256, dtype=np.uint8)
    values = calls.from_phone(codes).astype(np.float64) / 32768
    again = calls.encode_mulaw(values)
    assert np.array_equal(np.delete(again, 127), np.delete(codes, 127)) and again[127] in (127, 255)
