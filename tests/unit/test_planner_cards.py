"""The catalogue of cards: no card twice, none missing, every value likely and with its source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from planner.data import build_cards

DATA = Path(build_cards.__file__).parent
CONTENT: dict[str, Any] = json.loads((DATA / "cards.json").read_text(encoding="utf-8"))
CARDS: list[dict[str, Any]] = CONTENT["cards"]
EXTRA: dict[str, Any] = json.loads((DATA / "cards_extra.json").read_text(encoding="utf-8"))

CAPABILITIES = {
    "maxwell": {"5.2"},
    "pascal": {"6.0", "6.1"},
    "volta": {"7.0"},
    "turing": {"7.5"},
    "ampere": {"8.0", "8.6"},
    "ada": {"8.9"},
    "hopper": {"9.0"},
    "blackwell": {"10.0", "10.3", "12.0", "12.1"},
}
LEAST_SHARE = 0.88
"""Of the nominal memory: ECC takes a sixteenth, a driver up to 4 %."""
WITHOUT_SOURCE = {"aliases", "kind", "laptop", "printed_as", "shared_pci_ids", "sources"}

WANTED = """
RTX 3050 8GB, RTX 3050 6GB, RTX 3060 12GB, RTX 3060 8GB, RTX 3060 Ti, RTX 3070, RTX 3070 Ti,
RTX 3080 10GB, RTX 3080 12GB, RTX 3080 Ti, RTX 3090, RTX 3090 Ti
RTX 4060, RTX 4060 Ti 8GB, RTX 4060 Ti 16GB, RTX 4070, RTX 4070 SUPER, RTX 4070 Ti,
RTX 4070 Ti SUPER, RTX 4080, RTX 4080 SUPER, RTX 4090, RTX 4090 D
RTX 5050, RTX 5060, RTX 5060 Ti 8GB, RTX 5060 Ti 16GB, RTX 5070, RTX 5070 Ti, RTX 5080, RTX 5090,
RTX 5090 D, RTX 5090 D v2
RTX A2000, RTX A2000 12GB, RTX A4000, RTX A4500, RTX A5000, RTX A5500, RTX A6000
RTX 2000 Ada, RTX 4000 Ada, RTX 4000 SFF Ada, RTX 4500 Ada, RTX 5000 Ada, RTX 5880 Ada, RTX 6000 Ada
RTX PRO 2000 Blackwell, RTX PRO 4000 Blackwell, RTX PRO 4500 Blackwell, RTX PRO 5000 Blackwell,
RTX PRO 6000 Blackwell Workstation Edition, RTX PRO 6000 Blackwell Max-Q Workstation Edition,
RTX PRO 6000 Blackwell Server Edition
T4, L4, L40, L40S, A2, A10, A10G, A16, A30, A40, A100 40GB, A100 80GB, A100 PCIe 40GB,
A100 PCIe 80GB, H100 PCIe, H100 SXM, H100 NVL, GH200, H200, H200 NVL, B200, B300, GB10
GTX 1050 Ti, GTX 1060 6GB, GTX 1070, GTX 1070 Ti, GTX 1080, GTX 1080 Ti, TITAN X (Pascal), TITAN Xp
TITAN V, P4, P40, P100, V100 16GB, V100 32GB, GTX 1650, GTX 1650 SUPER, GTX 1660, GTX 1660 SUPER
GTX 1660 Ti, RTX 2060, RTX 2060 SUPER, RTX 2070, RTX 2070 SUPER, RTX 2080, RTX 2080 SUPER
RTX 2080 Ti, TITAN RTX, Quadro RTX 4000, Quadro RTX 5000, Quadro RTX 6000, Quadro RTX 8000
GTX 960, GTX 970, GTX 980, GTX 980 Ti
"""

every_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card["name"])


def names(card: dict[str, Any]) -> set[str]:
    """Return all names of a card, as they differ to someone who types one."""
    said = [card["name"], *card["aliases"]]
    return {re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower()) for name in said}


def test_a_name_belongs_to_one_card() -> None:
    owners: dict[str, str] = {}
    for card in CARDS:
        for name in names(card):
            assert name not in owners, f"{name}: {owners[name]} and {card['name']}"
            owners[name] = card["name"]


def test_a_pci_id_belongs_to_one_card() -> None:
    ids = [pci_id for card in CARDS for pci_id in card["pci_ids"]]
    assert sorted(ids) == sorted(set(ids))


@every_card
def test_pci_ids_are_written_as_the_kernel_does(card: dict[str, Any]) -> None:
    shared = card.get("shared_pci_ids", [])
    assert card["pci_ids"] or shared
    for pci_id in [*card["pci_ids"], *shared]:
        assert re.fullmatch(r"[0-9a-f]{4}(:[0-9a-f]{4}:[0-9a-f]{4})?", pci_id)
    # Such a card is told from its twin by its memory only; the twin has the id.
    others = {pci_id for other in CARDS if other is not card for pci_id in other["pci_ids"]}
    assert set(shared) <= others


@every_card
def test_architecture_and_compute_capability_agree(card: dict[str, Any]) -> None:
    assert card["compute_capability"] in CAPABILITIES[card["architecture"]]


@every_card
def test_what_the_driver_leaves_of_the_memory(card: dict[str, Any]) -> None:
    seen = [card.get("cuda_memory_gib"), card.get("smi_memory_mib", 0) / 1024]
    for gib in filter(None, seen):
        assert LEAST_SHARE * card["memory_gib"] < gib <= card["memory_gib"]
    if all(seen):
        assert seen[0] < seen[1]


@every_card
def test_every_value_has_its_source(card: dict[str, Any]) -> None:
    assert set(card) - WITHOUT_SOURCE == set(card["sources"])
    for source in card["sources"].values():
        assert source in CONTENT["sources"] or source.startswith("https://")


@every_card
def test_values_are_of_the_kind_they_claim(card: dict[str, Any]) -> None:
    assert card["kind"] in ("geforce", "workstation", "datacenter")
    assert 1 < card["memory_gib"] < 1000
    assert 50 < card["bandwidth_gb_s"] < 10000
    assert 20 < card.get("tdp_watts", 100) < 2000
    assert card["nvlink"] in (True, False)
    assert card["mig"] in (True, False, None)
    assert card["ecc_default"] in (True, False, None)


def test_every_source_has_an_address() -> None:
    for about in CONTENT["sources"].values():
        assert about["url"].startswith("https://")
        assert about["version"]


def test_no_wanted_card_is_missing() -> None:
    known = {name for card in CARDS for name in [card["name"], *card["aliases"]]}
    wanted = [name.strip() for name in re.split(r"[,\n]", WANTED) if name.strip()]
    assert [name for name in wanted if name not in known] == []


def test_the_catalogue_says_what_is_kept_by_hand() -> None:
    by_name = {card["name"]: card for card in CARDS}
    assert sorted(by_name) == sorted(card["name"] for card in EXTRA["cards"])
    for card in EXTRA["cards"]:
        entry = by_name[card["name"]]
        for field in set(build_cards.VALUES) & set(card):
            assert [entry[field], entry["sources"][field]] == card[field]
        for field in set(build_cards.LISTED) & set(card):
            assert entry[field] == sorted(card[field])


# The script, on a list of two cards.

README = """
This is the source release, version 595.45.04.

| Product Name                | PCI ID         |
| --------------------------- | -------------- |
| NVIDIA A16                  | 25B6 10DE 14A9 |
| NVIDIA A2                   | 25B6 10DE 157E |
"""
PCI_IDS = """
#	Version: 2026.08.22
10dd  Someone else
	25b6  GA100 [Not this one]
10de  NVIDIA Corporation
	1b38  GP102GL [Tesla P40]
		10de 11d9  Tesla P40
	25b6  GA107GL [A2 / A16]
10df  Emulex
	1b38  GV100 [Nor this]
"""


def given(**more: Any) -> dict[str, Any]:
    """Return what cards_extra.json says of one card."""
    page = "https://example.org/card"
    card = {
        "name": "NVIDIA A2", "aliases": ["A2"], "pci_ids": ["25b6:10de:157e"], "kind": "datacenter",
        "memory_gib": [16, page], "bandwidth_gb_s": [200, page], "nvlink": [False, page],
        "mig": [False, page], "ecc_default": [None, page],
    }  # fmt: skip
    return {"sources": {}, "cards": [card | more]}


def run(folder: Path, extra: dict[str, Any], *more: str) -> int:
    """Run the script on those inputs; writes cards.json there."""
    texts = {"README.md": README, "pci.ids": PCI_IDS, "extra.json": json.dumps(extra)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [f"--driver-list={folder}/README.md", f"--pci-ids={folder}/pci.ids"]
    out = [f"--extra={folder}/extra.json", f"--out={folder}/cards.json"]
    return build_cards.main([*files, *out, *more])


def test_the_script_joins_the_lists(tmp_path: Path) -> None:
    assert run(tmp_path, given()) == 0
    written = json.loads((tmp_path / "cards.json").read_text(encoding="utf-8"))
    [card] = written["cards"]
    assert (card["architecture"], card["compute_capability"]) == ("ampere", "8.6")
    assert card["memory_gib"] == 16
    assert card["sources"]["memory_gib"] == "https://example.org/card"
    assert card["sources"]["name"] == "open-gpu-kernel-modules"
    assert written["sources"]["pci.ids"]["version"] == "2026.08.22"
    assert written["sources"]["open-gpu-kernel-modules"]["version"] == "595.45.04"
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "pci.ids", "extra.json", "cards.json",
    }  # fmt: skip


def test_an_old_card_is_found_in_pci_ids(tmp_path: Path) -> None:
    assert run(tmp_path, given(name="Tesla P40", aliases=["P40"], pci_ids=["1b38"])) == 0
    [card] = json.loads((tmp_path / "cards.json").read_text(encoding="utf-8"))["cards"]
    assert (card["architecture"], card["compute_capability"]) == ("pascal", "6.1")
    assert card["sources"]["pci_ids"] == "pci.ids"


def test_check_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, given(), "--check") == 1
    assert not (tmp_path / "cards.json").exists()
    assert run(tmp_path, given()) == 0
    assert run(tmp_path, given(), "--check") == 0
    assert run(tmp_path, given(memory_gib=[15, "https://example.org"]), "--check") == 1
    assert "not what is written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "NVIDIA A3", "aliases": []}, "25b6:10de:157e is called 'NVIDIA A2'"),
        ({"pci_ids": ["25b6:10de:0001"]}, "no list names 25b6:10de:0001"),
        ({"pci_ids": ["25b6"]}, "25b6 is called 'NVIDIA A16'"),
        ({"pci_ids": ["beef"]}, "no list names beef"),
        ({"pci_ids": []}, "no PCI id"),
        ({"memory_gib": [16, "hearsay"]}, "memory_gib has no known source: hearsay"),
        ({"memory": [16, "pci.ids"]}, "unknown field memory"),
        ({"pci_ids": ["25b6:10de:157e"] * 2}, "belongs to 2 cards"),
    ],
)
def test_what_the_lists_do_not_know_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], said: str
) -> None:
    assert run(tmp_path, given(**more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cards.json").exists()


def test_a_drivers_json_is_read_as_well(tmp_path: Path) -> None:
    chips = [
        {"devid": "0x25B6", "subvendorid": "0x10DE", "subdeviceid": "0x157E", "name": "NVIDIA A2"},
        {"devid": "0x2684", "name": "NVIDIA GeForce RTX 4090"},
    ]
    path = tmp_path / "supported-gpus.json"
    path.write_text(json.dumps({"chips": chips}), encoding="utf-8")
    assert build_cards.read_driver_list(path)[1] == {
        "25b6:10de:157e": "NVIDIA A2",
        "2684": "NVIDIA GeForce RTX 4090",
    }
