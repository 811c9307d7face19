#!/usr/bin/env python3
"""Writes a model folder of the size of wav2vec2-base with random weights, in plain Python, in seconds: for machines that
have no PyTorch, or no time for it. bench/make_model.py is its elder brother.

usage: base_model.py FOLDER [--tiny]
"""

import json
import math
import random
import struct
import sys
from pathlib import Path

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, conv_dim=[512] * 7,
            num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16, classifier_proj_size=256)
# Sizes at which the shim takes no long time, and still multiples of what tensor cores take.
TINY = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, conv_dim=[32] * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, classifier_proj_size=32)
COMMON = dict(architectures=["Wav2Vec2ForSequenceClassification"], model_type="wav2vec2", conv_kernel=[10, 3, 3, 3, 3, 2, 2],
              conv_stride=[5, 2, 2, 2, 2, 2, 2], num_feat_extract_layers=7, conv_bias=False, feat_extract_norm="group",
              feat_extract_activation="gelu", hidden_act="gelu", do_stable_layer_norm=False, layer_norm_eps=1e-5,
              use_weighted_layer_sum=False, id2label={"0": "neutral", "1": "happy", "2": "angry", "3": "sad"},
              label2id={"neutral": 0, "happy": 1, "angry": 2, "sad": 3})


def list_tensors(c):
    """(name, shape, mean, scale) of every tensor; scale: about the root of the mean square around the mean."""
    h, f, channels = c["hidden_size"], c["intermediate_size"], c["conv_dim"]
    groups, kernel = c["num_conv_pos_embedding_groups"], c["num_conv_pos_embeddings"]

    def linear(name, n_in, n_out):
        return [(f"{name}.weight", [n_out, n_in], 0, 1 / math.sqrt(n_in)), (f"{name}.bias", [n_out], 0, 0.05)]

    def norm(name, n):
        return [(f"{name}.weight", [n], 1, 0.1), (f"{name}.bias", [n], 0, 0.1)]

    tensors = []
    for level, (k, out) in enumerate(zip(c["conv_kernel"], channels)):
        n_in = channels[level - 1] if level else 1
        name = f"wav2vec2.feature_extractor.conv_layers.{level}"
        tensors += [(f"{name}.conv.weight", [out, n_in, k], 0, 1.4 / math.sqrt(n_in * k))]
        if level == 0:
            tensors += norm(f"{name}.layer_norm", out)
    tensors += norm("wav2vec2.feature_projection.layer_norm", channels[-1])
    tensors += linear("wav2vec2.feature_projection.projection", channels[-1], h)
    tensors += [("wav2vec2.encoder.pos_conv_embed.conv.weight", [h, h // groups, kernel], 0,
                 1 / math.sqrt(h // groups * kernel)), ("wav2vec2.encoder.pos_conv_embed.conv.bias", [h], 0, 0.05)]
    tensors += norm("wav2vec2.encoder.layer_norm", h)
    for i in range(c["num_hidden_layers"]):
        name = f"wav2vec2.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors += linear(f"{name}.attention.{part}", h, h)
        tensors += norm(f"{name}.layer_norm", h) + norm(f"{name}.final_layer_norm", h)
        tensors += linear(f"{name}.feed_forward.intermediate_dense", h, f)
        tensors += linear(f"{name}.feed_forward.output_dense", f, h)
    proj = c["classifier_proj_size"]
    return tensors + linear("projector", h, proj) + linear("classifier", proj, len(c["id2label"]))


def make_values(rng, count, mean, scale):
    """`count` random float32 as bytes. Large matrices are random bits between a sign and an exponent that is one of two:
    numbers of +-[s, 4 s), whose root of the mean square is 2.2 s. That is as good as any for timing and rounding."""
    if mean or count < 4096:
        return struct.pack(f"<{count}f", *(mean + scale * rng.uniform(-1.7, 1.7) for _ in range(count)))
    data = bytearray(rng.randbytes(4 * count))
    # The upper byte is the sign and seven of the eight bits of the exponent; the eighth stays random.
    exponent = (round(math.log2(scale / 2.2)) + 127) >> 1
    data[3::4] = data[3::4].translate(bytes(exponent | (b & 0x80) for b in range(256)))
    return bytes(data)


def write(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    tensors, header, at = list_tensors(config), {}, 0
    for name, shape, _, _ in tensors:
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(5)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, mean, scale in tensors:
            file.write(make_values(rng, math.prod(shape), mean, scale))
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(
        dict(do_normalize=True, feature_extractor_type="Wav2Vec2FeatureExtractor", feature_size=1, padding_side="right",
             padding_value=0.0, return_attention_mask=False, sampling_rate=16000)), encoding="utf-8")


def main(arguments):
    if not arguments or arguments[1:] not in ([], ["--tiny"]):
        sys.exit(__doc__)
    write(Path(arguments[0]), COMMON | (TINY if arguments[1:] else BASE))


if __name__ == "__main__":
    main(sys.argv[1:])
