"""Public data sets by name: their published layouts, archives, the cache and the download, and what is told without."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

from fedrec.components import ALIASES
from fedrec.data import DATASETS, LAYOUTS, Dataset, Filters, Market, Reading, load
from fedrec.errors import UserError
from tests.data.published import PUBLISHED

TEXTS = {"ml-1m": "latin-1", "ml-100k": "latin-1"}


def write(folder: Path, name: str, **changed: str) -> Path:
    """Write the published layout of a data set into a folder; other texts for some of its files."""
    for file, text in {**PUBLISHED[name], **changed}.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(TEXTS.get(name, "utf-8")))
    return folder


def read(name: str, data_dir: Path | None, columns: str = "", **fields: Any) -> Dataset:
    """Return the data set of a name, read with some fields of `Reading` and `Filters`."""
    reading = Reading(**{field: value for field, value in fields.items() if field in Reading.model_fields})
    filters = Filters(**{field: value for field, value in fields.items() if field in Filters.model_fields})
    return load(
        name,
        data_dir=data_dir,
        columns=columns,
        platforms=5,
        market=Market(),
        seed=0,
        reading=reading,
        filters=filters,
    )


def rows(data: Dataset) -> list[tuple[Any, ...]]:
    """Return user key, item key, time, rating (None: none) and the labels of every interaction, in order of time."""
    users, items = data.users["key"].to_numpy(), data.items["key"].to_numpy()
    return [
        (users[u], items[i], t, None if np.isnan(r) else round(float(r), 4), *labels)
        for u, i, t, r, *labels in data.interactions.sort_values(["time", "user", "item"])[
            ["user", "item", "time", "rating", *data.labels]
        ].itertuples(index=False)
    ]


def about(table: Any, *names: str) -> dict[str, Any]:
    """Return what is known of each key: one column, or several."""
    values = [table[name].tolist() for name in names]
    return dict(zip(table["key"], values[0] if len(names) == 1 else zip(*values, strict=True), strict=True))


def test_every_name_has_a_layout_and_fields_on_the_command_line() -> None:
    assert set(LAYOUTS) == set(PUBLISHED) == set(DATASETS) - {"synthetic", "table"}
    assert set(ALIASES["dataset"]) == set(DATASETS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_says_where_from_on_which_terms_and_whether_it_was_tried(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    assert layout.page.startswith("https://") and layout.terms and layout.fetch
    assert layout.tried == (name == "ml-100k")
    assert not layout.url or layout.url.startswith("https://")
    assert not layout.md5 or (len(layout.md5) == 32 and layout.url)
    if name != "ml-100k":
        note = read(name, write(tmp_path, name)).notes[0]
        assert layout.terms in note and "not on the whole of it" in note


def test_movielens_1m(tmp_path: Path) -> None:
    data = read("ml-1m", write(tmp_path / "ml-1m", "ml-1m").parent)
    assert rows(data) == [
        ("10", "48", 978000474, 1, False),
        ("1", "1193", 978000760, 5, True),
        ("1", "661", 978002109, 3, False),
        ("2", "1193", 978300413, 4, True),
    ]
    assert data.labels == ("like",)
    assert about(data.items, "title", "categories") == {
        "48": ("Pocket: Lines (1995)", "Animation|Children's|Musical"),
        "661": ('The "Peach" (1996)', "Animation|Children's"),
        "1193": ("Am\xe9lie (1975)", "Drama"),
    }
    people = {key: tuple(map(str, of)) for key, of in about(data.users, "gender", "age", "occupation", "zip").items()}
    assert people == {
        "1": ("F", "1", "10", "48067"),
        "2": ("M", "56", "16", "70072"),
        "10": ("F", "35", "1", "95370-1234"),
    }


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-20m", "ml-25m", "ml-32m"])
def test_movielens_of_half_stars(tmp_path: Path, name: str) -> None:
    data = read(name, write(tmp_path, name))
    assert rows(data) == [
        ("2", "10", 835000441, 5, True),
        ("2", "31", 835000493, 4, True),
        ("1", "31", 1260000144, 2.5, False),
        ("1", "1029", 1260000179, 3, False),
        ("1", "1061", 1260000182, 0.5, False),
        ("3", "1029", 1298000675, 4.5, True),
    ]
    assert about(data.items, "title", "categories") == {
        "10": ("Made Up, The (1995)", "Action|Adventure|Thriller"),
        "31": ("Dangerous Lines (1996)", "Drama"),
        "1029": ("Café Élan (1941)", "Animation|Children|Musical"),
        "1061": ('Said "So" (1996)', ""),
    }


def test_every_category_of_amazon_is_a_platform_and_users_are_known_on_all(tmp_path: Path) -> None:
    data = read("amazon-2023", write(tmp_path, "amazon-2023"))
    assert data.platforms == ("All_Beauty", "Video_Games")
    one, two, three = "AMADEUPAMADEUPAMADEUPAMADEUQ", "AFICTIONAFICTIONAFICTIONAFIA", "AGHOSTSAGHOSTSAGHOSTSAGHOSTQ"
    assert rows(data) == [
        (three, "B000000BB2", 1587000114, 5, True),
        (one, "B000000AA1", 1588000855, 4, True),
        (one, "B000000AA2", 1589000266, 5, True),
        (one, "B000000BB1", 1608000804, 2, False),
        (two, "B000000AA2", 1626000509, 1, False),
    ]
    assert data.interactions.groupby("platform").size().tolist() == [3, 2]
    assert about(data.items, "title", "categories", "brand") == {
        "B000000AA1": ("Howdy Spray", "", "Howdy"),
        "B000000AA2": ("Nails, 10 ct", "Beauty|Nails", ""),
        "B000000BB1": ("B000000BB1", "", ""),
        "B000000BB2": ("B000000BB2", "", ""),
    }


def test_one_file_of_interactions_is_read_in_place_of_the_folder(tmp_path: Path) -> None:
    data = read("amazon-2023", write(tmp_path, "amazon-2023") / "All_Beauty.csv")
    assert data.platforms == ("All_Beauty",)
    assert len(data.interactions) == 3
    assert "Howdy Spray" in set(data.items["title"])


def test_lastfm_has_no_times_and_no_ratings(tmp_path: Path) -> None:
    data = read("lastfm", write(tmp_path, "lastfm"))
    assert sorted(rows(data)) == [("2", "51", 0, None), ("2", "52", 0, None), ("3", "51", 0, None)]
    assert data.labels == ()
    assert about(data.items, "title") == {"51": 'The "Quoted', "52": '"Rós"'}
    weighed = read("lastfm", tmp_path, "user=userID,item=artistID,weight=weight")
    assert weighed.interactions["weight"].tolist() == [1200, 345, 6]


def test_yelp_reviews_are_dated_and_businesses_have_categories(tmp_path: Path) -> None:
    data = read("yelp", write(tmp_path, "yelp"))
    assert rows(data) == [
        ("u-_1", "bB", 1325430018, 5, True),  # 2012-01-01 15:00:18
        ("zz9", "bA", 1391284830, 4, True),  # 2014-02-01 20:00:30
        ("u-_1", "bA", 1530482411, 3, False),  # 2018-07-01 22:00:11
    ]
    assert about(data.items, "title", "categories") == {"bA": ("Café A", "Coffee & Tea|Food"), "bB": ("B", "")}


def test_taobao_events_are_labels_and_all_are_clicks(tmp_path: Path) -> None:
    data = read("taobao", write(tmp_path, "taobao"))
    assert data.labels == ("click", "fav", "cart", "buy")
    assert rows(data) == [
        ("1", "2000046", 1511600733, None, True, True, False, False),
        ("1", "2000018", 1511600885, None, True, False, True, True),  # seen, put into the cart and bought
        ("100", "2000046", 1511700600, None, True, False, False, False),
    ]
    assert data.interactions["positive"].all()
    assert about(data.items, "categories") == {"2000018": "300077", "2000046": "300071"}


def test_events_of_the_command_line_come_before_those_of_a_layout(tmp_path: Path) -> None:
    data = read("taobao", write(tmp_path, "taobao"), events="bought=buy;seen=pv,cart,fav")
    assert data.labels == ("bought", "seen")
    assert int(data.interactions["positive"].sum()) == 1


def test_mind_impressions_are_clicks_or_not_and_the_history_is_clicks_before_them(tmp_path: Path) -> None:
    data = read("mind", write(tmp_path, "mind"))
    noon = 1573463158  # 2019-11-11 9:05:58
    assert rows(data) == [
        ("U101", "N1001", noon - 2, None, True),
        ("U101", "N1002", noon - 1, None, True),
        ("U101", "N2001", noon, None, True),
        ("U101", "N2002", noon + 60, None, True),  # shown without a click at first
        ("U202", "N2001", 1573582290, None, True),
        ("U202", "N2003", 1573582290, None, False),
        ("U101", "N1", 1573776000, None, False),
        ("U101", "N2003", 1573776000, None, True),
    ]
    assert data.labels == ("click",)
    assert about(data.items, "title", "categories") == {
        "N1": ("N1", ""),
        "N1001": ("Before", "tv"),
        "N1002": ("N1002", ""),
        "N2001": ('He "said" so', "sports"),
        "N2002": ('"No 5', "news"),
        "N2003": ('"Dogs" or not', "lifestyle"),
    }
    assert any("2 earlier clicks have no time" in note for note in data.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tU1\t11/11/2019 9:05:58 AM\t\tN1-1 N2", "line 1: what was shown must be like N1-1 N2-0, found 'N1-1 N2'"),
        ("1\tU1\t2019-11-11\t\tN1-1", "line 1: a time must be like .*, found '2019-11-11'"),
        ("1\t\t11/11/2019 9:05:58 AM\t\tN1-1", "line 1: a user must not be empty"),
        ("1\tU1\tN1-1", "must be a readable MIND file, found "),
    ],
)
def test_a_line_of_mind_that_is_none_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read("mind", write(tmp_path, "mind", **{"MINDsmall_dev/behaviors.tsv": line + "\n"}))
    assert "behaviors.tsv" in str(caught.value) and "\n" not in str(caught.value)


def test_kuairec_likes_what_was_watched_more_than_twice(tmp_path: Path) -> None:
    data = read("kuairec", write(tmp_path, "kuairec"))
    assert rows(data) == [
        ("0", "36", 1593878403, 1.2, False),
        ("0", "95", 1593878901, 2.8, True),
        ("14", "36", 1593879366, 2, False),
    ]
    assert data.interactions["positive"].tolist() == data.interactions["like"].tolist()
    assert about(data.items, "categories") == {"36": "8", "95": "27|9"}
    assert about(data.users, "active", "registered") == {
        "0": ("high_active", "61-90"),
        "14": ("full_active", "181-365"),
    }


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_an_archive_is_read_as_it_was_downloaded(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cache_in(tmp_path, monkeypatch)
    archive = pack(tmp_path / f"any.{form}", "ml-25m")
    first = read("ml-25m", archive)
    assert rows(first) == rows(read("ml-25m", write(tmp_path / "folder", "ml-25m")))
    found = {path.name for path in home.rglob("*") if path.is_file()}
    assert found == {"ratings.csv", "movies.csv"}, "and nothing outside of it"
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.csv")}
    read("ml-25m", archive)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.csv")} == before, "unpacked once"


def test_files_of_one_name_in_an_archive_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_in(tmp_path, monkeypatch)
    data = read("mind", pack(tmp_path / "any.zip", "mind"))
    assert rows(data) == rows(read("mind", write(tmp_path / "folder", "mind")))


def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cache_in(tmp_path, monkeypatch)
    (tmp_path / "ml-1m.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"data-dir: .*ml-1m.zip must be a readable archive, found "):
        read("ml-1m", tmp_path / "ml-1m.zip")
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"ml-100k"}))
def test_a_folder_without_the_files_is_told_what_to_fetch(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read(name, tmp_path)
    text, layout = str(caught.value), LAYOUTS[name]
    assert f"must hold {layout.files}, found none; fetch {layout.fetch} from {layout.page}" in text


def test_of_several_data_sets_in_a_folder_the_one_that_is_called_so_is_read(tmp_path: Path) -> None:
    for name in ("ml-20m", "ml-25m"):
        write(tmp_path / name, name)
    write(tmp_path / "ml-25m", "ml-25m", **{"ratings.csv": "userId,movieId,rating,timestamp\n1,31,5,9\n"})
    assert rows(read("ml-25m", tmp_path)) == [("1", "31", 9, 5, True)]
    with pytest.raises(UserError, match=r"must hold one ratings.csv, found ml-20m/ratings.csv, ml-25m/ratings.csv"):
        read("ml-32m", tmp_path)


@pytest.mark.parametrize("fields", [{"columns": "user=1,item=2"}, {"delimiter": "comma"}])
def test_what_cannot_act_on_impressions_is_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(fields))}: acts only with files that are read as tables are"):
        read("mind", write(tmp_path, "mind"), **fields)


def test_files_of_attributes_may_be_others(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text("id;name\n2000018;A kettle\n", encoding="utf-8")
    fields = {"items": str(tmp_path / "titles.csv"), "item_columns": "key=id,title=name"}
    data = read("taobao", write(tmp_path, "taobao") / "UserBehavior.csv", **fields)
    assert about(data.items, "title")["2000018"] == "A kettle"


def test_filters_act(tmp_path: Path) -> None:
    folder = write(tmp_path, "ml-20m")
    assert {item for _, item, *_ in rows(read("ml-20m", folder, item_least=2))} == {"31", "1029"}
    assert {item for _, item, *_ in rows(read("ml-20m", folder, item_least=2, since="1996-06-18"))} == {"1029"}


def pack(archive: Path, name: str) -> Path:
    """Write a data set as an archive, beside members that nobody wants."""
    files = {f"{name}/{file}": text for file, text in PUBLISHED[name].items()}
    files |= {"../evil.csv": "outside", f"{name}/links.csv": "not wanted"}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for file, text in files.items():
                zipped.writestr(file, text.encode(TEXTS.get(name, "utf-8")))
        return archive
    with tarfile.open(archive, "w:gz") as tar:
        for file, text in files.items():
            content = text.encode(TEXTS.get(name, "utf-8"))
            member = tarfile.TarInfo(file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def cache_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the user's cache be in a temporary folder, and return it."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(folder / "cache" / name))
    return folder / "cache" / "fedrec"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which this machine serves it to itself."""
    (tmp_path / "shelf").mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "shelf"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "shelf", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["ml-100k", "ml-25m"])
def test_one_download_fills_the_cache_with_the_expected_files_only(
    tmp_path: Path, name: str, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, (folder, address) = cache_in(tmp_path, monkeypatch), shelf
    archive = pack(folder / "any.zip", name)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], url=f"{address}/any.zip", md5=md5))
    first = read(name, None)
    archive.unlink()
    assert read(name, None).interactions.equals(first.interactions)
    assert {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()} == {
        f"{name}/{name}/{file}" for file in PUBLISHED[name]
    }
    next((home / name / name).iterdir()).unlink()  # an incomplete cache is filled again
    pack(archive, name)
    monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], md5=""))
    assert len(read(name, None).interactions) == len(first.interactions)


def test_a_download_of_another_checksum_is_refused(
    tmp_path: Path, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, (folder, address) = cache_in(tmp_path, monkeypatch), shelf
    pack(folder / "any.zip", "ml-1m")
    monkeypatch.setitem(LAYOUTS, "ml-1m", replace(LAYOUTS["ml-1m"], url=f"{address}/any.zip"))
    with pytest.raises(UserError, match=r"ml-1m: must be in the cache or be downloaded, found MD5 hash .* does not"):
        read("ml-1m", None)
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, layout = cache_in(tmp_path, monkeypatch), LAYOUTS[name]
    if layout.url:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        layout = replace(layout, url="http://127.0.0.1:9/any.zip")  # where nobody listens
        monkeypatch.setitem(LAYOUTS, name, layout)
    with pytest.raises(UserError) as caught:
        read(name, None)
    text = str(caught.value)
    assert "\n" not in text and "--data-dir" in text
    if layout.url:
        assert f"fetch {layout.url} elsewhere and unpack it to {home / name}" in text
    else:
        assert f"fetch {layout.fetch} from {layout.page}" in text
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_another_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'ml-25m'"):
        read("ml-25", None)
