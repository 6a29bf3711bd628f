"""The launchers of accelerators: which hosts and chips they find, and what they would run there."""

import re

import pytest

from tests.machines import (
    PYTHON,
    ROOT,
    fake_bin,
    make_clone,
    metadata_server,
    run,
    write_program,
)

SMI = """case $1 in
  *driver_version) yes {driver} | head -n {count} ;;
  *) yes '{name}, {mib}' | head -n {count} ;;
esac"""
A100 = SMI.format(driver="550.54.15", name="NVIDIA A100-SXM4-80GB", mib=81920, count=8)
SCONTROL = """[[ $* == "show hostnames node[01-04]" ]] || exit 1
printf 'node0%d\\n' 1 2 3 4"""
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_JOB_NODELIST": "node[01-06]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[01-04]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "2",
}
MEETING = "node01:61809"  # 61440 + 70001 % 4096
JOBSET = {
    "JOBSET_NAME": "star",
    "REPLICATED_JOB_NAME": "gpu",
    "JOB_INDEX": "0",
    "JOB_COMPLETION_INDEX": "1",
}
GKE = {
    "JOBSET_NAME": "star",
    "JOB_COMPLETION_INDEX": "3",
    "TPU_WORKER_HOSTNAMES": ",".join(f"star-tpu-0-{index}.star" for index in range(4)),
    "TPU_WORKER_ID": "3",
    "TPU_ACCELERATOR_TYPE": "v6e-16",
}
VM = {
    "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
    "agent-worker-number": "1",
    "accelerator-type": "v5litepod-8",
}


class Machine:
    """A clone on a machine with these programs."""

    def __init__(self, folder):
        self.root = make_clone(folder)
        self.config = self.root / "configs" / "run" / "recommended.py"
        self._folder = folder

    def dry_run(self, script, *args, env=None, **programs):
        programs = {"python3": PYTHON} | programs
        folder = self._folder / f"bin{len(list(self._folder.glob('bin*')))}"
        return run(
            *(self.root / "launch" / script, self.config, "--dry-run", "--workdir", "W", *args),
            path=fake_bin(folder, **programs),
            cwd=self._folder,
            env=env,
        )

    def command(self, done):
        """What would run, without the repository's path."""
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("exec ")]
        root = str(self.root).replace(" ", "\\ ")
        return line.replace(f"{root}/", "").strip()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def expected(*words, command="run"):
    start = f"exec .venv/bin/star {command} configs/run/recommended.py --workdir W"
    return " ".join([start, *words])


def together(coordinator, count, index):
    return f"--coordinator {coordinator} --num-processes {count} --process-id {index}"


def topology(done):
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"/bin/star plan .* --topology (\S+) ", done.stdout)
    return found


def error(done):
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("launch: ")]
    return line.removeprefix("star: error: ")


def test_slurm(machine):
    done = machine.dry_run("gpu_a100.sh", env=SLURM, scontrol=SCONTROL, nvidia_smi=A100)
    assert machine.command(done) == expected(together(MEETING, 4, 2))
    assert "plan" not in done.stdout  # The first one asks.
    first = SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    done = machine.dry_run("gpu_a100.sh", env=first, scontrol=SCONTROL, nvidia_smi=A100)
    assert topology(done) == "a100-80:32"


def test_slurm_without_srun(machine):
    env = {"SLURM_JOB_ID": "70001", "SLURM_JOB_NODELIST": "node07"}
    done = machine.dry_run("gpu_a100.sh", env=env, scontrol="echo node07", nvidia_smi=A100)
    assert machine.command(done) == expected()
    assert "/logs/node07.log" in done.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"SLURM_NTASKS": "32"},
            "SLURM_NTASKS 32 is not one process for each of the 4 hosts of SLURM_STEP_NODELIST "
            "node[01-04]: give srun --ntasks-per-node=1",
        ),
        (
            {"SLURM_NODEID": "1"},
            "SLURM_PROCID 2 runs on SLURM_NODEID 1: give srun --distribution=block",
        ),
        (
            {"SLURM_PROCID": "4"},
            "SLURM_PROCID 4 is none of the 4 hosts of SLURM_STEP_NODELIST node[01-04], from 0 on",
        ),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID 'x' is no number from 0 on"),
        (
            {"SLURM_STEP_NODELIST": "node[01-05]"},
            "SLURM_STEP_NODELIST node[01-05]: scontrol does not say which hosts: ",
        ),
        (
            {"JOBSET_NAME": "star"},
            "SLURM_JOB_ID 70001 and JOBSET_NAME star are both set: unset the one that did not "
            "start this, or give --hosts",
        ),
    ],
)
def test_slurm_that_contradicts_itself(machine, env, message):
    done = machine.dry_run("gpu_a100.sh", env=SLURM | env, scontrol=SCONTROL, nvidia_smi=A100)
    assert error(done).startswith(message)


def test_several_hosts_of_slurm_need_srun(machine):
    env = {"SLURM_JOB_ID": "70001", "SLURM_JOB_NODELIST": "node[01-04]"}
    done = machine.dry_run("gpu_a100.sh", env=env, scontrol=SCONTROL, nvidia_smi=A100)
    assert error(done) == (
        "SLURM_JOB_NODELIST node[01-04] has 4 hosts, and SLURM_STEP_ID is not set: start one "
        "process on each by `srun --ntasks-per-node=1 launch/...`"
    )


def test_jobset(machine):
    args = ("--num-hosts", "2", "--stage", "train-text")
    done = machine.dry_run("gpu_a100.sh", *args, env=JOBSET, nvidia_smi=A100)
    meeting = together("star-gpu-0-0.star:8482", 2, 1)
    assert machine.command(done) == expected(meeting, command="train-text")


@pytest.mark.parametrize(
    ("args", "env", "message"),
    [
        ([], {}, "JOBSET_NAME star needs --num-hosts, the job's parallelism"),
        (
            ["--num-hosts", "1"],
            {},
            "JOB_COMPLETION_INDEX 1 is none of the 1 hosts of --num-hosts 1, from 0 on",
        ),
        (
            ["--num-hosts", "2"],
            {"JOB_INDEX": "1"},
            "JOB_INDEX 1: a run is one job of the JobSet; set replicas: 1",
        ),
        (["--num-hosts", "2"], {"REPLICATED_JOB_NAME": ""}, "REPLICATED_JOB_NAME is not set: "),
    ],
)
def test_jobset_that_contradicts_itself(machine, args, env, message):
    done = machine.dry_run("gpu_a100.sh", *args, env=JOBSET | env, nvidia_smi=A100)
    assert error(done).startswith(message)


def test_gke_tpus(machine):
    meeting = "star-tpu-0-0.star:8482"
    done = machine.dry_run("tpu.sh", env=GKE)
    assert machine.command(done) == expected(together(meeting, 4, 3))
    first = GKE | {"TPU_WORKER_ID": "0", "JOB_COMPLETION_INDEX": "0"}
    assert topology(machine.dry_run("tpu.sh", env=first)) == "v6e:4x4"
    alone = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    done = machine.dry_run("tpu.sh", env=alone)
    assert machine.command(done) == expected()
    assert topology(done) == "v5e:2x2"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"JOB_COMPLETION_INDEX": "2"},
            "TPU_WORKER_ID 3 and JOB_COMPLETION_INDEX 2 of one pod differ: unset",
        ),
        ({"TPU_WORKER_ID": "4"}, "TPU_WORKER_ID 4 is none of the 4 hosts of TPU_WORKER_HOSTNAMES"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES 2: a run takes one slice"),
    ],
)
def test_gke_that_contradicts_itself(machine, env, message):
    assert error(machine.dry_run("tpu.sh", env=GKE | env)).startswith(message)


@pytest.mark.parametrize("endpoints", [VM["worker-network-endpoints"], "10.0.0.5,10.0.0.6"])
def test_tpu_metadata(machine, endpoints):
    with metadata_server(VM | {"worker-network-endpoints": endpoints}) as env:
        done = machine.dry_run("tpu.sh", env=env)
    assert machine.command(done) == expected(together("10.0.0.5:8482", 2, 1))


def test_tpu_metadata_of_one_host(machine):
    one = {"worker-network-endpoints": "10.0.0.5", "agent-worker-number": "0"}
    with metadata_server(VM | one) as env:
        done = machine.dry_run("tpu.sh", env=env)
    assert machine.command(done) == expected()
    assert topology(done) == "v5e:2x4"


def test_a_machine_without_tpus(machine):
    """A dry run says what it assumes."""
    script = machine.root / "launch" / "tpu.sh"
    nowhere = {"GCE_METADATA_IP": "localhost:1"}
    done = run(script, machine.config, env=nowhere)
    assert error(done).startswith("no metadata server answers at localhost:1 and TPU_WORKER_HOST")
    done = machine.dry_run("tpu.sh", env=nowhere)
    assert machine.command(done) == expected()
    assert "launch: no TPU here: assuming one host\n" in done.stderr
    assert "launch: no TPU here: assuming --topology v5e:2x4\n" in done.stderr
    with metadata_server({}) as other:
        done = machine.dry_run("tpu.sh", env=other)
    assert "has no worker-network-endpoints (404): this is no TPU VM" in error(done)


def test_listed_hosts(machine, tmp_path):
    (tmp_path / "hosts.txt").write_text("alpha\n# not beta\nuser@gamma # the second\n")
    for listed in ("alpha,user@gamma", "hosts.txt"):
        args = ("--hosts", listed, "--port", "700")
        done = machine.dry_run("gpu_a100.sh", *args, "--host-index", "1", nvidia_smi=A100)
        assert machine.command(done) == expected(together("alpha:700", 2, 1))
        assert "ssh" not in done.stdout
        done = machine.dry_run("gpu_a100.sh", *args, nvidia_smi=A100)
        assert machine.command(done) == expected(together("alpha:700", 2, 0))
        (line,) = re.findall(r"ssh -o BatchMode=yes (.*)", done.stdout)
        host, *words = line.replace("\\\\", "").replace("\\", "").split()
        assert host == "user@gamma"
        assert words[-2:] == ["--host-index", "1"]
        assert "--dry-run" not in words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--hosts", "a,,b"], "--hosts a,,b: '' is no host; give h1,h2 or a file"),
        (["--hosts", "a,b,a"], "--hosts a,b,a names a twice: each host runs one process"),
        (["--hosts", "a,b", "--host-index", "2"], "--host-index 2 is none of the 2 hosts of"),
        (["--hosts", "a,b", "--host-index", "x"], "argument --host-index: invalid int value"),
        (["--host-index", "1"], "--host-index 1 needs --hosts"),
        (["--num-hosts", "2"], "--num-hosts 2 is for a JobSet: JOBSET_NAME is not set"),
        (["--hosts"], "--hosts needs a value"),
    ],
)
def test_wrong_hosts(machine, args, message):
    assert error(machine.dry_run("gpu_a100.sh", *args, nvidia_smi=A100)).startswith(message)


@pytest.mark.parametrize(
    ("driver", "requirements"),
    [
        ("525.60.13", "requirements-gpu.txt"),
        ("579.99", "requirements-gpu.txt"),
        ("580.65.06", "requirements-gpu-cuda13.txt"),
    ],
)
def test_cuda_is_what_the_driver_carries(machine, driver, requirements):
    smi = SMI.format(driver=driver, name="NVIDIA H200", mib=143771, count=8)
    done = machine.dry_run("gpu_a100.sh", nvidia_smi=smi)
    assert topology(done) == "h200:8"
    assert re.search(rf"-r \S+ clone/{requirements} $", done.stdout.replace("\\", ""), re.M)


def test_a_machine_without_gpus(machine):
    """A dry run says what it assumes."""
    args = ("--hosts", "a,b")
    done = machine.dry_run("gpu_a100.sh", *args)
    assert "launch: no nvidia-smi here: assuming a driver of CUDA 12\n" in done.stderr
    assert "launch: no nvidia-smi here: assuming --topology a100-80:16\n" in done.stderr
    assert topology(done) == "a100-80:16"
    path = fake_bin(machine.root / "bin", python3=PYTHON)
    done = run(machine.root / "launch/gpu_a100.sh", machine.config, path=path)
    assert error(done) == "nvidia-smi is not on the PATH: install the NVIDIA driver"
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(
    ("smi", "message"),
    [
        ("echo 470.82.01", "NVIDIA driver 470.82.01 is older than 525, which CUDA 12 needs"),
        ("echo no devices were found; exit 6", "nvidia-smi fails: no devices were found"),
        ("true", "nvidia-smi lists no GPU: is one given to this job?"),
        (SMI.format(driver="550", name="NVIDIA L4", mib=1, count=1), "`star plan` knows no GPU"),
        (
            "case $1 in *driver*) echo 550 ;; *) printf 'A100, 81920\\nH100, 81559\\n' ;; esac",
            "the GPUs of this host differ, A100 and H100: give --topology",
        ),
    ],
)
def test_chips_that_cannot_be_told(machine, smi, message):
    assert error(machine.dry_run("gpu_a100.sh", nvidia_smi=smi)).startswith(message)


@pytest.mark.parametrize(
    ("name", "mib", "visible", "found"),
    [
        ("NVIDIA A100-PCIE-40GB", 40960, {}, "a100-40:8"),
        ("NVIDIA H100 80GB HBM3", 81559, {"CUDA_VISIBLE_DEVICES": "0,3"}, "h100:2"),
    ],
)
def test_topology_of_gpus(machine, name, mib, visible, found):
    smi = SMI.format(driver="550", name=name, mib=mib, count=8)
    assert topology(machine.dry_run("gpu_a100.sh", env=visible, nvidia_smi=smi)) == found


def test_topology_of_tpus(machine):
    for accelerator, found in [("v5p-128", "v5p:4x4x4"), ("v6e-64", "v6e:8x8")]:
        env = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": accelerator}
        assert topology(machine.dry_run("tpu.sh", env=env)) == found
        done = machine.dry_run("tpu.sh", "--topology", "v5e:4x4", env=env)
        assert topology(done) == "v5e:4x4"
    env = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v3-8"}
    assert error(machine.dry_run("tpu.sh", env=env)).startswith("`star plan` knows no acceler")


@pytest.mark.parametrize("code", [0, 1])
def test_a_dry_run_ends_as_the_plan_does(machine, code):
    write_program(machine.root / ".venv/bin/python", PYTHON)
    write_program(machine.root / ".venv/bin/star", f'printf "<%s>" "$@"; exit {code}')
    args = ("--stage", "train-text", "--topology", "h200:8", "--a.b", "1 2")
    done = machine.dry_run("gpu_a100.sh", *args, nvidia_smi=A100)
    assert done.returncode == code
    ending = f"<plan><{machine.config}><--topology><h200:8><--workdir><W><--a.b><1 2>"
    assert done.stdout.splitlines()[-1] == ending


@pytest.mark.parametrize(("script", "page"), [("gpu_a100.sh", "GPU.md"), ("tpu.sh", "TPU.md")])
def test_the_page_explains_every_flag(machine, script, page):
    text = (ROOT / "launch" / page).read_text(encoding="utf-8")
    args = ("--topology", "h200:8", "--hosts", "a")
    done = machine.dry_run(script, *args, nvidia_smi=A100)
    assert machine.command(done) == expected()
    shown = [line for line in done.stdout.splitlines() if re.match(r"\w+=", line)]
    flags = sorted(word for line in shown for word in re.findall(r"--xla\w+=\w+", line))
    assert flags == sorted(set(re.findall(r"--xla\w+=\w+", text)))
    assert all(line.split("=")[0] in text for line in shown)


def test_the_page_gives_a_jobset_what_is_asked_of_it():
    text = (ROOT / "launch" / "GPU.md").read_text(encoding="utf-8")
    assert all(name in text for name in (*JOBSET, "--num-hosts"))
