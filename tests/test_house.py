"""The limits of the house, read from the source: how long, how deep, how many names, and who may import whom."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import heedmap

PACKAGE = Path(heedmap.__file__).parent

MOST_LINES = 24_500
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 7
MOST_ROOMS = 28
DEEPEST_FOLDER = 3

# One name may stand for the command and for the work behind it: `heedmap train` and `heedmap.train`.
SAME_FUNCTION_NAMES_ALLOWED = ("cli/commands/", "workflows/")

# These import late as a rule: the command line must come up without torch, and so must `import heedmap`.
LATE_IMPORTS_ALLOWED = ("__init__.py", "cli/")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Import = ast.Import | ast.ImportFrom


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse("\n".join(lines(file)))


def place(file: Path, node: ast.stmt | None = None) -> str:
    path = file.relative_to(PACKAGE).as_posix()
    return path if node is None else f"{path}:{node.lineno}"


def functions() -> Iterator[tuple[Path, Function, bool]]:
    """Every function of the package with its file and whether it receives ``self`` or ``cls``."""
    for file in files():
        methods = {
            statement
            for node in ast.walk(tree(file))
            if isinstance(node, ast.ClassDef)
            for statement in node.body
            if isinstance(statement, Function)
            and not any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in statement.decorator_list)
        }
        for node in ast.walk(tree(file)):
            if isinstance(node, Function):
                yield file, node, node in methods


def is_overload(node: Definition) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)


def imports() -> Iterator[tuple[Path, Import, bool]]:
    """Every import of the package with its file and whether it stands inside a function."""
    for file in files():
        late = {
            inner
            for node in ast.walk(tree(file))
            if isinstance(node, Function)
            for inner in ast.walk(node)
            if isinstance(inner, Import)
        }
        for node in ast.walk(tree(file)):
            if isinstance(node, Import):
                yield file, node, node in late


def modules(file: Path, node: Import) -> list[str]:
    """The modules an import statement names, in full."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or ""]
    above = file.relative_to(PACKAGE.parent).parts[: -node.level]
    return [".".join([*above, *([node.module] if node.module else [])])]


def rooms() -> set[str]:
    """The names at the first level of the package: its packages and its modules."""
    packages = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    return packages | {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}


def assert_none(offenders: Iterable[str]) -> None:
    found = list(offenders)
    assert not found, f"{len(found)} of them:\n" + "\n".join(found)


def assert_one_place_each(kind: type | tuple[type, ...], exempt: tuple[str, ...] = ()) -> None:
    """Public names of one kind, defined at the top level of a module, are defined once."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in files():
        for node in tree(file).body if not place(file).startswith(exempt) else ():
            if isinstance(node, kind) and not node.name.startswith("_") and not is_overload(node):
                places[node.name].append(place(file, node))
    assert_none(f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1)


def test_the_source_is_no_longer_than_its_limit() -> None:
    assert sum(len(lines(file)) for file in files()) <= MOST_LINES


def test_no_file_is_too_long() -> None:
    assert_none(f"{place(file)}: {len(lines(file))} lines" for file in files() if len(lines(file)) > LONGEST_FILE)


def test_no_function_is_too_long() -> None:
    assert_none(
        f"{place(file, function)} {function.name}: {length} lines"
        for file, function, _ in functions()
        if (length := function.end_lineno - function.lineno + 1) > LONGEST_FUNCTION
    )


def test_no_function_has_too_many_parameters() -> None:
    def count(function: Function, is_method: bool) -> int:
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return len(named) - is_method + bool(arguments.vararg) + bool(arguments.kwarg)

    assert_none(
        f"{place(file, function)} {function.name}: {number} parameters"
        for file, function, is_method in functions()
        if (number := count(function, is_method)) > MOST_PARAMETERS
    )


def test_no_two_public_classes_have_one_name() -> None:
    assert_one_place_each(ast.ClassDef)


def test_no_two_public_functions_have_one_name() -> None:
    assert_one_place_each((ast.FunctionDef, ast.AsyncFunctionDef), exempt=SAME_FUNCTION_NAMES_ALLOWED)


def test_no_function_hides_a_room_of_its_name() -> None:
    assert_none(sorted(rooms() & set(heedmap.__all__)))


def test_no_room_imports_the_front_door() -> None:
    assert_none(
        place(file, node)
        for file, node, _ in imports()
        if file != PACKAGE / "__init__.py" and "heedmap" in modules(file, node)
        # `from heedmap import files` names a room, not the front door
        if not (isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} <= rooms())
    )


def test_rooms_at_the_first_level_are_few() -> None:
    assert len(rooms()) <= MOST_ROOMS, sorted(rooms())


def test_no_folder_lies_too_deep() -> None:
    folders = {file.parent.relative_to(PACKAGE) for file in files()}
    assert_none(str(folder) for folder in sorted(folders) if len(folder.parts) > DEEPEST_FOLDER)


def test_own_modules_are_imported_at_the_top_or_a_comment_says_why() -> None:
    def is_explained(file: Path, node: Import) -> bool:
        before, last = lines(file)[node.lineno - 2].strip(), lines(file)[node.end_lineno - 1]
        return "  #" in last or before.startswith("#")

    assert_none(
        f"{place(file, node)} {ast.unparse(node)}"
        for file, node, is_late in imports()
        if is_late and not place(file).startswith(LATE_IMPORTS_ALLOWED)
        if any(module.split(".")[0] == "heedmap" for module in modules(file, node))
        if not is_explained(file, node)
    )
