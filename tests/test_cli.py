"""The command line as a person and a script use it: real processes, exit codes, output (O5)."""

import argparse
import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.cli import parser
from gateway.config import Prompts
from gateway.services.audit import AuditService
from gateway.services.keyfmt import mint, parse
from gateway.services.principal import Principal
from gateway.services.prompts import PromptService
from gateway.store.sketch import ERROR
from tests.servers import PostgreSQL, free_port
from tests.services.keyring import IP, connection, service
from tests.services.test_audit import FULL, config
from tests.services.test_trail import tamper, write

ROOT = Path(__file__).parent.parent


class Cli:
    """Runs `fairgate` on one store."""

    def __init__(self, store: str) -> None:
        self.store = store

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "gateway", *words, "--store", self.store]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(line, capture_output=True, text=True, timeout=60, env=env)

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *words: str) -> str:
        """The one sentence of a command that could not be done."""
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("fairgate: ")
        assert done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(str(tmp_path / "fairgate.db"))


def test_from_nothing_to_a_key_that_works_and_is_revoked(cli: Cli) -> None:
    """O5, K2, K3"""
    tenant = cli.json("tenants", "create", "acme", "--models", "a, b", "--share", "2")
    assert (tenant["name"], tenant["models"], tenant["share"]) == ("acme", ["a", "b"], 2.0)
    user = cli.json("users", "create", "ann@example.com", "--tenant", "acme")
    terms = ["--models", "a", "--scopes", "chat", "--priority", "batch", "--queue-timeout", "2.5"]
    key = cli.json("keys", "create", "--tenant", "acme", "--user", "ann@example.com", *terms)
    assert parse(key["token"].encode()) is not None
    assert "hash" not in key

    async def use() -> None:
        async with connection(cli.store) as store, service(store) as keys:
            principal = await keys.verify(key["token"].encode(), IP)
            assert (principal.tenant, principal.user, principal.key) == (tenant["id"], user["id"], key["id"])
            assert (principal.models, principal.priority, principal.queue_timeout) == ({"a", "a:latest"}, "batch", 2.5)

    asyncio.run(use())
    (listed,) = cli.json("keys", "list", "--tenant", "acme", "--user", user["id"])
    assert listed["last_used_at"]
    assert key["token"] not in json.dumps(listed)
    assert cli.json("keys", "revoke", key["id"]) == {"id": key["id"], "status": "revoked"}
    header, row = (line.split() for line in cli.run("keys", "list").stdout.splitlines())
    assert header[:3] == ["KEY", "TENANT", "USER"]
    assert row[:3] == [key["id"], "acme", "ann@example.com"]
    assert "revoked" in row


def test_a_key_is_shown_once_alone_on_standard_output(cli: Cli) -> None:
    """K2: `fairgate keys create ... > file` holds the key and nothing else."""
    cli.json("tenants", "create", "acme", "--all-models")
    cli.json("users", "create", "ann", "--tenant", "acme")
    done = cli.run("keys", "create", "--tenant", "acme", "--user", "ann", "--expires-days", "never")
    assert parse(done.stdout.strip().encode()) is not None
    assert "only time" in done.stderr
    assert "expires never" in done.stderr
    listed = cli.run("keys", "list").stdout
    assert "active  never" in listed
    assert done.stdout.strip() not in listed


def test_a_rotated_key_is_shown_once_and_names_what_it_replaces(cli: Cli) -> None:
    """K6"""
    cli.json("tenants", "create", "acme", "--all-models")
    cli.json("users", "create", "ann", "--tenant", "acme")
    first = cli.json("keys", "create", "--tenant", "acme", "--user", "ann", "--name", "laptop")
    done = cli.run("keys", "rotate", first["id"])
    assert parse(done.stdout.strip().encode()) is not None
    assert f"the old key {first['id']} works until" in done.stderr
    second = cli.json("keys", "rotate", first["id"], "--overlap", "0")
    assert second["replaces"]["id"] == first["id"]
    assert second["name"] == "laptop"
    assert "hash" not in second
    assert sorted(row.split()[4] for row in cli.run("keys", "list").stdout.splitlines()[1:]) == [
        "active", "active", "expired",
    ]  # fmt: skip
    assert "no key" in cli.refused("keys", "rotate", "nothing")


def test_shares_change(cli: Cli) -> None:
    """S: weights are not for ever."""
    cli.json("tenants", "create", "acme")
    cli.json("users", "create", "ann", "--tenant", "acme", "--share", "2")
    assert cli.json("tenants", "share", "acme", "3")["status"] == "share 3"
    assert cli.json("users", "share", "ann", "0.5", "--tenant", "acme")["status"] == "share 0.5"
    assert (cli.json("tenants", "list")[0]["share"], cli.json("users", "list")[0]["share"]) == (3, 0.5)
    assert "0.001 to 1000" in cli.refused("tenants", "share", "acme", "nan")
    assert "no tenant" in cli.refused("tenants", "share", "nobody", "1")


def test_disabling_and_enabling(cli: Cli) -> None:
    """K6"""
    cli.json("tenants", "create", "acme")
    cli.json("users", "create", "ann", "--tenant", "acme")
    assert cli.json("users", "disable", "ann", "--tenant", "acme")["status"] == "disabled"
    assert cli.json("users", "list")[0]["disabled_at"]
    cli.json("users", "enable", "ann", "--tenant", "acme")
    assert cli.json("users", "list", "--tenant", "acme")[0]["disabled_at"] is None
    cli.json("tenants", "disable", "acme")
    assert cli.json("tenants", "list")[0]["disabled_at"]
    cli.json("tenants", "enable", "acme")
    assert cli.json("tenants", "list")[0]["disabled_at"] is None


def test_tables_are_aligned(cli: Cli) -> None:
    cli.json("tenants", "create", "a-rather-long-name")
    cli.json("tenants", "create", "x", "--models", "m")
    header, *rows = cli.run("tenants", "list").stdout.splitlines()
    assert all(row.index("  ") and row[header.index("MODELS") - 1] == " " for row in rows)
    assert rows[0][header.index("MODELS") :].startswith("none")
    assert rows[1][header.index("MODELS") :].startswith("m ")


def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(cli: Cli) -> None:
    """O5"""
    cli.json("tenants", "create", "acme")
    cli.json("users", "create", "ann", "--tenant", "acme")
    owner = ["--tenant", "acme", "--user", "ann"]
    assert "exists already" in cli.refused("tenants", "create", "acme")
    assert "no tenant" in cli.refused("users", "create", "x", "--tenant", "nobody")
    assert "no user" in cli.refused("keys", "create", "--tenant", "acme", "--user", "nobody")
    assert "no key" in cli.refused("keys", "revoke", "nothing")
    leaked = mint()
    for command in (["keys", "revoke"], ["keys", "rotate"], ["keys", "disable"], ["prompts", "off"]):
        said = cli.refused(*command, leaked.token)
        assert f"its id is {leaked.id}" in said
        assert leaked.token[20:] not in said
    assert "1 to 365" in cli.refused("keys", "create", *owner, "--expires-days", "366")
    assert "unknown scope" in cli.refused("keys", "create", *owner, "--scopes", "chat,root")
    assert "not both" in cli.refused("keys", "create", *owner, "--models", "a", "--all-models")
    assert "name" in cli.refused("tenants", "create", "has blank")
    assert "--tenant" in cli.refused("keys", "list", "--user", "ann")
    assert "PostgreSQL" in cli.refused("migrate")
    assert cli.refused("tenants", "list", "--config", "/nowhere.yaml")


def test_an_admin_key_is_made_on_purpose_and_for_nothing_else(cli: Cli) -> None:
    """K7, S-A6: no key administers by default, and none both administers and asks models."""
    cli.json("tenants", "create", "acme")
    cli.json("users", "create", "ann", "--tenant", "acme")
    owner = ["--tenant", "acme", "--user", "ann"]
    assert not [scope for scope in cli.json("keys", "create", *owner)["scopes"] if scope.startswith("admin")]
    made = cli.json("keys", "create", *owner, "--scopes", "admin:read,admin:write")
    assert made["scopes"] == ["admin:read", "admin:write"]
    assert "one for each" in cli.refused("keys", "create", *owner, "--scopes", "chat,admin:read")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["keys"], ["keys", "create"], ["audit", "tail", "-n", "0"]])
def test_wrong_usage_is_exit_code_2(cli: Cli, words: list[str]) -> None:
    assert cli.run(*words).returncode == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("prompts list -n many", "'many' is not a whole number from 1 to 100000"),
        ("audit tail -n 0", "'0' is not a whole number from 1 to 100000"),
        ("prompts on key --days soon", "'soon' is not a whole number from 1 to 365"),
        ("keys create --tenant a --user b --expires-days soon", "'soon' is neither a number of days nor `never`"),
        ("audit export --since yesterday", "'yesterday' is not an ISO 8601 time"),
        ("usage --until tomorrow", "'tomorrow' is not an ISO 8601 time"),
        ("reservations create --tenant a --minutes 1 --start 2026-13-01", "'2026-13-01' is not an ISO 8601 time"),
        ("keys create --tenant a --user b --models ,", "empty; leave it out instead"),
        ("demo --slots 0", "'0' is not a whole number from 1 to 1000000"),
    ],
)
def test_a_value_that_cannot_be_is_said(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O5: in the words of the option. An unset variable narrows nothing, so an empty list of names is no list."""
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(words.split())
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["serv"], "serve"),
        (["keys", "crate"], "create"),
        (["keys", "list", "--tennant", "a"], "--tenant"),
        (["usage", "tenants"], "tenant"),
    ],
)
def test_what_is_nearly_right_is_suggested(cli: Cli, words: list[str], meant: str) -> None:
    """O5: with the usage of the innermost command."""
    done = cli.run(*words)
    assert done.returncode == 2
    assert done.stderr.endswith(f"; did you mean '{meant}'?\n")
    family = [word for word in words[:1] if word in ("keys", "usage")]
    assert done.stderr.startswith(" ".join(["usage: fairgate", *family]))


def test_without_a_command_it_says_which_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "gateway"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert "first steps:" in done.stderr


def test_names_that_are_nearly_right_are_suggested(cli: Cli) -> None:
    cli.json("tenants", "create", "acme")
    assert "did you mean 'wait_weight'" in cli.refused("settings", "set", "wait_wieght", "1")
    assert "did you mean 'wait_weight'" in cli.refused("settings", "get", "wait_wieght")
    assert "did you mean 'acme'" in cli.refused("users", "create", "ann", "--tenant", "amce")
    cli.json("users", "create", "ann", "--tenant", "acme")
    assert "did you mean 'ann'" in cli.refused("keys", "create", "--tenant", "acme", "--user", "anne")
    assert "at least 1" in cli.run("tenants", "create", "a", "--rpm", "many").stderr


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from leaves(child)


def test_every_command_can_speak_json() -> None:
    """O5: but for `serve`, whose log is JSON anyway."""
    silent = {leaf.prog for leaf in leaves(parser()) if "--json" not in leaf._option_string_actions}
    assert silent == {"fairgate serve"}


def test_a_wait_that_outlives_a_reservation_is_refused_at_runtime_too(cli: Cli) -> None:
    """L2: as it is in the file."""
    cli.run("settings", "set", "wait_weight", "1")
    said = cli.refused("settings", "set", "queue_timeout", "5386")
    assert "limits.expire (7200 s) would be less than the 7201 s that a request may wait and run" in said
    assert cli.json("settings", "get", "queue_timeout")["queue_timeout"]["from"] == "configuration"
    cli.run("settings", "set", "queue_timeout", "5385")
    assert cli.json("settings", "get", "queue_timeout") == {"queue_timeout": {"value": 5385.0, "from": "runtime"}}


def test_what_changes_something_shows_it_as_json(cli: Cli) -> None:
    """O5: as the command does that reads it."""
    assert cli.json("settings", "set", "wait_weight", "0.7") == {"wait_weight": {"value": 0.7, "from": "runtime"}}
    cleared = cli.json("settings", "clear", "wait_weight")
    assert cleared == {"wait_weight": {"value": 0.4, "from": "configuration"}}
    assert cli.json("settings", "get", "wait_weight") == cleared
    cli.run("tenants", "create", "lab")
    asked = cli.json("reservations", "create", "--tenant", "lab", "--start", "now", "--minutes", "5")
    assert cli.json("reservations", "approve", asked["id"]) == asked | {"state": "approved"}
    assert cli.json("reservations", "cancel", asked["id"]) == asked | {"state": "cancelled"}


def test_the_configuration_may_come_from_the_environment_and_a_new_store_is_said(tmp_path: Path) -> None:
    """Whoever administers the wrong store notices."""
    file = tmp_path / "fairgate.yaml"
    file.write_text(f"store: {tmp_path / 'mine.db'}\n")
    line = [sys.executable, "-m", "gateway", "tenants", "create", "acme"]
    environment = os.environ | {"FAIRGATE_CONFIG": str(file)}
    told = [
        subprocess.run([*line[:-1], name], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment).stderr
        for name in ("acme", "beta")
    ]
    assert f"{tmp_path / 'mine.db'} is a new store" in told[0]
    assert "new store" not in told[1]
    check = [sys.executable, "-m", "gateway", "check-config"]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert (checked.returncode, f"{file}: valid" in checked.stdout) == (0, True)
    assert subprocess.run(check, capture_output=True, timeout=60, cwd=ROOT).returncode == 2
    serve = [sys.executable, "-m", "gateway", "serve"]
    refused = subprocess.run(serve, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (refused.returncode, "--config FILE" in refused.stderr) == (1, True)


def test_check_config_names_the_path_and_suggests(tmp_path: Path) -> None:
    """O7"""
    file = tmp_path / "fairgate.yaml"
    file.write_text("listen: 127.0.0.1:1\nbackends:\n- {name: b, url: 'http://x', engine: ollama, slotz: 1}\n")

    check_config = [sys.executable, "-m", "gateway", "check-config"]

    def check(*words: str) -> subprocess.CompletedProcess[str]:
        line = [*check_config, str(file), *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT)

    bad = check()
    assert bad.returncode == 1
    assert "backends[0].slotz" in bad.stderr
    assert "'slots'" in bad.stderr
    assert json.loads(check("--json").stdout)["valid"] is False
    file.write_text(file.read_text().replace("slotz", "slots").replace("ollama", "olama"))
    assert ": none of ollama, vllm, llamacpp, openai; did you mean 'ollama'?" in check().stderr
    file.write_text(file.read_text().replace("olama", "ollama"))
    assert check().returncode == 0
    for setting in ("admin: {oidc: {client_secret: env:NOT_SET}}", "tracing: {headers: {authorization: env:NOT_SET}}"):
        other = tmp_path / "secret.yaml"
        other.write_text(setting)
        refused = subprocess.run([*check_config, str(other)], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert "environment variable NOT_SET is not set" in refused.stderr  # why is not taken for the secret
    assert json.loads(check("--json").stdout) == {"valid": True, "listen": "127.0.0.1:1", "backends": ["b"]}


def test_the_store_comes_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "fairgate.yaml"
    file.write_text("store: mine.db\n")
    line = [sys.executable, "-m", "gateway", "tenants", "create", "acme", "--config", str(file)]
    assert subprocess.run(line, capture_output=True, timeout=60, cwd=ROOT).returncode == 0
    assert (tmp_path / "mine.db").exists()


def test_schema_is_a_json_schema(cli: Cli) -> None:
    done = subprocess.run([sys.executable, "-m", "gateway", "schema"], capture_output=True, timeout=60, cwd=ROOT)
    assert "Config" in json.loads(done.stdout)["$defs"]


def test_audit_tail_verify_and_export(cli: Cli, tmp_path: Path) -> None:
    """U4: exit code 1 and the first broken row; the anchors are found beside the store."""

    async def fill() -> None:
        async with connection(cli.store) as store:
            trail = AuditService(store, config(tmp_path, anchors=str(tmp_path / "anchors")))
            trail.put(FULL)
            await trail.close()

    asyncio.run(fill())
    (row,) = cli.json("audit", "tail")
    assert (row["id"], row["usage_estimated"], row["usage_before"]) == ("r-1", True, 0.1)
    assert "r-1" in cli.run("audit", "tail", "-n", "5").stdout
    assert cli.json("audit", "verify", "--anchors", str(tmp_path / "anchors"))[0]["broken"] is None
    exported = [json.loads(line) for line in cli.run("audit", "export").stdout.splitlines()]
    assert [row["id"] for row in exported] == ["r-1"]
    out = tmp_path / "out.csv"
    assert cli.run("audit", "export", "--csv", "--since", "2020-01-01", "--output", str(out)).returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600, "addresses and names are its owner's to read"
    assert out.read_text(encoding="utf-8").splitlines()[1].startswith("r-1,1800000000000000,t,u,k,2001:db8::1,")
    tamper(cli.store, "UPDATE audit SET status = 429, error = 'queue_full'")
    assert cli.run("audit", "tail").stdout.split()[-1] == "queue_full", "why it was refused"
    broken = cli.run("audit", "verify")
    assert broken.returncode == 1
    assert "BROKEN at 1 (request r-1)" in broken.stdout


def test_no_terminal_obeys_what_clients_sent(cli: Cli, tmp_path: Path) -> None:
    """P-T4, U5: a name of a model that clears a line, and one that looks like a row of its own; in prompts too."""
    hostile = "m\x1b[2K\x9b2K\r\n\u202eforged"

    async def fill() -> None:
        async with connection(cli.store) as store:
            trail = AuditService(store, config(tmp_path))
            trail.put(msgspec.structs.replace(FULL, model_asked=hostile, model_served=""))
            await trail.close()
            service = PromptService(store, Prompts())
            who = Principal("t", "u", "k", prompt_days=7)
            service.keep("r1", who, "/v1/chat/completions", "m", f"a\n\t\u3000{hostile}".encode())
            await service.close()

    asyncio.run(fill())
    shown = cli.run("audit", "tail").stdout
    assert shown.count("\n") == 2
    assert "m\\x1b[2K\\x9b2K\\r\\n\\u202eforged" in shown
    assert cli.run("prompts", "show", "r1").stdout == "a\n\t\u3000m\\x1b[2K\\x9b2K\\r\n\\u202eforged\n"
    assert cli.json("audit", "tail")[0]["model_asked"] == hostile
    assert "\x9b" not in cli.run("audit", "tail", "--json").stdout


def test_anchors_that_cannot_be_read_are_no_missing_ones(cli: Cli, tmp_path: Path) -> None:
    """U4: their folder may not be entered, for one; here the name is longer than any file's."""
    cli.run("tenants", "create", "acme")
    file = tmp_path / "fairgate.yaml"
    file.write_text(f"audit: {{anchors: {'a' * 300}}}\n")
    assert "name too long" in cli.refused("audit", "verify", "--config", str(file))


@pytest.mark.parametrize("spool", ["spool", "spool-1"])
def test_verify_knows_the_anchors_of_every_worker(cli: Cli, tmp_path: Path, spool: str) -> None:
    """U4: each has its own in its spool; a whole chain that is gone is missed, whichever worker wrote it."""

    async def fill() -> None:
        async with connection(cli.store) as store:
            trail = AuditService(store, msgspec.structs.replace(config(tmp_path), spool=str(tmp_path / spool)))
            trail.put(FULL)
            await trail.close()

    asyncio.run(fill())
    file = tmp_path / "fairgate.yaml"
    file.write_text("audit: {spool: spool}\n")
    done = cli.run("audit", "verify", "--config", str(file))
    assert (done.returncode, "no anchors" in done.stderr) == (0, False)
    assert "no anchors" in cli.run("audit", "verify").stderr, "looked for beside the store: it says so"
    tamper(cli.store, "DELETE FROM audit; DELETE FROM audit_heads")
    broken = cli.run("audit", "verify", "--config", str(file))
    assert (broken.returncode, "rows at the end are missing" in broken.stdout) == (1, True)


def test_prompts_are_switched_shown_and_purged_and_every_act_is_a_row(cli: Cli) -> None:
    """U5, U7"""
    cli.json("tenants", "create", "acme", "--all-models")
    cli.json("users", "create", "ann", "--tenant", "acme")
    key = cli.json("keys", "create", "--tenant", "acme", "--user", "ann")["id"]
    assert "no key" in cli.refused("prompts", "on", "nobody", "--days", "7")
    assert cli.run("prompts", "on", key, "--days", "0").returncode == 2
    assert cli.json("prompts", "on", key, "--days", "7") == {"id": key, "prompt_days": 7}
    assert cli.json("keys", "list")[0]["prompt_days"] == 7

    async def fill() -> None:
        async with connection(cli.store) as store:
            service = PromptService(store, Prompts())
            for request in ("r1", "r2"):
                who = Principal("t", "u", key, prompt_days=7)
                service.keep(request, who, "/v1/chat/completions", "m", b"what to do?")
            await service.close()

    asyncio.run(fill())
    assert [row["id"] for row in cli.json("prompts", "list", "--key", key)] == ["r1", "r2"]
    assert "what to do" not in cli.run("prompts", "list").stdout
    assert cli.run("prompts", "list", "--rows", "-1").returncode == 2
    assert cli.run("prompts", "show", "r1").stdout == "what to do?\n"
    assert "no prompt" in cli.refused("prompts", "show", "r9")
    assert cli.run("prompts", "purge").returncode == 2
    assert cli.json("prompts", "purge", "--request", "r1") == {"deleted": 1}
    assert cli.json("prompts", "purge", "--all") == {"deleted": 1}
    assert cli.json("prompts", "off", key) == {"id": key, "prompt_days": 0}
    acts = [(row["kind"], json.loads(row["body"])["did"]) for row in cli.json("audit", "actions", "-n", "7")]
    assert acts[:2] == [("key", "create"), ("key", "keep prompts")]
    assert acts[2:] == [("prompts", "read")] * 2 + [("prompts", "purge")] * 2 + [("key", "keep no prompts")]


READING = (
    "tenants list", "users list --tenant a", "keys list", "keys create --tenant a --user u", "usage", "prompts list",
    "limits show --tenant a", "audit tail", "audit verify", "audit actions", "audit export --output OUT",
    "settings get", "reservations list",
)  # fmt: skip


@pytest.mark.parametrize("words", READING)
def test_a_store_that_is_not_there_is_said_and_not_made(words: str, tmp_path: Path) -> None:
    """A command in the wrong folder must not answer from an empty store, nor take an earlier export away."""
    cli, out = Cli(str(tmp_path / "none.db")), tmp_path / "out"
    out.write_text("of yesterday")
    assert f"there is no store {cli.store}: " in cli.refused(*words.replace("OUT", str(out)).split())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_text() == "of yesterday"


@pytest.mark.parametrize("words", ["tenants create acme", "settings set wait_weight 1"])
def test_commands_that_may_be_the_first_create_the_store(words: str, cli: Cli) -> None:
    done = cli.run(*words.split())
    assert (done.returncode, f"{cli.store} is a new store" in done.stderr) == (0, True)


def test_a_file_that_cannot_be_written_is_said(cli: Cli, tmp_path: Path) -> None:
    cli.json("tenants", "create", "acme")
    assert f"{tmp_path}: Is a directory" in cli.refused("audit", "export", "--output", str(tmp_path))


def test_a_full_disk_is_said(cli: Cli) -> None:
    """Also when the result only reaches it at the end."""
    cli.json("tenants", "create", "acme")
    line = [sys.executable, "-m", "gateway", "tenants", "list", "--store", cli.store]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "fairgate: [Errno 28] No space left on device\n")


def test_ctrl_c_ends_a_command_without_a_trace(tmp_path: Path) -> None:
    """O5: while it waits for an engine that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(60)
        file = tmp_path / "fairgate.yaml"
        engine = f"{{name: b, url: 'http://127.0.0.1:{mute.getsockname()[1]}', engine: ollama}}"
        file.write_text(f"store: {tmp_path / 'x.db'}\ndiscovery: {{timeout: 60, forget: 600}}\nbackends: [{engine}]\n")
        line = [sys.executable, "-m", "gateway", "doctor", "--config", str(file)]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as doctor:
            with mute.accept()[0]:
                doctor.send_signal(signal.SIGINT)
                assert doctor.communicate(timeout=60) == ("", "")
            assert doctor.returncode == 130


def test_retention_does_not_reach_into_the_future() -> None:
    """U4: the month that gateways write to is never dropped."""
    cli = Cli("postgresql://nobody@127.0.0.1:1/none")
    assert "future" in cli.refused("audit", "prune", "--before", "2999-01-01")


def test_usage_in_names_as_table_csv_and_json(cli: Cli, tmp_path: Path) -> None:
    """U6: what the rows hold are ids, what a person reads are names; a cost needs prices."""
    from gateway.services.record import AuditRecord

    tenant = cli.json("tenants", "create", "acme")["id"]
    user = cli.json("users", "create", "ann", "--tenant", "acme")["id"]
    row = AuditRecord(
        id="r", started_at=1, tenant=tenant, user=user, key="gone", model_asked="=m", model_served="=m", backend="b",
        outcome="done", prompt_tokens=500_000, completion_tokens=20, total_us=30_000, slot_us=2_000_000,
    )  # fmt: skip

    async def fill() -> None:
        async with connection(cli.store) as store:
            trail = AuditService(store, config(tmp_path))
            trail.put(row)
            trail.put(AuditRecord(id="other", started_at=1, tenant="elsewhere", key=f"jwt:{user}", outcome="refused"))
            await trail.close()

    asyncio.run(fill())
    file = tmp_path / "fairgate.yaml"
    file.write_text("prices:\n  =m: {input: 3, output: 0}\n")
    (told,) = cli.json("usage", "user", "--tenant", "acme", "--config", str(file))
    assert (told["user"], told["group"], told["cost"], told["slot_seconds"]) == ("acme/ann", user, 1.5, 2.0)
    assert (told["requests"], told["errors"]) == (1, 0)
    assert told["total_p50_ms"] == told["total_p95_ms"] == pytest.approx(30.0, rel=ERROR)
    assert {entry["tenant"]: entry["errors"] for entry in cli.json("usage")} == {"acme": 0, "elsewhere": 1}
    shown = cli.run("usage", "key").stdout
    assert ("gone" in shown, "acme/ann/jwt" in shown) == (True, True)
    assert "30/30" in cli.run("usage", "day", "--since", "2020-01-01").stdout
    lines = cli.run("usage", "model", "--csv").stdout.splitlines()
    assert lines[0].startswith("model,group,requests,errors,")
    assert lines[1].startswith("'=m,'=m,1,0,500000,20,")
    assert cli.json("usage", "hour", "--until", "2020-01-01") == []
    assert "no tenant" in cli.refused("usage", "--tenant", "nobody")
    assert cli.run("usage", "colour").returncode == 2
    assert "whole hour" in cli.run("usage", "--since", "2020-01-01T00:30").stderr


def test_an_export_has_no_formula(cli: Cli, tmp_path: Path) -> None:
    """A client's model name must not run in an auditor's spreadsheet."""

    async def fill() -> None:
        from gateway.services.record import AuditRecord

        async with connection(cli.store) as store:
            trail = AuditService(store, config(tmp_path))
            trail.put(AuditRecord(id="r", started_at=1, model_asked="=cmd|' /C calc'!A0"))
            await trail.close()

    asyncio.run(fill())
    assert ",'=cmd" in cli.run("audit", "export", "--csv").stdout


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    port = free_port()
    said = Cli(f"postgresql://owner:hunter2@127.0.0.1:{port}/x").refused("tenants", "list")
    assert f"postgresql://127.0.0.1:{port}/x: " in said
    assert "hunter2" not in said


def test_migrate_and_the_same_commands_on_postgresql(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """O6, D"""
    from tests.databases import statement

    asyncio.run(statement(postgresql.url("postgres"), "DROP DATABASE IF EXISTS cli"))
    asyncio.run(statement(postgresql.url("postgres"), "CREATE DATABASE cli"))
    cli = Cli(postgresql.url("cli"))
    assert "fairgate migrate" in cli.refused("tenants", "list")
    assert cli.json("migrate")[0] == "applied 0001_identity.sql"
    assert cli.run("migrate").stdout == "up to date\n"
    assert cli.json("tenants", "create", "acme")["name"] == "acme"
    assert [tenant["name"] for tenant in cli.json("tenants", "list")] == ["acme"]
    asyncio.run(write(cli.store, tmp_path))
    assert cli.run("audit", "verify").returncode == 0
    assert cli.json("audit", "prune", "--before", "2020-01-01") == []
