"""Tensors that are missing, do not fit the configuration or hold no numbers, and heads that are none."""

import numpy as np

from broken_draft import Tensor, each, variant

# ---- missing ----


def renamed(old, new):
    def damage(d):
        d.tensors[new] = d.tensors.pop(d.name(old))

    return damage


def missing(*endings):
    def damage(d):
        for ending in endings:
            del d.tensors[d.name(ending)]

    return damage


KINDS = [
    "conv_layers.0.conv.weight",
    "conv_layers.6.conv.weight",
    "conv_layers.0.conv.bias",
    "conv_layers.3.conv.bias",
    "conv_layers.0.layer_norm.weight",
    "conv_layers.6.layer_norm.bias",
    "feature_projection.layer_norm.weight",
    "feature_projection.layer_norm.bias",
    "feature_projection.projection.weight",
    "feature_projection.projection.bias",
    "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.parametrizations.weight.original1",
    "pos_conv_embed.conv.bias",
    "encoder.layer_norm.weight",
    "encoder.layer_norm.bias",
    *(f"layers.0.attention.{p}_proj.{k}" for p in ("q", "k", "v", "out") for k in ("weight", "bias")),
    "encoder.layers.0.layer_norm.weight",
    "encoder.layers.0.layer_norm.bias",
    "layers.0.final_layer_norm.weight",
    "layers.0.final_layer_norm.bias",
    *(f"feed_forward.{p}_dense.{k}" for p in ("intermediate", "output") for k in ("weight", "bias")),
    "projector.bias",
    "classifier.bias",
]
each(
    [
        (
            f"missing_{k}",
            f"without {k}",
            [
                k if "conv_layers.0.conv.weight" not in k else "feature_extractor.conv_layers.0.conv.weight",
                "missing",
            ],
            k,
        )
        for k in KINDS
    ],
    missing,
)


@variant("missing_layer", "the configuration has a layer more than the file", "encoder.layers.1", "missing")
def _(d):
    d.config["num_hidden_layers"] = 2


@variant("missing_layer_weights", "use_weighted_layer_sum without layer_weights", "layer_weights", "missing")
def _(d):
    d.config["use_weighted_layer_sum"] = True


@variant(
    "missing_batch_norm", "conv_pos_batch_norm without a batch norm", "batch_norm|pos_conv_embed", "missing"
)
def _(d):
    d.config |= {"model_type": "hubert", "conv_pos_batch_norm": True}


@variant("wrong_layer_weights", "one layer weight too few", "layer_weights", "shape")
def _(d):
    d.config["use_weighted_layer_sum"] = True
    d.tensors["layer_weights"] = Tensor.of(np.ones(1))


@variant("family_prefix", "the prefix of a family that is computed in another way", "wavlm.")
def _(d):
    for name in [n for n in d.tensors if n.startswith("wav2vec2.")]:
        d.tensors[name.replace("wav2vec2.", "wavlm.")] = d.tensors.pop(name)


@variant("two_backbones", "two backbones in one file", "two|more than one", "wav2vec2.", "hubert.")
def _(d):
    for name in [n for n in d.tensors if n.startswith("wav2vec2.")]:
        d.tensors[name.replace("wav2vec2.", "hubert.")] = d.tensors[name]


# ---- heads ----

HEAD = ["head"]
STOCK = ("projector.weight", "projector.bias", "classifier.weight", "classifier.bias")
each(
    [
        ("head_none", "a backbone alone", HEAD, missing(*STOCK)),
        (
            "head_no_projector",
            "classifier without projector",
            HEAD,
            missing("projector.weight", "projector.bias"),
        ),
        (
            "head_no_classifier",
            "projector without classifier",
            HEAD,
            missing("classifier.weight", "classifier.bias"),
        ),
        (
            "head_ctc",
            "a speech recogniser",
            HEAD,
            lambda d: (missing(*STOCK)(d), d.tensors.update({"lm_head.weight": Tensor.of(np.ones((7, 16)))})),
        ),
    ],
    lambda damage: damage,
)


@variant("head_two", "a stock head and a dense head", "head", "two|more than one")
def _(d):
    stock = {name: d.tensors[name] for name in STOCK}
    d.use_speech_head()
    d.tensors.update(stock)


@variant("head_half", "classifier.dense without a second layer", "head")
def _(d):
    d.use_speech_head()
    missing("classifier.out_proj.weight", "classifier.out_proj.bias")(d)


@variant("head_age_only", "age without gender", "head|gender")
def _(d):
    missing(*STOCK)(d)
    d.tensors["age.dense.weight"] = d.tensors["age.out_proj.weight"] = Tensor.of(np.ones((16, 16)))


@variant("head_no_labels", "a classifier of no rows", "classifier.weight")
def _(d):
    d.set("classifier.weight", np.zeros((0, 10)))
    d.set("classifier.bias", np.zeros(0))


@variant("head_many_labels", "a classifier of 20000 rows", "classifier.weight|label", "4096|8192|limit|rows")
def _(d):
    d.set("classifier.weight", np.zeros((20000, 10)))
    d.set("classifier.bias", np.zeros(20000))


# ---- shapes, dtypes, values ----


def reshaped(ending, change):
    return lambda d: d.set(ending, change(d.tensors[d.name(ending)].array()))


def shapes(ending, change):
    return [ending, "shape"], ending, change


each(
    [
        ("shape_transposed", "projector transposed", *shapes("projector.weight", lambda a: a.T)),
        (
            "shape_ffn_transposed",
            "a feed-forward matrix transposed",
            *shapes("intermediate_dense.weight", lambda a: a.T),
        ),
        ("shape_rank", "a bias with two dimensions", *shapes("q_proj.bias", lambda a: a[None])),
        (
            "shape_conv_flat",
            "a convolution with two dimensions",
            *shapes("conv_layers.1.conv.weight", lambda a: a.reshape(len(a), -1)),
        ),
        (
            "shape_conv_kernel",
            "a convolution with another kernel",
            *shapes("conv_layers.1.conv.weight", lambda a: a[:, :, :2]),
        ),
        (
            "shape_pos_kernel",
            "a positional convolution with another kernel",
            *shapes("original1", lambda a: a[:, :, :4]),
        ),
        (
            "shape_pos_groups",
            "a positional convolution of one group",
            *shapes("original1", lambda a: np.concatenate([a] * 4, 1)),
        ),
        (
            "shape_weight_g",
            "weight norm over the output channels",
            *shapes("original0", lambda a: np.ones((16, 1, 1))),
        ),
        (
            "shape_head",
            "a classifier for another projector",
            *shapes("classifier.weight", lambda a: a[:, :-1]),
        ),
        ("shape_scalar", "a norm of one number", *shapes("encoder.layer_norm.weight", lambda a: a[0])),
        ("shape_empty", "a bias of no elements", *shapes("k_proj.bias", lambda a: a[:0])),
    ],
    reshaped,
)


def poisoned(ending, value, index=-1):
    def damage(d):
        a = d.tensors[d.name(ending)].array()
        a.reshape(-1)[index] = value
        d.set(ending, a)

    return damage


def typed(ending, dtype, numpy_type):
    def damage(d):
        t = d.tensors[d.name(ending)]
        d.tensors[d.name(ending)] = Tensor(dtype, t.shape, t.array().astype(numpy_type).tobytes())

    return damage


FINITE = "nan|inf|finite"
each(
    [
        ("nan_bias", "a NaN in a bias", ["q_proj.bias", FINITE], poisoned("q_proj.bias", np.nan)),
        (
            "inf_norm",
            "an infinity in a norm",
            ["final_layer_norm.weight", FINITE],
            poisoned("final_layer_norm.weight", np.inf),
        ),
        (
            "inf_conv",
            "minus infinity in a convolution",
            ["conv_layers.2.conv.weight", FINITE],
            poisoned("conv_layers.2.conv.weight", -np.inf, 0),
        ),
        ("nan_weight_g", "a NaN in the weight norm", ["original0", FINITE], poisoned("original0", np.nan, 3)),
        (
            "nan_head",
            "a NaN in the head",
            ["classifier.weight", FINITE],
            poisoned("classifier.weight", np.nan),
        ),
        (
            "zero_weight_v",
            "a kernel of zeros under the weight norm",
            ["original1", "zero|finite"],
            reshaped("original1", np.zeros_like),
        ),
        (
            "dtype_i64",
            "weights that are whole numbers",
            ["projector.weight", "I64"],
            typed("projector.weight", "I64", "<i8"),
        ),
        (
            "dtype_i8",
            "weights that were quantized",
            ["projector.weight", "I8"],
            typed("projector.weight", "I8", "i1"),
        ),
        (
            "dtype_f8",
            "weights of 8 bits",
            ["projector.weight", "F8_E4M3"],
            typed("projector.weight", "F8_E4M3", "u1"),
        ),
        (
            "dtype_f64",
            "weights of 64 bits",
            ["projector.weight", "F64"],
            typed("projector.weight", "F64", "<f8"),
        ),
        (
            "dtype_bool",
            "weights that are true or false",
            ["projector.weight", "BOOL"],
            typed("projector.weight", "BOOL", "?"),
        ),
    ],
    lambda damage: damage,
)


@variant("nan_f16", "a NaN of half precision", "v_proj.weight", FINITE)
def _(d):
    poisoned("v_proj.weight", np.nan)(d)
    typed("v_proj.weight", "F16", "<f2")(d)


@variant("inf_bf16", "an infinity in BF16", "v_proj.weight", FINITE)
def _(d):
    t = d.tensors[d.name("v_proj.weight")]
    halves = (t.array().view("<u4") >> 16).astype("<u2")
    halves.reshape(-1)[7] = 0xFF80
    d.tensors[d.name("v_proj.weight")] = Tensor("BF16", t.shape, halves.tobytes())


# ---- tensors of another network, which would answer differently ----


def added(name, like):
    def damage(d):
        d.tensors[name] = d.tensors[d.name(like)]

    return damage


each(
    [
        (
            f"foreign_{name}",
            f"a backbone that has {name} too",
            [name, "not part of the network"],
            added(f"wav2vec2.{name}", "encoder.layer_norm.weight"),
        )
        for name in (
            "encoder.layers.0.attention.rel_attn_embed.weight",
            "encoder.layers.0.adapter_layer.norm.weight",
            "feature_projection.dense.weight",
        )
    ],
    lambda damage: damage,
)
