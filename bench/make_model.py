#!/usr/bin/env python3
"""Makes a wav2vec2-base folder with random weights, for timing: the same sizes as the checkpoints people use, no download.

usage: make_model.py DIR [--large]
"""
import argparse

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
             feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir")
    parser.add_argument("--large", action="store_true", help="the sizes of wav2vec2-large instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = Wav2Vec2Config(num_labels=4, id2label={0: "neutral", 1: "happy", 2: "angry", 3: "sad"},
                            label2id={"neutral": 0, "happy": 1, "angry": 2, "sad": 3}, **(LARGE if args.large else {}))
    model = Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(args.dir)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(args.dir)


if __name__ == "__main__":
    main()
