"""Train the bundled backbone, ``featx.backbones.tiny``, on CIFAR-10 stored as image files.

    python tools/train_tiny.py cifar10/ --bf16

The folder holds ``train/`` and ``test/``, each with one folder of 32x32 images per class. The
schedule is fixed in advance and the last epoch is the result: the test images choose nothing. On
one machine, the same seed, precision and number of threads give the same weights.
"""

import time
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from featx.backbones import tiny

BATCH_SIZE = 128  # images
PEAK_LEARNING_RATE = 0.2
WARMUP_SHARE = 0.2  # of all steps; the learning rate rises, then falls to zero, both linearly
WEIGHT_DECAY = 5e-4  # on convolution and linear weights only
LABEL_SMOOTHING = 0.1  # in [0, 1)
PADDING = 4  # pixels a training crop may shift in each direction


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=tiny.WEIGHTS_FILE)
@click.option("--epochs", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--bf16/--fp32", default=False, show_default=True, help="Precision while training.")
def main(data: Path, out: Path, epochs: int, seed: int, threads: int, bf16: bool) -> None:
    """Train the bundled backbone on the images in DATA (train/ and test/ with class folders)."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    images, labels = read_images(data / "train")
    train(images, labels, out, epochs=epochs, seed=seed, bf16=bf16)
    images, labels = read_images(data / "test")
    accuracy = top_1(read_network(out), images, labels)
    click.echo(
        f"{out}: {out.stat().st_size} bytes, top-1 on {len(images)} test images {accuracy:.4f}"
    )


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return every image below ``folder`` and its class.

    Returns:
        RGB pixels, shape ``(N, 32, 32, 3)``, uint8; indices into ``tiny.CLASSES``, shape ``(N,)``,
        int64.
    """
    dataset = ImageFolder(str(folder))
    if tuple(dataset.classes) != tiny.CLASSES:
        raise click.ClickException(
            f"{folder}: expected the folders {tiny.CLASSES}, found {dataset.classes}"
        )
    pixels = [
        decode_image(path, mode=ImageReadMode.RGB).permute(1, 2, 0) for path, _ in dataset.samples
    ]
    return torch.stack(pixels), torch.tensor(dataset.targets)


def train(images: Tensor, labels: Tensor, out: Path, *, epochs: int, seed: int, bf16: bool) -> None:
    """Fit the network, writing it to ``out`` after every epoch: a stopped run leaves something.

    Args:
        images: RGB pixels, shape ``(N, 32, 32, 3)``, uint8.
        labels: Class indices, shape ``(N,)``, int64.
        out: The file to write.
        epochs: Passes over the images, at least 1.
        seed: Of the initial weights, the order of the images and their augmentation.
        bf16: Compute the layers in bfloat16; weights and loss stay float32.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = tiny.Tiny().to(memory_format=torch.channels_last)
    loss_of = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    steps = len(images) // BATCH_SIZE  # per epoch; a smaller last batch is left out
    optimizer, scheduler = make_optimizer(network, num_steps=epochs * steps)
    padded = pad(images)
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        total_loss = torch.zeros(())
        order = torch.randperm(len(images), generator=generator)[: steps * BATCH_SIZE]
        for indices in order.split(BATCH_SIZE):
            batch = normalise(crop_and_flip(padded, indices, generator))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = network(batch)
            loss = loss_of(logits.float(), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total_loss += loss.detach()
        write_weights(network, out)
        seconds = time.perf_counter() - started
        click.echo(f"epoch {epoch}/{epochs}  loss {total_loss / steps:.4f}  {seconds:.0f} s")


def make_optimizer(
    network: nn.Module, *, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return Nesterov SGD and its schedule: up for ``WARMUP_SHARE`` of the steps, then to zero."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    norms_and_biases = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": norms_and_biases}],
        lr=PEAK_LEARNING_RATE,
        momentum=0.9,
        nesterov=True,
    )
    warmup = max(1, round(WARMUP_SHARE * num_steps))

    def share_of_peak(step: int) -> float:
        return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)


def pad(images: Tensor) -> Tensor:
    """Return uint8 images ``(N, H, W, 3)`` with ``PADDING`` mirrored pixels on every side."""
    channels_first = images.permute(0, 3, 1, 2)
    mirrored = nn.functional.pad(channels_first, (PADDING,) * 4, mode="reflect")
    return mirrored.permute(0, 2, 3, 1).contiguous()


def crop_and_flip(padded: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Return randomly shifted images, half of them mirrored, uint8 ``(n, 32, 32, 3)``."""
    n, size = len(indices), tiny.IMAGE_SIZE
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    steps = torch.arange(size)
    rows = top + steps  # (n, size)
    columns = left + torch.where(mirrored, steps.flip(0), steps)  # (n, size)
    return padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images: Tensor) -> Tensor:
    """Return uint8 ``(N, H, W, 3)`` as the network's input, float32 ``(N, 3, H, W)``."""
    scaled = (images / 255 - torch.tensor(tiny.MEAN)) / torch.tensor(tiny.STD)
    return scaled.permute(0, 3, 1, 2)


def write_weights(network: nn.Module, out: Path) -> None:
    """Write the weights to ``out``, floating ones as float16, replacing the file in one step."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(save(tensors))
    partial.replace(out)


def read_network(weights: Path) -> tiny.Tiny:
    """Return the network with the weights as saved, computing in float32."""
    network = tiny.Tiny()
    network.load_state_dict(load_file(weights))
    return network.eval()


@torch.inference_mode()
def top_1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share, in [0, 1], of uint8 images ``(N, H, W, 3)`` that are classified rightly."""
    hits = sum(
        int((network(normalise(some)).argmax(1) == wanted).sum())
        for some, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(images)


if __name__ == "__main__":
    main()
