"""What scripts see of a machine: a PATH, a clone without an environment, a metadata server."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
PYTHON = f'exec {sys.executable} "$@"'
_TOOLS = "bash basename cat dirname env flock grep head mkdir sed sha256sum tee yes"
# What another machine than this one would not have set.
_OURS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")


def run(*command, path=None, cwd=None, env=None):
    """Runs a script to its end."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=environment(path, env),
        cwd=cwd,
        check=False,
    )


def environment(path=None, env=None):
    """Ours, without what says what this machine is."""
    kept = {k: v for k, v in os.environ.items() if k not in _OURS}
    return kept | ({"PATH": path} if path else {}) | (env or {})


def make_clone(folder):
    """A copy of what the scripts need, without an environment, in a folder with a blank."""
    root = folder / "a clone"
    shutil.copytree(ROOT / "launch", root / "launch")
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in ("pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, root)
    return root


def fake_bin(folder, **programs):
    """A PATH with the basic tools and these programs, but no uv and no other Python."""
    folder.mkdir()
    for tool in _TOOLS.split():
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    for name, body in programs.items():
        write_program(folder / name.replace("_", "-"), body)
    return str(folder)


def write_program(path, body):
    """A program of a few lines of shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@contextmanager
def metadata_server(attributes: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The variables of a VM whose metadata server has these attributes."""
    prefix = "/computeMetadata/v1/instance/attributes/"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix(prefix)
            known = name in attributes and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(attributes[name].encode() if known else b"")

        def log_message(self, format, *args):  # noqa: A002 - the library's name
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"GCE_METADATA_IP": f"localhost:{server.server_port}"}
    finally:
        server.shutdown()
        server.server_close()
