"""The columns of the table, and audio for them."""
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "e2e"))
RATE_HZ = 16000
MIXED_S = [1.0, 9.3, 2.4, 6.1, 3.7, 1.6, 8.2, 4.9, 2.0, 5.5, 3.1, 10.0, 1.3, 6.8, 2.7, 1.1]  # as bench_forward has them
SORTED_S = sorted(MIXED_S)

# Each column: the batches that are run one after the other, each as the seconds of its clips.
COLUMNS = {
    "1 s": [[1]],
    "3 s": [[3]],
    "10 s": [[10]],
    "8 x 3 s": [[3] * 8],
    "16 mixed padded": [MIXED_S],
    "sorted by 4": [SORTED_S[i:i + 4] for i in range(0, 16, 4)],
    "one by one": [[s] for s in MIXED_S],
}
# What Timbre runs against a column: it has one way for clips of mixed lengths, which stands against all three.
OURS = {name: "16 mixed" if len(sum(batches, [])) == 16 else name for name, batches in COLUMNS.items()}
# Runs of one turn, 2 where it is not said. The first is not counted: another program had the caches, and memory that
# was given back (see worker.py) is taken again.
RUNS = {"1 s": 6, "3 s": 4}
CALIBRATION_CLIPS_MAX, CALIBRATION_S_MAX = 300, 5


def batches(column):
    """Arrays [clips, samples], padded with zeros to the longest of the batch."""
    rng = np.random.default_rng(0)
    made = []
    for seconds in COLUMNS[column]:
        batch = np.zeros((len(seconds), round(max(seconds) * RATE_HZ)), np.float32)
        for i, s in enumerate(seconds):
            batch[i, :round(s * RATE_HZ)] = rng.standard_normal(round(s * RATE_HZ))
        made.append(batch)
    return made


def normalise(samples, model_dir):
    """As the feature extractor of transformers, when the model's folder asks for it."""
    path = os.path.join(model_dir, "preprocessor_config.json")
    if os.path.exists(path) and not json.loads(Path(path).read_text()).get("do_normalize", True):
        return samples
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def synthetic(count, shortest_s=1, longest_s=CALIBRATION_S_MAX):
    """Something like voices, of several lengths."""
    from timbre_program import voice
    return [voice(i, shortest_s + (longest_s - shortest_s) * (i * 0.618 % 1)) for i in range(count)]


def recordings(folder):
    """WAV and FLAC files of 16 kHz below a folder: their first channel, evenly chosen among all."""
    import soundfile
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".wav", ".flac"))
    clips = []
    for path in paths[::max(1, len(paths) // CALIBRATION_CLIPS_MAX)][:CALIBRATION_CLIPS_MAX]:
        samples, rate_hz = soundfile.read(path, CALIBRATION_S_MAX * RATE_HZ, dtype="float32", always_2d=True)
        if rate_hz == RATE_HZ:
            clips.append(samples[:, 0])
    if not clips:
        sys.exit(f"{folder}: no WAV or FLAC file of 16 kHz")
    return clips


def calibration(folder, model_dir):
    """Clips [1, samples] for a quantised model's ranges."""
    clips = recordings(folder) if folder else synthetic(CALIBRATION_CLIPS_MAX)
    return [normalise(c, model_dir).astype(np.float32)[None] for c in clips]
