"""What is too much is refused: at once, by a status that names the limit, and without harm to the others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from raw_http2 import RawClient, frame
from timbre_program import predict, voice, write_wav
from timbre_server import (SLOWNESS, TINY, Server, bits_of, bits_of_answer, calling, connect, details_of, raises,
                           refuse, request_of, trailer_of, wait_until)

TIMEOUT_S = 60 * SLOWNESS
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

pytestmark = [pytest.mark.asan]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return write_wav(tmp_path_factory.mktemp("long") / "long.wav", voice(5, 20))


def still_well(server, clips):
    (answer,) = predict(TINY, clips[:1])
    with calling(server) as stub:
        assert bits_of(stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == bits_of_answer(answer)


def test_message_bytes(clips):
    with Server("--max-message-bytes", "100k") as server, calling(server) as stub:
        with raises(EXHAUSTED):
            stub.Predict(request_of(bytes(102401)), timeout=TIMEOUT_S)
        with raises(grpc.StatusCode.INVALID_ARGUMENT):
            stub.Predict(request_of(bytes(102000)), timeout=TIMEOUT_S)
        still_well(server, clips)


@pytest.mark.skipif(SLOWNESS > 1, reason="a sanitizer's memory is its own")
def test_messages_without_end(clips):
    """gRPC looks at a message's size when all of it is there; what bounds them until then is max-receive-bytes."""
    with Server("--max-receive-bytes", "40m", "--max-message-bytes", "1m") as server:
        before = server.rss_bytes()
        for _ in range(3):
            with RawClient(server.grpc, timeout_s=0.5) as raw:
                stream = raw.call("/timbre.v1.Timbre/Predict")
                try:
                    raw.send(stream, frame(bytes(200_000_000), said_bytes=0xFFFFFFFF))
                except OSError:
                    pass  # hung up, or held up until the client gave up
                assert server.rss_bytes() - before < 60_000_000
            still_well(server, clips)


def test_metadata_bytes(clips):
    with Server("--max-metadata-bytes", "2k") as server, calling(server) as stub:
        with raises(EXHAUSTED):
            stub.Predict(request_of(clips[0]), metadata=[("x-large", "a" * 20000)], timeout=TIMEOUT_S)
        still_well(server, clips)


@pytest.mark.tsan
def test_calls(clips):
    with Server("--max-calls", "3") as server, calling(server) as stub, connect(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = [watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for w in watches:
            next(w)
        for _ in range(5):
            with raises(EXHAUSTED, "max-calls", "3") as caught:
                stub.Predict(request_of(clips[0]), timeout=TIMEOUT_S)
            details = details_of(caught.error)
            assert details["QuotaFailure"].violations[0].subject == "max-calls"
            assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
            assert int(trailer_of(caught.error, "grpc-retry-pushback-ms")) > 0
        watches[0].cancel()
        wait_until(lambda: server.metric("timbre_requests_total", code="CANCELLED") > 0)
        still_well(server, clips)
        for w in watches:
            w.cancel()


def flood(server, clip, count):
    """`count` calls at once; the responses and the errors."""
    with calling(server) as stub:
        request = request_of(clip)
        calls = [stub.Predict.future(request, timeout=TIMEOUT_S) for _ in range(count)]
        errors = [c.exception() for c in calls]
        return [c.result() for c, e in zip(calls, errors) if not e], [e for e in errors if e]


@pytest.mark.tsan
@pytest.mark.parametrize("flags,limit", [(["--queue-depth", "2"], "queue-depth"),
                                         (["--max-queued-seconds", "45"], "max-queued-seconds")])
def test_full_queue(long_clip, flags, limit):
    (answer,) = predict(TINY, [long_clip])
    with Server("--threads", "1", *flags) as server:
        responses, errors = flood(server, long_clip, 100)
        assert responses and errors
        assert all(bits_of(r) == bits_of_answer(answer) for r in responses)
        for e in errors:
            assert e.code() == EXHAUSTED and limit in e.details(), e.details()
            details = details_of(e)
            delay_ms = details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() * 1000
            assert delay_ms == int(trailer_of(e, "grpc-retry-pushback-ms"))
            assert 10 <= delay_ms <= 30000
            assert details["QuotaFailure"].violations[0].subject in ("queue-depth", "max-queued-seconds")
        assert not flood(server, long_clip, 1)[1]


def test_who_comes_again_as_told_is_served(long_clip):
    """A client library's own retries, with the server's pushback."""
    policy = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.01s",
        "maxBackoff": "0.1s", "backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}"""
    with Server("--threads", "1", "--queue-depth", "8") as server:
        refused = threading.Event()

        def call_until_served(_):
            with calling(server, service_config=policy) as stub:
                end = time.monotonic() + TIMEOUT_S
                while True:
                    try:
                        return stub.Predict(request_of(long_clip), timeout=TIMEOUT_S)
                    except grpc.RpcError as e:
                        refused.set()
                        assert e.code() == EXHAUSTED and time.monotonic() < end, e.details()
                        time.sleep(int(trailer_of(e, "grpc-retry-pushback-ms")) / 1000)

        with ThreadPoolExecutor(24) as pool:
            results = {bits_of(r) for r in pool.map(call_until_served, range(48))}
        assert len(results) == 1
        assert server.metric("timbre_requests_total", code="RESOURCE_EXHAUSTED") > 0


def test_streams_of_a_connection_wait_at_the_client(clips):
    with Server("--max-concurrent-streams", "2") as server:
        responses, errors = flood(server, clips[1], 50)
        assert len(responses) == 50 and not errors


def test_upload_that_takes_too_long(clips):
    with Server("--upload-timeout-ms", "300") as server:
        with RawClient(server.grpc) as raw:
            begin = time.monotonic()
            stream = raw.call("/timbre.v1.Timbre/Predict")
            raw.send(stream, frame(b"x" * 1000, said_bytes=2000))
            headers = raw.finish(stream)
            assert headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
            assert "upload-timeout-ms" in headers["grpc-message"]
            assert 0.25 < time.monotonic() - begin < 3 * SLOWNESS
        still_well(server, clips)


@pytest.mark.parametrize("flags,words", [
    (["--bogus"], ["bogus"]),
    (["--max-cals", "3"], ["max-calls"]),
    (["surplus"], ["surplus"]),
    (["--max-calls"], ["max-calls"]),
    (["--max-calls", "many"], ["max-calls", "many"]),
    (["--max-calls", "0"], ["max-calls"]),
    (["--max-message-bytes", "1"], ["max-message-bytes"]),
    (["--max-batch-seconds", "1"], ["max-batch-seconds"]),
    (["--queue-depth", "-1"], ["queue-depth"]),
    (["--grpc-address", "localhost"], ["grpc-address"]),
    (["--grpc-address", ""], ["grpc-address"]),
    (["--http-address", "nonsense:port"], ["http-address"]),
    (["--log-level", "loud"], ["log-level", "loud"]),
    (["--device", "abacus"], ["device", "abacus"]),
    (["--tls-cert", "/no/such.pem"], ["tls-"]),
    (["--token-file", "/no/such/tokens"], ["/no/such/tokens"]),
    (["--config", "/no/such/config"], ["/no/such/config"]),
    (["--model", "/no/such/model"], ["/no/such/model"]),
    (["--model", "tiny=/no/such/model"], ["tiny"]),
    (["--models-dir", "/no/such/models"], ["/no/such/models"]),
])
def test_wrong_options(flags, words):
    text = refuse(*flags)
    for word in words:
        assert word in text, text
    assert len(text.strip().splitlines()) <= 4, text


def test_options_by_environment_and_file(tmp_path, clips):
    config = tmp_path / "timbre.conf"
    config.write_text("# comment\nmax-calls = 7\nmax-message-bytes = 50k\n")
    with Server("--config", config, env={"TIMBRE_MAX_MESSAGE_BYTES": "100k"}) as server, calling(server) as stub:
        with raises(EXHAUSTED):
            stub.Predict(request_of(bytes(110000)), timeout=TIMEOUT_S)
        with raises(grpc.StatusCode.INVALID_ARGUMENT):
            stub.Predict(request_of(bytes(90000)), timeout=TIMEOUT_S)
    config.write_text("max-cals = 7\n")
    assert "max-cals" in refuse("--config", config)
    assert "TIMBRE_MAX_CALLS" in refuse(env={"TIMBRE_MAX_CALLS": "x"})


def test_address_that_is_taken():
    with Server() as server:
        assert server.grpc in refuse("--grpc-address", server.grpc)
        assert server.http in refuse("--http-address", server.http)
