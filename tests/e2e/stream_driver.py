"""The program stream_driver (stream_driver.c), which streams by the C client as it is told and prints what it is called back
with."""

import json
import os
import queue
import subprocess
import threading
import time

import numpy as np
import pytest

import timbre_program as timbre
from scripted_server import stream_result, stream_summary
from timbre_server import SLOWNESS

DRIVER = timbre.PROGRAM.parents[1] / "tests" / "stream_driver"
MARKS = [pytest.mark.asan, pytest.mark.tsan, pytest.mark.skipif(not DRIVER.exists(), reason=f"{DRIVER} is not built")]

OK, CANCELLED, INVALID, LATE, EXHAUSTED, PRECONDITION, INTERNAL, UNAVAILABLE = 0, 1, 3, 4, 8, 9, 13, 14
SECOND = 16000  # bytes of the driver's stream: two channels of mu-law at 8 kHz
QUICK = ("backoff_initial_ms=1", "backoff_max_ms=5")


def audio(first, count):
    """What the driver sends from byte `first` of the call on."""
    return (np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761) >> 15).astype(np.uint8).tobytes()


class Driver:
    """with Driver(address, "name=value"...) as d: d.tell("send 100") ... d.wait("end"). Every line is in d.lines."""

    def __init__(self, address, *options):
        sanitizer = "ignore_noninstrumented_modules=1 atexit_sleep_ms=0 " + os.environ.get("TSAN_OPTIONS", "")
        self.process = subprocess.Popen([DRIVER, address, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, "TSAN_OPTIONS": sanitizer})
        self.lines, self.arrived, self.errors = [], queue.Queue(), []
        self.readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self.readers:
            reader.start()

    def _read(self):
        try:
            for line in self.process.stdout:
                self.arrived.put(json.loads(line))
        finally:
            self.arrived.put(None)

    def _read_errors(self):
        self.errors.append(self.process.stderr.read())

    def tell(self, *commands):
        for command in commands:
            self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def wait(self, event, timeout_s=30):
        """The next line of this event."""
        end = time.monotonic() + timeout_s * SLOWNESS
        while True:
            line = self.arrived.get(timeout=max(0.01, end - time.monotonic()))
            assert line is not None, f"it ended without {event}: {self.lines}"
            self.lines.append(line)
            if line["event"] == event:
                return line

    def ask(self, command):
        self.tell(command)
        return self.wait(command.split()[0])

    def get(self, event):
        return [line for line in self.lines if line["event"] == event]

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind:
            self.process.kill()
        else:
            self.process.stdin.close()
        try:
            status = self.process.wait(60 * SLOWNESS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = "too long"
        for reader in self.readers:
            reader.join()
        while line := self.arrived.get():
            self.lines.append(line)
        if kind:
            return
        assert status == 0, f"{status}\n{self.errors[0][-6000:]}"
        assert not timbre.REPORT.search(self.errors[0]), self.errors[0][-6000:]
        events = [line["event"] for line in self.lines]
        assert events[-1] == "bye"
        if "open" in events and self.get("open")[0]["code"] == OK:
            assert events.count("end") == 1
            last = max((i for i, e in enumerate(events) if e in ("result", "summary", "resume")), default=-1)
            assert last < events.index("end")


def answer_seconds(call, end=None, resume=lambda s: s):
    """A final result for every second of audio, as it comes, and the last summary when there is no more."""
    start = call.config.resume_offset_ms // 1000
    had = call.config.channels[0].resume_end_s
    second = start
    while end is None or second < end:
        call.read_until((second + 1 - start) * SECOND)
        if len(call.audio) < (second + 1 - start) * SECOND:
            yield stream_summary("CLIENT", second, second * 1000)
            return
        second += 1
        if second > had:
            yield stream_result(0, second - 1, second, max(start, resume(second)) * 1000)
