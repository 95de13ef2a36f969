"""No container engine runs here: the files are checked, and their commands run without one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_compose_file_keeps_the_compose_specification() -> None:
    """By the schema that check-jsonschema carries."""
    command = [
        sys.executable, "-m", "check_jsonschema",
        "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml"),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def declared(*requirements: str) -> dict[str, Distribution]:
    """The installed distributions that these need, one after the other, and nothing else."""
    found: dict[str, Distribution] = {}
    waiting = [*map(Requirement, requirements)]
    while waiting:
        asked = waiting.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        assert not asked.extras, f"{asked}: what its extras need is not followed here"
        if asked.name not in found:
            found[asked.name] = distribution(asked.name)
            waiting += map(Requirement, found[asked.name].requires or ())
    return found


def lay_out(environment: Path, *requirements: str) -> None:
    """Links into an environment what they need, so that pip finds it there and downloads nothing.

    A dependency that is not declared is missing there, as in the image.
    """
    (packages,) = environment.glob("lib/python*/site-packages")
    for each in declared(*requirements).values():
        tops = {Path(path.parts[0]) for path in each.files or () if path.parts[0] != ".."}
        for top in tops - {Path("__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(each.locate_file(top))


@pytest.mark.slow
def test_dockerfiles_own_commands_install_the_page_serve_and_evaluate(tmp_path: Path) -> None:
    work = tmp_path / "app"
    work.mkdir()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / target)
            else:
                shutil.copy(ROOT / source, work / target)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lay_out(tmp_path / "venv", "pip", *project["dependencies"])
    binaries = tmp_path / "venv" / "bin"
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    environment |= dict(re.findall(r"^ENV (\w+)=(.+)$", DOCKERFILE, re.MULTILINE))
    environment["GRADWIRE_KERNELS"] = "native"  # scripts/release builds those of other processors
    environment["PIP_NO_COMPILE"] = "1"  # few of SciPy's modules are imported here
    installs = re.findall(r"^RUN (python .+)$", DOCKERFILE, re.MULTILINE)
    assert len(installs) == 1
    for command in installs:
        subprocess.run(
            shlex.split(command), check=True, cwd=work, env=environment, capture_output=True
        )
    (installed,) = (tmp_path / "venv").glob("lib/python*/site-packages/gradwire_server/ui")
    page = contents(installed)
    assert page == contents(ROOT / "server" / "gradwire_server" / "ui")
    assert Path("index.html") in page
    serve = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1])
    serve[-1] = "127.0.0.1:0"  # a free port, in place of the container's own
    with subprocess.Popen(
        serve, cwd=work, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        healthy = re.search(r"^HEALTHCHECK .*CMD (.+)$", DOCKERFILE, re.MULTILINE)
        assert healthy is not None
        check = json.loads(healthy[1])
        check[-1] = address
        subprocess.run(check, check=True, env=environment)
        compose = (ROOT / "docker-compose.yml").read_text()
        client = json.loads(re.findall(r"command: (.+)", compose)[0])
        client[-1] = address
        found = subprocess.run(
            client, check=True, cwd=work, env=environment, capture_output=True, text=True
        )
        server.terminate()
    assert "output f = 0.731059" in found.stdout
