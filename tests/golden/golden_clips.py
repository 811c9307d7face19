"""The audio that every golden is computed on: synthetic, speech-like, the same on every machine.

A clip is raw little-endian float32, mono, 16 kHz, in clips/<name>.f32; its name tells how many samples.
"""

import zlib
from pathlib import Path

import numpy as np

RATE_HZ = 16000

# 400 samples are one frame of the usual stack of convolutions, and 719 are the most that still give one; 120,
# 225, 226 and 380 are the fewest that other stacks in the table of cases take.
NAMES = [
    "n120",
    "n225",
    "n226",
    "n380",
    "n400",
    "n719",
    "n1600",
    "n5000",
    "n16000",
    "n23456",
    "quiet1600",
    "silence1600",
]


def length(name):
    """Number of samples of a clip."""
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))


def syllables(t, rng, duration):
    """A voice: harmonics of a gliding pitch, in bursts with pauses between them."""
    pitch = rng.uniform(90, 220) * (
        1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.5, 2.0) * t + rng.uniform(0, 6))
    )
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    voice = np.zeros_like(t)
    for harmonic in range(1, 13):
        formant = np.exp(-0.5 * ((harmonic * pitch - rng.uniform(400, 900)) / 500) ** 2)
        voice += (0.15 + formant) / harmonic * np.sin(harmonic * phase + rng.uniform(0, 6))
    gate = np.sin(2 * np.pi * 3.7 * t + rng.uniform(0, 6)) + 0.4
    if duration > 0.2:  # a pause in the middle, as between two words
        gate[(t > 0.45 * duration) & (t < 0.55 * duration)] = 0
    return voice * np.clip(gate, 0, 1)


def chirp(t, rng, duration):
    """A tone that rises or falls over the whole clip."""
    f0, f1 = rng.uniform(200, 3500, 2)
    return np.sin(2 * np.pi * (f0 * t + (f1 - f0) * t * t / (2 * duration)))


def fricatives(t, rng):
    """Noise whose loudness goes up and down."""
    return rng.standard_normal(len(t)) * (0.5 + 0.5 * np.sin(2 * np.pi * 5.3 * t + rng.uniform(0, 6))) ** 2


def make(name):
    """The samples of a clip, float32."""
    n = length(name)
    if name.startswith("silence"):
        return np.zeros(n, np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    t = np.arange(n) / RATE_HZ
    duration = n / RATE_HZ
    x = 0.6 * syllables(t, rng, duration) + 0.1 * chirp(t, rng, duration) + 0.08 * fricatives(t, rng)
    if name.startswith("quiet"):  # faint, and not centred: the input's normalisation matters most here
        x = 0.002 * x + 0.01
    x = np.clip(0.5 * x, -1, 1)
    return (np.round(x * 32768) / 32768).astype(np.float32)  # what a 16-bit file would hold


def write(folder):
    """Writes all clips into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        make(name).astype("<f4").tofile(folder / f"{name}.f32")
