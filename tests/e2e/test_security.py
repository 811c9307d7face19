"""TLS, mutual TLS, tokens: who may not, may not, before anything of the upload is read; and files that change."""

import hashlib
import os
import ssl
import time
import warnings

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from certificates import make_authority, make_certificate
from raw_http2 import RawClient, frame, trusting
from timbre_program import predict
from timbre_server import (SLOWNESS, TINY, Server, bits_of, bits_of_answer, calling, connect, details_of, raises,
                           refuse, request_of, wait_until)

TIMEOUT_S = 20 * SLOWNESS
UNAUTHENTICATED, UNAVAILABLE = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE
PATH = "/timbre.v1.Timbre/Predict"
TOKENS = {"alice": "secret-of-alice", "bob": "secret-of-bob"}

pytestmark = [pytest.mark.asan]


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """Two authorities, and pairs by each; .folder for more."""
    class Certs:
        folder = tmp_path_factory.mktemp("certs")
        ca, other_ca = make_authority(folder, "ca"), make_authority(folder, "other-ca")
        server, server2 = make_certificate(folder, "server", ca), make_certificate(folder, "server2", ca)
        client, stranger = make_certificate(folder, "client", ca), make_certificate(folder, "stranger", other_ca)
        other_server = make_certificate(folder, "other-server", other_ca)
    return Certs


@pytest.fixture(scope="module")
def expected(clips):
    return bits_of_answer(predict(TINY, clips[:1])[0])


def credentials(ca, pair=None):
    if not pair:
        return grpc.ssl_channel_credentials(ca.cert.read_bytes())
    return grpc.ssl_channel_credentials(ca.cert.read_bytes(), pair.key.read_bytes(), pair.cert.read_bytes())


def tls(pair, *more):
    return ["--tls-cert", pair.cert, "--tls-key", pair.key, *more]


def call(server, clip, *channel, token=None, scheme="Bearer "):
    metadata = [("authorization", scheme + token)] if token is not None else []
    with calling(server, *channel) as stub:
        return bits_of(stub.Predict(request_of(clip), metadata=metadata, timeout=TIMEOUT_S))


def write_tokens(path, tokens):
    """As an operator would, and as a whole: by renaming."""
    text = "# who may\n\n" + "".join(f"{n} {hashlib.sha256(t.encode()).hexdigest()}\n" for n, t in tokens.items())
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)
    return path


# ---- TLS ------------------------------------------------------------------------------------------------------------


def test_tls(certs, clips, expected):
    with Server(*tls(certs.server)) as server:
        assert call(server, clips[0], credentials(certs.ca)) == expected
        with raises(UNAVAILABLE):
            call(server, clips[0], credentials(certs.other_ca))
        with raises(UNAVAILABLE):
            call(server, clips[0])
        with RawClient(server.grpc, context=trusting(certs.ca.cert)) as raw:
            assert raw.socket.version() in ("TLSv1.2", "TLSv1.3") and raw.socket.selected_alpn_protocol() == "h2"
        old = trusting(certs.ca.cert)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            RawClient(server.grpc, context=old)
        assert call(server, clips[0], credentials(certs.ca)) == expected
        assert server.metric("timbre_tls_certificate_expiry_seconds") > time.time() + 3600


def test_mutual_tls(certs, clips, expected):
    with Server(*tls(certs.server), "--tls-client-ca", certs.ca.cert) as server:
        assert call(server, clips[0], credentials(certs.ca, certs.client)) == expected
        for wrong in (credentials(certs.ca), credentials(certs.ca, certs.stranger)):
            with raises(UNAVAILABLE):
                call(server, clips[0], wrong)
        assert call(server, clips[0], credentials(certs.ca, certs.client)) == expected


def served_name(server, ca):
    with RawClient(server.grpc, context=trusting(ca.cert)) as raw:
        return dict(x[0] for x in raw.socket.getpeercert()["subject"])["commonName"]


def replace(path, data):
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.tsan
def test_certificates_are_read_again(certs, clips, expected, tmp_path):
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(certs.server.cert.read_bytes())
    key.write_bytes(certs.server.key.read_bytes())
    with Server("--tls-cert", cert, "--tls-key", key) as server, calling(server, credentials(certs.ca)) as old:
        assert served_name(server, certs.ca) == "server"
        assert bits_of(old.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected
        # In two steps, so that for a while they do not belong together.
        replace(cert, certs.server2.cert.read_bytes())
        time.sleep(1.5)
        assert served_name(server, certs.ca) == "server"
        replace(key, certs.server2.key.read_bytes())
        wait_until(lambda: served_name(server, certs.ca) == "server2", what="the new certificate")
        assert bits_of(old.Predict(request_of(clips[0]), timeout=TIMEOUT_S)) == expected
        # What is no certificate, or is gone, changes nothing.
        replace(cert, b"nonsense")
        time.sleep(1.5)
        cert.unlink()
        time.sleep(1.5)
        assert served_name(server, certs.ca) == "server2"
        assert call(server, clips[0], credentials(certs.ca)) == expected
        server.wait_log(str(cert))


def test_tls_that_cannot_be(certs):
    ended = make_certificate(certs.folder, "ended", certs.ca, days=-1)
    nonsense = certs.folder / "nonsense.pem"
    nonsense.write_text("hello")
    for flags, word in ((["--tls-cert", certs.server.cert], "tls-key"), (["--tls-key", certs.server.key], "tls-cert"),
                        (["--tls-cert", certs.server.cert, "--tls-key", certs.client.key], "client.key"),
                        (["--tls-cert", nonsense, "--tls-key", certs.server.key], "nonsense.pem"),
                        (["--tls-cert", certs.server.cert, "--tls-key", nonsense], "nonsense.pem"),
                        (tls(ended), "ended.pem"), (tls(certs.server, "--tls-client-ca", nonsense), "nonsense.pem"),
                        (["--tls-client-ca", certs.ca.cert], "tls-c")):
        assert word in refuse(*flags)


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens(clips, expected, tmp_path):
    tokens = write_tokens(tmp_path / "tokens", TOKENS)
    with Server("--token-file", tokens, "--access-log", "all", "--log-level", "debug") as server:
        for token in TOKENS.values():
            for scheme in ("Bearer ", "bearer ", "BEARER "):
                assert call(server, clips[0], token=token, scheme=scheme) == expected
        for token, scheme in ((None, ""), ("", "Bearer "), ("secret-of-mallory", "Bearer "), ("secret-of-alic", "Bearer "),
                              ("secret-of-alice2", "Bearer "), ("secret-of-alice", "Basic "), ("secret-of-alice", ""),
                              ("secret-of-alice", "Bearer"), ("alice", "Bearer "), ("x" * 8000, "Bearer ")):
            with raises(UNAUTHENTICATED) as caught:
                call(server, clips[0], token=token, scheme=scheme)
            assert "secret" not in caught.error.details() and details_of(caught.error)["ErrorInfo"].reason
        with connect(server.grpc) as channel:
            with raises(UNAUTHENTICATED):
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            with raises(UNAUTHENTICATED):
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                list(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
            with raises(UNAUTHENTICATED):
                channel.unary_unary("/no/such", lambda b: b, lambda b: b)(b"", timeout=TIMEOUT_S)
        text = server.wait_log("alice")
        assert "secret" not in text, "the log names who called, and no token"


def test_health_may_stay_open(clips, tmp_path):
    tokens = write_tokens(tmp_path / "tokens", TOKENS)
    with Server("--token-file", tokens, "--open-health") as server, connect(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status
        watch.cancel()
        with raises(UNAUTHENTICATED):
            call(server, clips[0])


@pytest.mark.tsan
def test_tokens_are_read_again(clips, expected, tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"alice": "one"})
    with Server("--token-file", tokens) as server:
        def may(token):
            try:
                return call(server, clips[0], token=token) == expected
            except grpc.RpcError as e:
                assert e.code() == UNAUTHENTICATED
                return False
        assert may("one") and not may("two")
        write_tokens(tokens, {"alice": "two", "carol": "three"})
        wait_until(lambda: may("two"), what="the new token")
        assert may("three") and not may("one")
        tokens.write_text("not a token file\n")
        time.sleep(1.5)
        assert may("two"), "a wrong file changes nothing"
        write_tokens(tokens, {"alice": "four"})
        wait_until(lambda: may("four"), what="the newest token")
        assert not may("two") and "one" not in [w for w in server.log_text().split()]


def test_tokens_over_tls(certs, clips, expected, tmp_path):
    """Credentials of a call, as client libraries send them."""
    tokens = write_tokens(tmp_path / "tokens", TOKENS)
    with Server(*tls(certs.server), "--token-file", tokens) as server:
        both = grpc.composite_channel_credentials(credentials(certs.ca),
                                                  grpc.access_token_call_credentials(TOKENS["alice"]))
        assert call(server, clips[0], both) == expected
        wrong = grpc.composite_channel_credentials(credentials(certs.ca), grpc.access_token_call_credentials("x"))
        with raises(UNAUTHENTICATED):
            call(server, clips[0], wrong)


def test_token_files_that_cannot_be(tmp_path):
    path = tmp_path / "tokens"
    good = hashlib.sha256(b"x").hexdigest()
    for text in ("alice\n", "alice secret\n", f"alice {good[:-1]}\n", f"alice {good} more\n", f"alice {good[:-1]}g\n"):
        path.write_text(f"# first\nbob {good}\n{text}")
        message = refuse("--token-file", path)
        assert "tokens" in message and "3" in message and "secret" not in message


@pytest.mark.skipif(SLOWNESS > 1, reason="a sanitizer's memory is its own")
@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer wrong"}])
def test_an_upload_without_a_token_is_not_read(clips, tmp_path, metadata):
    """60 MB are offered; the refusal comes first, and memory does not grow."""
    tokens = write_tokens(tmp_path / "tokens", TOKENS)
    with Server("--token-file", tokens) as server:
        with raises(UNAUTHENTICATED):
            call(server, clips[0])
        before = server.rss_bytes()
        server.reset_peak_rss()
        with calling(server, max_send_message_length=-1) as stub:
            with raises(UNAUTHENTICATED):
                stub.Predict(request_of(bytes(60_000_000)), metadata=metadata.items(), timeout=TIMEOUT_S)
        for _ in range(4):  # one who does not listen, and pushes on
            with RawClient(server.grpc) as raw:
                stream = raw.call(PATH, **metadata)
                raw.send(stream, frame(bytes(100), said_bytes=60_000_000))
                assert raw.finish(stream)["grpc-status"] == str(UNAUTHENTICATED.value[0])
        assert server.peak_rss_bytes() - before < 20_000_000
