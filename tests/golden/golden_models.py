"""Tiny random models, and what transformers computes with them."""

import zlib

import numpy as np
import torch
import transformers
from torch import nn
from transformers import HubertModel, HubertPreTrainedModel, Wav2Vec2Model, Wav2Vec2PreTrainedModel

STOCK = {
    "wav2vec2": transformers.Wav2Vec2ForSequenceClassification,
    "hubert": transformers.HubertForSequenceClassification,
    "unispeech": transformers.UniSpeechForSequenceClassification,
    "unispeech-sat": transformers.UniSpeechSatForSequenceClassification,
}


class DenseHead(nn.Module):
    """Two linear layers; the second is called out_proj in most published models and output in others."""

    def __init__(self, hidden, labels, last="out_proj"):
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        setattr(self, last, nn.Linear(hidden, labels))
        self.last = last

    def forward(self, x, activation=torch.tanh):
        return getattr(self, self.last)(activation(self.dense(x)))


def pool(hidden, mode):
    """[frames, H] of one clip -> [H]; over all frames."""
    if mode == "sum":
        return hidden.sum(dim=1)
    return hidden.max(dim=1)[0] if mode == "max" else hidden.mean(dim=1)


class SpeechWav2Vec2(Wav2Vec2PreTrainedModel):
    """The head of harshit345's, m3hrdadfi's and audeering's published models."""

    def __init__(self, config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = DenseHead(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, x):
        h = pool(self.wav2vec2(x)[0], getattr(self.config, "pooling_mode", "mean"))
        return h, self.classifier(h)


class SpeechHubert(HubertPreTrainedModel):
    """The same over HuBERT."""

    def __init__(self, config):
        super().__init__(config)
        self.hubert = HubertModel(config)
        self.classifier = DenseHead(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, x):
        h = pool(self.hubert(x)[0], getattr(self.config, "pooling_mode", "mean"))
        return h, self.classifier(h)


class AgeGender(Wav2Vec2PreTrainedModel):
    """audeering's age and gender model: logits are age, female, male, child."""

    def __init__(self, config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.age = DenseHead(config.hidden_size, 1)
        self.gender = DenseHead(config.hidden_size, 3)
        self.post_init()

    def forward(self, x):
        h = self.wav2vec2(x)[0].mean(dim=1)
        return h, torch.hstack([self.age(h), self.gender(h)])


class DenseOutput(Wav2Vec2PreTrainedModel):
    """ehcalabres' model: no file tells what stands between dense and output; `activation` says it here."""

    def __init__(self, config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = DenseHead(config.hidden_size, config.num_labels, "output")
        self.post_init()

    def forward(self, x, activation=lambda h: h):
        h = self.wav2vec2(x)[0].mean(dim=1)
        return h, self.classifier(h, activation)


HEADS = {
    "speech": SpeechWav2Vec2,
    "speech_hubert": SpeechHubert,
    "age_gender": AgeGender,
    "dense_output": DenseOutput,
}


def model_class(case):
    """The class that runs a case."""
    return STOCK[case.family] if case.head == "stock" else HEADS[case.head]


def make_config(case):
    """The transformers configuration of a case."""
    return transformers.AutoConfig.for_model(case.family, attn_implementation="eager", **case.config)


def conv_scale(name, case):
    """How small a convolution's weights are; with a group norm it is the first one's that matter."""
    in_stack = "conv_layers.0." in name or (
        "conv_layers" in name and case.config["feat_extract_norm"] == "layer"
    )
    return case.conv_scale if in_stack else 1.0


def randomise_tensor(name, p, g, case):
    """Fills one parameter or buffer: no value may be close to one that does nothing."""
    normal = torch.randn(p.shape, generator=g)
    uniform = torch.rand(p.shape, generator=g)
    fan_in = p[0].numel() if p.dim() > 1 else 1
    is_norm = "norm" in name
    if name.endswith("num_batches_tracked"):
        return torch.tensor(12345)
    if name.endswith("running_mean"):
        return 0.3 * normal
    if name.endswith("running_var"):
        return 0.5 + 1.5 * uniform
    if name.endswith("original0"):  # g of the weight norm, [1, 1, K]: every tap another
        return (0.5 + uniform) * case.pos_gain * (case.config["hidden_size"] / p.numel()) ** 0.5
    if name.endswith("original1"):
        return normal
    if is_norm:
        scale = case.conv_norm_scale if "conv_layers" in name else case.norm_scale
        return scale * (0.4 + 1.2 * uniform if name.endswith("weight") else 0.3 * normal)
    if name == "layer_weights":
        return normal
    if name.endswith("bias"):
        in_backbone = "encoder" in name or "feature_projection" in name
        return 0.2 * normal * conv_scale(name, case) * (case.norm_scale if in_backbone else 1)
    if "conv_layers" in name:
        return normal * conv_scale(name, case) * 1.8 / fan_in**0.5
    if "q_proj" in name or "k_proj" in name:
        return normal * 1.5 / (case.norm_scale * fan_in**0.5)
    if ".dense." in name and "encoder" not in name:
        return normal * case.dense_gain / fan_in**0.5
    if name.startswith(("projector", "classifier", "age", "gender")):
        return normal * case.head_gain / fan_in**0.5
    return normal * 1.3 / fan_in**0.5


def randomise(model, case):
    """Fills every parameter and buffer from the case's seed and the tensor's own name."""
    with torch.no_grad():
        for name, p in list(model.named_parameters()) + list(model.named_buffers()):
            # Without what stands before the first dot, so that a prefix changes nothing; but age is not gender.
            own = name if name.startswith(("age", "gender")) else name.split(".", 1)[-1]
            g = torch.Generator().manual_seed(zlib.crc32(f"{case.seed}/{own}".encode()))
            p.copy_(randomise_tensor(name, p, g, case))


def make_model(case):
    """The case's model with random weights, rounded to the dtype that the file will hold."""
    torch.manual_seed(0)
    model = model_class(case)(make_config(case)).eval()
    randomise(model, case)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(p.to(case.dtype_of(name)).float())
    return model


def normalise(x, do_normalize):
    """What Wav2Vec2FeatureExtractor does to one clip; x is float32 or float64."""
    return (x - x.mean()) / np.sqrt(x.var() + 1e-7) if do_normalize else x


def extract(case, clip):
    """The model's input as transformers makes it."""
    extractor = transformers.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=case.do_normalize
    )
    return extractor(clip, sampling_rate=16000, return_tensors="pt").input_values


def run(model, case, x, **options):
    """(embedding, logits) of one clip as arrays."""
    with torch.no_grad():
        if case.head != "stock":
            h, logits = model(x, **options)
            return h[0].numpy(), logits[0].numpy()
        kept = []
        hook = model.projector.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        logits = model(x).logits
        hook.remove()
        return kept[0].mean(dim=1)[0].numpy(), logits[0].numpy()


def compute(model, case, clips, **options):
    """{clip: (embedding, logits)} in fp32, and the largest |fp32 - fp64| of the logits."""
    results = {name: run(model, case, extract(case, clip), **options) for name, clip in clips.items()}
    noise = 0.0
    model.double()
    for name, clip in clips.items():
        x = torch.from_numpy(normalise(clip.astype(np.float64), case.do_normalize))[None]
        exact = run(model, case, x, **options)[1]
        noise = max(noise, float(np.abs(exact - results[name][1]).max()))
    model.float()
    return results, noise
