"""Calling `timbre serve` with tritonclient, the client of Triton Inference Server."""

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from timbre_server import SLOWNESS, bits

TIMEOUT_S = 20 * SLOWNESS


def client_of(server):
    return triton.InferenceServerClient(server.grpc)


def file_input(data):
    tensor = triton.InferInput("AUDIO", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([data], dtype=object))
    return [tensor]


def array_input(samples, rate_hz=None):
    datatype = {np.dtype("float32"): "FP32", np.dtype("int16"): "INT16"}[samples.dtype]
    tensors = [triton.InferInput("AUDIO", list(samples.shape), datatype)]
    tensors[0].set_data_from_numpy(samples)
    if rate_hz:
        tensors.append(triton.InferInput("SAMPLE_RATE", [1], "INT32"))
        tensors[1].set_data_from_numpy(np.array([rate_hz], np.int32))
    return tensors


def wanted(*names):
    return [triton.InferRequestedOutput(n) for n in names]


def parameters_of(result):
    """The receipt, as a dict."""
    response = result if isinstance(result, service_pb2.ModelInferResponse) else result.get_response()
    return {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in response.parameters.items()}


def score_bits(result):
    """Probabilities and logits as bits_of_answer gives them."""
    return bits(result.as_numpy("PROBABILITIES")), bits(result.as_numpy("LOGITS"))


SCORES = wanted("PROBABILITIES", "LOGITS")


def infer(client, inputs, model="tiny", outputs=None, **fields):
    return client.infer(model, inputs, outputs=outputs, client_timeout=TIMEOUT_S, **fields)


def make_request(data, model="tiny", request_id="", **parameters):
    """A ModelInferRequest by hand: a file in raw_input_contents."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="AUDIO", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request
