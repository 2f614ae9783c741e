"""What the application takes from Python and its packages, so that no upgrade is a surprise."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from support.server import ROOT

# They come with a virtual environment.
INSTALLERS = {"pip", "setuptools", "wheel"}
PACKAGES = ("auth", "database", "server", "settings", "web")
FILES = sorted(ROOT.glob("*.py"))
FILES += sorted(file for package in PACKAGES for file in (ROOT / package).glob("*.py"))
# The direction of imports: a part, and the parts that it may know.
IMPORTS = {
    "app": {"auth", "cli", "database", "models", "resources", "server", "settings", "web"},
    "cli": {"auth", "database", "models", "server", "settings"},
    "resources": {"auth", "lists", "models", "schemas", "settings", "web"},
    "schemas": {"lists", "models", "web"},
    "lists": {"database", "models"},
    "models": {"database"},
    "gunicorn.conf": {"app", "database", "server", "settings"},
    "settings": set(),
    "auth": {"settings"},
    "database": set(),
    "server": {"settings"},
    "web": {"server", "settings"},
}
# Named with an underscore, and part of the package's public interface by its own documentation.
DOCUMENTED = {
    "_connect": "Peewee, to open a connection in another way than its driver",
    "_deserialize": "marshmallow, to read a field of one's own",
    "_meta": "Peewee, the fields of a model and its database",
}
# No public way leads there: flask-smorest is pinned, and test_docs.py sees what an upgrade moves.
NEEDED = {
    "_prepare_doc_cbks": "flask-smorest, documents what else an operation has",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def taken() -> set[str]:
    """The private names that the application uses and does not define."""
    used, own = set(), set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                used.add(node.attr)
                if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    own.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
    return used - own


def name_of(file: Path) -> str:
    """The name of the file's module, such as `web.openapi`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> Iterator[ModuleType]:
    return (import_module(name_of(file)) for file in FILES if file.stem.isidentifier())


def imported(file: Path) -> Iterator[str]:
    """The modules of the application that a file imports, by their full names."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.partition(".")[0] in IMPORTS)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way_and_through_the_front_door(file: Path) -> None:
    name = name_of(file)
    part = name if name in IMPORTS else name.partition(".")[0]
    others = {module for module in imported(file) if module.partition(".")[0] != part}
    assert others <= IMPORTS[part]


def overridden() -> set[str]:
    """The private names that a class of the application defines in the place of a package's."""
    names = set()
    for module in modules():
        for _, ours in inspect.getmembers(module, inspect.isclass):
            if ours.__module__ == module.__name__:
                defined = {name for name, part in vars(ours).items() if inspect.isfunction(part)}
                for base in ours.__mro__[1:]:
                    if base.__module__ not in set(map(name_of, FILES)):
                        names |= set(filter(is_private, defined & vars(base).keys()))
    return names


def test_nothing_private_is_used_without_a_reason() -> None:
    assert taken() | overridden() == DOCUMENTED.keys() | NEEDED.keys()


def test_everything_that_is_installed_is_pinned() -> None:
    """Also what a package of ours needs: tomorrow's installation is today's."""
    pinned = {}
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if match := re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)(?:; (.+))?", line):
                if not match[3] or Marker(match[3]).evaluate():
                    pinned[normalized(match[1])] = match[2]
            else:
                assert line.startswith("#") or line == "-r requirements.txt"
    installed = {normalized(found.name): found.version for found in distributions()}
    for name in INSTALLERS:
        installed.pop(name, None)
    assert installed == pinned


def test_a_mac_with_an_intel_processor_gets_a_wheel_of_cryptography() -> None:
    """Releases after 48.0.1 have none. To build one needs Rust and OpenSSL."""
    mac = {"sys_platform": "darwin", "platform_machine": "x86_64"}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line.startswith("cryptography")]
    chosen = [each for each in found if not each.marker or each.marker.evaluate(mac)]
    assert list(map(str, (each.specifier for each in chosen))) == ["==48.0.1"]


def test_of_two_lines_for_a_package_the_last_is_for_a_server() -> None:
    """Pipenv keeps only the last when it imports the file: Linux would have no cryptography."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    last = [Requirement(line) for line in lines if line.startswith("cryptography")][-1]
    assert last.marker
    assert last.marker.evaluate({"sys_platform": "linux", "platform_machine": "x86_64"})


def normalized(name: str) -> str:
    """A package's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
