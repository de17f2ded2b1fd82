"""What a profile says in words: sizes and ranges, and what clients could share and what not."""

from typing import NamedTuple

from fedrec.report.findings import DASH, listing, plural
from fedrec.report.profile import Group, Overlap
from fedrec.report.profile_suspicions import are_places, day

BY_USERS = ("--share", "user_table,user_bias")
DENSE = ("--model", "mlp")


class Sharing(NamedTuple):
    """What sharing could do and what not, in words, and the options with which it does what it can."""

    words: str
    options: tuple[str, ...] = ()


def sharing(o: Overlap, by_platform: bool) -> Sharing:
    """Return what clients that are platforms could share, or else those that are users in silos or one user each."""
    if not by_platform:
        return Sharing("clients have no user in common and one catalogue: sharing items may help, sharing users cannot")
    if o.platforms == 1:
        return Sharing("one platform: nobody to share with; --partition users makes clients of its users")
    users = f"{o.common_users:,} of {plural(o.all_users, 'user')}"
    items = f"{o.common_items:,} of {plural(o.all_items, 'item')}"
    if o.common_users and o.common_items:
        words = f"{items} and {users} are on several platforms: sharing items may help, sharing users "
        return Sharing(f"{words}({BY_USERS[1]}) too{lone(o)}")
    if o.common_users:
        words = f"no item in common: sharing items changes nothing, users do ({users} are on several platforms)"
        return Sharing(f"{words}{lone(o)}", BY_USERS)
    if o.common_items:
        words = f"{items} are on several platforms: sharing items may help; no user in common"
        return Sharing(f"{words}{lone(o)}")
    return Sharing(
        "nothing in common, no user and no item: only dense layers (the body of an mlp) can be shared", DENSE
    )


def lone(o: Overlap) -> str:
    """Return in words which platforms have nothing in common with any other."""
    both = [[u + i for u, i in zip(*rows, strict=True)] for rows in zip(o.users, o.items, strict=True)]
    names = [name for n, (name, row) in enumerate(zip(o.names, both, strict=True)) if sum(row) == row[n]]
    if not names or o.platforms > len(o.names):
        return ""
    return f"; {listing(names, 5)} {'has' if len(names) == 1 else 'have'} nothing in common with another"


def heading(name: str, rows: int, o: Overlap) -> str:
    """Return the sizes of a dataset in words."""
    sizes = f"{plural(rows, 'interaction')} of {plural(o.all_users, 'user')} with {plural(o.all_items, 'item')}"
    return f"{name}, {sizes}, {plural(o.platforms, 'platform')}"


def share(x: float) -> str:
    """Return a share in per cent, with two digits where it is small."""
    return f"{x:.0%}" if x >= 0.095 or x == 0 else f"{100 * x:.2g}%"


def span(times: tuple[int, int] | None) -> str:
    """Return the first and the last day, or place in an order, or a dash."""
    if times and are_places(times):
        return f"are places from {times[0]:,} to {times[1]:,}"
    return f"{day(times[0])} to {day(times[1])}" if times else DASH


def rated(group: Group) -> str:
    """Return the range of ratings with their mean, or a dash."""
    r = group.ratings
    return f"{r.low:g} to {r.high:g}, mean {r.mean:.3g}" if r else DASH
