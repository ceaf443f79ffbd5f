"""A real Slurm of one node on this machine, for as long as a test needs it."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# The node says that it has more than this machine may have, so that any request fits. A process
# that takes more memory than its job was given is killed without help of the kernel.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000
PartitionName=all Nodes=ALL Default=YES
"""


def missing_programs() -> str:
    """Say which programs of Slurm are not installed; empty if all are."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    return f"Slurm is not installed: there is no {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def one_node_slurm() -> Iterator[dict[str, str]]:
    """Start a Slurm, and end it with its jobs; yield the environment in which commands find it."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)  # a short name, since it holds a socket
        for part in ("state", "spool", "bin"):
            (folder / part).mkdir()
        config = folder / "slurm.conf"
        host, user = socket.gethostname().partition(".")[0], folder.owner()
        config.write_text(CONFIG.format(folder=folder, host=host, user=user, ports=free_ports()))
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(os.urandom(128))
        # Within a job, Snakemake's plugin calls srun without SLURM_CONF.
        srun = folder / "bin" / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun", path=PATH)} "$@"\n'
        )
        srun.chmod(0o755)
        environment = {"SLURM_CONF": str(config), "PATH": f"{folder}/bin:{PATH}"}
        places = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid"}
        places |= {"seed-file": "munge.seed", "log-file": "munged.log"}
        options = [f"--{option}={folder / place}" for option, place in places.items()]
        for command in (
            ["munged", "--foreground", "--force", *options],
            ["slurmctld", "-D", "-c", "-L", f"{folder}/slurmctld.log"],
            ["slurmd", "-D", "-L", f"{folder}/slurmd.log"],
        ):
            stack.enter_context(running(command, environment, folder / "errors"))
        wait_until_idle(environment, folder)
        stack.callback(kill_jobs, config)
        yield environment


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], errors: Path) -> Iterator[None]:
    """Run a daemon in the foreground, and end it after the block."""
    with errors.open("a") as file:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def kill_jobs(config: Path) -> None:
    """Kill all processes of jobs: of a cancelled one, this Slurm leaves orphans alive."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SLURM_CONF") == str(config) and "SLURM_JOB_ID" in variables:
                process.kill()


def wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait until the node takes jobs."""
    for _ in range(120):
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.25)
    logs = "".join(path.read_text() for path in folder.glob("*.log"))
    raise AssertionError(f"Slurm does not start: {(folder / 'errors').read_text()}{logs}")


def free_ports() -> list[int]:
    """Find two ports that nobody uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
