#!/usr/bin/env python3
"""Twice as many calls as the server can answer: what is served stays fast, the rest is refused at once, memory is flat.

usage: overload.py [--seconds 180] [--model golden/sizes_real | base] [--lengths 2,4,8] [--leak [ONE_IN]]
       with --build DIR, --models DIR, --json FILE

1. Capacity: `timbre bench`, a closed loop of 64 on these lengths, before and after; audio seconds a second, the mean.
2. A server whose --max-queued-seconds is one second of capacity's work gets twice that rate for so long, in an open
   loop (Poisson arrivals). At the same time a second client, of grpcio, calls ten times a second: it compares the bits
   of what is served, and times what is refused.
3. Kept must be: only OK and RESOURCE_EXHAUSTED; goodput at least 90 % of capacity; the latency of what is served at
   most what the queue's limit and a running batch take at that capacity, half as much again; refusals in --refused-ms
   at p99, with a time to come again; resident memory that does not grow over the last two thirds.

--leak puts libbench_leak.so before gRPC, which forgets one buffer in ONE_IN: then memory must be among what is not kept
(status 1). Status 2: the leak was not noticed.
"""
import asyncio
import sys
import threading
import time
from pathlib import Path

import harness

QUEUE_S = 1.0  # of work at capacity that may wait
BATCH_S = 30.0  # --max-batch-seconds, the least there is
PROBES_PER_S = 10
SLACK = 1.5  # of the bound on latency: capacity is a mean, and a shared machine is slow at times
SAMPLE_S = 0.5
MB = 1e6
GROWTH_MB_MAX = 8.0


def load(bench, server, args, *flags):
    command = [bench.timbre, "bench", "--server", server.grpc, "--lengths", args.lengths, "--json", *flags]
    return bench.run_json(command, statuses=(0, 1))


def measure_capacity(bench, server, args):
    result = load(bench, server, args, "--concurrency", 64, "--duration", args.capacity_seconds, "--warmup", 2)
    if result["failed"]:
        sys.exit(f"capacity: calls failed: {result['errors']}")
    return result


class Probe:
    """An independent client: .seen is [(code, ms, has a time to come again)], .wrong counts answers with other bits."""

    def __init__(self, server, samples):
        self.server, self.samples, self.seen, self.wrong = server, samples, [], 0
        self.ended = False

    async def call(self, stub, request, expected):
        import grpc
        from timbre_server import bits_of
        start = time.perf_counter()
        try:
            answer = await stub.Predict(request, timeout=60)
            self.wrong += bits_of(answer) != expected
            code, pushback = "OK", True
        except grpc.aio.AioRpcError as e:
            code = e.code().name
            pushback = "grpc-retry-pushback-ms" in {key for key, _ in e.trailing_metadata() or ()}
        self.seen.append((code, (time.perf_counter() - start) * 1e3, pushback))

    async def run(self):
        import grpc
        from timbre_server import bits_of, stubs
        messages = stubs().timbre
        raw = messages.AudioFormat(encoding=messages.ENCODING_PCM16, sample_rate_hz=harness.RATE_HZ, channels=1)
        request = messages.PredictRequest(audio=self.samples.tobytes(), format=raw)
        # Retries are on by default and would hide a refusal.
        async with grpc.aio.insecure_channel(self.server.grpc, [("grpc.enable_retries", 0)]) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)
            expected = bits_of(await stub.Predict(request, timeout=60))
            self.ready.set()
            calls = []
            while not self.ended:
                calls.append(asyncio.create_task(self.call(stub, request, expected)))
                await asyncio.sleep(1 / PROBES_PER_S)
            await asyncio.gather(*calls)

    def __enter__(self):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        assert self.ready.wait(60), "the probe got no answer"
        return self

    def __exit__(self, *rest):
        self.ended = True
        self.thread.join()


def say_memory(bench, samples):
    """Over the last two thirds, when queues and caches have had their time to fill."""
    last = [(t, rss) for t, rss in samples if t >= samples[-1][0] / 3]
    growth_mb = harness.slope(last) * (last[-1][0] - last[0][0]) / MB
    bench.figures["rss_mb"] = [[round(t, 1), round(rss / MB, 2)] for t, rss in samples]
    bench.say("rss_mb", harness.median([rss for _, rss in last]) / MB, "MB",
              note=f"{min(rss for _, rss in last) / MB:.1f} to {max(rss for _, rss in last) / MB:.1f}")
    bench.say("rss_growth_mb", growth_mb, "MB", at_most=GROWTH_MB_MAX,
              note=f"in the last {last[-1][0] - last[0][0]:.0f} s, by least squares")


def say_load(bench, result, probe, capacity, args):
    errors = {code: e["count"] for code, e in result["errors"].items()}
    refused = errors.pop("RESOURCE_EXHAUSTED", 0)
    bound_ms = 1e3 * SLACK * (QUEUE_S + BATCH_S / capacity)
    bench.say("offered_calls_per_s", result["rate"], "calls/s",
              note=f"sent at most {result['late_ms_max']:.1f} ms late")
    bench.say("answered_calls", result["calls"])
    bench.say("refused_calls", refused)
    bench.say("refused_share", refused / max(1, refused + result["calls"]), at_least=0.3,
              note="less: it was no overload, capacity was measured while something else ran")
    bench.say("other_failures", sum(errors.values()), at_most=0, note=f"{errors or ''}")
    bench.say("calls_not_sent", result["unsent"], at_most=0)
    bench.say("goodput_over_capacity", result["audio_s_per_s"] / capacity, at_least=0.9,
              note=f"{result['audio_s_per_s']:.1f} audio s / s; "
                   f"the generator used {result['generator_processors']:.2f} processors")
    bench.say("served_p50_ms", result["latency_ms"]["p50"], "ms")
    bench.say("served_p99_ms", result["latency_ms"]["p99"], "ms", at_most=bound_ms)
    bench.say("served_max_ms", result["latency_ms"]["max"], "ms", at_most=bound_ms)
    seen = [x for x in probe.seen if x[0] == "RESOURCE_EXHAUSTED"]
    bench.say("probe_calls", len(probe.seen), note=f"{len(seen)} refused")
    bench.say("probe_wrong_bits", probe.wrong, at_most=0)
    bench.say("probe_other_codes", sum(x[0] not in ("OK", "RESOURCE_EXHAUSTED") for x in probe.seen), at_most=0)
    if seen:
        bench.say("refused_p50_ms", harness.quantile([ms for _, ms, _ in seen], 0.5), "ms")
        bench.say("refused_p99_ms", harness.quantile([ms for _, ms, _ in seen], 0.99), "ms", at_most=args.refused_ms)
        bench.say("refused_without_pushback", sum(not p for _, _, p in seen), at_most=0)


def overload(bench, args):
    model = bench.model(args.model)
    flags = ["--max-batch-seconds", BATCH_S, "--access-log", "off"]
    lengths = [float(s) for s in args.lengths.split(",")]
    env = {}
    if args.leak:
        shim = Path(args.build).resolve() / "bench" / "libbench_leak.so"
        env = {"LD_PRELOAD": str(shim), "LEAK_ONE_IN": str(args.leak)}
    with bench.server(*flags, model=model) as server:
        before = measure_capacity(bench, server, args)["audio_s_per_s"]
    queued_s = max(QUEUE_S * before, max(lengths))
    rate = 2 * before / (sum(lengths) / len(lengths))
    samples = harness.clips_of([min(lengths)])[0]
    with bench.server(*flags, "--max-queued-seconds", queued_s, model=model, env=env) as server:
        with Probe(server, samples) as probe, harness.Sampler(server, SAMPLE_S) as sampler:
            result = load(bench, server, args, "--rate", rate, "--duration", args.seconds)
        refused_by = server.get("/metrics")[1]
    with bench.server(*flags, model=model) as server:
        after = measure_capacity(bench, server, args)["audio_s_per_s"]
    capacity = (before + after) / 2
    bench.figures["generator"] = result
    bench.figures["refused_by"] = [x for x in refused_by.splitlines() if "refused" in x and not x.startswith("#")]
    bench.say("capacity_audio_s_per_s", capacity, "audio s / s", note=f"{before:.1f} before, {after:.1f} after")
    say_load(bench, result, probe, capacity, args)
    say_memory(bench, sampler.samples)


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--capacity-seconds", type=float, default=15)
    parser.add_argument("--model", default="golden/sizes_real")
    parser.add_argument("--lengths", default="2,4,8")
    parser.add_argument("--refused-ms", type=float, default=100, help="limit of refusals' p99")
    parser.add_argument("--leak", type=int, nargs="?", const=10, metavar="ONE_IN")
    args = parser.parse_args()
    with harness.Bench(args) as bench:
        overload(bench, args)
        if args.leak:
            noticed = "rss_growth_mb" in bench.broken
            print("the planted leak was noticed" if noticed else "the planted leak was NOT noticed")
            return 1 if noticed else 2
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
