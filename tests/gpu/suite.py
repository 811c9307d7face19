#!/usr/bin/env python3
"""The parts of tests/gpu.sh, which sets the scene and explains the status.

usage: suite.py --build FOLDER --out FOLDER --seconds S [--rehearsal] [PART...]
"""

import argparse
import json
import math
import shutil
import statistics
import sys
from pathlib import Path

GOLDEN = Path("tests/golden")
CLIPS, MODELS = Path("build/gpu-clips"), Path("build/gpu-models")
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "golden"))

import base_model  # noqa: E402
from report import Failure, NotRun, Suite, find_facts, table  # noqa: E402
from tolerances import BF16_EMBEDDING, BF16_LOGIT, BF16_MIDDLE  # noqa: E402

# wav2vec2-base with random weights, beside our own CPU path: of a logit, and of the embedding's root of mean squares.
BASE_FP32, BASE_BF16 = 1e-4, 0.05

QUIET = ("quiet", "silence") # clips that the middle of all cases is not told of, as in the end-to-end tests

DEFAULT_WAYS = ("gemm", "fused")
OTHER_WAYS = [("gemm", "cublas"), ("cudnn", "fused"), ("cudnn", "cublas")]
# cuDNN compiles for about a second for each shape of a convolution, so it sees a few goldens of every kind.
CUDNN_GOLDENS = ("base", "large", "sizes_real", "layer_post")


def core(suite, *arguments):
    return [suite.build / "bench/timbre_core", *arguments]


def options(precision, ways=DEFAULT_WAYS, *more):
    return ["--device", "cuda", "--precision", precision, "--cuda-conv", ways[0], "--cuda-attention", ways[1], *more]


def answers(suite, output):
    """The objects a program printed, all of them well."""
    suite.check(output)
    found = output.lines()
    wrong = [a for a in found if a.get("status") != "ok"]
    if not found or wrong:
        raise Failure(f"{wrong[0].get('message') if wrong else 'no answer'}\n{output.tail()}")
    return found


# ---- goldens ----


def golden_cases(names=None):
    """{folder: expected}"""
    cases = {}
    for path in sorted(GOLDEN.glob("*/expected.json")):
        if names is None or path.parent.name in names:
            cases[str(path.parent)] = json.loads(path.read_text(encoding="utf-8"))
    return cases


def golden_jobs(cases):
    """{(folder, head activation, clip): logits}"""
    jobs = {}
    for folder, expected in cases.items():
        for activation, logits in [("-", expected["logits"]), *expected.get("head_activation", {}).items()]:
            for clip, values in logits.items():
                jobs[folder, activation, str(GOLDEN / "clips" / f"{clip}.f32")] = values
    return jobs


def logit_error(answer, values):
    """The largest, and the same as a part of 1 + the largest logit."""
    if len(answer["logits"]) != len(values) or None in answer["logits"]:
        return math.inf, math.inf
    largest = max(abs(x - y) for x, y in zip(answer["logits"], values))
    return largest, largest / (1 + max(map(abs, values)))


def golden_error(answer, expected, values, precision):
    """How much of what is allowed a clip's error is: over 1 is wrong."""
    largest, relative = logit_error(answer, values)
    part = largest / expected["tolerance"] if precision == "fp32" else relative / BF16_LOGIT
    clip = Path(answer["file"]).stem
    embedding = expected.get("embedding", {}).get(clip)
    if embedding and answer["head_activation"] == "-":
        if len(answer["embedding"]) != len(embedding) or None in answer["embedding"]:
            return math.inf
        errors = [x - y for x, y in zip(answer["embedding"], embedding)]
        if precision == "fp32":
            part = max(part, max(map(abs, errors)) / expected["tolerance"])
        else:
            rms = math.sqrt(sum(e * e for e in errors) / sum(y * y for y in embedding))
            part = max(part, rms / BF16_EMBEDDING)
    return part


def run_jobs(suite, jobs, arguments):
    """Answers by job. A process that dies, or loses its GPU, is followed by one for what is left."""
    left, found, said = dict(jobs), {}, []
    for _ in range(5):
        lines = {}
        for folder, activation, clip in left:
            lines.setdefault((folder, activation), []).append(clip)
        text = "".join("\t".join([*key, *clips]) + "\n" for key, clips in lines.items())
        output = suite.run(core(suite, "predict", *arguments, "--jobs", "-"), stdin=text)
        suite.check_time(output, f"predict, with {len(output.lines())} clips answered of {len(left)},")
        done = set()
        for answer in output.lines():
            if answer["status"] == "ok":
                found[answer["model"], answer["head_activation"], answer["file"]] = answer
            else:
                said.append(f"{answer['model']}: {answer['message']}")
                if not answer["lost"]:
                    done |= {key for key in left if key[0] == answer["model"]}
        if output.status not in (0, 1):
            said.append(f"ended with status {output.status}: {output.tail()[-500:]}")
        rest = {key: values for key, values in left.items() if key not in found and key not in done}
        if not rest or len(rest) == len(left):
            break
        left = rest
    return found, said


def part_goldens(suite, precision, ways, names):
    cases = golden_cases(names)
    jobs = golden_jobs(cases)
    found, said = run_jobs(suite, jobs, options(precision, ways, "--eager"))
    worst, logits = {}, {}
    for key, values in jobs.items():
        part = golden_error(found[key], cases[key[0]], values, precision) if key in found else math.inf
        name = Path(key[0]).name
        worst[name] = max(worst.get(name, 0), part if part == part else math.inf)
        if key in found and key[1] == "-" and not Path(key[2]).stem.startswith(QUIET):
            logits[name] = max(logits.get(name, 0), logit_error(found[key], values)[1])
    order = sorted(worst, key=worst.get, reverse=True)
    middle = statistics.median(logits.values()) if logits else math.inf
    details = {"clips": len(jobs), "answered": len(found), "middle": middle,
               "part_of_tolerance": {n: round(worst[n], 4) for n in order}}
    wrong = [name for name in order if not worst[name] <= 1]
    if precision == "bf16" and names is None and not middle <= BF16_MIDDLE:
        wrong.append(f"the case in the middle: {middle:.3g}, allowed {BF16_MIDDLE}")
    if wrong or said:
        raise Failure(f"{len(wrong)} of {len(cases)} goldens are wrong: {', '.join(wrong)}\n" + "\n".join(said[:20]), details)
    return (f"{len(cases)} goldens, {len(jobs)} clips; the worst, {order[0]}, is {100 * worst[order[0]]:.0f} % of what is allowed; "
            f"logits in the middle {middle:.2g}"), details


def part_graphs(suite):
    """One golden in the way that it runs by default: through graphs."""
    names = ("base",) if suite.rehearsal else ("base", "large", "hubert_base", "head_age_gender", "weighted_pre")
    cases = golden_cases(names)
    jobs = golden_jobs(cases)
    found, said = run_jobs(suite, jobs, options("fp32"))
    wrong = [key for key, values in jobs.items()
             if key not in found or not golden_error(found[key], cases[key[0]], values, "fp32") <= 1]
    if wrong or said:
        raise Failure(f"wrong: {wrong}\n" + "\n".join(said))
    return f"{len(cases)} goldens through CUDA graphs", None


# ---- operations ----


def part_units(suite):
    programs = sorted(p for p in (suite.build / "tests").glob("kernels_test_*") if p.is_file() and "." not in p.name)
    if not programs:
        raise NotRun("this build has no unit tests")
    # Over the shim they decide themselves how much they do.
    env = {} if suite.rehearsal else {"TIMBRE_TEST_GPU": "1"}
    failed, count = [], 0
    for program in programs:
        output = suite.run([program], env=env)
        suite.check_time(output, program.name)
        count += output.err.count("[       OK ]") + output.out.count("[       OK ]")
        if output.status != 0:
            failed.append(f"{program.name}: status {output.status}\n{output.tail()}")
    if failed:
        raise Failure(f"{len(failed)} of {len(programs)} programs failed\n" + "\n".join(failed))
    return f"{len(programs)} programs, {count} tests", {"programs": [p.name for p in programs], "tests": count}


# ---- the size of wav2vec2-base ----


def base_folder(suite):
    return make_model(suite.rehearsal)


def make_model(tiny):
    folder = MODELS / ("tiny" if tiny else "base")
    if not (folder / "preprocessor_config.json").exists(): # the last file of it
        base_model.main([str(folder), *(["--tiny"] if tiny else [])])
    return folder


def part_agree(suite, precision, ways):
    size = ["--clips", "4", "--longest", "0.4"] if suite.rehearsal else ["--clips", "16", "--longest", "6"]
    output = suite.run(core(suite, "agree", *options(precision, ways), *size, base_folder(suite)))
    a = answers(suite, output)[0]
    tolerance = BASE_FP32 if precision == "fp32" else BASE_BF16
    text = (f"logits {a['logits']:.2g}, embedding {a['embedding']:.2g} (rms {a['embedding_rms']:.2g} of its own) "
            f"from the CPU's; allowed {tolerance:g}")
    if not a["sane"] or a["logits"] is None or not max(a["logits"], a["embedding_rms"]) <= tolerance or a["swap"] > tolerance:
        raise Failure(text, a)
    return text, a


def part_invariance(suite, precision, ways, folder, clips, longest):
    size = ["--clips", "10", "--longest", "0.3"] if suite.rehearsal else ["--clips", clips, "--longest", longest]
    output = suite.run(core(suite, "invariance", *options(precision, ways), *size, folder))
    if output.status != 0 and output.lines() and "checks" in output.lines()[0]:
        a = output.lines()[0]
        wrong = [c for c in a["checks"] if c["different"]]
        raise Failure(f"{a['different']} clips have other bits, sane: {a['sane']}\n" + "\n".join(map(str, wrong)), a)
    a = answers(suite, output)[0]
    return f"{a['clips']} clips, {a['audio_s']} s, {len(a['checks'])} ways of company: the same bits", a


def part_processes(suite):
    """Two processes on one GPU choose the same algorithms, and so give the same bits."""
    size = ["--clips", "6" if suite.rehearsal else "40", "--longest", "0.3" if suite.rehearsal else "5"]
    digests = {}
    for precision in ("fp32", "bf16"):
        both = [answers(suite, suite.run(core(suite, "invariance", *options(precision), *size, base_folder(suite))))[0]
                for _ in range(2)]
        digests[precision] = [a["digest"] for a in both]
        if len(set(digests[precision])) != 1:
            raise Failure(f"{precision}: two processes give different bits", digests)
    return "two processes give the same bits in fp32 and in bf16", digests


# ---- faults and memory ----


def predict_small(suite, env=None, *more):
    clips = [GOLDEN / "clips" / name for name in ("n1600.f32", "n5000.f32")]
    return suite.run(core(suite, "predict", "--device", "cuda", "--batch", "1", *more, GOLDEN / "base", *clips), env=env)


def expect_error(output, code, words, lost):
    found = output.lines()
    a = found[-1] if found else {}
    right = (output.status == 1 and a.get("status") == "error" and a.get("code") == code and a.get("lost") == lost
             and all(word in a.get("message", "") for word in words))
    if not right:
        raise Failure(f"expected {code} with {words}, lost: {lost}; status {output.status}\n{output.tail()}")
    return a["message"]


def part_faults(suite):
    messages = {}
    for n in (1, 2):
        output = predict_small(suite, {"TIMBRE_CUDA_FAULT": f"batch:{n}"})
        messages[f"batch:{n}"] = expect_error(output, "UNAVAILABLE", ["IllegalAddress"], True)
    for n in range(1, 64):
        output = predict_small(suite, {"TIMBRE_CUDA_FAULT": f"memory:{n}"})
        if output.status == 0:
            break
        messages[f"memory:{n}"] = expect_error(output, "RESOURCE_EXHAUSTED", ["bytes for", "free"], False)
    if n < 4:
        raise Failure(f"only {n - 1} allocations could be made to fail", messages)
    answers(suite, predict_small(suite))
    return f"two lost devices, {n - 1} failed allocations, each one told and survived; the next process works", messages


def part_limits(suite):
    limited = expect_error(predict_small(suite, None, "--gpu-memory-limit", "1000000"), "RESOURCE_EXHAUSTED",
                           ["gpu-memory-limit", "1000000"], False)
    if suite.rehearsal:
        raise NotRun("the limit is kept; running out of memory is not tried on the host's")
    # Workers of 18 hours of audio, 70 GB each.
    output = suite.run(core(suite, "memory", "--device", "cuda", "--eager", "--clips", "2", "--rounds", "1", "--longest", "1",
                            "--workers", "40", "--worker-seconds", "65000", base_folder(suite)))
    message = expect_error(output, "RESOURCE_EXHAUSTED", ["bytes for"], False)
    answers(suite, predict_small(suite))
    return "the limit and the end of memory are told with bytes, and the next process works", {"limit": limited, "end": message}


def part_memory(suite):
    """Batches of many sizes, again and again: the GPU's free memory stays what it was."""
    found = {}
    size = ["--clips", "4", "--rounds", "2", "--longest", "0.2"] if suite.rehearsal else ["--clips", "64", "--rounds", "20"]
    for precision, more in (("fp32", []), ("bf16", []), ("bf16", ["--eager"])):
        output = suite.run(core(suite, "memory", *options(precision, DEFAULT_WAYS, *more), *size, base_folder(suite)))
        a = found[" ".join([precision, *more])] = answers(suite, output)[0]
        before, after = a["device_free_bytes"]
        if before < 0:
            raise NotRun("the driver does not tell the free memory (cuMemGetInfo)")
        if before != after:
            raise Failure(f"{before - after} bytes of the GPU's memory went in {a['rounds']} rounds", found)
    grown = {key: a["host_bytes"][1] - a["host_bytes"][0] for key, a in found.items()}
    return f"nothing of the GPU's memory went; the host's grew by {max(grown.values())} bytes", found


# ---- compute-sanitizer ----


def find_sanitizer():
    for path in (shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer",
                 "/usr/local/cuda/compute-sanitizer/compute-sanitizer"):
        if path and Path(path).exists():
            return path
    raise NotRun("compute-sanitizer is not on this machine")


def sanitize(suite, tool, command, env=None, stdin=None):
    """None when it found nothing; what it said otherwise."""
    output = suite.run([find_sanitizer(), "--tool", tool, "--error-exitcode", "97", "--print-limit", "20", *command], env=env,
                       stdin=stdin)
    said = output.out + output.err
    summary = [line for line in said.splitlines() if "SUMMARY:" in line]
    if output.status is None: # these tools slow a program down by a factor that nobody knows beforehand
        raise NotRun(f"{tool} did not end in {output.seconds:.0f} s")
    if not summary or "Device not supported" in said:
        raise NotRun(f"{tool} does not work here: {said.strip()[-400:]}")
    if output.status == 0 and all(" 0 errors" in s or "0 hazards" in s for s in summary):
        return None
    shown = [line for line in said.splitlines() if line.startswith("=====")]
    return f"{tool}: status {output.status}\n" + "\n".join(shown[:60] or [output.tail()])


def part_sanitizer(suite, tool):
    find_sanitizer()
    tiny = make_model(True) # sizes that tensor cores take
    clips = "\t".join(str(GOLDEN / "clips" / f"{name}.f32") for name in ("n400", "n1600", "n5000"))
    jobs = "".join(f"{folder}\t-\t{clips}\n" for folder in (tiny, GOLDEN / "base", GOLDEN / "large"))
    found = []
    for precision in ("bf16", "fp32"):
        said = sanitize(suite, tool, core(suite, "predict", *options(precision), "--eager", "--jobs", "-"), stdin=jobs)
        if said:
            found.append(said)
    if found:
        raise Failure("\n".join(found))
    return f"{tool} finds nothing in forward passes of three models in bf16 and fp32", None


def part_sanitizer_units(suite, tool):
    found = []
    for name in ("kernels_test_tape", "kernels_test_kernels"):
        program = suite.build / "tests" / name
        if not program.exists():
            raise NotRun("this build has no unit tests")
        said = sanitize(suite, tool, [program], env={"TIMBRE_TEST_GPU": "1"})
        if said:
            found.append(said)
    if found:
        raise Failure("\n".join(found))
    return f"{tool} finds nothing in the tests of the operations", None


# ---- recordings ----


def part_recordings(suite):
    """The shipped model on real clips: bf16 says the same as fp32 wherever the margin is over its tolerance."""
    clips = sorted(CLIPS.glob("*.wav"))
    if not clips:
        raise NotRun("no recordings were carried: scripts/gpu_pack.sh --clips FOLDER")
    results = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        output = suite.run(core(suite, "predict", "--device", device, "--precision", precision, "models/default",
                                *clips[:4 if suite.rehearsal else 64]))
        results[device, precision] = [a["logits"] for a in answers(suite, output)]
    expected = results["cpu", "fp32"]
    details = {}
    for key in (("cuda", "fp32"), ("cuda", "bf16")):
        tolerance = BASE_FP32 if key[1] == "fp32" else BASE_BF16 * 4
        error = max(abs(x - y) for a, b in zip(results[key], expected) for x, y in zip(a, b))
        swaps = [max(b) - b[a.index(max(a))] for a, b in zip(results[key], expected)]
        details[key[1]] = {"largest": error, "same_top": sum(s == 0 for s in swaps), "largest_swap": max(swaps), "clips": len(swaps)}
        if not error <= tolerance or max(swaps) > tolerance:
            raise Failure(f"{key[1]}: off by {error:.3g}, allowed {tolerance:g}", details)
    return (f"{len(expected)} clips: fp32 is off by {details['fp32']['largest']:.2g}, bf16 by {details['bf16']['largest']:.2g} "
            f"with the same label for {details['bf16']['same_top']}"), details


# ---- all ----


def list_parts(suite):
    """(name, limit in seconds, function, arguments), what matters most first."""
    base, golden = base_folder(suite), GOLDEN / "base"
    parts = [("goldens fp32", 60, part_goldens, ("fp32", DEFAULT_WAYS, None)),
             ("goldens bf16", 60, part_goldens, ("bf16", DEFAULT_WAYS, None)),
             ("goldens with graphs", 30, part_graphs, ()),
             ("operations", 150, part_units, ())]
    for precision in ("fp32", "bf16"):
        parts += [(f"base size {precision}", 45, part_agree, (precision, DEFAULT_WAYS)),
                  (f"invariance {precision}", 60, part_invariance, (precision, DEFAULT_WAYS, base, 200, 10)),
                  (f"invariance {precision}, tiny", 30, part_invariance, (precision, DEFAULT_WAYS, golden, 200, 3))]
    parts += [("two processes", 60, part_processes, ()), ("faults", 60, part_faults, ()), ("memory", 60, part_memory, ()),
              ("recordings", 30, part_recordings, ())]
    parts += [(f"compute-sanitizer {tool}", 75, part_sanitizer, (tool,)) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")]
    for precision in ("fp32", "bf16"):
        for ways in OTHER_WAYS:
            name, cudnn = f"{precision} {' '.join(ways)}", ways[0] == "cudnn"
            parts += [(f"goldens {name}", 60, part_goldens, (precision, ways, CUDNN_GOLDENS if cudnn else None)),
                      (f"base size {name}", 60, part_agree, (precision, ways)),
                      (f"invariance {name}", 75, part_invariance, (precision, ways, base, 200, 6))]
    parts += [("limits", 60, part_limits, ())]
    return parts + [(f"compute-sanitizer {tool}, operations", 90, part_sanitizer_units, (tool,))
                    for tool in ("memcheck", "racecheck", "initcheck")]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("parts", nargs="*", help="beginnings of the names of parts; all by default")
    args = parser.parse_args()
    suite = Suite("tests", "Tests of the CUDA backend", args.out, args.seconds, args.rehearsal)
    suite.build = args.build
    suite.facts = find_facts(suite, args.build)
    parts = [p for p in list_parts(suite) if not args.parts or any(p[0].startswith(a) for a in args.parts)]
    if not parts:
        sys.exit("no part has such a name")
    for name, limit, function, arguments in parts:
        suite.part(name, limit, function, *arguments)
    rows = [(p["name"], f"{p['details']['logits']:.2g}", f"{p['details']['embedding_rms']:.2g}", p["details"]["clips"])
            for p in suite.parts if p["name"].startswith("base size") and p["details"]]
    if rows:
        suite.pages.append("Beside the CPU in fp32, wav2vec2-base with random weights:\n\n" +
                           table(("", "largest error of a logit", "rms error of the embedding", "clips"), rows))
    sys.exit(suite.finish())


if __name__ == "__main__":
    main()
