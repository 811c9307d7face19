"""/metrics, /healthz and /readyz: by promtool, by a Prometheus that scrapes, and against what docs/metrics.md tells."""

import concurrent.futures
import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import grpc
import pytest

from certificates import make_authority, make_certificate
from stream_client import ask_stream, config_of, encode
from timbre_program import ROOT, to_pcm16, voice, wav_bytes
from timbre_server import (SLOWNESS, Server, calling, connect, raises, request_of, wait_until)

PREDICT = "timbre.v1.Timbre/Predict"
DOCS = (ROOT / "docs" / "metrics.md").read_text()
TIMEOUT_S = 10 * SLOWNESS
CLIP_S = 0.5
# Made when there is something to tell.
ONLY_SOMETIMES = {"timbre_tls_certificate_expiry_seconds"}

pytestmark = [pytest.mark.asan, pytest.mark.tsan]


def need(program):
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed: it comes with the package prometheus")
    return path


def clip(seed=0, seconds=CLIP_S):
    return wav_bytes(voice(seed, seconds))


def predict(stub, audio, **kwargs):
    return stub.Predict(request_of(audio), timeout=TIMEOUT_S, **kwargs)


def stream(stub):
    ask_stream(stub, config_of(windows=(CLIP_S, CLIP_S)), encode(to_pcm16(voice(0, 2 * CLIP_S)), "pcm16"))


def families(page):
    """{name: type} of a page."""
    return dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE "))


def documented():
    """{name: type} of the tables in docs/metrics.md."""
    found = {}
    for names, kind in re.findall(r"^\| (`.*?`) \| (counter|gauge|histogram) \|", DOCS, re.M):
        for name in re.findall(r"`([a-z_]+)", names):
            found[name] = kind
    return found


@pytest.fixture(scope="module")
def used():
    """A server that has seen calls of several kinds, and no more are open."""
    with Server() as server, calling(server) as stub:
        for i in range(3):
            predict(stub, clip(i))
        with raises(grpc.StatusCode.INVALID_ARGUMENT):
            predict(stub, b"no audio at all")
        stream(stub)
        wait_until(lambda: server.metric("timbre_requests_total", method=PREDICT) == 4)
        yield server


# ---- the page -------------------------------------------------------------------------------------------------------


def check_with_promtool(page):
    result = subprocess.run([need("promtool"), "check", "metrics"], input=page, text=True, capture_output=True)
    assert result.returncode == 0 and not result.stdout and not result.stderr, result.stdout + result.stderr


def test_promtool(used):
    check_with_promtool(used.get("/metrics")[1])


def test_promtool_finds_what_is_wrong(used):
    with pytest.raises(AssertionError):
        check_with_promtool(used.get("/metrics")[1].replace("# HELP timbre_ready", "# NOTE timbre_ready"))


def test_head_and_types(used):
    host, port = used.http.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    for method in ("GET", "HEAD", "GET"):  # on one connection
        connection.request(method, "/metrics")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200
        assert answer.getheader("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        assert (len(body) == 0) == (method == "HEAD") and int(answer.getheader("content-length")) > 1000
    connection.request("POST", "/metrics", body=b"x")
    answer = connection.getresponse()
    assert answer.status == 405 and answer.getheader("allow") == "GET, HEAD"
    assert used.get("/nothing")[0] == 404 and used.get("/metrics/")[0] == 404


def test_health(used):
    assert used.get("/healthz") == (200, "ok\n")
    assert used.get("/readyz") == (200, "ok\n")


# ---- what it tells --------------------------------------------------------------------------------------------------


def test_page_and_docs_agree(used):
    page, told = families(used.get("/metrics")[1]), documented()
    assert page.items() <= told.items(), f"not in docs/metrics.md: {page.items() - told.items()}"
    missing = told.keys() - page.keys() - ONLY_SOMETIMES
    assert not missing, f"docs/metrics.md tells of what is not there: {missing}"


def test_calls_are_counted(used):
    assert used.metric("timbre_requests_total", method=PREDICT, code="OK") == 3
    assert used.metric("timbre_requests_total", method=PREDICT, code="INVALID_ARGUMENT") == 1
    assert used.metric("timbre_request_seconds_count", method=PREDICT) == 4
    assert used.metric("timbre_requests_in_flight") == 0
    assert used.metric("timbre_received_bytes_total") >= 3 * len(clip())
    assert used.metric("timbre_prepare_seconds_count", decoder="libsndfile") >= 3
    assert used.metric("timbre_audio_seconds_total", model="tiny") >= 3 * CLIP_S
    assert used.metric("timbre_ready") == 1
    assert used.metric("timbre_model_state", model="tiny", state="ready") == 1
    assert used.metric("timbre_model_state", model="tiny") == 1
    assert used.metric("process_start_time_seconds") == pytest.approx(time.time(), abs=600 * SLOWNESS)
    assert used.metric("process_resident_memory_bytes") == pytest.approx(used.rss_bytes(), rel=0.5)
    assert used.metric("process_open_fds") < used.metric("process_max_fds")


def test_methods_that_are_none(used):
    before = used.metric("timbre_requests_total", code="UNIMPLEMENTED")
    with connect(used.grpc) as channel, raises(grpc.StatusCode.UNIMPLEMENTED):
        channel.unary_unary("/nobody.Service/Call", lambda b: b, lambda b: b)(b"", timeout=TIMEOUT_S)
    wait_until(lambda: used.metric("timbre_requests_total", code="UNIMPLEMENTED") == before + 1)
    assert "nobody" not in used.get("/metrics")[1], "callers must not be able to make series"


def test_refusals_are_counted(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {'0' * 64}\n")
    with Server("--token-file", tokens) as server, calling(server) as stub:
        for _ in range(3):
            with raises(grpc.StatusCode.UNAUTHENTICATED):
                predict(stub, clip())
        wait_until(lambda: server.metric("timbre_refused_total", reason="unauthenticated") == 3)
        assert server.metric("timbre_requests_total", method=PREDICT, code="UNAUTHENTICATED") == 3
        assert server.metric("timbre_refused_total") == 3
        assert server.metric("timbre_requests_in_flight") == 0


def test_callers_who_leave_are_counted():
    with Server() as server, calling(server) as stub:
        calls = [stub.StreamingPredict(iter_forever()) for _ in range(3)]
        wait_until(lambda: server.metric("timbre_requests_in_flight") == 3)
        for call in calls:
            call.cancel()
        wait_until(lambda: server.metric("timbre_requests_in_flight") == 0)
        assert server.metric("timbre_requests_total", code="CANCELLED") == 3
        assert server.metric("timbre_requests_total", code="OK") == 0


def iter_forever():
    """The requests of a client that never says anything."""
    while True:
        time.sleep(3600)
        yield None


def test_certificate(tmp_path):
    pair = make_certificate(tmp_path, "server", make_authority(tmp_path, "authority"), days=2)
    with Server("--tls-cert", pair.cert, "--tls-key", pair.key) as server:
        name = "timbre_tls_certificate_expiry_seconds"
        wait_until(lambda: name in server.get("/metrics")[1])
        assert server.metric(name) == pytest.approx(time.time() + 2 * 86400, abs=600 * SLOWNESS)


# ---- peers of the HTTP address --------------------------------------------------------------------------------------


def test_scrapes_do_not_disturb_calls(clips):
    """Many scrapers, some of which never read, while calls go on."""
    with Server() as server:
        host, port = server.http.rsplit(":", 1)
        silent = [socket.create_connection((host, int(port))) for _ in range(100)]
        for s in silent[:50]:
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        with calling(server) as stub, concurrent.futures.ThreadPoolExecutor(8) as pool:
            pages = [pool.submit(server.get, "/metrics") for _ in range(100)]
            for i in range(50):
                predict(stub, clips[i % len(clips)])
            assert all(page.result()[0] == 200 for page in pages)
        assert server.get("/healthz")[0] == 200
        for s in silent:
            s.close()


# ---- a real Prometheus ----------------------------------------------------------------------------------------------


class Prometheus:
    """Scrapes a server once a second and answers queries."""

    def __init__(self, program, target, folder):
        config = folder / "prometheus.yml"
        config.write_text(json.dumps({  # which is YAML too
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "timbre", "static_configs": [{"targets": [target]}]}]}))
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                 "--web.listen-address=127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self):
        try:
            wait_until(lambda: self.log.read_text().count('msg="Listening on"'), 30, "Prometheus listening")
            self.address = re.search(r'msg="Listening on" address=(\S+)', self.log.read_text())[1]
            wait_until(self.is_ready, 30, "Prometheus ready")
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=TIMEOUT_S).status == 200
        except urllib.error.HTTPError:  # 503: not yet
            return False

    def query(self, expression):
        """[(labels, value)] of an instant query; what Prometheus refuses fails."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            result = json.load(answer)
        assert result["status"] == "success" and not result.get("warnings"), result
        return [(sample["metric"], float(sample["value"][1])) for sample in result["data"]["result"]]

    def value(self, expression):
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0][1] if samples else None


@pytest.fixture(scope="module")
def prometheus(used):
    program = need("prometheus")
    with tempfile.TemporaryDirectory(prefix="timbre-prometheus-") as folder:
        with Prometheus(program, used.http, Path(folder)) as p:
            wait_until(lambda: (p.value("count_over_time(up[1m])") or 0) >= 3, 30, "three scrapes")
            yield p


def test_prometheus_scrapes(used, prometheus):
    assert prometheus.value('min_over_time(up{job="timbre"}[1m])') == 1, "every scrape so far succeeded"
    assert prometheus.value("timbre_ready") == 1
    assert prometheus.value(f'timbre_requests_total{{method="{PREDICT}",code="OK"}}') == 3
    assert prometheus.value("sum(timbre_requests_in_flight)") == 0
    assert prometheus.value("scrape_samples_scraped") == sum(
        not line.startswith("#") for line in used.get("/metrics")[1].splitlines())
    known = {m["__name__"] for m, _ in prometheus.query('{job="timbre"}')}
    for name, kind in families(used.get("/metrics")[1]).items():
        assert (f"{name}_count" if kind == "histogram" else name) in known


def test_prometheus_sees_calls_come(used, prometheus):
    """The queries of the docs, while there is traffic, tell of it."""
    with calling(used) as stub:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            predict(stub, clip(1))
            stream(stub)
            time.sleep(0.05)
    rate = f'sum(increase(timbre_requests_total{{method="{PREDICT}",code="OK"}}[1m]))'
    wait_until(lambda: (prometheus.value(rate) or 0) > 10, what="the increase of calls")
    queries = [q.strip() for q in re.findall(r"^```promql\n(.*?)^```", DOCS, re.M | re.S)]
    alerts = re.findall(r"^\| `([^`]+)`[^|]*\|", DOCS.split("## Alerts", 1)[1], re.M)
    assert len(queries) >= 5 and len(alerts) >= 5
    answers = {q: prometheus.query(q) for q in queries}
    quantiles = [s for q, s in answers.items() if q.startswith("histogram_quantile")]
    assert quantiles and all(0 < value < 60 for samples in quantiles for _, value in samples)
    assert all(quantiles), "no quantile is empty"
    (share,) = [s for q, s in answers.items() if "code=~" in q]
    assert share[0][1] == 0
    for query, samples in answers.items():
        assert all(value == value for _, value in samples), f"NaN: {query}"
        assert samples or "> 0" in query, f"nothing: {query}"
    for query in alerts:
        assert not prometheus.query(query), f"an alert for nothing: {query}"
