"""Finds the hosts of a run; called by the launchers, with nothing but Python's own library.

    python launch/hosts.py gpu|tpu [--hosts LIST] [--host-index I] [--num-hosts N] [--port P]

Prints one `name=value` a line: who said so, all hosts, which one this is, and where they meet. What
contradicts itself is an error in one line (exit code 2), never a guess.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

_PORT = 8482  # Any that is free will do; JAX takes this one on TPUs.
_SLURM_PORTS = (61440, 4096)  # Jobs that share a node should not share a port.
_METADATA_S = 5.0


class HostsError(Exception):
    """The hosts cannot be told."""


class Given(NamedTuple):
    """What the command line says."""

    hosts: str | None
    host_index: int | None
    num_hosts: int | None
    port: int | None


class Hosts(NamedTuple):
    """All hosts of a run, a process each."""

    source: str  # Who said so.
    names: list[str]
    host_index: int | None  # Of this one; None: it starts the others.
    port: int

    def lines(self) -> list[str]:
        """For the shell."""
        one = len(self.names) == 1
        index = self.host_index or 0
        return [
            f"source={self.source}",
            f"hosts={' '.join(self.names)}",
            f"host={self.names[index]}",
            f"host_index={index}",
            f"starts_others={'true' if self.host_index is None and not one else 'false'}",
            f"coordinator={'' if one else f'{self.names[0]}:{self.port}'}",
        ]


def find(kind: str, given: Given, environ: Mapping[str, str]) -> Hosts:
    """Asks, in this order: the command line, Slurm, JobSet or GKE, the TPU's metadata server."""
    if given.hosts is not None:
        return _listed(given)
    if given.host_index is not None:
        raise HostsError(f"--host-index {given.host_index} needs --hosts")
    slurm, kubernetes = "SLURM_JOB_ID" in environ, "JOBSET_NAME" in environ
    if slurm and kubernetes:
        raise HostsError(
            f"SLURM_JOB_ID {environ['SLURM_JOB_ID']} and JOBSET_NAME {environ['JOBSET_NAME']} are "
            "both set: unset the one that did not start this, or give --hosts"
        )
    if given.num_hosts is not None and not kubernetes:
        raise HostsError(f"--num-hosts {given.num_hosts} is for a JobSet: JOBSET_NAME is not set")
    if kind == "tpu" and "TPU_WORKER_HOSTNAMES" in environ:
        return _gke_tpu(given, environ)
    if slurm:
        return _slurm(given, environ)
    if kubernetes:
        return _jobset(given, environ)
    if kind == "tpu":
        return _tpu_vm(given, environ)
    return Hosts("this host", [socket.gethostname()], 0, _port(given))


def _listed(given: Given) -> Hosts:
    text = given.hosts or ""
    source = f"--hosts {text}"
    if Path(text).is_file():
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        names = [line.split("#")[0].strip() for line in lines]
        names = [name for name in names if name]
    else:
        names = text.split(",")
    wrong = [name for name in names if not re.fullmatch(r"[\w.:@-]+", name)]
    if not names or wrong:
        raise HostsError(
            f"{source}: {wrong[0] if wrong else ''!r} is no host; give h1,h2 or a file"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise HostsError(f"{source} names {twice[0]} twice: each host runs one process")
    if given.num_hosts not in (None, len(names)):
        raise HostsError(f"--num-hosts {given.num_hosts} with the {len(names)} hosts of {source}")
    if given.host_index is not None:
        _check_index("--host-index", given.host_index, names, source)
    return Hosts("--hosts", names, given.host_index, _port(given))


def _slurm(given: Given, environ: Mapping[str, str]) -> Hosts:
    in_step = "SLURM_STEP_ID" in environ
    variable = "SLURM_STEP_NODELIST" if in_step else "SLURM_JOB_NODELIST"
    nodes = _variable(environ, variable)
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise HostsError(
            f"{variable} {nodes}: scontrol does not say which hosts: {said}"
        ) from error
    names = shown.stdout.split()
    if not in_step:
        if len(names) != 1:
            raise HostsError(
                f"SLURM_JOB_NODELIST {nodes} has {len(names)} hosts, and SLURM_STEP_ID is not set: "
                "start one process on each by `srun --ntasks-per-node=1 launch/...`"
            )
        return Hosts("Slurm", names, 0, _port(given))
    tasks = _number(environ, "SLURM_NTASKS")
    if tasks != len(names):
        raise HostsError(
            f"SLURM_NTASKS {tasks} is not one process for each of the {len(names)} hosts of "
            f"{variable} {nodes}: give srun --ntasks-per-node=1"
        )
    index = _number(environ, "SLURM_PROCID")
    _check_index("SLURM_PROCID", index, names, f"{variable} {nodes}")
    if (node := _number(environ, "SLURM_NODEID")) != index:
        raise HostsError(
            f"SLURM_PROCID {index} runs on SLURM_NODEID {node}: give srun --distribution=block"
        )
    first, count = _SLURM_PORTS
    return Hosts(
        "Slurm", names, index, given.port or first + _number(environ, "SLURM_JOB_ID") % count
    )


def _jobset(given: Given, environ: Mapping[str, str]) -> Hosts:
    """Pods have the names that JobSet's headless service gives them."""
    jobset = environ["JOBSET_NAME"]
    job = f"{jobset}-{_variable(environ, 'REPLICATED_JOB_NAME')}"
    if (replica := _number(environ, "JOB_INDEX", "0")) != 0:
        raise HostsError(f"JOB_INDEX {replica}: a run is one job of the JobSet; set replicas: 1")
    if given.num_hosts is None:
        raise HostsError(f"JOBSET_NAME {jobset} needs --num-hosts, the job's parallelism")
    if given.num_hosts < 1:
        raise HostsError(f"--num-hosts {given.num_hosts} must be >= 1")
    names = [f"{job}-0-{index}.{jobset}" for index in range(given.num_hosts)]
    index = _number(environ, "JOB_COMPLETION_INDEX")
    _check_index("JOB_COMPLETION_INDEX", index, names, f"--num-hosts {given.num_hosts}")
    return Hosts("JobSet", names, index, _port(given))


def _gke_tpu(given: Given, environ: Mapping[str, str]) -> Hosts:
    """As GKE's own webhook says it to the pods of a slice."""
    listed = environ["TPU_WORKER_HOSTNAMES"]
    names = listed.split(",")
    source = f"TPU_WORKER_HOSTNAMES {listed}"
    slices = _number(environ, "MEGASCALE_NUM_SLICES", "1")
    if slices != 1:
        raise HostsError(f"MEGASCALE_NUM_SLICES {slices}: a run takes one slice")
    if len(names) == 1:
        return Hosts("GKE", [socket.gethostname()], 0, _port(given))
    index = _number(environ, "TPU_WORKER_ID")
    _check_index("TPU_WORKER_ID", index, names, source)
    pod = _number(environ, "JOB_COMPLETION_INDEX", str(index))
    if pod != index:
        raise HostsError(
            f"TPU_WORKER_ID {index} and JOB_COMPLETION_INDEX {pod} of one pod differ: unset "
            "TPU_WORKER_HOSTNAMES and TPU_WORKER_ID where you set them yourself"
        )
    if given.num_hosts not in (None, len(names)):
        raise HostsError(f"--num-hosts {given.num_hosts} with the {len(names)} hosts of {source}")
    return Hosts("GKE", names, index, _port(given))


def _tpu_vm(given: Given, environ: Mapping[str, str]) -> Hosts:
    endpoints = metadata("worker-network-endpoints", environ)
    names = []
    for endpoint in endpoints.split(","):
        parts = endpoint.strip().split(":")  # A name or address; in older images name:id:address.
        if len(parts) not in (1, 3) or not parts[-1]:
            raise HostsError(f"worker-network-endpoints {endpoints} has no address in {endpoint!r}")
        names.append(parts[-1])
    said = metadata("agent-worker-number", environ)
    index = _number({"agent-worker-number": said}, "agent-worker-number")
    _check_index("agent-worker-number", index, names, f"worker-network-endpoints {endpoints}")
    return Hosts("TPU metadata", names, index, _port(given))


def metadata(name: str, environ: Mapping[str, str], remedy: str = "give --hosts") -> str:
    """An attribute of this VM."""
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")  # JAX reads it too.
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # It is in the machine.
    try:
        with opener.open(request, timeout=_METADATA_S) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        raise HostsError(
            f"the metadata server {server} has no {name} ({error.code}): this is no TPU VM; "
            f"{remedy}"
        ) from error
    except OSError as error:
        raise HostsError(
            f"no metadata server answers at {server} and TPU_WORKER_HOSTNAMES is not set: this is "
            f"no TPU VM and no GKE pod with TPUs; {remedy}"
        ) from error


def _variable(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise HostsError(f"{name} is not set: start this by srun, by a JobSet, or give --hosts")
    return environ[name]


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = _variable({name: environ.get(name) or default}, name)
    if not re.fullmatch(r"\d+", value):
        raise HostsError(f"{name} {value!r} is no number from 0 on")
    return int(value)


def _check_index(name: str, index: int, names: list[str], source: str) -> None:
    if not 0 <= index < len(names):
        raise HostsError(f"{name} {index} is none of the {len(names)} hosts of {source}, from 0 on")


def _port(given: Given) -> int:
    return given.port or _PORT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise HostsError(message)


def parser() -> argparse.ArgumentParser:
    """What the launchers hand over."""
    options = _Parser(allow_abbrev=False)
    options.add_argument("kind", choices=("gpu", "tpu"))
    options.add_argument("--hosts")
    for name in ("--host-index", "--num-hosts", "--port"):
        options.add_argument(name, type=int)
    return options


def main() -> int:
    """Prints what was found."""
    try:
        args = vars(parser().parse_args())
        found = find(args.pop("kind"), Given(**args), os.environ)
    except HostsError as error:
        sys.stderr.write(f"star: error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in found.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
