"""``bytelm doctor``: what this machine offers, what is wrong with it, and what to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bytelm.cli import console

if TYPE_CHECKING:
    from bytelm.doctor import Finding

_MARKS: Final = {"ok": "ok", "note": "NOTE", "fault": "FAULT"}


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs are to be written; it is tried and left clean.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """Measure this machine in a few seconds, and say what stands in the way of training and decoding.

    A fault keeps something from working or makes it much slower than it need be; a note is worth knowing. Both come
    with a remedy.
    """
    from dataclasses import asdict

    from bytelm.doctor import examine

    findings: list[Finding] = []
    for finding in examine(folder):
        findings.append(finding)
        if not as_json:
            _show(finding)
    counts = {state: sum(finding.state == state for finding in findings) for state in _MARKS}
    if as_json:
        told = [asdict(finding) for finding in findings]
        console.print_json({"faults": counts["fault"], "notes": counts["note"], "findings": told})
    else:
        console.result(f"faults: {counts['fault']}, notes: {counts['note']}")
    return console.EXIT_OK


def _show(finding: "Finding") -> None:
    console.result(f"{_MARKS[finding.state]:<6} {finding.part}: {finding.text}")
    if finding.remedy is not None:
        console.result(f"       remedy: {finding.remedy}")
