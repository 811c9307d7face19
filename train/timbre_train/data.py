"""Clips, labels, speaker folds and waveform augmentation."""

import csv
import dataclasses
import pathlib

import numpy as np
import soundfile
import soxr

RATE = 16000


@dataclasses.dataclass(frozen=True)
class Clip:
    """One labelled recording."""

    path: pathlib.Path
    speaker: str
    gender: str
    emotion: str


def read_clips(root):
    """Read labels.csv under `root`, in file order."""
    root = pathlib.Path(root)
    with open(root / "labels.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [Clip(root / r["file"], r["speaker"], r["gender"], r["emotion"]) for r in rows]


def load_audio(path):
    """Samples of a mono 16 kHz file as float32."""
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE or samples.ndim != 1:
        raise ValueError(f"{path}: expected mono audio at {RATE} Hz")
    return samples


def normalise(samples):
    """Zero mean and unit variance, as the Hugging Face feature extractor does it."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


def speaker_folds(clips, count):
    """Split the speakers into `count` test groups, mixing genders where possible."""
    by_gender = {}
    for speaker, gender in sorted({(c.speaker, c.gender) for c in clips}):
        by_gender.setdefault(gender, []).append(speaker)
    ordered = [s for gender in sorted(by_gender, reverse=True) for s in by_gender[gender]]
    if not 2 <= count <= len(ordered):
        raise ValueError(f"folds must lie between 2 and {len(ordered)}")
    return [ordered[i::count] for i in range(count)]


def split(clips, test_speakers):
    """Indices (train, test); refuses a split with a speaker on both sides."""
    test = [i for i, c in enumerate(clips) if c.speaker in set(test_speakers)]
    train = [i for i, c in enumerate(clips) if c.speaker not in set(test_speakers)]
    refuse_shared_speakers(clips, train, test)
    return train, test


def refuse_shared_speakers(clips, train, test):
    """Raise ValueError if any speaker has clips in both index lists."""
    shared = {clips[i].speaker for i in train} & {clips[i].speaker for i in test}
    if shared:
        raise ValueError(f"speakers on both sides of the split: {sorted(shared)}")


def perturb(samples, rng):
    """A random variant: speed and pitch together, a gentle equaliser, noise."""
    factor = float(np.exp(rng.uniform(np.log(0.82), np.log(1.2))))
    out = soxr.resample(samples, RATE, RATE / factor)
    spectrum = np.fft.rfft(out)
    freqs = np.fft.rfftfreq(len(out), 1 / RATE)
    points = np.array([0, 200, 500, 1000, 2000, 4000, 8000])
    gain_db = np.interp(freqs, points, rng.normal(0, 2.5, len(points)))
    gain_db += rng.normal(0, 1.0) * np.log2(np.maximum(freqs, 100) / 1000)
    out = np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(out))
    if rng.random() < 0.6:
        noise = np.fft.rfft(rng.standard_normal(len(out)))
        noise *= np.maximum(freqs, 50) ** rng.uniform(-1.0, 0.0)
        noise = np.fft.irfft(noise, len(out))
        snr = rng.uniform(12, 45)
        out = out + noise * np.sqrt(out.var() / noise.var()) * 10 ** (-snr / 20)
    return out.astype(np.float32)
