"""Running a frozen network over batches of pixels: one seam, several engines.

- ``onnxruntime`` runs the network's graph on the CPU, without torch.
- ``torch`` runs the network itself, on the CPU or a CUDA GPU; on several GPUs in a process each.

On the CPU one batch takes one thread, and as many batches run at once as are brought: no thread
ever waits for another, and the features don't depend on the number of threads.

All take uint8 ``(N, size, size, 3)``; scaling and normalising are part of the network.

choice            what an engine is, and which one runs, on which devices, with which precision
with_onnxruntime  ONNX Runtime
with_torch        torch, also on several devices
"""

from featx.backbones.engines.choice import (
    Engine,
    EngineChoice,
    EngineName,
    choose_engine,
    default_batch_size,
    may_have_gpu,
    require_fit,
    resolve_device,
    resolve_devices,
)
from featx.backbones.engines.with_onnxruntime import OnnxEngine
from featx.backbones.engines.with_torch import SeveralEngine, TorchEngine

__all__ = [
    "Engine",
    "EngineChoice",
    "EngineName",
    "OnnxEngine",
    "SeveralEngine",
    "TorchEngine",
    "choose_engine",
    "default_batch_size",
    "may_have_gpu",
    "require_fit",
    "resolve_device",
    "resolve_devices",
]
