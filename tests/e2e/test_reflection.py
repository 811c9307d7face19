"""grpc.reflection.v1 and v1alpha: what grpcurl and its like need to call a server they know nothing about."""

import time

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from raw_http2 import RawClient, frame
from timbre_program import predict
from timbre_server import SLOWNESS, TINY, Server, bits_of, bits_of_answer, connect, raises

SERVICES = {"timbre.v1.Timbre", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
METHOD = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
TIMEOUT_S = 10 * SLOWNESS
Q = reflection_pb2.ServerReflectionRequest

pytestmark = pytest.mark.asan


@pytest.fixture(scope="module")
def channel(server):
    with connect(server.grpc) as c:
        yield c


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request, channel):
    """Asks questions on one stream; the messages of both versions are the same on the wire."""
    call = channel.stream_stream(METHOD.format(request.param), Q.SerializeToString,
                                 reflection_pb2.ServerReflectionResponse.FromString)
    return lambda *questions: list(call(iter(questions), timeout=TIMEOUT_S))


def files(answer):
    """Names of the files in an answer, in order."""
    found = [descriptor_pb2.FileDescriptorProto.FromString(b) for b in answer.file_descriptor_response.file_descriptor_proto]
    assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
    return [f.name for f in found]


def test_services(ask):
    question = Q(host="somewhere", list_services="*")
    (answer,) = ask(question)
    assert {s.name for s in answer.list_services_response.service} == SERVICES
    assert answer.valid_host == "somewhere" and answer.original_request == question


@pytest.mark.parametrize("symbol,file", [
    ("timbre.v1.Timbre", "timbre/v1/timbre.proto"),
    ("timbre.v1.Timbre.Predict", "timbre/v1/timbre.proto"),
    ("timbre.v1.PredictRequest", "timbre/v1/timbre.proto"),
    ("timbre.v1.PredictRequest.top_k", "timbre/v1/timbre.proto"),
    ("timbre.v1.StreamConfig.analysis", "timbre/v1/timbre.proto"),
    ("timbre.v1.Encoding", "timbre/v1/timbre.proto"),
    ("timbre.v1.ENCODING_ALAW", "timbre/v1/timbre.proto"),
    ("inference.GRPCInferenceService.ModelInfer", "inference/grpc_service.proto"),
    ("inference.ModelInferRequest.InferInputTensor", "inference/grpc_service.proto"),
    ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
    ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
    ("grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"),
    ("google.protobuf.Any", "google/protobuf/any.proto"),
])
def test_files_by_symbol_and_name(ask, symbol, file):
    by_symbol, by_name = ask(Q(file_containing_symbol=symbol)), ask(Q(file_by_filename=file))
    assert files(by_symbol[0])[0] == files(by_name[0])[0] == file


def test_imports_are_sent_once_a_stream(ask):
    status, again, any_, details = ask(Q(file_by_filename="google/rpc/status.proto"),
                                       Q(file_by_filename="google/rpc/status.proto"),
                                       Q(file_by_filename="google/protobuf/any.proto"),
                                       Q(file_by_filename="google/rpc/error_details.proto"))
    assert files(status) == ["google/rpc/status.proto", "google/protobuf/any.proto"]
    assert files(again) == ["google/rpc/status.proto"]
    assert files(any_) == ["google/protobuf/any.proto"]
    assert files(details) == ["google/rpc/error_details.proto", "google/protobuf/duration.proto"]
    assert ask(Q(file_by_filename="google/rpc/status.proto"))[0] == status, "a new stream begins anew"


def test_errors_are_answers(ask):
    cases = [
        (Q(file_by_filename="no/such.proto"), grpc.StatusCode.NOT_FOUND),
        (Q(file_by_filename=""), grpc.StatusCode.NOT_FOUND),
        (Q(file_containing_symbol="timbre.v1.Nothing"), grpc.StatusCode.NOT_FOUND),
        (Q(file_containing_symbol="timbre.v1"), grpc.StatusCode.NOT_FOUND),
        (Q(file_containing_symbol="é" * 1000), grpc.StatusCode.NOT_FOUND),
        (Q(file_containing_extension={"containing_type": "timbre.v1.Model", "extension_number": 1000}),
         grpc.StatusCode.NOT_FOUND),
        (Q(all_extension_numbers_of_type="timbre.v1.Nothing"), grpc.StatusCode.NOT_FOUND),
        (Q(all_extension_numbers_of_type="timbre.v1.Timbre"), grpc.StatusCode.NOT_FOUND),
        (Q(), grpc.StatusCode.INVALID_ARGUMENT),
    ]
    answers = ask(*(q for q, _ in cases), Q(list_services=""))
    for (question, code), answer in zip(cases, answers):
        assert answer.error_response.error_code == code.value[0], (question, answer)
        assert answer.error_response.error_message and answer.original_request == question
    assert len(answers[-1].list_services_response.service) == len(SERVICES), "the stream goes on"


def test_extension_numbers(ask):
    (answer,) = ask(Q(all_extension_numbers_of_type="timbre.v1.Model"))
    assert answer.all_extension_numbers_response.base_type_name == "timbre.v1.Model"
    assert not answer.all_extension_numbers_response.extension_number


def test_what_is_no_question(ask):
    with raises(grpc.StatusCode.INVALID_ARGUMENT, "4096"):
        ask(Q(file_by_filename="a" * 5000))
    assert ask() == []


def test_many_questions_at_once(ask):
    answers = ask(*[Q(file_containing_symbol="timbre.v1.Timbre")] * 500)
    assert len(answers) == 500 and all(files(a)[0] == "timbre/v1/timbre.proto" for a in answers)


def test_broken_question(channel):
    call = channel.stream_stream(METHOD.format("v1"), lambda b: b, lambda b: b)
    for broken in (b"\xff", b"\x1a\x02\xff\xff", b"\x2a\x01\x0a"):
        with raises(grpc.StatusCode.INVALID_ARGUMENT):
            list(call(iter([broken]), timeout=TIMEOUT_S))


def test_one_who_asks_and_does_not_read(server):
    """Answers do not pile up for it: some wait, then the stream ends."""
    questions = frame(Q(file_by_filename="timbre/v1/timbre.proto").SerializeToString()) * 1000
    with RawClient(server.grpc, window_bytes=0) as raw:
        stream = raw.call(METHOD.format("v1"))
        raw.send(stream, questions)
        time.sleep(0.3 * SLOWNESS)
        raw.allow(stream, 1 << 24)
        headers = raw.finish(stream)
        assert headers["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        assert "wait to be read" in headers["grpc-message"]
        assert raw.data[stream].count(b"timbre.v1.PredictResponse") < 2 * 30


def test_without_reflection():
    with Server("--no-reflection") as server, connect(server.grpc) as channel:
        for version in ("v1", "v1alpha"):
            call = channel.stream_stream(METHOD.format(version), Q.SerializeToString, lambda b: b)
            with raises(grpc.StatusCode.UNIMPLEMENTED):
                list(call(iter([Q(list_services="")]), timeout=TIMEOUT_S))


def test_a_call_with_what_reflection_tells_alone(channel, clips):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == SERVICES
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("timbre.v1.Timbre").FindMethodByName("Predict")
    ask_type, answer_type = (message_factory.GetMessageClass(t) for t in (method.input_type, method.output_type))
    call = channel.unary_unary("/timbre.v1.Timbre/Predict", ask_type.SerializeToString, answer_type.FromString)
    response = call(ask_type(audio=clips[1].read_bytes()), timeout=TIMEOUT_S)
    assert bits_of(response) == bits_of_answer(predict(TINY, clips[1:2])[0])


def test_every_service_has_its_methods(channel):
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    for name in SERVICES:
        for method in pool.FindServiceByName(name).methods:
            if (method.client_streaming, method.server_streaming) != (False, False):
                continue
            call = channel.unary_unary(f"/{name}/{method.name}", lambda b: b, lambda b: b)
            try:
                call(b"", timeout=TIMEOUT_S)
            except grpc.RpcError as e:
                assert e.code() != grpc.StatusCode.UNIMPLEMENTED or "no method" not in e.details(), (name, method.name)


assert reflection_pb2_grpc  # importing it registers the descriptors that the database needs
