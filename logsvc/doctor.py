"""Doctor: what is configured, reachable, behind or wrong, and what to do about it.

Reads the settings, the data directory and, if one answers, the running service. Leaves everything
as it was.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import Enum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec

from logsvc import __version__
from logsvc.client import Client, ClientError, Exit, Status
from logsvc.deadletters import DIRECTORY as DEAD_LETTERS
from logsvc.deadletters import letters
from logsvc.errors import DataDirectoryLocked, LogsvcError, SchemaMismatch
from logsvc.lock import DataDirectoryLock
from logsvc.settings import Settings, load
from logsvc.timestamps import US_PER_S, format_us

MIN_FREE_BYTES = 2 << 30
MAX_LAG_S = 60.0
_MAX_SHOWN_S = 86_400 * 36_500


class Grade(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing looked at; ``advice`` says what to do."""

    grade: Grade
    what: str
    text: str
    advice: str = ""


def examine(config: Path | None, url: str | None) -> list[Finding]:
    """Look at everything and return what was found.

    Raises:
        SettingsError: If the settings cannot be read at all.
    """
    settings = load(config)
    findings = [*_program(), *_settings(settings), *_data_directory(settings), *_state(settings), *_store(settings)]
    findings += _dead_letters(settings)
    address = url or os.environ.get("LOGSVC_URL") or settings.server.public_url
    findings += _service(address, settings, _holder(settings.data_dir))
    return findings


def _holder(directory: Path) -> str | None:
    """Return the process that serves the data directory; None if none does, or it cannot be told."""
    if not directory.is_dir():
        return None
    try:
        with DataDirectoryLock.acquire(directory, "logsvc doctor"):
            return None
    except DataDirectoryLocked as exc:
        return exc.holder
    except OSError:
        return None


def _program() -> Iterator[Finding]:
    yield Finding(Grade.OK, "logsvc", f"{__version__} on Python {sys.version.split()[0]}")
    # Another distribution named detectors is on the package index; whichever was installed last won.
    ours = Path(__file__).resolve().parent.parent
    for name, distribution in (("detectors", "logsvc"), ("shippers", "logsvc-shippers")):
        spec = find_spec(name)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        owners = set(metadata.packages_distributions().get(name, [])) - {distribution}
        if origin is None or owners or not origin.resolve().is_relative_to(ours):
            text = (
                f"{origin or 'nothing'} is not ours{': it belongs to ' + ', '.join(sorted(owners)) if owners else ''}"
            )
            yield Finding(Grade.WRONG, name, text, f"uninstall that, then install {distribution} again")


def _settings(settings: Settings) -> Iterator[Finding]:
    changed = [f"{row.name}={shown} ({source})" for row, shown, source in settings.describe() if source != "default"]
    yield Finding(Grade.OK, "settings", "; ".join(changed) or "all at their defaults")
    if settings.security.allow_insecure_bind:
        yield Finding(
            Grade.WARNING,
            "address",
            "LOGSVC_ALLOW_INSECURE_BIND is on: keys cross the network in the clear",
            "set LOGSVC_TLS_CERT and LOGSVC_TLS_KEY, unless a proxy in front has TLS",
        )


def _data_directory(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir
    if not directory.is_dir():
        parent = next(path for path in (directory, *directory.parents) if path.exists())
        if trouble := _why_not_writable(parent):
            text = f"{directory} cannot be made: {trouble}"
            yield Finding(Grade.WRONG, "data directory", text, "set LOGSVC_DATA_DIR to a place that can be written to")
        else:
            yield Finding(Grade.WARNING, "data directory", f"{directory} does not exist yet", "`logsvc serve` makes it")
        return
    if trouble := _why_not_writable(directory):
        yield Finding(Grade.WRONG, "data directory", trouble, "make it writable for the service's user")
    mode = directory.stat().st_mode & 0o077
    if mode:
        yield Finding(
            Grade.WARNING,
            "data directory",
            f"others on this machine may look into {directory}",
            f"chmod 700 {directory}",
        )
    free = shutil.disk_usage(directory).free
    grade, advice = Grade.OK, ""
    if free < MIN_FREE_BYTES:
        grade, advice = Grade.WRONG, "make room, or shorten LOGSVC_RETENTION; a full disk refuses records with 503"
    yield Finding(grade, "disk", f"{free / 2**30:.1f} GiB free at {directory}", advice)
    if (directory / "first-admin-key").exists():
        yield Finding(
            Grade.WARNING,
            "first admin key",
            f"{directory / 'first-admin-key'} still lies there",
            "keep the key in a safe place and remove the file",
        )


def _why_not_writable(directory: Path) -> str:
    """Return what stops a process from writing there; empty if nothing does."""
    try:
        # Tried rather than asked for: permissions say nothing of file systems that are read-only.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".logsvc-doctor-"):
            return ""
    except OSError as exc:
        return f"{directory}: {exc.strerror or exc}"


def _state(settings: Settings) -> Iterator[Finding]:
    from logsvc.state import open_state

    if settings.state.url.startswith("sqlite") and not settings.data_dir.is_dir():
        return
    try:
        state = open_state(settings.state.url)
    except SchemaMismatch as exc:
        advice = "restore the database from its backup, or run the version of logsvc that wrote it"
        yield Finding(Grade.WRONG, "state", str(exc), advice)
        return
    except LogsvcError as exc:
        yield Finding(Grade.WRONG, "state", str(exc), "check LOGSVC_DATABASE_URL, and that the database runs")
        return
    try:
        keys = [key for key in state.list_keys() if key.revoked_us is None]
        grade, advice = (Grade.OK, "") if keys else (Grade.WARNING, "`logsvc keys create --scope ingest`")
        yield Finding(grade, "keys", f"{len(keys)} that work", advice)
        for (channel, delivery), count in state.count_outbox().items():
            if delivery.value == "failed":
                text = f"{count} events were given up"
                yield Finding(
                    Grade.WRONG, f"channel {channel}", text, "see the ticket's page for why; mend the receiver"
                )
    finally:
        state.close()


def _store(settings: Settings) -> Iterator[Finding]:
    from logsvc.app import open_store

    if settings.store.is_embedded:
        index = settings.data_dir / "index"
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) if index.is_dir() else 0
        yield Finding(Grade.OK, "store", f"embedded (tantivy), {size / 2**20:.1f} MiB at {index}")
        return
    try:
        store = open_store(settings)
    except LogsvcError as exc:
        yield Finding(Grade.WRONG, "store", str(exc), "correct LOGSVC_STORE_URL")
        return
    try:
        health = store.health()
        if not health.is_reachable:
            advice = "start it, or correct LOGSVC_STORE_URL; meanwhile records wait in the journal"
            yield Finding(Grade.WRONG, "store", f"{health.name} does not answer: {health.detail}", advice)
            return
        yield Finding(Grade.OK, "store", f"{health.name} {health.detail}".strip())
        differences = store.check_schema()
        if differences:
            advice = "choose another LOGSVC_STORE_PREFIX, or remove the indices that another version made"
            yield Finding(Grade.WRONG, "mapping", "; ".join(differences), advice)
    except LogsvcError as exc:
        yield Finding(Grade.WRONG, "store", str(exc), "try again; if it stays, look at the server's own log")
    finally:
        store.close()


def _dead_letters(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir / DEAD_LETTERS
    count = sum(1 for _ in letters(directory)) if directory.is_dir() else 0
    if count:
        advice = "`logsvc deadletters list` says why; mend it, then `logsvc deadletters replay --all`"
        yield Finding(Grade.WRONG, "dead letters", f"{count} records that the store refused", advice)


def _service(url: str | None, settings: Settings, holder: str | None) -> Iterator[Finding]:
    try:
        client = Client(url, timeout_s=5.0)
    except ClientError as exc:
        yield Finding(Grade.WRONG, "service", str(exc), "correct LOGSVC_API_KEY, LOGSVC_URL or --url")
        return
    try:
        client.get("/readyz", Status)
        text = f"ready at {client.url}" + (f": {holder}" if holder else ", which serves another data directory")
        advice = "" if holder else "mind that what is said above is about the data directory here"
        yield Finding(Grade.OK if holder else Grade.WARNING, "service", text, advice)
    except ClientError as exc:
        is_away = exc.exit_code is Exit.AWAY and not exc.problem
        if is_away and holder:
            text = f"the data directory is served ({holder}), but not at {client.url}"
            advice = "set LOGSVC_URL or --url to the address that `logsvc serve` printed"
        else:
            text = str(exc)
            advice = "start `logsvc serve`" if is_away else "it mends itself when the cause is gone"
        yield Finding(Grade.WARNING if is_away else Grade.WRONG, "service", text, advice)
        if is_away:
            return
    if not os.environ.get("LOGSVC_API_KEY"):
        text = "not looked at: LOGSVC_API_KEY is not set"
        yield Finding(Grade.WARNING, "metrics", text, "set it to a key with the scope read")
        return
    try:
        values = client.metrics()
    except ClientError as exc:
        yield Finding(Grade.WARNING, "metrics", str(exc), "set LOGSVC_API_KEY to a key with the scope read")
        return
    lag = values.get("indexer_lag_seconds", 0.0)
    grade, advice = (Grade.OK, "") if lag < MAX_LAG_S else (Grade.WRONG, "the store is slower than what arrives")
    text = f"{values.get('indexer_lag_records', 0):.0f} records, {lag:.0f} s behind"
    yield Finding(grade, "indexer", text, advice)
    yield _detection(values, settings)
    if "logsvc_canary_up" in values:
        yield _canary(values)
    yield Finding(Grade.OK, "tickets", f"{values.get('tickets_open', 0):.0f} open")


def _detection(values: Mapping[str, float], settings: Settings) -> Finding:
    lag_s = values.get("detection_cursor_lag_seconds", math.inf)
    if not math.isfinite(lag_s):
        advice = "right after a start, ask again in a minute; else the service's own log says why"
        return Finding(Grade.WARNING, "detection", "has not judged yet", advice)
    is_late = lag_s > (settings.detection.window + settings.detection.grace).total_seconds()
    is_blind = values.get("detection_is_blind", 0.0) > 0
    grade = Grade.WRONG if is_blind else Grade.WARNING if is_late else Grade.OK
    advice = "records are missing or late: look at indexer and store" if is_blind or is_late else ""
    behind = timedelta(seconds=min(round(lag_s), _MAX_SHOWN_S))
    return Finding(grade, "detection", f"{'blind, ' if is_blind else ''}{behind} behind", advice)


def _canary(values: Mapping[str, float]) -> Finding:
    last_s = values.get("logsvc_canary_last_success_timestamp_seconds", 0.0)
    last = f"last came through at {format_us(round(last_s * US_PER_S))[:19].replace('T', ' ')} UTC" if last_s else ""
    if values["logsvc_canary_up"] > 0:
        return Finding(Grade.OK, "canary", last, "")
    if not last_s:
        advice = "the first is due minutes after a start; if it stays away, a ticket of the kind self says why"
        return Finding(Grade.WARNING, "canary", "none yet", advice)
    advice = "errors do not become alerts in time: the open ticket of the kind self says how far the last one came"
    return Finding(Grade.WRONG, "canary", last, advice)
