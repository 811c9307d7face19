"""Second stage: the transformer and the classification head learn emotions from EMO-DB."""

import time

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from .data import load_audio, normalise, perturb

BATCH, PEAK_RATE, SMOOTHING = 32, 1.5e-3, 0.1


@torch.no_grad()
def cache_features(model, clips, indices, variants, seed, log=print):
    """Front-end frames {index: [the original, `variants` augmented versions]} of the clips at `indices`."""
    extractor = model.wav2vec2.feature_extractor.eval()
    start, cache = time.time(), {}
    for index in indices:
        rng = np.random.default_rng([seed, index])
        samples = load_audio(clips[index].path)
        versions = [samples] + [perturb(samples, rng) for _ in range(variants)]
        cache[index] = [extractor(torch.from_numpy(normalise(v))[None])[0].T.half().numpy() for v in versions]
        if len(cache) % 50 == 0:
            log(f"features of {len(cache)}/{len(indices)} clips {time.time() - start:.0f} s")
    return cache


def _excerpt(frames, rng):
    """A random excerpt, played a little faster or slower at the same pitch."""
    length = min(int(rng.integers(60, 125)), len(frames))
    first = int(rng.integers(0, len(frames) - length + 1))
    frames = torch.from_numpy(frames[first:first + length]).float()
    stretched = max(20, int(length * rng.uniform(0.85, 1.2)))
    return F.interpolate(frames.T[None], size=stretched, mode="linear", align_corners=True)[0].T


def _batch(cache, chosen, rng):
    """Padded excerpts [batch, frames, dim] and their mask."""
    parts = [_excerpt(cache[i][rng.integers(0, len(cache[i]))], rng) for i in chosen]
    frames = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor([len(p) for p in parts])
    return frames, torch.arange(frames.shape[1])[None] < lengths[:, None]


def _logits(model, frames, mask):
    """The classifier from front-end frames onwards, as the whole model computes it."""
    hidden, _ = model.wav2vec2.feature_projection(frames)
    hidden = model.wav2vec2._mask_hidden_states(hidden, attention_mask=mask)
    hidden = model.wav2vec2.encoder(hidden, attention_mask=mask).last_hidden_state
    hidden = model.projector(hidden) * mask[:, :, None]
    return model.classifier(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def train_classifier(model, cache, targets, train, epochs, seed, log=print):
    """Train all but the front end on the clips `train` for a fixed number of epochs.

    Classes are drawn equally often. The weights left in `model` are an exponential moving average.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    rng = np.random.default_rng(seed)
    model.freeze_feature_encoder()
    params = [p for p in model.parameters() if p.requires_grad]
    steps = epochs * max(1, len(train) // BATCH)
    optimiser = torch.optim.AdamW(params, lr=PEAK_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps, pct_start=0.15)
    average = [p.detach().clone() for p in params]
    members = [[i for i in train if targets[i] == label] for label in sorted(set(targets[i] for i in train))]
    model.train()
    start, running = time.time(), None
    for step in range(steps):
        chosen = [group[rng.integers(0, len(group))]
                  for group in (members[k] for k in rng.permutation(np.arange(BATCH) % len(members)))]
        frames, mask = _batch(cache, chosen, rng)
        loss = F.cross_entropy(_logits(model, frames, mask), torch.tensor([targets[i] for i in chosen]),
                               label_smoothing=SMOOTHING)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        schedule.step()
        decay = min(0.99, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % max(1, steps // 20) == 0:
            log(f"step {step + 1}/{steps} loss {running:.3f} {time.time() - start:.0f} s")
    with torch.no_grad():
        for parameter, value in zip(params, average):
            parameter.copy_(value)
    model.eval()


@torch.no_grad()
def predict(model, extractor, clip):
    """Label index of one clip: alone, whole, without padding."""
    inputs = extractor(load_audio(clip.path), sampling_rate=16000, return_tensors="pt")
    return int(model.eval()(inputs.input_values).logits.argmax())
