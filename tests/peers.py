"""Other people's packages in environments of their own, to be held against ours."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest


def peer_python(name: str, requirement: str) -> Path:
    """A Python with a package in an environment of its own, which also sees our packages.

    Made once, in the user's cache; the variable NAME_PYTHON names another one. The test is skipped
    where the package cannot be installed.
    """
    if given := os.environ.get(f"{name.upper()}_PYTHON"):
        return Path(given)
    home = Path.home() / ".cache" / "llm-unlearning" / "peers" / name
    python = home / "bin" / "python"
    if not (home / "done").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run([*pip, requirement], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be installed here: {done.stderr.strip()[-300:]}")
        (home / "done").touch()
    packages = next(home.glob("lib/python*/site-packages"))  # ours may have moved since
    (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python
