"""Computer-made, speech-like signals whose pitch is known exactly.

They teach the convolutional front end to hear spectra and pitch before it meets any recording, so
that no speaker of the data set is needed for that step.
"""

import math

import torch
import torch.nn.functional as F

RATE = 16000


def _smooth(batch, points, length, scale, generator):
    """Random curves [batch, length], linear between `points` normal values."""
    knots = torch.randn(batch, 1, points, generator=generator) * scale
    return F.interpolate(knots, size=length, mode="linear", align_corners=True)[:, 0]


def speech_like(batch, length, generator):
    """Return signals [batch, length], pitch in Hz and voicing (0 or 1), all per sample.

    A pulse-like source with a wandering pitch and a noise source are switched on and off, then
    shaped by a random spectral envelope that moves over time, then buried a little in noise.
    """
    uniform = lambda low, high: low + (high - low) * torch.rand(batch, 1, generator=generator)
    seconds = length / RATE
    pitch = torch.exp(uniform(math.log(85), math.log(380))
                      + _smooth(batch, int(3 * seconds) + 2, length, 0.22, generator)
                      + _smooth(batch, int(40 * seconds), length, 0.01, generator)).clamp(60, 700)
    phase = torch.cumsum(pitch / RATE, dim=1)
    cycle = phase - torch.floor(phase)
    open_part = uniform(0.3, 0.9)
    pulse = torch.where(cycle < open_part, (cycle / open_part) ** 2 * (1 - cycle / open_part), cycle * 0)
    pulse = torch.diff(pulse, dim=1, prepend=pulse[:, :1])
    pulse = pulse / (pulse.std(dim=1, keepdim=True) + 1e-6)
    voicing = (_smooth(batch, int(7 * seconds) + 2, length, 1.0, generator) > -0.45).float()
    breath = _smooth(batch, int(8 * seconds) + 2, length, 6.0, generator) - 24 * voicing - 2
    noise = torch.randn(batch, length, generator=generator)
    source = pulse * voicing + noise * 10 ** (breath / 20)

    window = torch.hann_window(512)
    spectrum = torch.stft(source, 512, 128, window=window, return_complex=True)
    frames = spectrum.shape[-1]
    grid = torch.randn(batch, 1, 18, int(9 * seconds) + 2, generator=generator) * 9
    envelope = F.interpolate(grid, size=(257, frames), mode="bicubic", align_corners=True)[:, 0]
    octaves = torch.log2(torch.arange(257).clamp(min=4) / 32.0)[None, :, None]
    envelope = envelope + uniform(-6, 2)[:, :, None] * octaves
    envelope = envelope + F.interpolate(
        torch.randn(batch, 1, int(6 * seconds) + 2, generator=generator) * 9,
        size=frames, mode="linear", align_corners=True)
    spectrum = spectrum * 10 ** (envelope.clamp(-70, 40) / 20)
    signal = torch.istft(spectrum, 512, 128, window=window, length=length)
    level = signal.std(dim=1, keepdim=True)
    signal = signal + torch.randn(batch, length, generator=generator) * level * 10 ** (-uniform(15, 65) / 20)
    signal = signal - signal.mean(dim=1, keepdim=True)
    return signal / (signal.std(dim=1, keepdim=True) + 1e-5), pitch, voicing
