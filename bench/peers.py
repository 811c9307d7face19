#!/usr/bin/env python3
"""Times Timbre beside what a user would take instead, in one run: the same weights, the same audio, the same threads.

usage: peers.py [--build DIR] [--model NAME|DIR] [--threads 2] [--rounds 7] [--only NAME,...] [--columns NAME,...]
                [--cache DIR] [--calibration DIR] [--lock FILE] [--json FILE]

Every program runs in a process of its own, on the same processors, and waits without spinning while another one is
timed, which is checked. First the logits of each are compared with ours. Then they take turns, column by column and
round by round, so that a machine that changes its speed changes it for all; printed is the median of the rounds and the
best in brackets, and how many times as long a peer takes as Timbre at the same precision.
The last three columns are the same 16 clips of 1 to 10 s: Timbre runs them as one packed batch; a peer as one padded
batch, as four batches of clips of similar length, or one clip after the other.

Names: timbre-fp32, -bf16, -int8, -avx2 (fp32 by 256-bit operations); torch-fp32, -bf16; onnxruntime-fp32, -int8
(dynamic); openvino-fp32, -bf16, -int8 (post-training quantisation by NNCF). A name without the precision means all.
Needs the packages of train/requirements.txt and bench/requirements.txt.
"""
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import harness
from harness import median

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))
import columns  # noqa: E402
import convert  # noqa: E402

NAMES = ["timbre-fp32", "timbre-bf16", "timbre-int8", "timbre-avx2", "torch-fp32", "torch-bf16", "onnxruntime-fp32",
         "onnxruntime-int8", "openvino-fp32", "openvino-bf16", "openvino-int8"]
FORMS = {"onnxruntime-fp32": "onnx-fp32", "onnxruntime-int8": "onnx-int8", "openvino-fp32": "openvino-fp32",
         "openvino-bf16": "openvino-fp32", "openvino-int8": "openvino-int8"}
NOTES = {"onnxruntime-int8": " (dynamic)", "openvino-int8": " (NNCF)"}
LOGIT_GAP_MAX = 1e-3  # of fp32
LOGIT_RMS_MAX = 0.5  # of the others, relative: more is another model, not rounding
CHECK_CLIPS, CHECK_S = 4, 3
SETTLE_S = 0.03  # for threads of the program before that still spin
LOCK_S_MAX = 30  # then it is given back after a column
IDLE_SHARE_MAX = 0.01  # of a processor, used by programs whose turn it is not


class Program:
    """A program that answers requests (see peers/worker.py), and its times."""

    def __init__(self, name, args, bench):
        self.name = name
        self.is_ours = name.startswith("timbre")
        self.precision = "fp32" if name == "timbre-avx2" else name.partition("-")[2]
        self.times, self.peaks = {c: [] for c in args.columns}, []
        self.busy_s = 0.0  # of a processor, in its own turns
        model, threads = str(bench.model(args.model)), str(args.threads)
        environment = dict(os.environ, OMP_NUM_THREADS=threads, OMP_PROC_BIND="close", OMP_PLACES="threads")
        if name.startswith("torch"):  # measured: pages that are kept, and are huge, save it up to a third
            environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
                            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        if self.is_ours:
            command = [bench.timbre.parents[1] / "bench" / "bench_forward", model, "--device", "cpu", "--precision",
                       self.precision, "--threads", threads, "--requests"]
            environment.pop("TIMBRE_CPU", None)
            if name == "timbre-avx2":
                environment["TIMBRE_CPU"] = "avx2"
        else:
            command = [sys.executable, PEERS / "worker.py", name, "--model", model, "--threads", threads]
            if name in FORMS:
                command += ["--form", convert.find(FORMS[name], model, args.cache, args.calibration)]
        processors = sorted(os.sched_getaffinity(0))[:args.threads]
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment,
                                        preexec_fn=lambda: os.sched_setaffinity(0, processors))
        line = self.process.stdout.readline()
        self.about = json.loads(line) if line else None
        if self.about:
            self.label = self.find_label()
            self.ready_s = self.cpu_s()

    def find_label(self):
        if self.name == "timbre-avx2":
            return "Timbre fp32, AVX2"
        version = "Timbre" if self.is_ours else self.about["version"]
        return f"{version} {self.precision}{NOTES.get(self.name, '')}"

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended by {self.process.wait()}: {request}")
        return json.loads(line)

    def cpu_s(self):
        return harness.cpu_seconds(self.process.pid)

    def time(self, column, counted=True):
        """One turn."""
        time.sleep(SETTLE_S)
        before = self.cpu_s()
        if self.is_ours and counted:
            self.peaks += self.ask("peak")
        runs = columns.RUNS.get(column, 2) if counted else 1
        times = self.ask(f"time {runs} {columns.OURS[column] if self.is_ours else column}")
        if counted:
            self.times[column].append(times[1:])
        self.busy_s += self.cpu_s() - before

    def median_ms(self, column):
        return median([median(turn) for turn in self.times[column]])

    def best_ms(self, column):
        return min(min(turn) for turn in self.times[column])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def convert_models(args, bench):
    for form in sorted({FORMS[name] for name in args.only if name in FORMS}):
        command = [sys.executable, PEERS / "convert.py", form, "--model", bench.model(args.model), "--cache",
                   args.cache]
        if args.calibration:
            command += ["--calibration", args.calibration]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)


def start(args, bench):
    """The programs that can run here, ours at fp32 first: what the others are compared with."""
    programs = []
    for name in args.only:
        program = Program(name, args, bench)
        if program.about:
            programs.append(program)
        elif name == NAMES[0] or not program.is_ours:
            sys.exit(f"{name} did not start")
        else:
            print(f"{name}: cannot run here, left out", flush=True)
    return programs


def check(programs, folder):
    """Nothing is timed before every program has given our fp32's logits, or as near as its precision comes."""
    clips = columns.synthetic(CHECK_CLIPS, CHECK_S, CHECK_S)
    paths = []
    for i, clip in enumerate(clips):
        paths.append(os.path.join(folder, f"{i}.f32"))
        clip.tofile(paths[-1])
    ours = None
    for program in programs:
        logits = np.array([program.ask(f"logits {path}") for path in paths])
        ours = logits if ours is None else ours
        gap = float(np.abs(logits - ours).max())
        rms = float(np.sqrt(((logits - ours) ** 2).sum() / (ours ** 2).sum()))
        if program is not programs[0]:
            print(f"{program.label}: logits differ by {gap:.1e} at most, relative RMS {rms:.1e}", flush=True)
        if gap > LOGIT_GAP_MAX if program.precision == "fp32" else rms > LOGIT_RMS_MAX:
            sys.exit("not the same model: nothing was timed")


def machine_busy_s():
    """Processor time that anybody has used."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Lock:
    """A file's lock while programs are timed, given back now and then. None: nothing."""

    def __init__(self, path):
        self.file, self.since_s = path and open(path, "a"), None

    def take(self):
        if self.file and self.since_s is None:
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since_s = time.monotonic()

    def give_back(self, held_s_max=0.0):
        if self.since_s is not None and time.monotonic() - self.since_s >= held_s_max:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.since_s = None


def run_rounds(programs, args):
    """Seconds of a processor that others used meanwhile, for each second."""
    for column in args.columns:  # memory, plans for each shape
        for program in programs:
            program.time(column, counted=False)
    lock, others_s, wall_s = Lock(args.lock), 0.0, 0.0
    for r in range(args.rounds):
        for column in args.columns:
            lock.take()
            begin, busy, own = time.monotonic(), machine_busy_s(), sum(p.cpu_s() for p in programs)
            for program in programs:
                program.time(column)
            others_s += machine_busy_s() - busy - (sum(p.cpu_s() for p in programs) - own)
            wall_s += time.monotonic() - begin
            print(f"round {r + 1} of {args.rounds}: {column}", file=sys.stderr, flush=True)
            lock.give_back(LOCK_S_MAX)
    lock.give_back()
    return others_s / wall_s


def print_table(programs, args):
    print(f"\nmedian ms (best) of {args.rounds} rounds; ours: % of the precision's peak, medians of the run")
    print("| | " + " | ".join(args.columns) + " |")
    print("|---" * (len(args.columns) + 1) + "|")
    for p in programs:
        cells = []
        for c in args.columns:
            share = f", {share_of_peak(p, c):.0f} %" if p.is_ours and median(p.peaks) > 0 else ""
            cells.append(f"{p.median_ms(c):.4g} ({p.best_ms(c):.4g}){share}")
        print(f"| {p.label} | " + " | ".join(cells) + " |")
    for p in programs:
        if p.is_ours:
            print(f"{p.label}: peak {median(p.peaks):.0f} GF/s median, {max(p.peaks):.0f} best, {min(p.peaks):.0f} "
                  "lowest")


def share_of_peak(p, column):
    return 100 * p.about["gflop"][columns.OURS[column]] / p.median_ms(column) * 1e3 / median(p.peaks)


def ratios_of(programs, args):
    """{peer's name: {column: its time / ours}}"""
    ours = {p.precision: p for p in reversed(programs) if p.is_ours}  # AVX-512's fp32 comes before that of AVX2
    return {p.name: {c: p.median_ms(c) / ours[p.precision].median_ms(c) for c in args.columns}
            for p in programs if not p.is_ours and p.precision in ours}


def print_ratios(programs, ratios, args):
    print("\ntimes as long as Timbre at the same precision (medians)")
    print("| | " + " | ".join(args.columns) + " |")
    print("|---" * (len(args.columns) + 1) + "|")
    for p in programs:
        if p.name in ratios:
            print(f"| {p.label} | " + " | ".join(f"{ratios[p.name][c]:.2f}" for c in args.columns) + " |")
    print(flush=True)


def say_limits(bench, programs, ratios, args):
    """The project's limits, of what was run."""
    by_name = {p.name: p for p in programs}
    # Where 512-bit operations run at full width, the peak lies twice as far above the memory.
    wide = median(programs[0].peaks) > 1.5 * programs[0].ask("peak avx2")[0]
    shares = [("timbre-fp32", {"1 s": 75 if wide else 84, "3 s": 82 if wide else 88, "10 s": 82 if wide else 88,
                               "one by one": 82 if wide else 88}),
              ("timbre-bf16", {"3 s": 82}), ("timbre-int8", {"3 s": 70}), ("timbre-avx2", {"3 s": 80})]
    for name, limits in shares:
        for column in (c for c in limits if name in by_name and c in args.columns):
            bench.say(f"{name}, {columns.OURS[column]}, share of peak", share_of_peak(by_name[name], column), "%",
                      at_least=limits[column])
    wanted = {"openvino-fp32": {c: 2.5 if "padded" in c else 1.05 for c in columns.COLUMNS},
              "openvino-bf16": {c: 1.0 if c == "10 s" else 1.08 for c in columns.COLUMNS},
              "openvino-int8": {c: 1.15 for c in columns.COLUMNS}}
    for name, limits in wanted.items():
        for column in (c for c in limits if name in ratios and c in args.columns):
            bench.say(f"{name} / ours, {column}", ratios[name][column], "x", at_least=limits[column])


def choose(text, known):
    """Names, or what stands before their dash, in the table's order."""
    wanted = [w.strip() for w in text.split(",")]
    for w in wanted:
        if not any(w in (k, k.partition("-")[0]) for k in known):
            sys.exit(f"{w}: not one of {', '.join(known)}")
    return [k for k in known if k in wanted or k.partition("-")[0] in wanted]


def arguments():
    parser = harness.arguments(__doc__)
    parser.add_argument("--model", default="base", help="base, large (random weights, made now) or a model's folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(NAMES), help="programs; timbre-fp32 always runs")
    parser.add_argument("--columns", default=",".join(columns.COLUMNS))
    parser.add_argument("--cache", help="a folder for exported and quantised models; default: a temporary one")
    parser.add_argument("--calibration", help="a folder of WAV or FLAC files of 16 kHz; default: synthetic voices")
    parser.add_argument("--lock", help="a file to hold locked (flock) while a column is timed")
    args = parser.parse_args()
    args.only = choose(NAMES[0] + "," + args.only, NAMES)
    args.columns = choose(args.columns, list(columns.COLUMNS))
    return args


def main():
    args = arguments()
    with harness.Bench(args) as bench:
        args.cache = args.cache or os.path.join(bench.scratch.name, "converted")
        convert_models(args, bench)
        programs = start(args, bench)
        with tempfile.TemporaryDirectory() as folder:
            check(programs, folder)
        for program in programs:
            program.ready_s = program.cpu_s()
            program.busy_s = 0.0
        begin = time.monotonic()
        others = run_rounds(programs, args)
        wall = time.monotonic() - begin
        idle = {p.label: (p.cpu_s() - p.ready_s - p.busy_s) / wall for p in programs}
        print_table(programs, args)
        ratios = ratios_of(programs, args)
        print_ratios(programs, ratios, args)
        bench.figures |= {"ms": {p.label: {c: [p.median_ms(c), p.best_ms(c)] for c in args.columns} for p in programs},
                          "peaks": {p.label: p.peaks for p in programs if p.is_ours}, "ratios": ratios}
        worst = max(idle, key=idle.get)
        bench.say("idle programs, share of a processor", idle[worst], at_most=IDLE_SHARE_MAX, note=worst)
        bench.say("others on the machine, share of a processor", others)
        say_limits(bench, programs, ratios, args)
        for program in programs:
            program.close()
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
