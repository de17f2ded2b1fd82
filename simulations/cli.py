"""The command line, configuration files and Flower's run_config: three ways to write down one Experiment."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from fedrec.components import ALIASES, SEAMS, SEVERAL, parts_of, per_client, with_fields, with_paths
from fedrec.data.sources import absolute, absolute_each
from fedrec.data.text import PUBLIC
from fedrec.errors import UserError, choose, named
from fedrec.experiment.acting import RULES as NEEDS
from fedrec.experiment.acting import VALUES, acting, acts, needs, refuse
from fedrec.experiment.choice import AUTO, BY_STEPS, BY_SUMS, check_choice, describe, reason
from fedrec.experiment.config import Experiment, build, schedule_of
from fedrec.experiment.earlier import experiment_of
from fedrec.experiment.origins import changes
from fedrec.federation.coordination.maps import RULES
from fedrec.files import named_values, regular
from fedrec.folders import CHECKPOINTS, COMMAND, resumable
from simulations.defaults import defaults
from simulations.methods import METHODS, usual
from simulations.options import FIELDS, OPTIONS, flag, flatten, help_of, nest, parser, shown

DESCRIBING = ("reading.items", "reading.users")  # files, by platform
SAVING = ("process", "inline", "batched")  # engines that can save the clients' state


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    experiment: Experiment
    out: Path | None = None
    quiet: bool = False
    compare: bool = True
    every: int = 0  # rounds between two checkpoints
    resume: bool = False  # go on with the run in `out`
    trained: bool = False  # it has all its rounds: only baselines are to be added
    estimate: bool = False  # say what it would take, and run nothing
    promised: str = ""  # the options that a promise of privacy set
    model: str = ""  # which one was chosen, and why, if nobody named it
    by_steps: Experiment | None = None  # the same with a model by gradients, for data of which sums are too large
    in_subspace: Experiment | None = None  # the same with sums in a subspace, for such data too
    notes: tuple[str, ...] = ()  # what else must be said of it

    def changed(self, **fields: Any) -> "Command":
        """Return the command with some fields of its experiment changed."""
        names = ("experiment", "by_steps", "in_subspace")
        made = {name: getattr(self, name) and getattr(self, name).model_copy(update=fields) for name in names}
        return replace(self, **made)


class Choice(NamedTuple):
    """An experiment, why it has its model if nobody named one, and where these can be the same by gradients, if so.

    `in_subspace` is the same with sums in a subspace, if nobody says what of its sums travels.
    """

    experiment: Experiment
    words: str = ""
    by_steps: Experiment | None = None
    in_subspace: Experiment | None = None


class Given(NamedTuple):
    """A value for a field, and what to call its place in an error."""

    value: Any
    where: str


def parse(argv: Sequence[str], strict: bool = True) -> Command:
    """Return the command that `argv` (without the program's name) gives.

    From low to high: defaults, those under a promise of privacy, the method of the --config file, the file's fields,
    the method flag, the other flags. What cannot act in the experiment is refused, or set back to its default where
    that is not `strict`. Raises UserError, and SystemExit(0) after --help.
    """
    options, extra = parser().parse_known_args(argv)
    parts, extra = fields_of_parts(extra)
    if extra:
        name = extra[0].partition("=")[0]
        if not name.startswith("-"):
            raise UserError(f"argument {name!r}: a value must follow its option, as in --rounds 20")
        raise UserError(f"option {name}: no such option{nearest(name, OPTIONS)}{needed(name)}")
    given = vars(options) | parts
    if "help" in given:
        print(help_of(given.pop("help"), given))
        raise SystemExit(0)
    quiet, compare = given.pop("quiet", False), given.pop("compare", None)
    told = given.pop("estimate", False)
    if broken := given.pop("resume", None):
        if given or told:
            others = ", ".join(map(flag, [*given, *["estimate"] * told]))
            raise UserError(f"option --resume: a run goes on as it was begun, found {others} beside it")
        return resumed(Path(broken), quiet, compare)
    out, config, every, begun = (given.pop(name, None) for name in ("out", "config", "checkpoint_every", "from"))
    if config and begun:
        raise UserError(f"option --from: takes what is not given from the run, found --config {config} beside it")
    file, recorded = read_config(config) if config else goes_on(begun) if begun else ({}, [])
    flags = {path: Given(value, f"option {flag(path)}") for path, value in given.items()}
    command = command_of(file, flags, Path(out) if out else None, quiet, compare is not False, every, strict)
    notes = tuple(changes(command.experiment.own_parts, recorded)) if recorded else ()
    return replace(command, notes=notes, estimate=told)


def command_of(
    file: Mapping[str, Given],
    given: Mapping[str, Given],
    out: Path | None,
    quiet: bool,
    compare: bool,
    every: int | None,
    strict: bool = True,
) -> Command:
    """Return the command to run the experiment of two layers, see `resolve`; `every` is None for the usual."""
    choice = decide(file, given) if strict else Choice(resolve(file, given, strict=False))
    experiment = choice.experiment
    if every is None:
        every = 1 if experiment.engine in SAVING else 0
    applied = defaults(flatten(experiment.model_dump()), {*file, *given})
    promised = " ".join(f"{flag(path)} {shown(value)}" for path, value in applied.items())
    return Command(
        experiment,
        out,
        quiet,
        compare,
        every,
        promised=promised,
        model=choice.words,
        by_steps=choice.by_steps,
        in_subspace=choice.in_subspace,
    )


def decide(*layers: Mapping[str, Given]) -> Choice:
    """Return the experiment of the layers, see `resolve`, with the model that is chosen if they name none, or auto.

    That is the model by sums, unless something else that is given needs gradients.
    """
    names = [str(layer["model"].value) for layer in layers if "model" in layer]
    if names and names[-1] != AUTO:
        experiment = resolve(*layers)
        return Choice(experiment, in_subspace=in_subspace(experiment, layers))
    by_steps = None
    with suppress(UserError):
        by_steps = resolve(*with_model(BY_STEPS, *layers))
    try:
        experiment = resolve(*with_model(BY_SUMS, *layers))
        check_choice(experiment)
        for path, (value, where) in {path: given for layer in layers for path, given in layer.items()}.items():
            if by_steps and path in NEEDS and acts(by_steps, path) and not acts(experiment, path):
                raise UserError(f"{where}: acts only with {needs(experiment, path)}, found {value}")
    except UserError as error:
        e = by_steps or resolve(*with_model(BY_STEPS, *layers))
        return Choice(e, f"{BY_STEPS}, since {reason(str(error))}")
    words = f"{describe(experiment)} ({BY_STEPS} where something needs gradients)"
    return Choice(experiment, words, by_steps, in_subspace(experiment, with_model(BY_SUMS, *layers)))


def in_subspace(experiment: Experiment, layers: Sequence[Mapping[str, Given]]) -> Experiment | None:
    """Return the experiment of layers with sums in a subspace; None where they say what travels, or it cannot be."""
    if not experiment.by_sums or any({"sums.kind", "model.sums"} & layer.keys() for layer in layers):
        return None
    with suppress(UserError):
        return resolve(*layers, {"sums.kind": Given("subspace", "option --sums.kind")})
    return None


def with_model(name: str, *layers: Mapping[str, Given]) -> list[Mapping[str, Given]]:
    """Return the layers above one that names a model, in the place of auto and of what it replaced."""
    auto = max((place for place, layer in enumerate(layers) if "model" in layer), default=-1)
    upper: list[Mapping[str, Given]] = []
    for place, layer in enumerate(layers):
        replaced = {path for path in layer if path == "model" or (place < auto and seam_of(path) == "model")}
        upper.append({path: value for path, value in layer.items() if path not in replaced})
    return [{"model": Given(name, "option --model")}, *upper]


def fields_of_parts(extra: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options that give a field of a part of its own, `--model.width 64`, by path, and all the others."""
    values: dict[str, str] = {}
    others: list[str] = []
    tokens = iter(extra)
    for token in tokens:
        name, equals, value = token.partition("=")
        path = name.removeprefix("--").replace("-", "_")
        if not (name.startswith("--") and seam_of(path)):
            others.append(token)
            continue
        if not equals and (value := next(tokens, "")) == "":
            raise UserError(f"option {name}: a value must follow, found none")
        values[path] = value
    return values, others


def seam_of(path: str) -> str:
    """Return the field whose part a path is a field of, as `model` for `model.width`; "" if it is of none.

    Metrics are several, and carry their one field themselves: `NAME@K`.
    """
    seams = SEAMS.keys() - SEVERAL
    return next((seam for seam in seams if path.startswith(f"{seam}.") and path not in FIELDS), "")


def resumed(out: Path, quiet: bool, compare: bool | None) -> Command:
    """Return the command that goes on with the run in a folder; raises UserError if there is nothing to go on with.

    `compare` replaces what was asked for then, unless it is None. A run that is complete can be given baselines.
    """
    if resumable(out):
        path = out / CHECKPOINTS / COMMAND
        about = named_values(path, "option --resume", "; if it cannot be restored, remove the folder and begin again")
        every, wanted = about.get("every"), about.get("compare")
        if type(every) is not int or every < 0 or type(wanted) is not bool:
            raise UserError(
                f"option --resume: {path} must have a whole number `every` from 0 and a truth value `compare`, "
                f"found {every!r} and {wanted!r}"
            )
        return Command(experiment_in(about, path), out, quiet, wanted if compare is None else compare, every, True)
    path = out / "experiment.json"
    if not path.exists():
        raise UserError(f"option --resume: must be the folder of a run, found {str(out)!r}")
    about = named_values(path, "option --resume")
    if not compare:
        early = "; a run that promises privacy and was ended has forgotten its secrets" * (
            about.get("stopped") == "interrupted" and bool(about.get("privacy"))
        )
        raise UserError(
            f"option --resume: must be a run that has not come to its end, found {str(out)!r} complete{early} "
            "(baselines that it lacks are added by --compare)"
        )
    return Command(experiment_in(about, path), out, quiet, True, 0, True, True)


def experiment_in(about: Mapping[str, Any], path: Path) -> Experiment:
    """Return the experiment of what a file of a run holds; raises UserError."""
    if not isinstance(about.get("experiment"), dict):
        raise UserError(f"option --resume: {path} must have an experiment, found {about.get('experiment')!r:.80}")
    try:
        return build(about["experiment"])
    except UserError as error:
        raise UserError(f"option --resume: {path}: {error}") from None


def overrides(run_config: Mapping[str, bool | float | int | str]) -> Experiment:
    """Return the experiment of Flower's flat run_config: field names with "-" or "_", dotted for nested fields.

    A key `experiment` that is not empty holds a whole experiment as JSON, and then it alone counts. Raises UserError.
    """
    values = dict(run_config)
    whole = str(values.pop("experiment", ""))
    if not whole:
        usual = flatten(Experiment().model_dump())  # which Flower is told of all that may be given
        layer = fields(values, "run-config").items()
        given = {path: g for path, g in layer if path == "model" or shown(g.value) != shown(usual.get(path))}
        return decide(given).experiment
    try:
        content = json.loads(whole)
    except ValueError as error:
        raise UserError(f"run-config experiment: must be JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"run-config experiment: must hold named fields, found {type(content).__name__}")
    return build(content)


def arm(argv: Sequence[str]) -> Experiment:
    """Return an experiment of a study, some of whose options cannot act in it; see `check_flags`."""
    return parse(argv, strict=False).experiment


def check_flags(argv: Sequence[str], experiments: Iterable[Experiment]) -> None:
    """Raise UserError for an option among a study's that can act in none of its experiments."""
    given = vars(parser().parse_known_args(argv)[0])
    if given.pop("estimate", False):
        raise UserError("option --estimate: acts only with a single run, found a study")
    check_given({path: Given(value, f"option {flag(path)}") for path, value in given.items()}, experiments)


def check_given(given: Mapping[str, Given], experiments: Iterable[Experiment]) -> None:
    """Raise UserError for a value that can act in none of the experiments it is given to."""
    arms, initial = list(experiments), flatten(Experiment().model_dump())
    for path, (value, where) in given.items():
        silent = path in NEEDS and not any(acts(e, path) for e in arms) and shown(value) != shown(initial[path])
        asked = arms
        if path in VALUES:  # an experiment in which it cannot act has another
            given_value = getattr(build({path: value}), path)
            asked = [e.model_copy(update={path: given_value}) for e in arms]
            silent = silent or not any(VALUES[path].acts(e) for e in asked)
        if silent:
            raise UserError(f"{where}: acts only with {needs(asked[0], path)}, found {value}")


def resolve(*layers: Mapping[str, Given], strict: bool = True) -> Experiment:
    """Return the experiment of the layers; a later one wins, and a layer's method lies just below its other fields.

    Under a promise of privacy its own defaults lie below them all.
    """
    values = flatten(Experiment().model_dump())
    for layer in layers:
        if "method" in layer:
            method = METHODS[choose(layer["method"].where, str(layer["method"].value), METHODS)]
            # The fields that it leaves at their defaults count too: nothing of the method that it replaces may remain.
            values |= flatten(method.model_dump())
        for seam in SEAMS.keys() & layer.keys():  # another part: the fields of the one before are not its own
            values = {path: value for path, value in values.items() if seam_of(path) != seam}
        values |= {path: convert(path, given) for path, given in layer.items()}
    values = assembled(values)
    where = {path: given.where for layer in layers for path, given in layer.items()}
    values |= defaults(values, where, schedule_of(nest(values)))
    try:
        experiment = build(nest(values))
        if not strict:
            return acting(experiment, usual(experiment))
        refuse(experiment, usual(experiment))
        return experiment
    except UserError as error:
        raise UserError(located(str(error), where)) from None


def assembled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the fields of parts where they belong: in the part's text, or in a field of ours.

    Raises UserError for a field that a part of ours does not have.
    """
    result = {path: value for path, value in values.items() if not seam_of(path)}
    for seam in {seam_of(path) for path in values} - {""}:
        with named(f"option {flag(seam)}"):
            result[seam] = with_paths(seam, str(result[seam]))
    for path, value in values.items():
        seam = seam_of(path)
        if not seam:
            continue
        name = path.removeprefix(f"{seam}.")
        for client, text in per_client(str(result[seam])).items():
            parts = parts_of(text)
            if not any(part.own for part in parts) and per_client(str(value)).keys() & {client, "*"}:
                use = parts[0].use
                aliases = ALIASES.get(seam, {}).get(use, {})
                if not aliases:
                    raise UserError(f"option {flag(path)}: {use} has no fields of its own, found {value}")
                result[aliases[choose(path.rpartition(".")[0] + f": field of {use}", name, aliases)]] = value
        result[seam] = with_fields(str(result[seam]), {name: value})
    return result


def convert(path: str, given: Given) -> Any:
    """Return a value as `build` takes it: `none` is None where that is allowed, and a path is made absolute.

    A client may run in a process with another working directory.
    """
    value = given.value
    if path not in FIELDS:
        return value
    if value == "none" and type(None) in get_args(FIELDS[path].annotation):
        return None
    check_number(path, given)
    if path == "data_dir" and value is not None and str(value):
        return absolute(value)
    if path in DESCRIBING and value:
        with named(given.where):
            return absolute_each(str(value))
    if Path in kinds_of(FIELDS[path].annotation) and isinstance(value, str | Path):
        if not str(value):
            raise UserError(f"{given.where}: must name a file or a folder, found ''")
        return Path(value).expanduser().absolute()
    if path == "coupling.maps" and isinstance(value, str) and value not in RULES:
        return str(Path(value).absolute())
    if path == "sums.basis" and isinstance(value, str) and value not in ("", *PUBLIC):
        return str(Path(value).expanduser().absolute())
    return value


def check_number(path: str, given: Given) -> None:
    """Raise UserError for a whole number that is not written as one, and a finite one that overflows: both are slips.

    Pydantic would take 2.0 and true for whole numbers, and 1e400 for infinity.
    """
    kinds, value = kinds_of(FIELDS[path].annotation), given.value
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    for part in parts:
        text = str(part).strip()
        number = re.fullmatch(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
        if int in kinds and not {float, str} & kinds and (isinstance(part, bool | float) or (number and "." in text)):
            raise UserError(f"{given.where}: must be a whole number, found {str(part)[:80]!r}")
        if float in kinds and number and math.isinf(float(text)):
            raise UserError(f"{given.where}: must be a number that a computer can hold, found {text[:80]!r}")


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types of an annotation: those of its parts, if it has any."""
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    return set().union(*map(kinds_of, parts)) if parts else {annotation}


def located(message: str, where: Mapping[str, str]) -> str:
    """Return an error of `build` with the place that the field came from instead of the field's name."""
    name, colon, rest = message.partition(":")
    path = name
    while path not in where and "." in path:
        path = path.rpartition(".")[0]
    return f"{where[path]}{colon}{rest}" if path in where else message


def read_config(file: str) -> tuple[dict[str, Given], list[Any]]:
    """Return the fields of a file, or of a record's experiment, and its parts' origins; raises UserError."""
    content: Any = named_values(regular(Path(file), "option --config"), "option --config")
    recorded = content.get("components") if "experiment" in content else None
    content = content.get("experiment", content)
    if not isinstance(content, dict):
        raise UserError(f"option --config: {file} must hold named fields, found {type(content).__name__}")
    return fields(content, file), recorded if isinstance(recorded, list) else []


def goes_on(run: str) -> tuple[dict[str, Given], list[Any]]:
    """Return the fields of the experiment that goes on from a run, and its parts' origins; raises UserError."""
    home, where = Path(run).expanduser().absolute(), "option --from"
    with named(where):
        content = experiment_of(home).model_dump(mode="json") | {"start": str(home), "retune": False}
    return fields(content, where), read_config(str(home / "experiment.json"))[1]


def fields(content: Mapping[str, Any], source: str) -> dict[str, Given]:
    """Return the content by dotted path with "_" for "-"; raises UserError for a name that is no field."""
    values: dict[str, Given] = {}
    for name, value in flatten(content).items():
        path = name.replace("-", "_")
        path = path.removesuffix(".use") if path.removesuffix(".use") in SEAMS else path
        if path not in FIELDS and not seam_of(path):
            raise UserError(f"{source}: {name!r} is no field of an experiment{nearest(path, FIELDS)}")
        values[path] = Given(value, f"{source}: {name}")
    return values


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the hint for a wrong name: the nearest valid one, if any is near."""
    by_stem = {word.lstrip("-"): word for word in valid}
    leaf = [word for word in by_stem if word.rpartition(".")[2] == name.lstrip("-")]  # --epsilon for --privacy.epsilon
    near = leaf if len(leaf) == 1 else difflib.get_close_matches(name.lstrip("-"), by_stem, n=1)
    return f"; did you mean {by_stem[near[0]]}?" if near else "; see --help"


def needed(name: str) -> str:
    """Return what makes the option that a wrong one is nearest to act, where it would not act by itself."""
    near = next((path for path in NEEDS if nearest(name, OPTIONS) == f"; did you mean {flag(path)}?"), "")
    return f" It acts only with {NEEDS[near].needs}" if near and not acts(Experiment(), near) else ""
