#!/usr/bin/env python3
"""Writes emodb_default.json: transformers' logits of the shipped model for every EMO-DB clip, each alone, fp32.

usage: make_emodb.py --data DIR_WITH_labels.csv    (needs torch, transformers, soundfile)
"""

import argparse
import csv
import json
import pathlib

import soundfile
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "../shared/data/emodb")
    args = parser.parse_args()
    folder = ROOT / "models/default"
    model = Wav2Vec2ForSequenceClassification.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    logits = {}
    with open(args.data / "labels.csv", newline="", encoding="utf-8") as f:
        files = [row["file"] for row in csv.DictReader(f)]
    for file in files:
        samples, rate = soundfile.read(args.data / file, dtype="float32")
        inputs = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
        with torch.inference_mode():
            logits[file] = [float(v) for v in model(inputs).logits[0]]
    lines = [f'  "{file}": {json.dumps(values)}' for file, values in logits.items()]
    labels = [model.config.id2label[i] for i in range(len(model.config.id2label))]
    text = '{"labels": ' + json.dumps(labels) + ',\n "logits": {\n' + ",\n".join(lines) + "\n }}\n"
    (ROOT / "tests/golden/emodb_default.json").write_text(text)


if __name__ == "__main__":
    main()
