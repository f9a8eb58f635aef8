"""`guardrail-vl audit`: count, export and purge what an audit log holds. Shows no content.

Exit status: 0 fine, 1 rows were written that training will refuse, 2 an error.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from guardrail_vl.cli.data import FOUND
from guardrail_vl.cli.door import PASSED, door
from guardrail_vl.cli.evaluated import say, show_table
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.show import print_line
from guardrail_vl.errors import ConfigurationError

_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}

AuditOption = Annotated[
    str,
    typer.Option(
        "--audit",
        metavar="TARGET",
        envvar="GUARDRAIL_VL_AUDIT",
        help="The log: a file *.jsonl, or an SQLAlchemy URL such as sqlite:///audit.db.",
        show_default=False,
    ),
]


@door
def audit_export(
    audit: AuditOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="What to write: .jsonl (also .gz or .xz) or .parquet."),
    ],
    reviewed_only: Annotated[
        bool, typer.Option("--reviewed-only", help="Leave out turns that nobody reviewed: the labels are the model's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> int:
    """Write stored turns and what people said of them as rows to train on."""
    from guardrail_vl.audit import Archive
    from guardrail_vl.training import dataset
    from guardrail_vl.training.audited import labelled

    if output.exists() and not overwrite:
        raise ConfigurationError(f"The file {output.name!r} is there.", hint="--overwrite writes over it.")
    with Archive(existing(audit)) as archive:
        found = labelled(archive, reviewed_only=reviewed_only)
    lost = {
        "their content is not stored or can't be read": found.without_content,
        "nobody gave them a label": found.without_label,
        "they hold more than a row can": found.unfit,
        "another one has the same content": found.repeated,
    }
    for why, number in lost.items():
        if number:
            typer.echo(f"Left out: {number} decisions, since {why}.", err=True)
    dataset.write(output, found.turns, pictures="inside")
    wrong = {problem.row for problem in dataset.validate(output)}
    say(f"{len(found.turns)} turns in {output}")
    if wrong:
        typer.echo(f"{len(wrong)} rows have problems. guardrail-vl data validate says what they are.", err=True)
    return FOUND if wrong else PASSED


@door
def audit_purge(
    audit: AuditOption,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Hours, days or weeks, such as 12h, 30d or 8w.")
    ],
    content_only: Annotated[
        bool, typer.Option("--content-only", help="Keep records, and the labels that people gave.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Delete what is older than an age: contents and notes, and also records and labels."""
    from guardrail_vl.audit import Archive

    with Archive(existing(audit)) as archive:
        purged = archive.purge(_age(older_than), content_only=content_only)
    if json:
        print_line({"records": purged.records, "contents": purged.contents})
    else:
        say(f"{purged.records} records and {purged.contents} contents deleted")
    return PASSED


@door
def audit_stats(audit: AuditOption, json: JsonOption = False) -> int:
    """Count what an audit log holds."""
    from guardrail_vl.audit import Archive

    with Archive(existing(audit)) as archive:
        found = archive.stats()
    if json:
        print_line(found)
    else:
        show_table(("what", "how many"), [(name.replace("_", " "), f"{count:,}") for name, count in found.items()])
    return PASSED


def existing(audit: str) -> str:
    """The target, if a file that it names is there: a command that reads must not make an empty log of a typo.

    Raises:
        ConfigurationError: There is no such file.
    """
    database = re.match(r"sqlite(\+\w+)?:///(?!file:)([^?]+)", audit)
    path = database[2] if database else None if "://" in audit else audit
    if path is not None and not Path(path).is_file():
        raise ConfigurationError("There is no audit log at --audit.", hint="A log is made by its first decision.")
    return audit


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if not found:
        raise ConfigurationError("--older-than is no age.", hint="Write, for example, --older-than 30d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
