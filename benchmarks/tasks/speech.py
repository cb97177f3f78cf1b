"""A trained detector of speech (convolutions, then an LSTM) on synthetic voices in noise."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import wave
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tasks.base import Inputs, Task

_RATE, _CHUNK, _CONTEXT = 16000, 512, 64
_CHUNKS = 192  # in a clip: six seconds
_SCORED, _OTHERS, _BATCH = 48, 12, 6
_VOICES = ("en-us", "en-gb", "de", "fr", "es", "it", "nl", "pl", "pt", "sv")
_SENTENCES = (
    "the train to the coast leaves at half past seven from platform two",
    "could you tell me where the nearest pharmacy is",
    "we measured every model twice and wrote the results down",
    "after the rain the streets were empty and smelled of summer",
    "please leave a message after the tone",
    "eleven hundred and forty two",
    "no",
    "a compiler is a program that nobody thanks until it fails",
)
_LOUD = 0.02  # of the peak: what is less is a pause


class SileroVAD(nn.Module):
    """The 16 kHz network of silero-vad 6, over whole clips.

    The original takes a chunk at a time and hands on the LSTM's state; here the convolutions take
    all chunks at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, chunks: torch.Tensor) -> torch.Tensor:
        """From samples, (batch, chunks, 576), to the probability of speech, (batch, chunks)."""
        batch, count, samples = chunks.shape
        x = F.pad(chunks.reshape(-1, 1, samples), (0, 64), mode="reflect")
        x = self.stft_conv(x)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.conv4(self.conv3(x).relu()).relu()
        x, _ = self.lstm(x.reshape(batch, count, 128))
        return self.final_conv(x.relu().transpose(1, 2)).sigmoid().squeeze(1)


def silero() -> Task:
    """silero-vad, scored chunk by chunk by where there is speech."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("there is no speech: apt-get install espeak-ng")
    clips = list(_clips(_SCORED + _OTHERS))
    labels = torch.stack([label for _, label in clips[:_SCORED]])
    return Task(
        "silero_vad",
        _model(),
        _batches(clips[:_SCORED]),
        _batches(clips[_SCORED:]),
        lambda probabilities: (probabilities > 0.5) == labels,
        "accuracy of chunks",
        labels.numel(),
    )


def _model() -> SileroVAD:
    from safetensors.torch import load_file

    package = find_spec("silero_vad")  # to import it would leave torch a single thread
    if package is None or package.origin is None:
        raise SystemExit("there is no model: pip install silero-vad")
    stored = load_file(Path(package.origin).parent / "data" / "silero_vad_16k.safetensors")
    state = {name.replace("lstm_cell.", "lstm."): tensor for name, tensor in stored.items()}
    for name in [name for name in state if name.startswith("lstm.")]:
        state[f"{name}_l0"] = state.pop(name)
    model = SileroVAD()
    model.load_state_dict(state)
    return model.eval()


def _batches(clips: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Inputs]:
    chunks = torch.stack([_chunks(audio) for audio, _ in clips])
    return [(part,) for part in chunks.split(_BATCH)]


def _chunks(audio: torch.Tensor) -> torch.Tensor:
    """Chunks that begin with the end of the one before."""
    return F.pad(audio, (_CONTEXT, 0)).unfold(0, _CONTEXT + _CHUNK, _CHUNK)


def _clips(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Utterances with pauses between them in noise, and which chunks hold speech."""
    draw = random.Random(0)
    for index in range(count):
        clean = np.zeros(_CHUNKS * _CHUNK, dtype=np.float32)
        start = draw.randrange(_RATE)
        while start < len(clean) - _RATE:
            spoken = _speak(draw.choice(_SENTENCES), _VOICES[index % len(_VOICES)], draw)
            end = min(len(clean), start + len(spoken))
            clean[start:end] += spoken[: end - start]
            start = end + draw.randrange(_RATE // 2, 2 * _RATE)
        noisy = clean + _noise(len(clean), draw)
        yield torch.from_numpy(noisy.astype(np.float32)), _speech(clean)


def _speak(text: str, voice: str, draw: random.Random) -> np.ndarray:
    from scipy.signal import resample_poly

    pace, pitch = str(draw.randrange(130, 200)), str(draw.randrange(20, 80))
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", pace, "-p", pitch, text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate, frames = file.getframerate(), file.readframes(1 << 30)
    samples = np.frombuffer(frames, np.int16).astype(np.float32) / 32768
    resampled: np.ndarray = resample_poly(samples, _RATE, rate).astype(np.float32)
    return resampled * draw.uniform(0.3, 1.0)


def _noise(length: int, draw: random.Random) -> np.ndarray:
    """White to brown, at 0.1 to 3 % of full scale."""
    random_numbers = np.random.default_rng(draw.randrange(1 << 30))
    spectrum = np.fft.rfft(random_numbers.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** draw.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)
    return noise / np.abs(noise).std() * 10 ** draw.uniform(-3, -1.5)


def _speech(clean: np.ndarray) -> torch.Tensor:
    """Which chunks are louder than a pause for at least half of their time."""
    loud = torch.from_numpy(np.abs(clean) > _LOUD * np.abs(clean).max()).float()
    # a voice crosses zero all the time: loud is what has been loud within 50 ms
    near = F.max_pool1d(loud[None, None], 1601, stride=1, padding=800)[0, 0]
    return near.reshape(_CHUNKS, _CHUNK).mean(1) > 0.5
