"""The program under test, driven as a user's script would drive it."""

import json
import os
import re
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
DEFAULT_MODEL = ROOT / "models" / "default"
DATA = Path(os.environ.get("TIMBRE_DATA", ROOT.parent / "shared" / "data"))
RATE_HZ = 16000

REPORT = re.compile(r"AddressSanitizer|LeakSanitizer|ThreadSanitizer|MemorySanitizer|: runtime error: |Assertion .* failed")


def find_program():
    """TIMBRE_BIN, else the newest one built."""
    if os.environ.get("TIMBRE_BIN"):
        return Path(os.environ["TIMBRE_BIN"]).resolve()
    built = sorted(ROOT.glob("build*/**/cli/timbre"), key=lambda p: p.stat().st_mtime)
    return built[-1] if built else None


PROGRAM = find_program()


def is_sanitized():
    """Sanitizers take memory and time of their own."""
    return re.search(rb"__[at]san_init", PROGRAM.read_bytes()) is not None


@dataclass
class Run:
    """How the program ended."""

    status: int
    out: str
    err: str
    seconds: float
    resident_bytes: int  # the most that it, or a child of its own, held

    @property
    def answers(self):
        """One object a line, as --json prints them."""
        return [json.loads(line) for line in self.out.splitlines()]


def peak_bytes(pid):
    """The most memory of its own that a process has held so far; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def run(*arguments, timeout_s=120, env=None, stdin=None):
    """Runs `timbre arguments`. A crash, a sanitizer's report or a failed assertion fails the test at once."""
    command = [str(PROGRAM), *map(str, arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=err,
                                   env={**os.environ, **(env or {})})
        done = peak = 0
        while not done:
            peak = max(peak, peak_bytes(process.pid))
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not done and time.monotonic() - begin > timeout_s:
                process.kill()
                os.wait4(process.pid, 0)
                process.returncode = -9
                raise AssertionError(f"took more than {timeout_s} s: {command}")
            if not done:
                time.sleep(0.005)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for f in (out, err):
            f.seek(0)
            texts.append(f.read().decode())
    report = REPORT.search(texts[1])
    assert not report, f"{command}\n{texts[1][-6000:]}"
    assert process.returncode in (0, 1, 2, 3), f"ended by {process.returncode}: {command}\n{texts[1][-2000:]}"
    # The kernel counts what this process held when it forked as the program's: no more than that tells nothing.
    resident = usage.ru_maxrss * 1024 if usage.ru_maxrss * 1024 > peak_bytes("self") else peak
    return Run(process.returncode, texts[0], texts[1], seconds, resident)


def predict(model, files, *options, status=0, **kwargs):
    """The answers to `files` in their order; `status` is the exit status that is expected, None for any."""
    arguments = ["predict", "--json", *(["--model", model] if model else []), *options, "--", *files]
    result = run(*arguments, **kwargs)
    assert status is None or result.status == status, result.err
    answers = result.answers
    assert [a["file"] for a in answers] == [str(f) for f in files]
    return answers


def logits(answer):
    assert answer["status"] == "ok", answer
    return np.array(answer["logits"], np.float32)


# ---- audio ----------------------------------------------------------------------------------------------------------


def wav_bytes(samples, rate_hz=RATE_HZ):
    """A WAV file: float32 samples as they are, int16 as PCM; [n] or [n, channels]."""
    is_float = samples.dtype == np.float32
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    width = samples.dtype.itemsize
    data = np.ascontiguousarray(samples, samples.dtype.newbyteorder("<")).tobytes()
    form = struct.pack("<HHIIHH", 3 if is_float else 1, channels, rate_hz, rate_hz * channels * width,
                       channels * width, 8 * width)
    fact = b"fact" + struct.pack("<II", 4, len(samples)) if is_float else b""
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + fact + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def write_wav(path, samples, rate_hz=RATE_HZ):
    path.write_bytes(wav_bytes(samples, rate_hz))
    return path


def voice(seed, seconds, rate_hz=RATE_HZ):
    """Something like speech: a gliding voice in syllables, and some noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate_hz))) / rate_hz
    pitch = rng.uniform(90, 250) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 2) * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    tone = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 9))
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * t + rng.uniform(0, 6)) + 0.5, 0, 1)
    return (0.2 * tone * syllables + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


def to_pcm16(samples):
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


# ---- code paths -----------------------------------------------------------------------------------------------------

FLAGS = {"portable": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
FLAGS["avx512vnni"] = FLAGS["avx512"] | {"avx512_vnni"}
FLAGS["avx512bf16"] = FLAGS["avx512vnni"] | {"avx512_bf16"}


def cpu_offers(path):
    """Whether this processor has what TIMBRE_CPU=path needs."""
    words = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            words = set(line.split(":", 1)[1].split())
            break
    return FLAGS[path] <= words


def golden_models():
    """Folders of tests/golden that hold a model and what it must answer."""
    return sorted(p.parent for p in GOLDEN.glob("*/expected.json"))
