"""Streams of the C client, against a server of Python whose answers are scripted. (test_client_resume.py: when it goes.)"""

import threading
import time

import grpc
import pytest

from scripted_server import ScriptedServer, stream_result, stream_summary
from stream_driver import (CANCELLED, EXHAUSTED, INTERNAL, INVALID, MARKS, OK, PRECONDITION, QUICK, SECOND, Driver,
                           answer_seconds, audio)
from timbre_server import stubs

pytestmark = MARKS


# ---- without trouble ------------------------------------------------------------------------------------------------


def test_order_and_config():
    def script(call):
        yield stream_result(0, 0, 1.25, 0, final=False)
        call.read_until(2 * SECOND)
        yield stream_result(0, 0, 1.5, 1000, smoothed=(0.5, 0.25))
        yield stream_result(1, 0, 2, 1000, label="anger")
        call.read_all()
        yield stream_summary("CLIENT", 2, 2000, results=7)

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address, "window_s=2", "smoothing_s=3", "role=customer", "exclude=1", "token=s3cret",
                    "traceparent=00-1-2-00", "offset_ms=5000", "had_s=5.5", "deadline_ms=60000") as d:
            d.tell("send 32000", "ask", "send 8000", "finish", "send 4")
            assert d.wait("end") == {"event": "end", "code": OK, "attempts": 1, "reason": "", "message": ""}
        call = s.streams[0]
        m = call.config
        assert (m.format.encoding, m.format.sample_rate_hz, m.format.channels) == (4, 8000, 2)
        assert m.windows.length_s == 2 and m.smoothing_s == 3 and m.resume_offset_ms == 5000
        assert [(c.role, c.exclude, c.resume_end_s) for c in m.channels] == [("customer", False, 5.5), ("", True, 0)]
        assert not m.HasField("resume_summary")
        assert call.metadata["authorization"] == "Bearer s3cret" and call.metadata["traceparent"] == "00-1-2-00"
        assert bytes(call.audio) == audio(5 * SECOND, 40000) and call.asks == [32000]
    # Results that end by 5.5 s were had on channel 0; on channel 1 nothing was.
    assert [(r["channel"], r["end"], r["final"]) for r in d.get("result")] == [(1, 2, 1)]
    assert d.get("send")[2]["code"] == PRECONDITION
    assert d.get("summary") == [{"event": "summary", "final": 1, "end": 1, "channels": 1, "end_s": 2, "results": 7,
                                 "resume": 2000}]


def test_results_as_they_are():
    def script(call):
        yield stream_result(0, 0, 0.5, 0, final=False)
        call.read_until(SECOND)
        yield stream_result(0, 0, 1, 1000, smoothed=(0.5, 0.125))
        yield stream_summary(None, 1, 1000, 3)
        call.read_all()
        m = stubs().timbre
        yield m.StreamingPredictResponse(result=m.StreamResult(channel=1, end_s=2, final=True,
                                                               status=m.ANSWER_STATUS_NO_SPEECH))
        yield stream_summary("CLIENT", 1, 1000, 4)

    with ScriptedServer([], stream=script) as s, Driver(s.address, "utterances=1") as d:
        d.tell(f"send {SECOND}", "finish")
        d.wait("end")
        assert s.streams[0].config.WhichOneof("analysis") == "utterances"
    interim, final, silent = d.get("result")
    assert (interim["final"], interim["end"], interim["smoothed"]) == (0, 0.5, [])
    assert (final["final"], final["answer"], final["scores"], final["smoothed"]) == (1, 1, [0.75, 0.25], [0.5, 0.125])
    assert final["label"] == "joy" and final["model"] == "m" and final["resume"] == 1000
    assert (silent["channel"], silent["answer"], silent["scores"], silent["lag"]) == (1, 2, [], None)
    assert [(x["final"], x["end"], x["results"]) for x in d.get("summary")] == [(0, 0, 3), (1, 1, 4)]


def test_lag():
    def script(call):
        call.read_until(SECOND)
        time.sleep(0.3)
        yield stream_result(0, 0, 1, 0)
        yield stream_result(1, 0, 0.25, 0)
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
        d.tell(f"send {SECOND // 2}", "sleep 200", f"send {SECOND // 2}")
        whole, part = d.wait("result"), d.wait("result")
        d.tell("finish")
        d.wait("end")
    assert whole["lag"] >= 300 and part["lag"] >= 500  # what came sooner has waited longer
    assert part["lag"] < 30000


def test_messages_are_joined():
    """Many small sends for a slow reader become few messages, of 64 KiB at most."""
    def script(call):
        time.sleep(0.5)
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address) as d:
            d.tell(*["send 160"] * 3000, "send 300000", "finish")
            assert d.wait("end")["code"] == OK
        call = s.streams[0]
        assert bytes(call.audio) == audio(0, 780000)
        assert max(call.sizes) <= 65536 and len(call.sizes) < 3000


def test_ask_keeps_its_place():
    def script(call):
        for i in range(3):
            while len(call.asks) == i and call.read():
                pass
            yield stream_summary(None, 1)
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address) as d:
            for i in range(3):
                d.tell("send 1000", "ask")
                d.wait("summary")
                assert s.streams[0].asks == [1000 * (k + 1) for k in range(i + 1)]
            d.tell("finish")
            d.wait("end")


# ---- flow control ---------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_read():
    """What is kept never passes buffer_bytes_max; there is room again when the server says what it has done with."""
    go = threading.Event()

    def script(call):
        go.wait(60)
        call.read_until(20 * SECOND)
        yield stream_result(0, 0, 20, 20000)
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script) as s, Driver(s.address, f"buffer={20 * SECOND}") as d:
        for _ in range(19):
            assert d.ask(f"send {SECOND} 0")["code"] == OK
        assert d.ask(f"send {SECOND} 0")["code"] == OK
        full = d.ask("send 1 0")
        assert full["code"] == EXHAUSTED and "buffer_bytes_max" in full["message"]
        assert d.ask("send 1 50")["code"] == EXHAUSTED
        never = d.ask(f"send {20 * SECOND + 1}")
        assert never["code"] == EXHAUSTED and "at once" in never["message"]
        d.tell(f"send {SECOND} -1")
        go.set()
        assert d.wait("send")["code"] == OK
        assert d.ask(f"send {19 * SECOND} 0")["code"] == OK
        d.tell("finish")
        assert d.wait("end")["code"] == OK
        assert bytes(s.streams[0].audio) == audio(0, 40 * SECOND)


def test_without_resume_nothing_is_kept():
    def script(call):
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script) as s, Driver(s.address, f"buffer={SECOND}", "no_resume=1") as d:
        d.tell(*[f"send {SECOND} -1"] * 100, "finish")
        assert d.wait("end")["code"] == OK
        assert bytes(s.streams[0].audio) == audio(0, 100 * SECOND)


def test_who_waits_for_room_wakes():
    """By a cancel of its own, or the end of the stream."""
    def script(call):
        call.read_until(SECOND)
        time.sleep(0.3)
        call.end(grpc.StatusCode.NOT_FOUND, "no such model")
        yield from ()

    with ScriptedServer([], stream=script) as s, Driver(s.address, f"buffer={SECOND}") as d:
        d.tell(f"send {SECOND}", "send 1 -1")
        assert d.wait("send")["code"] == OK
        assert d.wait("end")["code"] == 5
        line = d.wait("send")
        assert line["code"] == PRECONDITION and "ended" in line["message"]
        assert [d.ask(c)["code"] for c in ("send 1", "ask", "finish")] == [PRECONDITION] * 3


# ---- an end at any time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_ms", [0, 1, 5, 50])
@pytest.mark.parametrize("last", ["delete", "delete_client"])
def test_cancel(after_ms, last):
    def script(call):
        yield from answer_seconds(call)

    with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
        d.tell(f"sleep {after_ms}", f"send {3 * SECOND}", "cancel", "cancel", "send 1", last)
        assert d.wait("end")["code"] == CANCELLED
        d.wait(last)
    assert d.get("send")[1]["code"] == PRECONDITION


def test_client_deleted_while_streaming():
    with ScriptedServer([], stream=answer_seconds) as s, Driver(s.address) as d:
        d.tell(f"send {SECOND}")
        d.wait("result")
        d.tell("delete_client", "send 1", "ask", "finish", "cancel", "delete")
        d.wait("delete")
    assert d.get("end")[0]["code"] == CANCELLED
    assert [d.get(c)[-1]["code"] for c in ("send", "ask", "finish")] == [PRECONDITION] * 3


def test_cancel_while_waiting():
    def script(call):
        call.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "600000"),))
        yield from ()

    with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
        d.wait("resume")
        d.tell("cancel")
        end = d.wait("end")
    assert end["code"] == CANCELLED and end["attempts"] == 1


@pytest.mark.parametrize("callback, code", [("cancel", CANCELLED), ("finish", OK), ("send", OK)])
def test_from_a_callback(callback, code):
    def script(call):
        call.read_until(SECOND)
        yield stream_result(0, 0, 1)
        call.read_all()
        yield stream_summary("CLIENT", 1)

    with ScriptedServer([], stream=script) as s, Driver(s.address, f"callback={callback}", "buffer=100000") as d:
        d.tell(f"send {SECOND}")
        d.wait("result")
        if callback == "send":
            assert d.wait("sent")["codes"] == [OK, PRECONDITION]
            d.tell("finish")
        assert d.wait("end")["code"] == code


def test_in_every_way_at_once():
    def script(call):
        if call.n % 5 == 1:
            call.end(grpc.StatusCode.UNAVAILABLE, "busy")
            return
        call.read_until(2000)
        yield stream_result(0, 0, 0.1)
        if call.n % 5 == 2:
            call.end(grpc.StatusCode.UNAVAILABLE, "busy")
            return
        if call.n % 5 == 3:
            yield b"\xff"
        call.read_all()
        yield stream_summary("CLIENT")

    with ScriptedServer([], stream=script, threads=200) as s, Driver(s.address, *QUICK, "stress=8") as d:
        d.wait("stressed", 120)
        d.lines.append({"event": "bye"})


# ---- a server that misbehaves ---------------------------------------------------------------------------------------


def change(message, **fields):
    for name, value in fields.items():
        setattr(message.result if message.HasField("result") else message.summary, name, value)
    return message


BAD = {
    "no message": lambda: b"\xff\xff\xff",
    "empty": lambda: b"",
    "bomb": lambda: b"\x0a\x80\x89\x7a" + b"\x42\x00" * 1000000,
    "channel": lambda: stream_result(2, 0, 1),
    "channel -1": lambda: stream_result(-1, 0, 1),
    "channel 9": lambda: stream_result(9, 0, 1),
    "no status": lambda: change(stream_result(0, 0, 1), status=0),
    "no scores": lambda: stubs().timbre.StreamingPredictResponse(
        result=stubs().timbre.StreamResult(status=stubs().timbre.ANSWER_STATUS_OK)),
    "time": lambda: stream_result(0, 1, 0.5),
    "time nan": lambda: stream_result(0, 0, float("nan")),
    "time inf": lambda: stream_result(0, 0, float("inf")),
    "offset": lambda: stream_result(0, 0, 1, 1500),
    "offset -1": lambda: stream_result(0, 0, 1, -1000),
    "offset of what was not sent": lambda: stream_result(0, 0, 1, 4000),
    "offset huge": lambda: stream_result(0, 0, 1, 2**62 // 1000 * 1000),
    "summary's offset": lambda: stream_summary(None, 1, 4000),
    "summary's time": lambda: stream_summary(None, float("nan")),
    "summary's channel": lambda: stubs().timbre.StreamingPredictResponse(
        summary=stubs().timbre.StreamSummary(channels=[stubs().timbre.ChannelSummary(channel=2)])),
    "last too early": lambda: stream_summary("CLIENT"),
    "final without an end": lambda: change(stream_summary(None), final=True),
}


@pytest.mark.parametrize("what", BAD)
def test_malformed(what):
    def script(call):
        call.read_until(3 * SECOND)
        yield BAD[what]()
        call.read_all()

    with ScriptedServer([], stream=script) as s:
        with Driver(s.address) as d:
            d.tell(f"send {3 * SECOND}")
            end = d.wait("end")
        assert end["code"] in ((INTERNAL, EXHAUSTED) if what == "bomb" else (INTERNAL,)) and end["message"]
        assert len(s.streams) == 1
    assert not d.get("result") and not d.get("summary")


def test_ok_without_the_last_summary():
    for n, script in enumerate([lambda call: iter(()), lambda call: (call.read_all(), iter(()))[1]]):
        with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
            d.tell("send 100", "finish")
            assert d.wait("end")["code"] == INTERNAL


def test_more_after_the_last_summary():
    def script(call):
        call.read_all()
        yield stream_summary("CLIENT")
        yield stream_result(0, 0, 1)

    with ScriptedServer([], stream=script) as s, Driver(s.address) as d:
        d.tell("send 100", "finish")
        d.wait("end")
    assert not d.get("result") and len(d.get("summary")) == 1


def test_unimplemented():
    with ScriptedServer([]) as s, Driver(s.address) as d:
        assert d.wait("end")["code"] == 12


# ---- wrong use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option, word", [
    ("encoding=0", "encoding"), ("rate=7999", "sample_rate_hz"), ("rate=48001", "sample_rate_hz"),
    ("channels=9", "channels_count"), ("channels=-1", "channels_count"), ("buffer=-1", "buffer_bytes_max"),
    ("stall_ms=-2", "stall_ms"), ("deadline_ms=-2", "deadline_ms"), ("offset_ms=1500", "resume_offset_ms"),
    ("offset_ms=-1000", "resume_offset_ms"), ("had_s=nan", "resume_end_s"), ("traceparent=\n", "traceparent"),
])
def test_wrong_options(option, word):
    with Driver("127.0.0.1:1", option) as d:
        line = d.wait("open")
    assert line["code"] == INVALID and word in line["message"]
