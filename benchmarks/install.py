"""Whether both packages build, install and run, with the size and times of featx-core.

    python benchmarks/install.py [--write]

featx and featx-core are built from a copy of what git has, as sdists and wheels. featx-core goes
into a fresh environment with what it requires, featx into one that also sees the packages of this
Python. Both lie in a folder with a space in its name, and cannot be written to while they run.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

import click
from report import ROOT, table, write_measured

LIMIT_MB = 500
WEB = "featx/reporting/web"
DEMO = (
    ("extract", "digits:", "--backbone", "tiny", "-o", "f.h5"),
    ("train-head", "f.h5", "-o", "h.safetensors"),
    ("export", "h.safetensors", "--onnx", "m.onnx"),
    ("predict", "m.onnx", "images"),
    ("check", "m.onnx"),
    ("audit", "f.h5"),
    *([("page", "m.onnx", "--single-file")] if (ROOT / WEB).is_dir() else ()),
)


def run(*command: object, cwd: Path, expect: int = 0) -> str:
    """Return what a command prints; end where its exit code is another."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment["XDG_CACHE_HOME"] = str(cwd / "cache")
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    text = result.stdout + result.stderr
    if result.returncode != expect:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{text}")
    return text


def require(holds: object, what: str) -> None:
    """End where something does not hold."""
    if not holds:
        raise SystemExit(f"Not so: {what}")


def copy_of_sources(folder: Path) -> Path:
    """Copy the files that git knows or would add, so that no build of before is found.

    onnxruntime-web, which ``make web`` fetches into the package, goes with them.
    """
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if name.startswith(("featx/", "core/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    if (ROOT / WEB).is_dir():
        shutil.copytree(ROOT / WEB, folder / WEB)
    return folder


def built(tree: Path, folder: Path, package: str) -> Path:
    """Return the wheel of a tree, built from its sdist, that holds what one from the tree does."""
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", folder / "sdist", tree, cwd=folder.parent)
    run(*build, "--wheel", "--outdir", folder / "tree", tree, cwd=folder.parent)
    (one,), (other,) = (list((folder / each).glob("*.whl")) for each in ("sdist", "tree"))
    contents = []
    for wheel in (one, other):
        with zipfile.ZipFile(wheel) as file:
            contents.append({name: file.read(name) for name in file.namelist()})
    require(contents[0] == contents[1], f"wheels of {package} from sdist and from tree are alike")
    require(any(name.endswith("licenses/LICENSE") for name in contents[0]), "a licence in wheels")
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "featx").rglob("*.*")}
    sources = {name for name in sources if "__pycache__" not in name}
    missing = sources - set(contents[0])
    require(not missing, f"wheels of {package} hold all of featx/; missing: {sorted(missing)}")
    return one


def installed(folder: Path, wheel: Path, *options: object) -> Path:
    """Return the folder of a fresh environment's programs, with a wheel installed."""
    venv.create(folder, with_pip=False, symlinks=True)
    if "--no-deps" in options:  # the packages of this Python are seen, its featx is not
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(f"{site_packages()}\n")
    python = folder / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-python-version-warning")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", *quiet)
    run(*pip, *options, wheel, cwd=folder.parent)
    return folder / "bin"


def site_packages() -> Path:
    """Return where this Python has its packages."""
    return Path(click.__file__).parent.parent


def frozen(programs: Path) -> dict[str, int]:
    """Take the right to write in an installed featx, and return its files with their sizes."""
    (own,) = programs.parent.glob("lib/python*/site-packages/featx")
    for path in [*own.rglob("*"), own]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return {str(path): path.stat().st_size for path in own.rglob("*") if path.is_file()}


def require_metadata(programs: Path, package: str, cwd: Path) -> None:
    """Check that all that says a version says the same, and what the other extras are called."""
    code = (
        "import featx, sys; from importlib import metadata as m; from featx import packages as p; "
        f"d = m.distribution({package!r}); print(featx.__version__, d.version, p.own_package(), "
        "sys.prefix in featx.__file__, *sorted(d.metadata.get_all('Provides-Extra')))"
    )
    version, same, own, is_here, *extras = run(programs / "python", "-c", code, cwd=cwd).split()
    require(version == same, f"the metadata of {package} has version {version}")
    require((own, is_here) == (package, "True"), f"{package} is what runs")
    require({"all", "report", "timm", "cloud"} <= set(extras), f"extras of {package}: {extras}")
    commands = (programs / "featx", "-V"), (programs / "python", "-m", "featx", "--version")
    told = {run(*command, cwd=cwd) for command in commands}
    require(told == {f"featx {version}\n"}, f"featx --version says {version}, not {told}")


def check_core(programs: Path, work: Path) -> list[list[str]]:
    """Go the whole way without torch; return the commands with their seconds."""
    require_metadata(programs, "featx-core", work)
    before, rows = frozen(programs), []
    for command in DEMO:
        if command[0] == "predict":
            images = ROOT / "tools" / "digit_images.py"
            run(programs / "python", images, "f.h5", "images", cwd=work)
        start, spent = time.perf_counter(), processor_time()
        run(programs / "featx", *command, cwd=work)
        rows.append([f"`featx {' '.join(command)}`", f"{processor_time() - spent:.1f} s"])
        waited = time.perf_counter() - start
        print(f"{rows[-1][0]}  {rows[-1][1]} of a core, after {waited:.1f} s", flush=True)
    told = run(programs / "featx", *DEMO[0][:3], "vgg11", "-o", "v.h5", cwd=work, expect=1)
    require("pip install 'featx-core[torch]'" in told, f"what to install is said: {told}")
    require(frozen(programs) == before, "nothing is written into an installed featx")
    return rows


def check_complete(programs: Path, core: Path, work: Path) -> None:
    """Run the installed featx with torch; then install featx-core over it."""
    require_metadata(programs, "featx", work)
    before = frozen(programs)
    run(programs / "featx", *DEMO[0], "--engine", "torch", "--overwrite", cwd=work)
    require(frozen(programs) == before, "nothing is written into an installed featx")
    (own,) = programs.parent.glob("lib/python*/site-packages/featx")
    for path in [own, *own.rglob("*")]:
        path.chmod(0o755)
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    run(*pip, "--no-deps", "--no-warn-conflicts", core, cwd=work)
    code = "from featx.packages import both_installed as b; print(b())"
    told = run(programs / "python", "-c", code, cwd=work)
    require("pip uninstall -y featx-core featx" in told, f"two packages at once are told: {told}")


def processor_time() -> float:
    """Return the seconds of a core that ended child processes took, busy machine or not."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def size_in_mb(folder: Path) -> float:
    """Return the size of a folder's files on disk, MB."""
    return sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512 / 1e6


@click.command()
@click.option("--write", is_flag=True, help="Put size and times into docs/install.md.")
def main(write: bool) -> None:
    """Build both packages, install them in environments of their own, and run them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "with a space"
        (work := folder / "work").mkdir(parents=True)
        tree = copy_of_sources(folder / "sources")
        complete = built(tree, folder / "featx", "featx")
        core = built(tree / "core", folder / "featx-core", "featx-core")
        print("built  featx and featx-core, the same files from sdist and tree", flush=True)
        constraints = ("--constraint", ROOT / "constraints.txt")
        small = installed(folder / "core", core, *constraints)
        size = size_in_mb(small.parent)
        print(f"featx-core and what it requires: {size:.0f} MB", flush=True)
        require(size < LIMIT_MB, f"less than {LIMIT_MB} MB")
        rows = check_core(small, work)
        check_complete(installed(folder / "complete", complete, "--no-deps"), core, work)
        print("both packages run as installed")
    if write:
        text = f"featx-core and what it requires take {size:.0f} MB. The demo with it, "
        text += "each command as a whole process, on one core:\n\n"
        text += table(("command", "processor time"), rows)
        write_measured("docs/install.md", text)


if __name__ == "__main__":
    main()
