"""The shipped architecture."""

from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification


def build(labels):
    """A small Wav2Vec2ForSequenceClassification with random weights."""
    config = Wav2Vec2Config(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384,
        conv_dim=[64, 64, 96, 96, 128, 128, 128], feat_extract_norm="layer", conv_bias=True,
        do_stable_layer_norm=True, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8,
        classifier_proj_size=128, vocab_size=32,
        hidden_dropout=0.15, feat_proj_dropout=0.1, attention_dropout=0.0, activation_dropout=0.0,
        layerdrop=0.0, mask_time_prob=0.15, mask_time_length=8,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    config.architectures = ["Wav2Vec2ForSequenceClassification"]
    return Wav2Vec2ForSequenceClassification(config)


def preprocessor():
    """The matching feature extractor settings."""
    return Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16000, padding_value=0.0,
                                    do_normalize=True, return_attention_mask=True)
