#!/usr/bin/env python3
"""Times Timbre beside PyTorch and ONNX Runtime, in one run: the same weights, the same audio, the same threads.

usage: peers.py --bench PATH/bench_forward [--model DIR] [--threads 2] [--rounds 7]

First every peer's logits are compared with ours on a 3 s clip. Then the programs take turns, round by round, so that a
machine that changes its speed changes it for all; printed is the median and the best of the rounds. The mixed column is
16 clips of 1 to 10 s: for Timbre one packed batch, for the peers one padded batch and one clip after the other.
Needs torch, transformers, onnxruntime, onnx, numpy (train/requirements.txt and bench/requirements.txt).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

COLUMNS = ["1 s", "3 s", "10 s", "8 x 3 s", "16 mixed"]
MIXED_S = [1.0, 9.3, 2.4, 6.1, 3.7, 1.6, 8.2, 4.9, 2.0, 5.5, 3.1, 10.0, 1.3, 6.8, 2.7, 1.1]
RATE = 16000


def make_inputs():
    import numpy as np
    rng = np.random.default_rng(0)

    def clips(seconds):
        return [rng.standard_normal(int(s * RATE)).astype(np.float32) for s in seconds]

    return {"1 s": clips([1]), "3 s": clips([3]), "10 s": clips([10]), "8 x 3 s": clips([3] * 8),
            "16 mixed": clips(MIXED_S)}


def pad(clips):
    import numpy as np
    out = np.zeros((len(clips), max(map(len, clips))), np.float32)
    for i, clip in enumerate(clips):
        out[i, :len(clip)] = clip
    return out


class Torch:
    """PyTorch with its fused attention."""

    def __init__(self, model_dir, threads):
        import torch
        from transformers import Wav2Vec2ForSequenceClassification
        torch.set_num_threads(threads)
        self.name = f"PyTorch {torch.__version__.split('+')[0]} SDPA"
        self.torch = torch
        self.model = Wav2Vec2ForSequenceClassification.from_pretrained(model_dir, attn_implementation="sdpa").eval()

    def run(self, x):
        with self.torch.inference_mode():
            return self.model(self.torch.from_numpy(x)).logits.numpy()


class Onnx:
    """ONNX Runtime, the model exported from PyTorch."""

    def __init__(self, model_dir, threads, folder):
        import onnxruntime
        import torch
        from transformers import Wav2Vec2ForSequenceClassification
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        path = os.path.join(folder, "model.onnx")
        model = Wav2Vec2ForSequenceClassification.from_pretrained(model_dir, attn_implementation="eager").eval()
        axes = {"input_values": {0: "batch", 1: "samples"}}
        torch.onnx.export(model, (torch.randn(1, RATE),), path, input_names=["input_values"],
                          output_names=["logits"], dynamic_axes=axes, opset_version=17, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, x):
        return self.session.run(["logits"], {"input_values": x})[0]


def ours(args):
    result = subprocess.run([args.bench, args.model, "--threads", str(args.threads), "--rounds", "3", "--json"],
                            capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def check(peers, args, inputs, folder):
    """Every peer and Timbre give the same logits on the 3 s clip, or nothing is timed."""
    import numpy as np
    clip = inputs["3 s"][0]
    path = os.path.join(folder, "clip.f32")
    clip.tofile(path)
    line = subprocess.run([args.timbre, "predict", "--model", args.model, "--raw", "float32", "--json", path],
                          capture_output=True, text=True, check=True).stdout
    logits = np.array(json.loads(line)["logits"])
    normal = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    for peer in peers:
        gap = float(np.abs(peer.run(normal[None])[0] - logits).max())
        print(f"{peer.name}: largest difference of a logit {gap:.1e}")
        if gap > 1e-3:
            sys.exit("not the same model: nothing was timed")


def time_peer(peer, inputs):
    """Milliseconds of each column; two for the mixed one: padded, and one by one."""
    times = {}
    for name in COLUMNS:
        batch = pad(inputs[name])
        start = time.perf_counter()
        peer.run(batch)
        times[name] = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    for clip in inputs["16 mixed"]:
        peer.run(clip[None])
    times["one by one"] = (time.perf_counter() - start) * 1e3
    return times


def print_table(rows, peaks):
    print(f"\nFMA peak in this run: {statistics.median(peaks):.0f} GF/s; median ms (best)")
    columns = COLUMNS + ["one by one"]
    print("| | " + " | ".join(c + (" padded" if c == "16 mixed" else "") for c in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, rounds in rows.items():
        cells = []
        for c in columns:
            values = [r[c] for r in rounds if c in r]
            cells.append(f"{statistics.median(values):.0f} ({min(values):.0f})" if values else "–")
        print(f"| {name} | " + " | ".join(cells) + " |")
    first = next(iter(rows))
    for name in list(rows)[1:]:
        ratios = []
        for c in columns:
            own = "16 mixed" if c == "one by one" else c
            ratios.append(statistics.median(r[c] for r in rows[name]) / statistics.median(r[own] for r in rows[first]))
        print(f"| {name} / {first} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the built bench_forward")
    parser.add_argument("--timbre", help="the built timbre; default: found beside it")
    parser.add_argument("--model", help="a model folder; default: wav2vec2-base with random weights, made now")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    args.timbre = args.timbre or os.path.join(os.path.dirname(args.bench), "..", "cli", "timbre")
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            args.model = os.path.join(folder, "base")
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "make_model.py")
            subprocess.run([sys.executable, script, args.model], check=True)
        inputs = make_inputs()
        peers = [Torch(args.model, args.threads), Onnx(args.model, args.threads, folder)]
        check(peers, args, inputs, folder)
        rows = {"Timbre": []}
        peaks = []
        for peer in peers:
            rows[peer.name] = []
            time_peer(peer, inputs)  # warm up
        for _ in range(args.rounds):
            result = ours(args)
            peaks.append(result["peak_best"])
            rows["Timbre"].append({c: result[c]["median_ms"] for c in COLUMNS})
            for peer in peers:
                rows[peer.name].append(time_peer(peer, inputs))
        print_table(rows, peaks)


if __name__ == "__main__":
    main()
