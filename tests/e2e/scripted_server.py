"""A gRPC server in this process that answers what a test tells it to, well-meant or not."""

import threading
import time
from concurrent import futures
from dataclasses import dataclass, field

import grpc

from timbre_server import stubs

METHODS = "/timbre.v1.Timbre/"


@dataclass
class Answer:
    """`reply` is a message or bytes; with a code it is an error. Waits `delay_s` before."""

    reply: object = b""
    code: grpc.StatusCode = None
    message: str = ""
    trailers: tuple = ()
    delay_s: float = 0.0


@dataclass
class Call:
    method: str
    request: bytes
    metadata: dict
    at: float = field(default_factory=time.monotonic)


def prediction(label="joy", score=0.75, duration_s=1.0):
    """A reply of two labels."""
    m = stubs().timbre
    scores = [m.Score(index=0, label=label, score=score, logit=1), m.Score(index=1, label="else", score=1 - score)]
    return m.PredictResponse(status=m.ANSWER_STATUS_OK, duration_s=duration_s, scores=scores, dominant=scores[0],
                             receipt=m.Receipt(model="m", digest="d", device="cpu", precision="fp32", batch_size=3))


class ScriptedServer:
    """with ScriptedServer([Answer(...), ...]) as s: the n-th Predict gets answers[n], those after the last get the last;
    a function of (n, request) decides itself. GetModel gets `model`, an Answer; health is SERVING. s.calls are the Predicts."""

    def __init__(self, answers, model=None, credentials=None, address="127.0.0.1:0", threads=32):
        self.answers, self.calls, self.lock = answers, [], threading.Lock()
        self.model = model or Answer(stubs().timbre.Model(name="m", labels=["joy", "else"], digest="d", device="cpu",
                                                          precision="fp32"))
        self.server = grpc.server(futures.ThreadPoolExecutor(threads),
                                  options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers([self])
        if credentials:
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{self.port}"

    def service(self, details):  # of grpc.GenericRpcHandler
        if details.method == METHODS + "GetModel":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self.send(self.model, context))
        if details.method == METHODS + "Predict":
            return grpc.unary_unary_rpc_method_handler(self.predict)
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        return None

    def predict(self, request, context):
        with self.lock:
            n = len(self.calls)
            self.calls.append(Call("Predict", request, dict(context.invocation_metadata())))
        if callable(self.answers):
            return self.send(self.answers(n, request), context)
        return self.send(self.answers[min(n, len(self.answers) - 1)], context)

    @staticmethod
    def send(answer, context):
        if answer.delay_s:
            time.sleep(answer.delay_s)
        if answer.trailers:
            context.set_trailing_metadata(answer.trailers)
        if answer.code is not None:
            context.abort(answer.code, answer.message)
        reply = answer.reply
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *rest):
        self.server.stop(None).wait()
