#!/usr/bin/env python3
"""How fast the server is: beside its own engine, in calls a second, and beside other servers.

usage: serving.py saturation [--model base] [--rounds 3] [--calls 128]
       serving.py calls [--seconds 10] [--concurrency 64] [--bytes 65536] [--threads 1] [--perf]
       serving.py peers [--model base] [--rounds 3] [--clips 128]
       with --build DIR, --models DIR, --json FILE

saturation  bench_engine runs the same clips through an engine of its own and through the server, in turns, and
            compares every answer bit for bit. 64 in flight: the server's audio seconds a second are at least 95 % of
            the engine's. One in flight: its median latency is at most 3 ms more.
calls       A model that costs next to nothing, raw PCM16 of --bytes, `timbre bench` on the same processors: calls a
            second, and which threads used the processors. One thread for the forward: a team that meets after every
            small operation would use the second processor to wait. --perf: where the time went, too (needs perf).
peers       Beside a FastAPI server with one forward of transformers a request, and a padded dynamic batcher
            (LitServe): the same weights, the same WAV files in the same order, one client of Python for all, in
            turns. Their scores are compared before anything is timed. Needs bench/requirements.txt.
"""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import harness

PERF_LINES = 30
ENGINE_CALLS = 10000


def saturation(bench, args):
    model = bench.model(args.model)
    flags = ["--threads", str(args.threads)] if args.threads else []
    with bench.server(*flags, model=model) as server:
        def run(concurrency, calls, rounds):
            return bench.run_json([bench.engine, model, "--server", server.grpc, "--concurrency", concurrency,
                                   "--calls", calls, "--rounds", rounds, "--lengths", args.lengths, "--json", *flags])

        many = run(64, args.calls, args.rounds)
        one = run(1, 8, args.rounds * args.calls // 32)
    bench.figures |= {"saturated": many, "one_client": one}
    for way in ("engine", "server"):
        bench.say(f"{way}_audio_s_per_s", many[way]["audio_s_per_s"], "audio s / s, 64 in flight",
                  note=f"p50 {many[way]['p50_ms']:.1f} ms, p99 {many[way]['p99_ms']:.1f} ms")
    bench.say("server_over_engine", many["ratio"], "", at_least=0.95, note="64 in flight, median of the rounds")
    for way in ("engine", "server"):
        bench.say(f"{way}_p50_ms", one[way]["p50_ms"], "ms, one client", note=f"p99 {one[way]['p99_ms']:.1f} ms")
    bench.say("server_latency_more_ms", one["gap_ms"], "ms, one client", at_most=3,
              note="median of the differences, call by call")


def threads_of(pid):
    """Processor seconds used by each thread: {(id, name): seconds}."""
    used = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text().partition(" (")[2].rpartition(") ")
        except FileNotFoundError:  # it has ended
            continue
        fields = rest.split()
        used[int(task.name), name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def say_threads(bench, before, after, seconds):
    shares = sorted(((t - before.get(key, 0)) / seconds, key) for key, t in after.items())[::-1]
    bench.figures["server_threads"] = {f"{name} {id}": round(share, 3) for share, (id, name) in shares}
    for share, (id, name) in shares:
        if share >= 0.01:
            print(f"  thread {name} ({id}): {100 * share:.0f} % of a processor")


def perf_lines(data, *flags):
    text = subprocess.run(["perf", "report", "-i", data, "--stdio", "-g", "none", "--percent-limit", "1", *flags],
                          capture_output=True, text=True).stdout
    lines = [re.sub(r"[ -]+$", "", line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [re.sub(r"  +", "  ", line) for line in lines]


def profile(bench, pid, seconds):
    """What perf samples in the server, and under which of its threads. `pid` is what perf calls a thread."""
    data = Path(bench.scratch.name) / "perf.data"
    subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-p", str(pid), "-o", data, "--", "sleep",
                    str(seconds)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tables = {"by library": perf_lines(data, "--sort", "dso"), "by function": perf_lines(data, "--sort", "dso,symbol"),
              "by thread and function": perf_lines(data, "--sort", "pid,symbol")}
    for title, lines in tables.items():
        print(f"perf, the server, {title}:", *lines[:PERF_LINES], sep="\n  ")
    bench.figures["perf"] = tables


def calls(bench, args):
    model = bench.model("tiny-cost")
    clip_s = args.bytes / 2 / harness.RATE_HZ
    alone = bench.run_json([bench.engine, model, "--calls", ENGINE_CALLS, "--rounds", 3, "--lengths",
                            f"{clip_s}-{clip_s}", "--concurrency", args.concurrency, "--threads", args.threads, "--json"])
    bench.say("engine_calls_per_s", alone["engine"]["calls_per_s"], "calls/s", note="the engine alone, no network")
    with bench.server("--threads", args.threads, *args.server_flag, model=model) as server:
        generator = subprocess.Popen(
            [bench.timbre, "bench", "--server", server.grpc, "--concurrency", str(args.concurrency), "--bytes",
             str(args.bytes), "--duration", str(args.seconds), "--json"], stdout=subprocess.PIPE, text=True)
        time.sleep(args.seconds * 0.2)
        before, start = threads_of(server.pid), time.monotonic()
        generator_before = harness.cpu_seconds(generator.pid)
        if args.perf:
            profile(bench, server.pid, args.seconds * 0.5)
        else:
            time.sleep(args.seconds * 0.6)
        after, seconds = threads_of(server.pid), time.monotonic() - start
        generator_share = (harness.cpu_seconds(generator.pid) - generator_before) / seconds
        out, _ = generator.communicate()
    if generator.returncode != 0:
        sys.exit(f"timbre bench ended with status {generator.returncode}: {out}")
    result = json.loads(out)
    bench.figures["generator"] = result
    say_threads(bench, before, after, seconds)
    bench.say("generator_processors", generator_share, "processors used by the generator")
    used = sum(t - before.get(key, 0) for key, t in after.items())
    bench.say("server_processors", used / seconds, "processors used by the server")
    bench.say("p50_ms", result["latency_ms"]["p50"], "ms", note=f"p99 {result['latency_ms']['p99']:.2f} ms")
    bench.say("calls_per_s", result["calls_per_s"], "calls/s", at_least=15000)


def main():
    parser = harness.arguments(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("saturation")
    command.add_argument("--model", default="base")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--calls", type=int, default=128)
    command.add_argument("--lengths", default="1-10")
    command.add_argument("--threads", type=int, default=0)
    command = commands.add_parser("calls")
    command.add_argument("--seconds", type=float, default=10)
    command.add_argument("--concurrency", type=int, default=64)
    command.add_argument("--bytes", type=int, default=65536)
    command.add_argument("--perf", action="store_true")
    command.add_argument("--threads", type=int, default=1, help="of the forward; 0: one a processor")
    command.add_argument("--server-flag", action="append", default=[], help="given to `timbre serve`; again and again")
    command = commands.add_parser("peers")
    command.add_argument("--model", default="base")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--clips", type=int, default=128)
    command.add_argument("--batch", type=int, default=8, help="clips in the padded batcher's largest batch")
    command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with harness.Bench(args) as bench:
        if args.command == "saturation":
            saturation(bench, args)
        elif args.command == "calls":
            calls(bench, args)
        else:
            from serving_peers import compare
            compare.run(bench, args)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
