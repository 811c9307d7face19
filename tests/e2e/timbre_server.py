"""`timbre serve` under test: started on free ports of this machine, called by clients nobody here wrote, ended by
SIGTERM. It must end with status 0 and without a sanitizer's report, or the test fails."""

import contextlib
import functools
import importlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import grpc

from timbre_program import GOLDEN, PROGRAM, REPORT, ROOT, is_sanitized

TINY = GOLDEN / "base"
LOG_SHOWN_BYTES = 6000
METRIC = re.compile(r"(?P<name>[a-z_0-9:]+)(\{(?P<labels>.*)\})? (?P<value>\S+)")
# What takes a second takes several with a sanitizer.
SLOWNESS = 8 if is_sanitized() else 1


class Server:
    """with Server("--max-calls", "3") as server: ... server.grpc is where it listens.

    `model` is served as "tiny" and the first one; None leaves that to the flags. Addresses are free ones unless the
    flags tell."""

    def __init__(self, *flags, model=TINY, env=None, ready_timeout_s=60, status=0):
        flags = [str(f) for f in flags]
        self.command = [str(PROGRAM), "serve", *(["--model", f"tiny={model}"] if model else []), *flags]
        for option in ("--grpc-address", "--http-address"):
            self.command += [] if option in flags else [option, "127.0.0.1:0"]
        self.env = {**os.environ, **(env or {})}
        self.status, self.ready_timeout_s = status, ready_timeout_s * SLOWNESS
        self.grpc = self.http = None
        self.told_to_end = False

    def start_only(self):
        """Without waiting until it is ready."""
        self.log = tempfile.NamedTemporaryFile(prefix="timbre-serve-", suffix=".log")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log, env=self.env)
        self.pid = self.process.pid
        return self

    def start(self):
        self.start_only()
        try:
            words = self._read_line().split()
            assert words and words[0] == "ready", f"said {words}\n{self.log_text()[-LOG_SHOWN_BYTES:]}"
            where = dict(w.split("=", 1) for w in words[1:])
            self.grpc, self.http = where["grpc"], where.get("http")
        except BaseException:
            self.kill()
            raise
        return self

    def _read_line(self):
        line, end = b"", time.monotonic() + self.ready_timeout_s
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert readable, f"not ready after {self.ready_timeout_s} s\n{self.log_text()[-LOG_SHOWN_BYTES:]}"
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                break
            line += piece
        return line.decode()

    # ---- while it runs ----

    def wait_log(self, words):
        """The log once it has these words: a thread of its own writes it."""
        wait_until(lambda: words in self.log_text(), what=words)
        return self.log_text()

    def log_text(self):
        return Path(self.log.name).read_text(errors="replace")

    def rss_bytes(self):
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def peak_rss_bytes(self):
        """The most it has held since reset_peak_rss, or ever."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def reset_peak_rss(self):
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def get(self, path):
        """(status, body) of GET on the HTTP address."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10 * SLOWNESS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metric(self, name, **labels):
        """The sum of a metric over all its samples that have these labels."""
        total, found = 0.0, False
        for line in self.get("/metrics")[1].splitlines():
            match = METRIC.fullmatch(line)
            if match and match["name"] == name and all(f'{k}="{v}"' in (match["labels"] or "") for k, v in labels.items()):
                total, found = total + float(match["value"]), True
        assert found or labels, f"no metric {name}"
        return total

    # ---- its end ----

    def terminate(self, number=signal.SIGTERM):
        self.told_to_end = True
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s=60):
        return self.process.wait(timeout_s * SLOWNESS)

    def check_end(self, timeout_s=60):
        try:
            status = self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end\n{self.log_text()[-LOG_SHOWN_BYTES:]}") from None
        text = self.log_text()
        assert not REPORT.search(text), text[-LOG_SHOWN_BYTES:]
        assert status == self.status, f"ended by {status}\n{text[-LOG_SHOWN_BYTES:]}"

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *rest):
        try:
            if not self.told_to_end and self.process.poll() is None:
                self.terminate()
            self.check_end()
        except AssertionError:
            if kind is None:
                raise
            print(f"the server too: {self.log_text()[-LOG_SHOWN_BYTES:]}", file=sys.stderr)
        finally:
            self.close()

    def close(self):
        self.process.stdout.close()
        self.log.close()


def refuse(*flags, model=TINY, env=None):
    """A start that must fail: status 3, nothing on standard output. Returns what standard error says."""
    server = Server(*flags, model=model, env=env)
    done = subprocess.run(server.command, stdin=subprocess.DEVNULL, capture_output=True, env=server.env,
                          timeout=60 * SLOWNESS)
    text = done.stderr.decode(errors="replace")
    assert not REPORT.search(text), text[-LOG_SHOWN_BYTES:]
    assert done.returncode == 3 and not done.stdout, f"{done.returncode} {done.stdout}\n{text[-LOG_SHOWN_BYTES:]}"
    return text


# ---- calling it -----------------------------------------------------------------------------------------------------


@functools.cache
def stubs():
    """Messages and stubs, generated from proto/: .timbre, .timbre_grpc. Those of inference are tritonclient's: a process
    can have one set of them."""
    from grpc_tools import protoc

    holder = tempfile.TemporaryDirectory(prefix="timbre-stubs-")  # removed at exit
    folder = holder.name
    status = protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}",
                          f"--grpc_python_out={folder}", "timbre/v1/timbre.proto"])
    assert status == 0
    sys.path.insert(0, folder)
    names = {"timbre": "timbre.v1.timbre_pb2"}
    modules = {k: importlib.import_module(v) for k, v in names.items()}
    modules |= {f"{k}_grpc": importlib.import_module(f"{v}_grpc") for k, v in names.items()}
    return SimpleNamespace(folder=holder, **modules)


def connect(address, credentials=None, **options):
    """A channel with a connection of its own; options without their "grpc." and with _ for dots."""
    options = {"use_local_subchannel_pool": 1, "max_receive_message_length": -1, **options}
    args = [(f"grpc.{k}", v) for k, v in options.items()]
    if credentials:
        return grpc.secure_channel(address, credentials, args)
    return grpc.insecure_channel(address, args)


@contextlib.contextmanager
def calling(server, *args, **kwargs):
    """The stub of timbre.v1.Timbre on a channel of its own."""
    with connect(server.grpc, *args, **kwargs) as channel:
        yield stubs().timbre_grpc.TimbreStub(channel)


def request_of(audio, **fields):
    """A PredictRequest; `audio` is a Path or bytes."""
    data = audio.read_bytes() if isinstance(audio, Path) else bytes(audio)
    return stubs().timbre.PredictRequest(audio=data, **fields)


def bits(values):
    """Floats as what they are made of, so that equal means equal."""
    return struct.pack(f"<{len(values)}f", *values).hex()


def bits_of(response):
    """Scores and logits of a PredictResponse in the labels' order."""
    scores = sorted(response.scores, key=lambda s: s.index)
    return bits([s.score for s in scores]), bits([s.logit for s in scores])


def bits_of_answer(answer):
    """The same of an object that `timbre predict --json` printed."""
    return bits(answer["scores"]), bits(answer["logits"])


def details_of(error):
    """What an RpcError tells in grpc-status-details-bin, by kind: {"RetryInfo": message, ...}."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)
    assert status is not None, "no grpc-status-details-bin"
    assert status.code == error.code().value[0] and status.message == error.details()
    found = {}
    for detail in status.details:
        kind = detail.type_url.rsplit(".", 1)[-1]
        found[kind] = getattr(error_details_pb2, kind)()
        assert detail.Unpack(found[kind])
    return found


def trailer_of(error, key):
    return dict(error.trailing_metadata()).get(key)


@contextlib.contextmanager
def raises(code, *words):
    """The block's call fails with `code`, and its message has each of `words`. Gives a namespace whose .error is set."""
    caught = SimpleNamespace(error=None)
    try:
        yield caught
    except grpc.RpcError as e:
        caught.error = e
        assert e.code() == code, f"{e.code()}: {e.details()}"
        for word in words:
            assert word in e.details(), e.details()
        return
    raise AssertionError(f"no error, where {code} belongs")


def wait_until(condition, timeout_s=10, what="it"):
    end = time.monotonic() + timeout_s * SLOWNESS
    while not condition():
        assert time.monotonic() < end, f"{what} has not happened"
        time.sleep(0.01)
