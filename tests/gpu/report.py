"""Parts that run one after another, each within its time, whatever became of those before; and their report as JSON and
as a page. Plain Python: a machine with a GPU may have nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "NOT RUN"
TAIL_BYTES = 3000


class NotRun(Exception):
    """This part cannot be run here; why."""


class Failure(Exception):
    """This part ran, and something is wrong; what."""


class Output:
    """What a program left: status (None: stopped at its limit), out, err, seconds."""

    def __init__(self, status, out, err, seconds):
        self.status, self.out, self.err, self.seconds = status, out, err, seconds

    def tail(self):
        text = (self.out[-TAIL_BYTES:] + "\n" + self.err[-TAIL_BYTES:]).strip()
        return text[-TAIL_BYTES:]

    def lines(self):
        """The JSON objects among the lines of its standard output."""
        found = []
        for line in self.out.splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    pass
        return found


class Suite:
    """`seconds` for all parts together; `limit` of a part is at most that."""

    def __init__(self, name, title, out, seconds, rehearsal):
        self.name, self.title, self.out, self.rehearsal = name, title, Path(out), rehearsal
        self.deadline = time.monotonic() + seconds
        self.facts, self.parts, self.pages = {}, [], []
        self.part_deadline = self.deadline
        self.log = open(self.out / f"{name}.log", "w", encoding="utf-8")

    def time_left(self):
        return min(self.part_deadline, self.deadline) - time.monotonic()

    def run(self, command, env=None, limit=None, stdin=None):
        """Runs a program within the part's time and ends all it started. Raises NotRun when no time is left."""
        left = self.time_left() if limit is None else min(limit, self.time_left())
        if left < 1:
            raise NotRun("no time was left")
        begin = time.monotonic()
        command = [str(word) for word in command]
        process = subprocess.Popen(command, env=os.environ | (env or {}), text=True, errors="replace",
                                   stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        try:
            out, err = process.communicate(stdin, timeout=left)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            status = None
        seconds = time.monotonic() - begin
        settings = "".join(f"{k}={v} " for k, v in (env or {}).items())
        self.log.write(f"$ {settings}{' '.join(command)}\n# status {status}, {seconds:.1f} s\n{out[-20000:]}\n{err[-20000:]}\n")
        self.log.flush()
        return Output(status, out, err, seconds)

    def check_time(self, output, what="the program"):
        """Raises when the program was stopped: that is a failure, but not when all parts together had no more time."""
        if output.status is None:
            text = f"{what} was stopped after {output.seconds:.0f} s"
            if self.deadline <= self.part_deadline:
                raise NotRun(f"{text}: the time for all parts was up")
            raise Failure(f"{text}\n{output.tail()}")

    def check(self, output, what="the program"):
        """Raises unless the program ended well."""
        self.check_time(output, what)
        if output.status != 0:
            end = f"by signal {-output.status}" if output.status < 0 else f"with status {output.status}"
            raise Failure(f"{what} ended {end}\n{output.tail()}")
        return output

    def part(self, name, limit, function, *arguments):
        """Runs one part. It returns (text, details), or raises NotRun or Failure (details: its second argument)."""
        begin = time.monotonic()
        self.part_deadline = begin + limit * (3 if self.rehearsal else 1) # the shim is no GPU
        text, details, result = "", None, PASSED
        try:
            if self.time_left() < 2:
                raise NotRun("no time was left for it")
            text, details = function(self, *arguments)
        except NotRun as why:
            result, text = NOT_RUN, str(why)
        except Failure as what:
            result, text = FAILED, str(what.args[0])
            details = what.args[1] if len(what.args) > 1 else None
        except Exception:  # a mistake in here must not end the other parts
            result, text = FAILED, traceback.format_exc()
        seconds = time.monotonic() - begin
        self.parts.append({"name": name, "result": result, "seconds": round(seconds, 1), "text": text, "details": details})
        print(f"{result:8} {seconds:6.1f} s  {name}: {text.splitlines()[0] if text else ''}", flush=True)
        if result == FAILED:
            print("\n".join("    " + line for line in text.splitlines()[1:40]), flush=True)
        self.write()
        return details if result == PASSED else None

    def count(self, result):
        return sum(part["result"] == result for part in self.parts)

    def verdict(self):
        failed, left_out = self.count(FAILED), self.count(NOT_RUN)
        text = f"{self.count(PASSED)} parts passed, {failed} failed, {left_out} were NOT RUN"
        return (1 if failed else 4 if left_out else 0), text

    def write(self):
        status, text = self.verdict()
        whole = {"title": self.title, "rehearsal": self.rehearsal, "facts": self.facts, "status": status, "verdict": text,
                 "parts": self.parts}
        (self.out / f"{self.name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        (self.out / f"{self.name}.md").write_text(self.page(text), encoding="utf-8")

    def page(self, verdict):
        lines = [f"# {self.title}", ""]
        if self.rehearsal:
            lines += ["**A rehearsal over the shim, without a GPU: no figure here is a measurement.**", ""]
        lines += [f"{key}: {value}" for key, value in self.facts.items()]
        lines += ["", f"**{verdict}**", "", "| part | result | s | |", "|---|---|---|---|"]
        for part in self.parts:
            first = (part["text"].splitlines() or [""])[0].replace("|", "/")
            lines.append(f"| {part['name']} | {part['result']} | {part['seconds']} | {first} |")
        for page in self.pages:
            lines += ["", page]
        for part in self.parts:
            if part["result"] == FAILED:
                lines += ["", f"## {part['name']}: failed", "", "```", part["text"], "```"]
        return "\n".join(lines) + "\n"

    def finish(self):
        status, text = self.verdict()
        self.write()
        print(f"\n{text}; {self.out}/{self.name}.json, .md, .log")
        for part in self.parts:
            if part["result"] == NOT_RUN:
                print(f"  NOT RUN: {part['name']}: {part['text'].splitlines()[0]}")
        self.log.close()
        return status


def table(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def find_facts(suite, build):
    """What the figures were measured on."""
    facts = {"date": time.strftime("%Y-%m-%d"), "programs": str(build)}
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem,compute_cap"
    try:
        seen = suite.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], limit=20)
        facts["GPU"] = seen.out.strip() or "nvidia-smi says nothing"
    except (OSError, NotRun):
        facts["GPU"] = "no nvidia-smi"
    devices = suite.run([build / "bench/timbre_core", "devices"], limit=60)
    facts["device"] = devices.out.strip()
    commit = build / "commit"
    if commit.exists():
        facts["commit"] = commit.read_text(encoding="utf-8").strip()
    elif shutil.which("git"):
        facts["commit"] = suite.run(["git", "describe", "--always", "--dirty"], limit=10).out.strip() or "not known"
    return facts


if __name__ == "__main__":
    sys.exit("report.py is a part of tests/gpu.sh and bench/gpu.sh")
