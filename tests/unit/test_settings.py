"""Settings: what is read, what stops the start, what is documented."""

from __future__ import annotations

import base64
import pickle
import re
from datetime import timedelta
from pathlib import Path

import pytest

from logsvc.errors import SettingsError
from logsvc.settings import SETTINGS, is_loopback, load, without_password

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


def test_defaults_need_nothing_and_stay_on_loopback() -> None:
    settings = load(environ={})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.server.public_url == "http://127.0.0.1:8080"
    assert settings.store.is_embedded
    assert settings.state.url == f"sqlite:///{settings.data_dir / 'state.db'}"
    assert settings.notify.tickets_file == settings.data_dir / "tickets.jsonl"
    assert settings.detection.window == timedelta(minutes=5)
    assert settings.detection.step == timedelta(minutes=1)
    assert settings.detection.grace == timedelta(seconds=60)
    assert settings.retention.records == timedelta(days=30)
    assert settings.journal.max_bytes == 8 * 2**30


def test_the_default_data_directory_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load(environ={}).data_dir == tmp_path / "logsvc"


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "logsvc.toml"
    config.write_text(
        'data_dir = "/srv/logs"\n[server]\nport = 9000\n[detection]\nwindow = "10m"\ngrace = "30s"\n'
        '[notify]\nwebhook_allow_networks = ["10.0.0.0/8", "::1/128"]\n[security]\nallow_insecure_bind = true\n'
    )
    settings = load(config, environ={"LOGSVC_WINDOW": "15m"})
    assert settings.data_dir == Path("/srv/logs")
    assert settings.server.port == 9000
    assert settings.detection.window == timedelta(minutes=15)
    assert settings.detection.grace == timedelta(seconds=30)
    assert [str(network) for network in settings.notify.webhook_allow_networks] == ["10.0.0.0/8", "::1/128"]
    assert settings.security.allow_insecure_bind
    sources = {row.name: source for row, _, source in settings.describe()}
    assert (sources["LOGSVC_WINDOW"], sources["LOGSVC_PORT"], sources["LOGSVC_HOST"]) == (
        "environment",
        str(config),
        "default",
    )


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    config = tmp_path / "logsvc.toml"
    config.write_text('[log]\nlevel = "debug"\n')
    assert load(environ={"LOGSVC_CONFIG": str(config)}).log.level == "debug"


def test_the_clients_and_the_tests_variables_are_ignored_and_empty_ones_are_absent() -> None:
    environ = {
        "LOGSVC_URL": "x",
        "LOGSVC_API_KEY": "y",
        "LOGSVC_SPOOL_KEY": "k",
        "LOGSVC_TEST_KILL_AT": "z",
        "LOGSVC_PORT": "",
        "OTHER": "1",
    }
    assert load(environ=environ) == load(environ={})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"LOGSVC_PROT": "1"}, r"unknown variable LOGSVC_PROT; the nearest known is LOGSVC_PORT"),
        ({"LOGSVC_SERVICE_HOST": "10.0.0.1"}, r"LOGSVC_SERVICE_HOST.*enableServiceLinks"),
        ({"LOGSVC_PORT": "tcp://10.0.0.1:8080"}, r"LOGSVC_PORT.*expected a whole number.*enableServiceLinks"),
        ({"LOGSVC_PORT": "65536"}, r"LOGSVC_PORT is 65536; expected 0 to 65535"),
        ({"LOGSVC_WINDOW": "5"}, r"LOGSVC_WINDOW.*'5'; expected a duration such as 5m"),
        ({"LOGSVC_WINDOW": "7s"}, r"LOGSVC_WINDOW is 7s; expected .*multiple of 5s.*fifth.*whole seconds"),
        ({"LOGSVC_WINDOW": "0s"}, r"LOGSVC_WINDOW is 0s"),
        ({"LOGSVC_RETENTION": "1h"}, r"LOGSVC_RETENTION is 1h; expected 1d or more"),
        ({"LOGSVC_JOURNAL_MAX_BYTES": "8 parsecs"}, r"LOGSVC_JOURNAL_MAX_BYTES.*expected a size such as 8GiB"),
        ({"LOGSVC_ACK": "never"}, r"LOGSVC_ACK.*expected one of journal, store"),
        ({"LOGSVC_STORE_URL": "ftp://u:hunter2@x"}, r"LOGSVC_STORE_URL.*ftp://\*\*\*@x.*expected embedded"),
        ({"LOGSVC_DATABASE_URL": "mysql://x"}, r"LOGSVC_DATABASE_URL.*expected sqlite"),
        ({"LOGSVC_TENANT": "A b"}, r"LOGSVC_TENANT"),
        ({"LOGSVC_HOST": "0.0.0.0"}, r"LOGSVC_HOST is 0.0.0.0.*LOGSVC_TLS_CERT.*LOGSVC_ALLOW_INSECURE_BIND"),
        ({"LOGSVC_TLS_CERT": "x.pem"}, r"LOGSVC_TLS_CERT and LOGSVC_TLS_KEY belong together"),
        ({"LOGSVC_TLS_CERT": "nowhere.pem", "LOGSVC_TLS_KEY": "y.pem"}, r"cannot read LOGSVC_TLS_CERT nowhere.pem"),
        ({"LOGSVC_WEBHOOK_URL": "https://hooks.example.org"}, r"LOGSVC_WEBHOOK_SECRET"),
        ({"LOGSVC_WEBHOOK_SECRET_FILE": "nowhere"}, r"cannot read LOGSVC_WEBHOOK_SECRET_FILE nowhere"),
        ({"LOGSVC_WEBHOOK_ALLOW_NETWORKS": "10.0.0.1/8"}, r"LOGSVC_WEBHOOK_ALLOW_NETWORKS.*expected networks"),
        ({"LOGSVC_ALLOW_INSECURE_BIND": "perhaps"}, r"LOGSVC_ALLOW_INSECURE_BIND.*expected true or false"),
        ({"LOGSVC_CONFIG": "nowhere.toml"}, r"cannot read the settings file nowhere.toml"),
    ],
)
def test_what_cannot_be_used_stops_the_start_and_says_the_way_out(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(environ=environ)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1", r"unknown key server.prot in .*; the nearest known is server.port"),
        ("[servers]\nport = 1", r"unknown key servers"),
        ("port = 1", r"unknown key port in .*; the nearest known is server.port"),
        ("[server]\nport = 1.5", r"server.port. from .* is .1.5.; expected a whole number"),
        ("[server.port]\nx = 1", r"server.port in .*expected number"),
        ("server = 3", r"unknown key server"),
        ("[server", r"is not TOML"),
    ],
)
def test_a_file_with_anything_unknown_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "logsvc.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load(config, environ={})


def test_listening_beyond_loopback_needs_tls_or_the_explicit_flag(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    tls = {"LOGSVC_TLS_CERT": str(tmp_path / "cert.pem"), "LOGSVC_TLS_KEY": str(tmp_path / "key.pem")}
    assert load(environ={"LOGSVC_HOST": "::", **tls}).server.public_url == "https://[::]:8080"
    assert load(environ={"LOGSVC_HOST": "0.0.0.0", "LOGSVC_ALLOW_INSECURE_BIND": "true"}).server.host == "0.0.0.0"
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_no_secret_shows_in_a_repr_a_description_or_an_error(tmp_path: Path) -> None:
    settings = load(
        environ={
            "LOGSVC_WEBHOOK_URL": "https://u:hunter2@hooks.example.org",
            "LOGSVC_WEBHOOK_SECRET": SECRET,
            "LOGSVC_STORE_URL": "https://elastic:hunter2@es.example.org:9200",
            "LOGSVC_DATABASE_URL": "postgresql+psycopg://logsvc:hunter2@db.example.org/logsvc",
        }
    )
    shown = repr(settings) + repr(list(settings.describe()))
    assert "hunter2" not in shown
    assert SECRET not in shown
    assert "(set)" in shown
    with pytest.raises(SettingsError) as caught:
        load(environ={"LOGSVC_WEBHOOK_SECRET": "whsec_hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_may_lie_in_a_file_and_be_one_of_two(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n{SECRET}\n")
    settings = load(environ={"LOGSVC_WEBHOOK_URL": "https://a.example", "LOGSVC_WEBHOOK_SECRET_FILE": str(path)})
    assert settings.notify.webhook_secret == (SECRET, SECRET)
    with pytest.raises(SettingsError, match="remove one"):
        load(environ={"LOGSVC_WEBHOOK_SECRET": SECRET, "LOGSVC_WEBHOOK_SECRET_FILE": str(path)})


def test_settings_travel_to_a_spawned_process() -> None:
    settings = load(environ={"LOGSVC_PORT": "9000"})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_without_password_keeps_the_rest() -> None:
    assert without_password("postgresql://u:p@w@h/db") == "postgresql://***@h/db"
    assert without_password("http://h/a@b") == "http://h/a@b"


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `(LOGSVC_\w+)` \|.*$", text, re.MULTILINE)}
    assert list(rows) == [row.name for row in SETTINGS]
    for row in SETTINGS:
        assert f"`{row.key}`" in rows[row.name]
        assert row.help in rows[row.name]
        assert row.default.strip("()") in rows[row.name]


def test_a_free_port_shows_in_the_address_that_people_get(tmp_path: Path) -> None:
    settings = load(environ={"LOGSVC_PORT": "0", "LOGSVC_DATA_DIR": str(tmp_path)})
    assert settings.listening_on(4711).server.public_url == "http://127.0.0.1:4711"
    chosen = {"LOGSVC_PORT": "0", "LOGSVC_DATA_DIR": str(tmp_path), "LOGSVC_PUBLIC_URL": "https://logs.example"}
    assert load(environ=chosen).listening_on(4711).server.public_url == "https://logs.example"


def test_a_canary_has_time_to_be_judged_and_can_be_turned_off() -> None:
    with pytest.raises(SettingsError, match=r"LOGSVC_CANARY_DEADLINE is 1m; expected 2m5s or more"):
        load(environ={"LOGSVC_CANARY_DEADLINE": "1m"})
    assert not load(environ={"LOGSVC_CANARY_DEADLINE": "1m", "LOGSVC_CANARY_EVERY": "0s"}).canary.every
    with pytest.raises(SettingsError, match=r"LOGSVC_DEAD_MANS_SWITCH_EVERY is 0s"):
        load(environ={"LOGSVC_DEAD_MANS_SWITCH_EVERY": "0s"})


def test_a_grace_of_nothing_and_a_thousand_processes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"LOGSVC_LOSS_GRACE is 0s; expected 1s"):
        load(environ={"LOGSVC_LOSS_GRACE": "0s"})
    with pytest.raises(SettingsError, match=r"LOGSVC_INGEST_PROCESSES is 1000; expected at most 64"):
        load(environ={"LOGSVC_INGEST_PROCESSES": "1000"})
    with pytest.raises(SettingsError, match=r"LOGSVC_QUOTA_BURST is 1ms"):
        load(environ={"LOGSVC_QUOTA_BURST": "1ms"})


def test_the_service_reaches_itself_wherever_it_listens(tmp_path: Path) -> None:
    environ = {"LOGSVC_DATA_DIR": str(tmp_path), "LOGSVC_PORT": "81", "LOGSVC_ALLOW_INSECURE_BIND": "true"}
    for host, url in (
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("::", "http://[::1]:81"),
        ("10.0.0.7", "http://10.0.0.7:81"),
    ):
        assert load(environ={**environ, "LOGSVC_HOST": host}).own_url == url


def test_the_nearest_budget_of_false_tickets_counts() -> None:
    text = "task:billing.charge=0.001, service:billing=0.05 tenant:acme=0.1"
    detection = load(environ={"LOGSVC_FALSE_TICKETS": "0.02", "LOGSVC_FALSE_TICKETS_FOR": text}).detection
    assert detection.budget("acme", "task:billing.charge", "billing") == 0.001
    assert detection.budget("acme", "task:billing.refund", "billing") == 0.05
    assert detection.budget("acme", "service:billing", "billing") == 0.05
    assert detection.budget("acme", "task:email.send", "email") == 0.1
    assert detection.budget("other", "task:email.send", None) == 0.02
    assert [str(one) for one in detection.false_tickets_for] == text.replace(",", "").split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host:a=0.1", "task:NAME=0.001, service:NAME=0.05 or tenant:NAME=0.1"),
        ("task:a=5", "0.0001 to 1 false tickets a task and day"),
        ("task:a=many", "false tickets a task and day, such as 0.01"),
        ("task:a=0.1,task:a=0.2", "task:a only once"),
    ],
)
def test_a_budget_that_cannot_be_read_says_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        load(environ={"LOGSVC_FALSE_TICKETS_FOR": text})


def test_a_budget_may_be_a_number_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "logsvc.toml"
    file.write_text('[detection]\nfalse_tickets = 0.03\nfalse_tickets_for = ["task:a=0.1", "tenant:b=0.2"]\n')
    detection = load(file, environ={}).detection
    assert (detection.false_tickets, len(detection.false_tickets_for)) == (0.03, 2)
