"""How the text of a table is written - encoding, delimiter, quotes, header, decimal sign - as told, or guessed."""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrec.errors import UserError, choose
from fedrec.files import PEEKED

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
CANDIDATES = (",", ";", "\t", "|", "::", ", ", "; ")
DECIMALS = {"point": ".", "comma": ","}
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
STAND_IN = "\x1f"  # for a delimiter of several bytes, in a file that has no such character
ROWS = 1000  # of a sample, by which columns are told
ESCAPED = '"\\'  # quotes in quotes behind a backslash
SEPARATES = re.compile("sep=.", re.IGNORECASE)
SIGNS = re.compile(r"[,;\t|]|::")
Fit = tuple[bool, float, bool, int]
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?")
BLANK = re.compile(r"(?<=\d)[ '’\u00a0\u202f](?=\d{3}(\D|$))")  # between thousands
ONLY_COMMA = re.compile(r"[+-]?(\d+,(\d{1,2}|\d{4,})|(0|\d{4,}),\d{3}|\d{1,3}(\.\d{3})+,\d*|\d{1,3}(\.\d{3}){2,})")
ONLY_POINT = re.compile(r"[+-]?(\d*\.(\d{0,2}|\d{4,})|(0|\d{4,})\.\d{3}|\d{1,3}(,\d{3})+\.\d*|\d{1,3}(,\d{3}){2,})")


@dataclass(frozen=True)
class Dialect:
    """How the text of a table is written.

    `quote` is "" where no character quotes; behind it may stand the one that escapes it. `above` lines are no rows.
    """

    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    decimal: str = "."
    grouped: bool = False  # whether the digits of thousands are parted by the other sign
    above: int = 0
    certain: bool = True  # whether the encoding was told, or something in the file told it


@dataclass(frozen=True)
class Told:
    """What of a dialect the user says, in the words of the options; "" what is to be guessed."""

    encoding: str = ""
    delimiter: str = ""
    quote: str = ""
    header: str = ""
    decimal: str = ""


def choose_encoding(sample: bytes, whole: bool, told: str, name: str) -> tuple[str, bool]:
    """Return the encoding of a text that begins with `sample`, and whether anything told it; raises UserError."""
    if told:
        try:
            "".encode(told)
            return told, True
        except (LookupError, ValueError):
            raise UserError(f"reading.encoding: must be an encoding, as latin-1 or utf-16, found {told!r}") from None
    for mark, encoding in MARKS:
        if sample.startswith(mark):
            return encoding, True
    if sample.startswith(b"PK"):
        raise UserError(f"{name}: must be text or Parquet, found a spreadsheet or an archive; save it as CSV")
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) / 8:
        if min(even, odd) * 8 < max(even, odd):
            return ("utf-16-le" if odd > even else "utf-16-be"), True
        raise UserError(f"{name}: must be text, or a file of a form that is known, found NUL bytes")
    if sample.isascii():
        return "utf-8", False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, whole)
        return "utf-8", True
    except UnicodeDecodeError as error:
        return other_encoding(sample, f"{name}, line {sample[: error.start].count(10) + 1}"), True


def other_encoding(sample: bytes, where: str) -> str:
    """Return the encoding of a text of one byte a character; raises UserError, naming `where`, for what is no text."""
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: must be UTF-8 or latin-1, found {sample[error.start : error.end]!r}") from None
    if odd := re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text):
        raise UserError(f"{where}: must be text, or a file of a form that is known, found {odd[0].encode()!r}")
    return "cp1252"


def sample_text(sample: bytes, whole: bool, encoding: str, name: str) -> str:
    """Return the whole lines of a sample; raises UserError where the first does not end in it."""
    known = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    text = codecs.getincrementaldecoder(known)(errors="replace").decode(sample)
    if whole:
        return text
    end = max(text.rfind("\n"), text.rfind("\r"))
    if end < 0:
        raise UserError(f"{name}, line 1: must be a header of less than {PEEKED} bytes, found a longer line")
    return text[: end + 1]


def choose_dialect(
    text: str, whole: bool, told: Told, wanted: Collection[str], usual: Collection[str], name: str
) -> Dialect:
    """Return how the lines of `text` are written; the encoding and the decimal sign are left as they are.

    `whole`: there is no more of it. `wanted` are the columns that are asked for, `usual` what columns are often called.
    Raises UserError where nothing parts columns, or several characters do so as well.
    """
    if told.quote and told.quote != "none" and not (len(told.quote) == 1 and told.quote.isascii()):
        raise UserError(f"reading.quote: must be one character, or none, found {told.quote!r}")
    quotes = [told.quote.replace("none", "")] if told.quote else ['"', ESCAPED, ""]
    delimiters = [delimiter_of(told.delimiter)] if told.delimiter else [*CANDIDATES]
    pairs = [(sign, quote) for sign in delimiters for quote in quotes]
    every = {pair: one for pair in pairs if (one := fit(text, whole, *pair, wanted)) is not None}
    fits = best_quotes(every)
    if not fits and not told.delimiter and (blank := fit(text, whole, " ", quotes[0], wanted)) is not None:
        fits = {(" ", quotes[0]): blank}
    if not fits:
        raise UserError(
            f"{name}, line 1: must be columns parted by one of {', '.join(DELIMITERS)} or ::, found "
            f"{text.splitlines()[0][:60]!r}; name what parts them by --reading.delimiter"
        )
    best = max(fits.values())
    chosen = [pair for pair, value in fits.items() if value == best]
    chosen = [pair for pair in chosen if (f"{pair[0]} ", pair[1]) not in chosen]  # a blank behind each is no value's
    if len({delimiter for delimiter, _ in chosen}) > 1:
        several = " and ".join(repr(delimiter) for delimiter in dict.fromkeys(delimiter for delimiter, _ in chosen))
        raise UserError(f"{name}: what parts columns must be told by --reading.delimiter, found {several} as likely")
    delimiter, quote = chosen[0]
    rows = rows_in(text, delimiter, quote)
    if not told.quote and '"' not in text and all(re.fullmatch("'.*'", field, re.DOTALL) for field in rows[0]):
        quote, rows = "'", rows_in(text, delimiter, "'")
    return Dialect(delimiter=delimiter, quote=quote, header=has_header(rows, told.header, wanted, usual))


def best_quotes(fits: Mapping[tuple[str, str], Fit]) -> dict[tuple[str, str], Fit]:
    """Return how well each delimiter fits with the quote that suits it best: of those that do as well, the first."""
    best: dict[str, tuple[str, str]] = {}
    for pair in fits:
        before = best.setdefault(pair[0], pair)
        if fits[pair][:-1] > fits[before][:-1]:
            best[pair[0]] = pair
    return {pair: fits[pair] for pair in best.values()}


def lines_above(text: str) -> int:
    """Return the lines of a text before its table: Excel's `sep=;`, and remarks that begin with # and have no columns.

    A first line that begins with # and has as many columns as the next names them.
    """
    lines = text.splitlines(keepends=True)
    count = int(bool(lines) and bool(SEPARATES.fullmatch(lines[0].strip())))
    while count + 1 < len(lines) and lines[count].startswith("#"):
        table = next((line for line in lines[count:] if not line.startswith("#")), "")
        if len(SIGNS.findall(lines[count])) >= len(SIGNS.findall(table)):
            break
        count += 1
    return count


def delimiter_of(word: str) -> str:
    """Return the characters that a word stands for; raises UserError for what can part nothing."""
    delimiter = DELIMITERS.get(word, word).replace("\\t", "\t")
    if set(delimiter) & set("\r\n\"'"):
        raise UserError(f"reading.delimiter: must be one of {', '.join(DELIMITERS)}, or characters, found {word!r}")
    return delimiter


def fit(text: str, whole: bool, delimiter: str, quote: str, wanted: Collection[str]) -> Fit | None:
    """Return how well a delimiter and a quote part a text; None if they do not part its first row.

    That is whether wanted columns are named, the share of rows that are as wide as the first, whether all quotes are
    closed, and the width.
    """
    rows, closed = parsed(text, delimiter, quote)
    if not rows or len(rows[0]) < 2:
        return None
    named = not all(column.isdecimal() for column in wanted) and {*wanted} <= {field.strip() for field in rows[0]}
    share = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
    return named, round(share, 1), closed or not whole, len(rows[0])


def reader_of(text: str | io.TextIOBase, delimiter: str, quote: str, strict: bool = False) -> Any:
    """Return the reader of a text's rows, in which one character stands for a delimiter of several bytes."""
    if len(delimiter.encode()) > 1:
        text, delimiter = text.replace(delimiter, STAND_IN) if isinstance(text, str) else text, STAND_IN
    file = io.StringIO(text, newline="") if isinstance(text, str) else text
    if not quote:
        return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    escape = quote[1:] or None
    return csv.reader(file, delimiter=delimiter, quotechar=quote[0], escapechar=escape, strict=strict)


def rows_in(text: str, delimiter: str, quote: str) -> list[list[str]]:
    """Return the first rows of a text that are not empty."""
    return parsed(text, delimiter, quote, strict=False)[0]


def parsed(text: str, delimiter: str, quote: str, strict: bool = True) -> tuple[list[list[str]], bool]:
    """Return the first rows of a text that are not empty, as far as they can be read, and whether all can."""
    rows: list[list[str]] = []
    try:
        for row in reader_of(text, delimiter, quote, strict):
            if row:
                rows.append([field.replace(STAND_IN, delimiter) for field in row])
            if len(rows) > ROWS:
                break
    except csv.Error:
        return rows, False
    return rows, True


def lines_of_header(text: str, dialect: Dialect) -> int:
    """Return the lines of a text that are above the first row of values, those that are empty among them."""
    if not dialect.header:
        return 0
    reader = reader_of(text, dialect.delimiter, dialect.quote)
    return next((reader.line_num for row in reader if row), 0)


def has_header(rows: Sequence[Sequence[str]], told: str, wanted: Collection[str], usual: Collection[str]) -> bool:
    """Return whether the first row names the columns: as told, by the names that are wanted or usual, or by numbers."""
    if told:
        return choose("reading.header", told, ["yes", "no"]) == "yes"
    first = {field.strip() for field in rows[0]}
    if wanted and all(column.isdecimal() for column in wanted):
        return [field.strip() for field in rows[0]] == [str(at + 1) for at in range(len(rows[0]))]
    if {*wanted} & first:
        return True
    if {plain(field) for field in first} & {*usual}:
        return True
    return not any(NUMBER.fullmatch(field) for field in first)


def plain(name: str) -> str:
    """Return a column's name without case and signs: `User_ID` is `userid`."""
    return re.sub(r"[\W_]", "", name).lower()


def choose_decimal(values: Iterable[str], told: str, where: str) -> tuple[str, bool]:
    """Return the decimal sign of numbers as text, and whether thousands are grouped by the other; raises UserError.

    Without any that only one of both signs can be read in, it is the point, and nothing is grouped; but 1,234 is not
    read in silence.
    """
    if told:
        return DECIMALS[choose("reading.decimal", told, DECIMALS)], True
    distinct = {*values}
    joined = {BLANK.sub("", value) for value in distinct}
    texts, blanks = {value for value in joined if NUMBER.fullmatch(value)}, not joined <= distinct
    comma = any(ONLY_COMMA.fullmatch(value) for value in texts)
    point = any(ONLY_POINT.fullmatch(value) for value in texts)
    if comma and not point:
        return ",", blanks or any("." in value for value in texts)
    if point:
        return ".", blanks or (not comma and any("," in value for value in texts))
    either = next((value for value in sorted(texts) if "," in value), None)
    if either is not None:
        raise UserError(
            f"{where}: whether {either} is above a thousand must be told by --reading.decimal point or comma"
        )
    return ".", blanks


def described(dialect: Dialect, told: Told) -> list[str]:
    """Return what was guessed and is not usual, in words."""
    words = {sign: word for word, sign in DELIMITERS.items()} | {", ": "comma and blank", "; ": "semicolon and blank"}
    usual = Dialect()
    parts = []
    if dialect.delimiter != usual.delimiter and not told.delimiter:
        parts.append(f"columns parted by {words.get(dialect.delimiter, dialect.delimiter)}")
    if dialect.encoding != usual.encoding and not told.encoding:
        parts.append("latin-1 (cp1252)" if dialect.encoding == "cp1252" else dialect.encoding)
    if dialect.quote != usual.quote and not told.quote:
        words_of = {ESCAPED: "quotes escaped by a backslash", "": "no character quotes"}
        parts.append(words_of.get(dialect.quote, f"quoted by {dialect.quote}"))
    if not dialect.header and not told.header:
        parts.append("no header: columns are 1, 2 ...")
    if dialect.decimal != usual.decimal and not told.decimal:
        parts.append("decimal comma")
    if dialect.grouped and not told.decimal:
        parts.append("thousands grouped")
    return parts
