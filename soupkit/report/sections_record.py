"""Sections of the record: what it is, what went in, files, the recipe, the command, versions."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping

import yaml

from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError
from soupkit.jsons import JsonView
from soupkit.manifest import MANIFEST_NAME
from soupkit.recipe.parse import parse_recipe
from soupkit.report.html import Html, block, code, folded, joined, name, num_bytes, shown, table, tag
from soupkit.report.sections_subject import Subject, mapping, number, sequence, words

MACHINE = ("device", "threads", "jobs", "workers", "dtype", "accumulate", "amp", "seed", "split_seed")
TIMES = ("seconds", "machine", "devices", "ranks")
MOST_INPUTS = 500


def opening(subject: Subject) -> Html:
    """What it is, in a sentence or two."""
    if subject.command:
        return tag("p", *_made_by(subject), class_="lead")
    if subject.facts:
        known = subject.facts.get("architecture") or "unknown architecture"
        said = (
            f"A checkpoint ({known}) of {subject.facts.get('parameters', 0):,} parameters, without a "
            f"{MANIFEST_NAME}."
        )
        return tag("p", said, class_="lead")
    if subject.parts:
        return tag("p", f"{len(subject.parts)} outputs of soupkit.", class_="lead")
    return tag("p", "What soupkit printed as JSON.", class_="lead")


def _made_by(subject: Subject) -> Iterator[Html | str]:
    known = COMMANDS.get(subject.command)
    if known:
        yield f"{(known.recipe_type().__doc__ or '').strip().splitlines()[0].rstrip(':.')}. "
    yield from ("Made by ", code(f"soupkit {subject.command}"))
    num = len(subject.inputs)
    yield f" from {num} checkpoint{'' if num == 1 else 's'}" if num else ""
    created = str(subject.record.get("created") or "")
    yield f" on {created[:10]} at {created[11:16]} UTC." if created[10:11] == "T" else "."


def fact_section(subject: Subject) -> Html | None:
    """What headers and configuration tell of the weights."""
    facts = {
        key: value for key, value in subject.facts.items() if key not in ("made_by", "metrics", "metadata")
    }
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            value = [
                f"{inner}: {item:,}" if isinstance(item, int) else f"{inner}: {item}"
                for inner, item in value.items()
            ]
        if key == "bytes":
            value = num_bytes(value)
        if value:
            rows.append((words(key), shown(value[:8]) if isinstance(value, list) else value))
    return table("What the headers of the weights tell", (), rows) if rows else None


def input_section(subject: Subject) -> Html | None:
    """The ingredients: references, hashes of their weights, sizes where they are still there."""
    if not subject.inputs:
        return None
    rows = []
    for position, entry in enumerate(subject.inputs[:MOST_INPUTS], start=1):
        reference = str(entry.get("reference"))
        size = num_bytes(subject.sizes.get(reference)) or (
            "on the Hub" if "commit" in entry else "not found now"
        )
        commit = code(entry["commit"]) if isinstance(entry.get("commit"), str) else None
        content = code(entry["content"]) if isinstance(entry.get("content"), str) else None
        rows.append((position, name(reference), size, content, *((commit,) if _has_commits(subject) else ())))
    columns = ("#", "reference", "size", "content", *(("commit",) if _has_commits(subject) else ()))
    more = (
        f"; the first {MOST_INPUTS} of {len(subject.inputs):,}" if len(subject.inputs) > MOST_INPUTS else ""
    )
    return table(f"Checkpoints that went in, with the hash of their weights{more}", columns, rows)


def _has_commits(subject: Subject) -> bool:
    return any("commit" in entry for entry in subject.inputs)


def file_section(subject: Subject) -> Html | None:
    """What was written."""
    outputs = mapping(subject.record.get("outputs"))
    tables = [_files(outputs, "")] if "files" in outputs else []
    tables += [_files(mapping(each), key) for key, each in outputs.items() if key not in ("files", "content")]
    found = [each for each in tables if each]
    return joined(found) if found else None


def _files(outputs: JsonView, folder: str) -> Html | None:
    rows = []
    for file, entry in mapping(outputs.get("files")).items():
        known = mapping(entry)
        digest = next((f"{kind}:{known[kind]}" for kind in ("sha256", "xxh3-128") if kind in known), None)
        rows.append((name(file), num_bytes(number(known.get("bytes"))), code(digest) if digest else None))
    content = outputs.get("content")
    caption = joined(
        (
            "Files",
            *((" of ", name(folder)) if folder else ()),
            *((", weights ", code(content)) if content else ()),
        )
    )
    return table(caption, ("file", "size", "hash"), rows) if rows else None


def recipe_section(subject: Subject) -> Html | None:
    """The command, and every option as the YAML that `soupkit run` takes."""
    if not subject.command or not subject.recipe:
        return None
    arguments = command_line(subject.command, subject.recipe)
    pieces: list[object] = [
        tag(
            "p",
            "Run from the same directory, this makes it again (options that are not named have their "
            "defaults):",
        ),
        block(broken(arguments), "command"),
    ]
    if mapping(subject.record.get("mixture")) and subject.place:
        again = shlex.join(["soupkit", "reproduce", subject.place, "--out"])
        pieces += [
            tag(
                "p",
                "This makes the same weights from the coefficients alone, and checks that every bit agrees:",
            ),
            block(f"{again} NEW", "command"),
        ]
    record = {"command": subject.command, **subject.recipe}
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=100)
    pieces.append(folded("All options, as a recipe for soupkit run", block(text, "recipe")))
    return joined(pieces)


def command_line(command: str, recipe: JsonView) -> list[str]:
    """The words of a command line that makes the same recipe; options at their defaults are left out."""
    known = COMMANDS.get(command)
    if known is None:
        return ["soupkit", *command.split(), *_unknown(recipe)]
    kind = known.recipe_type()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    try:
        made = parse_recipe(kind, {key: value for key, value in recipe.items() if key in fields})
    except (RecipeError, TypeError):  # of another version
        return ["soupkit", *command.split(), *_unknown(recipe)]
    positional, options = [], []
    for field in fields.values():
        value = getattr(made, field.name)
        if field.metadata["positional"]:
            positional += [
                _argument(item)
                for item in (value if isinstance(value, tuple) else (value,))
                if item is not None
            ]
        elif value != field.default:
            options += _option(field.name, value)
    return ["soupkit", *command.split(), *positional, *options]


def _argument(value: object) -> str:
    """A reference that begins with a dash must not become an option."""
    return f"./{value}" if str(value).startswith("-") else str(value)


def _option(key: str, value: object) -> list[str]:
    flag = f"--{key.rstrip('_').replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) and value and isinstance(value[0], int | float):
        values = (",".join(map(str, value)),)
    pairs = ([f"{flag}={item}"] if str(item).startswith("-") else [flag, str(item)] for item in values)
    return [word for pair in pairs for word in pair]


def _unknown(recipe: JsonView) -> Iterator[str]:
    """The options of a command that this version does not have, as far as they can be told."""
    for key, value in recipe.items():
        if isinstance(value, str | int | float | list):
            yield from _option(key, tuple(map(str, value)) if isinstance(value, list) else value)


def broken(arguments: list[str]) -> str:
    """A command line in lines that a shell takes as one."""
    quoted = list(map(shlex.quote, arguments))
    lines = [""]
    for word in quoted:
        if lines[-1] and len(lines[-1]) + len(word) > 68:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def version_section(subject: Subject) -> Html | None:
    """Versions of what shaped the result, and where it ran as far as the record says."""
    versions = mapping(subject.record.get("versions"))
    if not versions:
        return None
    rows = [("soupkit", subject.record.get("soupkit")), *versions.items()]
    used = [(words(key), subject.recipe[key]) for key in MACHINE if subject.recipe.get(key) is not None]
    used += [(words(key), subject.notes[key]) for key in TIMES if subject.notes.get(key) is not None]
    ran = table("How it ran", (), [(key, str(value)) for key, value in used]) if used else None
    known = table("Versions", (), [(key, str(value)) for key, value in rows if value])
    return joined((known, ran))


def member_names(subject: Subject) -> list[str]:
    """The checkpoints that lie in its directory."""
    return [str(each) for each in sequence(subject.notes.get("members"))]
