"""The flags of the command line: one for every field of Experiment, and their help."""

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedrec.components import ALIASES, SEAMS, fields_known, find, parts_of, with_paths
from fedrec.data import LAYOUTS
from fedrec.errors import Parser, choose, named
from fedrec.experiment.choice import AUTO
from fedrec.experiment.config import Experiment, Method
from fedrec.sharing import SHARINGS
from simulations.defaults import DEFAULTS
from simulations.help import TOPICS, first_page
from simulations.methods import METHODS

# What --help groups together; a method's fields form a group of their own, and the rest is training.
GROUPS = {
    "data": "clients dataset data_dir columns reading filters market partition skew volunteers split fractions fold_in "
    "without forgotten",
    "method": "",
    "training": "",
    "taking part": "participation dropout deadline quorum asynchrony newcomers start retune",
    "privacy": "privacy secure reveal",
    "evaluation": "metrics candidates history patience eval_every",
    "running": "seed engine workers stack device tracker",
}

EXAMPLES = """\
examples:
  python -m simulations.run --clients 5
  python -m simulations.run --clients 5 --dataset ml-100k --rounds 30
  python -m simulations.run --dataset table --data-dir sales.csv.gz --columns user=user,item=sku,platform=shop
  python -m simulations.run --method fedrep --task 'rank;shop-1=buy' --metrics ndcg@10,hr@10 --patience 5
  python -m simulations.run --config runs/first/experiment.json --seed 1 --out runs/second

--config reads plain fields, or the experiment.json of a run. The command line wins over the file; a method given there
replaces the file's method as a whole. Of a flag that is given twice, the last one counts, but for --tie."""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the definition of every field, those of nested models included."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def flag(path: str) -> str:
    """Return the flag of a field."""
    return "--" + path.replace("_", "-")


FIELDS = dict(leaves(Experiment))
SHORT = {"reading.rows": "--rows", "reading.events": "--events", "coupling.ties": "--tie"}  # other flags of fields
CHOSEN = {"model": AUTO}  # what stands for a field that nobody gave, where that is not its default
OTHERS = "--out --config --from --compare --no-compare --quiet --estimate --checkpoint-every --resume --version --help"
OPTIONS = [*map(flag, FIELDS), *SHORT.values(), *OTHERS.split()]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mappings whose `flatten` is `flat`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return nested


def parser() -> argparse.ArgumentParser:
    """Return the parser: a flag for every field of Experiment, and those that decide nothing about the result."""
    p = Parser(
        prog="python -m simulations.run",
        description="Train recommenders that learn together, each with a private part, and report whether it helped.",
        usage="%(prog)s [--FIELD VALUE ...] [--config FILE] [--out DIR] [--no-compare] [--quiet]",
        epilog=f"{described_methods()}\n\n{described_sharings()}\n\n{described_promises()}\n\n{EXAMPLES}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=118),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    p.add_argument("-h", "--help", nargs="?", const="", metavar="TOPIC", help="the first page, or more of a topic")
    groups = {name: p.add_argument_group(name) for name in GROUPS}
    defaults = flatten(Experiment().model_dump()) | CHOSEN
    for path, info in FIELDS.items():
        text = f"{info.description or ''} [{shown(defaults[path])}]".replace("%", "%%")
        if info.annotation is bool:
            groups[group(path)].add_argument(flag(path), dest=path, action=argparse.BooleanOptionalAction, help=text)
        else:
            names = [flag(path), *filter(None, [SHORT.get(path)])]
            action = Several if path == "coupling.ties" else "store"
            word = metavar(info.annotation)
            groups[group(path)].add_argument(*names, dest=path, metavar=word, help=text, action=action)
    running = groups["running"]
    for name, (word, kind, text) in RUNNING.items():
        running.add_argument(name, metavar=word, type=kind, help=text)
    whether = "also train the local and pooled baselines [yes]"
    running.add_argument("--compare", action=argparse.BooleanOptionalAction, help=whether)
    running.add_argument("--version", action="version", version=version(), help="print the version of fedrec")
    running.add_argument("--quiet", action="store_true", help="print only the result")
    running.add_argument("--estimate", action="store_true", help="print what memory and time it would take, and end")
    return p


class Several(argparse.Action):
    """What is given several times is all of them, joined by ';'."""

    def __call__(self, _: object, found: argparse.Namespace, value: Any, option: str | None = None) -> None:
        """Add a value to those before."""
        before = getattr(found, self.dest, "")
        setattr(found, self.dest, f"{before}; {value}" if before else value)


def count(text: str) -> int:
    """Return a whole number from 0; raises the error that argparse reports for anything else."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, found {text!r}")
    return int(text)


def nonempty(text: str) -> str:
    """Return `text`; raises the error that argparse reports if it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, found ''")
    return text


RESUMING = "go on with the run in DIR that was broken off or stopped; with --compare, add the baselines it lacks"
RUNNING = {  # options that decide nothing about the result: what a value is called, its type, and the help
    "--out": ("DIR", nonempty, "where the run is recorded; new or empty"),
    "--config": ("FILE", nonempty, "JSON or TOML file of fields, or an experiment.json"),
    "--from": ("RUN", nonempty, "go on from the sums of a run: those whose data are others send the difference alone"),
    "--checkpoint-every": ("N", count, "rounds between two checkpoints; 0: none [1; 0 for ray and superlink]"),
    "--resume": ("DIR", nonempty, RESUMING),
}


def help_of(topic: str, given: Mapping[str, Any]) -> str:
    """Return the first page of --help, a topic's, or that of parts named beside it; raises UserError."""
    parts = [described_part(path, str(given[path])) for path in SEAMS if path in given]
    if not topic and parts:
        return "\n\n".join(parts)
    if not topic:
        return first_page(list(METHODS))
    choose("option --help", topic, TOPICS)
    if topic in ("methods", "sharings"):
        return described_methods() if topic == "methods" else described_sharings()
    whole = parser().format_help()
    if topic == "all":
        return whole.rstrip("\n")
    title = topic.replace("-", " ")
    return next(part for part in whole.split("\n\n") if part.startswith(f"{title}:"))


def described_part(path: str, text: str) -> str:
    """Return a line for every field of the parts that a text names, ours or the user's own; raises UserError."""
    lines = []
    with named(f"option {flag(path)}"):
        parts = parts_of(with_paths(path, text))
    for use in dict.fromkeys(part.use for part in parts):
        kind = find(path, use) if ":" in use else None
        lines.append(f"{path} {use}: {(kind.__doc__ or '').strip().splitlines()[0] if kind and kind.__doc__ else ''}")
        if path == "dataset" and use in LAYOUTS:
            lines[-1:] = textwrap.wrap(f"{path} {use}: {LAYOUTS[use].about}; {LAYOUTS[use].page}", 79)
            lines += textwrap.wrap(f"  terms: {LAYOUTS[use].terms}", 79)
        if kind:
            known = fields_known(kind)
            lines += [f"  {flag(path)}.{name:<16} {hint} [{default}]" for name, hint, default in known]
            continue
        defaults, aliases = flatten(Experiment().model_dump()), ALIASES.get(path, {}).get(use, {})
        for name, field in aliases.items():
            words = f"{FIELDS[field].description}; the same as {flag(field)} [{shown(defaults[field])}]"
            lines += textwrap.wrap(words, 79, initial_indent=f"  {flag(path)}.{name:<12} ", subsequent_indent=" " * 20)
        lines += [] if aliases else ["  has no fields of its own"]
    return "\n".join(line.rstrip(": ") if line.endswith(": ") else line for line in lines)


def version() -> str:
    """Return the name and the version of this package."""
    try:
        return f"fedrec {metadata.version('fedrec')}"
    except metadata.PackageNotFoundError:
        return "fedrec, not installed"


def group(path: str) -> str:
    """Return the group of a field in --help."""
    top = path.partition(".")[0]
    other = "method" if top in Method.model_fields else "training"
    return next((name for name, names in GROUPS.items() if top in names.split()), other)


def described_methods() -> str:
    """Return a line for every method with what it shares, and the fields that it sets to other than their defaults."""
    lines, by_name = ["methods, and the fields that --method sets:"], {value: key for key, value in SHARINGS.items()}
    defaults = flatten(Method().model_dump())
    for name, method in METHODS.items():
        set_fields = flatten(method.model_dump(include=method.model_fields_set - {"method"}))
        values = {path: value for path, value in set_fields.items() if path == "share" or value != defaults[path]}
        words = [f"{path}={by_name.get(value, shown(value))}" for path, value in values.items()]
        lines.append(f"  {name:<9} " + "  ".join(words))
    return "\n".join(lines)


def described_sharings() -> str:
    """Return a line for every named sharing with its modules."""
    lines = ["named sharings, for --share; a multi-task body keeps its experts, or shared layers, in body;"]
    lines.append("what is of one platform (star: domain) is in none of them:")
    for name, modules in SHARINGS.items():
        lines += textwrap.wrap(f"  {name:<14} {', '.join(modules)}", 118, subsequent_indent=" " * 17)
    return "\n".join(lines)


def described_promises() -> str:
    """Return a line for every unit of a promise of privacy with the options that it sets where none is given."""
    lines = ["what --privacy.unit sets of what is not given:"]
    for unit, fields in DEFAULTS.items():
        if fields:
            lines.append(f"  {unit:<11} " + "  ".join(f"{path}={shown(value)}" for path, value in fields.items()))
    return "\n".join(lines)


def shown(value: object) -> str:
    """Return a value as one would type it."""
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return {"None": "none", "": "''"}.get(str(value), str(value))


def metavar(annotation: Any) -> str:
    """Return what --help calls a value of a type: N, X, PATH, TEXT, the words allowed, or several of them."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return "|".join(map(str, parts))
    if get_origin(annotation) is tuple:
        return f"{metavar(parts[0])},..."
    if parts:
        return "|".join(map(metavar, parts))
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")
