"""What the serving benches share: the programs that were built, models, clips, the report.

Each bench prints one line a figure and, with --json FILE, writes all of them as one object. A figure with a limit says
whether it is kept; the exit status is 1 when one is not. Measure on a quiet machine: nothing else should run.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
RATE_HZ = 16000


def arguments(description):
    """A parser with what every bench takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release", help="where it was built")
    parser.add_argument("--models", type=Path, help="a folder for the models that are made; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser


class Bench:
    """Built programs, models by name, and the report.

        with Bench(args) as bench: bench.say("calls_per_s", 12.0, "calls/s", at_least=10)
    """

    def __init__(self, args):
        self.timbre = args.build.resolve() / "cli" / "timbre"
        self.engine = args.build.resolve() / "bench" / "bench_engine"
        if not self.timbre.exists():
            sys.exit(f"{self.timbre} is not there: build it, or say --build DIR")
        os.environ["TIMBRE_BIN"] = str(self.timbre)  # which the server of tests/e2e reads when it is imported
        self.json = args.json
        self.scratch = tempfile.TemporaryDirectory(prefix="timbre-bench-")
        self.models = args.models or Path(self.scratch.name)
        self.figures, self.broken = {}, []

    def __enter__(self):
        self.say_machine()
        return self

    def __exit__(self, kind, *rest):
        self.scratch.cleanup()
        if kind is None and self.json:
            self.json.write_text(json.dumps({**self.figures, "broken": self.broken}, indent=1) + "\n")

    def say_machine(self):
        cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")), "unknown processor")
        self.figures |= {"date": datetime.date.today().isoformat(), "processor": cpu, "processors": os.cpu_count(),
                         "load_before": os.getloadavg()[0]}
        print(f"{self.figures['date']}, {os.cpu_count()} processors, {cpu}, load {os.getloadavg()[0]:.2f} before",
              flush=True)

    def model(self, name):
        """Path of a model: a golden ("golden/base"), "base" and "tiny-cost" (made when not there), or any folder."""
        if name.startswith("golden/"):
            return ROOT / "tests" / name
        if name not in ("base", "large", "tiny-cost"):
            return Path(name)
        folder = self.models / name
        if not (folder / "config.json").exists():
            flags = [] if name == "base" else [f"--{name}"]
            subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", folder, *flags], check=True,
                           stdout=subprocess.DEVNULL)
        return folder

    def server(self, *flags, **options):
        """A running server, as tests/e2e has it; to be used in `with`."""
        from timbre_server import Server
        return Server(*flags, **options)

    def say(self, name, value, unit="", at_least=None, at_most=None, note=""):
        """One figure of the report."""
        limit, kept = "", True
        if at_least is not None:
            limit, kept = f", at least {at_least:g} wanted", value >= at_least
        if at_most is not None:
            limit, kept = f", at most {at_most:g} wanted", value <= at_most
        self.figures[name] = value
        if not kept:
            self.broken.append(name)
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        text = f"{name}: {text} {unit}".rstrip()
        print(f"{text}{limit}{'' if kept else ': NOT KEPT'}{'; ' + note if note else ''}", flush=True)
        return kept

    def run_json(self, command, statuses=(0,)):
        """The object that a program prints on standard output; its errors go through."""
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
        if done.returncode not in statuses:
            sys.exit(f"status {done.returncode}: {' '.join(str(c) for c in command)}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def status(self):
        if self.broken:
            print(f"not kept: {', '.join(self.broken)}")
        return 1 if self.broken else 0


def quantile(values, share):
    """The value that `share` of them do not exceed; NaN of none."""
    values = sorted(values)
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))] if values else float("nan")


def median(values):
    return statistics.median(values) if values else float("nan")


def lengths_of(count, shortest_s, longest_s):
    """Evenly spread over the interval, however many: multiples of the golden ratio. As bench_engine has them."""
    return [shortest_s + (longest_s - shortest_s) * ((i + 0.5) * 0.6180339887498949 % 1.0) for i in range(count)]


def clips_of(seconds):
    """int16 arrays of 16 kHz, something like voices."""
    from timbre_program import to_pcm16, voice
    return [to_pcm16(voice(i, s)) for i, s in enumerate(seconds)]


def cpu_seconds(pid):
    """Processor time that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sampler:
    """Resident bytes of a process, so often; .samples is [(seconds since the start, bytes)]."""

    def __init__(self, server, every_s=0.5):
        self.server, self.every_s, self.samples = server, every_s, []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        start = time.monotonic()
        while not self.ended.wait(self.every_s):
            self.samples.append((time.monotonic() - start, self.server.rss_bytes()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *rest):
        self.ended.set()
        self.thread.join()


def slope(samples):
    """Least squares: by how much y grows for each x."""
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    x0, y0 = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - x0) ** 2 for x in xs)
    return sum((x - x0) * (y - y0) for x, y in samples) / spread if spread else 0.0
