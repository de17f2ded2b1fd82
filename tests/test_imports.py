"""The direction of imports: errors, params, rng <- data, models ... <- training <- clients | server <- simulations.

`fedrec` itself is a door: it names where things live, imports them at first use, and nothing imports it.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedrec

ROOT = Path(__file__).parent.parent
# A room may import rooms of a lower level, and its own; no module has a level of its own.
ROOMS = """
    errors distinct sparse params rng files folders components keyed subspace data sharing metrics tasks models training
    evaluation federation experiment privacy distillation wire report testing
"""
LAYERS = {f"fedrec.{name}": level for level, name in enumerate(ROOMS.split())}
LAYERS |= {"clients": len(LAYERS), "server": len(LAYERS), "simulations": len(LAYERS) + 1}
FILES = sorted(p for room in ("fedrec", "clients", "server", "simulations") for p in (ROOT / room).rglob("*.py"))
DOOR = ROOT / "fedrec" / "__init__.py"


def room(module: str) -> str:
    """Return the room of a module: its longest prefix among the layers."""
    found = [name for name in LAYERS if module == name or module.startswith(name + ".")]
    return max(found, key=len, default="")


def statements(node: ast.AST, inside: bool) -> Iterator[ast.AST]:
    """Yield what is in a node, also `inside` functions or not."""
    yield node
    if inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in ast.iter_child_nodes(node):
            yield from statements(child, inside)


def imports(path: Path, inside: bool = True) -> set[str]:
    """Return every module that a file imports, anywhere in it, or nowhere `inside` functions."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), inside):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in FILES if path != DOOR], ids=module_of)
def test_imports_point_only_to_lower_rooms(path: Path) -> None:
    me = room(module_of(path))
    for other in {room(name) for name in imports(path)} - {"", me}:
        assert LAYERS[other] < LAYERS[me], f"{me} must not import {other}"
        assert {me, other} != {"clients", "server"}


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return which modules every module imports when it is imported, or says that it would for its types."""
    files = {module_of(path): path for path in FILES if path != DOOR}
    found = {}
    for me, path in files.items():
        names = imports(path, inside=False)
        # `from a.b import c` may name a module or what is in one, whose package is imported with it.
        found[me] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {me}
    return found


def reached(start: str) -> set[str]:
    """Return the modules that a module imports, and that these import, and so on."""
    found, left = set[str](), [start]
    while left:
        left += (more := graph()[left.pop()] - found)
        found |= more
    return found


@pytest.mark.parametrize("module", [module_of(path) for path in FILES if path != DOOR])
def test_no_module_imports_itself_by_way_of_others(module: str) -> None:
    assert module not in reached(module)


def test_a_circle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph(), "fedrec.errors", {"fedrec.experiment.records"})
    assert {"fedrec.errors", "fedrec.files"} <= reached("fedrec.errors")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_keeps_to_what_it_may_touch(path: Path) -> None:
    me, tops = module_of(path), {name.split(".")[0] for name in imports(path)}
    text = path.read_text(encoding="utf-8")
    if me.startswith("fedrec") and not me.startswith("fedrec.wire"):
        assert "flwr" not in tops
        assert "print(" not in text
    if me.startswith(("fedrec.keyed", "fedrec.federation.coordination", "fedrec.training.conflict")):
        # Numerics over named tensors: who a client is, and what it trains, is not their business.
        others = {
            n for n in imports(path) if not n.startswith(("fedrec.training.conflict", "fedrec.training.optimisers"))
        }
        assert not {"fedrec.models", "fedrec.tasks", "fedrec.training"} & {room(n) for n in others}
        assert {n for n in imports(path) if room(n) == "fedrec.data"} <= {"fedrec.data.types", "fedrec.data.types.Ints"}
    if me.startswith("server"):
        assert not {"fedrec.models", "fedrec.data", "fedrec.tasks"} & {room(n) for n in imports(path)}
        assert not {n for n in imports(path) if n.startswith("fedrec.experiment.config")}
    assert "pickle" not in tops
    assert "np.random.seed" not in text and "torch.manual_seed" not in text, "every generator comes from fedrec.rng"


def test_every_module_has_a_room() -> None:
    homeless = [module_of(p) for p in FILES if not room(module_of(p)) and p != DOOR]
    assert not homeless


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_imports_the_door(path: Path) -> None:
    modules = {module_of(p) for p in FILES}
    names = {name for name in imports(path) if name.count(".") == 1 and name.startswith("fedrec.")}
    assert names <= modules, "a name of the door"
    bare = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Import)]
    assert "fedrec" not in {alias.name for node in bare for alias in node.names}


def test_the_door_names_where_things_live_and_imports_none_of_it() -> None:
    tree = ast.parse(DOOR.read_text(encoding="utf-8"))
    typed = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        f"{one.module}.{alias.name}" for one in typed[0].body if isinstance(one, ast.ImportFrom) for alias in one.names
    }
    assert seen == {f"{place}.{name}" for place, names in fedrec._PLACES.items() for name in names}
    assert {name.rpartition(".")[2] for name in seen} == set(fedrec.__all__)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.ImportFrom) and node.module in {
                "importlib",
                "importlib.util",
                "pathlib",
                "typing",
            }
