#!/usr/bin/env python3
"""What connections that do nothing cost, and what an upload costs that is refused.

usage: idle.py [--connections 1000] [--megabytes 60] with --build DIR, --json FILE

1. So many channels of grpcio, each with a connection of its own, make one call and stay. Resident memory of the
   server, before and after: less than 100 MB for 1,000. The scores of the last call are those of the first.
2. A message of 60 MB with a token that the server does not know, one after the other and four at a time: every caller
   gets UNAUTHENTICATED, and the server's resident memory, at its highest, grows by less than 20 MB.
"""
import concurrent.futures
import hashlib
import resource
import sys
import time

import harness

MB = 1e6  # as the limits are told
SETTLE_S = 2
SPARE_FILES = 200
REFUSALS = 5
AT_ONCE = 4


def raise_open_files(count):
    """A connection is a file here and one in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard < count:
            sys.exit(f"{count} open files are needed and the hard limit is {hard}: raise it with ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def idle_connections(bench, args):
    from timbre_server import bits_of, connect, request_of, stubs
    from timbre_program import voice, wav_bytes
    request = request_of(wav_bytes(voice(1, 1.0)))
    channels = []

    def call_on_new_channel():
        channels.append(connect(server.grpc))
        return bits_of(stubs().timbre_grpc.TimbreStub(channels[-1]).Predict(request, timeout=60))

    with bench.server(model=bench.model("golden/base")) as server:
        first = [call_on_new_channel() for _ in range(10)]
        time.sleep(SETTLE_S)
        before = server.rss_bytes()
        for i in range(args.connections):
            bits = call_on_new_channel()
        assert bits == first[0], "other scores than at first"
        time.sleep(SETTLE_S)
        grown = server.rss_bytes() - before
        bench.say("idle_connections", args.connections)
        bench.say("idle_growth_mb", grown / MB, "MB", at_most=100 * args.connections / 1000,
                  note=f"{grown / args.connections / 1e3:.1f} KB a connection, {before / MB:.1f} MB before")
        again = bits_of(stubs().timbre_grpc.TimbreStub(channels[0]).Predict(request, timeout=60))
        assert again == first[0], "other scores than at first"
        for channel in channels:
            channel.close()
        time.sleep(SETTLE_S)
        bench.say("after_they_left_mb", (server.rss_bytes() - before) / MB, "MB more than before they came")


def refused_uploads(bench, args):
    import grpc
    from timbre_server import connect, request_of, stubs
    from timbre_program import voice, wav_bytes
    tokens = bench.scratch.name + "/tokens"
    with open(tokens, "w", encoding="ascii") as f:
        f.write(f"bench {hashlib.sha256(b'right').hexdigest()}\n")
    body = request_of(bytes(int(args.megabytes * MB)))
    small = request_of(wav_bytes(voice(1, 1.0)))

    def call(request, token):
        with connect(server.grpc, max_send_message_length=-1) as channel:
            start = time.monotonic()
            try:
                stubs().timbre_grpc.TimbreStub(channel).Predict(
                    request, timeout=60, metadata=[("authorization", f"Bearer {token}")])
                code = grpc.StatusCode.OK
            except grpc.RpcError as e:
                code = e.code()
            return code, (time.monotonic() - start) * 1e3

    with bench.server("--token-file", tokens, model=bench.model("golden/base")) as server:
        assert call(small, "right")[0] == grpc.StatusCode.OK
        for name, count, at_once in (("one_by_one", REFUSALS, 1), ("at_once", AT_ONCE, AT_ONCE)):
            time.sleep(0.5)
            server.reset_peak_rss()
            before = server.rss_bytes()
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                answers = list(pool.map(lambda _: call(body, "wrong"), range(count)))
            grown = server.peak_rss_bytes() - before
            wrong = {code.name for code, _ in answers} - {"UNAUTHENTICATED"}
            assert not wrong, f"answered {wrong}"
            slowest = max(ms for _, ms in answers)
            bench.say(f"refused_upload_growth_mb_{name}", grown / MB, "MB", at_most=20,
                      note=f"{count} of {args.megabytes:g} MB, UNAUTHENTICATED, the slowest after {slowest:.0f} ms")
        assert call(small, "right")[0] == grpc.StatusCode.OK


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=60)
    args = parser.parse_args()
    raise_open_files(args.connections + SPARE_FILES)
    with harness.Bench(args) as bench:
        idle_connections(bench, args)
        refused_uploads(bench, args)
        return bench.status()


if __name__ == "__main__":
    sys.exit(main())
