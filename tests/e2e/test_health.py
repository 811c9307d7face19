"""grpc.health.v1 as clients use it: Check, and Watch through starts, drains and callers who do not read."""

import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from timbre_server import SLOWNESS, Server, connect, raises, wait_until

SERVICES = ["", "timbre.v1.Timbre", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
UNKNOWN = ["nobody", "timbre.v1", "timbre.v1.Timbre.Predict", "timbre.v1.timbre", " ", "é" * 3000]
S = health_pb2.HealthCheckResponse
TIMEOUT_S = 10 * SLOWNESS

pytestmark = [pytest.mark.asan, pytest.mark.tsan]


def ask(service):
    return health_pb2.HealthCheckRequest(service=service)


def check(stub, service, **kwargs):
    return stub.Check(ask(service), timeout=TIMEOUT_S, **kwargs).status


class Watcher:
    """Collects what a Watch says, on a thread of its own."""

    def __init__(self, stub, service, **kwargs):
        self.said, self.code = [], None
        self.call = stub.Watch(ask(service), **kwargs)
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        try:
            for answer in self.call:
                self.said.append(answer.status)
        except grpc.RpcError:
            pass
        self.code = self.call.code()

    def end(self):
        self.call.cancel()
        self.thread.join()


@pytest.fixture
def stub(server):
    with connect(server.grpc) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", SERVICES)
def test_check(stub, service):
    assert check(stub, service) == S.SERVING


@pytest.mark.parametrize("service", UNKNOWN)
def test_check_of_what_is_not_there(stub, service):
    with raises(grpc.StatusCode.NOT_FOUND, "service"):
        check(stub, service)


@pytest.mark.parametrize("service,status", [(s, S.SERVING) for s in SERVICES] + [(s, S.SERVICE_UNKNOWN) for s in UNKNOWN])
def test_watch_says_the_first_status_at_once_and_then_only_changes(stub, service, status):
    watcher = Watcher(stub, service)
    wait_until(lambda: watcher.said, what="the first status")
    time.sleep(0.15)  # several ticks of the server
    assert watcher.said == [status]
    assert watcher.code is None
    watcher.end()
    assert watcher.code == grpc.StatusCode.CANCELLED


def test_watches_come_and_go(stub):
    """Any order of joining and leaving keeps the list of watchers whole."""
    for round_ in range(5):
        watchers = [Watcher(stub, SERVICES[i % len(SERVICES)]) for i in range(20)]
        for w in watchers:
            wait_until(lambda w=w: w.said)
        for w in watchers[round_ % 3 :: 3]:
            w.end()
        for w in watchers:
            w.end()
            assert w.said == [S.SERVING]
    assert check(stub, "") == S.SERVING


def test_deadline_of_a_watch(stub):
    watcher = Watcher(stub, "", timeout=0.1 * SLOWNESS)
    watcher.thread.join(TIMEOUT_S)
    assert watcher.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert watcher.said == [S.SERVING]


def test_no_message_or_a_broken_one(server):
    with connect(server.grpc) as channel:
        def pass_through(b):
            return b
        watch = channel.stream_stream("/grpc.health.v1.Health/Watch", pass_through, pass_through)
        with raises(grpc.StatusCode.INVALID_ARGUMENT):
            list(watch(iter([]), timeout=TIMEOUT_S))
        for broken in (b"\x0a\x05abc", b"\x0a\x02\xff\xff", b"\xff"):
            with raises(grpc.StatusCode.INVALID_ARGUMENT):
                list(watch(iter([broken]), timeout=TIMEOUT_S))
            with raises(grpc.StatusCode.INVALID_ARGUMENT):
                channel.unary_unary("/grpc.health.v1.Health/Check", pass_through, pass_through)(broken, timeout=TIMEOUT_S)


def test_without_reflection(tmp_path):
    with Server("--no-reflection") as server, connect(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert check(stub, "") == S.SERVING
        for service in SERVICES[-2:]:
            with raises(grpc.StatusCode.NOT_FOUND):
                check(stub, service)


def test_drain_is_told_and_ends_the_watches():
    with Server("--lame-duck-ms", 400 * SLOWNESS) as server, connect(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watchers = [Watcher(stub, service) for service in [*SERVICES, "nobody"]]
        for w in watchers:
            wait_until(lambda w=w: w.said)
        server.terminate()
        for w in watchers[:-1]:
            wait_until(lambda w=w: len(w.said) == 2, what="NOT_SERVING")
            assert w.said == [S.SERVING, S.NOT_SERVING]
        assert all(w.code is None for w in watchers), "a lame duck keeps its watches"
        assert check(stub, "") == S.NOT_SERVING
        assert check(stub, "timbre.v1.Timbre") == S.NOT_SERVING
        late = Watcher(stub, "")
        wait_until(lambda: late.said)
        server.check_end()
        for w in watchers + [late]:
            w.thread.join(TIMEOUT_S)
            assert w.code == grpc.StatusCode.OK
        assert all(w.said == [S.SERVING, S.NOT_SERVING] for w in watchers[:-1])
        assert watchers[-1].said == [S.SERVICE_UNKNOWN] and late.said == [S.NOT_SERVING]


def test_watches_that_begin_while_it_drains():
    """They are told and ended too, or the drain would wait for them."""
    with Server("--drain-timeout-ms", 20000 * SLOWNESS) as server, connect(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert check(stub, "") == S.SERVING
        server.terminate()
        ended = []
        for _ in range(200):
            watcher = Watcher(stub, "", timeout=5 * SLOWNESS)
            watcher.thread.join()
            ended.append((watcher.code, watcher.said))
            if watcher.code == grpc.StatusCode.UNAVAILABLE:
                break  # nobody listens any more
        assert (grpc.StatusCode.OK, [S.NOT_SERVING]) in ended
        assert all(code != grpc.StatusCode.DEADLINE_EXCEEDED for code, _ in ended)
        server.check_end(10)


def test_without_a_model():
    """What needs one does not serve; the rest does."""
    with Server("--model-control") as server, connect(server.grpc) as channel:
        stub, repository = health_pb2_grpc.HealthStub(channel), service_pb2_grpc.GRPCInferenceServiceStub(channel)
        watchers = [Watcher(stub, service) for service in SERVICES]

        def wait_for_changes(count):  # before the next one: who is behind hears of the newest alone
            for w in watchers[:3]:
                wait_until(lambda w=w: len(w.said) == count, what=f"change {count}")

        wait_for_changes(1)
        for i in range(2):
            repository.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name="tiny"), timeout=TIMEOUT_S)
            wait_until(lambda: check(stub, "") == S.NOT_SERVING)
            assert [check(stub, s) for s in SERVICES] == [S.NOT_SERVING] * 3 + [S.SERVING] * 3
            wait_until(lambda: server.get("/readyz")[0] == 503)
            wait_for_changes(2 * i + 2)
            repository.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="tiny"), timeout=TIMEOUT_S)
            wait_until(lambda: check(stub, "") == S.SERVING)
            wait_until(lambda: server.get("/readyz")[0] == 200)
            wait_for_changes(2 * i + 3)
        for i, w in enumerate(watchers):
            w.end()
            assert w.said == ([S.SERVING, S.NOT_SERVING] * 2 + [S.SERVING] if i < 3 else [S.SERVING])


def test_client_side_health_checking(server):
    """A channel that watches health by itself (service config) becomes ready and calls."""
    config = '{"healthCheckConfig": {"serviceName": "timbre.v1.Timbre"}, "loadBalancingConfig": [{"round_robin": {}}]}'
    with connect(server.grpc, service_config=config) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        assert check(health_pb2_grpc.HealthStub(channel), "") == S.SERVING
