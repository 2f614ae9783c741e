"""GET /api/{user_id}/tasks"""

import itertools
import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from support.server import Server, User, change_by_hand, fill, pages, refusal

from lists import UNMEASURED_TASKS

NOWHERE = "00000000-0000-0000-0000-000000000000"
TITLES = [
    "banana",
    "Apple",
    "äpfel",
    "Zebra",
    "Éclair",
    "zebra",
    "ß",
    "SS",
    "_",
    "用户",
    "😀",
    "ΟΔΟΣ",
]


@pytest.fixture(scope="module")
def long_list(server: Server, database_url: str) -> Iterator[User]:
    """A user with 3,001 tasks of 5,000 bytes, of which tags are the most."""
    with User(server, f"long-{uuid4()}") as user:
        tags = [f"{number:02}" + "😀" * 48 for number in range(20)]
        user.create(description="x" * 1000, tags=tags)
        fill(database_url, user.name, 3_000)
        yield user
        change_by_hand(database_url, f"DELETE FROM task WHERE user_id = '{user.name}'")


def titles(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["title"] for task in tasks]


def test_a_user_never_seen_has_no_tasks(user: User) -> None:
    response = user.get("/tasks")
    assert (response.status_code, response.json()) == (200, [])
    assert "Link" not in response.headers


def test_the_oldest_task_comes_first(user: User, other: User) -> None:
    tasks = [user.create(title) for title in TITLES]
    other.create("not mine")
    assert user.tasks() == tasks


def test_a_slash_at_the_end_is_the_same_path(user: User) -> None:
    task = user.create()
    response = user.get("/tasks/", allow_redirects=False)
    assert (response.status_code, response.json()) == (200, [task])


@pytest.mark.parametrize(
    "text, search",
    [
        ("Buy MILK today", "milk"),
        ("buy milk", "Y MI"),
        ("ÄÖÜ", "äöü"),
        ("привет", "ПРИВЕТ"),
        ("ΟΔΟΣΑ", "οδος"),
        ("straße", "STRASSE"),
        ("İstanbul", "istanbul"),
        ("istanbul", "İSTANBUL"),
        ("IŞIK", "ışık"),
        ("ışık", "IŞIK"),
        ("İI" * 250, "ıi" * 100),
        ("i\u0307x", "\u0307X"),
        ("50% off", "0% O"),
        ("a_b", "a_b"),
        ("a\\b", "a\\B"),
        ("it's", "'"),
        ('say "x"', '"X"'),
        ("𐐀", "𐐨"),
        ("x" * 500, "x" * 200),
        ("a\nb", "\n"),
        ("%(part)s :part ?", "%(PART)s :"),
    ],
)
def test_search_finds_a_literal_substring_in_any_case(user: User, text: str, search: str) -> None:
    user.create("another", description="thing")
    in_title = user.create(text)
    in_description = user.create("other", description=f"<{text}>")
    assert user.tasks(search=search) == [in_title, in_description]


@pytest.mark.parametrize("search", ["%", "_", "a.c", "a*c", "abd", "\\"])
def test_no_character_of_a_search_is_special(user: User, search: str) -> None:
    user.create("abc")
    assert user.tasks(search=search) == []


def test_a_search_does_not_reach_across_title_and_description(user: User) -> None:
    user.create("ab", description="cd")
    assert user.tasks(search="bc") == []


def test_filters_follow_changes(user: User) -> None:
    task = user.create("old", description="Alt")
    user.patch(f"/tasks/{task['id']}", json={"title": "NEW"})
    assert (len(user.tasks(search="new")), user.tasks(search="old")) == (1, [])
    user.patch(f"/tasks/{task['id']}", json={"description": None})
    assert user.tasks(search="alt") == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_titles_are_sorted_in_lower_case_by_code_point(user: User, order: str) -> None:
    for title in TITLES:
        user.create(title)
    found = [title.lower() for title in titles(user.tasks(sort="title", order=order))]
    assert found == sorted((title.lower() for title in TITLES), reverse=order == "desc")


@pytest.mark.parametrize("letter", ["\x01", "😀", "İ"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_longest_link_fits_into_a_request(server: Server, letter: str, order: str) -> None:
    name = "".join(random.choices("😀😁😂🤣", k=255))
    query = {"sort": "title", "order": order, "search": letter * 200, "status": "completed"}
    with User(server, name) as user:
        made = [user.create(f"{n}" + letter * 498 + "x", completed=True)["id"] for n in range(4)]
        found = pages(user, limit=1, **query)
        link = user.get("/tasks", params={"limit": 1, **query}).links["next"]["url"]
    longest = f"HEAD {link.replace('limit=1', 'limit=10000')} HTTP/1.1"
    print(f"\nthe longest request line for a page: {len(longest)} bytes")
    assert len(longest) <= 8190
    assert [page[0]["id"] for page in found] == (made if order == "asc" else made[::-1])


@pytest.mark.parametrize("sort", ["created", "updated", "due_date", "priority"])
def test_a_list_whose_next_link_fits_is_not_refused(user: User, sort: str) -> None:
    """Only a cursor by title is long."""
    made = [user.create(tags=["a"])["id"] for _ in range(2)]
    query = f"limit=1&order=asc&sort={sort}&tags=a&tags="
    filled = query + "x" * (7_800 - len(f"/api/{user.name}/tasks?{query}"))
    link = user.get(f"/tasks?{filled}").links["next"]["url"]
    assert 7_800 < len(link) < 8_000
    assert [task["id"] for page in pages(user, filled) for task in page] == sorted(
        made, key=made.index if sort in {"created", "updated"} else None
    )


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("letter", ["x", "X", "😀", "Ä"])
def test_titles_that_begin_alike_are_sorted_by_their_ids(
    user: User, letter: str, order: str
) -> None:
    made = [user.create(letter * 100 + f"{number % 3}") for number in range(9)]
    before, behind = user.create(letter * 99), user.create(letter * 99 + "\U0010ffff")
    ids = [before["id"], *sorted(task["id"] for task in made), behind["id"]]
    query = {"sort": "title", "order": order}
    found = pages(user, limit=2, **query)
    assert list(itertools.chain(*found)) == user.tasks(**query)
    assert [task["id"] for task in user.tasks(**query)] == (ids if order == "asc" else ids[::-1])


# Each pair of two parameters is among the quick ones, and each combination among all.
WALKS = [
    *(("created", "asc", 10_000), ("title", "desc", 10_000)),
    *(("created", "desc", 2_500), ("title", "asc", 2_500)),
]


@pytest.mark.parametrize(
    ("sort", "order", "limit"),
    [
        pytest.param(*walk, marks=[] if walk in WALKS else pytest.mark.slow)
        for walk in itertools.product(
            ["created", "title"], ["asc", "desc"], [10_000, 2_500, 1_700, 900]
        )
    ],
)
def test_a_page_ends_at_8_megabytes(long_list: User, sort: str, order: str, limit: int) -> None:
    found = pages(long_list, sort=sort, order=order, limit=limit)
    ids = [task["id"] for page in found for task in page]
    filled = [task_id for task_id in ids if task_id.startswith("00000000-")]
    assert filled == sorted(filled, reverse=order == "desc")
    assert len(set(ids)) == len(ids) == 3001
    assert len(found) > 1
    for page in found[:-1]:
        size = len(json.dumps(page, separators=(",", ":"), ensure_ascii=False).encode())
        assert size < 8_040_000
        assert len(page) == limit or size > 8_000_000


def test_a_few_very_long_tasks_fill_a_page(user: User, database_url: str) -> None:
    user.create("x", description="\x01" * 5000)
    fill(database_url, user.name, 300)
    sizes = [len(page) for page in pages(user)]
    assert len(sizes) == 2
    assert sum(sizes) == 301


@pytest.mark.parametrize(
    "number, limit, sizes",
    [
        (400, 10_000, [400]),
        (401, 10_000, [401]),
        (401, 401, [401]),
        (401, 400, [400, 1]),
        (402, 401, [401, 1]),
        (2000, 2000, [2000]),
        (2000, 1999, [1999, 1]),
        (10_001, 10_000, [10_000, 1]),
    ],
)
def test_a_page_of_short_tasks_is_as_long_as_its_limit(
    user: User, database_url: str, number: int, limit: int, sizes: list[int]
) -> None:
    user.create()
    fill(database_url, user.name, number - 1)
    found = pages(user, limit=limit)
    assert [len(page) for page in found] == sizes
    assert len({task["id"] for page in found for task in page}) == number
    if limit == 10_000:
        assert [len(page) for page in pages(user)] == sizes


@pytest.mark.parametrize("sort", ["created", "title"])
def test_an_offset_counts_also_in_a_list_that_takes_two_statements(
    user: User, database_url: str, sort: str
) -> None:
    user.create()
    fill(database_url, user.name, UNMEASURED_TASKS + 9)
    everything = user.tasks(sort=sort)
    assert user.tasks(sort=sort, offset=5) == everything[5:]
    assert len(everything) == UNMEASURED_TASKS + 10


def test_a_page_that_holds_the_rest_has_no_next(user: User) -> None:
    for title in "ab":
        user.create(title)
    assert "Link" not in user.get("/tasks?limit=2").headers
    link = user.get("/tasks?limit=1").headers["Link"]
    assert link.startswith("</api/") and link.endswith('>; rel="next"')


@pytest.mark.parametrize("sort", ["created", "updated"])
def test_a_walk_passes_a_time_of_an_early_year(user: User, database_url: str, sort: str) -> None:
    """Another program may have written it: the zero time of Go and .NET is in the year 1."""
    ids = [user.create()["id"] for _ in range(3)]
    sql = f"UPDATE task SET {sort}_at = '0001-01-01T00:00:00.000000Z' WHERE id = '{ids[1]}'"
    change_by_hand(database_url, sql)
    found = pages(user, limit=1, sort=sort)
    assert [task["id"] for (task,) in found] == [ids[1], ids[0], ids[2]]


@pytest.mark.parametrize(
    "moment", ["2026-01-01 00:00:00", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z"]
)
def test_a_walk_passes_a_time_in_another_form(user: User, database_url: str, moment: str) -> None:
    """SQLite keeps what another program wrote, such as its own datetime('now')."""
    ids = [user.create()["id"] for _ in range(3)]
    sql = f"UPDATE task SET created_at = '{moment}' WHERE id = '{ids[1]}'"
    change_by_hand(database_url, sql)
    found = pages(user, limit=1)
    assert [task["id"] for (task,) in found] == [ids[1], ids[0], ids[2]]


@pytest.mark.parametrize("tags", ["", "home, shop", "{a,b}", '["a"', '["a"] x', "null", "1", "{}"])
def test_tags_that_are_no_array_spoil_nothing(user: User, database_url: str, tags: str) -> None:
    """Another program may have written them."""
    task, other = user.create(tags=["a"]), user.create(tags=["b"])
    change_by_hand(database_url, f"UPDATE task SET tags = '{tags}' WHERE id = '{task['id']}'")
    assert user.tasks() == [task | {"tags": []}, other]
    assert user.patch(f"/tasks/{task['id']}", json={"tags": "c"}).json()["tags"] == ["c"]


@pytest.mark.parametrize("sort", ["created", "title"])
@pytest.mark.parametrize(
    "tags", [json.dumps(["é" * 40 + f"{n:02}" for n in range(20)]), "home, shop, " * 500]
)
def test_tags_that_are_longer_in_the_table_do_not_end_a_walk(
    user: User, database_url: str, sort: str, tags: str
) -> None:
    """Another program may have written them, for instance with json.dumps()."""
    task = user.create()
    sql = f"UPDATE task SET tags = '{tags}' WHERE id = '{task['id']}'"
    change_by_hand(database_url, sql)
    fill(database_url, user.name, 3_000)
    found = pages(user, sort=sort)
    assert len({task["id"] for page in found for task in page}) == 3_001


def cursor(text: str) -> str:
    return "cursor=" + urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "query",
    [
        *("status=finished", "status=all%00", "search=%00", "search=%ff", "search=%ed%a0%80"),
        *("search=" + "x" * 201, "sort=id", "sort=created%20", "order=up"),
        *("limit=0", "limit=-1", "limit=10001", "limit=1.0", "limit=1e2", "limit=%201"),
        *("limit=1_0", "limit=%D9%A3", "limit=+1", "limit=" + "9" * 5000, "limit=0x10"),
        *("cursor=", "cursor=1", "cursor=%00", "cursor=%ff", "cursor=" + "A" * 3000),
        *("cursor=e30", "cursor=bnVsbA", "cursor=%E7%94%A8", "cursor=_w"),
        cursor(""),
        cursor("created asc"),
        cursor(f"created asc {NOWHERE}"),
        cursor(f"created asc {NOWHERE} x"),
        cursor(f"created asc {NOWHERE} 2026-99-01T00:00:00.000000Z"),
        cursor(f"created asc {NOWHERE} 2026-01-01T00:00:00.000000Z more"),
        cursor(f"created desc {NOWHERE} 2026-01-01T00:00:00.000000Z"),
        cursor("created asc x 2026-01-01T00:00:00.000000Z"),
        cursor(f"title asc {NOWHERE} x"),
        "sort=title&" + cursor(f"title asc {NOWHERE} \0"),
        "sort=title&" + cursor("title asc x x"),
    ],
)
@pytest.mark.one_database
def test_a_bad_parameter_is_named(user: User, query: str) -> None:
    name = query.rpartition("&")[2].partition("=")[0]
    assert refusal(user.get(f"/tasks?{query}"))[0] == name


@pytest.mark.parametrize(
    "query, words",
    [
        ("limit=x", "Must be a whole number from 1 to 10,000."),
        ("limit=0", "Must be a whole number from 1 to 10,000."),
        ("limit=10001", "Must be a whole number from 1 to 10,000."),
        ("order=x", "Must be one of: asc, desc."),
        ("search=" + "x" * 201, "Longer than maximum length 200."),
        ("search=%00", "Must not contain a NUL character."),
        ("search=%ff", "Must be valid UTF-8."),
        ("cursor=x", "Not a cursor of this list: use the URL in the Link header."),
    ],
)
@pytest.mark.one_database
def test_a_bad_parameter_is_explained(user: User, query: str, words: str) -> None:
    name = query.partition("=")[0]
    assert refusal(user.get(f"/tasks?{query}")) == (name, words)


@pytest.mark.parametrize(
    "query", ["foo=bar", "user_id=bob", "%ff=%ff", "&&", "=", "limit=5&page=2"]
)
def test_unknown_parameters_are_ignored(user: User, query: str) -> None:
    task = user.create()
    assert user.get(f"/tasks?{query}").json() == [task]


def test_a_list_that_is_known_is_not_sent_again(user: User) -> None:
    user.create()
    tag = user.get("/tasks").headers["ETag"]
    for sent in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = user.get("/tasks", headers={"If-None-Match": sent})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag
    assert user.get("/tasks", headers={"If-Match": '"x"'}).status_code == 200
    user.create()
    assert user.get("/tasks", headers={"If-None-Match": tag}).status_code == 200


def test_a_page_is_another_one_when_more_follows(user: User) -> None:
    user.create()
    tag = user.get("/tasks?limit=1").headers["ETag"]
    user.create()
    response = user.get("/tasks?limit=1", headers={"If-None-Match": tag})
    assert response.status_code == 200
    assert "Link" in response.headers
