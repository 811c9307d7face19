"""First stage: the convolutional front end learns to hear, from synthetic signals alone."""

import math
import time

import torch
from torch import nn
import torch.nn.functional as F

from .synth import RATE, speech_like

WINDOW, HOP, BANDS = 400, 320, 48
BATCH, SAMPLES, PEAK_RATE = 6, 20240, 2e-3


def _mel_filters():
    """Triangular filters [201, BANDS] between 50 and 7600 Hz."""
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)
    edges = torch.linspace(mel(50), mel(7600), BANDS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    freqs = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (freqs - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - freqs) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(signals):
    """Log mel spectrum [batch, frames, BANDS] on the frames the front end itself sees."""
    frames = signals.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(frames).abs() ** 2
    return torch.log10(power @ _mel_filters() + 0.01)


def train_frontend(model, steps, seed, log=print):
    """Train feature_extractor and the projection's layer norm to carry spectrum and pitch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    extractor = model.wav2vec2.feature_extractor
    norm = model.wav2vec2.feature_projection.layer_norm
    head = nn.Linear(norm.normalized_shape[0], BANDS + 2)
    params = [*extractor.parameters(), *norm.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(params, lr=PEAK_RATE, weight_decay=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps, pct_start=0.08)
    reference = log_mel(speech_like(64, RATE, generator)[0])
    mean, std = reference.mean(dim=(0, 1)), reference.std(dim=(0, 1))
    extractor.train()
    start, running = time.time(), None
    for step in range(steps):
        signals, pitch, voicing = speech_like(BATCH, SAMPLES, generator)
        target = (log_mel(signals) - mean) / std
        centre = torch.arange(target.shape[1]) * HOP + WINDOW // 2
        tone, voiced = torch.log2(pitch[:, centre] / 180), voicing[:, centre]
        out = head(norm(extractor(signals).transpose(1, 2)))
        spectrum_loss = F.mse_loss(out[..., :BANDS], target)
        pitch_loss = (F.smooth_l1_loss(out[..., BANDS], tone, reduction="none") * voiced).sum() / voiced.sum()
        voice_loss = F.binary_cross_entropy_with_logits(out[..., BANDS + 1], voiced)
        loss = spectrum_loss + 1.0 * pitch_loss + 0.3 * voice_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        schedule.step()
        parts = torch.stack([spectrum_loss, pitch_loss, voice_loss]).detach()
        running = parts if running is None else 0.97 * running + 0.03 * parts
        if (step + 1) % 50 == 0:
            log(f"front end step {step + 1}/{steps} spectrum {running[0]:.3f} pitch {running[1]:.3f} "
                f"voicing {running[2]:.3f} {time.time() - start:.0f} s")
