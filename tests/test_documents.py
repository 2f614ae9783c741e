"""The README, the guides, and what they refer to."""

import re
from pathlib import Path

import pytest
from support.server import ROOT

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "bench/README.md",
    ROOT / "examples/typescript/README.md",
]
README = (ROOT / "README.md").read_text()
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).is_file()] == []


def test_every_guide_is_linked_from_the_readme() -> None:
    guides = {str(path.relative_to(ROOT)) for path in DOCUMENTS} - {"README.md"}
    assert guides <= set(LINK.findall(README))


def test_the_readme_explains_every_setting_of_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    names = re.findall(r"^# ([A-Z_]+)=", example, re.MULTILINE)
    table = README.partition("## Settings")[2].partition("## ")[0]
    assert set(re.findall(r"`([A-Z_]+)`", table)) >= set(names)


def test_the_picture_is_a_small_one() -> None:
    picture = (ROOT / "docs/docs-page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
