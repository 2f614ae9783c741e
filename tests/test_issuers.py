"""Each row of the table in docs/tokens.md, with keys and a token as that service makes them."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.server import ROOT
from test_auth import hs256

from auth import Unauthenticated, Verifier
from settings import read_settings
from testbed.issuer import Issuer, Key

NOW = int(time.time())
SECRET = "the-legacy-secret-of-a-project-of-supabase"
SUPABASE = {"aal": "aal1", "role": "authenticated", "session_id": "s", "is_anonymous": False}
CLERK = {"azp": "https://app.example.com", "fva": [0, -1], "nbf": NOW - 10, "sid": "sess_1", "v": 2}
PERSON = {"id": "user", "name": "Ann", "email": "ann@example.com", "emailVerified": False}
CERTIFICATE = {"use": "sig", "x5c": ["MIIC"], "x5t": "t"}
# What an operator writes for the words in capitals.
WORDS = {
    "APP": "app.example.com",
    "CLIENT": "client_01",
    "DATABASE": "neondb",
    "DOMAIN": "example.com",
    "HOST": "ep-1.neonauth.eu-central-1.aws.neon.tech",
    "NAME": "brave-cat-1",
    "POOL": "eu-central-1_Ab12",
    "PROJECT": "tasks-1",
    "REALM": "tasks",
    "REF": "abcdefghijklmnopqrst",
    "REGION": "eu-central-1",
    "TENANT": "9122040d-6c67-4c5b-b112-36a304b66dad",
}
# The algorithm, what else its key has, the header and the claims of a token, and JWT_AUDIENCE where
# the table describes it.
SERVICES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "Better Auth": (
        "EdDSA",
        {},
        {},
        PERSON | {"iss": "https://app.example.com", "aud": "https://app.example.com"},
        "",
    ),
    "Neon Auth": (
        "EdDSA",
        {},
        {},
        {
            **PERSON,
            "role": "authenticated",
            "banned": False,
            "iss": "https://ep-1.neonauth.eu-central-1.aws.neon.tech",
            "aud": "https://ep-1.neonauth.eu-central-1.aws.neon.tech",
        },
        "",
    ),
    "Clerk, development": (
        "RS256",
        {"use": "sig"},
        {"cat": "cl_B7d4PD111AAA", "typ": "JWT"},
        CLERK | {"iss": "https://brave-cat-1.clerk.accounts.dev"},
        "",
    ),
    "Clerk, production": (
        "RS256",
        {"use": "sig"},
        {"cat": "cl_B7d4PD111AAA", "typ": "JWT"},
        CLERK | {"iss": "https://clerk.example.com"},
        "",
    ),
    "Supabase": (
        "ES256",
        {"key_ops": ["verify"], "ext": True, "use": "sig"},
        {"typ": "JWT"},
        SUPABASE
        | {"iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1", "aud": "authenticated"},
        "",
    ),
    "Supabase, legacy": (
        "HS256",
        {},
        {"kid": "k"},
        SUPABASE
        | {"iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1", "aud": "authenticated"},
        "",
    ),
    "Auth0": (
        "RS256",
        CERTIFICATE,
        {"typ": "JWT"},
        {
            "iss": "https://9122040d-6c67-4c5b-b112-36a304b66dad.auth0.com/",
            "aud": ["https://api.example.com", "https://tenant.auth0.com/userinfo"],
            "azp": "client",
            "scope": "openid",
            "gty": "password",
        },
        "https://api.example.com",
    ),
    "Firebase": (
        "RS256",
        {"use": "sig"},
        {"typ": "JWT"},
        {
            "iss": "https://securetoken.google.com/tasks-1",
            "aud": "tasks-1",
            "auth_time": NOW - 10,
            "user_id": "user",
            "firebase": {"identities": {}, "sign_in_provider": "password"},
        },
        "",
    ),
    "WorkOS": (
        "RS256",
        CERTIFICATE,
        {},
        {
            "iss": "https://api.workos.com/user_management/client_01",
            "sid": "session_1",
            "org_id": "org_1",
            "jti": "1",
            "permissions": [],
        },
        "",
    ),
    "Kinde": (
        "RS256",
        {"use": "sig"},
        {"typ": "JWT"},
        {
            "iss": "https://brave-cat-1.kinde.com",
            "aud": ["https://api.example.com"],
            "azp": "client",
            "scp": ["openid"],
            "jti": "1",
        },
        "https://api.example.com",
    ),
    "Cognito": (
        "RS256",
        {"use": "sig"},
        {},
        {
            "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab12",
            "client_id": "client",
            "token_use": "access",
            "username": "ann",
            "jti": "1",
        },
        "",
    ),
    "Entra ID": (
        "RS256",
        CERTIFICATE | {"alg": None, "cloud_instance_name": "microsoftonline.com"},
        {"typ": "JWT"},
        {
            "iss": "https://login.microsoftonline.com/9122040d-6c67-4c5b-b112-36a304b66dad/v2.0",
            "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
            "nbf": NOW - 10,
            "oid": "o",
            "scp": "tasks",
            "ver": "2.0",
        },
        "6e74172b-be56-4843-9ff4-e66a39bb12e3",
    ),
    "Keycloak": (
        "RS256",
        CERTIFICATE,
        {"typ": "JWT"},
        {
            "iss": "https://ep-1.neonauth.eu-central-1.aws.neon.tech/realms/tasks",
            "aud": "account",
            "typ": "Bearer",
            "azp": "page",
            "realm_access": {"roles": []},
            "jti": "onrtac:1",
        },
        "",
    ),
    "Logto": (
        "ES384",
        {"use": "sig"},
        {"typ": "at+jwt"},
        {
            "iss": "https://9122040d-6c67-4c5b-b112-36a304b66dad.logto.app/oidc",
            "aud": "https://api.example.com",
            "client_id": "page",
            "scope": "",
            "jti": "1",
        },
        "https://api.example.com",
    ),
}


def rows() -> dict[str, list[str]]:
    """The cells of each row by the name of the service."""
    guide = (ROOT / "docs/tokens.md").read_text()
    _, _, table = guide.partition("| service |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {service: rest for service, *rest in cells}


def setting(cell: str) -> str:
    """The value that a cell begins with, without words in capitals, or ""."""
    value = re.match("`([^`]*)`", cell)
    word = re.compile(rf"\b({'|'.join(WORDS)})\b")
    return word.sub(lambda found: WORDS[found[1]], value[1]) if value else ""


def test_the_table_has_a_row_for_each_service() -> None:
    assert list(rows()) == list(SERVICES)


@pytest.fixture(scope="module")
def encryption_key() -> Key:
    return Key("RS256", "e", use="enc", alg="RSA-OAEP")


@pytest.mark.parametrize("service", SERVICES)
def test_a_token_is_accepted_with_the_settings_of_the_row(
    issuer: Issuer,
    encryption_key: Key,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    service: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    algorithm, members, headers, claims, audience = SERVICES[service]
    url, iss, aud, _ = map(setting, rows()[service])
    monkeypatch.setenv("JWT_JWKS_URL", url)
    monkeypatch.setenv("JWT_ISSUER", iss)
    monkeypatch.setenv("JWT_AUDIENCE", aud or audience)
    sign, secret = hs256, SECRET
    if algorithm != "HS256":
        key = Key(algorithm, "k", **members)
        issuer.publish(encryption_key, Key(algorithm, "j", **members), key)
        sign, secret = key.sign, ""
    monkeypatch.setenv("JWT_SECRET", secret)
    settings = read_settings()
    assert (settings.jwt_jwks_url == "") == (algorithm == "HS256")
    assert settings.warnings == ()
    if settings.jwt_jwks_url:
        settings = replace(settings, jwt_jwks_url=issuer.url)
    verifier = Verifier(settings)

    def signed(**changes: Any) -> str:
        times = {"iat": NOW, "exp": NOW + 3600}
        payload = times | {"sub": "user"} | claims | changes
        if algorithm == "HS256":
            return sign(payload, SECRET.encode(), **headers)
        return sign(payload, **headers)

    assert verifier.verify(signed()) == "user"
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(signed(iss=claims["iss"].rstrip("/") + "/other"))
    assert refusal.value.reason.startswith("Wrong issuer: found iss ")
    assert ("aud" in claims) == bool(settings.jwt_audience)
    if settings.jwt_audience:
        with pytest.raises(Unauthenticated) as refusal:
            verifier.verify(signed(aud="another"))
        assert refusal.value.reason.startswith("Wrong audience: found aud 'another'")
