"""What an attacker or a careless client sends: never a 5xx, never HTML, never a change."""

import json
import socket
import time
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from support.server import Server, User
from werkzeug.exceptions import default_exceptions

JSON = b"Content-Type: application/json\r\n"
MAX = 128 * 1024
ASTRAL = "\\ud83d\\ude00"
A_TASK = b'{"title": "x"}'


def call(method: bytes, path: bytes, headers: bytes = b"") -> bytes:
    """A request without a body."""
    return b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (method, path, headers)


def framed(fields: bytes) -> bytes:
    """The head of a POST that says in these fields where its body ends."""
    return call(b"POST", b"{tasks}", JSON + fields)


def post(body: bytes, headers: bytes = JSON, length: int | None = None) -> bytes:
    """A POST to the user's tasks, with `length` in its Content-Length."""
    size = len(body) if length is None else length
    return call(b"POST", b"{tasks}", headers + b"Content-Length: %d\r\n" % size) + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A POST in chunks, which ends with `end`."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed(b"Transfer-Encoding: chunked\r\n") + data + end


def to_task(request: bytes, task_id: object, method: bytes, suffix: str = "") -> bytes:
    """A POST of a task, sent to one task instead."""
    target = f" {{tasks}}/{task_id}{suffix}".encode()
    return request.replace(b"POST {tasks}", method + target, 1)


BODIES = {
    "no body": (post(b""), 400),
    "no length and no body": (call(b"POST", b"{tasks}", JSON), 400),
    "white space only": (post(b"  \n"), 400),
    "an open brace": (post(b"{"), 400),
    "an open string": (post(b'{"title": "x'), 400),
    "a comma at the end": (post(b'{"title": "x",}'), 400),
    "single quotes": (post(b"{'title': 'x'}"), 400),
    "two documents": (post(A_TASK * 2), 400),
    "a comment": (post(b'{"title": "x"} // hi'), 400),
    "NaN": (post(b'{"title": "x", "n": NaN}'), 400),
    "Infinity": (post(b'{"title": "x", "n": -Infinity}'), 400),
    "a number of 5,000 digits": (post(b'{"title": "x", "n": %b}' % (b"9" * 5000)), 400),
    "a title of 5,000 digits": (post(b'{"title": %b}' % (b"9" * 5000)), 400),
    "a number out of range": (post(b'{"title": 1e999}'), 400),
    "a number as the title": (post(b'{"title": 1e9}'), 422),
    "a leading zero": (post(b'{"title": "x", "n": 01}'), 400),
    "invalid UTF-8": (post(b'{"title": "\xff"}'), 400),
    "overlong UTF-8": (post(b'{"title": "\xc0\xaf"}'), 400),
    "a surrogate in UTF-8": (post(b'{"title": "\xed\xa0\x80"}'), 400),
    "a raw control character": (post(b'{"title": "\x01"}'), 400),
    "a raw NUL": (post(b'{"title": "\x00"}'), 400),
    "an escaped NUL": (post(rb'{"title": "a\u0000"}'), 422),
    "an escaped NUL in a description": (post(rb'{"title": "x", "description": "\u0000"}'), 422),
    "a high surrogate alone": (post(rb'{"title": "\ud800"}'), 400),
    "a low surrogate alone": (post(rb'{"title": "\udc00"}'), 400),
    "surrogates in the wrong order": (post(rb'{"title": "\udc00\ud800"}'), 400),
    "a surrogate in an unknown field": (post(rb'{"title": "x", "n": "\ud800"}'), 400),
    "a bad escape": (post(rb'{"title": "\x41"}'), 400),
    "100,000 open brackets": (post(b"[" * 100_000), 400),
    "2,000 nested arrays": (post(b'{"title": "x", "n": %b}' % (b"[" * 2000 + b"]" * 2000)), 400),
    "2,000 nested objects": (post(b'{"n":' * 2000 + b"1" + b"}" * 2000), 400),
    "a byte order mark": (post(b"\xef\xbb\xbf" + A_TASK), 400),
    "UTF-16": (post('{"title": "x"}'.encode("utf-16")), 400),
    "UTF-16 that says so": (
        post(
            '{"title": "x"}'.encode("utf-16"), b"Content-Type: application/json; charset=utf-16\r\n"
        ),
        400,
    ),
    "null": (post(b"null"), 422),
    "true": (post(b"true"), 422),
    "a number": (post(b"5"), 422),
    "a string": (post(b'"title"'), 422),
    "an array": (post(b"[]"), 422),
    "an array of tasks": (post(b"[%b]" % A_TASK), 422),
    "an empty object": (post(b"{}"), 422),
    "a nested title": (post(b'{"title": {"title": "x"}}'), 422),
    "a title twice, the last one wrong": (post(b'{"title": "x", "title": 5}'), 422),
    "a title in another case": (post(b'{"Title": "x"}'), 422),
    "a blank title of a megabyte's kind": (post(b'{"title": "%b"}' % (b" " * 100_000)), 422),
    "a title that is too long": (post(b'{"title": "%b"}' % (b"x" * 501)), 422),
    "a title of 501 escaped characters": (post(b'{"title": "%b"}' % (ASTRAL * 501).encode()), 422),
    "a proto": (post(b'{"__proto__": {"title": "x"}}'), 422),
}
TYPES = {
    "a form": (post(b"title=x", b"Content-Type: application/x-www-form-urlencoded\r\n"), 415),
    "a multipart form": (post(b"--x--", b"Content-Type: multipart/form-data; boundary=x\r\n"), 415),
    "plain text": (post(A_TASK, b"Content-Type: text/plain\r\n"), 415),
    "no type": (post(A_TASK, b""), 415),
    "an empty type": (post(A_TASK, b"Content-Type: \r\n"), 415),
    "XML": (post(b"<title/>", b"Content-Type: application/xml\r\n"), 415),
    "JSON by its name only": (post(A_TASK, b"Content-Type: application/jsonp\r\n"), 415),
    "two types": (post(A_TASK, b"Content-Type: text/plain, application/json\r\n"), 415),
    "gzip": (post(b"\x1f\x8b\x08\x00", JSON + b"Content-Encoding: gzip\r\n"), 415),
    "gzip that is none": (post(A_TASK, JSON + b"Content-Encoding: gzip\r\n"), 415),
    "brotli": (post(b"\x8b", JSON + b"Content-Encoding: br\r\n"), 415),
    "two encodings": (post(A_TASK, JSON + b"Content-Encoding: identity, gzip\r\n"), 415),
}
SIZES = {
    "one byte over the limit": (post(b" " * (MAX + 1)), 413),
    "a megabyte": (post(b" " * 1_000_000), 413),
    "a megabyte of another type": (post(b" " * 1_000_000, b"Content-Type: text/plain\r\n"), 413),
    "a terabyte announced": (post(b"{", length=10**12), 413),
    "10^30 bytes announced": (post(b"{", length=10**30), 413),
    "more announced than sent": (post(A_TASK, length=len(A_TASK) + 1), 400),
    "everything announced, nothing sent": (post(b"", length=10), 400),
    "one byte less announced": (post(A_TASK, length=len(A_TASK) - 1), 400),
    "a chunk cut short": (chunked(end=b"ff\r\n" + A_TASK), 400),
    "no last chunk": (chunked(A_TASK, end=b""), 400),
    "a chunk size that is none": (chunked(end=b"zz\r\n"), 400),
    "a negative chunk size": (chunked(end=b"-1\r\n"), 400),
    "a chunk size of 10,000 digits": (chunked(end=b"0" * 10_000 + b"1\r\n"), 400),
    "a chunk without its end": (chunked(end=b"2\r\n{}XX0\r\n\r\n"), 400),
    "a bad trailer": (chunked(A_TASK, end=b"0\r\nno colon\r\n\r\n"), 400),
    "chunks with no content": (chunked(), 400),
    "chunks over the limit": (chunked(*[b" " * 8192] * 17), 413),
    "broken JSON in chunks": (chunked(b'{"title"', b": "), 400),
}
PATHS = {
    "an unknown path": (call(b"GET", b"/nope"), 404),
    "the path of a user": (call(b"GET", b"{user}"), 404),
    "tasks of nobody": (call(b"GET", b"/api//tasks"), 404),
    "two slashes inside": (call(b"GET", b"{user}//tasks"), 404),
    "two slashes at the end": (call(b"GET", b"{tasks}//"), 404),
    "an evil host and two slashes": (call(b"GET", b"//evil.example/tasks"), 404),
    "a path above": (call(b"GET", b"/api/../etc/passwd"), 404),
    "an escaped slash": (call(b"GET", b"/api/a%2fb/tasks"), 404),
    "a NUL in the user": (call(b"GET", b"/api/a%00b/tasks"), 404),
    "a newline in the user": (call(b"GET", b"/api/a%0ab/tasks"), 404),
    "a C1 control character in the user": (call(b"GET", b"/api/a%c2%80b/tasks"), 404),
    "a byte that is not UTF-8": (call(b"GET", b"/api/%ff/tasks"), 404),
    "another byte that is not UTF-8": (call(b"GET", b"/api/%fe/tasks"), 404),
    "a byte that is neither UTF-8 nor escaped": (call(b"GET", b"/api/\xff/tasks"), 404),
    "such a byte in a query": (call(b"GET", b"{tasks}?search=\xff"), 422),
    "a method that is not ASCII": (call("GÉT".encode(), b"{tasks}"), 405),
    "a surrogate in the user": (call(b"GET", b"/api/%ed%a0%80/tasks"), 404),
    "an overlong slash": (call(b"GET", b"/api/%c0%af/tasks"), 404),
    "a user of 256 characters": (call(b"GET", b"/api/" + b"x" * 256 + b"/tasks"), 404),
    "a user of 256 characters of 4 bytes": (
        call(b"GET", b"/api/" + b"%F0%9F%98%80" * 256 + b"/tasks"),
        404,
    ),
    "an escaped slash in a user": (call(b"GET", b"/api/ann%2Ftasks"), 404),
    "an escaped slash in a path": (call(b"DELETE", b"{tasks}/completed%2fclear"), 404),
    "a task id that is not UTF-8": (call(b"DELETE", b"{tasks}/%ff"), 404),
    "a task id with a NUL": (call(b"DELETE", b"{tasks}/%00"), 404),
    "a task id with a quote": (call(b"GET", b"{tasks}/'%20OR%201=1--"), 404),
    "a path below a task": (call(b"GET", b"{tasks}/1/x"), 404),
    "a path below complete": (call(b"PATCH", b"{tasks}/1/complete/x"), 404),
    "a file above the docs": (call(b"GET", b"/docs/swagger-ui/../../../app.py"), 404),
    "an escaped file above the docs": (call(b"GET", b"/docs/swagger-ui/%2e%2e/__init__.py"), 404),
    "a file above static": (call(b"GET", b"/static/..%2f..%2fmodels.py"), 404),
    "DELETE of all tasks": (call(b"DELETE", b"{tasks}"), 405),
    "PATCH of all tasks": (call(b"PATCH", b"{tasks}"), 405),
    "POST to a task": (post(A_TASK).replace(b"{tasks}", b"{tasks}/1"), 405),
    "GET of complete": (call(b"GET", b"{tasks}/1/complete"), 405),
    "POST to complete": (call(b"POST", b"{tasks}/1/complete"), 405),
    "TRACE": (call(b"TRACE", b"{tasks}"), 405),
    "an unknown method": (call(b"BREW", b"{tasks}"), 405),
    "a method in lower case": (call(b"get", b"{tasks}"), 405),
    "a method in two cases": (call(b"Get", b"/health"), 405),
    "a method of one letter": (call(b"M", b"{tasks}"), 405),
    "a method with a digit": (call(b"GET2", b"{tasks}"), 405),
    "a method in lower case for an unknown path": (call(b"get", b"/nope"), 404),
    "POST to health": (call(b"POST", b"/health"), 405),
}
HTTP = {
    "rubbish": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "line feeds alone": (b"GET /health HTTP/1.1\nHost: x\n\n", 400),
    "HTTP/3": (b"GET {tasks} HTTP/3.0\r\n\r\n", 400),
    "a path over 8 kB": (call(b"GET", b"/" + b"x" * 9000), 414),
    "a header without a colon": (call(b"GET", b"{tasks}", b"nope\r\n"), 400),
    "a space before the colon": (call(b"GET", b"{tasks}", b"X : y\r\n"), 400),
    "a NUL in a header": (call(b"GET", b"{tasks}", b"X: a\0b\r\n"), 400),
    "a NUL in an expectation": (call(b"GET", b"{tasks}", b"Expect: 100-continue\0\r\n"), 400),
    "a form feed in an expectation": (call(b"GET", b"{tasks}", b"Expect: a\f\r\n"), 400),
    "a folded header": (call(b"GET", b"{tasks}", b"X: a\r\n b\r\n"), 400),
    "a header over 32 KiB": (call(b"GET", b"{tasks}", b"X: %b\r\n" % (b"x" * 32_766)), 431),
    "headers over 128 KiB together": (
        call(b"GET", b"{tasks}", b"X: %b\r\n" % (b"x" * 32_765) * 4),
        431,
    ),
    "headers without an end": (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 600_000, 431),
    "200 headers": (call(b"GET", b"{tasks}", b"X: y\r\n" * 200), 431),
    "120 headers, of which the parser drops 30": (
        call(b"GET", b"{tasks}", b"X: y\r\n" * 90 + b"X_Y: z\r\n" * 30),
        431,
    ),
    "101 headers and an expectation": (
        call(b"GET", b"{tasks}", b"Expect: x\r\n" + b"X: y\r\n" * 100),
        431,
    ),
    "a length that is none": (framed(b"Content-Length: x\r\n"), 400),
    "a negative length": (framed(b"Content-Length: -1\r\n"), 400),
    "two lengths": (framed(b"Content-Length: 1\r\nContent-Length: 2\r\n"), 400),
    "a length and chunks": (framed(b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400),
    "an unknown transfer encoding": (framed(b"Transfer-Encoding: rot13\r\n"), 501),
    "a transfer encoding that is none": (framed(b"Transfer-Encoding: identity\r\n"), 400),
    "a transfer encoding after the chunks": (framed(b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    "chunks twice": (framed(b"Transfer-Encoding: chunked\r\n" * 2), 400),
    "chunks of chunks": (framed(b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    "chunks in HTTP/1.0": (chunked(A_TASK).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
}  # fmt: skip
BY_THE_APPLICATION = BODIES | TYPES | SIZES | PATHS
# Of the bodies, those that are wrong for a change as well.
REFUSED_BY_EVERY_WRITE = [*TYPES, *SIZES, "an open brace", "an array"]
REFUSED_BY_EVERY_WRITE.remove("chunks with no content")
CHANGES = [(b"PUT", ""), (b"PATCH", ""), (b"PATCH", "/complete")]


def send(user: User, request: bytes, *, closes: bool = True) -> tuple[int, dict[str, str], bytes]:
    path = user.base.removeprefix(user.server.url).encode()
    request = request.replace(b"{tasks}", path + b"/tasks").replace(b"{user}", path)
    return user.server.send(request, closes=closes)


@pytest.mark.parametrize("name", BY_THE_APPLICATION)
@pytest.mark.one_database
def test_the_application_refuses(user: User, name: str) -> None:
    request, expected = BY_THE_APPLICATION[name]
    kept = user.create("kept")
    status, headers, body = send(user, request)
    assert status == expected, body
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["request_id"] == headers["x-request-id"]
    assert isinstance(problem["detail"], str) and problem["detail"]
    assert "HTML" not in problem["detail"]
    assert problem["detail"] != default_exceptions[status].description  # A library's words.
    assert (status == 405) == bool(headers.get("allow"))
    assert user.tasks() == [kept]


@pytest.mark.parametrize("name", REFUSED_BY_EVERY_WRITE)
@pytest.mark.parametrize("method, suffix", CHANGES)
@pytest.mark.one_database
def test_a_task_is_as_it_was_after_a_body_that_is_refused(
    user: User, name: str, method: bytes, suffix: str
) -> None:
    request, expected = (BODIES | TYPES | SIZES)[name]
    task = user.create("kept")
    status, _, body = send(user, to_task(request, task["id"], method, suffix))
    assert status == expected, body
    assert user.tasks() == [task]


@pytest.mark.parametrize("closes", [True, False], ids=["from one who closes", "at once"])
@pytest.mark.parametrize("name", HTTP)
@pytest.mark.one_database
def test_the_server_refuses_what_is_not_http(user: User, name: str, closes: bool) -> None:
    request, expected = HTTP[name]
    kept = user.create("kept")
    status, headers, _ = send(user, request, closes=closes)
    assert status == expected
    assert headers["connection"] == "close"
    assert user.tasks() == [kept]


@pytest.mark.parametrize(
    "trailers", [b"x.y: 1\r\n", b"x_y: 1\r\n", b"Content-Type: x\r\n", b"X: y\r\n" * 51]
)
@pytest.mark.one_database
def test_a_body_whose_end_is_unclear_changes_nothing(user: User, trailers: bytes) -> None:
    """Not even a completion, which would toggle without a body."""
    task = user.create("kept")
    body = chunked(b'{"completed": false}', end=b"0\r\n" + trailers + b"\r\n")
    assert send(user, to_task(body, task["id"], b"PATCH", "/complete"))[0] == 400
    assert user.tasks() == [task]


@pytest.mark.one_database
def test_transfer_encodings_in_two_fields_are_one_list(user: User) -> None:
    """RFC 9110, section 5.3."""
    task = user.create("kept")
    body = chunked(b'{"completed": false}').replace(
        b"Transfer-Encoding: ", b"Transfer-Encoding: identity\r\nTransfer-Encoding: "
    )
    assert send(user, to_task(body, task["id"], b"PATCH", "/complete"))[0] == 200
    assert user.task(task["id"])["completed"] is False


@pytest.mark.parametrize(
    "body, status", [({"title": ""}, 422), ("[", 400), ({"title": "x"}, 404), ({}, 404)]
)
@pytest.mark.parametrize("task_id", ["none", "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"])
@pytest.mark.one_database
def test_a_body_is_judged_before_the_task_is_looked_for(
    user: User, task_id: str, body: dict | str, status: int
) -> None:
    content = {"data": body} if isinstance(body, str) else {"json": body}
    headers = {"Content-Type": "application/json"}
    assert user.put(f"/tasks/{task_id}", headers=headers, **content).status_code == status


def test_what_is_refused_never_reaches_a_database(tmp_path: Path) -> None:
    """It is refused in the same way where none is there, so that one is enough for the others."""
    refused = list((BY_THE_APPLICATION | HTTP).values())
    for name in REFUSED_BY_EVERY_WRITE:
        request, status = BY_THE_APPLICATION[name]
        refused += [(to_task(request, uuid4(), *change), status) for change in CHANGES]
    url = "postgresql://ann@127.0.0.1:1/tasks"
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as ann:
        assert ann.get("/tasks?limit=1").status_code == 503
        unlike = [
            (request[:80], found, status)
            for request, status in refused
            if (found := send(ann, request)[0]) != status
        ]
    assert unlike == []


@pytest.mark.parametrize(
    "request_",
    [
        chunked(b'{"tit', b'le": "x', b'"}'),
        chunked(A_TASK, end=b"0\r\nX-Trailer: y\r\n\r\n"),
        post(A_TASK + b" " * (MAX - len(A_TASK))),
        chunked(A_TASK + b" " * (MAX - len(A_TASK))),
        post(A_TASK, b"Content-Type: APPLICATION/JSON; charset=utf-8\r\n"),
        post(A_TASK, b"Content-Type: application/ld+json\r\n"),
        post(A_TASK, JSON + b"Content-Encoding: Identity\r\n"),
        post(A_TASK, JSON + b"Content-Encoding:\r\n"),
        post(A_TASK, JSON + b"Expect: 100-continue\r\n"),
        post(b'{"title": "x", "n": %b}' % (b"[" * 500 + b"]" * 500)),
        post(b'{"title": "x", "title": "x", "\\u0000": 1}'),
    ],
)
def test_what_is_unusual_but_right_is_taken(user: User, request_: bytes) -> None:
    status, _, body = send(user, request_)
    if status == 100:
        status, body = int(body.split()[1]), body.partition(b"\r\n\r\n")[2]
    assert status == 201, body
    assert user.tasks() == [json.loads(body)]


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n",
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Protocol: ssl\r\n",
        b"Authorization: Bearer %b\r\n" % (b"x" * 32_746),
        b"Expect: 200-ok\r\n",
        b"Expect:\r\n",
        b"X: y\r\n" * 98,
    ],
    ids=["proto", "protocol", "a long token", "an unknown expectation", "none", "100 headers"],
)
def test_no_header_that_is_http_is_refused(user: User, headers: bytes) -> None:
    status, answered, body = send(user, call(b"GET", b"{tasks}", headers))
    assert (status, answered["content-type"], body) == (200, "application/json", b"[]\n")


@pytest.mark.one_database
def test_a_broken_body_does_not_spoil_the_next_request(user: User) -> None:
    """What follows a body that could not be read must not be taken for a request."""
    smuggled = call(b"DELETE", f"{{tasks}}/{uuid4()}".encode())
    status, _, body = send(user, chunked(end=b"zz\r\n" + smuggled))
    assert status == 400
    assert body.count(b"HTTP/1.1") == 0


@pytest.mark.parametrize(
    "host",
    [
        *(b"", b"evil.example", b"a b", b"[::1", b"\xff", b"a:99999999", b"a..b", b".", b".."),
        *(b"x" * 64, b"x" * 5000),  # A label has at most 63 octets (RFC 1035, section 2.3.4).
    ],
)
@pytest.mark.one_database
def test_the_host_header_decides_nothing(server: Server, host: bytes) -> None:
    request = b"GET /api/nobody/tasks?limit=1 HTTP/1.1\r\nHost: %b\r\n\r\n" % host
    found, headers, _ = server.send(request)
    assert found == 200
    assert "location" not in headers


# What Gunicorn's parser reads in its own way, or refuses after the application has answered.
ODD_CHUNKS = {
    "a size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size with a space": b"1 \r\na\r\n0\r\n\r\n",
    "data without its end": b"3\r\nabcXX0\r\n\r\n",
    "101 trailers": b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n",
    "a host as a trailer": b"0\r\nHost: x\r\n\r\n",
    "a length as a trailer": b"0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_who_sends_odd_chunks_learns_that_the_connection_closes(server: Server, name: str) -> None:
    headers = b"Transfer-Encoding: chunked\r\n"
    request = call(b"DELETE", b"/api/nobody/tasks/completed/clear", headers) + ODD_CHUNKS[name]
    status, answer, body = server.send(request + call(b"GET", b"/health"))
    assert answer["connection"] == "close" or body.count(b"HTTP/1.1 200") == 1, status


def test_a_chunk_size_may_have_leading_zeros(user: User) -> None:
    """Also where the packet ends, and with an empty line in the body."""
    path = user.base.removeprefix(user.server.url).encode() + b"/tasks"
    head = chunked(end=b"").replace(b"{tasks}", path).replace(b"Host", b"Connection: close\r\nHost")
    with socket.create_connection(user.server.address, timeout=5) as connection:
        connection.sendall(head + b"0" * 18 + b'15\r\n{\r\n\r\n"title":')
        time.sleep(0.2)
        connection.sendall(b' "x"   }\r\n0\r\n\r\n')
        assert connection.recv(65536).startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize("path", ["/static/docs.css", "/docs/swagger-ui/swagger-ui.css", "/docs"])
@pytest.mark.one_database
def test_if_match_means_nothing_for_a_file(server: Server, path: str) -> None:
    response = requests.get(server.url + path, headers={"If-Match": '"x"'})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"SCRIPT_NAME: /api",
        b"SCRIPT-NAME: /api",
        b"Script_Name: /x",
        b"PATH_INFO: /x",
        b"X-HTTP-Method-Override: DELETE",
        b"X-Forwarded-Prefix: /x",
    ],
)
@pytest.mark.one_database
def test_no_header_moves_the_routes(server: Server, header: bytes) -> None:
    status, _, _ = server.send(call(b"GET", b"/health", header + b"\r\n"))
    assert status == 200
