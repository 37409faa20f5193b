"""Ray in one process: calls are done one by one, in any order, and actors end at random."""

from __future__ import annotations

import pickle
import random
from types import SimpleNamespace
from typing import Any

NODE_CPUS = 2


class RayError(Exception):
    """Stands for ``ray.exceptions.RayError``, that of an actor that is gone included."""


class RayTaskError(RayError):
    """A call raised an error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    """A call, done once somebody waits for it."""

    def __init__(self, handle: Handle, name: str, message: bytes) -> None:
        self.handle, self.name, self._message = handle, name, message
        self.result: Any = None
        self.error: Exception | None = None
        self.is_done = False

    def do(self) -> None:
        args, options = pickle.loads(self._message)
        try:
            result = getattr(self.handle.actor, self.name)(*args, **options)
            self.result = pickle.loads(pickle.dumps(result))
        except Exception as err:
            self.error = RayTaskError(err)
        self.is_done = True


class Handle:
    """An actor's handle."""

    def __init__(self, ray: FakeRay, actor: Any, node: str) -> None:
        self.ray, self.actor, self.node, self.is_alive = ray, actor, node, True

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **options: Any) -> Ref:
            message = pickle.dumps((args, options))
            self.ray.sent.append((name, self.node, len(message)))
            return Ref(self, name, message)

        return SimpleNamespace(remote=remote)


class FakeRay:
    """What ``ActorPool`` uses of Ray; ``ending`` of the calls of some names end their actor."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, seed: int = 0, num_nodes: int = 2) -> None:
        self.random = random.Random(seed)
        self.ending: dict[str, float] = {}
        self.names = [f"{number:02x}" * 8 for number in range(num_nodes)]
        self.options: list[dict[str, Any]] = []
        self.sent: list[tuple[str, str, int]] = []
        self.handles: list[Handle] = []
        self.num_ended, self.most_ended = 0, 1000
        self._node = ""

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerAddress": f"10.0.0.{i}", "Alive": True}
            | {"Resources": {"CPU": float(NODE_CPUS)}}
            for i, name in enumerate(self.names)
        ]

    def remote(self, **options: Any) -> Any:
        def decorate(kind: Any) -> Any:
            def start(*args: Any) -> Handle:
                self.options.append(options)
                actor = kind(*pickle.loads(pickle.dumps(args)))
                handle = Handle(self, actor, self.random.choice(self.names))
                self.handles.append(handle)
                return handle

            return SimpleNamespace(remote=start)

        return decorate

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: self._node)

    def wait(
        self, refs: list[Ref], num_returns: int, timeout: float
    ) -> tuple[list[Ref], list[Ref]]:
        waiting = [ref for ref in refs if ref.handle.is_alive and not ref.is_done]
        if waiting and (timeout or self.random.random() < 0.3):
            ref = self.random.choice(waiting)
            ends = self.random.random() < self.ending.get(ref.name, 0)
            if ends and self.num_ended < self.most_ended:
                ref.handle.is_alive, self.num_ended = False, self.num_ended + 1
            else:
                self._node = ref.handle.node
                ref.do()
        ready = [ref for ref in refs if ref.is_done or not ref.handle.is_alive]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        if not ref.is_done:
            raise RayError("The actor died unexpectedly.")
        if ref.error:
            raise ref.error
        return ref.result

    def kill(self, handle: Handle, no_restart: bool) -> None:
        assert no_restart
        handle.is_alive = False
