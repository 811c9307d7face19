#!/usr/bin/env python3
"""Makes a model folder with random weights, for timing: the same sizes as the checkpoints people use, no download.

usage: make_model.py DIR [--large | --tiny-cost]
"""
import argparse

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
             feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)
# One convolution that looks at 16 samples in 1000, and one small layer: what is left is the cost of a call.
TINY_COST = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, conv_dim=(16,),
                 conv_kernel=(16,), conv_stride=(1000,), num_feat_extract_layers=1, num_conv_pos_embeddings=2,
                 num_conv_pos_embedding_groups=1, classifier_proj_size=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--large", action="store_true", help="the sizes of wav2vec2-large instead of -base")
    sizes.add_argument("--tiny-cost", action="store_true", help="a model whose forward costs next to nothing")
    args = parser.parse_args()
    torch.manual_seed(0)
    changes = LARGE if args.large else TINY_COST if args.tiny_cost else {}
    config = Wav2Vec2Config(num_labels=4, id2label={0: "neutral", 1: "happy", 2: "angry", 3: "sad"},
                            label2id={"neutral": 0, "happy": 1, "angry": 2, "sad": 3}, **changes)
    model = Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(args.dir)
    Wav2Vec2FeatureExtractor(do_normalize=not args.tiny_cost).save_pretrained(args.dir)


if __name__ == "__main__":
    main()
