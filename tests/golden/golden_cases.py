"""The table of cases: what each tiny checkpoint is, and which switch it is there for."""

from dataclasses import dataclass, field

import torch

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32

# Configurations. All are small; their sizes differ, so that no two can be mistaken for each other.
BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 16,
    "classifier_proj_size": 20,
    "vocab_size": 32,
    "id2label": {0: "neu", 1: "hap", 2: "ang", 3: "sad"},
    "label2id": {"neu": 0, "hap": 1, "ang": 2, "sad": 3},
}
LARGE = {**BASE, "conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
SMALL = {**BASE, "num_hidden_layers": 1, "conv_dim": [8] * 7}
SMALL_LARGE = {**LARGE, "num_hidden_layers": 1, "conv_dim": [8] * 7}
TINY_SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 10,
}
TINY = {**SMALL, **TINY_SIZES}  # for files and labels, where the shapes do not matter
TINY_LARGE = {**SMALL_LARGE, **TINY_SIZES}
VAD = {
    "id2label": {0: "arousal", 1: "dominance", 2: "valence"},
    "label2id": {"arousal": 0, "dominance": 1, "valence": 2},
}


def stack(dims, kernels, strides):
    return {
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(dims),
    }


@dataclass
class Case:
    """One folder."""

    name: str
    about: str
    config: dict = field(default_factory=lambda: BASE)
    family: str = "wav2vec2"
    head: str = "stock"  # stock, speech, speech_hubert, age_gender, dense_output
    seed: str = ""  # cases with the same seed and shapes have the same weights; the name when empty
    # How large the random weights are.
    norm_scale: float = 1.0  # weights and biases of all norms but those of the convolutions
    conv_norm_scale: float = 1.0  # those of the convolutions
    conv_scale: float = 1.0
    pos_gain: float = 2.5
    dense_gain: float = 1.0  # of the first layer of a dense head
    head_gain: float = 1.3  # of the other linear layers of a head
    # The files.
    container: str = "safetensors"  # or torch
    torch_style: str = "metadata"  # metadata, dict, shared, old
    shards: int = 1
    dtype: torch.dtype = F32
    norms_dtype: torch.dtype | None = None  # of norms and biases, where it is another
    weight_norm: str = "parametrizations"  # parametrizations, g_v, plain
    norm_spelling: str = ""  # gamma_beta, LayerNorm
    prefix: str | None = None  # of the backbone, where it is not the family's own
    masked_spec_embed: bool = True
    extra: dict = field(default_factory=dict)  # name: (dtype, shape)
    preprocessor: str = "preprocessor_config.json"  # or processor_config.json, or "" for neither
    do_normalize: bool = True
    architecture: str = ""  # what config.json calls the class, where it is not what it is
    config_edit: dict = field(default_factory=dict)  # changes to config.json after transformers wrote it
    least_config: bool = False  # leave out of config.json what has its default
    decoy: str = ""  # another file in the folder, with other weights, that must not be read
    # What is expected.
    labels: list | None = None
    output: str = "softmax"
    transformers_loads: bool = True  # False: transformers cannot load the folder, or not with these weights
    skip_clips: tuple = ()
    REMOVE = "__remove__"

    def __post_init__(self):
        self.seed = self.seed or self.name

    def dtype_of(self, name):
        """The dtype that a tensor has in the file."""
        small = name.endswith(".bias") or "norm" in name
        return self.norms_dtype if self.norms_dtype and small else self.dtype

    def extra_tensors(self):
        """Tensors that no forward pass reads."""
        g = torch.Generator().manual_seed(len(self.extra))
        return {
            name: (torch.randn(shape, generator=g) * 3).to(dtype)
            for name, (dtype, shape) in self.extra.items()
        }


def architectures():
    """Every switch of the configuration that moves the output."""
    yield Case("base", "group norm, no conv bias, post-LN: wav2vec2-base")
    yield Case("group_conv_bias", "group norm with conv_bias", {**BASE, "conv_bias": True})
    yield Case("large", "layer norm, conv bias, pre-LN: wav2vec2-large-lv60, XLS-R, robust", LARGE)
    yield Case("layer_no_bias_pre", "layer norm, no conv bias, pre-LN", {**LARGE, "conv_bias": False})
    yield Case("layer_post", "layer norm, conv bias, post-LN", {**LARGE, "do_stable_layer_norm": False})
    yield Case("group_pre", "group norm, no conv bias, pre-LN", {**BASE, "do_stable_layer_norm": True})
    yield Case("weighted_post", "weighted layer sum, post-LN", {**BASE, "use_weighted_layer_sum": True})
    yield Case(
        "weighted_pre",
        "weighted layer sum, pre-LN: the last state is the one after the encoder's layer norm",
        {**LARGE, "use_weighted_layer_sum": True},
        head_gain=1,
    )
    for act in ("gelu_new", "relu", "silu", "swish"):
        yield Case(f"hidden_act_{act}", f"hidden_act {act}", {**SMALL, "hidden_act": act})
    for act in ("gelu_new", "relu", "silu"):
        yield Case(
            f"conv_act_{act}",
            f"feat_extract_activation {act}: convolutions and positional convolution",
            {**SMALL, "feat_extract_activation": act},
        )


def eps_cases():
    """Norms over small numbers, so that eps can be seen."""
    yield Case(
        "eps_1e-12",
        "layer_norm_eps 1e-12, norms over small numbers, post-LN",
        {**BASE, "layer_norm_eps": 1e-12},
        norm_scale=0.05,
        head_gain=4.5,
    )
    yield Case(
        "eps_1e-3",
        "layer_norm_eps 1e-3, pre-LN",
        {**LARGE, "layer_norm_eps": 1e-3},
        conv_norm_scale=0.3,
        norm_scale=0.3,
        head_gain=2.5,
    )
    yield Case(
        "eps_group_norm",
        "the group norm's eps is 1e-5 whatever layer_norm_eps says, over small numbers",
        {**SMALL, "layer_norm_eps": 1e-3},
        conv_scale=0.01,
    )
    yield Case(
        "eps_conv_layer_norm",
        "the convolutions' layer norms have eps 1e-5 whatever layer_norm_eps says, over small numbers",
        {**SMALL_LARGE, "layer_norm_eps": 1e-3},
        conv_scale=0.02,
    )


def positions():
    """Positional convolutions."""
    yield Case(
        "pos_odd", "odd positional kernel: no frame is dropped", {**SMALL, "num_conv_pos_embeddings": 15}
    )
    yield Case("pos_groups_4", "4 positional groups", {**SMALL, "num_conv_pos_embedding_groups": 4})
    yield Case(
        "pos_groups_1",
        "one positional group, kernel of one tap",
        {**SMALL, "num_conv_pos_embedding_groups": 1, "num_conv_pos_embeddings": 1},
    )
    yield Case(
        "pos_groups_8",
        "8 positional groups, kernel 6",
        {**SMALL, "num_conv_pos_embedding_groups": 8, "num_conv_pos_embeddings": 6},
    )
    yield Case(
        "pos_long", "positional kernel 128, longer than every clip", {**SMALL, "num_conv_pos_embeddings": 128}
    )


def shapes():
    """Sizes, and stacks of convolutions."""
    yield Case(
        "odd_sizes",
        "sizes that are no multiple of anything: 3 heads of 7, 50, conv 18, 3 groups",
        {
            **LARGE,
            **stack([18, 11, 13, 11, 9, 10, 19], BASE["conv_kernel"], BASE["conv_stride"]),
            "hidden_size": 21,
            "num_attention_heads": 3,
            "intermediate_size": 50,
            "num_conv_pos_embedding_groups": 3,
            "num_conv_pos_embeddings": 9,
            "classifier_proj_size": 7,
        },
    )
    yield Case(
        "sizes_real",
        "heads of 64 and a positional kernel of 128, as in the published models; BF16 to keep the file small",
        {
            **LARGE,
            "num_hidden_layers": 1,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 192,
            "conv_dim": [48] * 7,
            "num_conv_pos_embeddings": 128,
        },
        dtype=BF16,
    )
    yield Case("heads_1", "one attention head", {**SMALL, "num_attention_heads": 1})
    yield Case("layers_5", "five layers", {**LARGE, "num_hidden_layers": 5, "hidden_size": 16})
    yield Case(
        "stack_80",
        "convolutions 10/5, 8/4, 4/2, 4/2: a frame every 80 samples",
        {**LARGE, **stack([16, 12, 20, 16], [10, 8, 4, 4], [5, 4, 2, 2])},
    )
    yield Case(
        "stack_5",
        "five convolutions of different widths, group norm",
        {**SMALL, **stack([12, 16, 20, 14, 10], [10, 3, 3, 3, 2], [5, 2, 2, 2, 2])},
    )
    yield Case(
        "stack_gaps",
        "strides larger than kernels: samples and rows that nothing reads",
        {**SMALL, **stack([8, 12, 10, 8], [10, 3, 2, 2], [12, 4, 3, 2])},
    )
    yield Case(
        "stack_1",
        "a single convolution, group norm",
        {**SMALL, **stack([10], [64], [160])},
        skip_clips=("n120",),
    )
    yield Case(
        "stack_stride_1",
        "nine convolutions, some of stride 1, layer norm",
        {**SMALL_LARGE, **stack([8] * 9, [10, 3, 3, 1, 3, 3, 2, 2, 2], [5, 2, 1, 1, 2, 2, 2, 2, 2])},
    )


def families():
    """HuBERT, UniSpeech, UniSpeech-SAT."""
    yield Case("hubert_base", "hubert-base", BASE, "hubert")
    yield Case("hubert_large", "hubert-large: layer norm, conv bias, pre-LN", LARGE, "hubert")
    yield Case(
        "hubert_no_proj_norm",
        "feat_proj_layer_norm false: distilhubert",
        {**SMALL, "feat_proj_layer_norm": False},
        "hubert",
    )
    yield Case(
        "hubert_batch_norm",
        "conv_pos_batch_norm: batch norm before a plain positional convolution",
        {**SMALL, "conv_pos_batch_norm": True},
        "hubert",
    )
    yield Case(
        "hubert_weighted",
        "superb/hubert-large-superb-er: weighted layer sum, pre-LN, torch file",
        {**LARGE, "use_weighted_layer_sum": True},
        "hubert",
        container="torch",
        weight_norm="g_v",
    )
    yield Case("unispeech", "unispeech, post-LN", SMALL, "unispeech")
    yield Case("unispeech_large", "unispeech-large, pre-LN", SMALL_LARGE, "unispeech")
    yield Case("unispeech_sat", "unispeech-sat, post-LN", SMALL, "unispeech-sat")
    yield Case("unispeech_sat_large", "unispeech-sat-large, pre-LN", SMALL_LARGE, "unispeech-sat")


def heads():
    """Heads that transformers does not have."""
    regression = {**SMALL_LARGE, **VAD, "problem_type": "regression"}
    wrong = "Wav2Vec2ForSpeechClassification"
    yield Case(
        "head_speech",
        "audeering's emotion model: dense, tanh, out_proj over the mean; regression; pooling_mode missing",
        {**LARGE, **VAD, "problem_type": "regression"},
        head="speech",
        architecture=wrong,
        weight_norm="g_v",
        output="none",
    )
    for mode in ("mean", "sum", "max"):
        yield Case(
            f"head_speech_{mode}",
            f"pooling_mode {mode}",
            {**SMALL, "pooling_mode": mode},
            head="speech",
            architecture=wrong,
            dense_gain=0.1 if mode == "sum" else 1,
            head_gain=2.5 if mode == "sum" else 1.3,
        )
    yield Case("head_speech_hubert", "the same head over HuBERT", SMALL, "hubert", "speech_hubert")
    yield Case(
        "head_speech_weighted",
        "use_weighted_layer_sum does nothing for this head",
        {**regression, "use_weighted_layer_sum": True},
        head="speech",
        output="none",
    )
    yield Case(
        "head_age_gender",
        "audeering's age and gender model: two heads over one mean, softmax of gender alone",
        SMALL_LARGE,
        head="age_gender",
        config_edit={"id2label": Case.REMOVE, "label2id": Case.REMOVE},
        labels=["age", "female", "male", "child"],
        output="softmax of gender",
    )
    yield Case(
        "head_dense_output",
        "ehcalabres: classifier.dense and classifier.output; config.json claims the stock class",
        SMALL_LARGE,
        head="dense_output",
        architecture="Wav2Vec2ForSequenceClassification",
        weight_norm="g_v",
    )


def spellings():
    """One model, many ways to write its names down: all have the logits of `names_canonical`."""
    same = {"config": TINY_LARGE, "seed": "names"}
    yield Case("names_canonical", "as transformers 4.57 writes them", **same)
    yield Case("names_weight_g", "weight_g and weight_v", weight_norm="g_v", **same)
    yield Case("names_plain", "weight norm removed", weight_norm="plain", transformers_loads=False, **same)
    yield Case(
        "names_gamma_beta",
        "gamma and beta in all norms",
        norm_spelling="gamma_beta",
        transformers_loads=False,
        **same,
    )
    yield Case(
        "names_LayerNorm",
        "LayerNorm.gamma and LayerNorm.beta",
        norm_spelling="LayerNorm",
        transformers_loads=False,
        **same,
    )
    yield Case(
        "names_no_prefix",
        "the backbone's names without a prefix",
        prefix="",
        transformers_loads=False,
        **same,
    )
    yield Case("names_model", "prefix model.", prefix="model.", transformers_loads=False, **same)
    yield Case("names_no_mask_embed", "no masked_spec_embed", masked_spec_embed=False, **same)


EXTRA = {
    "quantizer.codevectors": (F32, (1, 6, 4)),
    "quantizer.weight_proj.weight": (F32, (6, 8)),
    "project_q.weight": (F32, (5, 5)),
    "project_hid.bias": (F32, (5,)),
    "lm_head.weight": (F32, (7, 16)),
    "lm_head.bias": (F32, (7,)),
    "steps": (torch.int64, ()),
    "wav2vec2.something.new": (torch.int32, (3, 2)),
}


def containers():
    """Dtypes and files."""
    yield Case(
        "prefer_safetensors",
        "model.safetensors goes before pytorch_model.bin",
        TINY,
        decoy="pytorch_model.bin",
    )
    yield Case("dtype_f16", "F16", TINY, dtype=F16)
    yield Case("dtype_bf16", "BF16", TINY, dtype=BF16)
    yield Case("dtype_mixed", "F16 matrices, F32 norms and biases", TINY, dtype=F16, norms_dtype=F32)
    yield Case("safetensors_sharded", "three files and an index", TINY, shards=3)
    extra = {**EXTRA, "flags": (torch.bool, (3,)), "half": (torch.float64, (2,)), "empty": (F32, (0, 4))}
    yield Case("safetensors_extra", "tensors that nothing reads, integers among them", TINY, extra=extra)
    torch_file = {"config": TINY, "container": "torch"}
    yield Case("torch_file", "pytorch_model.bin: a state_dict with its attribute", **torch_file)
    yield Case("torch_dict", "a plain dict", torch_style="dict", **torch_file)
    yield Case(
        "torch_old",
        "as torch 1.6 wrote it: entries not aligned",
        torch_style="old",
        weight_norm="g_v",
        **torch_file,
    )
    yield Case("torch_shared", "tensors that are views into one storage", torch_style="shared", **torch_file)
    yield Case("torch_sharded", "two files and an index", shards=2, **torch_file)
    yield Case("torch_f16", "half storages", dtype=F16, **torch_file)
    yield Case("torch_bf16", "bfloat16 storages", dtype=BF16, **torch_file)
    yield Case(
        "torch_extra", "tensors that nothing reads; LongStorage and IntStorage", extra=EXTRA, **torch_file
    )
    yield Case(
        "torch_batch_norm",
        "HuBERT with batch norm: num_batches_tracked is a LongStorage",
        {**TINY, "conv_pos_batch_norm": True},
        "hubert",
        container="torch",
    )


def inputs():
    """What becomes of the samples first."""
    yield Case(
        "no_normalize",
        "do_normalize false; superb/wav2vec2-base-superb-er",
        {**TINY, "use_weighted_layer_sum": True},
        do_normalize=False,
    )
    yield Case("no_normalize_layer", "do_normalize false, layer norm", TINY_LARGE, do_normalize=False)
    yield Case("no_preprocessor", "no preprocessor_config.json: do_normalize is true", TINY, preprocessor="")
    yield Case(
        "processor_config",
        "processor_config.json of transformers 5: do_normalize false under feature_extractor",
        TINY,
        preprocessor="processor_config.json",
        do_normalize=False,
        transformers_loads=False,
    )


def labels():
    """Labels of all kinds."""
    same = {"config": TINY, "seed": "labels"}
    gone = {"id2label": Case.REMOVE, "label2id": Case.REMOVE}
    made = [f"LABEL_{i}" for i in range(4)]
    yield Case(
        "labels_missing", "no id2label", config_edit=gone, labels=made, transformers_loads=False, **same
    )
    yield Case(
        "labels_short",
        "id2label shorter than the head",
        config_edit={"id2label": {"0": "neu", "1": "hap"}},
        labels=["neu", "hap", "LABEL_2", "LABEL_3"],
        transformers_loads=False,
        **same,
    )
    yield Case(
        "labels_long",
        "id2label longer than the head: the rest is left out",
        config_edit={"id2label": dict(zip("012345", ["neu", "hap", "ang", "sad", "one", "two"]))},
        transformers_loads=False,
        **same,
    )
    yield Case(
        "labels_two",
        "transformers leaves out id2label where there are two labels called LABEL_0 and LABEL_1",
        {k: v for k, v in {**TINY, "num_labels": 2}.items() if k not in ("id2label", "label2id")},
        config_edit=gone,
        labels=made[:2],
    )
    yield Case(
        "labels_gap",
        "id2label with a gap, and out of order",
        config_edit={"id2label": {"3": "sad", "0": "neu", "1": "hap"}},
        labels=["neu", "hap", "LABEL_2", "sad"],
        transformers_loads=False,
        **same,
    )
    yield Case(
        "labels_int",
        "labels that are numbers",
        config_edit={"id2label": {"0": 10, "1": 20, "2": 30, "3": 40}},
        labels=["10", "20", "30", "40"],
        **same,
    )
    words = ["生气/angry", 'so "sad"\\', "émotion 😀", "<unk>"]
    yield Case(
        "labels_unicode",
        "labels of all kinds of letters",
        config_edit={"id2label": dict(zip("0123", words))},
        labels=words,
        **same,
    )


def configs():
    """config.json as it is found in the wild."""
    same = {"config": TINY, "seed": "labels"}
    yield Case(
        "multi_label",
        "problem_type multi_label_classification",
        {**TINY, "problem_type": "multi_label_classification"},
        output="sigmoid",
    )
    yield Case(
        "regression",
        "problem_type regression with the stock head",
        {**TINY, **VAD, "problem_type": "regression"},
        output="none",
    )
    yield Case(
        "config_null",
        "num_labels null, problem_type null",
        config_edit={"num_labels": None, "problem_type": None},
        **same,
    )
    odd = {
        "torch_dtype": "float16",
        "dtype": "float32",
        "mask_time_prob": {"__float__": "Infinity"},
        "layerdrop": {"__float__": "NaN"},
        "some_new_switch": {"nested": [1, 2, {"deep": None}]},
        "_name_or_path": "/home/someone/model",
        "transformers_version": "9.0.0",
        "gradient_checkpointing": False,
    }
    yield Case(
        "config_odd",
        "values of transformers 5 and keys that nobody knows",
        config_edit=odd,
        transformers_loads=False,
        **same,
    )
    yield Case(
        "config_least", "config.json with nothing but what is not a default", least_config=True, **same
    )


def all_cases():
    """Every case, in the order of the table."""
    groups = (
        architectures,
        eps_cases,
        positions,
        shapes,
        families,
        heads,
        spellings,
        containers,
        inputs,
        labels,
        configs,
    )
    for group in groups:
        yield from group()
