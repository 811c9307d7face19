#!/usr/bin/env python3
"""What the forward pass of wav2vec2-base in bf16 should cost on an H200, kernel by kernel: a model, not a measurement.

usage: gpu_model.py [--overlap 0|1] [--batch-seconds S] [--cross-check bench.json]

Bytes and operations are counted from what the kernels do (kernels/cuda/*.cu, ops.c): two products for a convolution of three
taps unless the library takes rows that overlap (--overlap 1), GELU in the product, group norm's statistics from the samples
alone, layer norms on their own. A kernel takes the longest of its three times: matrix operations, bytes of memory, and
instructions of the plain units, each at a stated part of a stated rate; and besides what starting and ending it costs. With
--cross-check, the lines of a measured bench.json (bench/gpu.sh) are put beside it.
"""

import argparse
import json
import math
from dataclasses import dataclass

# Measured on an H200: products of 8192 x 8192 x 8192 random numbers, and a copy, both directions counted.
MATMUL_TFLOPS, COPY_TBS = 790, 4.3
# 132 multiprocessors, 128 lanes each, at 1.83 GHz: instructions of all lanes.
MULTIPROCESSORS, LANES_T = 132, 132 * 128 * 1.83e-3
# What part of these to expect: guesses, to be replaced by what bench/gpu.sh measures.
LIBRARY, OWN_MMA, COPY, PLAIN = 0.75, 0.33, 0.85, 0.7
# Start and end of a kernel behind another: the gap, and units that idle at its ends. From a graph, and from a stream.
GAP_GRAPH_US, GAP_STREAM_US = 1.5, 2.0
TILE_ROWS, TILE_COLUMNS = 128, 128

KERNEL, STRIDE = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
C, H, F, HEADS, LAYERS, POS_KERNEL, POS_GROUPS = 512, 768, 3072, 12, 12, 128, 16
SEGMENT_ROWS, BYTES = 4096, 2
# Instructions of a lane for one result of the first convolution: the loop of conv_first.cu is 431 of them for 16 results
# in the code for sm_90: 10 multiply-adds each, 9 of GELU's polynomial, and the rest.
FIRST_CONV_INSTRUCTIONS = 431 / 16


@dataclass
class Line:
    name: str
    times: int  # launches
    mb: float = 0  # of all of them
    gflop: float = 0
    rate: float = LIBRARY  # part of MATMUL_TFLOPS
    instructions_g: float = 0
    tiles: int = 0  # of one launch, where it is a product of the library's
    tile_flop: float = 0

    def parts(self):
        """Microseconds by matrix units, memory, plain units."""
        matmul = self.gflop * 1e9 / (MATMUL_TFLOPS * 1e6 * self.rate)
        if self.tiles:  # whole waves of tiles
            one = self.tile_flop / (MATMUL_TFLOPS * 1e6 * self.rate / MULTIPROCESSORS)
            matmul = max(matmul, self.times * math.ceil(self.tiles / MULTIPROCESSORS) * one)
        return matmul, self.mb * 1e6 / (COPY_TBS * 1e6 * COPY), self.instructions_g * 1e9 / (LANES_T * 1e6 * PLAIN)

    def bound(self):
        parts = self.parts()
        return ("matrix units", "memory", "plain units")[parts.index(max(parts))]

    def us(self, gap):
        return max(self.parts()) + gap * self.times


def count_rows(samples):
    rows = [samples]
    for kernel, stride in zip(KERNEL, STRIDE):
        rows.append((rows[-1] - kernel) // stride + 1)
    return rows


def product(name, times, rows, n_in, n_out, residual=False, accumulate=False, x_rows=None):
    """`times` products of [rows, n_in] x [n_in, n_out]. x_rows: of n_in elements, that are read."""
    read = (rows if x_rows is None else x_rows) * n_in + n_in * n_out + (rows * n_out if residual or accumulate else 0)
    tiles = math.ceil(rows / TILE_ROWS) * math.ceil(n_out / TILE_COLUMNS)
    return Line(name, times, times * (read + rows * n_out) * BYTES * 1e-6, times * 2e-9 * rows * n_in * n_out, tiles=tiles,
                tile_flop=2 * TILE_ROWS * TILE_COLUMNS * n_in)


def list_lines(clips, seconds, overlap):
    rows = [clips * n for n in count_rows(int(seconds * 16000))]
    tokens, samples = rows[7], rows[0]
    segments = math.ceil(tokens / SEGMENT_ROWS)
    lines = [Line("input norm: sums, statistics, apply", 3, samples * 12e-6),
             Line("group norm's statistics from moments", 3, samples * 4.5e-6, instructions_g=rows[1] * 65 * 2e-9),
             Line("convolution 0, norm, GELU", segments, (samples * 4 + rows[1] * C * BYTES) * 1e-6,
                  instructions_g=rows[1] * C * FIRST_CONV_INSTRUCTIONS * 1e-9)]
    for level in range(2, 8):
        kernel, each = KERNEL[level - 1], rows[level] // segments
        if kernel == 2 or overlap:
            lines.append(product(f"convolution {level - 1}, GELU", segments, each, kernel * C, C, x_rows=each * 2 / kernel))
        else:
            lines.append(product(f"convolution {level - 1}, two taps", segments, each, 2 * C, C))
            lines.append(product(f"convolution {level - 1}, third tap, GELU", segments, each, C, C, accumulate=True))
    lines += [Line("compact", segments, tokens * C * BYTES * 2e-6),
              Line("layer norm of the features", 1, tokens * C * BYTES * 2e-6),
              product("feature projection", 1, tokens, C, H),
              Line("positional convolution", 1, tokens * H * BYTES * 3e-6, 2e-9 * tokens * H * (H // POS_GROUPS) * POS_KERNEL,
                   rate=OWN_MMA),
              product("q, k, v", LAYERS, tokens, H, 3 * H),
              Line("attention", LAYERS, LAYERS * tokens * 4 * H * BYTES * 1e-6, LAYERS * 4e-9 * tokens * (tokens / clips) * H,
                   rate=OWN_MMA),
              product("attention output, residual", LAYERS, tokens, H, H, residual=True),
              Line("layer norms", 2 * LAYERS + 1, (2 * LAYERS + 1) * tokens * H * BYTES * 2e-6),
              product("feed-forward in, GELU", LAYERS, tokens, H, F),
              product("feed-forward out, residual", LAYERS, tokens, F, H, residual=True),
              Line("pool and head", 3, tokens * H * BYTES * 1e-6)]
    return lines


def print_table(title, lines, per, gap, unit):
    """`per`: what the columns are divided by."""
    print(f"\n{title}\n")
    print("| kernel | launches | MB | GF | bound by | us |")
    print("|---|---|---|---|---|---|")
    total = mb = gflop = launches = 0
    for line in lines:
        us = line.us(gap) / per
        print(f"| {line.name} | {line.times} | {line.mb / per:.2f} | {line.gflop / per:.3f} | {line.bound()} | {us:.2f} |")
        total, mb, gflop, launches = total + us, mb + line.mb / per, gflop + line.gflop / per, launches + line.times
    print(f"| all | {launches} | {mb:.1f} | {gflop:.2f} | | {total:.1f} |")
    print(f"\n{unit.format(total=total, x=1e6 / total, matmul=100 * gflop * 1e9 / (MATMUL_TFLOPS * 1e6) / total)}")
    return total


def cross_check(path):
    """Lines of the laboratory beside the model's, for the batch of 10 clips of 10 s and the single one."""
    with open(path, encoding="utf-8") as file:
        measured = json.load(file)
    lab = {}
    for part in measured["parts"]:
        if part["name"] == "laboratory bf16" and part["details"]:
            lab = {line["name"]: line for line in part["details"]["lines"] if line["status"] == "ok"}
    names = {"q, k, v": "qkv", "attention": "attention", "attention output, residual": "attention out",
             "feed-forward in, GELU": "ffn in", "feed-forward out, residual": "ffn out",
             "positional convolution": "pos_conv", "convolution 0, norm, GELU": "conv0", "feature projection": "projection"}
    print("\n| kernel | clips of 10 s | model us | measured us | measured / model |\n|---|---|---|---|---|")
    for clips, layout in ((1, "1x10s"), (10, "10x10s")):
        for line in list_lines(clips, 10, False):
            seen = lab.get(f"{names.get(line.name)}, {layout}")
            if seen:
                model, us = line.us(0) / line.times, seen.get("graph_us", seen["eager_us"])
                print(f"| {line.name} | {clips} | {model:.1f} | {us:.1f} | {us / model:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlap", type=int, choices=(0, 1), default=0)
    parser.add_argument("--batch-seconds", type=int, default=100)
    parser.add_argument("--cross-check")
    args = parser.parse_args()
    clips = max(1, args.batch_seconds // 10)
    print(f"A model, not a measurement. Rates: {MATMUL_TFLOPS} TF/s, of which products of the library reach {LIBRARY:.0%} and "
          f"own kernels {OWN_MMA:.0%}; {COPY_TBS} TB/s, {COPY:.0%}; plain units {LANES_T:.0f} T instructions/s, {PLAIN:.0%}; "
          f"{GAP_STREAM_US} us a launch in a stream, {GAP_GRAPH_US} in a graph.")
    print_table(f"{clips} clips of 10 s together, a second of audio:", list_lines(clips, 10, args.overlap), clips * 10,
                GAP_STREAM_US, "{total:.1f} us a second of audio: {x:,.0f} times real time, {matmul:.0f} % of the matrix units.")
    print_table("One clip of 10 s, all of it:", list_lines(1, 10, args.overlap), 1, GAP_GRAPH_US,
                "{total:.0f} us, {matmul:.0f} % of the matrix units. Its copies, 0.64 MB in and a few bytes out, come on top: "
                "about 30 us.")
    if args.cross_check:
        cross_check(args.cross_check)


if __name__ == "__main__":
    main()
