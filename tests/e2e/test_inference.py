"""The Open Inference Protocol through tritonclient: every answer is what `timbre predict` says, bit for bit."""

import asyncio
import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from timbre_program import GOLDEN, predict, to_pcm16, voice, wav_bytes
from timbre_server import SLOWNESS, TINY, Server, bits, bits_of_answer, connect, details_of, raises
from triton_calls import (SCORES, TIMEOUT_S, array_input, client_of, file_input, infer, make_request, parameters_of,
                          score_bits, wanted)

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

pytestmark = pytest.mark.asan


@pytest.fixture(scope="module")
def server():
    models = {"large": GOLDEN / "large", "many": GOLDEN / "labels_unicode", "tiny": TINY}
    with Server(*[x for name, folder in models.items() for x in ("--model", f"{name}={folder}")], model=None) as s:
        yield s


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as c:
        yield c


@pytest.fixture(scope="module")
def stub(server):
    """Without tritonclient's ways around it, for what it does not send."""
    with connect(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def answer_to(path, *flags, model=TINY):
    (answer,) = predict(model, [path], *flags)
    return answer


# ---- what there is --------------------------------------------------------------------------------------------------


def test_server(client):
    assert client.is_server_live() and client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "timbre" and metadata.version
    assert "statistics" in metadata.extensions and "model_repository" not in metadata.extensions


def test_model_ready(client):
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1") and client.is_model_ready("")
    assert not client.is_model_ready("tiny", "2") and not client.is_model_ready("nobody")


def test_model_metadata(server, client):
    metadata = client.get_model_metadata("large")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("large", ["1"], "timbre")
    labels = json.loads((GOLDEN / "large" / "config.json").read_text())["id2label"]
    shapes = {t.name: (t.datatype, list(t.shape)) for t in [*metadata.inputs, *metadata.outputs]}
    assert shapes["AUDIO"] == ("BYTES", [1]) and shapes["SAMPLE_RATE"] == ("INT32", [1])
    assert shapes["PROBABILITIES"] == ("FP32", [len(labels)])
    # tritonclient does not know the properties of the protocol's newer version: ask by reflection.
    properties = reflect_metadata(server, "many").properties
    assert json.loads(properties["labels"]) == answer_labels("labels_unicode")
    assert len(properties["digest"]) == 64 and properties["sample_rate_hz"] == "16000" and properties["device"]


def answer_labels(model):
    labels = json.loads((GOLDEN / model / "config.json").read_text())["id2label"]
    return [labels[k] for k in sorted(labels, key=int)]


def reflect_metadata(server, model):
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with connect(server.grpc) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        classes = [GetMessageClass(pool.FindMessageTypeByName(f"inference.ModelMetadata{k}")) for k in ("Request", "Response")]
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata",
                                   request_serializer=classes[0].SerializeToString,
                                   response_deserializer=classes[1].FromString)
        return call(classes[0](name=model), timeout=TIMEOUT_S)


def test_model_config(client):
    config = client.get_model_config("tiny").config
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "timbre", 0)
    assert [(i.name, i.optional) for i in config.input] == [("AUDIO", False), ("SAMPLE_RATE", True)]
    assert not config.model_transaction_policy.decoupled


def test_index(client):
    models = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state, m.reason) for m in models] == \
        [("large", "1", "READY", ""), ("many", "1", "READY", ""), ("tiny", "1", "READY", "")]


def test_what_there_is_not(stub):
    with raises(grpc.StatusCode.UNIMPLEMENTED):
        stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest(), timeout=TIMEOUT_S)
    with raises(INVALID, "repository_name"):
        stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="x"), timeout=TIMEOUT_S)


# ---- the same scores as the command line ----------------------------------------------------------------------------


def test_files(client, clips):
    for clip in clips:
        answer = answer_to(clip)
        result = infer(client, file_input(clip.read_bytes()), outputs=[*SCORES, *wanted("LABELS", "STATUS")])
        assert score_bits(result) == bits_of_answer(answer)
        assert [x.decode() for x in result.as_numpy("LABELS")] == answer["labels"]
        assert list(result.as_numpy("STATUS")) == [b"ok"]
        receipt = parameters_of(result)
        assert receipt["digest"] == answer["receipt"]["digest"] and receipt["device"] == answer["receipt"]["device"]
        assert receipt["status"] == "ok" and receipt["batch_size"] == 1 and receipt["audio_s"] == answer["duration_s"]


@pytest.mark.parametrize("rate_hz", [None, 8000, 44100])
@pytest.mark.parametrize("kind", ["float32", "pcm16"])
def test_samples(client, tmp_path, kind, rate_hz):
    samples = voice(3, 2.1) if kind == "float32" else to_pcm16(voice(3, 2.1))
    (tmp_path / "raw").write_bytes(samples.tobytes())
    answer = answer_to(tmp_path / "raw", "--raw", kind, "--rate", str(rate_hz or 16000))
    assert score_bits(infer(client, array_input(samples, rate_hz), outputs=SCORES)) == bits_of_answer(answer)
    batched = infer(client, array_input(samples[None, :], rate_hz), outputs=SCORES)
    assert batched.as_numpy("LOGITS").shape == (1, len(answer["labels"]))
    assert bits(batched.as_numpy("LOGITS")[0]) == bits_of_answer(answer)[1]


@pytest.mark.parametrize("encoding", ["pcm16", "float32", "mulaw", "alaw"])
def test_encodings(client, tmp_path, encoding):
    data = voice(5, 1.7)[:24000].tobytes() if encoding == "float32" else to_pcm16(voice(5, 1.7)).tobytes()[:24000]
    (tmp_path / "raw").write_bytes(data)
    answer = answer_to(tmp_path / "raw", "--raw", encoding, "--rate", "8000", "--channels", "2")
    result = infer(client, file_input(data), outputs=SCORES,
                   parameters={"encoding": encoding, "sample_rate": 8000, "channels": 2})
    assert score_bits(result) == bits_of_answer(answer)


def typed(response, name):
    """The elements of an output in typed contents."""
    (tensor,) = [t for t in response.outputs if t.name == name]
    kind = {"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}[tensor.datatype]
    values = list(getattr(tensor.contents, kind))
    assert len(values) == np.prod(tensor.shape)
    return values


def test_typed_contents(stub, clips):
    answer = answer_to(clips[1])
    request = service_pb2.ModelInferRequest(model_name="tiny", id="typed")
    tensor = request.inputs.add(name="AUDIO", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(clips[1].read_bytes())
    for name in ("PROBABILITIES", "LOGITS", "LABELS", "STATUS", "WINDOW_TIMES"):
        request.outputs.add(name=name)
    response = stub.ModelInfer(request, timeout=TIMEOUT_S)
    assert response.id == "typed" and not response.raw_output_contents
    assert (bits(typed(response, "PROBABILITIES")), bits(typed(response, "LOGITS"))) == bits_of_answer(answer)
    assert [x.decode() for x in typed(response, "LABELS")] == answer["labels"]
    assert typed(response, "STATUS") == [b"ok"] and typed(response, "WINDOW_TIMES") == []

    del request.outputs[:]
    request.inputs[0].shape[:] = [1, 1]
    for name in ("PROBABILITIES", "LOGITS"):
        request.outputs.add(name=name).parameters["classification"].int64_param = 3
    response = stub.ModelInfer(request, timeout=TIMEOUT_S)
    assert [list(o.shape) for o in response.outputs] == [[1, 3], [1, 3]]
    best = max(range(len(answer["scores"])), key=lambda i: answer["scores"][i])
    score, index, label = typed(response, "PROBABILITIES")[0].decode().split(":")
    assert (bits([float(score)]), int(index), label) == (bits([answer["scores"][best]]), best, answer["labels"][best])

    samples = voice(1, 1.0)
    request = service_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="AUDIO", datatype="FP32", shape=[len(samples)]).contents.fp32_contents.extend(samples.tolist())
    request.inputs.add(name="SAMPLE_RATE", datatype="INT32", shape=[1]).contents.int_contents.append(16000)
    assert bits(typed(stub.ModelInfer(request, timeout=TIMEOUT_S), "PROBABILITIES")) == bits_of_answer(answer)[0]


def test_default_outputs(client, clips):
    response = infer(client, file_input(clips[0].read_bytes())).get_response()
    assert [o.name for o in response.outputs] == ["PROBABILITIES", "LABELS", "STATUS"]
    assert (response.model_name, response.model_version) == ("tiny", "1")


def test_embedding(client, clips):
    answer = answer_to(clips[2], "--embedding")
    result = infer(client, file_input(clips[2].read_bytes()), outputs=wanted("EMBEDDING"))
    assert bits(result.as_numpy("EMBEDDING")) == bits(answer["embedding"])
    assert result.as_numpy("PROBABILITIES") is None


def test_windows(client, clips):
    answer = answer_to(clips[3], "--window", "1.0", "--hop", "0.25")
    outputs = [*SCORES, *wanted("WINDOW_TIMES", "WINDOW_PROBABILITIES", "WINDOW_STATUS")]
    result = infer(client, file_input(clips[3].read_bytes()), outputs=outputs,
                   parameters={"window_s": 1, "hop_s": "0.25"})
    assert score_bits(result) == bits_of_answer(answer)
    windows = answer["windows"]
    assert result.as_numpy("WINDOW_TIMES").tolist() == [[w["start_s"], w["end_s"]] for w in windows]
    assert [x.decode() for x in result.as_numpy("WINDOW_STATUS")] == [w["status"] for w in windows]
    for row, window in zip(result.as_numpy("WINDOW_PROBABILITIES"), windows):
        assert bits(row) == bits(window["scores"])


def test_windows_of_silence_are_nan(client):
    samples = np.concatenate([voice(2, 1.0), np.zeros(16000, np.float32)])
    result = infer(client, array_input(samples), parameters={"window_s": "0.5", "hop_s": "0.5"},
                   outputs=wanted("WINDOW_PROBABILITIES", "WINDOW_STATUS"))
    assert list(result.as_numpy("WINDOW_STATUS")) == [b"ok", b"ok", b"no_speech", b"no_speech"]
    assert np.isnan(result.as_numpy("WINDOW_PROBABILITIES")).all(axis=1).tolist() == [False, False, True, True]


def test_classification(client, clips):
    answer = answer_to(clips[0])
    best = sorted(range(len(answer["scores"])), key=lambda i: -answer["scores"][i])
    for count, expected in ((2, 2), (99, len(best))):
        result = infer(client, file_input(clips[0].read_bytes()),
                       outputs=[triton.InferRequestedOutput("PROBABILITIES", class_count=count)])
        rows = [x.decode().split(":") for x in result.as_numpy("PROBABILITIES")]
        assert [int(i) for _, i, _ in rows] == best[:expected]
        assert bits([float(s) for s, _, _ in rows]) == bits([answer["scores"][i] for i in best[:expected]])
        assert [label for _, _, label in rows] == [answer["labels"][i] for i in best[:expected]]


@pytest.mark.parametrize("samples,status", [(np.zeros(16000, np.float32), b"no_speech"),
                                            (voice(1, 0.01), b"too_short")])
def test_no_answer_is_an_answer(client, samples, status):
    outputs = [*wanted("PROBABILITIES", "LOGITS", "EMBEDDING", "LABELS", "STATUS")]
    result = infer(client, array_input(samples), outputs=outputs)
    assert list(result.as_numpy("STATUS")) == [status] and parameters_of(result)["status"] == status.decode()
    assert parameters_of(result)["message"] and len(result.as_numpy("LABELS")) == 4
    for name in ("PROBABILITIES", "LOGITS", "EMBEDDING"):
        assert result.as_numpy(name).shape == (0,)
    top = infer(client, array_input(samples), outputs=[triton.InferRequestedOutput("PROBABILITIES", class_count=1)])
    assert top.as_numpy("PROBABILITIES").shape == (0,)


def test_models(client, clips):
    for name, folder in (("large", "large"), ("many", "labels_unicode")):
        result = infer(client, file_input(clips[1].read_bytes()), model=name, outputs=[*SCORES, *wanted("LABELS")])
        answer = answer_to(clips[1], model=GOLDEN / folder)
        assert score_bits(result) == bits_of_answer(answer)
        assert [x.decode() for x in result.as_numpy("LABELS")] == answer["labels"]
    named = infer(client, file_input(clips[1].read_bytes()), model="", outputs=SCORES)
    assert named.get_response().model_name == "large"


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors(stub, clips):
    data = clips[0].read_bytes()
    with raises(NOT_FOUND, "nobody", "large, many, tiny") as caught:
        stub.ModelInfer(make_request(data, model="nobody"), timeout=TIMEOUT_S)
    assert details_of(caught.error)["ErrorInfo"].reason == "MODEL_NOT_FOUND"
    request = make_request(data)
    request.model_version = "7"
    with raises(NOT_FOUND, "7"):
        stub.ModelInfer(request, timeout=TIMEOUT_S)
    with raises(INVALID, "window"):
        stub.ModelInfer(make_request(data, windw_s=1.0), timeout=TIMEOUT_S)
    with raises(INVALID, "parameters.hop_s") as caught:
        stub.ModelInfer(make_request(data, window_s=1.0, hop_s=2.0), timeout=TIMEOUT_S)
    details = details_of(caught.error)
    assert details["BadRequest"].field_violations[0].field == "parameters.hop_s"
    assert details["ErrorInfo"].reason == "INVALID_FIELD"
    with raises(INVALID) as caught:
        stub.ModelInfer(make_request(b"this is no audio at all" * 40), timeout=TIMEOUT_S)
    assert details_of(caught.error)["ErrorInfo"].reason == "BAD_AUDIO"
    with raises(INVALID, "contents"):
        request = make_request(data)
        request.inputs[0].contents.bytes_contents.append(data)
        stub.ModelInfer(request, timeout=TIMEOUT_S)
    with raises(INVALID, "id"):
        stub.ModelInfer(make_request(data, request_id="x" * 129), timeout=TIMEOUT_S)


def test_not_a_message(server):
    with connect(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with raises(INVALID, "ModelInferRequest"):
            call(b"\xff\xff\xff", timeout=TIMEOUT_S)


def test_what_clients_send_besides(client, clips):
    """Parameters of Triton that mean nothing here do no harm."""
    answer = answer_to(clips[0])
    result = infer(client, file_input(clips[0].read_bytes()), outputs=SCORES, request_id="né",
                   sequence_id=3, sequence_start=True, sequence_end=True, priority=2, timeout=30_000_000)
    assert score_bits(result) == bits_of_answer(answer)
    assert result.get_response().id == "né"


def test_timeout(stub, clips):
    with raises(grpc.StatusCode.DEADLINE_EXCEEDED):
        stub.ModelInfer(make_request(clips[3].read_bytes(), timeout=1), timeout=TIMEOUT_S)


# ---- many at a time -------------------------------------------------------------------------------------------------


def mixed(count):
    """Clips of 0.1 to 3 s, some of them silent."""
    rng = np.random.default_rng(1)
    return [wav_bytes(voice(i, s) * (i % 17 != 5)) for i, s in enumerate(rng.uniform(0.1, 3, count))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """200 mixed clips, and what the command line says of each."""
    folder, files = tmp_path_factory.mktemp("mixed"), []
    for i, data in enumerate(mixed(200)):
        files.append(folder / f"{i}.wav")
        files[-1].write_bytes(data)
    return [(f.read_bytes(), a) for f, a in zip(files, predict(TINY, files))]


def check(result, answer):
    receipt = parameters_of(result)
    assert receipt["status"] == answer["status"]
    if answer["status"] == "ok":
        assert score_bits(result) == bits_of_answer(answer)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_invariance(server, expected, concurrency):
    with client_of(server) as client, ThreadPoolExecutor(concurrency) as pool:
        for (_, answer), result in zip(expected, pool.map(
                lambda e: infer(client, file_input(e[0]), outputs=SCORES), expected)):
            check(result, answer)


def test_async_client(server, expected):
    async def ask():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
            calls = [client.infer("tiny", file_input(data), outputs=SCORES, client_timeout=TIMEOUT_S)
                     for data, _ in expected[:40]]
            return await asyncio.gather(*calls)

    for (_, answer), result in zip(expected, asyncio.run(ask())):
        check(result, answer)


def test_statistics(server, clips):
    def read(name):
        with client_of(server) as client:
            return client.get_inference_statistics(name).model_stats

    (before,) = read("many")
    with client_of(server) as client:
        for clip in clips:
            infer(client, file_input(clip.read_bytes()), model="many")
        with pytest.raises(InferenceServerException):
            infer(client, file_input(b"no audio" * 100), model="many")
    (after,) = read("many")
    for kind, count in (("success", 4), ("fail", 1), ("queue", 4), ("compute_infer", 4)):
        then, now = (getattr(s.inference_stats, kind) for s in (before, after))
        assert now.count - then.count == count and now.ns > then.ns
    assert after.inference_count - before.inference_count == 4 and after.execution_count >= before.execution_count + 4
    assert after.last_inference > 1.6e12 and after.memory_usage[0].byte_size > 0
    assert [s.name for s in read("")] == ["large", "many", "tiny"]
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        read("nobody")


# ---- streams --------------------------------------------------------------------------------------------------------


def stream(server, requests, **kwargs):
    """The results, InferenceServerException among them, in the order they came."""
    results = queue.Queue()
    with client_of(server) as client:
        client.start_stream(lambda result, error: results.put(error or result), stream_timeout=60 * SLOWNESS, **kwargs)
        for name, fields in requests:
            client.async_stream_infer(name, **fields)
        got = [results.get(timeout=60 * SLOWNESS) for _ in requests]
        client.stop_stream()
    assert results.empty()
    return got


def test_stream(server, expected):
    requests = [("tiny", {"inputs": file_input(data), "request_id": str(i), "outputs": SCORES,
                          "enable_empty_final_response": i % 2 == 0}) for i, (data, _) in enumerate(expected)]
    for i, (result, (_, answer)) in enumerate(zip(stream(server, requests), expected)):
        assert result.get_response().id == str(i)
        assert parameters_of(result)["triton_final_response"] is True
        check(result, answer)


def test_stream_goes_on_after_errors(server, clips):
    good, bad = file_input(clips[0].read_bytes()), file_input(b"no audio" * 100)
    requests = [("tiny", {"inputs": good, "request_id": "0"}), ("tiny", {"inputs": bad, "request_id": "1"}),
                ("nobody", {"inputs": good, "request_id": "2"}), ("tiny", {"inputs": good, "request_id": "3"})]
    got = stream(server, requests)
    assert [isinstance(g, InferenceServerException) for g in got] == [False, True, True, False]
    assert got[1].message().startswith("INVALID_ARGUMENT: ") and got[2].message().startswith("NOT_FOUND: ")


def test_stream_tells_which_failed(stub, clips):
    requests = [make_request(clips[0].read_bytes(), model=m, request_id=m) for m in ("nobody", "tiny", "none")]
    got = list(stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S))
    assert [(g.infer_response.id, bool(g.error_message)) for g in got] == \
        [("nobody", True), ("tiny", False), ("none", True)]


def test_stream_with_a_real_status(stub, clips):
    requests = [make_request(clips[0].read_bytes(), model=m) for m in ("tiny", "nobody", "tiny")]
    call = stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S, metadata=[("triton_grpc_error", "true")])
    got = []
    with raises(NOT_FOUND, "nobody") as caught:
        for response in call:
            got.append(response)
    assert len(got) == 1 and not got[0].error_message
    assert details_of(caught.error)["ErrorInfo"].reason == "MODEL_NOT_FOUND"


def test_stream_half_closed_at_once(stub):
    assert list(stub.ModelStreamInfer(iter([]), timeout=TIMEOUT_S)) == []


def test_stream_cancelled(server, stub, clips):
    """A caller who leaves with requests under way harms nobody."""
    data = clips[3].read_bytes()
    for _ in range(20):
        call = stub.ModelStreamInfer((make_request(data, request_id=str(i)) for i in range(100)), timeout=TIMEOUT_S)
        assert next(iter(call)).infer_response.id == "0"
        call.cancel()
    with client_of(server) as client:
        assert parameters_of(infer(client, file_input(data)))["status"] == "ok"


def test_stream_is_not_read_ahead(server, clips):
    """A stream has a limited number of requests under way: the caller's messages wait in the network."""
    data = clips[3].read_bytes()  # 192 KB
    sent, gate = [], threading.Event()

    def requests():
        for i in range(400):
            sent.append(i)
            yield make_request(data, request_id=str(i))
        gate.wait(TIMEOUT_S)

    with connect(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ids = []
        for response in stub.ModelStreamInfer(requests(), timeout=10 * TIMEOUT_S):
            ids.append(response.infer_response.id)
            if len(ids) == 1:
                assert len(sent) < 400
            if len(ids) == 400:
                gate.set()
        assert ids == [str(i) for i in range(400)]


def test_stream_that_is_never_read(server):
    """Whoever does not read his answers is not read from either, and costs the server no memory."""
    request = service_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="AUDIO", datatype="FP32", shape=[100])
    request.raw_input_contents.append(bytes(400))
    before, sent, seen = server.rss_bytes(), 0, -1

    def requests():
        nonlocal sent
        while True:
            request.id = str(sent)
            sent += 1
            yield request

    with connect(server.grpc) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        while seen != sent:  # until the stream takes no more
            seen = sent
            time.sleep(1)
        for i, response in zip(range(sent + 100), call):  # and goes on as soon as he reads
            assert response.infer_response.id == str(i) and not response.error_message
        call.cancel()
    assert server.rss_bytes() < before + (64 << 20) * SLOWNESS
