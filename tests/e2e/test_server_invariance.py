"""200 clips of 0.3 to 10 s give the same bits through every door, alone and among others."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from timbre_program import predict, to_pcm16, voice, wav_bytes
from timbre_server import SLOWNESS, TINY, bits, bits_of, connect, request_of, stubs

COUNT, SHORTEST_S, LONGEST_S = 200, 0.3, 10.0
CONCURRENCIES = [1, 8, pytest.param(64, marks=pytest.mark.tsan)]  # whose threads meet most
TIMEOUT_S = 60 * SLOWNESS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of both sample formats and several rates, shuffled."""
    folder, rng = tmp_path_factory.mktemp("invariance"), np.random.default_rng(2)
    paths = []
    for i, seconds in enumerate(rng.permutation(np.geomspace(SHORTEST_S, LONGEST_S, COUNT))):
        rate_hz = (16000, 8000, 16000, 44100)[i % 4]
        samples = voice(i, seconds, rate_hz)
        path = folder / f"{i}.wav"
        path.write_bytes(wav_bytes(samples if i % 2 else to_pcm16(samples), rate_hz))
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def expected(files):
    """What the command line says, each clip by its place."""
    return [bits(a["scores"]) for a in predict(TINY, files, timeout_s=600)]


def ask_timbre(channel, clip):
    response = stubs().timbre_grpc.TimbreStub(channel).Predict(request_of(clip), timeout=TIMEOUT_S)
    return bits_of(response)[0], response.receipt.batch_size


def ask_inference(channel, clip):
    """The Open Inference Protocol: the file as one BYTES element."""
    data = clip.read_bytes()
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[struct.pack("<I", len(data)) + data],
                                  inputs=[{"name": "AUDIO", "datatype": "BYTES", "shape": [1]}])
    response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT_S)
    names = [o.name for o in response.outputs]
    return response.raw_output_contents[names.index("PROBABILITIES")].hex(), None


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
@pytest.mark.parametrize("ask", [ask_timbre, ask_inference])
def test_every_door_gives_the_same_bits(server, files, expected, ask, concurrency):
    order = np.random.default_rng(concurrency).permutation(COUNT)
    with connect(server.grpc) as channel, ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda i: ask(channel, files[i]), order))
    different = [int(i) for i, (scores, _) in zip(order, answers) if scores != expected[i]]
    assert not different
    if ask is ask_timbre and concurrency > 1:
        assert max(batch for _, batch in answers) > 1, "nothing was batched, so nothing was tested"


@pytest.mark.tsan
def test_doors_at_the_same_time(server, files, expected):
    with connect(server.grpc) as channel, ThreadPoolExecutor(32) as pool:
        asks = [ask_timbre if i % 2 else ask_inference for i in range(COUNT)]
        answers = list(pool.map(lambda ask, clip: ask(channel, clip)[0], asks, files))
    assert answers == expected
