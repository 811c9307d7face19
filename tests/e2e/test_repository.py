"""Models of a folder, versions, and loading and unloading with traffic running, through tritonclient."""

import shutil
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from timbre_program import GOLDEN, predict, voice, wav_bytes, write_wav
from timbre_server import SLOWNESS, TINY, Server, bits_of_answer, calling, connect, raises, refuse, request_of, stubs, wait_until
from triton_calls import SCORES, TIMEOUT_S, client_of, file_input, infer, make_request, score_bits

DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE

pytestmark = [pytest.mark.asan, pytest.mark.tsan]


@pytest.fixture
def folder(tmp_path):
    """A folder of two models: `plain`, and `many` with the versions 1 and 3."""
    root = tmp_path / "models"
    put(root / "plain", "base")
    put(root / "many" / "1", "base")
    put(root / "many" / "3", "large")
    (root / "notes").mkdir()
    return root


def put(path, golden):
    shutil.copytree(GOLDEN / golden, path)


@contextmanager
def serving(folder, *flags):
    with Server("--models-dir", folder, "--model-control", *flags, model=None) as server, client_of(server) as client:
        yield server, client


def index(client):
    return {(m.name, m.version): m.state for m in client.get_model_repository_index().models}


def clip_answers(tmp_path, *models):
    """A clip, and what each model says of it."""
    clip = write_wav(tmp_path / "clip.wav", voice(9, 0.7))
    return clip.read_bytes(), {m: bits_of_answer(predict(GOLDEN / m, [clip])[0]) for m in models}


def test_folder_of_models(folder, tmp_path):
    data, expected = clip_answers(tmp_path, "base", "large")
    with serving(folder) as (server, client):
        assert index(client) == {("many", "1"): "READY", ("many", "3"): "READY", ("plain", "1"): "READY"}
        server.wait_log("notes")
        assert "model_repository" in client.get_server_metadata().extensions
        assert list(client.get_model_metadata("many").versions) == ["1", "3"]
        for name, version, golden in (("", "", "large"), ("many", "", "large"), ("many", "3", "large"),
                                      ("many", "1", "base"), ("plain", "", "base")):
            result = infer(client, file_input(data), model=name, model_version=version, outputs=SCORES)
            assert score_bits(result) == expected[golden], (name, version)
        assert not client.is_model_ready("many", "2")
        with calling(server) as stub:
            listed = stub.ListModels(stubs().timbre.ListModelsRequest(), timeout=TIMEOUT_S).models
            assert [(m.name, m.version) for m in listed] == [("many", "1"), ("many", "3"), ("plain", "1")]


def test_control_is_off_by_default(folder):
    with Server("--models-dir", folder, model=None) as server:
        with connect(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with raises(DENIED, "--model-control"):
                stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="plain"), timeout=TIMEOUT_S)
            with raises(DENIED, "--model-control"):
                stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name="plain"), timeout=TIMEOUT_S)
            assert len(stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=TIMEOUT_S).models) == 3


def test_load_and_unload(folder, tmp_path):
    data, expected = clip_answers(tmp_path, "base", "large")
    with serving(folder) as (server, client):
        client.unload_model("many")
        assert index(client)[("many", "3")] == "UNAVAILABLE" and not client.is_model_ready("many")
        reasons = {m.reason for m in client.get_model_repository_index().models if m.name == "many"}
        assert reasons == {"unloaded"}
        with pytest.raises(InferenceServerException, match="unloaded"):
            infer(client, file_input(data), model="many")
        with calling(server) as stub, raises(UNAVAILABLE, "unloaded"):
            stub.Predict(request_of(data, model="many"), timeout=TIMEOUT_S)
        assert client.is_server_ready() and client.is_model_ready("plain")
        put(folder / "new", "large")
        client.load_model("new")
        client.load_model("many")
        for name, golden in (("new", "large"), ("many", "large")):
            assert score_bits(infer(client, file_input(data), model=name, outputs=SCORES)) == expected[golden]


def test_ready_follows_the_models(folder):
    with serving(folder) as (server, client):
        client.unload_model("many")
        client.unload_model("plain")
        assert client.is_server_live() and not client.is_server_ready()
        client.load_model("plain")
        assert client.is_server_ready()


def test_refused_loads(folder):
    with serving(folder) as (_, client):
        for name in ("nobody", "../models/plain", "/etc", ".", "", "a b", "x" * 300):
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.load_model(name)
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.unload_model(name)
        with pytest.raises(InferenceServerException, match="without parameters"):
            client.load_model("plain", config="{}")
        assert len(index(client)) == 3


def test_a_broken_model_is_not_taken(folder, tmp_path):
    data, expected = clip_answers(tmp_path, "base")
    with serving(folder) as (server, client):
        weights = folder / "plain" / "model.safetensors"
        weights.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
        with pytest.raises(InferenceServerException, match="plain"):
            client.load_model("plain")
        server.wait_log("cannot load")
        assert score_bits(infer(client, file_input(data), model="plain", outputs=SCORES)) == expected["base"]
        put(folder / "bad", "base")
        (folder / "bad" / "config.json").write_text("{}")
        with pytest.raises(InferenceServerException, match="bad"):
            client.load_model("bad")
        states = {m.name: (m.state, m.reason) for m in client.get_model_repository_index().models}
        assert states["bad"][0] == "UNAVAILABLE" and "bad" in states["bad"][1]


def test_a_folder_that_disappears(folder, tmp_path):
    data, expected = clip_answers(tmp_path, "base")
    with serving(folder) as (_, client):
        shutil.rmtree(folder / "plain")
        assert score_bits(infer(client, file_input(data), model="plain", outputs=SCORES)) == expected["base"]
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.load_model("plain")
        assert score_bits(infer(client, file_input(data), model="plain", outputs=SCORES)) == expected["base"]
        put(folder / "plain", "base")
        client.load_model("plain")
        assert score_bits(infer(client, file_input(data), model="plain", outputs=SCORES)) == expected["base"]


@contextmanager
def traffic(server, data, model, threads=4):
    """Callers who ask all the time, unary and over streams; gives the list of (codes or score bits) they got."""
    got, stop = [], threading.Event()

    def unary():
        with client_of(server) as client:
            while not stop.is_set():
                try:
                    got.append(score_bits(infer(client, file_input(data), model=model, outputs=SCORES)))
                except InferenceServerException as e:
                    got.append(e.status())

    def requests():
        while not stop.is_set():
            yield make_request(data, model=model)
            time.sleep(0.002)

    def streams():
        with connect(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for answer in stub.ModelStreamInfer(requests(), timeout=60 * SLOWNESS):
                got.append(answer.error_message or "ok")

    workers = [threading.Thread(target=t) for t in [unary] * threads + [streams]]
    for w in workers:
        w.start()
    try:
        yield got
    finally:
        stop.set()
        for w in workers:
            w.join(60 * SLOWNESS)
            assert not w.is_alive()


def test_reload_under_traffic(folder, tmp_path):
    """Not one call fails while a model is loaded again and again."""
    data, expected = clip_answers(tmp_path, "base")
    with serving(folder) as (server, client), traffic(server, data, "plain") as got:
        for _ in range(10):
            before = len(got)
            client.load_model("plain")
            wait_until(lambda: len(got) > before + 20, what="traffic")
        assert set(got) == {expected["base"], "ok"}


def test_a_new_version_under_traffic(folder, tmp_path):
    """Callers get the old or the new version's answer, the new one for good, and never an error."""
    data, expected = clip_answers(tmp_path, "base", "large")
    with serving(folder) as (server, client), traffic(server, data, "plain") as got:
        shutil.rmtree(folder / "plain")
        put(folder / "plain" / "1", "base")
        put(folder / "plain" / "2", "large")
        wait_until(lambda: len(got) > 50, what="traffic")
        client.load_model("plain")
        answer = infer(client, file_input(data), model="plain", outputs=SCORES)
        assert answer.get_response().model_version == "2" and score_bits(answer) == expected["large"]
        before = len(got)
        wait_until(lambda: len(got) > before + 50, what="traffic")
        assert set(got) == {expected["base"], expected["large"], "ok"}
        assert expected["base"] not in got[before + 20:]


def test_unload_under_traffic(folder, tmp_path):
    """Calls are answered or told that the model is not there; none hangs and none is lost."""
    data, expected = clip_answers(tmp_path, "base")
    with serving(folder) as (server, client), traffic(server, data, "plain") as got:
        for _ in range(5):
            wait_until(lambda: expected["base"] in got[-20:], what="answers")
            client.unload_model("plain")
            client.load_model("plain")
    kinds = {g if isinstance(g, str) else "scores" for g in got}
    assert "scores" in kinds and "ok" in kinds
    unavailable = ("StatusCode.UNAVAILABLE", "UNAVAILABLE: ")
    assert all(k in ("scores", "ok") or k.startswith(unavailable) for k in kinds), kinds


def test_loads_at_once(folder):
    """Of many who load the same model, all are told how it went."""
    with serving(folder) as (server, _):
        def load(results):
            with client_of(server) as client:
                try:
                    client.load_model("plain")
                    results.append("ok")
                except InferenceServerException as e:
                    results.append(e.status())

        results = []
        threads = [threading.Thread(target=load, args=(results,)) for _ in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60 * SLOWNESS)
        assert len(results) == 12 and "ok" in results
        assert set(results) <= {"ok", "StatusCode.UNAVAILABLE"}


def test_a_caller_who_leaves_while_it_loads(folder):
    with serving(folder) as (server, client):
        with connect(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(5):
                call = stub.RepositoryModelLoad.future(service_pb2.RepositoryModelLoadRequest(model_name="many"))
                call.cancel()
        wait_until(lambda: set(index(client).values()) == {"READY"}, what="the load")
        assert client.is_model_ready("many")


def test_statistics_begin_anew(folder):
    data = wav_bytes(voice(1, 0.5))
    with serving(folder) as (_, client):
        infer(client, file_input(data), model="plain")
        assert client.get_inference_statistics("plain").model_stats[0].inference_count == 1
        client.load_model("plain")
        assert client.get_inference_statistics("plain").model_stats[0].inference_count == 0


def test_starts_refused(folder, tmp_path):
    assert "no model" in refuse("--models-dir", folder / "notes", model=None)
    assert "nowhere" in refuse("--models-dir", tmp_path / "nowhere", model=None)
    (folder / "plain" / "config.json").write_text("{}")
    assert "model plain version 1" in refuse("--models-dir", folder, model=None)
    assert "tiny" in refuse("--model", f"tiny={GOLDEN / 'large'}")
    shutil.rmtree(folder / "plain")
    assert "two models are called many" in refuse("--models-dir", folder, "--model", f"many={TINY}", model=None)
    assert "a/b" in refuse("--model", f"a/b={TINY}", model=None)


def test_empty_start_with_control(tmp_path):
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models") as (_, client):
        assert client.is_server_live() and not client.is_server_ready() and index(client) == {}
        put(tmp_path / "models" / "late", "base")
        client.load_model("late")
        assert client.is_server_ready() and client.is_model_ready("")
