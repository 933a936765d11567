"""A browser for tests: chromium, told what to do over chromedriver's WebDriver protocol, which is HTTP and JSON."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

AVAILABLE = bool(shutil.which("chromium") and shutil.which("chromedriver"))
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One window. Leave it with `close`, or use it in a with statement."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            [shutil.which("chromedriver"), f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # with the browser it starts: closed together
        )
        self.address, self.session = f"http://127.0.0.1:{port}", ""
        try:
            for _ in range(100):
                try:
                    self.call("GET", "/status")
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            options = {"binary": shutil.which("chromium"), "args": ARGUMENTS}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{made['sessionId']}"
        except BaseException:
            self.close()
            raise

    def call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, page: Path) -> None:
        self.call("POST", self.session + "/url", {"url": page.resolve().as_uri()})

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        body = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self.call("POST", self.session + "/goog/cdp/execute", body)

    def run(self, script: str, *values):
        """What a script returns, a promise awaited."""
        return self.call("POST", self.session + "/execute/sync", {"script": script, "args": list(values)})

    def until(self, condition: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"never so: {condition}"
            time.sleep(0.05)

    def act(self, *sources: dict) -> None:
        """Of real keys, pointers and wheels, as WebDriver has them."""
        self.call("POST", self.session + "/actions", {"actions": list(sources)})

    def complaints(self) -> list[str]:
        """What the console was told since it was last asked."""
        return [line["message"] for line in self.call("POST", self.session + "/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", self.session + "/screenshot")))

    def close(self) -> None:
        if self.session:
            self.call("DELETE", self.session)
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.close()
