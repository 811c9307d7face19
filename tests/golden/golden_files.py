"""Model folders as people have them: the containers, the spellings of names, the configuration files."""

import io
import json
import re
import zipfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file

BACKBONES = ("wav2vec2.", "hubert.", "unispeech.", "unispeech_sat.")


# ---- names ----


def respell(name, case):
    """A tensor's name as the case's file spells it."""
    if case.norm_spelling == "gamma_beta" and re.search(
        r"(^|[._])(layer_norm|batch_norm)\.(weight|bias)$", name
    ):
        name = name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")
    if case.norm_spelling == "LayerNorm" and ".layer_norm." in name and "conv_layers" not in name:
        name = name.replace(".layer_norm.weight", ".LayerNorm.gamma").replace(
            ".layer_norm.bias", ".LayerNorm.beta"
        )
    if case.weight_norm == "g_v":
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
    for prefix in BACKBONES:
        if case.prefix is not None and name.startswith(prefix):
            name = case.prefix + name[len(prefix) :]
    return name


def state(model, case):
    """The tensors of the file, as it spells them, in its dtypes."""
    tensors = OrderedDict((k, v.detach().clone()) for k, v in model.state_dict().items())
    if case.weight_norm == "plain":
        for key in [k for k in tensors if k.endswith("parametrizations.weight.original0")]:
            base = key[: -len("parametrizations.weight.original0")]
            g, v = tensors.pop(key).double(), tensors.pop(base + "parametrizations.weight.original1").double()
            tensors[base + "weight"] = (g * v / v.pow(2).sum(dim=(0, 1), keepdim=True).sqrt()).float()
    for name in [k for k in tensors if k.endswith("masked_spec_embed") and not case.masked_spec_embed]:
        del tensors[name]
    out = OrderedDict()
    for name, value in tensors.items():
        out[respell(name, case)] = value.to(case.dtype_of(name)) if value.is_floating_point() else value
    out.update(case.extra_tensors())
    return out


# ---- containers ----


def split(tensors, parts):
    """Round robin into `parts` dictionaries."""
    shards = [OrderedDict() for _ in range(parts)]
    for i, (name, value) in enumerate(tensors.items()):
        shards[i % parts][name] = value
    return shards


def write_index(path, shards, names):
    """The index file of a sharded checkpoint."""
    weight_map = {k: names[i] for i, shard in enumerate(shards) for k in shard}
    size = sum(v.numel() * v.element_size() for shard in shards for v in shard.values())
    write_json(path, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})


def write_safetensors(folder, tensors, case):
    if case.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    shards = split(tensors, case.shards)
    names = [f"model-{i + 1:05d}-of-{case.shards:05d}.safetensors" for i in range(case.shards)]
    for name, shard in zip(names, shards):
        save_file(shard, folder / name, metadata={"format": "pt"})
    write_index(folder / "model.safetensors.index.json", shards, names)


def share_storage(tensors):
    """The same tensors as views into one storage, as after flattening by a distributed trainer."""
    floats = [k for k, v in tensors.items() if v.dtype == torch.float32]
    flat = torch.cat([tensors[k].reshape(-1) for k in floats])
    out, at = OrderedDict(tensors), 0
    for k in floats:
        n = tensors[k].numel()
        out[k] = flat[at : at + n].view(tensors[k].shape)
        at += n
    return out


def write_old_torch(path, tensors):
    """The zip as torch 1.6 to 2.0 wrote it: data.pkl, the storages and version, under the name "archive"."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            if info.filename.split("/", 1)[1].split("/")[0] in ("data.pkl", "data", "version"):
                target.writestr(zipfile.ZipInfo(info.filename), source.read(info))


def write_torch(folder, tensors, case):
    if case.torch_style == "metadata":  # as state_dict() returns it: an OrderedDict with an attribute
        tensors = OrderedDict(tensors)
        tensors._metadata = OrderedDict([("", {"version": 1}), ("projector", {"version": 1})])
    elif case.torch_style == "dict":
        tensors = dict(tensors)
    elif case.torch_style == "shared":
        tensors = share_storage(tensors)
    if case.torch_style == "old":
        write_old_torch(folder / "pytorch_model.bin", tensors)
    elif case.shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        shards = split(tensors, case.shards)
        names = [f"pytorch_model-{i + 1:05d}-of-{case.shards:05d}.bin" for i in range(case.shards)]
        for name, shard in zip(names, shards):
            torch.save(dict(shard), folder / name)
        write_index(folder / "pytorch_model.bin.index.json", shards, names)


# ---- configuration ----


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def config_json(model, case):
    """config.json as save_pretrained writes it, then edited as the case says."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    config.pop("_attn_implementation_autoset", None)
    if case.least_config:
        default = json.loads(type(model.config)().to_json_string(use_diff=True))
        kept = {"model_type", "id2label"}
        config = {k: v for k, v in config.items() if k in kept or k not in default or v != default[k]}
        config = {k: v for k, v in config.items() if k in default or k in kept}
    config["architectures"] = [case.architecture or type(model).__name__]
    for key, value in case.config_edit.items():
        if value is case.REMOVE:
            config.pop(key, None)
        else:
            config[key] = value
    return config


def write_preprocessor(folder, case):
    settings = {
        "do_normalize": case.do_normalize,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": case.config.get("feat_extract_norm") == "layer",
        "sampling_rate": 16000,
    }
    if case.preprocessor == "preprocessor_config.json":
        write_json(folder / case.preprocessor, settings)
    elif case.preprocessor == "processor_config.json":
        nested = {"feature_extractor": settings, "processor_class": "Wav2Vec2Processor"}
        write_json(folder / case.preprocessor, nested)


def write_folder(folder, model, case):
    """The whole model folder, but for expected.json."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config_json(model, case))
    write_preprocessor(folder, case)
    tensors = state(model, case)
    (write_safetensors if case.container == "safetensors" else write_torch)(folder, tensors, case)
    if case.decoy:
        torch.save({k: torch.zeros_like(v) for k, v in tensors.items()}, folder / case.decoy)
