"""Configurations that are damaged, or that ask for what this version cannot compute."""

from broken_draft import each, variant

FILE, AUDIO = "config.json", "preprocessor_config.json"


def config(**changes):
    return lambda d: d.config.update(changes)


def field(name, about, key, value, *more):
    """A row: one field of config.json; the error names it, and `more`."""
    return name, about, [FILE, key, *more], config(**{key: value})


def config_bytes(data):
    def damage(d):
        d.config = data

    return damage


# ---- the files ----

each(
    [
        ("config_none", "no config.json", [FILE], config_bytes(None)),
        ("config_empty", "an empty config.json", [FILE], config_bytes(b"")),
        ("config_not_json", "not JSON", [FILE, "json"], config_bytes(b"model_type: wav2vec2\n")),
        (
            "config_cut",
            "JSON that ends early",
            [FILE, "json"],
            config_bytes(b'{"model_type": "wav2vec2", "hidden'),
        ),
        ("config_array", "an array", [FILE, "object"], config_bytes(b'[{"model_type": "wav2vec2"}]')),
        (
            "config_deep",
            "arrays 100000 deep",
            [FILE, "deep|nest"],
            config_bytes(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}"),
        ),
        (
            "config_huge",
            "sixteen megabytes",
            [FILE, "limit|bytes"],
            config_bytes(b'{"a": "' + b"x" * (16 << 20) + b'"}'),
        ),
        ("config_zero", "zero bytes", [FILE], config_bytes(b"\0" * 64)),
        (
            "config_nan",
            "a NaN, which JSON does not have",
            [FILE, "json"],
            config_bytes(b'{"model_type": "wav2vec2", "layer_norm_eps": NaN}'),
        ),
        (
            "config_twice",
            "a field twice",
            [FILE, "hidden_size", "twice|duplicate"],
            config_bytes(b'{"model_type": "wav2vec2", "hidden_size": 16, "hidden_size": 32}'),
        ),
    ],
    lambda damage: damage,
)


@variant("config_folder", "a folder in the place of config.json", FILE)
def _(d):
    d.config = None
    d.folders = [FILE]


# ---- what is not supported ----

each(
    [
        field("family_wavlm", "WavLM", "model_type", "wavlm", "wavlm"),
        field("family_whisper", "Whisper", "model_type", "whisper", "whisper"),
        field("family_data2vec", "Data2Vec", "model_type", "data2vec-audio", "data2vec-audio"),
        field("family_bert", "a text model", "model_type", "bert", "bert"),
        field("family_empty", "no family", "model_type", ""),
        field("family_null", "no family", "model_type", None),
        field("family_number", "a family that is a number", "model_type", 2),
        field("act_unknown", "an activation that is not computed", "hidden_act", "mish", "mish"),
        field(
            "act_conv_unknown",
            "an activation that is not computed",
            "feat_extract_activation",
            "quick_gelu",
            "quick_gelu",
        ),
        field("act_number", "an activation that is a number", "hidden_act", 1),
        field("norm_unknown", "another norm of the convolutions", "feat_extract_norm", "batch", "batch"),
        field("adapter", "an adapter behind the encoder", "add_adapter", True),
        field("adapter_attention", "adapters within the layers", "adapter_attn_dim", 16),
        field("problem_unknown", "an unknown problem_type", "problem_type", "ranking", "ranking"),
        field("pooling_number", "a pooling that is a number", "pooling_mode", 1),
    ],
    lambda damage: damage,
)


@variant("pooling_unknown", "a pooling that is not computed", FILE, "pooling_mode", "attention")
def _(d):
    d.use_speech_head()
    d.config["pooling_mode"] = "attention"


# ---- numbers ----

each(
    [
        field("hidden_zero", "no hidden units", "hidden_size", 0),
        field("hidden_negative", "negative hidden units", "hidden_size", -16),
        field("hidden_huge", "10^12 hidden units", "hidden_size", 10**12),
        field("hidden_2_31", "2^31 hidden units", "hidden_size", 2**31),
        field("hidden_2_64", "2^64 + 16 hidden units", "hidden_size", 2**64 + 16),
        field("hidden_1e300", "1e300 hidden units", "hidden_size", 1e300),
        field("hidden_fraction", "16.5 hidden units", "hidden_size", 16.5),
        field("hidden_text", "hidden units in quotes", "hidden_size", "16"),
        field("hidden_list", "hidden units in a list", "hidden_size", [16]),
        field("hidden_true", "hidden units true", "hidden_size", True),
        ("hidden_wrong", "more hidden units than the file has", ["shape"], config(hidden_size=32)),
        field("heads_zero", "no heads", "num_attention_heads", 0),
        field(
            "heads_uneven",
            "hidden units that the heads do not divide",
            "num_attention_heads",
            3,
            "hidden_size",
        ),
        field("layers_zero", "no layers", "num_hidden_layers", 0),
        field("layers_negative", "negative layers", "num_hidden_layers", -1),
        field("layers_huge", "10^9 layers", "num_hidden_layers", 10**9),
        field("intermediate_zero", "no intermediate units", "intermediate_size", 0),
        field("intermediate_huge", "10^15 intermediate units", "intermediate_size", 10**15),
        field("pos_zero", "a positional kernel of no taps", "num_conv_pos_embeddings", 0),
        field("pos_negative", "a positional kernel of -8 taps", "num_conv_pos_embeddings", -8),
        field("pos_huge", "a positional kernel of 2^31 taps", "num_conv_pos_embeddings", 2**31),
        field("groups_zero", "no positional groups", "num_conv_pos_embedding_groups", 0),
        field(
            "groups_uneven", "hidden units that the groups do not divide", "num_conv_pos_embedding_groups", 5
        ),
        field("eps_negative", "a negative eps", "layer_norm_eps", -1e-5),
        field("eps_text", "an eps in quotes", "layer_norm_eps", "1e-5"),
        field("eps_infinite", "an infinite eps", "layer_norm_eps", {"__float__": "Infinity"}),
        field("stable_text", "a switch in quotes", "do_stable_layer_norm", "true"),
        field("bias_number", "a switch that is a number", "conv_bias", 3),
        field("weighted_text", "a switch in words", "use_weighted_layer_sum", "yes"),
    ],
    lambda damage: damage,
)


# ---- lists ----

each(
    [
        field("conv_lengths", "six strides for seven kernels", "conv_stride", [5, 2, 2, 2, 2, 2]),
        field("conv_dims_length", "eight widths for seven kernels", "conv_dim", [8] * 8),
        field("conv_empty", "no convolutions", "conv_dim", []),
        field("conv_number", "a number in the place of a list", "conv_kernel", 3),
        field("conv_kernel_zero", "a kernel of no taps", "conv_kernel", [10, 3, 3, 0, 3, 2, 2]),
        field("conv_kernel_huge", "a kernel of 2^31 taps", "conv_kernel", [2**31, 3, 3, 3, 3, 2, 2]),
        field("conv_stride_zero", "a stride of nothing", "conv_stride", [5, 2, 2, 0, 2, 2, 2]),
        field("conv_stride_negative", "a stride backwards", "conv_stride", [5, 2, 2, -2, 2, 2, 2]),
        field("conv_stride_product", "strides whose product is 10^21", "conv_stride", [1000] * 7),
        field("conv_text", "widths in quotes", "conv_dim", ["8"] * 7),
        field("conv_fraction", "half a channel", "conv_dim", [8, 8, 8.5, 8, 8, 8, 8]),
        field("conv_nested", "a list in a list", "conv_dim", [[8] * 7]),
        (
            "conv_many",
            "a thousand convolutions",
            [FILE, "conv_", "limit"],
            config(conv_dim=[8] * 1000, conv_kernel=[2] * 1000, conv_stride=[1] * 1000),
        ),
        field("labels_list", "labels in a list", "id2label", ["neu", "hap", "ang", "sad"]),
        field("labels_key", "a label whose number is a word", "id2label", {"zero": "neu"}, "zero"),
        field("labels_negative", "a label of number -1", "id2label", {"-1": "neu"}, "-1"),
        field("labels_huge", "a label of number 10^12", "id2label", {"1000000000000": "neu"}),
        field("labels_null", "a label that is nothing", "id2label", {"0": None}),
        field("labels_object", "a label that is an object", "id2label", {"0": {"name": "neu"}}),
        field("labels_control", "a label with a line end", "id2label", {"0": "neu\nhap"}),
        field("labels_long", "a label of ten thousand letters", "id2label", {"0": "x" * 10000}),
    ],
    lambda damage: damage,
)


# ---- the preprocessor ----


def audio(**changes):
    return lambda d: d.preprocessor.update(changes)


def audio_bytes(data):
    def damage(d):
        d.preprocessor = data

    return damage


each(
    [
        ("audio_not_json", "not JSON", [AUDIO, "json"], audio_bytes(b"do_normalize = true\n")),
        ("audio_array", "an array", [AUDIO, "object"], audio_bytes(b"[]")),
        ("audio_rate_zero", "0 Hz", [AUDIO, "sampling_rate"], audio(sampling_rate=0)),
        ("audio_rate_negative", "-16000 Hz", [AUDIO, "sampling_rate"], audio(sampling_rate=-16000)),
        ("audio_rate_huge", "10^12 Hz", [AUDIO, "sampling_rate"], audio(sampling_rate=10**12)),
        ("audio_rate_fraction", "16000.5 Hz", [AUDIO, "sampling_rate"], audio(sampling_rate=16000.5)),
        ("audio_rate_text", "a rate in quotes", [AUDIO, "sampling_rate"], audio(sampling_rate="16000")),
        ("audio_normalize_text", "a switch in quotes", [AUDIO, "do_normalize"], audio(do_normalize="true")),
        (
            "audio_normalize_number",
            "a switch that is a number",
            [AUDIO, "do_normalize"],
            audio(do_normalize=2),
        ),
        (
            "audio_whisper",
            "the feature extractor of another family",
            [AUDIO, "WhisperFeatureExtractor"],
            audio(feature_extractor_type="WhisperFeatureExtractor"),
        ),
    ],
    lambda damage: damage,
)
