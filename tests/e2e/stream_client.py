"""A client of StreamingPredict over grpcio, and audio to send: real recordings where they are, made-up ones elsewhere."""

import csv
import functools
import os
import shutil
import subprocess
import threading
import time
from collections import deque

import grpc
import numpy as np

from timbre_program import DATA, to_pcm16, voice
from timbre_server import SLOWNESS, bits, stubs

TIMEOUT_S = 60 * SLOWNESS
ENCODINGS = ("pcm16", "float32", "mulaw", "alaw")
VALUE_BYTES = {"pcm16": 2, "float32": 4, "mulaw": 1, "alaw": 1}
WAITING_MAX = 4  # messages between send and the wire; then send waits


# ---- audio ----------------------------------------------------------------------------------------------------------


def g711_values(encoding):
    """What each of the 256 codes stands for, as int16: the definition of ITU-T G.711."""
    code = np.arange(256)
    if encoding == "mulaw":
        code = ~code & 0xFF
        size = ((((code & 15) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
        return np.where(code & 0x80, -size, size).astype(np.int16)
    code = code ^ 0x55
    step, size = (code >> 4) & 7, ((code & 15) << 4) + 8
    size = np.where(step > 0, (size + 0x100) << np.maximum(step - 1, 0), size)
    return np.where(code & 0x80, size, -size).astype(np.int16)


def encode(samples, encoding):
    """Bytes of int16 samples, [n] or [n, channels]."""
    flat = np.ascontiguousarray(samples, np.int16).reshape(-1)
    if encoding == "pcm16":
        return flat.astype("<i2").tobytes()
    if encoding == "float32":
        return (flat / np.float32(32768)).astype("<f4").tobytes()
    values = g711_values(encoding).astype(np.int32)
    order = np.argsort(values, kind="stable")
    middle = (values[order][1:] + values[order][:-1]) / 2
    return order[np.searchsorted(middle, flat)].astype(np.uint8).tobytes()


def interleave(*channels):
    """[n, channels], as long as the longest; shorter ones end in zeros."""
    together = np.zeros((max(len(c) for c in channels), len(channels)), np.int16)
    for i, c in enumerate(channels):
        together[:len(c), i] = c
    return together


def noise(seed, seconds, rate_hz, peak=10):
    """A quiet line, under the server's level of silence."""
    return np.random.default_rng(seed).integers(-peak, peak + 1, round(seconds * rate_hz)).astype(np.int16)


@functools.cache
def recordings():
    """Paths of real recordings, shuffled; () when there are none, or nothing that decodes them."""
    ffmpeg, paths = find_ffmpeg(), []
    for name in ("emodb", "ravdess"):
        if ffmpeg and (DATA / name / "labels.csv").is_file():
            with (DATA / name / "labels.csv").open(newline="") as f:
                paths.append([DATA / name / row["file"] for row in csv.DictReader(f)])
    rng = np.random.default_rng(6)
    mixed = [of[i] for of in paths for i in rng.permutation(len(of))[:100]]
    return tuple(mixed[i] for i in rng.permutation(len(mixed)))


def find_ffmpeg():
    return os.environ.get("FFMPEG_BIN") or shutil.which("ffmpeg")


@functools.cache
def decode(path, rate_hz):
    """A recording as int16, mono."""
    done = subprocess.run([find_ffmpeg(), "-v", "error", "-i", path, "-ac", "1", "-ar", str(rate_hz), "-f", "s16le", "-"],
                          stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    return np.frombuffer(done.stdout, "<i2")


def sentence(i, rate_hz, language="emodb"):
    """The i-th sentence of somebody, as int16: a recording, or something like a voice."""
    paths = [p for p in recordings() if language in p.parts]
    return decode(paths[i % len(paths)], rate_hz) if paths else to_pcm16(voice(i, 2.0 + i % 5 / 4, rate_hz))


def talk(seed, seconds, rate_hz, pause_s=0.8):
    """Sentences one after the other, with pauses of a quiet line."""
    parts, total, i = [], 0, 0
    while total < seconds * rate_hz:
        parts += [sentence(seed * 100 + i, rate_hz), noise(i, pause_s, rate_hz)]
        total, i = total + len(parts[-1]) + len(parts[-2]), i + 1
    return np.concatenate(parts)[:round(seconds * rate_hz)]


MINUTE_S = 60


@functools.cache
def _base_of_minutes(rate_hz, channels):
    return [talk(90 + c, MINUTE_S, rate_hz) for c in range(channels)], noise(9, MINUTE_S, rate_hz, peak=3)


def minute(k, encoding, rate_hz, channels):
    """The k-th minute of a call of any length: talk that never comes again in the same places, and somebody silent in
    one of seven."""
    base, quiet = _base_of_minutes(rate_hz, channels)
    parts = [np.roll(b, k * 997 * (k + 1) // 2 + 131 * c) for c, b in enumerate(base)]
    if k % 7 == 3:
        parts[k % channels] = quiet
    return encode(interleave(*parts), encoding)


def cut(data, rng, longest=100_000):
    """Pieces of 1 byte to `longest`, each order of size as likely as the others; anywhere, also within a sample."""
    at = 0
    while at < len(data):
        size = int(np.exp(rng.uniform(0, np.log(longest + 1))))
        yield data[at:at + size]
        at += size


def pieces(data, size):
    return (data[i:i + size] for i in range(0, len(data), size))


# ---- messages -------------------------------------------------------------------------------------------------------


def format_of(encoding, rate_hz, channels=1):
    m = stubs().timbre
    return m.AudioFormat(encoding=getattr(m, f"ENCODING_{encoding.upper()}"), sample_rate_hz=rate_hz, channels=channels)


def config_of(encoding="pcm16", rate_hz=16000, channels=1, *, windows=None, utterances=None, exclude=(), names=(),
              roles=(), **fields):
    """A StreamConfig. windows: (length, hop[, speech_s_min]); utterances: its fields."""
    m = stubs().timbre
    config = m.StreamConfig(format=format_of(encoding, rate_hz, channels), **fields)
    if windows is not None:
        config.windows.CopyFrom(windows_of(*windows))
    if utterances is not None:
        config.utterances.CopyFrom(m.Utterances(**utterances))
    if exclude or names or roles:
        for c in range(channels):
            config.channels.add(name=names[c] if names else "", role=roles[c] if roles else "", exclude=c in exclude)
    return config


def windows_of(length_s, hop_s=0.0, speech_s_min=0.0):
    return stubs().timbre.Windows(length_s=length_s, hop_s=hop_s, speech_s_min=speech_s_min)


def frame_bytes(config):
    m = stubs().timbre
    name = m.Encoding.Name(config.format.encoding).removeprefix("ENCODING_").lower()
    return VALUE_BYTES[name] * (config.format.channels or 1)


def bits_of_scores(scores):
    return bits([s.score for s in scores]), bits([s.logit for s in scores])


def key_of(result):
    """All of a result that must not depend on how, where and beside what it was computed."""
    return (result.channel, result.start_s, result.end_s, result.status, result.final, result.speech_s,
            bits_of_scores(result.scores), bits([s.score for s in result.smoothed]), bits(result.embedding),
            result.dominant.index if result.HasField("dominant") else -1)


def key_of_window(window):
    """What windows of Predict and of StreamingPredict share."""
    return window.start_s, window.end_s, window.status, bits_of_scores(window.scores)


def go_on(config, messages):
    """The config of a stream that goes on after `messages` were had of one with `config`, and where its audio begins, in
    bytes of the whole call's."""
    m = stubs().timbre
    new = m.StreamConfig()
    new.CopyFrom(config)
    while len(new.channels) < (config.format.channels or 1):
        new.channels.add()
    for message in messages:
        if message.HasField("summary"):
            new.resume_summary.CopyFrom(message.summary)
            new.resume_offset_ms = message.summary.resume_offset_ms
            continue
        result = message.result
        new.resume_offset_ms = result.resume_offset_ms
        if result.final:
            channel = new.channels[result.channel]
            channel.resume_end_s = result.end_s
            if result.smoothed:
                channel.resume_smoothed[:] = [s.score for s in result.smoothed]
    return new, new.resume_offset_ms * config.format.sample_rate_hz // 1000 * frame_bytes(config)


# ---- calls ----------------------------------------------------------------------------------------------------------


class StreamClient:
    """One StreamingPredict. Messages are sent when that is asked for; a thread notes what comes, when it comes.

        with StreamClient(stub, config) as s:
            s.send(audio)
            s.finish()
            s.check()  # until the end, which must be OK

    Leaving the block cancels what has not ended. .messages are all that came, .times when each did, .error is how it
    ended: None for OK. read=False: nothing is read until read() is called."""

    def __init__(self, stub, *first, timeout_s=TIMEOUT_S, read=True, metadata=None):
        self.messages, self.times, self.error = [], [], None
        self.ended = threading.Event()
        self.waiting, self.changed, self.closed = deque(), threading.Condition(), False
        self.began = time.monotonic()
        for f in first:
            self.waiting.append(f if isinstance(f, stubs().timbre.StreamingPredictRequest) else self.request(config=f))
        self.call = stub.StreamingPredict(self._requests(), timeout=timeout_s, metadata=metadata)
        if not self.call.add_callback(self._let_go):  # it has ended already
            self._let_go()
        self.reader = None
        if read:
            self.read()

    @staticmethod
    def request(**fields):
        return stubs().timbre.StreamingPredictRequest(**fields)

    def _requests(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                message = self.waiting.popleft()
                self.changed.notify_all()
            yield message

    def _let_go(self):
        with self.changed:
            self.waiting.clear()
            self.closed = True
            self.changed.notify_all()

    def _read(self):
        try:
            for message in self.call:
                self.times.append(time.monotonic())
                self.messages.append(message)
        except grpc.RpcError as e:
            self.error = e
        finally:
            self.ended.set()

    def read(self):
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    # ---- sending ----

    def put(self, message):
        """False: the call has ended, nobody hears it."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.waiting) < WAITING_MAX)
            if self.closed:
                return False
            self.waiting.append(message)
            self.changed.notify_all()
            return True

    def send(self, audio):
        return self.put(self.request(audio=audio))

    def send_all(self, chunks):
        """False: the call ended first."""
        return all(self.send(c) for c in chunks)

    def send_paced(self, audio, bytes_per_s, chunk_s=0.02, until=None):
        """At the pace of a call, from now on, until the event `until` is set; how many bytes were sent."""
        size, begin, sent = max(1, round(chunk_s * bytes_per_s)), time.monotonic(), 0
        while sent < len(audio):
            wait_s = begin + (sent + size) / bytes_per_s - time.monotonic()
            if wait_s > 0 and (until or threading.Event()).wait(wait_s):
                break
            if not self.send(audio[sent:sent + size]):
                break
            sent += size
        return min(sent, len(audio))

    def summarise(self):
        return self.put(self.request(summary=stubs().timbre.SummaryRequest()))

    def finish(self):
        """No more is sent."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def cancel(self):
        self.call.cancel()

    # ---- what came ----

    def wait(self, timeout_s=TIMEOUT_S):
        assert self.ended.wait(timeout_s), f"the stream has not ended, {len(self.messages)} messages came"
        return self

    def check(self, timeout_s=TIMEOUT_S):
        """The end, which must be OK and come after a final summary."""
        self.wait(timeout_s)
        if self.error:
            raise self.error
        m = stubs().timbre
        assert self.messages and self.messages[-1].HasField("summary"), self.messages[-1:]
        assert self.summary.final and self.summary.end == m.STREAM_END_CLIENT
        assert sum(s.final for s in self.summaries) == 1
        return self

    @property
    def code(self):
        return self.error.code() if self.error else grpc.StatusCode.OK

    @property
    def results(self):
        return [m.result for m in self.messages if m.HasField("result")]

    @property
    def finals(self):
        return [r for r in self.results if r.final]

    @property
    def summaries(self):
        return [m.summary for m in self.messages if m.HasField("summary")]

    @property
    def summary(self):
        """The last one."""
        return self.summaries[-1]

    def of(self, channel, final=True):
        return [r for r in self.results if r.channel == channel and (r.final or not final)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()
        self._let_go()
        if self.reader:
            self.reader.join()


def ask_stream(stub, config, audio, chunks=None, timeout_s=TIMEOUT_S):
    """The whole stream of `audio`, which must end well; `chunks` say how it is cut."""
    with StreamClient(stub, config, timeout_s=timeout_s) as s:
        s.send_all(chunks if chunks is not None else pieces(audio, 32000))
        s.finish()
        return s.check(timeout_s)


def keys(results):
    return [key_of(r) for r in results]


def by_channel(results):
    """{channel: keys in the order they came}: channels come in any order among each other."""
    found = {}
    for r in results:
        found.setdefault(r.channel, []).append(key_of(r))
    return found
