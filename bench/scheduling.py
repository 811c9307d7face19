#!/usr/bin/env python3
"""Who computes on the CPU: one worker with all threads (latency), one worker a thread (throughput), or what the load
asks for (auto).

    scheduling.py crossover    audio seconds a second, p50 and p99 in a closed loop, by calls in flight
    scheduling.py hog          what is left of the rate while another process keeps one processor busy

Both run bench_engine, in which the three modes are three engines that take turns, round by round, so that a minute in
which the machine is slow is everybody's. hog runs each round quiet and then disturbed, with pinned threads and without.
"""
import sys

import harness

MODES = ("latency", "throughput", "auto")
IN_FLIGHT = (1, 2, 4, 8, 16, 64)
AUTO_BEHIND_MAX = 0.05  # of the better of the two, in rate; and of the better's p50
KEPT_MIN = 0.65


def run(bench, args, model, in_flight, *more):
    calls = max(args.calls, args.calls_each * in_flight)
    return bench.run_json([bench.engine, model, "--cpu-mode", "all", "--concurrency", in_flight, "--calls", calls,
                           "--rounds", args.rounds, "--lengths", args.lengths, "--threads", args.threads,
                           "--precision", args.precision, *(["--no-pin"] if args.no_pin else []), "--json", *more])


def crossover(bench, args):
    """The better mode changes with the load, and auto with it."""
    model = bench.model(args.model)
    print(f"{'in flight':>9}  " + "  ".join(f"{mode + ': audio s/s, p50, p99 ms':>37}" for mode in MODES))
    for in_flight in args.in_flight:
        result = run(bench, args, model, in_flight)
        print(f"{in_flight:9}  " + "  ".join(
            f"{r['audio_s_per_s']:17.2f} {r['p50_ms']:9.1f} {r['p99_ms']:9.1f}" for r in map(result.get, MODES)), flush=True)
        bench.figures[f"in_flight_{in_flight}"] = result
        auto, forced = result["auto"], [result[mode] for mode in MODES[:2]]
        bench.say(f"auto_rate_{in_flight}", auto["audio_s_per_s"] / max(r["audio_s_per_s"] for r in forced),
                  "of the better mode's rate", at_least=1 - AUTO_BEHIND_MAX)
        bench.say(f"auto_p50_{in_flight}", auto["p50_ms"] / min(r["p50_ms"] for r in forced), "of the better mode's p50")


def hog(bench, args):
    """Rounds with the hog over rounds without."""
    model = bench.model(args.model)
    result = run(bench, args, model, args.in_flight[0], "--hog", args.processor)
    name = "free" if args.no_pin else "pinned"
    bench.figures[name] = result
    for mode in MODES:
        quiet, disturbed = result[mode], result[f"{mode}_disturbed"]
        bench.say(f"{name}_{mode}_kept", result[f"{mode}_kept"], "of the quiet rate",
                  at_least=KEPT_MIN if mode == "auto" else None,
                  note=f"{quiet['audio_s_per_s']:.1f} and {disturbed['audio_s_per_s']:.1f} audio s/s, "
                       f"p50 {quiet['p50_ms']:.0f} and {disturbed['p50_ms']:.0f} ms")


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--model", default="base")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-pin", action="store_true")
    parser.add_argument("--lengths", default="1-5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=32, help="of a round, at least")
    parser.add_argument("--calls-each", type=int, default=3, help="likewise, for each call in flight")
    parser.add_argument("--in-flight", type=lambda text: [int(n) for n in text.split(",")])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("crossover")
    command = commands.add_parser("hog")
    command.add_argument("--processor", type=int, default=0, help="that the other process takes")
    args = parser.parse_args()
    args.in_flight = args.in_flight or (IN_FLIGHT if args.command == "crossover" else (16,))
    with harness.Bench(args) as bench:
        (crossover if args.command == "crossover" else hog)(bench, args)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
