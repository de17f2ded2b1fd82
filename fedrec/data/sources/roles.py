"""Which column has which role: as `--columns` says it, by platform, or by what columns are usually called."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedrec.data.sources.dialect import plain
from fedrec.errors import UserError, choose

ALIASES = {"timestamp": "time", "categories": "category"}
ROLES = (
    *("user", "item", "rating", "time", "platform", "title", "category", "price", "brand", "label"),
    *("event", "weight", "description"),
)
RESERVED = ("user", "item", "platform", "time", "rating", "positive", "category", "price", "brand", "behaviour")
# What columns of a role are called, without case and signs.
USUAL: dict[str, str] = {
    "user": "user userid uid customer customerid cust custid member memberid visitor visitorid reviewer reviewerid "
    "account accountid buyer buyerid profileid kunde kundeid kundennr kundennummer benutzer nutzer nutzerid usuario "
    "utilisateur client clientid",
    "item": "item itemid iid product productid prodid movie movieid film filmid asin parentasin sku article articleid "
    "artikel artikelid artikelnr artikelnummer produkt produktid book bookid isbn song songid track trackid artist "
    "artistid business businessid news newsid video videoid goods goodsid game gameid",
    "rating": "rating ratings stars score overall bewertung sterne",
    "time": "time timestamp ts date datetime createdat eventtime unixreviewtime reviewtime timems unixtime zeit datum "
    "zeitpunkt zeitstempel",
    "event": "event eventtype action actiontype behavior behaviour behaviortype behaviourtype ereignis aktion",
    "platform": "platform domain marketplace plattform",
    "title": "title titel itemname productname producttitle movietitle",
    "category": "category categories genre genres kategorie maincategory",
    "brand": "brand marke manufacturer",
    "price": "price preis",
}
BY_NAME = {name: role for role, names in USUAL.items() for name in names.split()}
NEEDED = ("user", "item")


@dataclass(frozen=True)
class Asked:
    """What is asked for of one file: columns by role, columns of labels, and which of both the platform itself named.

    `complete`: what is not asked for is not wanted.
    """

    roles: Mapping[str, str]
    labels: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    complete: bool = False

    @property
    def columns(self) -> list[str]:
        """All columns that are asked for, each once."""
        return list(dict.fromkeys([*self.roles.values(), *self.labels]))


def asked(columns: str, platform: str, valid: Sequence[str] = ROLES, needed: Sequence[str] = NEEDED) -> Asked:
    """Return what `--columns` asks for of a platform: the common part, and what `PLATFORM:role=column,...` changes.

    A text that has a column for every role that is needed is complete. Without `valid` a role may have any name. Raises
    UserError.
    """
    common = own = ""
    for part in columns.split(";"):
        name, colon, rest = part.partition(":")
        if not colon or "=" in name:
            common = f"{common},{part}"
        elif name.strip() == platform:
            own = f"{own},{rest}"
    roles, labels = parse(common, valid)
    changed, others = parse(own, valid)
    both = {**roles, **changed}
    return Asked(both, others or labels, frozenset([*changed.values(), *others]), all(role in both for role in needed))


def named(columns: str) -> set[str]:
    """Return the platforms that a text of columns names."""
    heads = [part.partition(":") for part in columns.split(";")]
    return {name.strip() for name, colon, _ in heads if colon and "=" not in name}


def parse(columns: str, valid: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the column of every role, and the label columns in the order given; raises UserError."""
    roles: dict[str, str] = {}
    labels: list[str] = []
    for part in filter(None, (part.strip() for part in columns.split(","))):
        role, equals, column = (text.strip() for text in part.partition("="))
        if not (equals and column and role):
            raise UserError(f"columns: must be role=column, found {part!r}")
        role = choose("columns", role, [*valid, *ALIASES]) if valid else role
        role = ALIASES.get(role, role)
        if role in roles or (role == "label" and column in labels):
            raise UserError(f"columns: each role must be given once, found {part!r} again")
        if role != "label":
            roles[role] = column
        elif column in RESERVED:
            raise UserError(f"columns: a label must not be named {', '.join(RESERVED)}, found {column!r}")
        else:
            labels.append(column)
    return roles, tuple(labels)


def resolve(ask: Asked, columns: Sequence[str], name: str, others: bool, text: str) -> tuple[Asked, str]:
    """Return what of a file's `columns` has which role, and in words what was guessed.

    Guessed is what is lacking where `ask` is not complete, if one column is called so; users and items, always. With
    `others`, files of other platforms, a column that the platform did not name itself may be missing here. Raises
    UserError for a column that is asked for and missing, and for several that may be meant; `text` is what was asked.
    """
    roles = {}
    for role, column in ask.roles.items():
        if column in columns or not others or column in ask.own:
            roles[role] = choose(f"column of {name}", column, columns)
    labels = [label for label in ask.labels if label in columns or not others or label in ask.own]
    for label in labels:
        choose(f"column of {name}", label, columns)
    free = [column for column in columns if column not in {*roles.values(), *labels}]
    guessed = {}
    for role in USUAL:
        if role in roles or (ask.complete and role not in NEEDED):
            continue
        fits = [column for column in free if BY_NAME.get(plain(column)) == role]
        if len(fits) > 1:
            raise UserError(
                f"columns: must say which column of {name} is {role}, as in {role}={fits[0]}, found {', '.join(fits)}"
            )
        if fits:
            guessed[role] = fits[0]
    both = {**roles, **guessed}
    for role in NEEDED:
        if role not in both:
            raise UserError(f"columns: must map {role} (as in user=user,item=item), found {text!r}{have(columns)}")
    for column in both.values():
        check_once(columns, column, name)
    for column in labels:
        check_once(columns, column, name)
    said = ", ".join(f"{role} is {column}" for role, column in guessed.items() if plain(column) != role)
    return Asked(both, tuple(labels), ask.own, True), said


def have(columns: Collection[str]) -> str:
    """Return the end of an error: the columns that there are."""
    return f" and the columns {', '.join(columns)}"[:300]


def check_once(columns: Sequence[str], column: str, name: str) -> None:
    """Raise UserError if a file has several columns of a name that is wanted."""
    if columns.count(column) > 1:
        raise UserError(f"column {column!r} of {name}: must be there once, found {columns.count(column)} of them")
