"""Erasing by query on each store: counted first, then for good, and written down."""

from __future__ import annotations

import json
import secrets

from tests.support.service import ServiceProcess


def test_what_is_erased_was_counted_first_is_gone_everywhere_and_is_written_down(service: ServiceProcess) -> None:
    tenant = f"t{secrets.token_hex(6)}"
    key = service.make_key("ingest", "read", "admin", tenant=tenant)
    service.use(key)
    service.ingest({"event.id": f"e{n}", "message": f"{'forgetme' if n < 3 else 'keep'} {n}"} for n in range(10))
    service.wait("the records", lambda: service.count() == 10)
    settings = {"LOGSVC_URL": service.url, "LOGSVC_API_KEY": key}

    def erase(*arguments: str, check: bool = True, **environ: str) -> tuple[int, str, str]:
        done = service.run("erase", *arguments, check=check, **{**settings, **environ})
        return done.returncode, done.stdout, done.stderr

    assert "3 records match" in erase("forgetme", "--dry-run")[1]
    code, _, error = erase("forgetme", check=False)  # nobody there to be asked
    assert code == 2
    assert "--yes" in error
    answer = service.http.post("/api/v1/erasures", params={"q": "forgetme", "expected": 2})
    assert answer.status_code == 409
    assert "3 records match now, not 2" in answer.json()["detail"]
    assert service.http.post("/api/v1/erasures", params={"q": " "}).status_code == 400
    reader = service.make_key("read", tenant=tenant)
    assert erase("forgetme", "--yes", check=False, LOGSVC_API_KEY=reader)[0] == 4
    assert service.count() == 10

    assert json.loads(erase("forgetme", "--yes", "-o", "json")[1])["erased"] == 3
    assert sorted(record["event.id"] for record in service.walk()) == [f"e{n}" for n in range(3, 10)]
    lines = (service.data_dir / "erasures.jsonl").read_text().splitlines()
    # Before and after: an erasure that is interrupted is known of, too.
    intended, done = (found for found in map(json.loads, lines) if found["tenant"] == tenant)
    assert (intended["outcome"], done["outcome"], done["id"]) == ("intended", "done", intended["id"])
    assert (intended["query"], intended["records"], done["records"]) == ("forgetme", 3, 3)
    assert key not in str(lines)
