"""The module cloudflare_zone with the role's own templates, against the stand-in."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import cf_state
import pytest
from ansible.module_utils.testing import patch_module_args
from cf_server import Standin
from unit_kit import ROOT

TOKEN = "t0ken" * 8
CHAT = "chat.example.com"
PHASES = [
    "http_request_cache_settings", "http_config_settings", "http_response_compression",
    "http_request_firewall_custom", "http_ratelimit",
]  # fmt: skip
ACTIONS = dict(zip(PHASES, ["set_cache_settings", "set_config", "compress_response", "block",
                            "block"], strict=True))  # fmt: skip
RATE_FORM_1 = "rule millrace_rate_limit (form 1 of 2)"
ENTERPRISE_ONLY = {"setting proxy_read_timeout"}


@pytest.fixture(scope="module")
def wanted(
    playbook: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return what the role asks for, rendered by Ansible itself."""
    folder = tmp_path_factory.mktemp("wanted")
    play = folder / "render.yml"
    play.write_text(f"""
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {{name: cloudflare}}
    - ansible.builtin.copy:
        content: >-
          {{{{ {{'dns': __cloudflare_wanted_dns, 'settings': __cloudflare_wanted_settings,
          'rules': __cloudflare_wanted_rules}} | to_json }}}}
        dest: {folder}/wanted.json
        mode: "0600"
""")
    given = {
        "cloudflare_names": [CHAT],
        "cloudflare_addresses": ["203.0.113.7", "2001:db8::7"],
        "role_path": str(ROOT / "roles/cloudflare"),
    }
    playbook("-i", "localhost,", str(play), "-e", json.dumps(given))
    return dict(json.loads((folder / "wanted.json").read_text()))


@pytest.fixture
def api() -> Iterator[Standin]:
    with Standin() as standin:
        standin.world.token(TOKEN)
        yield standin


@pytest.fixture
def run(
    api: Standin,
    wanted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the module's own main, and gives what it printed."""
    ours = str(ROOT / "plugins/module_utils")
    monkeypatch.setattr(ansible.module_utils, "__path__", [*ansible.module_utils.__path__, ours])

    def start(*, check: bool = False, **more: Any) -> dict[str, Any]:
        import cloudflare_zone

        given = {
            "api_token": TOKEN, "api_url": api.url, "zone": "example.com",
            "memory": str(tmp_path / "secrets/before.json"), "patience_seconds": 2,
            **copy.deepcopy(wanted), **more, "_ansible_check_mode": check,
        }  # fmt: skip
        capsys.readouterr()
        with patch_module_args(given), pytest.raises(SystemExit):
            cloudflare_zone.main()
        return dict(json.loads(capsys.readouterr().out))

    return start


Run = Callable[..., dict[str, Any]]


def essence(zone: cf_state.Zone) -> dict[str, Any]:
    """Return what a zone says, without what the API counts and dates."""
    counted = ("version", "last_updated", "modified_on", "created_on")

    def bare(thing: dict[str, Any], *more: str) -> dict[str, Any]:
        return {k: v for k, v in thing.items() if k not in (*counted, *more)}

    return {
        "dns": [bare(r) for r in zone.records.values()],
        "settings": dict(zone.settings),
        "rulesets": {
            phase: {**bare(ruleset), "rules": [bare(r) for r in ruleset["rules"]]}
            for phase, ruleset in zone.rulesets.items()
        },
    }


def refused(result: dict[str, Any]) -> set[str]:
    """Return what a run says that the plan refused."""
    return {entry["what"] for entry in result["refused"]}


def foreign_rule(phase: str, name: str) -> dict[str, Any]:
    """Return a rule that somebody else made, with a field that no schema of ours knows."""
    rule: dict[str, Any] = {
        "id": cf_state.new_id(), "ref": name, "version": "3", "last_updated": cf_state.now(),
        "description": f"{name} of somebody", "enabled": True, "action": ACTIONS[phase],
        "expression": f'http.request.uri.path eq "/{name}"', "action_parameters": {"bic": True},
        "logging": {"enabled": True}, "something_new": [1, 2],
    }  # fmt: skip
    if phase == "http_ratelimit":
        rule["ratelimit"] = {"characteristics": ["cf.colo.id", "ip.src"], "period": 10,
                             "requests_per_period": 5, "mitigation_timeout": 10}  # fmt: skip
    return rule


def with_strangers(zone: cf_state.Zone) -> None:
    """Put rules, records and settings of others into a zone."""
    for phase in PHASES:
        zone.rulesets[phase] = {
            "id": cf_state.new_id(), "name": "default", "description": "", "kind": "zone",
            "phase": phase, "version": "7", "last_updated": cf_state.now(),
            "rules": [foreign_rule(phase, f"first_{phase}")],
        }  # fmt: skip
    for name, content in (("example.com", "198.51.100.1"), ("www.example.com", "198.51.100.2")):
        record = {"id": cf_state.new_id(), "name": name, "type": "A", "content": content,
                  "proxied": True, "ttl": 1, "comment": None}  # fmt: skip
        zone.records[record["id"]] = record
    zone.settings["http3"] = "off"


def test_a_run_makes_all_of_it_and_the_next_writes_nothing(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    result = run()
    assert result["changed"] is True, result
    assert [len(zone.rulesets[p]["rules"]) for p in PHASES] == [2, 1, 1, 1, 1]
    assert {(r["type"], r["content"], r["proxied"]) for r in zone.records.values()} == {
        ("A", "203.0.113.7", True), ("AAAA", "2001:db8::7", True)}  # fmt: skip
    assert (zone.settings["min_tls_version"], zone.settings["tls_1_3"]) == ("1.2", "on")
    before = essence(zone)
    api.world.calls.clear()
    again = run()
    assert again["changed"] is False
    assert again["done"] == []
    assert api.world.attempts() == []
    assert essence(zone) == before


def test_check_mode_asks_and_writes_nothing(api: Standin, run: Run, tmp_path: Path) -> None:
    zone = api.world.zone("example.com", "pro")
    with_strangers(zone)
    before = essence(zone)
    result = run(check=True)
    assert result["changed"] is True
    assert api.world.attempts() == []
    assert essence(zone) == before
    assert not (tmp_path / "secrets/before.json").exists()


def test_the_diff_can_be_read(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    with_strangers(zone)
    diff = run(check=True)["diff"]
    assert "millrace" not in diff["before"]
    assert "http3: 'off'" in diff["before"]
    assert "http3: 'on'" in diff["after"]
    assert "- chat.example.com A 203.0.113.7 (proxied)" in diff["after"]
    assert "ref: millrace_stream_cache_bypass" in diff["after"]
    assert "(not ours: first_http_config_settings of somebody)" in diff["after"]
    assert "198.51.100.2" not in diff["after"], "what is nothing to us is not shown"
    done = run()["diff"]
    assert done["after"] == diff["after"], "check mode foretells the run"
    assert run()["diff"]["before"] == run()["diff"]["after"]


def test_rules_of_others_keep_their_content_and_place(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "business")
    with_strangers(zone)
    run()
    first = [zone.rulesets[phase]["rules"][0]["ref"] for phase in PHASES]
    assert first == [f"first_{phase}" for phase in PHASES], "ours go behind"
    for phase in PHASES:  # someone adds rules before, between and behind ours
        rules = zone.rulesets[phase]["rules"]
        rules.insert(0, foreign_rule(phase, f"zeroth_{phase}"))
        rules.insert(2, foreign_rule(phase, f"millraces_{phase}"))
        rules.append(foreign_rule(phase, f"last_{phase}"))
        ours = next(r for r in rules if r["ref"].startswith("millrace_"))
        ours["expression"] = "true"
    before = copy.deepcopy(zone.rulesets)
    assert run()["changed"] is True
    for phase in PHASES:
        old, new = before[phase]["rules"], zone.rulesets[phase]["rules"]
        assert [r["ref"] for r in new] == [r["ref"] for r in old]
        strangers = [r for r in new if not r["ref"].startswith("millrace_")]
        assert strangers == [r for r in old if not r["ref"].startswith("millrace_")]
        assert all(r["expression"] != "true" for r in new)
    # A PUT takes a whole ruleset, and with it what somebody added since it was read.
    assert not [call for call in api.world.calls if call.method == "PUT"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("enabled", False),
        ("description", "mine"),
        ("action", "log"),
        ("action_parameters", {"bic": True}),
        ("ratelimit", {"characteristics": ["cf.colo.id", "ip.src"], "period": 10,
                       "requests_per_period": 1, "mitigation_timeout": 60,
                       "requests_to_origin": False}),
    ],
)  # fmt: skip
def test_what_somebody_changed_in_a_rule_of_ours_is_put_back(
    api: Standin, run: Run, field: str, value: Any
) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    before = copy.deepcopy(essence(zone))
    for phase in PHASES:
        for rule in zone.rulesets[phase]["rules"]:
            if field in rule:
                rule[field] = value
    assert run()["changed"] is True
    assert essence(zone) == before


def test_a_record_of_ours_that_is_no_longer_proxied_is_again(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    for record in zone.records.values():
        record["proxied"] = False
    assert run()["changed"] is True
    assert [record["proxied"] for record in zone.records.values()] == [True, True]


def test_names_lead_to_the_server_only_while_the_rest_is_in_place(api: Standin, run: Run) -> None:
    api.world.zone("example.com", "pro")
    for state, names_at in (("present", slice(-2, None)), ("absent", slice(0, 2))):
        api.world.calls.clear()
        run(state=state)
        records = ["dns_records" in call.path for call in api.world.writes()]
        assert records.count(True) == 2
        assert records[names_at] == [True, True], state


def test_a_rule_of_ours_that_is_wanted_no_more_goes(
    api: Standin, run: Run, wanted: dict[str, Any]
) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    rules = {phase: rule for phase, rule in wanted["rules"].items() if phase != "http_ratelimit"}
    stays, goes = rules[PHASES[0]]
    rules[PHASES[0]] = [stays]
    assert f"delete rule {goes['ref']}" in run(rules=rules)["done"]
    assert [rule["ref"] for rule in zone.rulesets[PHASES[0]]["rules"]] == [stays["ref"]]
    assert "http_ratelimit" not in zone.rulesets, "nor does its empty ruleset stay"
    assert run(rules=rules)["changed"] is False


def test_a_reference_that_stands_twice_is_mended(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    rules = zone.rulesets["http_config_settings"]["rules"]
    rules.append({**rules[0], "id": cf_state.new_id()})
    assert run()["changed"] is True
    assert len(zone.rulesets["http_config_settings"]["rules"]) == 1


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("survived", [0, 1, 4, 8, 10])
def test_a_run_that_broke_off_is_finished_by_the_next(
    api: Standin, run: Run, survived: int, done: bool
) -> None:
    """Before a write was carried out, or behind it: then only its answer was lost."""
    zone = api.world.zone("example.com", "pro")
    with_strangers(zone)
    fault = cf_state.Fault(503, "POST|PATCH", times=10**6, after=survived, done=done)
    api.world.faults.append(fault)
    broken = run(patience_seconds=0)
    assert broken["failed"] is True
    assert len(broken["done"]) == survived
    assert "run again later" in broken["msg"]
    assert "\n" not in broken["msg"]
    api.world.faults.clear()
    finished = run()
    assert "failed" not in finished
    assert run()["changed"] is False
    assert [len(zone.rulesets[p]["rules"]) for p in PHASES] == [3, 2, 2, 2, 2]
    assert len(zone.records) == 4
    assert run(state="absent")["changed"] is True
    assert zone.settings["http3"] == "off", "what was before is remembered across broken runs"
    for phase in PHASES:
        assert [r["ref"] for r in zone.rulesets[phase]["rules"]] == [f"first_{phase}"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/rulesets$"),
        ("POST", "/rules$"),
        ("POST", "/dns_records$"),
        ("PATCH", "/settings/"),
    ],
)
def test_an_answer_that_was_lost_does_nothing_twice(
    api: Standin, run: Run, method: str, path: str
) -> None:
    zone = api.world.zone("example.com", "pro")
    api.world.faults.append(cf_state.Fault(502, method, path, done=True))
    assert "failed" not in run(patience_seconds=20)
    assert [len(zone.rulesets[p]["rules"]) for p in PHASES] == [2, 1, 1, 1, 1]
    assert len(zone.records) == 2
    assert run()["changed"] is False


def test_what_is_not_understood_fails_the_run_and_the_rest_is_done(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    api.world.faults.append(cf_state.Fault(400, "POST", "/rules$"))
    result = run()
    assert result["failed"] is True
    assert "create rule millrace_stream_cache_bypass: Cloudflare refused" in result["msg"]
    assert "create rule millrace_stream_cache_bypass" not in result["done"]
    assert [len(zone.rulesets[p]["rules"]) for p in PHASES] == [1, 1, 1, 1, 1]
    assert run()["done"] == ["create rule millrace_stream_cache_bypass"]


def test_too_many_requests_are_waited_out(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    api.world.faults.append(cf_state.Fault(429, "PATCH", "/settings/", retry_after="1"))
    api.world.faults.append(cf_state.Fault(429, "POST", "/rules$", retry_after="1"))
    assert "failed" not in run(patience_seconds=20)
    assert len(zone.rulesets["http_request_cache_settings"]["rules"]) == 2


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("free", {RATE_FORM_1, *ENTERPRISE_ONLY}),
        ("pro", ENTERPRISE_ONLY),
        ("business", ENTERPRISE_ONLY),
        ("enterprise", set()),
    ],
)
def test_each_plan_gets_what_it_has(api: Standin, run: Run, plan: str, expected: set[str]) -> None:
    zone = api.world.zone("example.com", plan)
    first = run()
    assert refused(first) == expected
    assert first["plan"] == plan
    (limit,) = zone.rulesets["http_ratelimit"]["rules"]
    assert ("http.host" in limit["expression"]) is (plan != "free")
    assert limit["ratelimit"]["mitigation_timeout"] == (10 if plan == "free" else 60)
    api.world.calls.clear()
    second = run()
    assert (second["changed"], refused(second)) == (False, expected)
    assert api.world.writes() == []
    assert run(check=True)["changed"] is False
    read_timeout = zone.settings.get("proxy_read_timeout")
    assert read_timeout == (3600 if plan == "enterprise" else None)


def test_a_parameter_that_the_plan_has_not_costs_nothing_but_itself(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    zone.withheld.add("response_body_buffering")
    first = run()
    assert "rule millrace_stream_config (form 1 of 2)" in refused(first)
    assert any("response_body_buffering" in entry["why"] for entry in first["refused"])
    (rule,) = zone.rulesets["http_config_settings"]["rules"]
    assert rule["action_parameters"]["rocket_loader"] is False
    assert "response_body_buffering" not in rule["action_parameters"]
    api.world.calls.clear()
    assert run()["changed"] is False
    assert api.world.writes() == []
    zone.withheld.clear()  # the plan grew
    assert run()["done"] == ["edit rule millrace_stream_config"]
    (rule,) = zone.rulesets["http_config_settings"]["rules"]
    assert rule["action_parameters"]["response_body_buffering"] == "none"


def test_a_setting_that_is_refused_is_not_remembered_as_ours(
    api: Standin, run: Run, tmp_path: Path
) -> None:
    """Though the API says that it may be changed."""
    api.world.zone("example.com", "pro").withheld.add("http3")
    assert "setting http3" in refused(run())
    kept = json.loads((tmp_path / "secrets/before.json").read_text())["settings"]
    assert set(kept) == {"min_tls_version", "tls_1_3"}


def test_a_phase_that_is_full_is_said_and_the_rest_done(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "free")
    with_strangers(zone)
    phase = "http_request_firewall_custom"
    zone.rulesets[phase]["rules"] = [foreign_rule(phase, f"n{number}") for number in range(5)]
    result = run()
    assert "failed" not in result
    assert {"rule millrace_paths", RATE_FORM_1} <= refused(result)
    assert any("6 out of 5" in entry["why"] for entry in result["refused"])
    assert len(zone.rulesets[phase]["rules"]) == 5
    assert len(zone.rulesets["http_request_cache_settings"]["rules"]) == 3
    assert run()["changed"] is False


def test_missing_permissions_are_one_line_and_nothing_is_written(api: Standin, run: Run) -> None:
    api.world.zone("example.com")
    lacking = {"Zone > DNS > Edit", "Zone > Zone WAF > Edit"}
    api.world.token(TOKEN, cf_state.EVERYTHING - lacking)
    result = run()
    assert result["failed"] is True
    assert "\n" not in result["msg"]
    assert all(f"'{name}'" in result["msg"] for name in lacking)
    assert "Cache Rules" not in result["msg"]
    assert api.world.attempts() == []


def test_a_token_that_may_only_read_is_told_so_and_the_rest_is_done(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    may = (cf_state.EVERYTHING - {"Zone > Cache Rules > Edit"}) | {"Zone > Cache Rules > Read"}
    api.world.token(TOKEN, may)
    result = run()
    assert result["failed"] is True
    assert "'Zone > Cache Rules > Edit'" in result["msg"]
    assert "\n" not in result["msg"]
    assert len(zone.rulesets["http_config_settings"]["rules"]) == 1
    assert len(zone.records) == 2


def test_a_zone_of_many_records_is_read_to_the_last_page(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    for number in range(250):
        record = {"id": cf_state.new_id(), "name": f"h{number}.example.com", "type": "A",
                  "content": "198.51.100.9", "proxied": False, "ttl": 300,
                  "comment": None}  # fmt: skip
        zone.records[record["id"]] = record
    assert "failed" not in run()
    assert len(zone.records) == 252
    api.world.calls.clear()
    assert run()["changed"] is False
    pages = {c.query["page"] for c in api.world.calls if c.path.endswith("/dns_records")
             and "page" in c.query}  # fmt: skip
    assert {"2", "3"} <= pages
    assert run(state="absent")["changed"] is True
    assert len(zone.records) == 250


def test_a_server_that_moved_takes_its_record_along(
    api: Standin, run: Run, wanted: dict[str, Any]
) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    moved = [{**wanted["dns"][0], "content": "203.0.113.99"}]
    assert run(dns=moved)["changed"] is True
    assert [r["content"] for r in zone.records.values()] == ["203.0.113.99"]


def test_somebody_elses_record_is_not_taken_over_unasked(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    record = {"id": cf_state.new_id(), "name": CHAT, "type": "CNAME", "proxied": True, "ttl": 1,
              "content": "elsewhere.example.net", "comment": "mine"}  # fmt: skip
    zone.records[record["id"]] = record
    before = essence(zone)
    result = run()
    assert result["failed"] is True
    assert "CNAME chat.example.com elsewhere.example.net" in result["msg"]
    assert "cloudflare_replace_dns: true" in result["msg"]
    assert (essence(zone), api.world.attempts()) == (before, [])

    assert "failed" not in run(replace_dns=True)
    assert {r["type"] for r in zone.records.values()} == {"A", "AAAA"}
    run(state="absent")
    (back,) = zone.records.values()
    kept = ("name", "type", "content", "proxied", "comment")
    assert {k: back[k] for k in kept} == {k: record[k] for k in kept}


def test_what_else_is_said_of_our_names_stays(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    for kind, content in (("TXT", "v=spf1 -all"), ("MX", "mail.example.net")):
        record = {"id": cf_state.new_id(), "name": CHAT, "type": kind, "content": content,
                  "proxied": False, "ttl": 300, "comment": "mine"}  # fmt: skip
        zone.records[record["id"]] = record
    before = copy.deepcopy(zone.records)
    assert "failed" not in run(replace_dns=True)
    assert len(zone.records) == 4
    run(state="absent")
    assert zone.records == before


def test_what_is_remembered_of_another_zone_is_not_put_into_this_one(
    api: Standin, run: Run
) -> None:
    """One of the same name, made anew at Cloudflare."""
    run_before = api.world.zone("example.com", "pro")
    run()
    del api.world.zones[run_before.id]
    anew = api.world.zone("example.com", "pro")
    anew.settings.update(run_before.settings)
    assert run(state="absent")["changed"] is False
    assert anew.settings == run_before.settings


def test_a_removal_leaves_the_zone_as_it_was(api: Standin, run: Run, tmp_path: Path) -> None:
    zone = api.world.zone("example.com", "pro")
    with_strangers(zone)
    del zone.rulesets["http_config_settings"]
    zone.rulesets["http_response_compression"]["rules"] = []  # empty, but not made by us
    before = essence(zone)
    run()
    assert (tmp_path / "secrets/before.json").stat().st_mode & 0o777 == 0o600
    told = run(state="absent", check=True)
    assert (told["changed"], len(zone.records)) == (True, 4)
    result = run(state="absent")
    assert result["changed"] is True
    after = essence(zone)
    settings = after.pop("settings")
    assert {k: settings[k] for k in before.pop("settings")} == {"http3": "off"}
    assert settings["min_tls_version"] == "1.0"
    assert after == before
    assert not (tmp_path / "secrets/before.json").exists()
    api.world.calls.clear()
    assert run(state="absent")["changed"] is False
    assert api.world.attempts() == []


def test_a_setting_goes_back_to_what_it_was_before_the_first_change(
    api: Standin, run: Run, wanted: dict[str, Any]
) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    run(settings={**wanted["settings"], "min_tls_version": "1.3"})
    run(state="absent")
    assert zone.settings["min_tls_version"] == "1.0"


def test_a_setting_that_somebody_changed_after_us_stays(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    run()
    zone.settings["min_tls_version"] = "1.3"
    result = run(state="absent")
    assert zone.settings["min_tls_version"] == "1.3"
    assert any("min_tls_version stays '1.3'" in note for note in result["notes"])


def test_a_stricter_setting_of_the_owners_stays(api: Standin, run: Run) -> None:
    zone = api.world.zone("example.com", "pro")
    zone.settings["min_tls_version"] = "1.3"
    run()
    assert zone.settings["min_tls_version"] == "1.3"


def test_what_cannot_be_right_is_said_before_anything_is_asked(api: Standin, run: Run) -> None:
    api.world.zone("example.com")
    record = {"type": "A", "proxied": True}
    for name, content, said in (
        ("chat.example.org", "203.0.113.7", "not in the zone example.com"),
        ("notexample.com", "203.0.113.7", "not in the zone example.com"),
        (CHAT, "10.1.2.3", "private address"),
        (CHAT, "fd00::1", "private address"),
        (CHAT, "server", "no IP address"),
    ):
        result = run(dns=[{**record, "name": name, "content": content}])
        assert result["failed"] is True
        assert said in result["msg"]
    assert "does not begin with millrace_" in run(rules={PHASES[0]: [{"ref": "x"}]})["msg"]
    # Else the rules of `millrace_two` would be those of `millrace` as well.
    for mark in ("millrace_two", "", "m" * 33):
        assert "letters, digits and dashes" in run(mark=mark)["msg"]
    assert api.world.calls == []


def test_the_token_is_in_nothing_that_is_printed(api: Standin, run: Run) -> None:
    api.world.zone("example.com")
    assert TOKEN not in json.dumps(run())
    assert TOKEN not in json.dumps(run(api_url="http://127.0.0.1:9/client/v4", patience_seconds=0))
    api.world.tokens.clear()
    assert TOKEN not in json.dumps(run())
    assert "cloudflare_zone" in sys.modules
