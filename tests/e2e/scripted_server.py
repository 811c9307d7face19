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


def stream_result(channel, start_s, end_s, resume_ms=0, final=True, label="joy", smoothed=()):
    """A message of a stream, with a score of 0.75 and one of 0.25."""
    m = stubs().timbre
    scores = [m.Score(index=0, label=label, score=0.75), m.Score(index=1, label="else", score=0.25)]
    return m.StreamingPredictResponse(result=m.StreamResult(
        channel=channel, start_s=start_s, end_s=end_s, status=m.ANSWER_STATUS_OK, scores=scores, dominant=scores[0],
        final=final, resume_offset_ms=resume_ms, receipt=m.Receipt(model="m"),
        smoothed=[m.Score(index=i, score=s) for i, s in enumerate(smoothed)]))


def stream_summary(end=None, end_s=0.0, resume_ms=0, results=0):
    """A rolling one, or the last one of a stream that ended by `end` ("CLIENT", "DRAIN", ...)."""
    m = stubs().timbre
    return m.StreamingPredictResponse(summary=m.StreamSummary(
        final=end is not None, end=m.StreamEnd.Value(f"STREAM_END_{end or 'UNSPECIFIED'}"), end_s=end_s,
        resume_offset_ms=resume_ms, channels=[m.ChannelSummary(channel=0, results=results)]))


class StreamCall:
    """One call of StreamingPredict, as its script sees it."""

    def __init__(self, n, requests, context):
        self.n, self.requests, self.context = n, requests, context
        self.metadata = dict(context.invocation_metadata())
        self.config, self.audio, self.sizes, self.asks, self.closed = None, bytearray(), [], [], False

    def read(self):
        """The next message: into config, audio (sizes: of each message) or asks (the audio before each). False: no more."""
        try:
            data = next(self.requests, None)
        except Exception:  # the client has left: grpcio raises a bare one
            data = None
        if data is None:
            self.closed = True
            return False
        m = stubs().timbre.StreamingPredictRequest.FromString(data)
        kind = m.WhichOneof("request")
        assert (kind == "config") == (self.config is None), f"{kind} at the wrong time"
        if kind == "config":
            self.config = m.config
        elif kind == "audio":
            self.audio += m.audio
            self.sizes.append(len(m.audio))
        else:
            self.asks.append(len(self.audio))
        return True

    def read_until(self, count):
        """So many bytes of audio, or all that there will be."""
        while len(self.audio) < count and self.read():
            pass

    def read_all(self):
        while self.read():
            pass

    def end(self, code, message="", trailers=()):
        """As the last thing of a script."""
        if trailers:
            self.context.set_trailing_metadata(trailers)
        self.context.set_code(code)
        self.context.set_details(message)


class ScriptedServer:
    """with ScriptedServer([Answer(...), ...]) as s: the n-th Predict gets answers[n], those after the last get the last;
    a function of (n, request) decides itself. GetModel gets `model`, an Answer; health is SERVING. s.calls are the Predicts.

    StreamingPredict is what the generator `stream` yields, messages or bytes, of a StreamCall; s.streams are those."""

    def __init__(self, answers, model=None, credentials=None, address="127.0.0.1:0", threads=32, stream=None):
        self.answers, self.calls, self.lock = answers, [], threading.Lock()
        self.stream_script, self.streams = stream, []
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
        if details.method == METHODS + "StreamingPredict" and self.stream_script:
            return grpc.stream_stream_rpc_method_handler(self.stream)
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

    def stream(self, requests, context):
        with self.lock:
            call = StreamCall(len(self.streams), requests, context)
            self.streams.append(call)
        call.read()
        for response in self.stream_script(call):
            yield response if isinstance(response, bytes) else response.SerializeToString()

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
