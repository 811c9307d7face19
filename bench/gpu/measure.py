#!/usr/bin/env python3
"""The parts of bench/gpu.sh, which sets the scene and explains the status.

usage: measure.py --build FOLDER --out FOLDER --seconds S [--rehearsal] [PART...]
"""

import argparse
import csv
import io
import json
import math
import os
import random
import shutil
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "tests/gpu"))

import pages  # noqa: E402
import suite as checks  # noqa: E402
from report import Failure, NotRun, Suite, find_facts  # noqa: E402

WORKLOADS = ("1x1", "1x3", "1x10", "8x10", "32x10", "128x10", "mixed:32")
FEW = ("1x10", "32x10", "mixed:32")
TINY = ("1x0.2", "3x0.1")


def workloads(suite, names=WORKLOADS):
    return TINY if suite.rehearsal else names


# ---- the machine ----


def part_peaks(suite):
    program = suite.build / "bench/bench_gpu_peak"
    if suite.rehearsal or not program.exists():
        raise NotRun("there is no GPU to have a peak" if suite.rehearsal else "this build has no bench_gpu_peak")
    peaks = suite.check(suite.run([program])).lines()[0]
    return (f"copy {peaks['copy_gb_s']:.0f} GB/s, bf16 {peaks['bf16_tflops']:.0f} TF/s, fp32 {peaks['fp32_tflops']:.1f} TF/s"), peaks


# ---- operations ----


def part_laboratory(suite, precision, *more):
    size = ["--tiny", "--budget", "0.001"] if suite.rehearsal else []
    output = suite.run([suite.build / "bench/bench_gpu_lab", "--precision", precision, *size, *more])
    lines = output.lines()
    wrong = [line for line in lines if line["status"] != "ok"]
    if wrong:
        raise Failure("wrong, and so not timed: " + "; ".join(f"{w['name']}: {w['error']:.3g} from ref" for w in wrong),
                      {"lines": lines})
    if output.status is None and lines:
        return f"{len(lines)} lines, all right; stopped when time was up", {"lines": lines}
    suite.check(output)
    return f"{len(lines)} lines, all right; the worst is {max(line['error'] for line in lines):.2g} from ref", {"lines": lines}


# ---- the forward pass ----


def time_forward(suite, options, names, env=None, budget=1.5):
    """{workload: answer}; those of several workers under "workload, workers"."""
    short = ["--rounds", "3", "--budget", "0.1"] if suite.rehearsal else ["--rounds", "300", "--budget", str(budget)]
    output = suite.run(checks.core(suite, "time", *options, *short, checks.base_folder(suite), *names), env=env)
    found = {}
    for a in output.lines():
        if a["status"] != "ok":
            raise Failure(a["message"])
        found[a["workload"] + (f", {a['workers']} workers" if "workers" in a else "")] = a
    if not found or (output.status is not None and output.status != 0):
        suite.check(output)
    return found


def part_forward(suite, precision, *more):
    """Verified beside the CPU first (a clip's bits do not depend on its company: `time` checks that itself)."""
    checks.part_agree(suite, precision, checks.DEFAULT_WAYS)
    found = time_forward(suite, ["--device", "cuda", "--precision", precision, *more], workloads(suite))
    first = next(iter(found.values()))
    last = list(found.values())[-1]
    text = ", ".join(f"{a['workload']}: {a['median_ms']:.3f} ms" for a in (first, last))
    return f"{text}; {1e3 * last['median_ms'] / last['audio_s']:.1f} us a second of audio", found


def part_settings(suite, settings):
    """[(name, options, environment)], timed one after the other, the first twice, so that what moves by itself is seen."""
    found = {}
    for name, options, env in [*settings, (f"{settings[0][0]}, again", *settings[0][1:])]:
        if suite.time_left() < 3:
            break
        try:
            found[name] = time_forward(suite, ["--device", "cuda", *options], workloads(suite, FEW), env, 0.7)
        except Failure as why: # a way that this machine does not have is an answer
            found[name] = {"error": str(why.args[0]).splitlines()[0]}
    return pages.describe_settings(found), found


def list_settings():
    bf16 = ["--precision", "bf16"]
    way = {f"{conv}, {attention}": [*bf16, "--cuda-conv", conv, "--cuda-attention", attention]
           for conv, attention in [checks.DEFAULT_WAYS, *checks.OTHER_WAYS]}
    return {
        "gemm or cudnn, fused or cublas": [(name, options, {}) for name, options in way.items()],
        "overlapping rows": [("as the library is found", bf16, {}), ("two products", bf16, {"TIMBRE_CUDA_OVERLAP": "0"}),
                             ("one product", bf16, {"TIMBRE_CUDA_OVERLAP": "1"})],
        "plans for how many rows": [(f"{rows} rows", bf16, {"TIMBRE_CUDA_PLAN_ROWS": str(rows)})
                                    for rows in (1024, 256, 512, 2048, 8192)],
        "graphs": [("graphs", bf16, {}), ("eager", [*bf16, "--eager"], {})],
        "workers": [("two workers", [*bf16, "--workers", "2"], {}), ("three workers", [*bf16, "--workers", "3"], {})],
    }


# ---- PyTorch ----


def make_clip_files(suite):
    """Three clips as files, and what we say of them in fp32."""
    rng, paths = random.Random(1), []
    for seconds in (0.1, 0.3) if suite.rehearsal else (1, 3, 10):
        path = suite.out / f"clip-{seconds}.f32"
        n = int(seconds * 16000)
        path.write_bytes(struct.pack(f"<{n}f", *(0.1 * math.sin(i * i * 1e-5) + rng.uniform(-0.05, 0.05) for i in range(n))))
        paths.append(path)
    output = suite.run(checks.core(suite, "predict", "--device", "cuda", "--precision", "fp32", checks.base_folder(suite), *paths))
    checks.answers(suite, output)
    return paths, output.out


def part_torch(suite, way, names):
    forward = suite.forward.get("bf16")
    if not forward:
        raise NotRun("our own forward was not timed, so there is nothing to compare with")
    env = {"LD_LIBRARY_PATH": os.environ.get("TIMBRE_PLAIN_LIBRARY_PATH", "")}
    probe = suite.run([suite.python, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"], env=env, limit=90)
    if probe.status != 0 or ("True" not in probe.out and not suite.rehearsal):
        raise NotRun(f"no PyTorch that sees a GPU: {(probe.out + probe.err).strip()[-200:]}")
    paths, said = make_clip_files(suite)
    check_path, load_path = suite.out / "torch-check.jsonl", suite.out / "torch-workloads.json"
    check_path.write_text(said, encoding="utf-8")
    load_path.write_text(json.dumps({n: forward[n]["samples"] for n in workloads(suite, names) if n in forward}), encoding="utf-8")
    budget = ["--budget", "0.1", "--device", "cpu"] if suite.rehearsal else []
    output = suite.run([suite.python, ROOT / "bench/gpu/torch_peer.py", checks.base_folder(suite), "--way", way, "--check", check_path,
                        "--workloads", load_path, *budget], env=env)
    for path in (*paths, check_path, load_path):
        path.unlink()
    lines = output.lines()
    timed = {line["workload"]: line for line in lines if "workload" in line}
    if not timed:
        suite.check(output, "torch_peer.py")
        raise Failure("it timed nothing\n" + output.tail())
    ours = suite.forward["fp32" if way == "eager-fp32" else "bf16"] or {}
    for name, line in timed.items():
        if name in ours:
            line["ours_ms"] = ours[name]["median_ms"]
            line["ratio"] = line["median_ms"] / ours[name]["median_ms"]
    ended = "" if output.status == 0 else f"; ended early ({'time' if output.status is None else f'status {output.status}'})"
    ratios = ", ".join(f"{n}: {line['ratio']:.2f}" for n, line in timed.items() if "ratio" in line)
    return f"PyTorch's time over ours: {ratios}{ended}", {"check": lines[0], "timed": timed}


# ---- where the time goes ----


def part_timeline(suite):
    """Times of the kernels of one batch of ten clips of 10 s, by Nsight Compute: each on its own, caches as they are."""
    ncu = shutil.which("ncu")
    if suite.rehearsal or not ncu:
        raise NotRun("Nsight Compute (ncu) is not on this machine: the laboratory's times have to do")
    path = suite.out / "ten.f32"
    rng = random.Random(2)
    path.write_bytes(struct.pack("<160000f", *(rng.uniform(-0.1, 0.1) for _ in range(160000))))
    output = suite.run([ncu, "--csv", "--metrics", "gpu__time_duration.sum", "--clock-control", "none", "--cache-control", "none",
                        *checks.core(suite, "predict", "--device", "cuda", "--precision", "bf16", "--eager",
                                     checks.base_folder(suite), *[path] * 10)])
    path.unlink()
    rows = read_ncu(output.out)
    if not rows:
        raise NotRun(f"ncu gave no times: {output.tail()[-300:]}")
    kernels = {}
    for name, us in rows:
        entry = kernels.setdefault(name, [0, 0.0])
        entry[0] += 1
        entry[1] += us
    order = sorted(kernels.items(), key=lambda item: -item[1][1])
    total = sum(us for _, us in rows)
    return f"{len(rows)} kernels, {total / 1e3:.2f} ms for 100 s of audio", {
        "total_us": total, "kernels": [{"name": n, "launches": k, "us": us} for n, (k, us) in order]}


def read_ncu(text):
    """(kernel, microseconds) of each launch of the last batch, which begins with the input norm."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    scale = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1, "us": 1, "msecond": 1e3, "ms": 1e3, "second": 1e6, "s": 1e6}
    rows = []
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        try:
            us = float(row["Metric Value"].replace(",", "")) * scale[row["Metric Unit"]]
        except (KeyError, ValueError, AttributeError):
            continue
        rows.append((row["Kernel Name"].split("(")[0][:70], us))
    firsts = [i for i, (name, _) in enumerate(rows) if "sum_chunks" in name]
    return rows[firsts[-1]:] if firsts else rows


# ---- all ----


def run_parts(suite, wanted):
    def part(name, limit, function, *arguments):
        if not wanted or any(name.startswith(w) for w in wanted):
            return suite.part(name, limit, function, *arguments)
        return None

    suite.peaks = part("peaks", 30, part_peaks)
    suite.forward["bf16"] = part("forward bf16", 70, part_forward, "bf16")
    part("laboratory bf16", 150, part_laboratory, "bf16")
    part("PyTorch SDPA bf16", 75, part_torch, "sdpa-bf16", WORKLOADS)
    settings = list_settings()
    for name in ("graphs", "gemm or cudnn, fused or cublas", "overlapping rows", "plans for how many rows", "workers"):
        part(f"settings: {name}", 80, part_settings, settings[name])
    part("timeline", 60, part_timeline)
    suite.forward["fp32"] = part("forward fp32", 60, part_forward, "fp32")
    part("PyTorch eager fp32", 60, part_torch, "eager-fp32", FEW)
    part("PyTorch compile bf16", 120, part_torch, "compile-bf16", FEW)
    part("recordings", 30, checks.part_recordings)
    part("laboratory cudnn", 60, part_laboratory, "bf16", "--only", "conv", "--cuda-conv", "cudnn")
    part("laboratory cublas", 40, part_laboratory, "bf16", "--only", "attention,", "--cuda-attention", "cublas")
    part("laboratory fp32", 90, part_laboratory, "fp32")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--python", default=sys.executable, help="one that may have PyTorch")
    parser.add_argument("parts", nargs="*", help="beginnings of the names of parts; all by default")
    args = parser.parse_args()
    suite = Suite("bench", "The CUDA backend, measured", args.out, args.seconds, args.rehearsal)
    suite.build, suite.python, suite.forward, suite.peaks = args.build, args.python, {}, None
    suite.facts = find_facts(suite, args.build)
    run_parts(suite, args.parts)
    suite.pages = pages.write_pages(suite)
    sys.exit(suite.finish())


if __name__ == "__main__":
    main()
