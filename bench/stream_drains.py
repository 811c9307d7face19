#!/usr/bin/env python3
"""SIGTERM under live calls: every stream ends with what it knows, and goes on elsewhere without a gap or a double.

usage: stream_drains.py [--times 20] [--streams 16] [--seed 1] [--model default] with --build DIR, --json FILE

Each time a new server, so many live two-channel mu-law calls at the pace at which they are spoken (half of them by
windows, half by utterances with interim results, all smoothed), and SIGTERM at a random moment; every other time with
--lame-duck-ms. A second server, which stays, takes the calls on from the offset of each stream's last message. Kept must
be:
- every stream that was not over ends UNAVAILABLE, after a final summary with STREAM_END_DRAIN and an offset in whole
  seconds;
- the final results of both parts together are those of an uninterrupted run, in order, bit for bit;
- the summary at the end counts what that of the uninterrupted run counts;
- the server ends by itself, with status 0.
"""
import json
import random
import sys
import threading
import time

import harness

RATE_HZ, CHANNELS = 8000, 2
CALL_S = 20.0
CHUNK_S = 0.1
BUSY_S = (3.0, 14.0)  # SIGTERM comes somewhere between
SPREAD_S = 2.0  # in which the calls begin
LAME_DUCK_MS = 300
END_S_MAX = 60
SHOWN_MAX = 8  # of what is wrong; all of it is in the JSON


class Call:
    """A call: its audio, what an uninterrupted stream says of it, and what was had in parts."""

    def __init__(self, number, stub):
        from stream_client import ask_stream, by_channel, config_of, encode, interleave, talk
        analysis = [{"windows": (2.0, 1.0, 0.3)}, {"utterances": {"interim_every_s": 0.5, "length_s_max": 6.0}}][number % 2]
        self.number, self.windows = number, number % 2 == 0
        self.config = config_of("mulaw", RATE_HZ, CHANNELS, **analysis, smoothing_s=5.0)
        self.audio = encode(interleave(*(talk(2 * number + c, CALL_S, RATE_HZ) for c in range(CHANNELS))), "mulaw")
        self.whole = ask_stream(stub, self.config, self.audio)
        self.expected = by_channel(self.whole.finals)


class Part:
    """The first part of a call: on a server that is about to end."""

    def __init__(self, call, stub, delay_s):
        self.call, self.delay_s, self.stub = call, delay_s, stub
        self.stream = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        from stream_client import StreamClient
        time.sleep(self.delay_s)
        self.stream = StreamClient(self.stub, self.call.config, timeout_s=END_S_MAX + CALL_S)
        self.stream.send_paced(self.call.audio, RATE_HZ * CHANNELS, CHUNK_S)
        self.stream.finish()
        self.stream.wait(END_S_MAX)

    def check(self, second):
        """(what is wrong: sentences; what came: figures)"""
        import grpc
        from stream_client import ask_stream, by_channel, go_on
        from timbre_server import details_of, stubs
        m, s, call, wrong = stubs().timbre, self.stream, self.call, []
        figures = {"call": call.number, "code": s.code.name, "finals": len(s.finals), "interims":
                   len(s.results) - len(s.finals), "resume_offset_ms": None, "again": 0}
        if not s.messages or not s.messages[-1].HasField("summary") or not s.summary.final:
            wrong.append(f"call {call.number}: {s.code.name} without a final summary")
        elif s.code == grpc.StatusCode.OK:
            if by_channel(s.finals) != call.expected:
                wrong.append(f"call {call.number}: it was over, with other bits")
            return wrong, figures
        elif s.summary.end != m.STREAM_END_DRAIN:
            wrong.append(f"call {call.number}: its summary says {m.StreamEnd.Name(s.summary.end)}")
        if s.code != grpc.StatusCode.UNAVAILABLE:
            wrong.append(f"call {call.number}: ended {s.code.name}: {s.error.details() if s.error else ''}")
        elif s.messages and details_of(s.error)["ErrorInfo"].reason != "DRAINING":
            wrong.append(f"call {call.number}: {s.error.details()}")
        config, at = go_on(call.config, s.messages)
        figures["resume_offset_ms"] = config.resume_offset_ms
        if config.resume_offset_ms % 1000:
            wrong.append(f"call {call.number}: offset {config.resume_offset_ms} ms")
        rest = ask_stream(second, config, call.audio[at:])
        figures["again"] = len(rest.finals)
        got = by_channel(s.finals + rest.finals)
        for c, want in call.expected.items():
            have = got.get(c, [])
            gaps, doubles = len(set(want) - set(have)), len(have) - len(set(have))
            if have != want:
                wrong.append(f"call {call.number}, channel {c}: {len(have)} results for {len(want)}: {gaps} missing or "
                             f"other bits, {doubles} doubled")
        for a, b in zip(rest.summary.channels, call.whole.summary.channels):
            if (a.results, a.no_speech_results) != (b.results, b.no_speech_results) or abs(a.speech_s - b.speech_s) > 1e-6:
                wrong.append(f"call {call.number}, channel {a.channel}: the summary counts {a.results} results and "
                             f"{a.speech_s} s of speech, not {b.results} and {b.speech_s}")
        return wrong, figures


def one_time(bench, number, calls, second, model, chance):
    flags = ["--lame-duck-ms", str(LAME_DUCK_MS)] if number % 2 else []
    from timbre_server import connect, stubs
    with bench.server(*flags, model=model) as server, connect(server.grpc) as channel:
        stub = stubs().timbre_grpc.TimbreStub(channel)
        began = time.monotonic()
        parts = [Part(call, stub, chance.uniform(0, SPREAD_S)) for call in calls]
        busy_s = chance.uniform(*BUSY_S)
        time.sleep(max(0, began + busy_s - time.monotonic()))
        server.terminate()
        terminated = time.monotonic()
        for p in parts:
            p.thread.join()
        server.check_end()  # status 0
        drain_s = time.monotonic() - terminated
        checked = [p.check(second) for p in parts]
        for p in parts:
            p.stream.__exit__()
    wrong = [w for of, _ in checked for w in of]
    of = [f for _, f in checked]
    codes = [f["code"] for f in of]
    result = {"sigterm_after_s": round(busy_s, 2), "drain_s": round(drain_s, 3), "lame_duck": bool(flags), "streams": of,
              "interrupted": codes.count("UNAVAILABLE"), "over": codes.count("OK"), "before": sum(f["finals"] for f in of),
              "after": sum(f["again"] for f in of), "wrong": wrong}
    print(f"{number + 1:5} {busy_s:9.2f} {drain_s:9.2f} {'yes' if flags else 'no':>10} {result['interrupted']:11} "
          f"{result['over']:5} {result['before']:8} {result['after']:8} {len(wrong):6}", flush=True)
    for w in wrong[:SHOWN_MAX]:
        print(f"      {w}", flush=True)
    return result


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default=str(harness.ROOT / "models" / "default"))
    args = parser.parse_args()
    with harness.Bench(args) as bench:
        from timbre_server import calling
        model, chance = bench.model(args.model), random.Random(args.seed)
        with bench.server(model=model) as other, calling(other) as second:
            calls = [Call(n, second) for n in range(args.streams)]
            print(f"{'time':>5} {'SIGTERM s':>9} {'ended s':>9} {'lame duck':>10} {'interrupted':>11} {'over':>5} "
                  f"{'results':>8} {'again':>8} {'wrong':>6}")
            runs = [one_time(bench, n, calls, second, model, chance) for n in range(args.times)]
        bench.figures["drains"] = runs
        bench.say("drains", len(runs), f"times SIGTERM under {args.streams} live calls")
        bench.say("streams_interrupted", sum(r["interrupted"] for r in runs), at_least=1)
        bench.say("results_before", sum(r["before"] for r in runs), "final ones, of the servers that ended")
        bench.say("results_after", sum(r["after"] for r in runs), "final ones, of the one that went on")
        bench.say("longest_drain_s", max(r["drain_s"] for r in runs), "s")
        bench.say("wrong", sum(len(r["wrong"]) for r in runs), "gaps, doubles, other bits, ends", at_most=0)
        print(json.dumps({k: v for k, v in bench.figures.items() if not isinstance(v, list)}))
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
