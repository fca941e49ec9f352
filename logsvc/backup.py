"""Backup: all that a service keeps, copied while it runs, and put back.

A backup is a folder that holds any number of them. Their files lie under the hash of their content,
so that what did not change since the last time, nearly all of the index, is neither copied nor kept twice::

    FOLDER/backups/20261122T103000Z.json   which files, where they belong, since when; written last
    FOLDER/files/ab/ab31…                  one file each, named by its SHA-256

What always holds:

- Everything acknowledged before a backup began is in it. The state (tickets, keys, cursors) is copied
  first, so that detection, when it is put back, looks again at what it may have seen rather than miss it.
- The service stands still only while files are linked, not copied: between two batches, after a commit.
  The index has all up to the checkpoint then, the journal the rest, up to its last durable record.
- A backup without its JSON is none: what a crash leaves are files that the next one uses or removes.
- Restoring writes aside, checks every hash, and moves what is whole into place. A data directory in which
  that has not ended is refused by ``serve``.
- Files are for their owner alone. Keys are in a backup as they are in the database, hashed.

Records in Elasticsearch are kept by the server in a snapshot, taken last: it has all that the checkpoint
in the backup says, and what comes out of the journal a second time is recognised. It may reach beyond the
journal; numbers go on after its last. PostgreSQL has its own tools, and a backup says that its state is not
in it.

Not here: how a store links its files or has a snapshot taken (store/).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from logsvc import __version__, durable, faults
from logsvc import journal as journals
from logsvc.deadletters import DIRECTORY as DEAD_LETTERS
from logsvc.errands import Errands, ask
from logsvc.errors import BadInput, DataDirectoryLocked, LogsvcError, NotFound, SettingsError, StoreUnavailable
from logsvc.indexer import CHECKPOINT, read_checkpoint
from logsvc.journal import Journal
from logsvc.lock import DataDirectoryLock, held_alone
from logsvc.store import Store

FORMAT = 1
DIRECTORY = "snapshots"
"""Where links wait in a data directory until they are copied."""
INDEX = "index"
STATE = "state.db"
_BEGUN = "snapshot.begun"
"""In a folder of backups: the name of a snapshot that none of them has yet."""
RESTORING = "restore.partial"
"""While this folder is in a data directory, something is being put back there."""

_MOVING = ".moving"
_CHUNK = 1 << 20
STALE_S = 60.0
"""How old links are at least before they are taken for forgotten."""
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
_LINKED = ("user-hash-key", CHECKPOINT)
_TICKETS = "tickets.jsonl"
_REPLACED = (INDEX, journals.DIRECTORY, DEAD_LETTERS, CHECKPOINT, "user-hash-key", _TICKETS)
_REPLACED_STATE = (STATE, f"{STATE}-wal", f"{STATE}-shm")


class ServerSnapshots(Protocol):
    """Snapshots of the records that a store on a server takes by itself. May raise ``StoreUnavailable``."""

    def name(self, id: str) -> str:
        """Return what the snapshot of the backup ``id`` is to be called: a name that no other has."""
        ...

    def create(self, name: str) -> None:
        """Have everything that is searchable now kept; return when it is.

        Raises:
            LogsvcError: If it cannot be kept wholly; then nothing of it is.
        """
        ...

    def check(self, name: str) -> None:
        """Raise ``LogsvcError`` unless the snapshot is there, whole, and of this store."""
        ...

    def check_empty(self) -> None:
        """Raise ``BadInput`` if there are records that a restored snapshot would take the place of."""
        ...

    def restore(self, name: str) -> None:
        """Put the records of the snapshot in place of those there are; return when they can be searched."""
        ...

    def remove(self, name: str) -> None:
        """Forget the snapshot; one that is not there is none to forget."""
        ...


# In the service: links.


class SnapshotRequest(msgspec.Struct, frozen=True):
    """Link everything into a folder of this name, which no other request has."""

    name: str


class Snapshot(msgspec.Struct, frozen=True):
    """Where the links are, what counts of the files that go on growing, and how far the records reach."""

    path: str
    sizes: dict[str, int]
    checkpoint_seq: int
    through_seq: int


class Snapshotter:
    """Links everything but the state, in the service that owns it.

    Args:
        data_dir: The service's data directory.
        store: What has files is linked.
        journal: As far as it is durable.
        run_exclusive: Runs a call while nobody writes to the store and all before it is flushed.
    """

    def __init__(
        self,
        data_dir: Path,
        store: Store,
        journal: Journal,
        run_exclusive: Callable[[Callable[[], Snapshot]], Snapshot],
    ) -> None:
        self._data_dir = data_dir
        self._store = store
        self._journal = journal
        self._run_exclusive = run_exclusive
        self._errands = Errands(data_dir / DIRECTORY, SnapshotRequest, self.take)

    def start(self) -> None:
        """Begin to take requests; links that a killed command left are removed first."""
        for path in (self._data_dir / DIRECTORY).glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        self._errands.start()

    def close(self) -> None:
        """Stop taking requests."""
        self._errands.close()

    def tidy(self) -> None:
        """Remove links whose command is gone: they hold disk space, and text that may have been erased since."""
        for path in (self._data_dir / DIRECTORY).iterdir():
            # One that was just made may not be held yet.
            if path.is_dir() and path.stat().st_mtime < time.time() - STALE_S and not _is_held(path):
                shutil.rmtree(path, ignore_errors=True)

    def take(self, request: SnapshotRequest) -> Snapshot:
        """Return the links, all of one moment."""
        self.tidy()
        target = self._data_dir / DIRECTORY / request.name
        try:
            return self._run_exclusive(lambda: self._link(target))
        except OSError as exc:
            shutil.rmtree(target, ignore_errors=True)
            raise LogsvcError(f"cannot link the files of {self._data_dir}: {exc}") from exc

    def _link(self, target: Path) -> Snapshot:
        target.mkdir(mode=0o700, parents=True)
        for part in (INDEX, journals.DIRECTORY, DEAD_LETTERS):
            (target / part).mkdir()
        self._store.link(target / INDEX)
        for name in _LINKED:
            with suppress(FileNotFoundError):
                os.link(self._data_dir / name, target / name)
        # After the index: what is in it is never missing here, and nothing comes into it meanwhile.
        through_seq, of_journal = self._journal.link(target / journals.DIRECTORY)
        sizes = {f"{journals.DIRECTORY}/{name}": size for name, size in of_journal.items()}
        for path in [*(self._data_dir / DEAD_LETTERS).glob("*.ndjson"), self._data_dir / _TICKETS]:
            with suppress(FileNotFoundError):
                name = str(path.relative_to(self._data_dir))
                os.link(path, target / name)
                sizes[name] = path.stat().st_size
        return Snapshot(str(target), sizes, read_checkpoint(target / CHECKPOINT), through_seq)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a snapshot while it is copied, and remove it afterwards."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _is_held(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# The folder of backups.


class BackedFile(msgspec.Struct, frozen=True):
    """A file: where it belongs in the data directory, and its content."""

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is.

    Attributes:
        id: Its name, the moment it began.
        created_at: The same, as RFC 3339.
        version: The version of logsvc that made it.
        through_seq: Everything up to this sequence number is in it.
        checkpoint_seq: The store has everything up to here, the journal the rest.
        store: Where records are kept, ``embedded`` or ``elasticsearch``.
        has_state: Whether tickets, keys and cursors are in it; those in PostgreSQL are not.
        files: In order of their paths.
        snapshot: What Elasticsearch's repository calls the records' snapshot; None without one, and then
            records that Elasticsearch has are not in it.
    """

    format: int
    id: str
    created_at: str
    version: str
    through_seq: int
    checkpoint_seq: int
    store: str
    has_state: bool
    files: tuple[BackedFile, ...]
    snapshot: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files, those shared with other backups too."""
        return sum(file.size_bytes for file in self.files)


class _Sealed(msgspec.Struct):
    manifest: msgspec.Raw
    sha256: str


class _Format(msgspec.Struct):
    format: int
    version: str


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that was made, and how many of its bytes had to be copied."""

    manifest: Manifest
    copied_bytes: int


def manifests(folder: Path) -> list[Manifest]:
    """Return the backups in ``folder``, the oldest first.

    Raises:
        NotFound: If it is no folder of backups, or has none.
        BadInput: If one is damaged, or a later version made it.
    """
    found = [_read_manifest(path) for path in sorted((folder / "backups").glob("*.json")) if _ID.fullmatch(path.stem)]
    if not found:
        raise NotFound(f"{folder} holds no backup; make one with `logsvc backup {folder}`")
    return found


def manifest(folder: Path, id: str | None = None) -> Manifest:
    """Return the backup called ``id``, or the newest.

    Raises:
        NotFound: If there is none.
        BadInput: If it is damaged, or a later version made it.
    """
    if id is None:
        paths = sorted(path for path in (folder / "backups").glob("*.json") if _ID.fullmatch(path.stem))
        if not paths:
            return manifests(folder)[-1]
        return _read_manifest(paths[-1])
    path = folder / "backups" / f"{id}.json"
    if not _ID.fullmatch(id) or not path.is_file():
        raise NotFound(f"{folder} has no backup {id!r}; `logsvc backup list {folder}` shows those there are")
    return _read_manifest(path)


def _read_manifest(path: Path) -> Manifest:
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise BadInput(f"{path} is damaged: its checksum is wrong; take another backup")
        made = msgspec.json.decode(sealed.manifest, type=_Format)
        if made.format > FORMAT or _release(made.version) > _release(__version__):
            raise BadInput(
                f"{path} was made by logsvc {made.version}, this is {__version__}; take that version, or a later one"
            )
        found = msgspec.json.decode(sealed.manifest, type=Manifest)
        for file in found.files:
            place = Path(file.path)
            if place.is_absolute() or ".." in place.parts or not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
                raise BadInput(
                    f"{path} names a file outside of a data directory, {file.path!r}; it is no backup of ours"
                )
        return found
    except msgspec.MsgspecError as exc:
        raise BadInput(f"{path} is damaged: {exc}; take another backup") from exc


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", version)[:3]))


def _blob(folder: Path, sha256: str) -> Path:
    return folder / "files" / sha256[:2] / sha256


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if missing, for one command at a time.

    Raises:
        LogsvcError: If another one holds it, or it cannot be written.
    """
    with _explained(folder):
        for path in (folder, folder / "backups", folder / "files"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with held_alone(fd, LogsvcError(f"another backup is being written to {folder}; wait until it has ended")):
        yield


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a disk says into a sentence."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LogsvcError(f"the disk of {folder} is full; what was there before is as it was") from exc
        raise LogsvcError(f"cannot write to {folder}: {exc}") from exc


# Backing up.


def back_up(
    data_dir: Path,
    folder: Path,
    *,
    now: datetime,
    state: Path | None,
    store_name: str,
    open_store: Callable[[], Store],
    server: ServerSnapshots | None = None,
    keep: int | None = None,
    wait_s: float = 600.0,
) -> BackupReport:
    """Make a backup in ``folder``, of the service that runs on ``data_dir`` or of what it left.

    Args:
        data_dir: The service's data directory.
        folder: Made if missing; may hold earlier backups.
        now: What it is called by.
        state: The SQLite database; None if the state lies elsewhere.
        store_name: Where records are kept, ``embedded`` or ``elasticsearch``.
        open_store: Opens the store, for when no service runs.
        server: Keeps the records that Elasticsearch has; without it they are not in the backup.
        keep: How many backups are left in the end, this one included; None keeps all.
        wait_s: How long the service may take to get to it.

    Raises:
        LogsvcError: If it cannot be made; nothing of it is left then but files that the next one uses.
    """
    refuse_half_restored(data_dir)
    if not (data_dir / journals.DIRECTORY).is_dir():
        raise NotFound(f"{data_dir} is no data directory of a service; expected the folder that LOGSVC_DATA_DIR names")
    resolved = folder.resolve()
    if resolved == data_dir.resolve() or data_dir.resolve() in resolved.parents:
        raise BadInput(f"{folder} lies in the data directory, and would be lost with it; take a folder elsewhere")
    with _locked(folder), _explained(folder), ExitStack() as undo:
        id = _new_id(folder, now)
        known = {(f.path, f.size_bytes, f.mtime_ns): f.sha256 for m in _readable(folder) for f in m.files}
        copier = _Copier(folder, known)
        files = []
        if state is not None:
            files.append(_copy_state(copier, state))
        snapshot = take_snapshot(data_dir, id, open_store, wait_s)
        links = Path(snapshot.path)
        with held(links):
            for path in sorted(path for path in links.rglob("*") if path.is_file()):
                name = str(path.relative_to(links))
                files.append(copier.copy(path, name, snapshot.sizes.get(name)))
            faults.reach("backup.copied")
        kept = None
        begun = folder / _BEGUN
        if server is not None:
            _forget_begun(folder, server)
            kept = server.name(id)
            durable.replace(begun, kept.encode())
            server.create(kept)
            undo.callback(server.remove, kept)
            faults.reach("backup.snapshotted")
        made = Manifest(
            format=FORMAT,
            id=id,
            created_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            version=__version__,
            through_seq=snapshot.through_seq,
            checkpoint_seq=snapshot.checkpoint_seq,
            store=store_name,
            has_state=state is not None,
            files=tuple(files),
            snapshot=kept,
        )
        body = msgspec.json.encode(made)
        sealed = _Sealed(msgspec.Raw(body), hashlib.sha256(body).hexdigest())
        durable.replace(folder / "backups" / f"{id}.json", msgspec.json.encode(sealed))
        undo.pop_all()
        begun.unlink(missing_ok=True)
        _prune(folder, keep, server)
    return BackupReport(made, copier.copied_bytes)


def _forget_begun(folder: Path, server: ServerSnapshots) -> None:
    """Remove the snapshot of a backup into this folder that was killed before it had its manifest."""
    with suppress(FileNotFoundError):
        name = (folder / _BEGUN).read_text(encoding="utf-8")
        if name not in {made.snapshot for made in _readable(folder)}:
            server.remove(name)


def _new_id(folder: Path, now: datetime) -> str:
    name = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    taken = {path.stem for path in (folder / "backups").glob("*.json")}
    return next(id for id in (name, *(f"{name}-{n}" for n in range(1, 10_000))) if id not in taken)


def _readable(folder: Path) -> Iterator[Manifest]:
    for path in (folder / "backups").glob("*.json"):
        with suppress(LogsvcError):
            yield _read_manifest(path)


def take_snapshot(data_dir: Path, id: str, open_store: Callable[[], Store], wait_s: float) -> Snapshot:
    """Have the service link its files; without one, link them here. The caller holds what comes, and so removes it."""
    # Commands of the same second, into different folders, would otherwise remove each other's links.
    request = SnapshotRequest(f"{id}-{secrets.token_hex(4)}")
    try:
        lock = DataDirectoryLock.acquire(data_dir, "logsvc backup")
    except DataDirectoryLocked as exc:
        return ask(data_dir / DIRECTORY, request, Snapshot, wait_s=wait_s, holder=exc.holder)
    with lock:
        refuse_half_restored(data_dir)
        with closing(open_store()) as store, closing(Journal.inspect(data_dir / journals.DIRECTORY)) as journal:
            return Snapshotter(data_dir, store, journal, lambda call: call()).take(request)


class _Copier:
    """Brings files into the folder, each content once."""

    def __init__(self, folder: Path, known: Mapping[tuple[str, int, int], str]) -> None:
        self._folder = folder
        self._known = known
        self.copied_bytes = 0

    def copy(self, path: Path, name: str, size_bytes: int | None = None) -> BackedFile:
        """Bring the first ``size_bytes`` of ``path``, or all; what an earlier backup has is not read again."""
        about = path.stat()
        size = about.st_size if size_bytes is None else size_bytes
        sha256 = self._known.get((name, size, about.st_mtime_ns))
        if sha256 is None or not _has_size(_blob(self._folder, sha256), size):
            sha256 = self._take(path, size)
        return BackedFile(name, size, about.st_mtime_ns, sha256)

    def _take(self, path: Path, size: int) -> str:
        aside = self._folder / "files" / "incoming"
        with open(path, "rb") as source:
            sha256 = _copy(source.fileno(), aside, size, path)
        self.copied_bytes += size
        # Over what may be there: it has not been read, and this is whole.
        blob = _blob(self._folder, sha256)
        if not blob.parent.is_dir():
            blob.parent.mkdir(mode=0o700)
            durable.sync_directory(blob.parent.parent)
        aside.rename(blob)
        durable.sync_directory(blob.parent)
        return sha256


def _copy(source: int, target: Path, size: int, name: Path) -> str:
    """Copy ``size`` bytes durably into a new file and return their SHA-256."""
    digest = hashlib.sha256()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = size
        while left:
            data = os.read(source, min(left, _CHUNK))
            if not data:
                raise LogsvcError(f"{name} is {left} bytes shorter than it was; try again")
            digest.update(data)
            durable.write_all(fd, data)
            left -= len(data)
        durable.sync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy_state(copier: _Copier, state: Path) -> BackedFile:
    """Copy the database as of one moment, while others write to it (sqlite.org/backup.html)."""
    aside = copier._folder / "files" / "incoming.db"
    aside.unlink(missing_ok=True)
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT, 0o600))
    try:
        # Never made: an empty database would look like a state.
        with (
            closing(sqlite3.connect(f"{state.absolute().as_uri()}?mode=rw", uri=True)) as source,
            closing(sqlite3.connect(aside)) as target,
        ):
            source.backup(target)
            # One file then, without a log beside it.
            target.execute("PRAGMA journal_mode=DELETE")
        return copier.copy(aside, STATE)
    except sqlite3.Error as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
        raise LogsvcError(f"cannot copy {state}: {exc}") from exc
    finally:
        aside.unlink(missing_ok=True)


def _prune(folder: Path, keep: int | None, server: ServerSnapshots | None) -> None:
    """Remove all but the newest ``keep`` backups, then every file and snapshot that none of the others has."""
    paths = sorted(path for path in (folder / "backups").glob("*.json") if _ID.fullmatch(path.stem))
    surplus = paths[: -keep or None] if keep is not None else []
    snapshots = []
    for path in surplus:
        with suppress(BadInput):
            snapshots.append(_read_manifest(path).snapshot)
        path.unlink()
    durable.sync_directory(folder / "backups")
    for name in snapshots:
        if name is not None and server is not None:
            server.remove(name)
    left = [path for path in paths if path.exists()]
    try:
        wanted = {file.sha256 for path in left for file in _read_manifest(path).files}
    except BadInput:
        return  # nobody knows which files a damaged or later one has
    for blob in (folder / "files").glob("??/*"):
        if blob.name not in wanted:
            blob.unlink()


# Verifying and restoring.


def verify(folder: Path, made: Manifest, server: ServerSnapshots | None = None) -> list[str]:
    """Return what is wrong with a backup, each thing named; [] if every byte is as it was written.

    A damaged file is renamed, where that can be, so that the next backup copies what it held anew.
    Of a snapshot, Elasticsearch is asked whether it is there and whole.

    Raises:
        SettingsError: If there is a snapshot, and no ``server`` to ask.
        StoreUnavailable: If it does not answer.
    """
    wrong = [trouble for file in made.files if (trouble := _trouble(folder, file)) is not None]
    if not wrong and made.has_state:
        blob = next(_blob(folder, file.sha256) for file in made.files if file.path == STATE)
        with closing(sqlite3.connect(f"{blob.resolve().as_uri()}?immutable=1", uri=True)) as database:
            wrong += [f"{STATE}: {text}" for (text,) in database.execute("PRAGMA quick_check") if text != "ok"]
    if made.snapshot is not None:
        try:
            _needed(server, made).check(made.snapshot)
        except (SettingsError, StoreUnavailable):
            raise
        except LogsvcError as exc:
            wrong.append(str(exc))
    return wrong


def _needed(server: ServerSnapshots | None, made: Manifest) -> ServerSnapshots:
    if server is None:
        raise SettingsError(
            f"the records of backup {made.id} are in a snapshot of Elasticsearch; "
            "set LOGSVC_STORE_URL and LOGSVC_STORE_REPOSITORY as they were"
        )
    return server


def _trouble(folder: Path, file: BackedFile) -> str | None:
    blob = _blob(folder, file.sha256)
    try:
        with open(blob, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{file.path}: {blob} is missing"
    except OSError as exc:
        return f"{file.path}: {blob} cannot be read: {exc}"
    if found == file.sha256:
        return None
    # Out of the way, or every later backup would take it for a copy that need not be made again.
    with suppress(OSError):
        blob.rename(blob.with_name(f"{blob.name}.damaged"))
    return f"{file.path}: {blob} is not what was written; take another backup, which copies it anew"


def restore(
    folder: Path,
    made: Manifest,
    data_dir: Path,
    *,
    state: Path | None,
    store_name: str,
    server: ServerSnapshots | None = None,
    overwrite: bool = False,
) -> None:
    """Put a backup back into ``data_dir``; a service started there goes on from it.

    Args:
        folder: Where the backup lies.
        made: Which one.
        data_dir: Empty or missing, unless it may be overwritten. No service runs there.
        state: Where SQLite's database goes; None if the state lies elsewhere.
        store_name: Where the settings have records kept: as when the backup was made.
        server: Has the records' snapshot, if the backup has one.
        overwrite: Whether what is there is removed, once all that comes in its place was checked.

    Raises:
        LogsvcError: If it cannot be; until every file has been checked, nothing that was there is touched.
    """
    if made.store != store_name:
        raise SettingsError(
            f"backup {made.id} belongs to records in the {made.store} store, and LOGSVC_STORE_URL names {store_name}; "
            "set it as it was"
        )
    if made.has_state and state is None:
        raise SettingsError(
            f"backup {made.id} has its state in SQLite, and LOGSVC_DATABASE_URL names another database; unset it"
        )
    if made.snapshot is not None:
        _needed(server, made).check(made.snapshot)
    with DataDirectoryLock.acquire(data_dir, "logsvc restore"), _explained(data_dir):
        _check_room(data_dir, made, state, overwrite=overwrite)
        aside = data_dir / RESTORING
        # Before anything says that a restore has begun: the next try would take what is there for its own.
        if made.snapshot is not None and not overwrite and not (aside / _MOVING).exists():
            _needed(server, made).check_empty()
        aside.mkdir(mode=0o700, exist_ok=True)
        # Not the folder and what says that it is moving: without them a start would take the half for the whole.
        for path in aside.iterdir():
            if path.name != _MOVING:
                _remove(path)
        durable.sync_directory(data_dir)
        for file in made.files:
            target = aside / file.path
            for directory in reversed(target.relative_to(aside).parents):
                (aside / directory).mkdir(mode=0o700, exist_ok=True)
            with open(_found(folder, file), "rb") as source:
                if _copy(source.fileno(), target, file.size_bytes, target) != file.sha256:
                    raise LogsvcError(
                        f"{_blob(folder, file.sha256)} is not what was written; "
                        "`logsvc backup verify` names all that is damaged, and an earlier backup may be whole"
                    )
            os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
        faults.reach("restore.copied")
        for directory in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
            durable.sync_directory(directory)
        durable.replace(aside / _MOVING, b"")
        faults.reach("restore.moving")
        if made.snapshot is not None:
            _needed(server, made).restore(made.snapshot)
        for name in _REPLACED:
            _remove(data_dir / name)
        if state is not None and made.has_state:
            for name in _REPLACED_STATE:
                _remove(state.with_name(state.name + name.removeprefix(STATE)))
        _move(aside, data_dir, state)
        shutil.rmtree(aside)
        durable.sync_directory(data_dir)


def _check_room(data_dir: Path, made: Manifest, state: Path | None, *, overwrite: bool) -> None:
    there = {path.name for path in data_dir.iterdir()} - {"lock", RESTORING}
    if state is not None and state.exists():
        there.add(state.name)
    is_ours = (data_dir / RESTORING / _MOVING).exists()
    if there and not overwrite and not is_ours:
        raise BadInput(
            f"{data_dir} is not empty ({', '.join(sorted(there)[:5])}); "
            "take an empty LOGSVC_DATA_DIR, or --overwrite what is there"
        )
    free = shutil.disk_usage(data_dir).free
    if made.size_bytes > free:
        raise LogsvcError(
            f"the backup takes {made.size_bytes} bytes and the disk of {data_dir} has {free}; nothing was changed"
        )


def _found(folder: Path, file: BackedFile) -> Path:
    blob = _blob(folder, file.sha256)
    if not blob.is_file():
        raise LogsvcError(f"{blob}, the content of {file.path}, is missing; take another backup")
    return blob


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(aside: Path, data_dir: Path, state: Path | None) -> None:
    # The database last: a start without it would make an empty one.
    for path in sorted(aside.iterdir(), key=lambda path: path.name == STATE):
        if path.name == _MOVING:
            continue
        target = data_dir / path.name
        if path.name == STATE and state is not None:
            state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = state
        try:
            path.rename(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            aside_there = target.with_name(f"{target.name}.new")
            with open(path, "rb") as source:
                _copy(source.fileno(), aside_there, path.stat().st_size, path)
            aside_there.rename(target)
        durable.sync_directory(target.parent)
        faults.reach("restore.moved")


def refuse_half_restored(data_dir: Path) -> None:
    """Stop a start in a data directory that a restore has not ended in.

    Raises:
        SettingsError: If it has not.
    """
    if (data_dir / RESTORING).exists():
        raise SettingsError(
            f"a restore into {data_dir} was interrupted; run `logsvc restore` again, "
            f"or remove {data_dir / RESTORING} if nothing is to be restored"
        )


def state_path(url: str) -> Path | None:
    """Return the file of a SQLite database; None for another database."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///(.+)", url)
    return Path(match[1]) if match else None
