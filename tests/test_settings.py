"""The settings: which spellings are accepted, and which values stop the start."""

import os
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
from support.process import run_to_its_end
from support.server import ROOT

import settings

NEON = "postgresql://ann:p%40ss@ep-x.eu.neon.tech/db"
NO_KEY = "JWT_JWKS_URL or JWT_SECRET"
# Without its first and last line, as Keycloak shows it.
CERTIFICATE = (
    "MIGrMF+gAwIBAgIBATAFBgMrZXAwADAeFw0yNjAxMDEwMDAwMDBaFw0yNzAxMDEwMDAwMDBaMAAwKjAFBgMrZXADIQCQ"
    "AMalU1nYWh+/YX1MAhiJiYSfDJ0nFRsJKIjMC6YNuDAFBgMrZXADQQDwRL6nmIn+F23NvUGcpY30szLf0BP1uNuQXrZ+"
    "GixIYhR/CUJKV/HuNw3bEdv8wZ/0HlMLIuk8ZoOiAEYB8PcP"
)


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["gunicorn", "app:create_app()", "--check-config"]
    command += ["-c", str(ROOT / "gunicorn.conf.py")]
    return run_to_its_end(folder, *command, PYTHONPATH=str(ROOT), **environment)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, a database, and no sign of a platform."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x.db")
    for name in (*settings.PLATFORM_VARIABLES, "ALLOW_ANYONE"):
        monkeypatch.delenv(name, raising=False)


def test_an_old_sqlite_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no RETURNING, so every write would fail."""
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(
        settings.InvalidSetting, match=r"DATABASE_URL: .*SQLite is 3\.34\.1, older than 3"
    ):
        settings.read_settings()
    monkeypatch.setenv("DATABASE_URL", NEON)
    settings.read_settings()


@pytest.mark.parametrize(
    "given, taken",
    [
        (NEON, NEON),
        (NEON.replace("postgresql", "postgres"), NEON),
        (NEON.replace("postgresql", "postgresql+asyncpg"), NEON),
        (NEON.replace("postgresql", "postgresql+psycopg2"), NEON),
        (f"jdbc:{NEON}", NEON),
        (f"psql '{NEON}'", NEON),
        (f'"{NEON}"', NEON),
        (f"  {NEON}\n", NEON),
        (f"DATABASE_URL={NEON}", NEON),
        (f"{NEON}?", NEON),
        (f"{NEON}?pgbouncer=true&connection_limit=1", NEON),
        (f"{NEON}?sslmode=require&pgbouncer=true", f"{NEON}?sslmode=require"),
        (TLS := f"{NEON}?sslmode=require&channel_binding=require", TLS),
        (f"{NEON}?ssl=require", f"{NEON}?sslmode=require"),
        (f"{NEON}?ssl=true", f"{NEON}?sslmode=require"),
        (f"{NEON}?sslmode=no-verify", f"{NEON}?sslmode=require"),
        (OPTIONS := f"{NEON}?options=endpoint%3Dep-x%20-c%20a%3Db", OPTIONS),
        (f"{NEON}?options=endpoint=ep-x%20-c%20a=b", OPTIONS),
        (f"{NEON}?options=endpoint%3Dep-x%20-csearch_path%3Db%20-c%20a%3Db", OPTIONS),
        (f"{NEON}?options=-c%20search_path=b,%5C%20c&sslmode=require", f"{NEON}?sslmode=require"),
        (f"{NEON}?options=--search_path%3Db", NEON),
        (f"{NEON}?options=-c+search_path%3Db", NEON),
        (f"{NEON}?options=endpoint%3Dep-x+-c+a%3Db", OPTIONS),
        (f"{NEON}?options=-c%20a%3DUTC+1", f"{NEON}?options=-c%20a%3DUTC%2B1"),
        ("postgresql:///db?host=/tmp/x", "postgresql:///db?host=/tmp/x"),
        (PLUS := "postgresql://host/db?user=ann&password=a+b%2Bc", PLUS),
        (MARK := "postgresql://ann:12?3&sslmode=x@host:5/db", MARK),
        ("postgresql://ann:?a@host/db?ssl=true", "postgresql://ann:?a@host/db?sslmode=require"),
        (f"{NEON}?ssl=false", f"{NEON}?sslmode=prefer"),
        (f"{NEON}?ssl=1", f"{NEON}?sslmode=require"),
        (f"{NEON}?ssl=0", f"{NEON}?sslmode=prefer"),
        (f"{NEON}?sslmode=Require", f"{NEON}?sslmode=require"),
        (f"{NEON}?ssl=True", f"{NEON}?sslmode=require"),
        (f"{NEON}?sslmode=verify-full&ssl=true", f"{NEON}?sslmode=verify-full"),
        (f"{NEON}?ssl=true&sslmode=verify-full", f"{NEON}?sslmode=verify-full"),
        (
            "postgresql+pg8000://ann:x@/db?unix_sock=/cloudsql/p:r:i/.s.PGSQL.5432",
            "postgresql://ann:x@/db?host=/cloudsql/p:r:i",
        ),
        (
            "postgresql+pg8000://ann:x@/db?unix_sock=%2Fcloudsql%2Fp%3Ar%3Ai%2F.s.PGSQL.5432",
            "postgresql://ann:x@/db?host=/cloudsql/p:r:i",
        ),
        (f"{NEON}?sslMode=verify-full", f"{NEON}?sslmode=verify-full"),
        (f"{NEON}?SSLMODE=Require", f"{NEON}?sslmode=require"),
        (f"{NEON}?SSL=true", f"{NEON}?sslmode=require"),
        (f"{NEON}?ssl=true&sslMode=verify-full", f"{NEON}?sslmode=verify-full"),
        (
            f"{NEON}?ssl-mode=verify-full&ssl-root-cert=/x.pem",
            f"{NEON}?sslmode=verify-full&sslrootcert=/x.pem",
        ),
        (f"jdbc:{NEON}?sslmode=require&channelBinding=require", TLS),
        (
            f"{NEON}?connect_timeout=5&amp;sslmode=require",
            f"{NEON}?connect_timeout=5&sslmode=require",
        ),
        (SOCKETS := "postgresql:///db?host=/tmp/x,/tmp/y&port=1,2", SOCKETS),
        (ADDRESS := "postgresql://host/db?hostaddr=192.0.2.1", ADDRESS),
        (PORTS := "postgresql:///db?hostaddr=192.0.2.1,192.0.2.2&port=1,2", PORTS),
        (f"{NEON}?&sslmode=&connect_timeout=5", f"{NEON}?connect_timeout=5"),
        (f'export DATABASE_URL="{NEON}"\n', NEON),
        (HOSTS := "postgresql://a,b:5432/db?target_session_attrs=primary", HOSTS),
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ('"sqlite:///x.db"\n', "sqlite:///x.db"),
        ("", "sqlite:///tasks.db"),
        (" ", "sqlite:///tasks.db"),
    ],
)
def test_spellings_of_the_database(monkeypatch: pytest.MonkeyPatch, given: str, taken: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    read = settings.read_settings()
    assert read.database_url == taken
    assert "p%40ss" not in repr(read)


@pytest.mark.parametrize(
    "query, schema",
    [
        ("", "public"),
        ("?sslmode=require&schema=Tasks", "Tasks"),
        ("?schema=", "public"),
        ("?options=-c%20search_path%3Dtasks%2Cpublic", "tasks"),
        ("?options=-csearch_path=tasks", "tasks"),
        ("?currentSchema=tasks,public", "tasks"),
        ("?search_path=tasks&sslmode=require", "tasks"),
    ],
)
@pytest.mark.parametrize("wrapped", ["{}", "psql '{}'", '"{}"\n'])
def test_the_schema_is_named_in_the_url(
    monkeypatch: pytest.MonkeyPatch, wrapped: str, query: str, schema: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", wrapped.format(NEON + query))
    assert settings.read_settings().database_schema == schema


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "s" * 32)
    read = settings.read_settings()
    assert read.jwt_secret == "s" * 32
    assert "sss" not in repr(read)


# Each is an address on the internet, or can be one.
PUBLIC_HOSTS = [
    *("issuer.example", "auth.internal.example", ".internal", "10.example", "192.168.example"),
    *("8.8.8.8", "9.0.0.1", "11.0.0.1", "172.15.0.1", "172.32.0.1", "192.169.0.1", "1.10.0.0.1"),
    *("10.0.0.1.example", "134744072", "0x08080808", "0.0.0.0", "169.254.169.254"),
    *("[2001:db8::1]", "[::ffff:8.8.8.8]", "[fe80::1]", "auth.", "-auth", "auth@issuer.example"),
]
PRIVATE_HOSTS = [
    *("auth", "auth:3000", "AUTH:3000", "better_auth", "auth-1", "auth.railway.internal:3000"),
    *("host.docker.internal", "auth.default.svc.cluster.local", "10.0.0.1", "10.255.255.255:80"),
    *("172.16.0.1", "172.31.255.1", "192.168.1.2", "[fd00::1]:3000", "[fc12:3456::1]"),
]


@pytest.mark.parametrize(
    "name, value",
    [
        ("DATABASE_URL", "mysql://ann:pass@host/db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite:////nowhere/at/all.db"),
        # To Path.is_dir(), it is an error before Python 3.14, like a folder without permission.
        ("DATABASE_URL", f"sqlite:////{'x' * 300}/x.db"),
        ("DATABASE_URL", "sqlite:///."),
        ("DATABASE_URL", "sqlite:////tmp/"),
        ("DATABASE_URL", "tasks.db"),
        ("DATABASE_URL", "sqlite:///x.db?mode=ro"),
        ("DATABASE_URL", "sqlite:///x.db?"),
        ("DATABASE_URL", "postgresql://ann:12 34@host/db"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?options=-c a=b"),
        ("DATABASE_URL", "postgresql://ann:pass/word@host/db"),
        ("DATABASE_URL", "postgresql://ann:pass@[host/db"),
        ("DATABASE_URL", "postgresql://ann:x@pass?=+@host/db"),
        ("DATABASE_URL", "postgresql://ann:x@pass?y@host/db?sslmode=require"),
        ("DATABASE_URL", "postgresql://ann:x@pass?y=z@host/db"),
        ("DATABASE_URL", "postgresql://ann:x?pass/w@host/db"),
        ("DATABASE_URL", "postgresql://ann:12?w/pass@host/db"),
        ("DATABASE_URL", "postgresql://ann:pass%CDx@host/db"),
        ("DATABASE_URL", "jdbc:postgresql://host/db?user=ann&password=x&+pass&sslmode=require"),
        ("DATABASE_URL", "jdbc:postgresql://host?user=ann&password=x@pass&sslmode=require"),
        ("DATABASE_URL", "postgresql://ann:p@pass@host/db"),
        ("DATABASE_URL", "postgresql://ann:1/pass@host/db"),
        ("DATABASE_URL", "postgresql://host/db?sslmode=require&sslrootcert=system"),
        ("DATABASE_URL", "postgresql://host/db?schema=tasks.public"),
        ("DATABASE_URL", "postgresql://host:99999/db"),
        ("DATABASE_URL", "postgresql://host:0/db"),
        ("DATABASE_URL", "postgresql://ann:pass1@host:pass2/db"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslmode=required"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?ssl=yes"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslmode=require?pgbouncer=true"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslmode=require;pgbouncer=true"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslmode=require%zz"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslmode=require="),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?sslrootcert=a=b.pem"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?target_session_attrs=write"),
        ("DATABASE_URL", "postgresql://ann:pass@host/db?channel_binding=yes"),
        ("PORT", "x"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "65"),
        ("WEB_CONCURRENCY", "many"),
        ("THREADS", "-1"),
        ("THREADS", "4"),
        ("THREADS", "257"),
        ("THREADS", ""),
        ("LOG_LEVEL", "loud"),
        ("CORS_ORIGINS", "localhost:3000"),
        ("CORS_ORIGINS", "https://a.example, *"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", 'https://a.example, "https://b.example", https://c.d'),
        ("CORS_ORIGINS", "https://a.example/path"),
        ("CORS_ORIGINS", "http://localhost:"),
        ("CORS_ORIGINS", "http://localhost:3OOO"),
        ("CORS_ORIGINS", "http://localhost:300000"),
        ("CORS_ORIGINS", "http://localhost:\u0663\u0660\u0660\u0660"),
        ("CORS_ORIGINS", "http://[::1"),
        ("CORS_ORIGINS", "http://a:1:2"),
        ("CORS_ORIGINS", "https://b\u00fccher.example"),
        ("JWT_SECRET", "x" * 31),
        ("JWT_SECRET", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEabcdefgh ann@example.com"),
        ("JWT_SECRET", r"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----"),
        ("JWT_SECRET", "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="),
        ("JWT_SECRET", CERTIFICATE),
        ("JWT_SECRET", f" '{'x' * 31}'\n"),
        ("JWT_SECRET", "x" * 32 + '"'),
        ("JWT_SECRET", "'" + "x" * 32),
        ("JWT_SECRET", "\u201c" + "x" * 32 + "\u201d"),
        ("JWT_SECRET", "\u2018" + "x" * 32 + "\u2019"),
        ("JWT_SECRET", "`" + "x" * 32 + "`"),
        ("JWT_SECRET", "x" * 16 + "\n" + "x" * 16),
        ("JWT_SECRET", "\u200b" + "x" * 32),
        ("JWT_SECRET", "x" * 32 + "\udcff"),
        ("BETTER_AUTH_SECRET", "x" * 31),
        ("JWT_JWKS_URL", "http://issuer.example/jwks"),
        ("JWT_JWKS_URL", "http://127.0.0.1.issuer.example/jwks"),
        ("JWT_JWKS_URL", "http://127.0.0.1@issuer.example/jwks"),
        ("JWT_JWKS_URL", "issuer.example/jwks"),
        ("JWT_JWKS_URL", "https:///jwks"),
        ("JWT_JWKS_URL", "https://issuer.example:x/jwks"),
        ("JWT_JWKS_URL", "https://issuer.example:0/jwks"),
        ("JWT_JWKS_URL", "https://issuer.example:65536/jwks"),
        ("JWT_JWKS_URL", "https://[issuer.example/jwks"),
        ("JWT_JWKS_URL", "file:///etc/passwd"),
        ("JWT_JWKS_URL", "https://issuer.example/jwks?apikey=pass word"),
        ("JWT_JWKS_URL", "https://issuer.example/jwks/\u00fc?apikey=pass"),
        ("JWT_JWKS_URL", "https://issuer example/jwks"),
        ("JWT_JWKS_URL", "https://<your-domain>/jwks"),
        ("JWT_JWKS_URL", "https://issuer.example/<tenant>/jwks"),
        ("JWT_JWKS_URL", "https://*/jwks"),
        ("JWT_JWKS_URL", "https://https://issuer.example/jwks"),
        ("JWT_JWKS_URL", "https://:pass@localhost/jwks"),
        *(("JWT_JWKS_URL", f"http://{host}/jwks") for host in PUBLIC_HOSTS),
        ("JWT_ISSUER", "https://issuer.example"),
        ("JWT_AUDIENCE", "api"),
        ("JWT_AUDIENCE", "'a','b'"),
        *((name, value) for name in ("JWT_AUDIENCE", "CORS_ORIGINS") for value in (",", "' , '")),
        ("JWT_AUDIENCE", '["a", "b"]'),
        ("JWT_SECRET", "# the secret of 32 bytes or more, which signs tokens"),
        *(("TRASH_DAYS", days) for days in ("-1", "36501", "long", "1.5", "30d")),
        ("JWT_LEEWAY", "-1"),
        ("JWT_LEEWAY", "601"),
        ("JWT_LEEWAY", "long"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(settings.InvalidSetting) as stop:
        settings.read_settings()
    message = str(stop.value)
    assert re.search(rf"\b{name}\b", message) and "\n" not in message
    assert "pass" not in message.replace("PASSWORD", "").replace("password", "")


@pytest.mark.parametrize(
    "given, part",
    [
        ("postgresql://postgres.ref:[YOUR-PASSWORD]@aws-0.pooler.supabase.com:6543/db", "password"),
        ("postgresql://ann:[your%20password]@host/db", "password"),
        ("postgresql://ann:<password>@host/db", "password"),
        ("postgresql://ann:****@host/db", "password"),
        ("postgresql://ann:\u2022\u2022\u2022\u2022@host/db", "password"),
        ("postgresql://ann:${POSTGRES_PASSWORD}@db:5432/tasks", "password"),
        ("postgresql://${{PGUSER}}:x@${{RAILWAY_PRIVATE_DOMAIN}}:5432/${{PGDATABASE}}", "user"),
        ("postgresql://ann:x@<host>/db", "host"),
        ("postgresql://ann:x@host/{dbname}", "dbname"),
    ],
)
def test_a_placeholder_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, given: str, part: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    message = f"^DATABASE_URL: expected the {part} itself, not a placeholder"
    with pytest.raises(settings.InvalidSetting, match=message):
        settings.read_settings()


@pytest.mark.parametrize("password", ["[a1]", "<x", "a<b>", "$1{2}", "**", "{a}b", "$a", "[a]b"])
def test_a_password_is_no_placeholder(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url := f"postgresql://ann:{password}@host/db")
    assert settings.read_settings().database_url == url


def test_libpqs_variables_may_be_in_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flask's commands find them there, too."""
    for name in ("PGUSER", "PGSSLMODE"):
        monkeypatch.setenv(name, "")  # So that it is removed again.
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/db")
    monkeypatch.setenv("PGUSER", "ann")
    (tmp_path / ".env").write_text("PGUSER='bob'\nPGSSLMODE='require'\n")
    settings.read_settings()
    assert (os.environ["PGUSER"], os.environ["PGSSLMODE"]) == ("ann", "require")


def test_kerberos_may_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{NEON}?gssencmode=require"
    monkeypatch.setenv("DATABASE_URL", url)
    assert settings.read_settings().database_url == url


def test_a_value_that_libpq_does_not_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{NEON}?gssencmode=maybe")
    with pytest.raises(settings.InvalidSetting, match="gssencmode"):
        settings.read_settings()


def test_a_system_without_certificates_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{NEON}?sslrootcert=system")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(settings.InvalidSetting, match=r"DATABASE_URL: .* has no certificates"):
        settings.read_settings()


@pytest.mark.parametrize("level", ["debug", "Debug", " WARNING\n", '"info"', "error", "Critical"])
def test_the_level_of_the_log_is_taken_in_any_case(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert settings.read_settings().log_level == level.strip(' "\n').upper()


SECRET = "correct-horse-battery-staple-0123"


@pytest.mark.parametrize(
    "wrapped", ["{}", " {} ", "{}\n", '"{}"', "'{}'", ' "{}"\r\n', "' {} '", "'\n{}\n'"]
)
def test_what_is_pasted_along_with_a_value_is_taken_off(
    monkeypatch: pytest.MonkeyPatch, wrapped: str
) -> None:
    values = {
        "DATABASE_URL": (NEON, "database_url", NEON),
        "CORS_ORIGINS": ("https://a.example", "cors_origins", ("https://a.example",)),
        "THREADS": ("7", "threads", 7),
        "TRASH_DAYS": ("7", "trash_days", 7),
        "JWT_SECRET": (SECRET, "jwt_secret", SECRET),
        "JWT_ISSUER": ("https://a.example", "jwt_issuer", "https://a.example"),
        "JWT_AUDIENCE": ("api", "jwt_audience", ("api",)),
    }
    for name, (value, _, _) in values.items():
        monkeypatch.setenv(name, wrapped.format(value))
    read = settings.read_settings()
    for _, attribute, taken in values.values():
        assert getattr(read, attribute) == taken
    monkeypatch.setenv("JWT_JWKS_URL", wrapped.format("https://a.example/jwks"))
    assert settings.read_settings().jwt_jwks_url == "https://a.example/jwks"


@pytest.mark.parametrize(
    "content, secret",
    [
        ("", ""),
        ("# JWT_SECRET=x\n\n  \n\t# indented\n\x0c\n", ""),
        (f"JWT_SECRET={SECRET}", SECRET),
        (f"JWT_SECRET={SECRET}\r\nTHREADS=7\r\n", SECRET),
        (f"JWT_SECRET={SECRET}\rTHREADS=7\r", SECRET),
        (f"THREADS=7\u2028JWT_SECRET={SECRET}\n", SECRET),
        (f"THREADS=7\x0bJWT_SECRET={SECRET}", SECRET),
        (f"# a comment\x85JWT_SECRET={SECRET}\x0c", SECRET),
        (f"  JWT_SECRET = {SECRET}  ", SECRET),
        (f"export JWT_SECRET={SECRET}", SECRET),
        (f'JWT_SECRET="{SECRET}"', SECRET),
        (f"JWT_SECRET='{SECRET}' # a comment", SECRET),
        (f"JWT_SECRET={SECRET} # a comment", SECRET),
        (f"JWT_SECRET={SECRET}#1", f"{SECRET}#1"),
        (f"JWT_SECRET='\"{SECRET}\"'", SECRET),
        (f'JWT_SECRET="{SECRET}\\n"', SECRET),
        (f"A=b\nJWT_SECRET={SECRET}$A${{A}}${{HOME}}", f"{SECRET}$A${{A}}${{HOME}}"),
        (f'JWT_SECRET="{SECRET}${{HOME:-x}}"', f"{SECRET}${{HOME:-x}}"),
        (f"JWT_SECRET={SECRET}=\u00e4 \u7528", f"{SECRET}=\u00e4 \u7528"),
        ("JWT_SECRET=", ""),
        (f"NEVER_HEARD_OF=1\nJWT_SECRET={SECRET}", SECRET),
        (f"\ufeffJWT_SECRET={SECRET}".encode(), SECRET),
        (f"JWT_SECRET={SECRET}\r\n".encode("utf-16"), SECRET),
        (b"\xfe\xff" + f"JWT_SECRET={SECRET}".encode("utf-16-be"), SECRET),
        (f'JWT_SECRET="{SECRET}', 1),
        (f"THREADS=7\nJWT_SECRET='{SECRET}\nPORT=1\n", 2),
        (f'\n\r\n# one\n\nJWT_SECRET="{SECRET}\n\nLOG_LEVEL="debug"\n', 5),
        (f'A="1\nJWT_SECRET={SECRET}\nB="2"\n', 1),
        (f'A="1\nJWT_SECRET={SECRET}\nB="', 1),
        (f'JWT_SECRET="{SECRET}" x', 1),
        (f'JWT_SECRET="{SECRET}""', 1),
        (f"PORT=1\n\nJWT_SECRET {SECRET}", 3),
        (f"JWT_SECRET: {SECRET}", 1),
        ("JWT_SECRET", 1),
        (f"={SECRET}", 1),
        (f"JWT-SECRET={SECRET}", 1),
        (f"set JWT_SECRET={SECRET}", 1),
        (f"PORT=1\n{SECRET}\n", 2),
        (f"JWT_SECRET={SECRET}\n<<<<<<< HEAD\n", 2),
        (f"PORT=1\nJWT_SECRET={SECRET}\u00e4\nTHREADS=7".encode("latin-1"), 2),
        (f"JWT_SECRET={SECRET}".encode("utf-16-le"), 1),
        (b"PGAPPNAME=a\0b", 1),
        (f"JWT_SECRET={SECRET}".encode("utf-32"), 1),
    ],
)
def test_each_line_of_the_file_counts(
    tmp_path: Path, content: str | bytes, secret: str | int
) -> None:
    """What the secret is, or which line stops the start."""
    (tmp_path / ".env").write_bytes(content.encode() if isinstance(content, str) else content)
    if isinstance(secret, str):
        assert settings.read_settings().jwt_secret == secret
        return
    with pytest.raises(settings.InvalidSetting) as stop:
        settings.read_settings()
    message = str(stop.value)
    assert message.startswith(f".env, line {secret}: expected ")
    assert "\n" not in message and SECRET not in message


def test_a_folder_of_that_name_is_no_file_of_settings(tmp_path: Path) -> None:
    """Some name their virtual environment so."""
    (tmp_path / ".env").mkdir()
    assert settings.read_settings().jwt_secret == ""


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(".env")
    with pytest.raises(settings.InvalidSetting, match=r"^\.env: \w+"):
        settings.read_settings()


def test_the_limits_of_a_number_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_ANYONE", "true")
    limits = {"PORT": (1, 65535), "WEB_CONCURRENCY": (1, 64), "THREADS": (5, 256)}
    days = (0, 36_500)
    for end in (0, 1):
        for name, values in (limits | {"JWT_LEEWAY": (0, 600), "TRASH_DAYS": days}).items():
            monkeypatch.setenv(name, str(values[end]))
        read = settings.read_settings()
        assert (read.port, read.workers, read.threads) == tuple(v[end] for v in limits.values())
        assert (read.jwt_leeway, read.trash_days) == ((0, 600)[end], days[end])


def test_the_trash_is_kept_for_30_days() -> None:
    assert settings.read_settings().trash_days == 30


@pytest.mark.parametrize(
    "text, environment, begin",
    [
        # Gunicorn reads WEB_CONCURRENCY of the environment by itself, before all else.
        ("WEB_CONCURRENCY=many", {}, "WEB_CONCURRENCY: expected a whole number"),
        (f'THREADS=7\nJWT_SECRET="{SECRET}\n', {}, ".env, line 2: expected NAME=VALUE"),
        ("JWT_SECRET=ssh-rsa AAAAB3NzaC1yc2EAAAADAQABA", {}, "JWT_SECRET: expected a secret,"),
        ("", {"PORT": "8000"}, "DATABASE_URL is not set: expected postgresql://"),
        ("", {"RENDER": "true", "DATABASE_URL": NEON}, f"{NO_KEY}: expected one of them, or ALLOW"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, text: str, environment: dict[str, str], begin: str
) -> None:
    (tmp_path / ".env").write_text(text)
    result = start(tmp_path, **environment)
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(begin)
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


@pytest.mark.parametrize("name", ["JWT_SECRET", "BETTER_AUTH_SECRET"])
@pytest.mark.parametrize("secret", ["s" * 32, "weak"])
def test_a_key_set_rules_over_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    monkeypatch.setenv("JWT_JWKS_URL", "https://issuer.example")
    monkeypatch.setenv(name, secret)
    read = settings.read_settings()
    assert (read.jwt_secret, read.jwt_jwks_url) == ("", "https://issuer.example")
    assert read.warnings == (f"{name} is ignored, since JWT_JWKS_URL is set",)


OPEN = "Anyone who can reach this server may read and write every user's tasks"
TRUE = {"ALLOW_ANYONE": "true"}
SECURED = {"JWT_SECRET": "s" * 32}
KEYS = {"JWT_JWKS_URL": "https://issuer.example"}
# The environment of a start, and what it does at home and on a platform: "open", "closed", or the
# setting that stops it.
STARTS = [
    ({}, "open", NO_KEY),
    (TRUE, "open", "open"),
    ({"ALLOW_ANYONE": " 'true'\n"}, "open", "open"),
    ({"ALLOW_ANYONE": ""}, "open", NO_KEY),
    ({"ALLOW_ANYONE": " "}, "open", NO_KEY),
    ({"ALLOW_ANYONE": "''"}, "open", NO_KEY),
    ({"ALLOW_ANYONE": "false"}, NO_KEY, NO_KEY),
    ({"ALLOW_ANYONE": '"false"'}, NO_KEY, NO_KEY),
    *(
        ({"ALLOW_ANYONE": value}, "ALLOW_ANYONE", "ALLOW_ANYONE")
        for value in (
            *("True", "TRUE", "False", "1", "0", "yes", "no", "on", "off", "y", "t", "treu", "tru"),
            *("truee", "true;", "true false", "true # comment", "null", "none", "ture", "'true"),
            *('true"', "tr ue", "true\u200b", "=true", "*", "https://app.example.com"),
        )
    ),
    *(
        ({name: "true"}, "open", NO_KEY)
        for name in ("ALLOW_ANYBODY", "ALLOWANYONE", "ALLOW_ANY_ONE", "allow_anyone", "ANYONE")
    ),
    ({"JWT_SECERT": "s" * 32}, "open", NO_KEY),
    ({"JWKS_URL": "https://issuer.example"}, "open", NO_KEY),
    ({"JWT_SECRET": ""}, "open", NO_KEY),
    ({"JWT_SECRET": " "}, "open", NO_KEY),
    ({"JWT_SECRET": "''", "JWT_JWKS_URL": '""'}, "open", NO_KEY),
    ({"JWT_SECRET": "weak"}, "JWT_SECRET", "JWT_SECRET"),
    ({"JWT_SECRET": "weak"} | TRUE, "JWT_SECRET", "JWT_SECRET"),
    ({"JWT_ISSUER": "https://issuer.example"}, NO_KEY, NO_KEY),
    ({"JWT_ISSUER": "https://issuer.example"} | TRUE, NO_KEY, NO_KEY),
    ({"JWT_AUDIENCE": "api"} | TRUE, NO_KEY, NO_KEY),
    ({"JWT_JWKS_URL": "issuer.example"} | TRUE, "JWT_JWKS_URL", "JWT_JWKS_URL"),
    (SECURED, "closed", "closed"),
    ({"JWT_SECRET": "\u00fc" * 16}, "closed", "closed"),
    (KEYS, "closed", "closed"),
    (SECURED | KEYS, "closed", "closed"),
    (SECURED | TRUE, "closed", "closed"),
    (KEYS | TRUE, "closed", "closed"),
    (SECURED | {"ALLOW_ANYONE": "false"}, "closed", "closed"),
    (SECURED | {"ALLOW_ANYONE": "ture"}, "ALLOW_ANYONE", "ALLOW_ANYONE"),
]


@pytest.mark.parametrize("variables, at_home, on_platform", STARTS)
def test_a_server_is_open_only_where_it_is_meant(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], at_home: str, on_platform: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert outcome() == at_home
    monkeypatch.setenv("PORT", "8000")
    assert outcome() == on_platform


def outcome() -> str:
    try:
        read = settings.read_settings()
    except settings.InvalidSetting as stop:
        assert "\n" not in str(stop)
        return str(stop).partition(": expected ")[0]
    is_open = not (read.jwt_secret or read.jwt_jwks_url)
    assert (OPEN in read.warnings) == is_open
    return "open" if is_open else "closed"


@pytest.mark.parametrize("name", sorted(settings.PLATFORM_VARIABLES))
def test_a_platform_needs_a_key_or_the_word_that_it_is_meant(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", NEON)
    monkeypatch.setenv(name, "8000")
    expected = "one of them, or ALLOW_ANYONE=true if anyone may call for any user"
    with pytest.raises(settings.InvalidSetting, match=rf"^{NO_KEY}: expected {expected}\Z"):
        settings.read_settings()


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_keys_from_a_private_network_need_no_tls_and_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("JWT_JWKS_URL", f"http://{host}/jwks?apikey=secret1")
    (warning,) = settings.read_settings().warnings
    assert warning == f"Whoever can change the traffic from {host} can sign tokens"


def test_an_issuer_may_have_a_name_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from it. An issuer behind a proxy may take its own address for this."""
    monkeypatch.setenv("JWT_JWKS_URL", "https://issuer.example/jwks")
    monkeypatch.setenv("JWT_ISSUER", "http://issuer.example")
    assert settings.read_settings().jwt_issuer == "http://issuer.example"


@pytest.mark.parametrize("host", ["localhost:3000", "127.0.0.1", "[::1]:3000"])
def test_keys_from_this_machine_are_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("JWT_JWKS_URL", f"http://{host}/jwks")
    assert settings.read_settings().warnings == ()


@pytest.mark.parametrize("name", sorted(settings.PLATFORM_VARIABLES))
def test_a_platform_needs_a_database(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv(name, "8000")
    with pytest.raises(settings.InvalidSetting, match=r"^DATABASE_URL is not set.+\Z"):
        settings.read_settings()


def test_a_laptop_does_not(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9000\n")
    assert start(tmp_path).returncode == 0


def test_an_environment_that_a_shell_made_of_the_file_beats_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise the secret would be a text that anyone can guess."""
    (tmp_path / ".env").write_text("JWT_SECRET=${TASKS_SIGNING_SECRET_OF_PRODUCTION}\n")
    monkeypatch.setenv("TASKS_SIGNING_SECRET_OF_PRODUCTION", SECRET)
    monkeypatch.setenv("JWT_SECRET", SECRET)
    assert settings.read_settings().jwt_secret == SECRET


def test_the_environment_beats_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("THREADS=7\nWEB_CONCURRENCY=3\n")
    monkeypatch.setenv("THREADS", "9")
    read = settings.read_settings()
    assert (read.threads, read.workers) == (9, 3)


def test_the_example_names_every_setting_with_its_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    defaults = settings.read_settings()
    lines = (ROOT / ".env.example").read_text().splitlines()
    assigned = [line.removeprefix("# ") for line in lines if re.match("# [A-Z_]+=", line)]
    assert [line.partition("=")[0] for line in assigned] == [
        *("DATABASE_URL", "TRASH_DAYS", "CORS_ORIGINS", "LOG_LEVEL", "PORT", "WEB_CONCURRENCY"),
        *("THREADS", "ALLOW_ANYONE", "JWT_SECRET", "JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"),
        "JWT_LEEWAY",
    ]
    (tmp_path / ".env").write_text("\n".join(assigned))
    assert settings.read_settings() == defaults
