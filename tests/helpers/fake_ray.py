"""Ray in one process: calls are done one by one, in any order, and actors end at random."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import Future
from threading import Lock, Thread
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
    """A call."""

    def __init__(self, handle: Handle, name: str, message: bytes) -> None:
        self.handle, self.name, self.message = handle, name, message
        self._future: Future[Any] = Future()

    def future(self) -> Future[Any]:
        self.handle.ray.begin(self)
        return self._future

    def do(self) -> None:
        args, options = pickle.loads(self.message)
        try:
            result = getattr(self.handle.actor, self.name)(*args, **options)
            self._future.set_result(pickle.loads(pickle.dumps(result)))
        except Exception as err:
            self._future.set_exception(RayTaskError(err))

    def fail(self) -> None:
        self._future.set_exception(RayError("The actor died unexpectedly."))


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
        self.node = ""  # of the call under way
        self._open: list[Ref] = []
        self._lock = Lock()
        self._thread: Thread | None = None

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
        return SimpleNamespace(get_node_id=lambda: self.node)

    def ends(self, ref: Ref) -> bool:
        """Return whether a call ends its actor."""
        ends = self.random.random() < self.ending.get(ref.name, 0)
        return ends and self.num_ended < self.most_ended

    def begin(self, ref: Ref) -> None:
        with self._lock:
            self._open.append(ref)
            if self._thread is None:
                self._thread = Thread(target=self._run, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._open:
                    self._thread = None
                    return
                ref = self._open.pop(self.random.randrange(len(self._open)))
            if ref.handle.is_alive and self.ends(ref):
                ref.handle.is_alive, self.num_ended = False, self.num_ended + 1
            if ref.handle.is_alive:
                self.node = ref.handle.node
                ref.do()
            else:
                ref.fail()

    def kill(self, handle: Handle, no_restart: bool) -> None:
        assert no_restart
        handle.is_alive = False
