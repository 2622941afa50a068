"""Training with fastloss.nn goes as it does with torch's own losses."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fastloss
from fastloss import nn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_fallback")]


def trained(
    build: Callable[[], torch.nn.Module], loss: torch.nn.Module, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
) -> tuple[list[float], dict[str, Tensor]]:
    """Return (the loss of each step, the weights at the end) of training from one seed."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    curve = []
    for input, target in batches():
        optimizer.zero_grad()
        value = loss(model(input), target)
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve, model.state_dict()


def assert_same_training(
    build: Callable[[], torch.nn.Module],
    name: str,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    **options: Any,
) -> None:
    theirs, their_weights = trained(build, getattr(torch.nn, name)(**options), batches)
    ours, our_weights = trained(build, getattr(nn, name)(**options), batches)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)
    for key, weight in their_weights.items():
        torch.testing.assert_close(our_weights[key], weight, rtol=1e-4, atol=1e-4)
    assert sum(ours[-20:]) < 0.7 * sum(ours[:20]), "nothing was learnt"


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)


def digit_batches(steps: int = 300) -> Iterator[tuple[Tensor, Tensor]]:
    data, labels = digits()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(data), (128,), generator=generator)
        yield data[chosen], labels[chosen]


def classifier() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))


def test_a_classifier_of_digits() -> None:
    assert_same_training(classifier, "CrossEntropyLoss", digit_batches)


def test_a_classifier_of_digits_by_one_output_each() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for data, labels in digit_batches():
            yield data, torch.nn.functional.one_hot(labels, 10).float()

    assert_same_training(classifier, "BCEWithLogitsLoss", batches)


class LanguageModel(torch.nn.Module):
    """The next byte from those before it; logits of shape (texts, classes, bytes), as a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 24)
        self.recurrence = torch.nn.GRU(24, 48, batch_first=True)
        self.head = torch.nn.Linear(48, 256)

    def forward(self, text: Tensor) -> Tensor:
        hidden, _ = self.recurrence(self.embedding(text))
        logits: Tensor = self.head(hidden)
        return logits.transpose(1, 2)


def license_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield lines of the text that `license()` prints, padded with -1 where they end."""
    import builtins

    builtins.license._Printer__setup()  # type: ignore[attr-defined]  # Python's own way to its licence
    text = "\n".join(builtins.license._Printer__lines).encode()  # type: ignore[attr-defined]  # as above
    lines = [line[:64] for line in text.split(b"\n") if len(line) > 16]
    generator = torch.Generator().manual_seed(2)
    for _ in range(150):
        chosen = [lines[i] for i in torch.randint(len(lines), (16,), generator=generator).tolist()]
        data = torch.zeros(16, 64, dtype=torch.int64)
        target = torch.full((16, 64), -1)
        for row, line in enumerate(chosen):
            data[row, : len(line)] = torch.tensor(list(line))
            target[row, : len(line) - 1] = data[row, 1 : len(line)]
        yield data, target


def test_a_language_model_of_bytes() -> None:
    assert_same_training(LanguageModel, "CrossEntropyLoss", license_batches, ignore_index=-1, label_smoothing=0.1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_segmentation(memory_format: torch.memory_format) -> None:
    def build() -> torch.nn.Module:
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        return layers.to(memory_format=memory_format)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        for _ in range(100):
            images = torch.rand(4, 3, 24, 20, generator=generator)
            yield images.to(memory_format=memory_format), (4.99 * images.mean(1)).long()

    assert_same_training(build, "CrossEntropyLoss", batches, weight=torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0]))


def train_in_parallel(rank: int, rendezvous: str, library: str, out: str) -> None:
    """Train the classifier on this process's half of each batch; process 0 saves the weights."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(classifier())
    loss = {"torch": torch.nn, "fastloss": nn}[library].CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for data, labels in digit_batches(100):
        optimizer.zero_grad()
        loss(model(data[rank::2]), labels[rank::2]).backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.module.state_dict(), out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_data_parallel_training(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.syspath_prepend(str(pathlib.Path(fastloss.__file__).parent.parent))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    weights = []
    for library in ("torch", "fastloss"):
        out = tmp_path / library
        arguments = (str(tmp_path / f"{library}-rendezvous"), library, str(out))
        torch.multiprocessing.spawn(train_in_parallel, arguments, nprocs=2)
        weights.append(torch.load(out))
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, rtol=1e-4, atol=1e-5)
