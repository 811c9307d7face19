"""A client with grpcio; see ../README.md. Generated code is on PYTHONPATH."""

import struct
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from timbre.v1 import timbre_pb2, timbre_pb2_grpc

address, ca, token, *paths = sys.argv[1:]
clips = [(Path(p).name, Path(p).read_bytes()) for p in paths]
extra = {"metadata": [("authorization", f"Bearer {token}")], "timeout": 60}


def status_name(call):
    try:
        call()
        return "OK"
    except grpc.RpcError as e:
        return e.code().name


channel = (grpc.insecure_channel(address) if ca == "-" else
           grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(ca).read_bytes())))
with channel:
    timbre = timbre_pb2_grpc.TimbreStub(channel)
    for name, audio in clips:
        response = timbre.Predict(timbre_pb2.PredictRequest(audio=audio), **extra)
        scores = [s.score for s in sorted(response.scores, key=lambda s: s.index)]
        print("predict", name, struct.pack(f"<{len(scores)}f", *scores).hex())

    questions = (grpc_service_pb2.ModelInferRequest(
        model_name="tiny", id=name, inputs=[{"name": "AUDIO", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[struct.pack("<I", len(audio)) + audio]) for name, audio in clips)
    answers = {}
    for message in grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(questions, **extra):
        answer = message.infer_response
        at = [o.name for o in answer.outputs].index("PROBABILITIES")
        answers[answer.id] = answer.raw_output_contents[at].hex()
    for name, _ in clips:
        print("infer", name, answers[name])

    unknown = timbre_pb2.PredictRequest(audio=clips[0][1], model="nobody")
    print("unknown", status_name(lambda: timbre.Predict(unknown, **extra)))
    print("streaming", status_name(lambda: list(timbre.StreamingPredict(iter([]), **extra))))
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="timbre.v1.Timbre"), **extra)
    print("watch", health_pb2.HealthCheckResponse.ServingStatus.Name(next(watch).status))
    watch.cancel()
