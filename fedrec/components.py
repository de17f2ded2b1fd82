"""Components: a part of an experiment by name or by path, with fields of its own, and the value that it stands for.

A part is written `NAME`, `MODULE:CLASS`, or with fields `MODULE:CLASS{"width": 64}`; as JSON that is {"use":
"MODULE:CLASS", "width": 64}. The text is what an experiment holds, what is recorded, and what any process rebuilds.
"""

import dataclasses
import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from fedrec.errors import UserError, choose, nearest

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class Seam(NamedTuple):
    """A place in an experiment that a part of the user's own can take: what it is called, and what it must have.

    `ours` is where the names of the package's own parts stand; "" where they are not all known beforehand.
    """

    name: str
    methods: tuple[str, ...]
    ours: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the package's own parts."""
        module, _, name = self.ours.partition(":")
        table = getattr(importlib.import_module(module), name)
        return get_args(table) or tuple(table)


# By the field that holds the part; an attack is an option of the privacy study, a tie a part of coupling.ties.
SEAMS = {
    "dataset": Seam("source", ("load",), "fedrec.data:DATASETS"),
    "task": Seam("task", ("target", "loss")),
    "model": Seam("recommender", ("network",), "fedrec.models:NAMES"),
    "metrics": Seam("metric", ("value",)),
    "transform": Seam("transform", ("init", "update"), "fedrec.components:NONE"),
    "weighting.kind": Seam("weighting", ("init", "weights"), "fedrec.training.weighting:KINDS"),
    "objective": Seam("term", ("value",), "fedrec.components:NONE"),
    "descent.aggregator": Seam("aggregator", ("combine",), "fedrec.training.conflict:Method"),
    "coupling.kind": Seam("constraint", ("project",), "fedrec.federation.coordination.coupling:KINDS"),
    "drift.personal": Seam("companion", ("share",), "fedrec.federation.coordination.drift:PERSONAL"),
    "codec.kind": Seam("codec", ("encode", "decode"), "fedrec.federation.codecs:KINDS"),
    "tracker": Seam("tracker", ("round",), "fedrec.components:NONE"),
    "attack": Seam("attack", ("scores",)),
    "tie": Seam("constraint", ("value",)),
}
SEVERAL = frozenset({"metrics", "attack", "tie"})  # of which a text names several, each with its own fields
NONE = ("none",)
GROUP = "fedrec.components"  # of the entry points by which installed distributions give their parts short names
# Fields of the package's own parts that are fields of the experiment: what `--model.width 64` stands for.
WIDE = {"width": "dim", "std": "init_std"}
LAYERED = {**WIDE, "hidden": "hidden"}
SUMS = {
    **{name: f"quadratic.{name}" for name in ("length", "ridge", "popular", "rare", "repeats")},
    "sums": "sums.kind",
    **{name: f"sums.{name}" for name in ("k", "passes", "damping", "basis")},
}
ORDERED = {**SUMS, **{name: f"quadratic.{name}" for name in ("past", "future", "recent")}}
# Public data sets that are read as a table is, `fedrec.data.LAYOUTS`.
PUBLIC = (
    *("ml-1m", "ml-latest-small", "ml-20m", "ml-25m", "ml-32m", "amazon-2023"),
    *("lastfm", "yelp", "taobao", "mind", "kuairec"),
)
ALIASES: dict[str, dict[str, dict[str, str]]] = {
    "dataset": {
        "synthetic": {
            name: f"market.{name}" for name in ("users", "items", "impressions", "similarity", "conflicting")
        },
        "table": {"path": "data_dir", "columns": "columns"},
        "ml-100k": {"path": "data_dir"},
        **{name: {"path": "data_dir", "columns": "columns"} for name in PUBLIC},
    },
    "model": {
        **dict.fromkeys(("mf", "item"), WIDE),
        **dict.fromkeys(("mlp", "shared-bottom", "cross-stitch", "mtan", "esmm", "star"), LAYERED),
        **{name: {**LAYERED, "experts": "experts"} for name in ("mmoe", "ple", "task-embedding")},
        "ease": SUMS,
        "ials": {name: f"ials.{name}" for name in ("d", "unliked", "ridge", "nu", "spread")},
        "slit": ORDERED,
        "slist": {**ORDERED, "whole": "quadratic.whole"},
        "aitm": {**LAYERED, "calibration": "calibration"},
    },
    "descent.aggregator": {"fedmgda": {"eps": "descent.eps"}, "cagrad": {"c": "descent.c"}},
    "coupling.kind": {
        "clusters": {"groups": "coupling.groups"},
        "mean-regularised": {"strength": "coupling.strength"},
        "graph": {"strength": "coupling.strength", "edges": "coupling.edges"},
        "mixture": {"mixing": "coupling.mixing"},
        "linear": {"maps": "coupling.maps", "width": "coupling.width"},
        "sum": {"total": "coupling.total"},
    },
    "codec.kind": {
        "quantised": {"bits": "codec.bits", "block": "codec.block"},
        "low-rank": {"rank": "codec.rank"},
        "count-sketch": {"fraction": "codec.fraction", "hashes": "codec.hashes"},
        **{kind: {"fraction": "codec.fraction"} for kind in ("top-k", "random-k", "projection")},
    },
}


class Part(NamedTuple):
    """What a text stands for: a name or a path, and the fields that are given."""

    use: str
    fields: dict[str, Any]

    @property
    def own(self) -> bool:
        """Whether it is given by path."""
        return ":" in self.use

    def __str__(self) -> str:
        return self.use + (json.dumps(self.fields, sort_keys=True) if self.fields else "")


def per_client(text: str) -> dict[str, str]:
    """Return `{client: value, "*": default}` of a text like `rank;shop=click,buy*2`; `rank` is the default here."""
    parts: dict[str, str] = {}
    for part in split_at(text):
        head, brace, fields = part.partition("{")
        client, equals, value = head.partition("=")
        key, value = (client, value) if equals else ("*", client)
        key, value = key.strip(), (value + brace + fields).strip()
        if not (key and value):
            raise UserError(f"{text!r}: must be VALUE or CLIENT=VALUE parts joined by ';', found an empty part")
        if key in parts:
            raise UserError(f"{text!r}: every client may be named once, found {key!r} twice")
        parts[key] = value
    return parts


def number(text: str) -> float:
    """Return the number that a text says, NaN where it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def split_at(text: str, mark: str = ";") -> Iterator[str]:
    """Yield the parts of a text between marks, but for those inside the fields of a part, which are JSON."""
    start = place = 0
    while place < len(text):
        if text[place] == "{":
            try:
                _, place = json.JSONDecoder().raw_decode(text, place)
            except ValueError:
                place += 1
            continue
        if text[place] == mark:
            yield text[start:place]
            start = place + 1
        place += 1
    yield text[start:]


def read(text: str) -> Part:
    """Return the part that a text stands for; raises UserError where its fields are no JSON object."""
    use, brace, rest = text.partition("{")
    try:
        fields = json.loads(brace + rest) if brace else {}
    except ValueError as error:
        raise UserError(f"{use}: its fields must be JSON ({error}), found {(brace + rest)[:80]!r}") from None
    return Part(use.strip(), fields)


def text_of(value: Any) -> Any:
    """Return the text of a part that is given as a text, a mapping {"use": ...}, a component, or its class.

    Several are joined by commas; anything else is returned as it is. Raises UserError for a component that no text
    stands for.
    """
    if isinstance(value, list | tuple):
        return ",".join(str(text_of(item)) for item in value)
    if isinstance(value, Mapping) and "use" in value:
        fields, part = {str(name): field for name, field in value.items() if name != "use"}, read(str(value["use"]))
        return str(part._replace(fields={**part.fields, **fields}))
    kind = value if isinstance(value, type) else type(value)
    if not (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)):
        return value
    if "<locals>" in kind.__qualname__ or "." in kind.__qualname__:
        raise UserError(
            f"{kind.__qualname__}: a component must be a class of a module, which other processes can import, found "
            f"one inside another name of {kind.__module__}; define it at the top of a module"
        )
    return str(Part(f"{kind.__module__}:{kind.__qualname__}", {} if isinstance(value, type) else fields_of(value)))


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a component that are not at their defaults, as JSON has them."""
    values = {name: getattr(value, name) for name in names_of(type(value))}
    usual = defaults_of(type(value))
    given = {name: field for name, field in values.items() if name not in usual or field != usual[name]}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given))
    except (TypeError, ValueError) as error:
        raise UserError(f"{type(value).__qualname__}: its fields must be values of JSON, found {error}") from None
    return plain


def fields_known(kind: type[Any]) -> list[tuple[str, str, str]]:
    """Return (name, type, default) of every field of a component's class, as they are shown."""
    usual, hints = defaults_of(kind), get_type_hints(kind)
    types = {name: getattr(hints[name], "__name__", str(hints[name])) for name in names_of(kind)}
    return [(name, shown_as, str(usual.get(name, "needed"))) for name, shown_as in types.items()]


def names_of(kind: type[Any]) -> list[str]:
    """Return the names of a component's fields."""
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else [*kind.model_fields]


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a component's fields; a field that must be given has none."""
    if not dataclasses.is_dataclass(kind):
        infos = kind.model_fields.items()
        return {name: info.get_default(call_default_factory=True) for name, info in infos if not info.is_required()}
    usual = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            usual[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            usual[field.name] = field.default_factory()
    return usual


def with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """Return a text, of one part or of some for each client, with fields beside those that it has.

    A field may be given for each client too: `64;shop=8`.
    """
    if not fields:
        return text
    parts, texts, chosen = per_client(text), {}, {name: {"*": v} for name, v in fields.items()}
    if len(parts) > 1:
        chosen |= {name: dict(per_client(v)) for name, v in fields.items() if v and isinstance(v, str)}
    for client, several in parts.items():
        given = {name: values[key] for name, values in chosen.items() for key in ("*", client) if key in values}
        pieces = []
        for form, *weight in (split_at(piece, "*") for piece in split_at(several, ",")):
            part = read(form)
            whole = str(part._replace(fields={**part.fields, **given})) if part.own else str(part)
            pieces.append("*".join([whole, *weight]))
        texts[client] = ",".join(pieces)
    return join_clients(texts)


def join_clients(values: Mapping[str, str]) -> str:
    """Return the text whose values by client, "*" for all others, `per_client` reads."""
    return ";".join(value if client == "*" else f"{client}={value}" for client, value in values.items())


def parts_of(text: str) -> list[Part]:
    """Return the parts that a text names, of all clients."""
    return [read(next(split_at(p, "*"))) for several in per_client(text).values() for p in split_at(several, ",")]


def as_json(text: str) -> Any:
    """Return a part as JSON has it: the text, or with fields {"use": ...}; several, or a weight, stay a text."""
    if "{" not in text or any(len(list(split_at(text, mark))) > 1 for mark in ";,*"):
        return text
    part = read(text)
    return {"use": part.use, **part.fields}


# A field that holds a part: its text, whatever it is given as, and in JSON what `as_json` says.
PartText = Annotated[str, BeforeValidator(text_of), PlainSerializer(as_json, when_used="json")]


def choose_part(field: str, text: str) -> str:
    """Return the text of a part that is by path, one of ours, or by the short name of an installed one, its path.

    Raises UserError with the nearest valid name. Nothing is imported, nor asked for while the name is one of ours.
    """
    part, ours = read(text), SEAMS[field].names
    if not part.own and part.use not in ours:
        names = installed()
        part = part._replace(use=names[choose("", part.use, [*ours, *names])])
    if part.own and not PATH.fullmatch(part.use):
        raise UserError(f"must be a name or MODULE:CLASS, found {part.use[:100]!r}")
    if part.fields and not part.own:
        raise UserError(f"{part.use} has no fields in the text, found {part.fields}")
    return str(part)


def installed() -> dict[str, str]:
    """Return the paths of the parts that installed distributions have, by their short names."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}


def with_paths(field: str, text: str) -> str:
    """Return a text, of one part or of one for each client, by `choose_part`; that of a field of any names as it is."""
    if not SEAMS[field].ours:
        return text
    return join_clients({client: choose_part(field, part) for client, part in per_client(text).items()})


def one_of(field: str) -> AfterValidator:
    """Return the validator of a field that holds one part."""
    return AfterValidator(partial(choose_part, field))


@lru_cache(maxsize=64)
def make(field: str, text: str) -> Any:
    """Return the component that a text given by path stands for, imported and with its fields checked.

    Nothing but a class of the right kind is ever called. Raises UserError.
    """
    part = read(text)
    kind = find(field, part.use)
    hints, usual = get_type_hints(kind), defaults_of(kind)
    names = names_of(kind)
    for name in part.fields:
        choose(f"{field}: field of {part.use}", name, names)
    values = {}
    for name, value in part.fields.items():
        if isinstance(value, str) and get_origin(hints[name]) is tuple:
            value = value.split(",") if value else ()
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            rule = error.errors()[0]["msg"].lower()
            raise UserError(f"{field}.{name}: {rule}, found {repr(value)[:80]}") from None
    lacking = [name for name in names if name not in values and name not in usual]
    if lacking:
        raise UserError(f"{field}.{lacking[0]}: must be given for {part.use}, found nothing")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: {part.use}: {error}") from None


def find(field: str, use: str) -> type[Any]:
    """Return the class that a path names, if it is a component that may stand in a field; raises UserError."""
    seam, (module_name, _, name) = SEAMS[field], use.partition(":")
    module = module_of(field, use, module_name)
    kind = getattr(module, name, None)
    if kind is None:
        raise UserError(f"{field}: {module_name} must have the class {name}, found none{nearest(name, vars(module))}")
    if not (isinstance(kind, type) and is_frozen(kind)):
        raise UserError(
            f"{field}: {use} must be a component, a frozen dataclass or a frozen pydantic model, found {kind!r:.80}"
        )
    for method in seam.methods:
        if not callable(getattr(kind, method, None)):
            raise UserError(f"{field}: {use} must have the method {method} of a {seam.name}, found none")
    return kind


def function_of(field: str, text: str, parameter: str) -> Callable[..., Any]:
    """Return a function of a module by its path, or the one method of a component; raises UserError.

    Nothing is called but a function that its own module defines, whose one parameter has the name that is asked for.
    """
    part, (method,) = read(text), SEAMS[field].methods
    module_name, _, name = part.use.partition(":")
    found = getattr(module_of(field, part.use, module_name), name, None)
    if not isinstance(found, FunctionType):
        return cast("Callable[..., Any]", getattr(make(field, text), method))
    if found.__module__ != module_name or [*inspect.signature(found).parameters] != [parameter] or part.fields:
        rule = f"must be a component, or a function of {parameter} alone that {module_name} defines"
        raise UserError(f"{field}: {part.use} {rule}, found {name}{inspect.signature(found)}")
    return found


def require(field: str, text: str) -> None:
    """Import the part of the user's own that a text names; raises UserError where it is none for the field."""
    function_of(field, text, "z") if field == "tie" else make(field, text)


def is_frozen(kind: type[Any]) -> bool:
    """Return whether a class is a frozen dataclass or a frozen pydantic model."""
    if dataclasses.is_dataclass(kind):
        return bool(vars(kind)["__dataclass_params__"].frozen) if "__dataclass_params__" in vars(kind) else False
    return issubclass(kind, BaseModel) and bool(kind.model_config.get("frozen"))


def module_of(field: str, use: str, name: str) -> ModuleType:
    """Return a module by name; raises UserError if it cannot be imported."""
    try:
        return sys.modules[name] if name == "__main__" else importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"{field}: {use} must be importable, found {type(error).__name__}: {error} "
            "(its module must lie in the folder of the command, or be installed)"
        ) from None
