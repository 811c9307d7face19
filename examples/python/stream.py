#!/usr/bin/env python3
"""Streams a two-channel call to a Timbre server at the pace at which it was spoken, and prints what is heard in it.

usage: stream.py ADDRESS FILE [SPEED]

FILE is a WAV file of mu-law, A-law or 16 bit PCM, or else raw mu-law of two channels at 8 kHz; the first channel is the
agent, the second the customer. SPEED 4 sends four times as fast as it was spoken. When the server ends or the connection
breaks, the call goes on in a new stream from where the last result said; an ADDRESS such as
ipv4:10.0.0.1:9000,10.0.0.2:9000 has servers to choose from. README.md tells how to make timbre.v1.
"""

import struct
import sys
import time
from pathlib import Path

import grpc
from timbre.v1 import timbre_pb2 as timbre
from timbre.v1 import timbre_pb2_grpc

CHUNK_S = 0.02  # as telephony sends it
ATTEMPTS = 10  # to go on after a break, until something is heard again
NAMES = ["line 1", "line 2"]
ROLES = ["agent", "customer"]
WAV_ENCODINGS = {1: timbre.ENCODING_PCM16, 6: timbre.ENCODING_ALAW, 7: timbre.ENCODING_MULAW}


def read_call(path):
    """(format, audio)"""
    data = Path(path).read_bytes()
    form = timbre.AudioFormat(encoding=timbre.ENCODING_MULAW, sample_rate_hz=8000, channels=2)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return form, data
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt ":
            kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", data, at)
            if kind not in WAV_ENCODINGS or bits != (16 if kind == 1 else 8):
                sys.exit(f"{path}: a WAV file of another encoding: {kind}, {bits} bit")
            form = timbre.AudioFormat(encoding=WAV_ENCODINGS[kind], sample_rate_hz=rate_hz, channels=channels)
        elif name == b"data":
            return form, data[at:at + size]
        at += size + size % 2
    sys.exit(f"{path}: a WAV file without audio")


class Call:
    """One call, in as many streams as it takes."""

    def __init__(self, form, audio, speed):
        self.audio, self.heard = audio, False
        frame_bytes = form.channels * (2 if form.encoding == timbre.ENCODING_PCM16 else 1)
        self.bytes_per_s = frame_bytes * form.sample_rate_hz
        self.chunk_bytes = frame_bytes * round(CHUNK_S * form.sample_rate_hz)
        self.began, self.speed = time.monotonic(), speed
        # What was had is kept in the config, so that it is always that of the stream that would go on from here.
        self.config = timbre.StreamConfig(format=form, windows=timbre.Windows(length_s=6, hop_s=3, speech_s_min=0.5),
                                          smoothing_s=10)
        for c in range(form.channels):
            self.config.channels.add(name=NAMES[c] if c < 2 else "", role=ROLES[c] if c < 2 else "")

    def requests(self):
        """The config, then audio when it is spoken. What was spoken already, and is needed again, goes at once. (Who has
        no file keeps the audio since resume_offset_ms.)"""
        config = timbre.StreamConfig()
        config.CopyFrom(self.config)
        yield timbre.StreamingPredictRequest(config=config)
        at = config.resume_offset_ms * self.bytes_per_s // 1000
        while at < len(self.audio):
            chunk = self.audio[at:at + self.chunk_bytes]
            at += len(chunk)
            time.sleep(max(0, self.began + at / self.bytes_per_s / self.speed - time.monotonic()))
            yield timbre.StreamingPredictRequest(audio=chunk)

    def take(self, response):
        self.heard = True
        if response.HasField("summary"):
            self.config.resume_offset_ms = response.summary.resume_offset_ms
            self.config.resume_summary.CopyFrom(response.summary)
            return
        result = response.result
        self.config.resume_offset_ms = result.resume_offset_ms
        channel = self.config.channels[result.channel]
        channel.resume_end_s = result.end_s
        if result.smoothed:
            channel.resume_smoothed[:] = [s.score for s in result.smoothed]
        print_result(result)

    def run(self, stub):
        attempts = 0
        while True:
            try:
                for response in stub.StreamingPredict(self.requests(), wait_for_ready=True):
                    self.take(response)
                return
            except grpc.RpcError as error:
                attempts = 1 if self.heard else attempts + 1
                self.heard = False
                if error.code() != grpc.StatusCode.UNAVAILABLE or attempts > ATTEMPTS:
                    raise
                print(f"goes on from {self.config.resume_offset_ms / 1000:g} s: {error.details()}", flush=True)
                time.sleep(0.1 * attempts)


def print_result(result):
    when = f"{result.start_s:7.2f} to {result.end_s:7.2f} s  {result.role or result.channel_name}:"
    if result.status == timbre.ANSWER_STATUS_OK:
        smooth = max(result.smoothed, key=lambda s: s.score)
        print(f"{when} {result.dominant.label} {result.dominant.score:.3f} (smoothed: {smooth.label} {smooth.score:.3f})",
              flush=True)
    else:
        print(f"{when} {timbre.AnswerStatus.Name(result.status).removeprefix('ANSWER_STATUS_').lower()}", flush=True)


def print_summary(summary):
    print(f"{summary.end_s:.2f} s, {summary.talk_over_s:.2f} s of them talked over one another")
    for c in summary.channels:
        label = f"{c.dominant.label} {c.dominant.score:.3f}" if c.HasField("dominant") else "no scores"
        print(f"{c.role or c.channel_name}: {label}; {c.results} results, {c.speech_s:.2f} s of speech")


def main(address, path, speed="1"):
    # For a server that asks for them: grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)), and
    # stub.StreamingPredict(..., metadata=[("authorization", f"Bearer {token}")]).
    with grpc.insecure_channel(address) as channel:
        call = Call(*read_call(path), float(speed))
        try:
            call.run(timbre_pb2_grpc.TimbreStub(channel))
        except grpc.RpcError as error:
            print(f"{path}: {error.code().name}: {error.details()}")
            return 1
        print_summary(call.config.resume_summary)
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
