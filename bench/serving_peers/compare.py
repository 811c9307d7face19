"""Timbre, FastAPI and LitServe on the same files, in turns: `bench/serving.py peers`.

A round gives each server the same list of WAV files, with so many in flight (a closed loop), and lasts until the last
answer. The client is one process for all of them, and tells how much of a processor it used.
"""
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import harness
import httpx

HERE = Path(__file__).resolve().parent
READY_S_MAX = 120
CALL_S_MAX = 600
ONE_CLIENT_CLIPS = 16
GAP_MAX = 1e-4  # of a score, alone: the same weights and the same samples
CONCURRENCIES = (1, 64)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Http:
    """A server of HTTP in a process of its own."""

    def __init__(self, name, command, env):
        self.name, self.port = name, free_port()
        self.command = [str(c).replace("PORT", str(self.port)) for c in command]
        self.env = {**os.environ, **env}

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + READY_S_MAX
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return self
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                sys.exit(f"{self.name} did not start")
            time.sleep(0.2)

    def __exit__(self, *rest):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: it starts processes itself
        self.process.wait()

    @contextlib.asynccontextmanager
    async def connect(self, concurrency):
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        async with httpx.AsyncClient(limits=limits, timeout=CALL_S_MAX) as client:
            async def call(wav):
                answer = await client.post(f"http://127.0.0.1:{self.port}/predict",
                                           files={"file": ("clip.wav", wav, "audio/wav")})
                answer.raise_for_status()
                return [r["score"] for r in answer.json()["results"]]
            yield call


class Timbre:
    name = "Timbre"

    def __init__(self, server):
        self.server = server

    @contextlib.asynccontextmanager
    async def connect(self, concurrency):
        import grpc
        from timbre_server import stubs
        messages = stubs().timbre
        async with grpc.aio.insecure_channel(self.server.grpc) as channel:
            stub = stubs().timbre_grpc.TimbreStub(channel)

            async def call(wav):
                answer = await stub.Predict(messages.PredictRequest(audio=wav), timeout=CALL_S_MAX)
                assert answer.status == messages.ANSWER_STATUS_OK, answer
                return [s.score for s in answer.scores]
            yield call


async def run_list(target, wavs, concurrency):
    """(seconds for all, ms of each, scores of each, processors that this client used)."""
    latencies, scores, left = [0.0] * len(wavs), [None] * len(wavs), iter(range(len(wavs)))

    async def work(call):
        for i in left:
            start = time.perf_counter()
            scores[i] = await call(wavs[i])
            latencies[i] = (time.perf_counter() - start) * 1e3

    async with target.connect(concurrency) as call:
        await call(wavs[0])  # opens a connection
        start, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(call) for _ in range(concurrency)))
        elapsed = time.perf_counter() - start
        return elapsed, latencies, scores, (time.process_time() - used) / elapsed


def gap(a, b):
    return max(abs(x - y) for one, other in zip(a, b) if one and other for x, y in zip(one, other))


def warm_up(targets, wavs):
    """What each answers alone; ends the program when they are not the same model."""
    alone = {t.name: asyncio.run(run_list(t, wavs[:ONE_CLIENT_CLIPS], 1))[2] for t in targets}
    for t in targets[1:]:
        difference = gap(alone[t.name], alone[targets[0].name])
        print(f"{t.name}: largest difference of a score from {targets[0].name}'s, alone: {difference:.1e}")
        if difference > GAP_MAX:
            sys.exit("not the same model: nothing was timed")
    return alone


def print_table(rows):
    print("\n| | in flight | audio s / s | of Timbre's | p50 ms | p99 ms | a score changed by company | client |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['name']} | {r['concurrency']} | {r['audio_s_per_s']:.1f} | {r['of_ours']:.2f} | {r['p50_ms']:.0f} | "
              f"{r['p99_ms']:.0f} | {r['score_gap']:.0e} | {100 * r['client']:.0f} % |")


def time_them(targets, wavs, seconds, rounds, alone):
    rows = []
    for concurrency in CONCURRENCIES:
        count = len(wavs) if concurrency > 1 else min(ONE_CLIENT_CLIPS, len(wavs))
        runs = {t.name: [] for t in targets}
        for r in range(rounds):
            for t in targets[r % len(targets):] + targets[:r % len(targets)]:
                runs[t.name].append(asyncio.run(run_list(t, wavs[:count], concurrency)))
                print(f"  round {r + 1}, {concurrency} in flight, {t.name}: {runs[t.name][-1][0]:.1f} s", flush=True)
        rate = {name: sum(seconds[:count]) / harness.median([x[0] for x in done]) for name, done in runs.items()}
        for t in targets:
            latencies = [ms for x in runs[t.name] for ms in x[1]]
            rows.append({"name": t.name, "concurrency": concurrency, "audio_s_per_s": rate[t.name],
                         "of_ours": rate[t.name] / rate[targets[0].name], "p50_ms": harness.quantile(latencies, 0.5),
                         "p99_ms": harness.quantile(latencies, 0.99), "client": max(x[3] for x in runs[t.name]),
                         "score_gap": max(gap(x[2], alone[t.name]) for x in runs[t.name])})
    return rows


def run(bench, args):
    from timbre_program import wav_bytes
    model = bench.model(args.model).resolve()
    seconds = harness.lengths_of(args.clips, 1, 10)
    wavs = [wav_bytes(samples) for samples in harness.clips_of(seconds)]
    env = {"MODEL_DIR": str(model), "THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads),
           "BATCH": str(args.batch), "PYTHONWARNINGS": "ignore"}
    fastapi = Http("FastAPI", [sys.executable, "-m", "uvicorn", "--app-dir", HERE, "fastapi_app:app", "--port", "PORT",
                               "--log-level", "warning"], env)
    litserve = Http(f"LitServe, batches of {args.batch}", [sys.executable, HERE / "litserve_app.py", "PORT"], env)
    with bench.server("--threads", args.threads, model=model) as server, fastapi, litserve:
        targets = [Timbre(server), fastapi, litserve]
        alone = warm_up(targets, wavs)
        rows = time_them(targets, wavs, seconds, args.rounds, alone)
    bench.figures["peers"] = rows
    print_table(rows)
