"""Which column has which role: as `--columns` says it, by platform, or by what columns are usually called."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedrec.data.sources.dialect import plain
from fedrec.errors import UserError, choose

ALIASES = {"timestamp": "time", "categories": "category"}
ABOUT = ("title", "category", "price", "brand", "description")
ROLES = ("user", "item", "rating", "weight", "time", "platform", *ABOUT, "event", "label")
RESERVED = (
    *("user", "item", "platform", "time", "rating", "weight", "positive", "category", "price", "brand", "behaviour"),
)
# What columns of a role are called, without case and signs; names behind | count where no name before them is there.
USUAL: dict[str, str] = {
    "user": "userid uid customerid custid memberid visitorid reviewerid accountid buyerid profileid kundeid kundennr "
    "kundennummer nutzerid benutzerid clientid personid userhash userno usernr customerno customernumber customernr "
    "kdnr | user customer cust member visitor reviewer account buyer kunde kundin nutzer benutzer usuario utilisateur "
    "client person username | deviceid",
    "item": "itemid iid productid prodid movieid filmid asin parentasin sku articleid artikelid artikelnr "
    "artikelnummer produktid bookid isbn songid trackid artistid businessid newsid videoid goodsid gameid stockcode "
    "itemno itemnr itemnumber productno productcode | item product movie film article artikel produkt book song track "
    "artist business news video goods game",
    "rating": "rating stars score overall | ratings bewertung sterne bookrating movierating reviewrating reviewscore",
    "time": "timestamp ts unixtime unixreviewtime | time datetime eventtime createdat timems zeit zeitpunkt "
    "zeitstempel | date datum eventdate orderdate purchasedate reviewdate reviewtime orderedat invoicedate "
    "bestelldatum kaufdatum at",
    "event": "event eventtype | action actiontype behavior behaviour behaviortype behaviourtype ereignis aktion",
    "platform": "platform plattform | domain marketplace",
    "title": "title titel | itemname productname producttitle movietitle produktname",
    "category": "category categories kategorie kategorien | genre genres maincategory",
    "brand": "brand marke | manufacturer hersteller",
    "price": "price preis | unitprice",
}
TIERS = {role: [tier.split() for tier in names.split("|")] for role, names in USUAL.items()}
BY_NAME = {name: role for role, tiers in TIERS.items() for names in tiers for name in names}
SHOWN = 5  # columns that are not used and named
NEEDED = ("user", "item")
KNOWN = (*ROLES, *ALIASES, "key")
PART = re.compile(r"\s*([^=:,]+?)\s*[:=]\s*([^=,]+=.*)", re.DOTALL)  # of one platform


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
    for name, part in parts_of(columns):
        common += f",{part}" * (not name)
        own += f",{part}" * (name == platform != "")
    roles, labels = parse(common, valid)
    changed, others = parse(own, valid)
    both = {**roles, **changed}
    return Asked(both, others or labels, frozenset([*changed.values(), *others]), all(role in both for role in needed))


def named(columns: str) -> set[str]:
    """Return the platforms that a text of columns names."""
    return {name for name, _ in parts_of(columns) if name}


def weighted(columns: str) -> str:
    """Return the first column that a text of columns names for what rows weigh; "" without one."""
    pairs = (pair.partition("=") for _, part in parts_of(columns) for pair in part.split(","))
    return next((column.strip() for role, _, column in pairs if role.strip() == "weight"), "")


def parts_of(columns: str) -> list[tuple[str, str]]:
    """Return the parts of a text like `user=u;shop:user=c`, or `user=u;shop=user=c`, with their platforms or ""."""
    heads = [(part, PART.match(part)) for part in columns.split(";")]
    return [(found[1], found[2]) if found and found[1] not in KNOWN else ("", part) for part, found in heads]


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


def called(role: str, columns: Sequence[str]) -> list[str]:
    """Return the columns that are called like a role, by the best of its names that are there."""
    each = ([column for column in columns if plain(column) in tier] for tier in TIERS.get(role, ()))
    return next((some for some in each if some), [])


def resolve(
    ask: Asked, columns: Sequence[str], name: str, text: str, platform: str = "", others: bool = False
) -> tuple[Asked, str]:
    """Return what of a file's `columns` has which role, and in words what was guessed.

    Guessed is what is lacking where `ask` is not complete, if one column is called so, but for prices, which would make
    bad rows of what is free; users and items are guessed always. With
    `others`, files of other platforms, a column that the platform did not name itself may be missing here. `text` is
    what was asked. Raises UserError for a column that is asked for and missing, for several that may be meant, and for
    a column of platforms in a file of one `platform`.
    """
    if platform and "platform" in ask.roles:
        raise UserError(f"columns: platform must not be mapped where files are of one, found {ask.roles['platform']!r}")
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
        if role in roles or (ask.complete and role not in NEEDED) or role in ("price", *["platform"] * bool(platform)):
            continue
        fits = called(role, free)
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
    said = [f"{role} is {column}" for role, column in guessed.items() if plain(column) != role]
    if not ask.complete and (rest := [column for column in free if column not in guessed.values()]):
        more = f" and {len(rest) - SHOWN} more" * (len(rest) > SHOWN)
        said.append(f"{' '.join(rest[:SHOWN])}{more} not used")
    return Asked(both, tuple(labels), ask.own, True), ", ".join(said)


def have(columns: Collection[str]) -> str:
    """Return the end of an error: the columns that there are."""
    return f" and the columns {', '.join(columns)}"[:300]


def check_once(columns: Sequence[str], column: str, name: str) -> None:
    """Raise UserError if a file has several columns of a name that is wanted."""
    if columns.count(column) > 1:
        raise UserError(f"column {column!r} of {name}: must be there once, found {columns.count(column)} of them")
