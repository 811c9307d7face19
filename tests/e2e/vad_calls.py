"""Speech with pauses, in noise and over a telephone, where the truth is known from how it was made.

A call is all clips of one speaker in random order, each scaled to the same active level, with pauses of digital silence
of 0.3 to 3 s before, between and behind them. Time is cut into slots of 10 ms. A slot's level is the mean square of the
30 ms around it, less their mean, in the clean clip; a clip's active level is the mean over the slots that are within
30 dB of its loudest. Speech by a truth (level, gap) is a slot within `level` dB of the active level, or in a gap of less
than `gap` seconds between two such slots of one clip. Noise is added to the whole call, pauses too, and changes nothing
of the truth.
"""

import csv
import os
import subprocess
import tempfile

import numpy as np

RATE_HZ, PHONE_HZ = 16000, 8000
SLOTS_HZ = 100
SLOT = RATE_HZ // SLOTS_HZ
TUNED_ON = ("03", "08", "10", "13")  # two men and two women: the rule's constants were chosen by their calls alone
TESTED_ON = ("09", "11", "12", "14")
ACTIVE_DB = -26.0  # of full scale, as ITU-T P.56 means it
SNR_DB = 10.0
PAUSE_S = (0.3, 3.0)
TRUTHS = {"25 dB, gaps": (25.0, 0.2), "35 dB, gaps": (35.0, 0.2), "20 dB, bare": (20.0, 0.0)}
NOISES = ("white", "pink", "babble", "hum")
CONDITIONS = ("clean", *NOISES, "mu-law")
BABBLE_VOICES = 6


# ---- clips ----------------------------------------------------------------------------------------------------------


def read_speakers(folder, speakers):
    """{speaker: [samples of each clip]} of EMO-DB."""
    with (folder / "labels.csv").open(newline="") as f:
        rows = sorted((r["speaker"], r["file"]) for r in csv.DictReader(f) if r["speaker"] in speakers)
    clips = decode([folder / file for _, file in rows])
    return {s: [c for (speaker, _), c in zip(rows, clips) if speaker == s] for s in speakers}


def decode(files):
    with tempfile.TemporaryDirectory() as out:
        command = ["ffmpeg", "-v", "error", "-nostdin"]
        for file in files:
            command += ["-i", str(file)]
        for i in range(len(files)):
            command += ["-map", f"{i}:a", "-ac", "1", "-ar", str(RATE_HZ), "-f", "f32le", os.path.join(out, f"{i}.f32")]
        subprocess.run(command, check=True)
        return [np.fromfile(os.path.join(out, f"{i}.f32"), "<f4").astype(np.float64) for i in range(len(files))]


def slot_powers(clip):
    """Of the 30 ms around each whole slot."""
    slots = len(clip) // SLOT
    around = np.concatenate([np.zeros(SLOT), clip[:slots * SLOT], np.zeros(SLOT)])
    frames = np.lib.stride_tricks.sliding_window_view(around, 3 * SLOT)[::SLOT]
    return frames.var(axis=1)


def active_power(powers):
    return powers[powers > powers.max() * 1e-3].mean()


def find_speech(powers, level_db, gap_s):
    """The truth for each slot of a clip."""
    speech = powers > active_power(powers) * 10 ** (-level_db / 10)
    at = np.flatnonzero(speech)
    for before, after in zip(at, at[1:]):
        if after - before - 1 < gap_s * SLOTS_HZ:
            speech[before:after] = True
    return speech


# ---- calls ----------------------------------------------------------------------------------------------------------


def make_call(clips, seed, *, levelled=True):
    """Samples, and {truth: speech of each slot}. Not levelled: one gain for the call, that of the clips' mean power."""
    rng = np.random.default_rng(seed)

    def pause():
        return int(rng.integers(int(PAUSE_S[0] * SLOTS_HZ), int(PAUSE_S[1] * SLOTS_HZ)))

    slots = pause()
    samples, truths = [np.zeros(slots * SLOT)], {t: [np.zeros(slots, bool)] for t in TRUTHS}
    clip_powers = [slot_powers(c) for c in clips]
    active = [active_power(p) for p in clip_powers]
    if not levelled:
        active = [np.mean(active)] * len(clips)
    for i in rng.permutation(len(clips)):
        powers, gap = clip_powers[i], pause()
        scale = np.sqrt(10 ** (ACTIVE_DB / 10) / active[i])
        samples += [clips[i][:len(powers) * SLOT] * scale, np.zeros(gap * SLOT)]
        for t, (level_db, gap_s) in TRUTHS.items():
            truths[t] += [find_speech(powers, level_db, gap_s), np.zeros(gap, bool)]
    return np.concatenate(samples), {t: np.concatenate(parts) for t, parts in truths.items()}


def power_of_two(count):
    """At least count: transforms of other lengths can take very long."""
    return 1 << (count - 1).bit_length()


def make_noise(kind, count, rng, voices):
    """`voices`: clips of other speakers at one level, for babble."""
    if kind == "white":
        noise = rng.standard_normal(count)
    elif kind == "pink":
        size = power_of_two(count)
        spectrum = np.fft.rfft(rng.standard_normal(size))
        hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 20.0)), size)[:count]
    elif kind == "hum":  # of the mains, and a little hiss
        t = np.arange(count) / RATE_HZ
        noise = sum(np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in (1, 2, 3, 4, 5, 6, 8, 10, 12))
        noise += 0.1 * rng.standard_normal(count)
    elif kind == "babble":
        noise = np.zeros(count)
        for _ in range(BABBLE_VOICES):
            parts, filled = [], 0
            while filled < count:
                parts.append(voices[rng.integers(len(voices))])
                filled += len(parts[-1])
            noise += np.roll(np.concatenate(parts)[:count], rng.integers(count))
    else:
        raise ValueError(kind)
    return noise / np.sqrt(np.mean(noise**2))


def add_noise(call, kind, seed, voices, snr_db=SNR_DB):
    """The signal-to-noise ratio is that of the active level."""
    rng = np.random.default_rng(seed)
    return call + 10 ** ((ACTIVE_DB - snr_db) / 20) * make_noise(kind, len(call), rng, voices)


def make_conditions(folder, speakers, *, levelled=True):
    """[(truths, {condition: samples, or codes of mu-law})], a call of each speaker. The babble is of the others."""
    others = [s for s in TUNED_ON + TESTED_ON if s not in speakers]
    clips = read_speakers(folder, TUNED_ON + TESTED_ON)
    voices = [c / np.sqrt(active_power(slot_powers(c))) for s in others for c in clips[s]]
    made = []
    for i, speaker in enumerate(speakers):
        call, truths = make_call(clips[speaker], 100 + i, levelled=levelled)
        conditions = {"clean": call, "mu-law": to_phone(call)}
        for j, kind in enumerate(NOISES):
            conditions[kind] = add_noise(call, kind, 1000 * i + j, voices)
        made.append((truths, conditions))
    return made


def to_phone(call):
    """Mu-law codes (ITU-T G.711) at 8 kHz: half the samples, after a low pass of 255 taps at 3.7 kHz."""
    n = np.arange(-127, 128)
    taps = np.sinc(2 * 3700 / RATE_HZ * n) * np.hamming(len(n))
    size = power_of_two(len(call) + len(n) - 1)
    low = np.fft.irfft(np.fft.rfft(call, size) * np.fft.rfft(taps / taps.sum(), size), size)[127:127 + len(call):2]
    return encode_mulaw(low)


def encode_mulaw(samples):
    value = np.minimum(np.floor(np.abs(samples) * 8192 + 0.5).astype(np.int64), 8158) + 33
    segment = np.floor(np.log2(value)).astype(np.int64) - 5
    place = value >> (segment + 1) & 15
    return (~((samples < 0) << 7 | segment << 4 | place) & 0xff).astype(np.uint8)


def from_phone(codes):
    bits = ~codes & 0xff
    value = (((2 * (bits & 15).astype(np.int64) + 33) << (bits >> 4 & 7)) - 33) * 4
    return np.where(bits & 0x80, -value, value).astype("<i2")


def to_pcm16(samples):
    return np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2")


# ---- detectors ------------------------------------------------------------------------------------------------------


def run_rule(program, call, *, phone=False):
    """What the rule says of each slot: a frame of 30 ms speaks for the slot in its middle."""
    data = call.tobytes() if phone else call.astype("<f4").tobytes()
    out = subprocess.run([str(program), *(["--mulaw"] if phone else []), str(RATE_HZ)], input=data,
                         stdout=subprocess.PIPE, check=True).stdout
    return np.concatenate([[False], np.frombuffer(out, np.uint8).astype(bool)])


def run_webrtcvad(call, frame_ms, mode, *, phone=False):
    """What webrtcvad says of each slot: that of the frame it lies in. It takes 8 kHz, and works at that inside."""
    import webrtcvad
    vad, rate_hz = webrtcvad.Vad(mode), PHONE_HZ if phone else RATE_HZ
    data, step = (from_phone(call) if phone else to_pcm16(call)).tobytes(), rate_hz * frame_ms // 1000 * 2
    said = [vad.is_speech(data[i:i + step], rate_hz) for i in range(0, len(data) - step + 1, step)]
    return np.repeat(np.array(said, bool), frame_ms * SLOTS_HZ // 1000)


class Score:
    """Slots counted over several calls."""

    def __init__(self):
        self.right = self.wrong = self.missed = 0

    def add(self, said, truth):
        said = np.concatenate([said[:len(truth)], np.zeros(max(0, len(truth) - len(said)), bool)])
        self.right += int(np.sum(said & truth))
        self.wrong += int(np.sum(said & ~truth))
        self.missed += int(np.sum(~said & truth))

    def __add__(self, other):
        both = Score()
        both.right, both.wrong, both.missed = (self.right + other.right, self.wrong + other.wrong,
                                               self.missed + other.missed)
        return both

    @property
    def precision(self):
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self):
        return self.right / max(1, self.right + self.missed)

    @property
    def f1(self):
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)
