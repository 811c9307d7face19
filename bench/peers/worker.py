#!/usr/bin/env python3
"""One peer in a process of its own: answers lines of standard input as `bench_forward --requests` does.

usage: worker.py NAME --model DIR [--form FILE] [--threads N]

NAME is one of torch-fp32, torch-bf16, onnxruntime-fp32, onnxruntime-int8, openvino-fp32, openvino-bf16, openvino-int8.
The processors it may use are those it is started on; each thread keeps to one of them.
"""
import argparse
import ctypes
import json
import os
import sys
import time

import numpy as np

import columns

LARGE_S = 60  # of audio in a batch: more, and the memory it took is given back, as all programs stay in memory


class Torch:
    """PyTorch with its fused attention. Its threads are pinned by OMP_PROC_BIND."""

    def __init__(self, args, precision):
        import torch
        from transformers import Wav2Vec2ForSequenceClassification
        torch.set_num_threads(args.threads)
        self.torch, self.type = torch, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.version = f"PyTorch {torch.__version__.split('+')[0]} SDPA"
        self.model = Wav2Vec2ForSequenceClassification.from_pretrained(args.model, attn_implementation="sdpa")
        self.model = self.model.eval().to(self.type)

    def prepare(self, batches):
        pass

    def run(self, x, alone=False):
        with self.torch.inference_mode():
            return self.model(self.torch.from_numpy(x).to(self.type)).logits.float().numpy()

    def release(self):
        ctypes.CDLL(None).malloc_trim(0)


class OnnxRuntime:
    """The CPU provider. Its pool would spin for a while after a run, into the next turn, and is told to stop."""

    def __init__(self, args, precision):
        import onnxruntime
        del precision  # the form has it
        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        processors = sorted(os.sched_getaffinity(0))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if args.threads > 1:  # the asking thread is one of them, and pins itself; it counts processors from 1
            options.add_session_config_entry("session.intra_op_thread_affinities",
                                             ";".join(str(p + 1) for p in processors[1:args.threads]))
        self.session = onnxruntime.InferenceSession(args.form, options, providers=["CPUExecutionProvider"])
        os.sched_setaffinity(0, processors[:1])

    def prepare(self, batches):
        pass

    def run(self, x, alone=False):
        return self.session.run(["logits"], {"input_values": x})[0]

    def release(self):
        import onnxruntime
        shrink = onnxruntime.RunOptions()
        shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.session.run(["logits"], {"input_values": np.zeros((1, columns.RATE_HZ), np.float32)}, shrink)


class OpenVino:
    """The CPU plugin, for latency: one stream with all threads. A column of one batch gets a model of that fixed shape,
    which is up to a tenth faster; clips of mixed lengths need the one of any shape."""

    def __init__(self, args, precision):
        import openvino
        self.version = f"OpenVINO {openvino.__version__.split('-')[0]}"
        self.core, self.form = openvino.Core(), args.form
        self.options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(args.threads),
                        "ENABLE_CPU_PINNING": True,
                        # Of a quantised model: what is left of it, where bf16 measured faster than f32.
                        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[precision]}
        self.any_shape = self.compile(None)
        self.requests = {}

    def compile(self, shape):
        model = self.core.read_model(self.form)
        if shape:
            model.reshape(list(shape))
        return self.core.compile_model(model, "CPU", self.options).create_infer_request()

    def prepare(self, batches):
        if len(batches) == 1 and batches[0].shape not in self.requests:
            self.requests[batches[0].shape] = self.compile(batches[0].shape)

    def run(self, x, alone=False):
        request = self.requests.get(x.shape, self.any_shape) if alone else self.any_shape
        return request.infer([x], share_inputs=True)[0]

    def release(self):
        for request in [self.any_shape, *self.requests.values()]:
            request.get_compiled_model().release_memory()


PROGRAMS = {"torch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def time_column(program, column, runs):
    batches = columns.batches(column)
    program.prepare(batches)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        for batch in batches:
            program.run(batch, alone=len(batches) == 1)
        times.append((time.perf_counter() - start) * 1e3)
    if sum(b.size for b in batches) / len(batches) > LARGE_S * columns.RATE_HZ:
        program.release()
    return times


def answer(program, line, model_dir):
    word, _, rest = line.partition(" ")
    if word == "time":
        runs, _, column = rest.partition(" ")
        return time_column(program, column, int(runs))
    if word == "logits":
        clip = columns.normalise(np.fromfile(rest, np.float32), model_dir)
        return program.run(clip[None].astype(np.float32))[0].tolist()
    raise ValueError(f"not a request: {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--model", required=True)
    parser.add_argument("--form", help="what convert.py made of the model")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not spoil an answer
    library, _, precision = args.name.partition("-")
    program = PROGRAMS[library](args, precision)
    print(json.dumps({"version": program.version, "precision": precision}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(program, line.rstrip("\n"), args.model)), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
