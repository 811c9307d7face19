"""tritonclient, which speaks the Open Inference Protocol alone: prints the `infer` lines of ../README.md."""

import queue
import sys
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

address, ca, token, *paths = sys.argv[1:]
clips = [(Path(p).name, Path(p).read_bytes()) for p in paths]
headers = {"authorization": f"Bearer {token}"}
secure = {} if ca == "-" else {"ssl": True, "root_certificates": ca}


def inputs(audio):
    tensor = InferInput("AUDIO", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([audio], dtype=np.object_))
    return [tensor]


def bits(result):
    return result.as_numpy("PROBABILITIES").astype("<f4").tobytes().hex()


with InferenceServerClient(address, **secure) as client:
    assert client.is_server_ready(headers=headers) and client.is_model_ready("tiny", headers=headers)
    outputs = [InferRequestedOutput("PROBABILITIES")]
    single = {name: bits(client.infer("tiny", inputs(audio), outputs=outputs, headers=headers)) for name, audio in clips}
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    for name, audio in clips:
        client.async_stream_infer("tiny", inputs(audio), request_id=name, outputs=outputs)
    streamed = {}
    for _ in clips:
        result, error = answers.get(timeout=60)
        assert error is None, error
        streamed[result.get_response().id] = bits(result)
    client.stop_stream()
    assert streamed == single, (streamed, single)
    for name, _ in clips:
        print("infer", name, streamed[name])
