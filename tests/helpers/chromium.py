"""A page in a headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Tab:
    """A tab whose requests and errors are noted."""

    def __init__(self, socket: Any, process: int) -> None:
        self._socket, self._number, self._process = socket, 0, process
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if event.get("id") in self._waiting:
                self._waiting.pop(event["id"]).set_result(event)
            elif event.get("method") == "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
            elif event.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded":
                self.errors.append(event["params"]["entry"]["text"])

    async def send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._waiting[self._number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        result = await asyncio.wait_for(answer, 120)
        assert "error" not in result, result
        return result["result"]

    async def run(self, script: str) -> Any:
        """Return what an expression, or the promise it gives, comes to."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def memory(self) -> float:
        """Return what Chromium's processes hold after a collection of garbage, in MB."""
        await self.send("HeapProfiler.collectGarbage")
        return sum(map(_resident, _tree(self._process))) / 1e6

    async def wait_for(self, script: str, seconds: float = 90) -> None:
        """Wait until an expression is true."""
        for _ in range(int(seconds * 10)):
            if await self.run(script):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{script} did not come true; {self.errors}")


def _tree(process: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [process]
    for each in found:
        found.extend(children.get(each, []))
    return found


def _resident(process: int) -> int:
    """Return the bytes of memory that a process has for itself."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


@contextlib.asynccontextmanager
async def _tab(address: str, width: int, flags: Sequence[str]) -> AsyncIterator[Tab]:
    import aiohttp

    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-dev-shm-usage"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}"),
                *(*flags, f"--window-size={width},900", "about:blank"),
            ],
            env=os.environ | {"TMPDIR": profile},  # what it leaves goes with the profile
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr
            port = next(
                match[1]
                for line in process.stderr
                if (match := re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", line))
            )
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as listed:
                    tabs = [each for each in await listed.json() if each["type"] == "page"]
                url = tabs[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    tab = Tab(socket, process.pid)
                    listening = asyncio.create_task(tab.listen())
                    for domain in ("Runtime", "Network", "Log", "Page"):
                        await tab.send(f"{domain}.enable")
                    await tab.send("Page.navigate", url=address)
                    yield tab
                    listening.cancel()
        finally:
            process.terminate()
            process.wait(20)
            if process.stderr:
                process.stderr.close()


def in_chromium(
    address: str,
    use: Callable[[Tab], Awaitable[Any]],
    *,
    width: int = 1000,
    flags: Sequence[str] = (),
) -> Any:
    """Open an address in a new Chromium, and return what ``use`` of the tab returns."""

    async def opened() -> Any:
        async with _tab(address, width, flags) as tab:
            return await use(tab)

    return asyncio.run(opened())
