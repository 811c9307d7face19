#!/usr/bin/env python3
"""PyTorch beside Timbre on the same GPU: wav2vec2-base's forward pass written out in plain PyTorch, with the weights of the
same folder. Compares its fp32 logits with ours first, and times nothing when they differ.

usage: torch_peer.py MODEL --way eager-fp32|sdpa-bf16|compile-bf16 --check FILE --workloads FILE [--budget S] [--device D]

--check: JSON lines of `timbre_core predict`. --workloads: {"name": [samples of each clip]}. A batch of clips of different
lengths is padded to the longest, with a mask, as transformers does it. A time is from audio in pinned host memory to logits
in host memory, as ours is. One JSON object a line.
"""

import argparse
import json
import mmap
import struct
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

STRIDES = (5, 2, 2, 2, 2, 2, 2)
TOLERANCE = 1e-4


def read_weights(path):
    """The tensors of a safetensors file of float32."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", name
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            weights[name] = torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=begin).reshape(entry["shape"])
    return weights


class Peer:
    """The forward pass. `sdpa`: attention by torch's own fused kernels."""

    def __init__(self, folder, device, dtype, sdpa):
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.w = {k: v.to(device=device, dtype=dtype) for k, v in read_weights(Path(folder) / "model.safetensors").items()}
        self.device, self.dtype, self.sdpa = device, dtype, sdpa
        self.heads, self.layers = self.config["num_attention_heads"], self.config["num_hidden_layers"]

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)

    def attention(self, x, name, mask):
        b, t, h = x.shape
        q, k, v = (self.linear(x, f"{name}.{part}_proj").view(b, t, self.heads, -1).transpose(1, 2) for part in "qkv")
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(2, 3) * (h // self.heads) ** -0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            y = scores.softmax(-1) @ v
        return self.linear(y.transpose(1, 2).reshape(b, t, h), f"{name}.out_proj")

    def features(self, x):
        """[clips, samples] -> [clips, tokens, channels]"""
        x = x.to(self.dtype)[:, None]
        for level, stride in enumerate(STRIDES):
            name = f"wav2vec2.feature_extractor.conv_layers.{level}"
            x = F.conv1d(x, self.w[f"{name}.conv.weight"], stride=stride)
            if level == 0:
                x = F.group_norm(x, x.shape[1], self.w[f"{name}.layer_norm.weight"], self.w[f"{name}.layer_norm.bias"], 1e-5)
            x = F.gelu(x)
        return x.transpose(1, 2)

    def forward(self, x, sample_mask, token_mask):
        """x [clips, samples]. Masks of what is there, [clips, samples] and [clips, tokens]; None: all."""
        if sample_mask is None:
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-7)
        else:
            count = sample_mask.sum(1, keepdim=True)
            mean = (x * sample_mask).sum(1, keepdim=True) / count
            variance = ((x - mean) ** 2 * sample_mask).sum(1, keepdim=True) / count
            x = (x - mean) / torch.sqrt(variance + 1e-7) * sample_mask
        x = self.norm(self.features(x), "wav2vec2.feature_projection.layer_norm")
        x = self.linear(x, "wav2vec2.feature_projection.projection")
        if token_mask is not None:
            x = x * token_mask[..., None]
        name = "wav2vec2.encoder.pos_conv_embed.conv"
        kernel, groups = self.config["num_conv_pos_embeddings"], self.config["num_conv_pos_embedding_groups"]
        pos = F.conv1d(x.transpose(1, 2), self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=kernel // 2, groups=groups)
        x = self.norm(x + F.gelu(pos[..., :-1]).transpose(1, 2), "wav2vec2.encoder.layer_norm")
        mask = None if token_mask is None else token_mask[:, None, None, :]
        for i in range(self.layers):
            name = f"wav2vec2.encoder.layers.{i}"
            x = self.norm(x + self.attention(x, f"{name}.attention", mask), f"{name}.layer_norm")
            y = F.gelu(self.linear(x, f"{name}.feed_forward.intermediate_dense"))
            x = self.norm(x + self.linear(y, f"{name}.feed_forward.output_dense"), f"{name}.final_layer_norm")
        x = self.linear(x, "projector")
        if token_mask is None:
            x = x.mean(1)
        else:
            x = (x * token_mask[..., None]).sum(1) / token_mask.sum(1, keepdim=True)
        return self.linear(x, "classifier").float()


def count_tokens(samples):
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), STRIDES):
        samples = (samples - kernel) // stride + 1
    return samples


def make_masks(lengths, device):
    if len(set(lengths)) == 1:
        return None, None

    def mask(counts):
        return (torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]).to(device)

    return mask(lengths), mask([count_tokens(n) for n in lengths])


def check(peer, path):
    """The largest difference from our logits."""
    worst = 0.0
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        ours = json.loads(line)
        samples = torch.frombuffer(bytearray(Path(ours["file"]).read_bytes()), dtype=torch.float32)
        logits = peer.forward(samples[None].to(peer.device), None, None)[0].cpu()
        worst = max(worst, (logits - torch.tensor(ours["logits"])).abs().max().item())
    return worst


def time_workload(peer, forward, lengths, budget):
    """Milliseconds of each round, sorted."""
    host = torch.zeros(len(lengths), max(lengths))
    for row, n in zip(host, lengths):
        row[:n] = torch.randn(n) * 0.1
    is_gpu = peer.device == "cuda"
    host = host.pin_memory() if is_gpu else host
    sample_mask, token_mask = make_masks(lengths, peer.device)
    times, begin = [], None
    for i in range(1000):
        start = time.perf_counter()
        logits = forward(host.to(peer.device, non_blocking=True), sample_mask, token_mask).cpu()
        if i >= 4:  # warm, and compiled
            begin = begin or start
            times.append((time.perf_counter() - start) * 1e3)
            if len(times) >= 5 and time.perf_counter() - begin > budget:
                break
    assert torch.isfinite(logits).all()
    return sorted(times)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--way", required=True, choices=("eager-fp32", "sdpa-bf16", "compile-bf16"))
    parser.add_argument("--check", required=True)
    parser.add_argument("--workloads", required=True)
    parser.add_argument("--budget", type=float, default=1.5)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    worst = check(Peer(args.model, args.device, torch.float32, False), args.check)
    print(json.dumps({"torch": torch.__version__, "way": args.way, "largest_difference_fp32": worst}), flush=True)
    if not worst <= TOLERANCE:
        sys.exit(f"PyTorch's logits are {worst:.3g} from ours")
    bf16 = args.way != "eager-fp32"
    peer = Peer(args.model, args.device, torch.bfloat16 if bf16 else torch.float32, bf16)
    forward = peer.forward
    if args.way == "compile-bf16":
        torch._dynamo.config.recompile_limit = 64
        forward = torch.compile(peer.forward, mode="reduce-overhead", dynamic=False)
    for name, lengths in json.loads(Path(args.workloads).read_text(encoding="utf-8")).items():
        begin = time.perf_counter()
        times = time_workload(peer, forward, lengths, args.budget)
        print(json.dumps({"workload": name, "way": args.way, "median_ms": times[len(times) // 2], "best_ms": times[0],
                          "rounds": len(times), "spent_s": round(time.perf_counter() - begin, 1)}), flush=True)


if __name__ == "__main__":
    main()
