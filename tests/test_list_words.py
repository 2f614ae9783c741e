"""What a list may be asked: each parameter, under each of its names, with each of its words."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit
from uuid import uuid4

import pytest
from support.server import Server, User, pages, refusal

SMILE = "\U0001f600"
# By their titles, in the order in which they are created.
FILTERED: dict[str, dict[str, Any]] = {
    "a": {"priority": "High", "due_date": "2026-03-01", "tags": ["Home", "x, y"]},
    "b": {"priority": "p2", "due_date": "2026-03-01T09:00", "tags": ["Work", "home"]},
    "c": {"priority": "low", "due_date": "2026-03-01T23:59:59Z", "tags": ["WORK"]},
    "d": {},
    "e": {"priority": 1, "due_date": "2026-02-28T23:59:59", "tags": ["İş", "straße"]},
    "f": {"priority": "Straße", "due_date": "2026-03-02", "tags": ["x", "y", "50% _\\"]},
    "g": {"priority": "none", "due_date": "2026-03-01T00:00:00", "tags": ["home work"]},
    "h": {"priority": "URGENT", "tags": "Home", "description": "a needle"},
}
DONE = "beh"
ALL = "".join(FILTERED)
PENDING = "".join(title for title in FILTERED if title not in DONE)

# These have no two equal sort keys.
SORTED: dict[str, dict[str, Any]] = {
    "c": {"due_date": "2026-03-02", "priority": "low"},
    "A": {"due_date": "2026-03-01T09:00:00Z", "priority": "none"},
    "e": {"priority": "urgent"},
    "B": {"due_date": "2026-03-01"},
    "d": {"due_date": "2026-03-01T08:00:00", "priority": "high"},
}
CHANGED = "dcBAe"  # The order in which they are changed.
ASCENDING = {
    "created": "".join(SORTED),
    "updated": CHANGED,
    "title": "ABcde",
    "due_date": "dABce",
    "priority": "AcBde",
}
DESCENDING = {sort: titles[::-1] for sort, titles in ASCENDING.items()} | {"due_date": "cBAde"}
SORT_WORDS = {
    "created": ("created", "created_at", "created_date", "createdAt", "date"),
    "updated": ("updated", "updated_at", "updatedAt"),
    "title": ("title", "alpha"),
    "due_date": ("due_date", "due", "dueDate"),
    "priority": ("priority",),
}
ORDERS = list(itertools.product(ASCENDING, ["asc", "desc"]))
# Each group ranks below the next one.
RANKS: list[list[Any]] = [
    ["none", "NONE", "None"],
    ["low", "Low", "p4", "P4", 4],
    ["medium", "Normal", "p3", 3, None, "whatever", 0, 5, "p5", "紧急", "p11", "highest", "1.0"],
    ["high", "HIGH", "p2", "2"],
    ["urgent", "Urgent", "critical", "CRİTİCAL", "crıtıcal", "P1", 1],
]
DUE_DATES = [
    *("0001-01-01", "2026-02-28T23:59:59Z", "2026-02-28"),
    *("2026-03-01T00:00:00", "2026-03-01T00:00:00Z", "2026-03-01T00:00:01"),
    *("2026-03-01T09:00:00", "2026-03-01T09:00:00Z", "2026-03-01"),
    *("2026-03-02T00:00:00Z", "2026-03-02", "9999-12-31T23:59:59Z", "9999-12-31"),
]


@pytest.fixture(scope="module")
def filtered(server: Server) -> Iterator[User]:
    with User(server, f"filtered-{uuid4()}") as user:
        for title, fields in FILTERED.items():
            user.create(title, completed=title in DONE, **fields)
        yield user


@pytest.fixture(scope="module")
def sorted_(server: Server) -> Iterator[User]:
    with User(server, f"sorted-{uuid4()}") as user:
        made = {title: user.create(title, **fields)["id"] for title, fields in SORTED.items()}
        for title in CHANGED:
            user.put(f"/tasks/{made[title]}", json={"description": "changed"})
        yield user


@pytest.fixture(scope="module")
def tied(server: Server) -> Iterator[User]:
    """17 tasks, of which many have the same sort keys."""
    with User(server, f"tied-{uuid4()}") as user:
        for n in range(17):
            user.create(
                f"{'Same' * 30} {n}" if n % 2 else f"{n % 3}",
                due_date=[None, "2026-03-01", "2026-03-01T09:00", "2026-03-01T09:00Z"][n % 4],
                priority=["low", "LOW", "p4", "high", "urgent"][n % 5],
                tags=["a", "b", "c"][: n % 4],
                completed=n % 6 == 0,
            )
        yield user


def found(user: User, query: str) -> str:
    """The titles of the tasks in a list."""
    response = user.get(f"/tasks?{query}")
    assert response.status_code == 200, f"{query}: {response.text}"
    return "".join(task["title"] for task in response.json())


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["id"] for task in tasks]


def spellings(word: str) -> set[str]:
    return {word, word.upper(), word.lower(), word.title(), word.swapcase()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all"], ALL),
        (["pending", "incomplete", "active", "open", "todo"], PENDING),
        (["completed", "complete", "done"], DONE),
    ],
    ids=["all", "pending", "completed"],
)
def test_words_of_status(filtered: User, words: list[str], expected: str) -> None:
    for word in itertools.chain(*map(spellings, words)):
        assert found(filtered, f"status={word}") == expected, word


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        *(("completed=true", DONE), ("completed=TRUE", DONE), ("completed=False", PENDING)),
        *(("status=pending&completed=true", PENDING), ("completed=false&status=DONE", DONE)),
        *(("status=all&completed=true", DONE), ("status=&completed=false", PENDING)),
        *(("status=PENDİNG", PENDING), ("status=actıve", PENDING), ("status=tOdO", PENDING)),
        # Words, not ranks.
        ("priority=high", "a"),
        ("priority=HIGH", "a"),
        ("priority=p2", "b"),
        ("priority=P2", "b"),
        ("priority=1", "e"),
        ("priority=medium", "d"),
        ("priority=normal", ""),
        ("priority=hig", ""),
        *(("priority=high,low", "ac"), ("priority=high&priority=low", "ac")),
        *(("priority=high,&priority=,LOW,,p2", "abc"), ("priority=%20high%20,%20low", "ac")),
        *(("priority=all", ALL), ("priority=high,ALL", ALL), ("priority=All&priority=high", ALL)),
        *(("priority=,", ALL), ("priority=&priority=high", "a"), ("priority=%25,_,hig_", "")),
        *(("priority=STRASSE", "f"), ("priority=stra%C3%9Fe", "f"), ("priority=strase", "")),
        ("priority=" + ",".join(["none", *map(str, range(19))]), "eg"),
        # A tag is a whole one.
        *(("tag=home", "abh"), ("tag=HOME", "abh"), ("tag=%20home%20", "abh"), ("tag=hom", "")),
        *(("tag=home&tag=work", "b"), ("tag=work&tag=Home&tag=WORK", "b"), ("tag=&tag=work", "bc")),
        *(("tag=home%20work", "g"), ("tag=x,%20y", "a"), ("tag=X,%20Y", "a"), ("tag=x,y", "")),
        *(("tag=x&tag=y", "f"), ("tag=home,work", ""), ("tag=%25", ""), ("tag=%22", "")),
        ("tag=50%25%20_%5C", "f"),
        ("tag=STRASSE", "e"),
        ("tag=i%C5%9F", "e"),
        ("tag=I%C5%9E", "e"),
        ("&".join(["tag=home"] * 20), "abh"),
        # Of tags, any.
        *(("tags=work", "bc"), ("tags=home,work", "abch"), ("tags=home&tags=WORK", "abch")),
        ("tags=,", ALL),
        ("tags=,work,", "bc"),
        ("tags=&tags=work", "bc"),
        ("tags=%20work%20", "bc"),
        ("tags=x,%20y", "f"),
        ("tags=y", "f"),
        ("tags=nothing", ""),
        ("tags=strasse,nothing", "e"),
        ("tags=" + ",".join(["work", *map(str, range(19))]), "bc"),
        *(("tag=home&tags=work", "b"), ("tag=home&tags=work,x", "b"), ("tags=x&tag=y", "f")),
        # A due date is on the day that it names, whatever its zone.
        *((f"{name}=2026-03-01", "abcfg") for name in ("due_date_from", "due_from")),
        *((f"{name}=2026-03-01", "abceg") for name in ("due_date_to", "due_to")),
        *(("due_from=2026-03-01&due_to=2026-03-01", "abcg"), ("due_from=2026-03-02", "f")),
        ("due_date_to=2026-02-28", "e"),
        ("due_date_to=2026-02-27", ""),
        ("due_from=2026-03-03", ""),
        ("due_date_from=0001-01-01", "abcefg"),
        ("due_date_to=9999-12-31", "abcefg"),
        *(("due_date_from=2026-03-02&due_date_to=2026-03-01", ""), ("due_to=0001-01-01", "")),
        ("due_from=9999-12-31&due_to=0001-01-01", ""),
        # Several at once: all of them.
        *(("q=NEEDLE", "h"), ("search=needle&status=pending", ""), ("q=needle&tag=home", "h")),
        ("status=open&priority=high,low,none&tags=home,work&due_from=2026-03-01", "ac"),
        ("completed=true&tag=home&due_to=2026-03-01&priority=P2&search=b", "b"),
        *(("status=pending&sort=title_desc&limit=2", "gf"), ("tag=home&offset=1&limit=1", "b")),
        ("status=pending&due_date_to=2026-03-01&sort=due_date", "gca"),
    ],
)
def test_filters(filtered: User, query: str, expected: str) -> None:
    assert found(filtered, query) == expected


NAMES = ["status", "completed", "priority", "tag", "tags", "due_date_from", "due_date_to"]
NAMES += ["due_from", "due_to", "search", "q", "sort", "sort_by", "order", "sort_order"]
NAMES += ["limit", "offset"]


def test_an_empty_value_is_as_good_as_none(filtered: User) -> None:
    whole = filtered.get("/tasks")
    for query in [*(f"{name}=" for name in NAMES), "&".join(f"{name}=" for name in NAMES), *NAMES]:
        response = filtered.get(f"/tasks?{query}")
        assert (response.status_code, response.content) == (200, whole.content), query
        assert response.headers["ETag"] == whole.headers["ETag"]
    # The order of a sort that has its own stays.
    assert ids(filtered.tasks(sort="priority", order="")) == ids(filtered.tasks(sort="priority"))


@pytest.mark.parametrize("query", ["cursor=", "cursor", "cursor=&limit=1", "cursor=&offset="])
@pytest.mark.one_database
def test_an_empty_cursor_is_refused(filtered: User, query: str) -> None:
    assert refusal(filtered.get(f"/tasks?{query}"))[0] == "cursor"


@pytest.mark.parametrize(
    ("sent", "means"),
    [
        # Of the same parameter the last one that is not empty counts.
        ("status=pending&status=done", "status=done"),
        ("status=done&status=", "status=done"),
        ("status=done&status=&status=", "status=done"),
        ("completed=true&completed=false", "completed=false"),
        ("search=a&search=b&search=", "search=b"),
        ("sort=title&sort=title_desc", "sort=title_desc"),
        ("order=asc&order=desc&order=", "order=desc"),
        ("limit=1&limit=3", "limit=3"),
        ("limit=x&limit=3", "limit=3"),
        ("offset=1&offset=2&offset=", "offset=2"),
        ("due_from=2026-03-02&due_from=2026-03-01", "due_from=2026-03-01"),
        ("q=a&q=b", "q=b"),
        # The name in the first column wins, wherever it stands.
        ("search=b&q=a", "search=b"),
        ("q=a&search=b", "search=b"),
        ("q=a&search=", "q=a"),
        ("due_date_from=2026-03-02&due_from=2026-03-01", "due_date_from=2026-03-02"),
        ("due_from=2026-03-01&due_date_from=2026-03-02", "due_date_from=2026-03-02"),
        ("due_date_to=2026-02-28&due_to=2026-03-01", "due_date_to=2026-02-28"),
        ("due_to=2026-03-01&due_date_to=", "due_to=2026-03-01"),
        ("sort_by=title_desc&sort=title", "sort=title"),
        ("sort=title&sort_by=title_desc", "sort=title"),
        ("sort=&sort_by=title_desc", "sort=title_desc"),
        ("order=desc&sort_order=asc", "order=desc"),
        ("sort_order=asc&order=desc", "order=desc"),
        ("sort_order=desc&order=", "order=desc"),
        # Lists as axios sends them.
        ("tags[]=home&tags[]=WORK", "tags=home,work"),
        ("tags[0]=home&tags[1]=WORK", "tags=home,work"),
        ("tag%5B0%5D=home&tag%5B12%5D=work", "tag=home&tag=work"),
        ("tag%5B%5D=home&tag%5B%5D=work", "tag=home&tag=work"),
        ("priority[]=high&priority[]=low", "priority=high,low"),
        ("priority[1]=high&priority[0]=low", "priority=high,low"),
        ("tags=x&tags[]=home", "tags=x"),
        # Direction in a word and in a parameter.
        ("sort=title&sort_order=desc", "sort=title_desc"),
        ("sort_by=title&order=desc", "sort=title_desc"),
        ("sort_by=alpha_asc&sort_order=desc", "sort=title&order=asc"),
        ("sort=TİTLE_DESC", "sort=title_desc"),
        ("sort=newest_first", "sort=created&order=desc"),
        ("sort_by=newest_first&order=asc", "sort=created&order=desc"),
        ("sort=oldest_first&order=desc", "sort=created&order=asc"),
        ("sort=OLDEST_FIRST", ""),
        ("order=desc", "sort=created&order=desc"),
        ("sort=priority", "sort=priority&order=desc"),
        ("sort=priority_asc", "sort=priority&order=asc"),
        ("sort=priority&order=asc", "sort=priority_asc"),
    ],
)
def test_words_that_mean_the_same(filtered: User, sent: str, means: str) -> None:
    assert found(filtered, sent) == found(filtered, means)


@pytest.mark.parametrize("sort", ASCENDING)
def test_words_of_an_order(sorted_: User, sort: str) -> None:
    up, down = ASCENDING[sort], DESCENDING[sort]
    alone = down if sort == "priority" else up
    for word in itertools.chain(*map(spellings, SORT_WORDS[sort])):
        for query, expected in [
            *((f"sort={word}", alone), (f"sort_by={word}", alone)),
            *((f"sort={word}&order=asc", up), (f"sort={word}&order=desc", down)),
            *((f"sort={word}_asc", up), (f"sort={word}_desc", down)),
            *((f"sort={word}_ASC&order=desc", up), (f"sort={word}_Desc&order=asc", down)),
            *((f"sort_by={word}&sort_order=ASC", up), (f"sort_by={word}&sort_order=Desc", down)),
        ]:
            assert found(sorted_, query) == expected, query


def test_first_and_last(sorted_: User) -> None:
    for name in ("sort", "sort_by"):
        for order in ("", "&order=asc", "&order=desc"):
            for word in spellings("newest_first"):
                assert found(sorted_, f"{name}={word}{order}") == DESCENDING["created"]
            for word in spellings("oldest_first"):
                assert found(sorted_, f"{name}={word}{order}") == ASCENDING["created"]


def test_ranks_of_priorities(user: User) -> None:
    ranked = [(rank, word) for rank, words in enumerate(RANKS) for word in words]
    random.Random(1).shuffle(ranked)
    made = sorted((rank, user.create(priority=word)["id"]) for rank, word in ranked)
    expected = [task_id for _, task_id in made]
    assert ids(user.tasks(sort="priority", order="asc")) == expected
    assert ids(user.tasks(sort="priority")) == expected[::-1]
    # A change moves a task.
    user.patch(f"/tasks/{expected[0]}", json={"priority": "P1"})
    assert ids(user.tasks(sort="priority"))[-1] == expected[1]


def test_due_dates_in_order(user: User) -> None:
    dues = [*enumerate(DUE_DATES)] * 2
    random.Random(1).shuffle(dues)
    made = sorted((place, user.create(due_date=due)["id"]) for place, due in dues)
    dated = [task_id for _, task_id in made]
    without = sorted(user.create(due_date=None)["id"] for _ in range(3))
    assert ids(user.tasks(sort="due_date")) == dated + without
    assert ids(user.tasks(sort="due_date", order="desc")) == dated[::-1] + without[::-1]
    assert ids(user.tasks(sort="due_date_desc", limit=5, offset=24)) == dated[1::-1] + without[::-1]


@pytest.mark.parametrize(("sort", "order"), ORDERS)
def test_pages_and_offsets_are_the_list_in_pieces(tied: User, sort: str, order: str) -> None:
    query = f"sort={sort}&order={order}"
    whole = tied.get(f"/tasks?{query}").json()
    assert len(whole) == 17
    for limit in (1, 2, 7, 16, 17):
        found = pages(tied, query, limit=limit)
        assert list(itertools.chain(*found)) == whole
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert len(found[-1]) in range(1, limit + 1)
    for offset in (0, 1, 5, 16, 17, 10_000):
        assert tied.get(f"/tasks?{query}&offset={offset}").json() == whole[offset:]
        assert list(itertools.chain(*pages(tied, query, offset=offset, limit=3))) == whole[offset:]


@pytest.mark.parametrize(
    "query",
    [
        *("status=open", "completed=true", "priority=low,HIGH&priority=p4", "tag=a&tag=B&tag=c"),
        *("tags=b,x&tags=c", "due_from=2026-03-01&due_date_to=2026-03-01", "q=SAME", "search=2"),
        "sort_by=dueDate_desc&status=todo&tags=a,b&due_to=2026-03-01&priority=low,p4,urgent&q=s",
        "sort=priority&sort_by=title&sort_order=asc&order=&tag=a&status=&completed=false",
    ],
)
def test_links_keep_the_filters(tied: User, query: str) -> None:
    whole = tied.get(f"/tasks?{query}").json()
    assert 1 < len(whole) < 17
    for limit in (1, 2, 7):
        assert list(itertools.chain(*pages(tied, query, limit=limit))) == whole


def test_a_cursor_belongs_to_one_order(tied: User) -> None:
    for made in ORDERS:
        link = tied.get("/tasks?limit=5&sort={}&order={}".format(*made)).links["next"]["url"]
        (cursor,) = parse_qs(urlsplit(link).query)["cursor"]
        for sort, order in ORDERS:
            response = tied.get("/tasks", params={"sort": sort, "order": order, "cursor": cursor})
            if (sort, order) == made:
                assert response.status_code == 200
            else:
                assert refusal(response)[0] == "cursor"
        same = {"sort_by": f"{SORT_WORDS[made[0]][-1].upper()}_{made[1]}", "cursor": cursor}
        assert ids(tied.tasks(**same))[0] == ids(tied.tasks(sort=made[0], order=made[1]))[5]


@pytest.mark.parametrize(("sort", "order"), ORDERS)
def test_a_damaged_cursor_is_never_an_error_of_the_server(
    tied: User, sort: str, order: str
) -> None:
    query = {"sort": sort, "order": order}
    link = tied.get("/tasks", params={"limit": 5, **query}).links["next"]["url"]
    (cursor,) = parse_qs(urlsplit(link).query)["cursor"]
    chance = random.Random(1)
    for _ in range(60):
        start = chance.randrange(len(cursor))
        end = chance.choice([start, start + 1, start + 2, start + 4, len(cursor)])
        wrong = cursor[:start] + chance.choice(["", "A", "_", "AAAA", "IA", "w"]) + cursor[end:]
        response = tied.get("/tasks", params={"cursor": wrong or "A", **query})
        assert response.status_code in {200, 422}, wrong
        if response.status_code == 422:
            assert refusal(response)[0] == "cursor"


def test_an_offset_does_not_go_with_a_cursor(tied: User) -> None:
    response = tied.get("/tasks?limit=5&offset=3")
    (cursor,) = parse_qs(urlsplit(response.links["next"]["url"]).query)["cursor"]
    assert refusal(tied.get(f"/tasks?limit=5&offset=3&cursor={cursor}"))[0] in {"offset", "cursor"}
    whole = tied.tasks()
    assert tied.tasks(offset="", cursor=cursor) == whole[8:]
    for query in (f"cursor={cursor}&cursor=", f"cursor=&cursor={cursor}"):
        assert tied.get(f"/tasks?{query}").json() == whole[8:]
    assert "Link" not in tied.get("/tasks?limit=14&offset=3").headers


@pytest.mark.parametrize(("sort", "order"), ORDERS)
def test_walks_under_writes_see_what_stays_once(user: User, sort: str, order: str) -> None:
    chance = random.Random(f"{sort} {order}")

    def fields() -> dict[str, Any]:
        return {
            "title": f"{chance.randrange(10)}",
            "due_date": chance.choice([*DUE_DATES, None, None]),
            "priority": chance.choice(list(itertools.chain(*RANKS))),
        }

    made = [user.create(**fields())["id"] for _ in range(30)]
    stay, move, go = made[::2], made[1::4], made[3::4]
    changes = [user.create(**fields())["id"] for _ in range(6)]  # But not in their sort keys.
    seen: list[str] = []
    url = f"{user.base}/tasks?sort={sort}&order={order}&limit=5"
    while url:
        response = user.get(url)
        assert response.status_code == 200, response.text
        seen += ids(response.json())
        url = urljoin(url, response.links["next"]["url"]) if "next" in response.links else ""
        user.create(**fields())
        user.patch(f"/tasks/{chance.choice(move)}", json=fields())
        user.patch(f"/tasks/{chance.choice(changes)}", json={"description": "x", "tags": ["x"]})
        if go:
            user.delete(f"/tasks/{go.pop()}")
        assert len(seen) < 400
    once = stay if sort == "updated" else stay + changes
    assert [task_id for task_id in once if seen.count(task_id) != 1] == []
    if sort == "created":
        assert len(seen) == len(set(seen))


DATE = ["2026-03-01|YYYY-MM-DD"]
WHOLE = ["0 to 10,000"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        *(
            (f"status={word}", ["all", "pending", "completed"])
            for word in ("x", "incomplet", "true")
        ),
        *((f"completed={word}", ["true", "false"]) for word in ("1", "0", "yes", "done", "null")),
        *(
            (f"sort={word}", [*ASCENDING])
            for word in ("x", "id", "title_", "_asc", "asc", "newest")
        ),
        *(
            (f"sort_by={word}", [*ASCENDING])
            for word in ("x", "title_up", "title_asc_desc", "-title")
        ),
        *(("order=up", ["asc", "desc"]), ("sort_order=ascending", ["asc", "desc"])),
        *(
            (f"{name}=tomorrow", DATE)
            for name in ("due_date_from", "due_from", "due_date_to", "due_to")
        ),
        *(("due_from=2026-03-01T00:00:00", DATE), ("due_to=2026-03-01T00:00:00Z", DATE)),
        *(
            (f"due_date_from={day}", DATE)
            for day in ("2026-02-30", "2026-3-1", "20260301", "2026-03")
        ),
        *((f"due_date_to={day}", DATE) for day in ("0000-01-01", "10000-01-01", "2026-W01-1", "0")),
        *(("due_from=2026-03-01%0A", DATE), ("due_from=%202026-03-01", DATE), ("due_to=%00", [])),
        *(("due_to=2026-03-01,2026-03-02", DATE), ("due_from=%D9%A2026-03-01", DATE)),
        *((f"offset={number}", WHOLE) for number in ("-1", "10001", "x", "1.0", "1e2", "%D9%A3")),
        *((f"offset={number}", WHOLE) for number in ("%201", "1_0", "9" * 5000)),
        *(("q=" + "x" * 201, ["200"]), ("q=%00", ["NUL"]), ("q=%ff", ["UTF-8"])),
        *((f"{name}=" + ",".join(map(str, range(21))), ["20"]) for name in ("priority", "tags")),
        *(
            ("&".join(f"{name}={n}" for n in range(21)), ["20"])
            for name in ("priority", "tag", "tags")
        ),
        *(
            (f"{name}=a%00b", [])
            for name in ("status", "completed", "priority", "tag", "tags", "sort")
        ),
        *(
            (f"{name}=a,%ff", [])
            for name in ("status", "completed", "priority", "tag", "tags", "sort")
        ),
        *(("priority=%ed%a0%80", []), ("tag=%ed%a0%80", []), ("tags=%ed%a0%80", [])),
        *(("limit=0&limit=10001", ["1 to 10,000"]), ("status=all&status=x", ["pending"])),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
@pytest.mark.one_database
def test_a_bad_value_is_named_as_it_was_sent(filtered: User, query: str, said: list[str]) -> None:
    name, message = refusal(filtered.get(f"/tasks?{query}"))
    assert name == query.partition("=")[0]
    for words in said:
        assert any(word in message for word in words.split("|")), message


@pytest.mark.one_database
def test_every_bad_parameter_is_named(filtered: User) -> None:
    response = filtered.get("/tasks?sort_by=x&due_from=x&due_date_to=x&status=x&offset=x&limit=0")
    assert response.status_code == 422
    names = {"sort_by", "due_from", "due_date_to", "status", "offset", "limit"}
    assert set(response.json()["errors"]) == names


@pytest.mark.parametrize(
    "query",
    [
        # A control character joins nothing.
        *("tag=home%0Awork", "tags=home%0Awork", "tag=x%0Ay", "tags=%01", "priority=high%0Ax"),
        *("priority=" + "x" * 21, "tag=" + "x" * 51, "tags=" + "x" * 51, "tag=" + "x" * 5000),
        *("tag=[%22Home%22]", "tags=[%22Home%22]", "tag=%22Home%22", "priority='high'"),
    ],
    ids=lambda query: query[:30],
)
def test_what_no_task_can_have_finds_nothing(filtered: User, query: str) -> None:
    response = filtered.get(f"/tasks?{query}")
    if response.status_code != 200:
        assert refusal(response)[0] == query.partition("=")[0]
    else:
        assert response.json() == []


IGNORED = [
    "sort=%FF&sort=title",
    "limit=%FF&limit=1",
    "sort_by=%FF&sort=title",
    "q=%ff&search=s",
    "status=%FF&status=all",
    "order=%ED%A0%80&order=asc",
    f"status={'x' * 8000}&status=all",
]


@pytest.mark.parametrize("query", IGNORED)
def test_an_overridden_value_has_no_effect_on_the_link(tied: User, query: str) -> None:
    """Whatever it is: it is neither checked nor repeated."""
    response = tied.get(f"/tasks?limit=1&{query}")
    assert response.status_code == 200
    url = response.links["next"]["url"]
    assert len(url) < 500 and "%FF" not in url and "%ED" not in url
    assert tied.get(tied.server.url + url).status_code == 200


@pytest.mark.parametrize("query", ["limit=%FF&limit=1", "offset=%FF&offset=0&limit=1"])
def test_an_overridden_value_has_no_effect_on_the_link_of_the_trash(
    server: Server, query: str
) -> None:
    with User(server, f"trash-{uuid4()}") as user:
        user.to_trash()
        user.to_trash()
        assert "next" in user.get(f"/tasks/deleted?{query}").links


@pytest.mark.parametrize("sort", ["title", "due_date", "created"])
def test_a_link_is_never_too_long_to_follow(server: Server, sort: str) -> None:
    """Some filters fit into a request, but not into a link, which is longer by its cursor."""
    name = "".join(random.Random(sort).choices(SMILE + "\U0001f601", k=255))
    path, seen = quote(f"/api/{name}/tasks"), set()

    def get(target: str) -> tuple[int, dict[str, str], bytes]:
        answer = server.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer[0] in {200, 422}, answer
        return answer

    with User(server, name) as user:
        for _ in range(2):
            user.create(SMILE * 200, tags=[SMILE * 40])
    for number, letters in itertools.product(range(20), [10, 20, 23, 40]):
        # A comma is one byte in the request, and three in a link.
        words = quote(SMILE * 40) + "".join(f",{quote(SMILE * letters)}{n}" for n in range(number))
        target = f"{path}?limit=1&sort={sort}&tags={words}" + "," * (number * 20)
        if len(f"GET {target} HTTP/1.1") > 8190:
            continue
        status, headers, body = get(target)
        seen.add(status)
        if status == 422:
            assert headers["content-type"] == "application/problem+json"
            assert list(json.loads(body)["errors"]) == ["tags"]
            continue
        url = headers["link"].removeprefix("<").partition(">")[0]
        status, headers, body = get(url)
        assert (status, len(json.loads(body)), "link" in headers) == (200, 1, False)
    assert seen == {200, 422}


@pytest.mark.parametrize(
    ("sort", "lengths", "first", "later"),
    [
        ("title", range(7300, 8080, 26), {"title": "a"}, {"title": SMILE * 100}),
        (
            *("due_date_desc", range(7900, 8020, 4)),
            *({"due_date": "2026-01-01"}, {"due_date": "2026-01-01T09:00:00Z"}),
        ),
    ],
)
def test_a_walk_that_begins_also_ends(
    user: User, sort: str, lengths: range, first: dict[str, str], later: dict[str, str]
) -> None:
    """A later link has a longer cursor, which must fit, too."""
    for fields in (first, later, later):
        user.create(tags=["q"], **fields)
    seen = set()
    for letters in lengths:
        found = 0
        url = f"{user.base}/tasks?limit=1&sort={sort}&tags=q,{'w' * letters}"
        while url and (response := user.get(url)).status_code == 200:
            found += len(response.json())
            link = response.links.get("next", {}).get("url")
            url = link and urljoin(url, link)
        seen.add(found)
    assert seen == {0, 3}
