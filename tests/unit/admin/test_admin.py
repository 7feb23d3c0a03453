"""The admin API: who may use it, what it shows, what it changes, and how it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from forebay.admin.server import bind
from forebay.admin.settings import AdminSettings
from forebay.errors import SettingsError
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.schema import migrate
from tests.unit.admin.support import ANN, TOKEN, Served, Sink, served
from tests.unit.dead_letters.world import bury, statuses
from tests.unit.storage.deliveries import dead
from tests.waiting import until

UNKNOWN = "019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11"


@pytest.mark.parametrize("sent", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN])
async def test_nothing_is_told_without_the_token(sqlite_database: Database, sent: str | None) -> None:
    async with served(sqlite_database) as admin:
        headers = {} if sent is None else {"Authorization": sent}
        admin.client.headers.pop("Authorization")
        for path in ("/admin/v1/dead-letters", "/admin/v1/nothing", "/admin"):
            answer = await admin.client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["type"] == "/problems/unauthenticated"
        assert (await admin.client.get("/livez")).status_code == 200
        assert (await admin.client.get("/problems/unauthenticated")).status_code == 200


async def test_the_latest_come_first_page_by_page(database: Database) -> None:
    ids = bury(database, 5)
    async with served(database) as admin:
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = await admin.ok("GET", "/dead-letters", params={"limit": 2} | cursor)
            seen += [one["id"] for one in page["dead_letters"]]
            assert not [one for one in page["dead_letters"] if "body" in one]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}

        assert seen == ids[::-1]
        assert (await admin.refused("GET", "/dead-letters?cursor=x", 400))["type"].endswith("invalid-request")


async def test_they_are_filtered_and_grouped(database: Database) -> None:
    one, other = dead(b"needle"), dead(b"x", error_class="Other", queue="clicks", minute=1)
    DeadLetterStore(database).archive([one, other])
    async with served(database) as admin:

        async def found(**filter: Any) -> list[str]:
            page = await admin.ok("GET", "/dead-letters", params=filter)
            return [r["id"] for r in page["dead_letters"]]

        assert await found(text="needle") == [one.message.id]
        assert await found(queue="clicks") == [other.message.id]
        assert await found(id=[one.message.id, UNKNOWN]) == [one.message.id]
        assert await found(status="resolved") == []
        groups = (await admin.ok("GET", "/dead-letters/groups"))["groups"]
        assert {(g["error_class"], g["count"], g["sample_id"]) for g in groups} == {
            ("CheckViolation", 1, one.message.id),
            ("Other", 1, other.message.id),
        }
        await admin.refused("GET", "/dead-letters?status=odd", 422)
        await admin.refused("GET", "/dead-letters?text=%00", 422)


async def test_one_is_shown_whole_and_its_body_raw(database: Database) -> None:
    letter = dead(b"\xff<script>")
    DeadLetterStore(database).archive([letter])
    async with served(database) as admin:
        (shown,) = (await admin.ok("GET", f"/dead-letters/{letter.message.id}"))["dead_letters"]
        raw = await admin.client.get(f"/admin/v1/dead-letters/{letter.message.id}/body")

        assert base64.b64decode(shown["body_base64"]) == letter.message.body == raw.content
        assert shown["detail"] == "row (1)"
        assert raw.headers["content-type"] == "application/octet-stream"
        assert raw.headers["content-disposition"].startswith("attachment")
        for path in (f"/dead-letters/{UNKNOWN}", f"/dead-letters/{UNKNOWN}/body"):
            assert "forebay message" in (await admin.refused("GET", path, 404))["detail"]


async def test_an_export_is_ndjson(database: Database) -> None:
    ids = bury(database, 3)
    async with served(database) as admin:
        answer = await admin.client.get("/admin/v1/dead-letters/export")

        assert answer.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(line)["id"] for line in answer.text.splitlines()] == ids


async def test_a_redrive_goes_on_in_the_background(database: Database) -> None:
    bury(database, 30)
    async with served(database) as admin:
        dry = await admin.ok("POST", "/redrives", json={"all": True, "dry_run": True})
        answer = await admin.client.post("/admin/v1/redrives", json={"all": True})

        assert dry == {"dry_run": True, "count": 30}
        assert answer.status_code == 202
        place = answer.headers["location"].removeprefix("/admin/v1")
        await until(lambda: statuses(database) == {"resolved": 30})
        job = await eventually(admin, place, "done")
        assert (job["sent"], job["arrived"], job["requested_by"]) == (30, 30, "admin")
        listed = await admin.ok("GET", "/redrives")
        assert [one["id"] for one in listed["redrives"]] == [job["id"]]
        (entry,) = (await admin.ok("GET", "/audit?action=redrive"))["entries"]
        assert (entry["who"], entry["count"]) == ("admin", 30)
        await admin.refused("POST", f"{place}/stop", 409)
        await admin.refused("POST", f"{place}/resume", 409)
        await admin.refused("POST", f"/redrives/{UNKNOWN}/resume", 404)
        assert (await admin.ok("POST", "/redrives", json={"all": True}))["count"] == 0


async def test_a_redrive_that_stopped_can_be_resumed(sqlite_database: Database) -> None:
    bury(sqlite_database, 3)
    async with served(sqlite_database, Sink(sqlite_database, bad={b"0"})) as admin:
        job = await admin.ok("POST", "/redrives", json={"filter": {"queue": "orders"}})
        stopped = await eventually(admin, f"/redrives/{job['id']}", "stopped")
        assert "the first one did" in stopped["why"]

        await admin.ok("POST", f"/redrives/{job['id']}/resume")

        done = await eventually(admin, f"/redrives/{job['id']}", "done")
        assert (done["sent"], done["arrived"], done["died_again"]) == (3, 2, 1)


async def test_a_redrive_of_a_process_that_is_gone_goes_on(sqlite_database: Database) -> None:
    from forebay.dead_letters.redrive import Options, create
    from forebay.storage.dead_letters import DeadLetterFilter

    bury(sqlite_database, 3)
    which = DeadLetterFilter(status="dead")
    create(sqlite_database, which, Options(), by="ann", origin="api", owner=None)

    async with served(sqlite_database):
        await until(lambda: statuses(sqlite_database) == {"resolved": 3})


async def test_a_choice_must_be_made(sqlite_database: Database) -> None:
    async with served(sqlite_database) as admin:
        for path in ("/redrives", "/dead-letters/discard"):
            assert (await admin.refused("POST", path, 400, json={}))["type"] == "/problems/no-choice"


async def test_discarding_names_who_and_why(database: Database) -> None:
    ids = bury(database, 2)
    async with served(database) as admin:
        admin.client.headers["Authorization"] = f"Bearer {ANN}"
        done = await admin.ok(
            "POST", "/dead-letters/discard", json={"filter": {"ids": ids[:1]}, "reason": "a test"}
        )

        assert done == {"dry_run": False, "count": 1}
        (shown,) = (await admin.ok("GET", f"/dead-letters/{ids[0]}"))["dead_letters"]
        assert (shown["status"], shown["discard_reason"], shown["changed_by"]) == (
            "discarded",
            "a test",
            "ann",
        )


async def test_an_edit_is_sent_as_a_new_message(database: Database) -> None:
    letter = dead(b'{"n":1}')
    DeadLetterStore(database).archive([letter])
    path = f"/dead-letters/{letter.message.id}/edit"
    async with served(database) as admin:
        wanted = {"set": [{"pointer": "/n", "value": 2}]}
        dry = await admin.ok("POST", path, json=wanted | {"dry_run": True})
        assert '+  "n": 2' in dry["diff"]
        assert admin.sink.sent == []
        await admin.refused("POST", path, 400, json={"body": "x", "body_base64": "eA=="})
        await admin.refused("POST", path, 409, json={"body": '{"n":1}'})

        done = await admin.ok("POST", path, json=wanted)

        ((queue, message),) = admin.sink.sent
        assert (queue, message.id, message.body) == ("orders", done["new_id"], b'{"n":2}')
        assert statuses(database) == {"discarded": 1}
        assert (await admin.refused("POST", path, 409, json=wanted))["type"] == "/problems/cannot-edit"


async def test_queues_are_paused_throttled_and_resumed(database: Database) -> None:
    async with served(database) as admin:
        paused = await admin.ok("POST", "/queues/orders/pause", json={"reason": "moving"})
        assert (paused["paused"], paused["changed_by"]) == (True, "admin")
        assert (await admin.ok("POST", "/queues/orders/throttle", json={"rate": 5}))["rate"] == 5
        (queue,) = (await admin.ok("GET", "/queues"))["queues"]
        assert (queue["waiting"], queue["control"]["reason"]) == (1, "moving")
        resumed = await admin.ok("POST", "/queues/orders/resume", json={"allow_dead_letters": 7})
        assert (resumed["paused"], resumed["allowance"]) == (False, 7)
        assert (await admin.ok("POST", "/queues/orders/throttle", json={"rate": None}))["rate"] is None
        assert "orders" in (await admin.refused("POST", "/queues/nosuch/pause", 404, json={}))["detail"]
        actions = [e["action"] for e in (await admin.ok("GET", "/audit"))["entries"]]
        assert actions == ["throttle", "resume", "throttle", "pause"]


async def test_the_audit_is_paged(sqlite_database: Database) -> None:
    async with served(sqlite_database) as admin:
        for rate in (1, 2, 3):
            await admin.ok("POST", "/queues/orders/throttle", json={"rate": rate})
        first = await admin.ok("GET", "/audit?limit=2")
        second = await admin.ok("GET", f"/audit?limit=2&cursor={first['next']}")

        assert [e["detail"][0] for e in first["entries"] + second["entries"]] == ["3", "2", "1"]
        assert second["next"] is None


async def test_without_a_broker_all_but_sending_works(sqlite_database: Database) -> None:
    ids = bury(sqlite_database, 1)
    async with served(sqlite_database, down=True) as admin:
        status = await admin.ok("GET", "/status")
        assert status["dead_letters"]["dead"] == 1
        assert "cannot be reached" in status["queues"][0]["unknown"]
        for path, body in (
            ("/redrives", {"all": True}),
            (f"/dead-letters/{ids[0]}/edit", {"body": "x"}),
        ):
            found = await admin.refused("POST", path, 503, json=body)
            assert (found["type"], found["retryable"]) == ("/problems/broker-unavailable", True)
        assert statuses(sqlite_database) == {"dead": 1}


async def test_a_database_that_is_away_is_a_503(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/forebay.db")
    migrate(database)
    async with served(database) as admin:
        (tmp_path / "forebay.db").unlink()
        database.dispose()
        for path in ("/dead-letters", "/status", "/dead-letters/export"):
            found = await admin.refused("GET", path, 503)
            assert found["type"] == "/problems/database-unavailable"


async def test_a_body_without_end_is_refused(sqlite_database: Database) -> None:
    async with served(sqlite_database) as admin:
        found = await admin.refused("POST", "/dead-letters/discard", 413, content=b"x" * (9 * 2**20))
        assert found["limit"] == 8 * 2**20


def test_beyond_loopback_it_wants_a_token() -> None:
    with pytest.raises(SettingsError, match="no token is set; set one: FOREBAY_ADMIN__TOKEN="):
        bind(AdminSettings(host="0.0.0.0", port=0))
    settings = AdminSettings.model_validate({"host": "0.0.0.0", "port": 0, "token": TOKEN})
    bind(settings).close()


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="openssl rand"):
        AdminSettings.model_validate({"token": "short"})


async def eventually(admin: Served, place: str, state: str) -> dict[str, Any]:
    """The job at `place`, once it is in `state`."""
    async with asyncio.timeout(20):
        while True:
            job: dict[str, Any] = await admin.ok("GET", place)
            if job["state"] == state:
                return job
            await asyncio.sleep(0.05)
