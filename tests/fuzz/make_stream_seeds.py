#!/usr/bin/env python3
"""Writes the seeds of fuzz_stream: tests/fuzz/corpus/stream. The messages are put together by hand here, as what is wrong
with one is part of them, too."""

import math
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus" / "stream"
PCM16, FLOAT32, MULAW, ALAW = 2, 3, 4, 5
FINISH, STOP, FINISH_AND_STOP, LEAVE = (n << 5 for n in range(4))
LABELS = 4  # of tests/golden/base


# ---- protobuf, as it is on the wire ---------------------------------------------------------------------------------


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def whole(number, value):
    return varint(number << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)


def real(number, value):
    return varint(number << 3 | 1) + struct.pack("<d", value)


def block(number, *parts):
    data = b"".join(parts)
    return varint(number << 3 | 2) + varint(len(data)) + data


def floats(number, *values):
    return block(number, struct.pack(f"<{len(values)}f", *values))


# ---- messages -------------------------------------------------------------------------------------------------------


def format_of(encoding, rate_hz=8000, channels=1):
    return block(3, whole(1, encoding), whole(2, rate_hz), whole(3, channels))


def config(*fields):
    return block(1, *fields)


def audio(data):
    return block(2, data)


def windows(length_s, hop_s, speech_s_min=0.0):
    return block(5, real(1, length_s), real(2, hop_s), real(3, speech_s_min))


def utterances(*fields):
    return block(6, *fields)


def channel(name=b"", role=b"", *fields):
    return block(4, block(1, name), block(2, role), *fields)


SUMMARY = block(3)


def scores(number, *values):
    return b"".join(block(number, whole(1, i), struct.pack("<Bf", 3 << 3 | 5, v)) for i, v in enumerate(values))


def earlier(channels):
    """A resume_summary."""
    each = [block(2, whole(1, c), scores(5, 0.1, 0.2, 0.3, 0.4), real(7, 2.0), real(8, 3.0), scores(10, 0.1, -0.1, 0, 0),
                  whole(11, 5), whole(12, 1), whole(13, 4),
                  block(14, real(1, 0.0), real(2, 5.0), real(3, 2.0), floats(4, 0.1, 0.2, 0.3, 0.4)))
            for c in range(channels)]
    return block(12, *each, real(3, 0.5), real(7, 0.0), real(8, 5.0))


def sound(n, encoding, channels=1):
    """Something like a voice, with a pause in its second half."""
    out = b""
    for i in range(n):
        for c in range(channels):
            x = 0.0 if i > n * 0.6 else 0.5 * math.sin(i * (0.11 + 0.02 * c)) * (1 + math.sin(i * 0.003)) / 2
            if encoding == PCM16:
                out += struct.pack("<h", round(x * 32767))
            elif encoding == FLOAT32:
                out += struct.pack("<f", x)
            else:
                out += bytes([round(abs(x) * 127) ^ (0xFF if x > 0 else 0x7F)])
    return out


def seed(name, ending, *messages, slice_root=7):
    data = bytes([ending | slice_root]) + b"".join(struct.pack("<H", len(m)) + m for m in messages)
    (CORPUS / name).write_bytes(data)


def cut(data, *sizes):
    for size in sizes:
        yield audio(data[:size])
        data = data[size:]
    yield audio(data)


def main():
    CORPUS.mkdir(parents=True, exist_ok=True)
    speech = sound(6000, MULAW)
    seed("windows", FINISH, config(format_of(MULAW), windows(0.3, 0.15)), *cut(speech, 1, 999, 0, 3000))
    seed("two_channels", FINISH, config(format_of(PCM16, 16000, 2), channel(b"a", b"agent"), channel(b"b", b"customer"),
                                        windows(0.2, 0.1, 0.05), real(7, 2.0), real(8, 1.0), whole(11, 1)),
         *cut(sound(3000, PCM16, 2), 3, 5000), SUMMARY, slice_root=0)
    seed("excluded", STOP, config(format_of(FLOAT32, 16000, 2), channel(b"", b"", whole(3, 1)), channel(),
                                  windows(0.1, 0.1)), *cut(sound(2000, FLOAT32, 2), 7), SUMMARY, audio(b""))
    seed("utterances", FINISH, config(format_of(ALAW), utterances(real(1, 0.05), real(2, 1.0), real(3, 0.1), real(4, 0.25))),
         *cut(sound(12000, ALAW), 4000, 4000))
    seed("goes_on", FINISH, config(format_of(MULAW, 16000), channel(b"a", b"", real(4, 9.1), floats(5, 0.1, 0.2, 0.3, 0.4)),
                                   windows(0.1, 0.05), real(7, 1.0), whole(9, 9000), earlier(1)), *cut(speech, 2000))
    seed("goes_on_resampled", FINISH, config(format_of(MULAW), channel(b"", b"", real(4, 4.2)), windows(0.2, 0.1),
                                             whole(9, 4000)), *cut(speech + speech, 4000))
    seed("many_channels", FINISH, config(format_of(PCM16, 48000, 3), windows(0.05, 0.01)), *cut(sound(2600, PCM16, 3), 11, 13))
    seed("finish_and_stop", FINISH_AND_STOP, config(format_of(PCM16, 44100, 8), windows(0.05, 0.01)),
         *cut(sound(900, PCM16, 8), 4000))
    seed("left", LEAVE, config(format_of(MULAW), windows(0.1, 0.05)), audio(speech), SUMMARY)
    seed("odd_end", FINISH, config(format_of(PCM16)), audio(b"\x00" * 3201))
    seed("not_finite", FINISH, config(format_of(FLOAT32)), audio(struct.pack("<4f", 0, 0.5, math.nan, 1)), audio(bytes(400)))
    seed("audio_first", FINISH, audio(b"abc"), config(format_of(MULAW)))
    seed("config_again", STOP, config(format_of(MULAW)), audio(speech[:100]), config(format_of(ALAW)))
    seed("two_in_one", FINISH, config(format_of(MULAW)) + audio(b"abc"))
    seed("nothing", FINISH, b"")
    seed("cut_off", FINISH, config(format_of(MULAW))[:-3])
    seed("out_of_range", FINISH, config(format_of(MULAW, 7999), windows(0.3, 0.001), real(7, -1.0), whole(9, 1500)))
    seed("wrong_past", FINISH, config(format_of(MULAW, 8000, 2), channel(), channel(), whole(9, 5000), earlier(1)))


main()
