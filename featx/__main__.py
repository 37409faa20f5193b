"""The process of the command ``featx``, and of ``python -m featx``: signals first, then the rest.

Importing the command takes some tenths of a second, so this module is the entry point and loads
next to nothing. Ctrl-C, SIGTERM and SIGHUP raise ``KeyboardInterrupt`` in the main thread, whose
blocks tidy up: what is extracted so far is kept, locks are released. They wait until a library is
loaded: initialisers in C++ abort the process where Python code that they call raises. Threads that
are in the middle of a long decode are not waited for. Exit codes are those of shells: 130, 143 and
129.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing takes longer than all of the above
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_GRACE_SECONDS = 1.2
"""For tidying up; then the process ends, whatever it is doing, which its files survive."""
_AGAIN_SECONDS = 0.005
_SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"


class _Stop:
    """Handles the first signal that asks for an end; further ones change nothing."""

    def __init__(self) -> None:
        self.signum = 0
        self.is_running = False  # the command; before that there is nothing to tidy up

    def install(self) -> None:
        """Handle the signals that are not ignored, as they are in a background job."""
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)
        import threading

        reading, writing = os.pipe()
        if hasattr(os, "set_blocking"):
            os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._enforce, args=(reading,), daemon=True).start()
        sys.unraisablehook = self._raise_again

    def leave(self, *, is_told: bool = False) -> NoReturn:
        """End the process at once."""
        if not is_told:
            word = b"Interrupted.\n" if self.signum == signal.SIGINT else b"Terminated.\n"
            try:  # noqa: SIM105 contextlib is not loaded at the start
                os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + word)
            except OSError:  # nobody is there to read it
                pass
        os._exit(128 + self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            return
        self.signum = signum
        if not self.is_running:
            self.leave()
        if _is_loading_library(frame):
            self._send_soon()
            return
        raise KeyboardInterrupt(signum)

    def _enforce(self, reading: int) -> None:
        """Wait for a signal, in a thread of its own: the main one may be in a library for long."""
        while (signum := os.read(reading, 1)[0]) not in _SIGNALS:
            pass
        import time

        time.sleep(_GRACE_SECONDS)
        self.signum = signum
        self.leave()

    def _raise_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again where a library could not pass on the first one."""
        if self.signum and issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._send_soon()
        else:
            sys.__unraisablehook__(unraisable)

    def _send_soon(self) -> None:
        import threading

        threading.Timer(_AGAIN_SECONDS, self._send_again).start()

    def _send_again(self) -> None:
        signum, self.signum = self.signum, 0
        os.kill(os.getpid(), signum)


def _is_loading_library(frame: FrameType | None) -> bool:
    """Return whether the initialiser of an extension module has called Python code."""
    import _imp

    initialisers = (_imp.create_dynamic, _imp.exec_dynamic)
    while frame is not None:
        is_call = frame.f_code.co_name == "_call_with_frames_removed"  # of importlib
        if is_call and frame.f_locals.get("f") in initialisers:
            return True
        frame = frame.f_back
    return False


def _open_standard_streams() -> None:
    """Open descriptors 0 to 2 where they are closed: a file must not get what libraries print.

    ``sys.stdout`` stays None where it was closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def main() -> None:
    """Run the command line of this process, and end it."""
    _open_standard_streams()
    stop = _Stop()
    stop.install()
    try:
        _run(stop)
    except KeyboardInterrupt:
        stop.leave()


def _run(stop: _Stop) -> None:
    try:
        command = _command()
        stop.is_running = True
        command()
    except BaseException as err:  # SystemExit, or a bug
        stop.is_running = False
        if stop.signum:  # without waiting for threads
            stop.leave(is_told=isinstance(err, SystemExit) and err.code == 128 + stop.signum)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; the interpreter takes a moment
        raise


def _command() -> Callable[[], None]:
    try:
        from featx.cli import main
    except ImportError as err:
        from featx.packages import both_installed

        if told := both_installed():
            sys.exit(f"Error: {told} What failed: {err}.")
        raise
    return main


if __name__ == "__main__":
    main()
