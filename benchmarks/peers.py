"""The peers, each as its own documentation uses it: what benchmarks/extraction.py starts.

    python benchmarks/peers.py PEER SOURCE BACKBONE

Runs in whatever environment the peer is installed in, so it imports nothing of featx's (but for the
network of ``tiny``, which only featx has). Weights are random; all of them keep the features in
memory and write nothing.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timed import timed

BATCH_SIZE = 32
TIMM = {
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "vit_b_16": "vit_base_patch16_224",
}
"""Where timm calls a network otherwise than torchvision."""
THINGSVISION = {"mobilenet_v3_small": "classifier.1", "vit_b_16": "encoder.ln"}
"""Module whose output thingsvision keeps; the others' is ``avgpool``."""

Run = Callable[[], int]


def data_loader(
    source: Path,
    backbone: str,
    *,
    layout: str = "contiguous_format",
    device: str = "cpu",
    half: bool = False,
) -> Run:
    """Return a loop as one writes it by hand."""
    import torch
    from torchvision import transforms

    model: Any
    if backbone == "tiny":
        from featx.backbones.tiny import MEAN, STD, Tiny

        model, square = Tiny(), []
        mean, std = list(MEAN), list(STD)
        model.head = torch.nn.Identity()
    else:
        model = headless(backbone)
        square = [transforms.Resize(256), transforms.CenterCrop(224)]
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [*square, transforms.ToTensor(), transforms.Normalize(mean, std)]
    memory_format = getattr(torch, layout)
    model.eval().to(device, memory_format=memory_format)
    if half:
        model = torch.autocast(device, torch.bfloat16)(model)
    return loop(source, model, transforms.Compose(steps), memory_format, device)


def headless(backbone: str) -> Any:
    """Return torchvision's network with random weights, its last layer replaced by nothing."""
    from torch import nn
    from torchvision import models

    model = models.get_model(backbone, weights=None)
    for name in ("fc", "classifier", "heads"):
        last = getattr(model, name, None)
        if isinstance(last, nn.Sequential):
            last[-1] = nn.Identity()
        elif last is not None:
            setattr(model, name, nn.Identity())
    return model


def loop(source: Path, model: Any, transform: Any, memory_format: Any, device: str = "cpu") -> Run:
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    paths = sorted(source.rglob("*.jpg"))

    class Photos(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            tensor: torch.Tensor = transform(Image.open(paths[index]).convert("RGB"))
            return tensor

    workers = len(os.sched_getaffinity(0))
    is_pinned = device == "cuda"
    loader = DataLoader(Photos(), batch_size=BATCH_SIZE, num_workers=workers, pin_memory=is_pinned)

    if device == "cuda":  # the libraries behind it are loaded by the first batch
        with torch.inference_mode():
            model(torch.zeros(BATCH_SIZE, 3, 224, 224, device=device)).cpu()

    def run() -> int:
        features = []
        with torch.inference_mode():
            for images in loader:
                batch = images.to(device, memory_format=memory_format, non_blocking=is_pinned)
                features.append(model(batch).float().cpu().numpy())
        return len(np.concatenate(features))

    return run


def channels_last(source: Path, backbone: str) -> Run:
    """Return the same by one who knows which memory layout convolutions like."""
    return data_loader(source, backbone, layout="channels_last")


def timm(source: Path, backbone: str) -> Run:
    """Return timm's network with timm's transform, as its documentation extracts features."""
    import timm as library
    import torch

    model = library.create_model(TIMM.get(backbone, backbone), pretrained=False, num_classes=0)
    transform = library.data.create_transform(
        **library.data.resolve_data_config({}, model=model), is_training=False
    )
    return loop(source, model.eval(), transform, torch.contiguous_format)


def img2vec(source: Path, backbone: str) -> Run:
    """Return img2vec-pytorch over lists of images."""
    import img2vec_pytorch.img_to_vec as library
    import numpy as np
    from PIL import Image
    from torchvision import models

    def without_download(**_: object) -> Any:
        return models.get_model(backbone, weights=None)

    setattr(library, backbone, without_download)
    extractor = library.Img2Vec(cuda=False, model=backbone)
    paths = sorted(source.rglob("*.jpg"))

    def run() -> int:
        features = []
        for start in range(0, len(paths), BATCH_SIZE):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH_SIZE]]
            features.append(extractor.get_vec(images))
        return len(np.concatenate(features))

    return run


def thingsvision(source: Path, backbone: str) -> Run:
    """Return thingsvision's extractor over its own data set and loader."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(
        model_name=backbone, source="torchvision", device="cpu", pretrained=False
    )
    dataset = ImageDataset(
        root=str(source),
        out_path=tempfile.mkdtemp(),
        backend=extractor.get_backend(),
        transforms=extractor.get_transformations(),
    )
    batches = DataLoader(dataset=dataset, batch_size=BATCH_SIZE, backend=extractor.get_backend())

    def run() -> int:
        features = extractor.extract_features(
            batches=batches,
            module_name=THINGSVISION.get(backbone, "avgpool"),
            flatten_acts=True,
            output_type="ndarray",
        )
        return len(features)

    return run


def on_gpu(source: Path, backbone: str) -> Run:
    """Return the same on a GPU, from pinned memory, a worker process per core."""
    return data_loader(source, backbone, layout="channels_last", device="cuda")


def half_on_gpu(source: Path, backbone: str) -> Run:
    """Return the same in bf16."""
    return data_loader(source, backbone, layout="channels_last", device="cuda", half=True)


PEERS: dict[str, Callable[[Path, str], Run]] = {
    "DataLoader": data_loader,
    "channels_last": channels_last,
    "DataLoader cuda": on_gpu,
    "DataLoader cuda bf16": half_on_gpu,
    "timm": timm,
    "img2vec": img2vec,
    "thingsvision": thingsvision,
}


def main(arguments: Sequence[str]) -> None:
    """Time one peer."""
    peer, source, backbone = arguments
    timed(PEERS[peer](Path(source), backbone))


if __name__ == "__main__":
    main(sys.argv[1:])
