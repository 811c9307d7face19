"""How far typical mistakes move a case's logits: a golden is worth something if its tolerance sees them."""

import contextlib

import numpy as np
import torch
from torch import nn

import golden_models


def backbone(model):
    return getattr(model, model.base_model_prefix)


@contextlib.contextmanager
def attribute(objects, name, value):
    """Sets an attribute of every object for a while; value(old) when it is callable."""
    old = [getattr(o, name) for o in objects]
    for o, v in zip(objects, old):
        setattr(o, name, value(v))
    yield
    for o, v in zip(objects, old):
        setattr(o, name, v)


@contextlib.contextmanager
def output_hook(module, change):
    handle = module.register_forward_hook(lambda _m, _i, out: change(out))
    yield
    handle.remove()


@contextlib.contextmanager
def zeroed(tensor):
    """A tensor that is not read."""
    with torch.no_grad():
        kept = tensor.clone()
        tensor.zero_()
        yield
        tensor.copy_(kept)


def other_gelu(act):
    """erf for tanh and tanh for erf; None for what is no GELU."""
    exact = nn.functional.gelu(torch.tensor(1.0))
    if type(act).__name__ not in ("GELUActivation", "NewGELUActivation"):
        return None
    is_exact = torch.isclose(act(torch.tensor(1.0)), exact, atol=1e-6)
    return nn.GELU(approximate="tanh" if is_exact else "none")


def mistakes(model):
    """(name, context manager) of each mistake that this model could show."""
    b = backbone(model)
    convs, layers, pos = (
        list(b.feature_extractor.conv_layers),
        list(b.encoder.layers),
        b.encoder.pos_conv_embed,
    )
    ffns = [layer.feed_forward for layer in layers]
    if other_gelu(ffns[0].intermediate_act_fn):
        yield "gelu of the feed-forward", attribute(ffns, "intermediate_act_fn", other_gelu)
    if other_gelu(pos.activation):
        yield "gelu of the convolutions", attribute(convs, "activation", other_gelu)
        yield "gelu of the positional convolution", attribute([pos], "activation", other_gelu)
    yield "no positional convolution", output_hook(pos, torch.zeros_like)
    yield "positional convolution a frame late", output_hook(pos, lambda y: torch.roll(y, 1, dims=1))
    norms = [c.layer_norm for c in convs if hasattr(c, "layer_norm")]
    yield "eps of the convolutions / 10", attribute(norms, "eps", lambda eps: eps / 10)
    config_eps = model.config.layer_norm_eps
    if config_eps != 1e-5:
        yield "eps of the convolutions from the config", attribute(norms, "eps", lambda eps: config_eps)
    others = [m for n, m in b.named_modules() if isinstance(m, nn.LayerNorm) and "conv_layers" not in n]
    usual = 1e-5 if config_eps != 1e-5 else 1e-6
    for norm_name in ("feature_projection", "encoder.layer_norm", "encoder.layers"):
        some = [m for n, m in b.named_modules() if m in others and n.startswith(norm_name)]
        if some:
            yield f"eps of {norm_name} is {usual}", attribute(some, "eps", lambda eps: usual)
    yield "no attention scale", attribute([layer.attention for layer in layers], "scaling", lambda s: 1.0)
    yield "input normalised or not", None


def has_no_effect(name, model):
    """k_proj.bias adds the same to all scores of a query; the group norm takes a bias before it away."""
    group = model.config.feat_extract_norm == "group"
    return (
        name.endswith(("k_proj.bias", "masked_spec_embed", "num_batches_tracked"))
        or (group and name.endswith("conv_layers.0.conv.bias"))
        or (name == "layer_weights" and not model.config.use_weighted_layer_sum)
    )


def logits_of(model, case, clips):
    return np.stack(
        [golden_models.run(model, case, golden_models.extract(case, c))[1] for c in clips.values()]
    )


def moves(model, case, clips):
    """{mistake: largest move of a logit}, and the tensor whose absence moves least."""
    clips = {n: c for n, c in clips.items() if len(c) <= 16000}
    right = logits_of(model, case, clips)

    def moved():
        wrong = np.nan_to_num(logits_of(model, case, clips), nan=np.inf)
        return float(f"{np.abs(wrong - right).max():.1e}")

    result = {}
    for name, mistake in mistakes(model):
        if mistake is None:
            case.do_normalize = not case.do_normalize
            result[name] = moved()
            case.do_normalize = not case.do_normalize
            continue
        with mistake:
            result[name] = moved()
    least = (float("inf"), "")
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        if not has_no_effect(name, model):
            with zeroed(tensor):
                least = min(least, (moved(), name))
    result[f"without {least[1]}"] = least[0]
    return result
