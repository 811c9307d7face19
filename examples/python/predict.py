#!/usr/bin/env python3
"""Asks a Timbre server for the emotion in audio files. README.md tells how to make timbre.v1.

usage: predict.py ADDRESS FILE...
"""

import sys
from pathlib import Path

import grpc
from timbre.v1 import timbre_pb2, timbre_pb2_grpc

# Recordings may be larger than gRPC's 4 MiB; answers are small. The policy sends a call again when the server asks for it.
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.service_config", """{"methodConfig": [{"name": [{"service": "timbre.v1.Timbre"}], "retryPolicy": {
        "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}"""),
]


def main(address, *paths):
    failed = False
    # For a server that asks for them: grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), OPTIONS), and
    # stub.Predict(..., metadata=[("authorization", f"Bearer {token}")]).
    with grpc.insecure_channel(address, OPTIONS) as channel:
        stub = timbre_pb2_grpc.TimbreStub(channel)
        calls = []
        for path in paths:
            request = timbre_pb2.PredictRequest(audio=Path(path).read_bytes())
            calls.append(stub.Predict.future(request, timeout=60))
        for path, call in zip(paths, calls):
            try:
                answer = call.result()
            except grpc.RpcError as error:
                print(f"{path}: {error.code().name}: {error.details()}")
                failed = True
                continue
            if answer.HasField("dominant"):
                print(f"{path}: {answer.dominant.label} {answer.dominant.score:.3f}")
            else:
                print(f"{path}: {timbre_pb2.AnswerStatus.Name(answer.status)} {answer.message}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
