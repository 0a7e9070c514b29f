"""Ways to break what a check guards on a live server, and to mend it again: shell commands."""

from __future__ import annotations

from dataclasses import dataclass

NGINX = "/etc/nginx/nginx.conf"
RELOAD = "nginx -s reload; sleep 1"
BACKEND = "/opt/millrace/backend/current/app/backend"
RESTART = "millrace-handover --again; sleep 1"


def keep(file: str) -> str:
    """Put a copy of `file` aside."""
    return f"cp -a {file} /root/kept.$(basename {file})"


def restore(file: str) -> str:
    """Bring the copy back."""
    return f"cp -a /root/kept.$(basename {file}) {file}"


@dataclass(frozen=True)
class Break:
    """One check, how to break what it guards, and how to mend it.

    `do` fails where it cannot break anything, for a check that then passes has missed nothing.
    `brings`: a secret of the controller's that lies in BROUGHT on the server meanwhile. `here`: the
    commands run on this machine, in the repository, with the secrets' folder as $SECRETS.
    """

    test: str
    broken_by: str
    do: str
    undo: str
    brings: str = ""
    here: bool = False


BROUGHT = "/root/brought"


def aside(file: str) -> str:
    """Return where a break keeps a file: checks that keep it as well have a place of their own."""
    return f"/root/whole.{file.rpartition('/')[2]}"


def edit(file: str, *expressions: str) -> str:
    """Change a file by sed expressions; fails where one of them changes nothing."""
    step = f"{aside(file)}.step"
    edits = [
        f"cp -a {file} {step} && sed -i '{expression}' {file} && ! cmp -s {step} {file}"
        for expression in expressions
    ]
    return " && ".join([f"cp -a {file} {aside(file)}", *edits, f"rm {step}"])


def append(file: str, line: str) -> str:
    """Add a line to a file."""
    return f"cp -a {file} {aside(file)} && echo '{line}' >> {file}"


def bring_back(file: str) -> str:
    """Undo `edit`, `append` or `take_out`."""
    return f"mv {aside(file)} {file}"


def take_out(file: str) -> str:
    """Have a file be gone."""
    return f"mv {file} {aside(file)}"


def gone(test: str, told: str, file: str, then: str = "true") -> Break:
    """A break by a file that is not there; `then` is run after that, and after the mend."""
    return Break(test, told, f"{take_out(file)} && {then}", f"{bring_back(file)}; {then}")


def in_file(test: str, told: str, file: str, *expressions: str, then: str = "true") -> Break:
    """A break by sed expressions in a file; `then` is run after that, and after the mend."""
    return Break(test, told, f"{edit(file, *expressions)} && {then}", f"{bring_back(file)}; {then}")


def in_nginx(test: str, told: str, *expressions: str) -> Break:
    """A break by sed expressions in nginx's configuration."""
    return in_file(test, told, NGINX, *expressions, then=f"nginx -t -q && {RELOAD}")


def in_backend(test: str, told: str, file: str, *expressions: str) -> Break:
    """A break by sed expressions in the backend's source."""
    return in_file(test, told, f"{BACKEND}/{file}", *expressions, then=RESTART)


def in_unit(test: str, told: str, unit: str, lines: str, restart: bool = True) -> Break:
    """A break by a drop-in for a unit."""
    again = f"systemctl daemon-reload && systemctl restart '{unit}' && sleep 3"
    if not restart:
        again = "systemctl daemon-reload && sleep 3"
    # A template's drop-ins are those of all its instances; the last by name wins.
    folder = f"/etc/systemd/system/{unit.replace('@*', '@')}.service.d"
    do = f"mkdir -p {folder} && printf '[Service]\\n{lines}\\n' > {folder}/zz-break.conf && {again}"
    return Break(test, told, do, f"rm {folder}/zz-break.conf; {again}")
