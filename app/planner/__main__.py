"""Print the plan for a machine: `./millrace plan`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from planner import cards, machine, models, page
from planner.driver import DriverWish
from planner.engine import Wish
from planner.plan import decide
from planner.problem import PlanError

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

EXAMPLES = """
examples:
  ./millrace plan --gpu "RTX 3090"
  ./millrace plan --gpu "RTX 5090" --count 2 --ram-gib 64
  ./millrace plan --gpu "NVIDIA H100 80GB HBM3" --model Qwen/Qwen3-32B --max-model-len 16384
  ./millrace plan --machine tests/fixtures/machines/two-3090.json --json

exit codes: 0 the plan can be carried out, 1 it cannot (the page says why and what could),
2 it could not be made (no such card, no such model)."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="millrace plan",
        description="Say which driver, model and settings a machine would get, and what fits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    where = parser.add_argument_group("the machine")
    where.add_argument(
        "--gpu", metavar="NAME", help="a card by its name, as sold or as nvidia-smi prints it"
    )
    where.add_argument("--count", type=_positive, help="how many of them (1)")
    where.add_argument(
        "--ram-gib", type=float, default=64.0, help="memory of the machine, GiB (64)"
    )
    where.add_argument("--cores", type=_positive, default=16, help="processor cores (16)")
    where.add_argument(
        "--system", metavar='"Debian 12"', help="its distribution and version (Debian 13)"
    )
    where.add_argument("--machine", type=Path, metavar="FILE", help="a machine's facts as JSON")
    engine = parser.add_argument_group("settings that win over the planner's, by vLLM's own names")
    engine.add_argument(
        "--model", metavar="ID|PATH", help="owner/name on the hub, or a folder with a config.json"
    )
    engine.add_argument(
        "--max-model-len", type=_tokens, metavar="N", help="tokens of context; 32k is 32768"
    )
    engine.add_argument("--gpu-memory-utilization", type=_share, metavar="SHARE")
    engine.add_argument("--kv-cache-memory-bytes", type=_positive, metavar="N")
    engine.add_argument("--tensor-parallel-size", "-tp", type=_positive, metavar="N")
    engine.add_argument("--data-parallel-size", "-dp", type=_positive, metavar="N")
    engine.add_argument("--max-num-seqs", type=_positive, metavar="N")
    engine.add_argument("--max-num-batched-tokens", type=_tokens, metavar="N")
    engine.add_argument(
        "--quantization", "-q", metavar="METHOD", help="of a checkpoint in 16 bits, such as fp8"
    )
    engine.add_argument("--kv-cache-dtype", choices=["auto", "fp8", "fp8_e4m3", "fp8_e5m2"])
    engine.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "half", "float32"])
    engine.add_argument("--enforce-eager", action="store_true", default=None)
    driver = parser.add_argument_group("the driver")
    driver.add_argument("--driver-source", choices=["nvidia", "distribution", "none"], default="")
    driver.add_argument("--driver-branch", type=int, default=0, metavar="N")
    driver.add_argument("--driver-flavour", choices=["open", "proprietary"], default="")
    parser.add_argument(
        "--json", action="store_true", help="print it as JSON (docs/plan.md tells the keys)"
    )
    parser.add_argument(
        "--list-gpus", action="store_true", help="print the cards that the catalogue knows"
    )
    parser.add_argument("--list-models", action="store_true", help="print the models that it knows")
    args = parser.parse_args(words)
    if not (args.list_gpus or args.list_models) and bool(args.gpu) == bool(args.machine):
        parser.error("name the machine: --gpu NAME, or --machine FILE")
    if args.machine and args.count:
        parser.error("--count goes with --gpu: the file says what is in the machine")
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _tokens(text: str) -> int:
    """Read a count as vLLM does: 32k is 32,000 and 32K 32,768 there; we take both for 32,768."""
    number = text.lower()
    return int(float(number[:-1]) * 1024) if number.endswith("k") else _positive(text)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _read(path: Path) -> dict[str, Any]:
    """Return a machine's facts or profile: JSON is YAML as well."""
    try:
        told = yaml.load(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise PlanError(f"{path} is neither JSON nor YAML: {error}") from None
    if not isinstance(told, dict):
        raise PlanError(f"{path} holds no machine")
    return told


def _machine(args: argparse.Namespace) -> machine.Machine:
    if args.machine:
        told = _read(args.machine)
        if "pci" in told:
            return machine.from_profile(told, args.cores, args.ram_gib)
        return machine.from_facts(told)
    asked = (args.tensor_parallel_size or 1) * (args.data_parallel_size or 1)
    return machine.of_cards(
        args.gpu, args.count or asked,
        ram_gib=args.ram_gib, cores=args.cores, system=args.system or "",
    )  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Plan, print, and return the exit code."""
    args = parse(words)
    if args.list_gpus or args.list_models:
        print("\n".join(cards.names() if args.list_gpus else models.names()))
        return 0
    wish = Wish(**{each.name: getattr(args, each.name) for each in fields(Wish)})
    drivers = DriverWish(args.driver_source, args.driver_branch, args.driver_flavour)
    try:
        model = models.find(args.model) if args.model else None
        plan = decide(_machine(args), model, wish, drivers)
    except PlanError as error:
        if args.json:
            print(json.dumps({"reasons": [], "refusals": [str(error)]}, indent=2))
        print(f"millrace plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(plan, indent=2, ensure_ascii=False) if args.json else page.text(plan), end="")
    if args.json:
        print()
    return 1 if plan["refusals"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
