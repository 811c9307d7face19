#!/usr/bin/env python3
"""SIGTERM under load: no accepted call is lost.

usage: drain.py [--times 20] [--callers 64] [--seed 1] with --build DIR, --json FILE

Each time a new server, callers of grpcio on eight connections who call without a pause, and SIGTERM after a random
time; every other time with --lame-duck-ms. Each call carries an id, so that what the callers saw and the server's log
of calls can be compared one by one:
- a caller sees OK, with the bits that this clip always has, or UNAVAILABLE; nothing else;
- the log tells OK of exactly the calls that callers saw OK;
- a call that ended UNAVAILABLE is either not in the log (it never came in) or there as UNAVAILABLE (refused at the
  door);
- the server ends by itself, with status 0, before its --drain-timeout-ms.
What is wrong is told in two figures: calls that were lost (the server had accepted them), and calls that never came in
and whose callers saw another code than UNAVAILABLE, so that they cannot know that it is safe to try elsewhere.
"""
import asyncio
import json
import random
import sys
import time

import harness

PATH = "/timbre.v1.Timbre/Predict"
CHANNELS = 8
CALL_S_MAX = 60
CLIPS_S = (1.0, 3.0, 6.0, 10.0)
LAME_DUCK_MS = 300
SHOWN_MAX = 8  # of what is wrong; all of it is in the JSON
BUSY_S = (0.3, 1.0)  # SIGTERM comes somewhere between


class Load:
    """Callers, and what they saw: .seen[id] is (code, details, when it ended)."""

    def __init__(self, server, requests, expected, callers):
        self.server, self.requests, self.expected, self.callers = server, requests, expected, callers
        self.seen, self.wrong = {}, []

    async def call(self, stub, i, key):
        import grpc
        from timbre_server import bits_of
        metadata = [("x-request-id", key)]  # not in the message, which is not read when the call is refused
        try:
            answer = await stub.Predict(self.requests[i], timeout=CALL_S_MAX, metadata=metadata)
        except grpc.aio.AioRpcError as e:
            self.seen[key] = (e.code().name, e.details(), time.monotonic())
            return False
        if bits_of(answer) != self.expected[i] or answer.request_id != key:
            self.wrong.append(key)
        self.seen[key] = ("OK", "", time.monotonic())
        return True

    async def caller(self, stub, number):
        n = 0
        while await self.call(stub, (number + n) % len(self.requests), f"{number}-{n}"):
            n += 1

    async def run(self, busy_s):
        import grpc
        from timbre_server import stubs
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self.server.grpc, options) for _ in range(CHANNELS)]
        of = [stubs().timbre_grpc.TimbreStub(c) for c in channels]
        callers = [asyncio.create_task(self.caller(of[i % CHANNELS], i)) for i in range(self.callers)]
        await asyncio.sleep(busy_s)
        self.terminated = time.monotonic()
        self.server.terminate()
        await asyncio.gather(*callers)
        for c in channels:
            await c.close()


def read_log(text):
    """{id: [codes]} of the calls of Predict that the server tells of."""
    calls = {}
    for line in text.splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields.get("method") == PATH:
            calls.setdefault(fields["request_id"], []).append(fields["code"])
    return calls


def compare(load, logged):
    """What does not fit, a sentence each: of calls that were accepted, and of calls that never came in."""
    bad = [f"{key}: answered with other bits or another id" for key in load.wrong]
    unclear = []
    for key, (code, details, _) in load.seen.items():
        server = logged.get(key, [])
        if code == "OK" and server != ["OK"]:
            bad.append(f"{key}: the caller saw OK, the log says {server}")
        elif code == "UNAVAILABLE" and "OK" in server:
            bad.append(f"{key}: lost: the log says {server}, the caller saw UNAVAILABLE: {details}")
        elif code == "UNAVAILABLE" and set(server) - {"UNAVAILABLE"}:
            bad.append(f"{key}: the log says {server}")
        elif code not in ("OK", "UNAVAILABLE") and not server:
            unclear.append(f"{key}: never came in, and the caller saw {code}: {details}")
        elif code not in ("OK", "UNAVAILABLE"):
            bad.append(f"{key}: the caller saw {code}: {details}; the log says {server}")
    bad += [f"{key}: in the log as {codes}, but nobody called" for key, codes in logged.items() if key not in load.seen]
    return bad, unclear


def one_time(bench, number, requests, model, args, chance):
    flags = ["--access-log", "all", "--log-format", "json"]
    lame_duck = number % 2 == 1
    flags += ["--lame-duck-ms", str(LAME_DUCK_MS)] if lame_duck else []
    with bench.server(*flags, model=model) as server:
        from timbre_server import bits_of, connect, stubs
        with connect(server.grpc) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)
            expected = []
            for request in requests:
                first = stub.Predict(request, timeout=CALL_S_MAX, metadata=[("x-request-id", "first")])
                expected.append(bits_of(first))
        load = Load(server, requests, expected, args.callers)
        asyncio.run(load.run(chance.uniform(*BUSY_S)))
        server.check_end()  # status 0
        drain_s = time.monotonic() - load.terminated
        logged = read_log(server.log_text())
        assert logged.pop("first") == ["OK"] * len(requests)
    bad, unclear = compare(load, logged)
    ok = [when for code, _, when in load.seen.values() if code == "OK"]
    result = {"ok": len(ok), "ok_after_sigterm": sum(when > load.terminated for when in ok),
              "unavailable": sum(code == "UNAVAILABLE" for code, _, _ in load.seen.values()),
              "refused_at_the_door": sum(v == ["UNAVAILABLE"] for v in logged.values()),
              "drain_s": round(drain_s, 3), "lame_duck": lame_duck, "bad": bad, "unclear": unclear}
    print(f"  {number + 1}: {result['ok']} answered, {result['ok_after_sigterm']} of them after SIGTERM; "
          f"{result['unavailable']} UNAVAILABLE, {result['refused_at_the_door']} of them by the server; ended after "
          f"{drain_s:.2f} s{' (lame duck)' if lame_duck else ''}", *(bad + unclear)[:SHOWN_MAX], sep="\n    ", flush=True)
    return result


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="golden/sizes_real")
    args = parser.parse_args()
    with harness.Bench(args) as bench:
        from timbre_server import stubs
        messages = stubs().timbre
        raw = messages.AudioFormat(encoding=messages.ENCODING_PCM16, sample_rate_hz=harness.RATE_HZ, channels=1)
        requests = [messages.PredictRequest(audio=c.tobytes(), format=raw) for c in harness.clips_of(CLIPS_S)]
        chance = random.Random(args.seed)
        runs = [one_time(bench, n, requests, bench.model(args.model), args, chance) for n in range(args.times)]
        bench.figures["drains"] = runs
        bench.say("drains", len(runs), "times SIGTERM under load")
        for name in ("ok", "ok_after_sigterm", "unavailable", "refused_at_the_door"):
            bench.say(name, sum(r[name] for r in runs), "calls")
        bench.say("longest_drain_s", max(r["drain_s"] for r in runs), "s")
        bench.say("calls_lost_or_wrong", sum(len(r["bad"]) for r in runs), at_most=0)
        bench.say("never_came_in_and_not_unavailable", sum(len(r["unclear"]) for r in runs), at_most=0)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
