"""A client with grpclib, an HTTP/2 stack that shares nothing with gRPC's own; see ../README.md."""

import asyncio
import ssl
import struct
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2
from grpclib.client import Channel, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.exceptions import GRPCError
from inference import grpc_service_pb2
from timbre.v1 import timbre_pb2

address, ca, token, *paths = sys.argv[1:]
clips = [(Path(p).name, Path(p).read_bytes()) for p in paths]
extra = {"metadata": {"authorization": f"Bearer {token}"}, "timeout": 60}


async def status_name(call):
    try:
        await call
        return "OK"
    except GRPCError as e:
        return e.status.name


async def infer(channel):
    method = StreamStreamMethod(channel, "/inference.GRPCInferenceService/ModelStreamInfer",
                                grpc_service_pb2.ModelInferRequest, grpc_service_pb2.ModelStreamInferResponse)
    answers = {}
    async with method.open(**extra) as stream:
        for i, (name, audio) in enumerate(clips):
            await stream.send_message(grpc_service_pb2.ModelInferRequest(
                model_name="tiny", id=name, inputs=[{"name": "AUDIO", "datatype": "BYTES", "shape": [1]}],
                raw_input_contents=[struct.pack("<I", len(audio)) + audio]), end=i == len(clips) - 1)
        async for message in stream:
            answer = message.infer_response
            at = [o.name for o in answer.outputs].index("PROBABILITIES")
            answers[answer.id] = answer.raw_output_contents[at].hex()
    for name, _ in clips:
        print("infer", name, answers[name])


async def watch(channel):
    method = UnaryStreamMethod(channel, "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest,
                               health_pb2.HealthCheckResponse)
    async with method.open(**extra) as stream:
        await stream.send_message(health_pb2.HealthCheckRequest(service="timbre.v1.Timbre"), end=True)
        answer = await stream.recv_message()
        print("watch", health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
        await stream.cancel()


async def main():
    host, port = address.rsplit(":", 1)
    context = None
    if ca != "-":
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
    async with Channel(host, int(port), ssl=context) as channel:
        predict = UnaryUnaryMethod(channel, "/timbre.v1.Timbre/Predict", timbre_pb2.PredictRequest,
                                   timbre_pb2.PredictResponse)
        for name, audio in clips:
            response = await predict(timbre_pb2.PredictRequest(audio=audio), **extra)
            scores = [s.score for s in sorted(response.scores, key=lambda s: s.index)]
            print("predict", name, struct.pack(f"<{len(scores)}f", *scores).hex())
        await infer(channel)
        unknown = timbre_pb2.PredictRequest(audio=clips[0][1], model="nobody")
        print("unknown", await status_name(predict(unknown, **extra)))
        streaming = StreamStreamMethod(channel, "/timbre.v1.Timbre/StreamingPredict", timbre_pb2.StreamingPredictRequest,
                                       timbre_pb2.StreamingPredictResponse)
        print("streaming", await status_name(streaming([], **extra)))
        await watch(channel)


asyncio.run(main())
