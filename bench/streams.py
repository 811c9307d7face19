#!/usr/bin/env python3
"""Live calls for minutes, and one stream of hours.

usage: streams.py live [--seconds 600] [--share 0.7] [--streams M] [--chunk-ms 20] [--window 10 --hop 5]
       streams.py long [--hours 4] [--model default]
       with --build DIR, --json FILE

live  1. Capacity: two-channel 8 kHz mu-law calls, more than can be followed, at the pace at which they are spoken: how
      many calls what is answered is worth. Before and after, the mean.
      2. On a fresh server `timbre bench --streams M`, the same calls filling --share of that (at least 50), for ten
      minutes. Kept must be: no stream fails; a result never comes later than one hop after the audio that it needs; 99
      of 100 within 300 ms; resident memory that does not grow after the first minute.
long  One stream of four hours, sent fast, of each kind: 16 kHz PCM by windows, compared bit for bit with Predict of
      pieces of ten minutes; two channels of 8 kHz mu-law by utterances, compared with streams that go on after one
      another. Resident memory must not grow after the first half hour of audio, when batches of all sizes were there.
"""
import subprocess
import sys
import time
from pathlib import Path

import harness

RATE_HZ, CHANNELS = 8000, 2
BYTES_PER_S = RATE_HZ * CHANNELS
# The forward shares its processors with the streams and their generator, so its threads are better not pinned.
FLAGS = ["--access-log", "off", "--max-streams", 4096, "--no-pin"]
TALK_S = 120  # of speech, in a loop; every channel begins somewhere else
CONNECTIONS = 4
CHUNK_BYTES = 100_000
STREAMS_MIN = 50
P99_MS_MAX = 300
SETTLE_S = 60  # of live calls; then memory is flat
SAMPLE_S = 1.0
GROWTH_MB_MAX = 4.0
LONG_S_MAX = 3600
SETTLE_MINUTES = 30  # of audio of a long stream
PIECE_S = 600
MB = 1e6


# ---- live -----------------------------------------------------------------------------------------------------------


def call_command(bench, server, path, streams, seconds, args):
    return [bench.timbre, "bench", "--server", server.grpc, "--streams", streams, "--duration", seconds, "--encoding", "mulaw",
            "--sample-rate", RATE_HZ, "--channels", CHANNELS, "--chunk-ms", args.chunk_ms, "--window", args.window, "--hop",
            args.hop, "--connections", CONNECTIONS, "--json", path]


def measure_capacity(bench, path, model, args):
    """Two-channel calls that can be followed: what is answered when more come than that, by the same generator, in
    messages of the same size, on the same processors. On a server of its own, as its memory grows with the backlog."""
    with bench.server(*FLAGS, model=model) as server:
        generator = subprocess.Popen([str(c) for c in call_command(bench, server, path, args.overload, LONG_S_MAX, args)],
                                     stdout=subprocess.DEVNULL)
        try:
            time.sleep(args.window + args.hop)  # from here on every call has windows
            before, began = server.metric("timbre_stream_results_total", status="ok"), time.monotonic()
            time.sleep(args.capacity_seconds)
            count = server.metric("timbre_stream_results_total", status="ok") - before
            seconds = time.monotonic() - began
        finally:
            generator.kill()
            generator.wait()
    calls = count * args.hop / CHANNELS / seconds
    if calls > 0.9 * args.overload:
        sys.exit(f"{args.overload} calls are no overload, as {calls:.0f} could be followed: give --overload more")
    return calls


def say_memory(bench, name, samples, settle_s):
    last = [(t, rss) for t, rss in samples if t >= settle_s]
    bench.figures[f"{name}rss_mb"] = [[round(t, 1), round(rss / MB, 2)] for t, rss in samples]
    if len(last) < 3:
        sys.exit(f"too short to tell anything about memory: {len(last)} samples after {settle_s:g} s")
    growth_mb = harness.slope(last) * (last[-1][0] - last[0][0]) / MB
    bench.say(f"{name}rss_settled_mb", harness.median([rss for _, rss in last]) / MB, "MB",
              note=f"{min(rss for _, rss in last) / MB:.1f} to {max(rss for _, rss in last) / MB:.1f}")
    bench.say(f"{name}rss_growth_mb", growth_mb, "MB", at_most=GROWTH_MB_MAX,
              note=f"in {last[-1][0] - last[0][0]:.0f} s, by least squares")


def live(bench, args):
    from stream_client import talk
    from timbre_program import write_wav
    model = bench.model(args.model)
    path = write_wav(Path(bench.scratch.name) / "talk.wav", talk(7, TALK_S, RATE_HZ), RATE_HZ)
    before = measure_capacity(bench, path, model, args)
    streams = args.streams or max(STREAMS_MIN, round(args.share * before))
    print(f"  capacity {before:.1f} calls before; {streams} live ones follow, for {args.seconds:g} s", flush=True)
    with bench.server(*FLAGS, model=model) as server:
        # The largest batch once, so that all pages of the workspace are there.
        bench.run_json([bench.timbre, "bench", "--server", server.grpc, "--lengths", "30", "--concurrency", 8, "--duration", 3,
                        "--json"])
        cpu, began = harness.cpu_seconds(server.pid), time.monotonic()
        with harness.Sampler(server, SAMPLE_S) as sampler:
            result = bench.run_json(call_command(bench, server, path, streams, args.seconds, args), statuses=(0, 1))
        used = (harness.cpu_seconds(server.pid) - cpu) / (time.monotonic() - began)
    after = measure_capacity(bench, path, model, args)
    capacity = (before + after) / 2
    bench.figures["generator"] = result
    bench.say("capacity_calls", capacity, "two-channel calls that could be followed",
              note=f"{before:.1f} before, {after:.1f} after")
    bench.say("live_calls", streams, at_least=STREAMS_MIN)
    bench.say("share_of_capacity", streams / capacity, at_least=0.95 * args.share)
    bench.say("server_processors", used, "processors used by the server")
    say_live(bench, result, args)
    during = [(t, rss) for t, rss in sampler.samples if t <= args.seconds]  # then all end at the same time
    say_memory(bench, "", during, min(SETTLE_S, args.seconds / 3))


def say_live(bench, result, args):
    lag, every = result["lag_ms"], result["every_stream"]
    bench.say("streams_failed", result["failed"], at_most=0)
    bench.say("streams_resumed", result["resumed"], at_most=0)
    bench.say("results", result["results"], note=f"{result['results_per_s']:.1f} a second; the generator used "
              f"{result['generator_processors']:.2f} processors and was at most {result['late_ms_max']:.1f} ms late")
    bench.say("results_missing_doubled_misplaced", every["missing"] + every["doubled"] + every["misplaced"], at_most=0,
              note=f"of {every['final']}")
    bench.say("lag_p50_ms", lag["p50"], "ms")
    bench.say("lag_p99_ms", lag["p99"], "ms", at_most=P99_MS_MAX)
    bench.say("lag_max_ms", lag["max"], "ms", at_most=1000 * args.hop)


# ---- long -----------------------------------------------------------------------------------------------------------


class Long:
    """One stream of hours; .keys are its results, .rss [(seconds, bytes)] as it went."""

    def __init__(self, server, stub, config, minutes, encode_minute):
        from stream_client import StreamClient, pieces
        self.rss, began = [], time.monotonic()
        with StreamClient(stub, config, timeout_s=LONG_S_MAX) as s:
            for k in range(minutes):
                s.send_all(pieces(encode_minute(k), CHUNK_BYTES))
                self.rss.append((time.monotonic() - began, server.rss_bytes()))
            s.finish()
            s.check(LONG_S_MAX)
            self.rss.append((time.monotonic() - began, server.rss_bytes()))
        self.messages, self.finals, self.summary = s.messages, s.finals, s.summary
        self.seconds = time.monotonic() - began

    def find_settled_s(self):
        """When half an hour of its audio was sent."""
        return self.rss[min(SETTLE_MINUTES, len(self.rss) // 2)][0]


def long_windows(bench, server, stub, minutes):
    """16 kHz, and Predict of pieces that begin where a window does."""
    from stream_client import config_of, format_of, key_of_window, minute, windows_of
    from timbre_server import request_of
    stream = Long(server, stub, config_of(windows=(10.0, 5.0)), minutes, lambda k: minute(k, "pcm16", 16000, 1))
    found = [key_of_window(r) for r in stream.finals]
    wrong = compared = 0
    for first in range(0, minutes, PIECE_S // 60):
        # Ten minutes, and the five seconds after them that the last window needs.
        audio = b"".join(minute(k, "pcm16", 16000, 1) for k in range(first, min(minutes, first + PIECE_S // 60 + 1)))
        end = (PIECE_S + 5) * 32000
        request = request_of(audio[:end], format=format_of("pcm16", 16000), windows=windows_of(10.0, 5.0))
        windows = [key_of_window(w) for w in stub.Predict(request, timeout=LONG_S_MAX).windows]
        wanted = found[first * 12:first * 12 + len(windows)]
        shifted = [(w[0] + first * 60, w[1] + first * 60, *w[2:]) for w in windows]
        wrong += sum(a != b for a, b in zip(shifted, wanted)) + abs(len(shifted) - len(wanted))
        compared += len(wanted)
    bench.say("windows_stream_s", stream.seconds, "s", note=f"{minutes * 60 / stream.seconds:.0f} times real time")
    bench.say("windows_results", len(found), at_least=minutes * 12 - 1)
    bench.say("windows_compared", compared, at_least=len(found))
    bench.say("windows_other_than_in_pieces", wrong, at_most=0)
    say_memory(bench, "windows_", stream.rss, stream.find_settled_s())


def long_utterances(bench, server, stub, minutes):
    """Telephone audio, and streams that go on after one another, each from a rolling summary of the long one."""
    from stream_client import ask_stream, config_of, go_on, key_of, minute
    config = config_of("mulaw", RATE_HZ, CHANNELS, utterances={}, smoothing_s=10.0, summary_every_s=PIECE_S)
    stream = Long(server, stub, config, minutes, lambda k: minute(k, "mulaw", RATE_HZ, CHANNELS))
    ends = [i + 1 for i, m in enumerate(stream.messages) if m.HasField("summary")]
    missing = compared = 0
    for begin, end in zip([0, *ends], ends):
        new, at = go_on(config, stream.messages[:begin])
        wanted = [key_of(m.result) for m in stream.messages[begin:end] if m.HasField("result")]
        if not wanted:
            continue
        first = at // (60 * BYTES_PER_S)
        last = min(minutes, int(max(k[2] for k in wanted)) // 60 + 2)
        audio = b"".join(minute(k, "mulaw", RATE_HZ, CHANNELS) for k in range(first, last))
        part = ask_stream(stub, new, audio[at - first * 60 * BYTES_PER_S:], timeout_s=LONG_S_MAX)
        missing += len(set(wanted) - {key_of(r) for r in part.finals})
        compared += len(wanted)
    bench.say("utterances_stream_s", stream.seconds, "s", note=f"{minutes * 60 / stream.seconds:.0f} times real time")
    bench.say("utterances_results", len(stream.finals))
    bench.say("utterances_compared", compared, at_least=len(stream.finals))
    bench.say("utterances_other_than_in_parts", missing, at_most=0)
    say_memory(bench, "utterances_", stream.rss, stream.find_settled_s())


def long(bench, args):
    from timbre_server import calling
    minutes = max(12, round(args.hours * 60))
    with bench.server(model=bench.model(args.model)) as server, calling(server) as stub:
        long_windows(bench, server, stub, minutes)
    with bench.server(model=bench.model(args.model)) as server, calling(server) as stub:
        long_utterances(bench, server, stub, minutes)


def main():
    parser = harness.arguments(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("live")
    command.add_argument("--seconds", type=float, default=600)
    command.add_argument("--share", type=float, default=0.7)
    command.add_argument("--streams", type=int, help="so many, whatever the capacity")
    command.add_argument("--capacity-seconds", type=float, default=20)
    command.add_argument("--overload", type=int, default=400, help="calls for the capacity: more than can be followed")
    command.add_argument("--chunk-ms", type=int, default=20, help="of audio in a message of a live call")
    command.add_argument("--window", type=float, default=10)
    command.add_argument("--hop", type=float, default=5)
    command.add_argument("--model", default=str(harness.ROOT / "models" / "default"))
    command = commands.add_parser("long")
    command.add_argument("--hours", type=float, default=4)
    command.add_argument("--model", default=str(harness.ROOT / "models" / "default"))
    args = parser.parse_args()
    with harness.Bench(args) as bench:
        (live if args.command == "live" else long)(bench, args)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
