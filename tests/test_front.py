"""The front door: commands from any folder, --help, what README and docs tell to type, the wheel."""

import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from fedrec.errors import UserError
from simulations import command
from simulations.cli import parse
from simulations.run import main
from simulations.studies.__main__ import main as studies
from simulations.studies.options import WORDS as STUDIES

ROOT = Path(__file__).parent.parent
SMALL = ["--market.users", "20", "--market.items", "40", "--clients", "2", "--rounds", "1", "--dim", "4"]
SMALL += ["--no-compare", "--quiet", "--workers", "1"]
HOSTILE = ("server", "clients", "fedrec", "json", "typing", "numpy", "torch")


def environment(**more: str) -> dict[str, str]:
    """Return the environment in which another process finds this code, wherever it works."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def ran(folder: Path, *argv: str, **more: str) -> tuple[int, str, str]:
    """Return the status of a command in a folder, and what it printed."""
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=environment(**more), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def hostile(folder: Path) -> Path:
    """Fill a folder with modules of the user's whose names are those of our packages, and of others."""
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the {name} of the user')\n")
    (folder / "clients").mkdir()
    (folder / "clients" / "__init__.py").write_text("raise SystemExit('the clients of the user')\n")
    return folder


def test_modules_of_the_users_shadow_nothing_and_warnings_of_other_packages_are_no_errors(tmp_path: Path) -> None:
    argv = ["-m", "simulations.run", *SMALL, "--engine", "process", "--out", "out"]
    found = ran(hostile(tmp_path / "mine"), *argv, PYTHONWARNINGS="error")
    assert found == (0, "report: out/report.html\n", "")


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["inline", "process", "superlink", "ray"])
def test_modules_of_the_users_shadow_nothing(tmp_path: Path, tries: Callable[[int, int], int], engine: str) -> None:
    tries(0, 1)
    small = SMALL if engine == "process" else SMALL[:-2]  # no other engine has workers
    argv = ["-m", "simulations.command", "run", *small, "--engine", engine, "--out", "out"]
    assert ran(hostile(tmp_path / "mine"), *argv) == (0, "report: out/report.html\n", "")


@pytest.mark.soak
def test_modules_of_the_users_shadow_nothing_of_flwr_run(tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    argv = ["-m", "simulations.command", "flower", *SMALL[:-2], "--out", "out"]
    folder = hostile(tmp_path / "mine")
    assert ran(folder, *argv) == (0, f"report: {folder / 'out' / 'report.html'}\n", "")


def test_paths_of_the_command_line_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started may work elsewhere."""
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset", "table", "--data-dir", "t.csv", "--content.vectors", "v.csv", "--privacy.unit", "client"]
    e = parse([*argv, "--privacy.epsilon", "9", "--privacy.ledger", "books"]).experiment
    assert (e.data_dir, e.content.vectors, e.privacy.ledger) == tuple(
        tmp_path / name for name in ("t.csv", "v.csv", "books")
    )


def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.stderr.write('begun\\n'); sys.stderr.flush()\n")
    found = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    wait = "import signal, simulations.start as s; s.prepare(); signal.raise_signal(signal.SIGINT)"
    assert ran(tmp_path, "-c", wait)[::2] == (130, "stopped: nothing was written\n")
    argv = [sys.executable, "-X", "importtime", "-m", "simulations.run", *SMALL, "--out", str(tmp_path / "out")]
    with subprocess.Popen(argv, env=found, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if lines[-2:-1] and lines[-2].endswith(" simulations.start\n"):  # the handler is there, imports go on
                break
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert rest == ["stopped: nothing was written\n"], rest
    assert process.returncode == 130
    assert not any("torch" in line for line in lines), "what takes long is imported afterwards"
    assert not (tmp_path / "out").exists()


def test_without_ray_its_engine_is_refused_with_the_name_of_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*SMALL[:-2], "--engine", "ray", "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert text == (
        "error: engine: ray needs the package ray, found none installed; install fedrec with the extra [ray]\n"
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any("[simulation]" in one for one in extras["ray"]) and any("[simulation]" in one for one in extras["test"])


@pytest.mark.soak
def test_the_rest_works_without_ray(tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    code = f"import sys; sys.modules['ray'] = None; from simulations.run import main; sys.exit(main({SMALL[:-2]!r}))"
    status, out, text = ran(tmp_path, "-c", code.replace("main([", "main(['--engine', 'inline', '--out', 'out', "))
    assert (status, text, out) == (0, "", "report: out/report.html\n")


def test_the_command_names_its_commands_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in command.COMMANDS)
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedrec {importlib.metadata.version('fedrec')}\n"
    with pytest.raises(SystemExit) as stopped:
        parse(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fedrec {importlib.metadata.version('fedrec')}\n"
    assert command.main(["rum"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) if name != "studies" else pytest.MonkeyPatch.context():
            command.main([name, "--help"])
        assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("command", [["-m", "simulations.run"], ["-m", "simulations.command", "run"]])
def test_the_first_page_of_help_waits_for_no_import(command: list[str], tmp_path: Path) -> None:
    status, out, text = ran(tmp_path, "-X", "importtime", *command, "--help")
    assert status == 0 and out.startswith("usage: fedrec run")
    heavy = ("torch", "flwr", "numpy", "pandas", "pydantic", "rich")
    assert [line for line in text.splitlines() if line.rpartition("|")[2].strip() in heavy] == []


@pytest.mark.parametrize("study", ["", *STUDIES])
def test_studies_help_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], study: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    try:
        status = studies([study, "--help"] if study else ["--help"])
    except SystemExit as stopped:
        status = int(str(stopped.code))
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    if not study:
        assert all(f"\n  {name} " in shown.out for name in STUDIES)
        return
    assert f"[{Path('runs') / f'study-{study}'}]" in shown.out
    assert studies([study, "--seeds" if "--seeds" in shown.out else "--repeats", "x"]) == 2
    wrong = capsys.readouterr().err
    assert wrong.startswith("error: option --") and wrong.count("\n") == 1


def commands(name: str) -> Iterator[list[str]]:
    """Yield every command of a page, as a shell would split it: of its code blocks, and between backquotes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inside = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    for line in [*lines, *inside]:
        if line.startswith(("python -m simulations", "python -m clients", "fedrec ")) and "RUN" not in line:
            yield shlex.split(line, comments=True)


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TOLD = [(page, argv) for page in PAGES for argv in commands(page)]


@pytest.mark.parametrize(("page", "argv"), TOLD, ids=lambda value: " ".join(value)[:80] if value else "")
def test_what_the_pages_tell_to_type_is_a_command(page: str, argv: list[str], tmp_path: Path) -> None:
    if "..." in argv:
        argv = [*argv[: argv.index("...")], *BEFORE.get(argv[-1], []), *argv[argv.index("...") + 1 :]]
    name, rest = (argv[1], argv[2:]) if argv[0] == "fedrec" else (argv[2].rpartition(".")[2], argv[3:])
    assert name in command.COMMANDS
    if name in ("run", "flower"):
        if "--config" in rest:
            (tmp_path / "experiment.json").write_text("{}")
            rest[rest.index("--config") + 1] = str(tmp_path / "experiment.json")
        parse(rest)
    elif name == "studies" and rest:
        assert rest[0] in STUDIES
        flags = re.findall(r"--[a-z-]+", help_of(rest[0]))
        own = [place for place, one in enumerate(rest) if one in flags]
        left = [one for place, one in enumerate(rest[1:], 1) if place not in own and place - 1 not in own]
        switches = [one for one in rest if one in ("--choose",)]
        if not switches:
            parse(left, strict=False)  # a study has data of its own


BEFORE = {"--secure.active": ["--weights", "uniform", "--partition", "one-user", "--privacy.epsilon", "2"]}
BEFORE["client"] = BEFORE["--secure.active"]


def help_of(study: str) -> str:
    """Return a study's --help."""
    from contextlib import redirect_stdout, suppress
    from io import StringIO

    with redirect_stdout(StringIO()) as out, suppress(SystemExit):
        studies([study, "--help"])
    return out.getvalue()


def test_the_commands_of_the_pages_are_found() -> None:
    assert len([argv for page, argv in TOLD if page == "README.md"]) > 25
    with pytest.raises(UserError):
        parse(["--no-such-option", "1"])


def test_no_table_of_the_readme_is_broken_by_a_blank_line() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        assert line.strip() or not (before.startswith("|") and after.startswith("|")), after


def test_the_licence_is_apache_2_and_the_versions_are_one() -> None:
    digest = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of the text at apache.org
    assert sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == digest
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.soak
def test_the_wheel_installs_into_an_empty_environment_and_runs(
    tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(0, 1)
    source, wheels, home = tmp_path / "source", tmp_path / "wheels", tmp_path / "venv"
    skip = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skip)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = ("fedrec", "clients", "server", "simulations")
    ours = {str(path.relative_to(ROOT)) for room in packages for path in (ROOT / room).rglob("*.py")}
    kept = {name for name in names if ".dist-info/" not in name}
    assert kept == ours | {"fedrec/py.typed", "fedrec/report/template.toml"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)

    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*")) / "site-packages"
    install = [*pip, "--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", hostile(tmp_path / "mine")):
        for argv in (["run", *SMALL, "--out", "out"], ["recommend", "out", "--client", "shop", "--user", "u1"]):
            done = subprocess.run(
                [home / "bin" / "fedrec", *argv], cwd=folder, env=clean, capture_output=True, text=True
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
        where = [str(home / "bin" / "python"), "-P", "-c", "import simulations; print(simulations.__file__)"]
        found = subprocess.run(where, cwd=folder, env=clean, capture_output=True, text=True, check=True).stdout
        assert found.startswith(str(site))
