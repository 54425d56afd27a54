"""A headless Chromium, driven over its DevTools protocol. Tests that need one are skipped where none is installed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 60.0
ANSWER_SECONDS = 120.0


def find_browser() -> str | None:
    """The program of an installed Chromium; None without one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Browser:
    """A browser with one tab. Use as a context manager."""

    profile: Path
    """An empty folder."""
    width: int = 1280
    height: int = 900
    is_dark: bool = False
    console: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions of scripts."""
    requests: list[str] = field(default_factory=list)
    """Every address that the pages asked for."""
    _process: subprocess.Popen[bytes] | None = None
    _socket: ClientConnection | None = None
    _number: int = 0

    def __enter__(self) -> Browser:
        program = find_browser()
        assert program is not None
        self.profile.mkdir(parents=True, exist_ok=True)
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={self.profile}"]
        command += ["--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = int(self._wait_for(lambda: (self.profile / "DevToolsActivePort").read_text().split()[0]))
            pages = self._wait_for(lambda: [one for one in httpx.get(f"http://127.0.0.1:{port}/json").json() if one["type"] == "page"])
            self._socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.resize(self.width, self.height, is_dark=self.is_dark)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def _wait_for(self, read: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if found := read():
                    return found
            except (OSError, IndexError, httpx.HTTPError):
                pass
            time.sleep(0.1)
        raise TimeoutError("the browser did not start")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command. Events that arrive before it are noted."""
        assert self._socket is not None
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.console.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")

    def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open a page and wait until it has loaded."""
        self.call("Page.navigate", url=address)
        self.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value_of(self, expression: str) -> Any:
        """The value of an expression in the page, as JSON gives it. A promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 600.0) -> None:
        """Return once an expression is true. An element counts as true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.value_of(f"Boolean({expression})"):
                return
            time.sleep(0.1)
        text = self.value_of("document.body.innerText.slice(0, 600)")
        raise AssertionError(f"not within {seconds:g} s: {expression}; console: {self.console}; page: {text}")

    def choose_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files in a file input, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def fill(self, **values: object) -> None:
        """Type into fields, found by their ids."""
        for id, value in values.items():
            changed = "found.dispatchEvent(new Event('input', {bubbles: true}))"
            begin = f"const found = document.getElementById({json.dumps(id)}); found.value = {json.dumps(str(value))}"
            self.value_of(f"(() => {{ {begin}; {changed}; }})()")

    def screenshot(self, path: Path, *, is_whole: bool = True) -> None:
        """Write a PNG of the page, of all of it or of what the window shows."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(answer["data"]))
