"""Write docs/variables.md from the roles' argument specifications.

python docs/make_variables.py            writes the file
python docs/make_variables.py --check    says whether it is up to date (exit status 1: it is not)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/variables.md"
HEAD = """# Variables

Made by `docs/make_variables.py` from the roles' `meta/argument_specs.yml`; a test holds the two
together. What most owners set stands in `inventory/group_vars/millrace/settings.yml`. A name that
no role knows stops the run, with the nearest name that exists.
"""


def cell(value: object) -> str:
    """Return a value as a table cell."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`" if value != "" else "empty"


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for spec in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        main = yaml.safe_load(spec.read_text())["argument_specs"]["main"]
        role = spec.parents[1].name
        parts.append(f"\n## {role}: {main['short_description'].lower()}\n")
        parts.append("| variable | what | default |\n| --- | --- | --- |")
        for name, option in main["options"].items():
            told = option["description"]
            text = " ".join(told) if isinstance(told, list) else told
            if "choices" in option:
                text += f" One of {', '.join(str(c) for c in option['choices'] if c != '')}."
            default = cell(option["default"]) if "default" in option else "required"
            parts.append(f"| `{name}` | {' '.join(text.split())} | {default} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
