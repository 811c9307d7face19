#!/usr/bin/env python3
"""Makes what a peer runs of a model's folder: exported, converted, quantised. Kept in a folder between runs.

usage: convert.py FORM --model DIR --cache DIR [--calibration DIR]

FORM is one of onnx-fp32, onnx-int8, openvino-fp32, openvino-int8.
"""
import argparse
import hashlib
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import columns

PACKAGES = {"onnx": ["torch", "transformers", "onnx", "onnxruntime"],
            "openvino": ["torch", "transformers", "openvino", "nncf"]}
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}


def find(form, model_dir, cache, calibration=None):
    """Path of a form in the cache, there or not: of this model, these versions and, when quantised, this audio."""
    library, _, precision = form.partition("-")
    key = hashlib.sha256()
    for path in sorted(Path(model_dir).iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin"):
            with open(path, "rb") as f:
                key.update(hashlib.file_digest(f, "sha256").digest())
    for package in PACKAGES[library]:
        key.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    if precision == "int8":
        key.update(str(calibration and os.path.abspath(calibration)).encode())
        key.update(Path(__file__).read_bytes())
    return Path(cache) / key.hexdigest()[:16] / form / FILES[library]


def load_torch(model_dir, attention):
    from transformers import Wav2Vec2ForSequenceClassification
    return Wav2Vec2ForSequenceClassification.from_pretrained(model_dir, attn_implementation=attention).eval()


def make_onnx_fp32(args, path):
    import torch
    axes = {"input_values": {0: "batch", 1: "samples"}}
    torch.onnx.export(load_torch(args.model, "eager"), (torch.randn(1, columns.RATE_HZ),), str(path),
                      input_names=["input_values"], output_names=["logits"], dynamic_axes=axes, opset_version=17,
                      dynamo=False)


def make_onnx_int8(args, path):
    """Ranges of activations are found at each run. The convolutions stay fp32: ConvInteger is slower than Conv."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(make("onnx-fp32", args), path, weight_type=QuantType.QInt8, per_channel=True,
                     op_types_to_quantize=["MatMul", "Gemm"])


def make_openvino_fp32(args, path):
    import openvino
    import torch
    with torch.no_grad():
        model = openvino.convert_model(load_torch(args.model, "sdpa"), example_input=torch.randn(2, columns.RATE_HZ))
    model.reshape([-1, -1])
    openvino.save_model(model, path, compress_to_fp16=False)


def make_openvino_int8(args, path):
    import nncf
    import openvino
    clips = columns.calibration(args.calibration, args.model)
    model = nncf.quantize(openvino.Core().read_model(make("openvino-fp32", args)), nncf.Dataset(clips),
                          subset_size=len(clips), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(model, path, compress_to_fp16=False)


def make(form, args):
    """The path of a form, made when it is not there. What was cut off is not taken for whole."""
    path = find(form, args.model, args.cache, args.calibration)
    if not path.exists():
        part = path.parent.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        globals()["make_" + form.replace("-", "_")](args, part / path.name)
        part.rename(path.parent)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--calibration", help="a folder of WAV or FLAC files of 16 kHz; default: synthetic voices")
    args = parser.parse_args()
    print(make(args.form, args))


if __name__ == "__main__":
    sys.exit(main())
