#!/usr/bin/env python3
"""Makes the golden checkpoints: tiny random models in Hugging Face folders, and their logits by transformers.

usage: make_goldens.py [CASE...]     (all cases when none is named; see README.md for what it needs)
"""

import argparse
import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers

import golden_cases
import golden_check
import golden_clips
import golden_files
import golden_models

HERE = Path(__file__).resolve().parent
TRANSFORMERS = "4.57."
TOLERANCE = 1e-4
NOISE_MAX = 1e-5
HEAD_NAMES = {
    "stock": "projector + classifier",
    "speech": "dense + tanh + out_proj",
    "speech_hubert": "dense + tanh + out_proj",
    "age_gender": "age and gender, each dense + tanh + out_proj",
    "dense_output": "dense + output",
}


def min_samples(case):
    """The fewest samples that give one frame."""
    n = 1
    for kernel, stride in zip(reversed(case.config["conv_kernel"]), reversed(case.config["conv_stride"])):
        n = (n - 1) * stride + kernel
    return n


def numbers(values):
    """fp32 values as JSON numbers that read back to the same float."""
    return [float(f"{float(v):.9g}") for v in values]


def labels_of(case):
    if case.labels is not None:
        return case.labels
    return [str(v) for _, v in sorted(case.config["id2label"].items())]


def load_as_users_do(folder, model, case):
    """The folder through from_pretrained: what it holds must be complete, and must be the model."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    extra = {name for name in info["unexpected_keys"] if name not in case.extra}
    missing = [name for name in info["missing_keys"] if not name.endswith("masked_spec_embed")]
    if missing or info["mismatched_keys"] or extra:
        raise SystemExit(f"{case.name}: transformers does not load the folder whole: {info}")
    loaded.set_attn_implementation("eager")
    settings = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder) if case.preprocessor else None
    if settings and settings.do_normalize != case.do_normalize:
        raise SystemExit(f"{case.name}: transformers reads another do_normalize")
    return loaded.eval()


def expected(model, case, clips):
    """What goes into expected.json."""
    results, noise = golden_models.compute(model, case, clips)
    out = {
        "about": case.about,
        "family": case.family,
        "head": HEAD_NAMES[case.head],
        "labels": labels_of(case),
        "output": case.output,
        "do_normalize": case.do_normalize,
        "min_samples": min_samples(case),
        "tolerance": TOLERANCE,
        "logits": {clip: numbers(logits) for clip, (_, logits) in results.items()},
        "embedding": {clip: numbers(h) for clip, (h, _) in results.items()},
        "notes": {"fp32_minus_fp64": float(f"{noise:.1e}")},
    }
    if case.head == "dense_output":
        out["head_activation"] = {}
        for name, f in (("tanh", torch.tanh), ("relu", torch.relu)):
            values = golden_models.compute(model, case, clips, activation=f)[0]
            out["head_activation"][name] = {clip: numbers(logits) for clip, (_, logits) in values.items()}
    return out


def dump(path, value):
    """JSON with one line for each list of numbers."""
    lists = []

    def hide(v):
        if isinstance(v, dict):
            return {k: hide(x) for k, x in v.items()}
        if isinstance(v, list):
            lists.append(json.dumps(v, ensure_ascii=False))
            return f"@{len(lists) - 1}@"
        return v

    text = json.dumps(hide(value), indent=2, ensure_ascii=False)
    for i, line in enumerate(lists):
        text = text.replace(f'"@{i}@"', line)
    path.write_text(text + "\n")


def warn_if_weak(case, notes):
    """Says where a golden would not see a mistake, or where its own noise is too large."""
    if notes["fp32_minus_fp64"] > NOISE_MAX:
        print(f"{case.name}: fp32 noise {notes['fp32_minus_fp64']:.1e} is over {NOISE_MAX}", file=sys.stderr)
    for mistake, move in notes["moves"].items():
        if move < TOLERANCE and ("eps" not in mistake or case.name.startswith("eps")):
            print(f"{case.name}: {mistake}: moves the logits by {move:.1e} only", file=sys.stderr)


def make(case):
    """Writes one case's folder; returns its size and expected.json."""
    folder = HERE / case.name
    if folder.exists():
        shutil.rmtree(folder)
    model = golden_models.make_model(case)
    golden_files.write_folder(folder, model, case)
    if case.transformers_loads:
        model = load_as_users_do(folder, model, case)
    clips = {
        n: golden_clips.make(n) for n in golden_clips.NAMES if golden_clips.length(n) >= min_samples(case)
    }
    clips = {n: c for n, c in clips.items() if n not in case.skip_clips}
    result = expected(model, case, clips)
    result["notes"]["moves"] = golden_check.moves(model, case, clips)
    warn_if_weak(case, result["notes"])
    dump(folder / "expected.json", result)
    return sum(f.stat().st_size for f in folder.iterdir()), result


def write_versions():
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    if not transformers.__version__.startswith(TRANSFORMERS):
        raise SystemExit(
            f"transformers {transformers.__version__}: the goldens are made with {TRANSFORMERS}*"
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    golden_clips.write(HERE / "clips")
    table = {case.name: case for case in golden_cases.all_cases()}
    unknown = [name for name in options.cases if name not in table]
    if unknown:
        raise SystemExit(f"no such case: {', '.join(unknown)}")
    total = 0
    for name in options.cases or table:
        size, result = make(table[name])
        total += size
        spread = max(np.ptp(column) for column in zip(*result["logits"].values()))
        noise = result["notes"]["fp32_minus_fp64"]
        print(f"{name:22} {size / 1e3:6.0f} kB  noise {noise:.0e}  clips differ by {spread:.2f}")
    write_versions()
    print(f"{total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
