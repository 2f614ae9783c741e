"""Which algorithm a key of a key set is for: its own, which no token can choose."""

import json
import logging
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.server import Server, User
from test_auth import hs256
from werkzeug.exceptions import ServiceUnavailable

from auth import Unauthenticated, Verifier
from auth.jwks import UNREACHABLE, UNUSABLE, KeySet
from testbed.issuer import Issuer, Key, encoded
from testbed.settings import SETTINGS

# The algorithms of each type of key, as RFC 7518 and RFC 8037 have them.
TYPES = (
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *(("ES256",), ("ES384",), ("ES512",)),
    ("EdDSA", "Ed25519"),
)
ALGORITHMS = [name for names in TYPES for name in names]
CLAIMS = {"sub": "ann", "exp": int(time.time()) + 3600}


@pytest.fixture(scope="module")
def keys() -> dict[str, Key]:
    return {name: Key(name, name) for name in ALGORITHMS}


@pytest.fixture(scope="module")
def verifier(keys: dict[str, Key]) -> Iterator[Verifier]:
    issuer = Issuer(*keys.values())
    yield new_verifier(issuer)
    issuer.close()


def new_verifier(issuer: Issuer) -> Verifier:
    return Verifier(replace(SETTINGS, jwt_jwks_url=issuer.url))


def reason(verifier: Verifier, token: str) -> str:
    """Why the token is refused, as the log says it."""
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    return refusal.value.reason


def accepted(verifier: Verifier, key: Key) -> set[str]:
    """The algorithms with which the key's own signature is accepted."""
    (names,) = (names for names in TYPES if key.algorithm in names)
    found = set()
    for name in names:
        try:
            assert verifier.verify(key.sign(CLAIMS, name)) == "ann"
            found.add(name)
        except Unauthenticated as refusal:
            assert refusal.reason.startswith(f"Wrong algorithm: found alg '{name}', expected ")
    return found


def change_coordinates(key: Key, change: Callable[[bytes], bytes]) -> bool:
    """Write the coordinates of a key in another way. Returns whether it makes a difference."""
    before = {name: key.jwk[name] for name in ("x", "y")}
    for name, text in before.items():
        key.jwk[name] = encoded(change(urlsafe_b64decode(f"{text}==")))
    return any(key.jwk[name] != text for name, text in before.items())


@pytest.mark.parametrize("name", ["ES256", "ES384", "ES512"])
@pytest.mark.parametrize("way", ["short", "long"])
def test_a_coordinate_may_have_too_few_or_too_many_zeros(
    issuer: Issuer, name: str, way: str
) -> None:
    """As some libraries write it, although RFC 7518, section 6.2.1.2, asks for the whole size."""
    for _ in range(3000):
        key = Key(name, name)
        if change_coordinates(key, lambda x: b"\0" + x if way == "long" else x.lstrip(b"\0")):
            break
    issuer.publish(key)
    assert new_verifier(issuer).verify(key.sign(CLAIMS)) == "ann"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_key_is_for_the_algorithm_that_it_names(
    verifier: Verifier, keys: dict[str, Key], name: str
) -> None:
    assert accepted(verifier, keys[name]) == {name}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_signature_of_another_key_is_refused(
    verifier: Verifier, keys: dict[str, Key], name: str
) -> None:
    for other in ALGORITHMS:
        if other != name:
            assert reason(verifier, keys[other].sign(CLAIMS, kid=name)) == (
                f"Wrong algorithm: found alg '{other}', expected {name}"
            )
    another = Key(name, name).sign(CLAIMS)
    assert reason(verifier, another) == "Signature verification failed"


@pytest.mark.parametrize("names", TYPES, ids=lambda names: names[-1])
def test_a_key_without_a_name_is_for_what_its_type_means(
    issuer: Issuer, names: tuple[str, ...]
) -> None:
    key = Key(names[-1], "1", alg=None)
    issuer.publish(key)
    meant = {"RS256"} if "RS256" in names else set(names)
    assert accepted(new_verifier(issuer), key) == meant


def test_a_key_of_the_larger_curve_is_for_eddsa(issuer: Issuer) -> None:
    """As the plugin of Better Auth makes with `crv: "Ed448"`."""
    key = Key("EdDSA of Ed448", "1", alg=None)
    issuer.publish(key)
    assert new_verifier(issuer).verify(key.sign(CLAIMS)) == "ann"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_public_key_is_no_secret(verifier: Verifier, keys: dict[str, Key], name: str) -> None:
    key = keys[name]
    public = key.private.public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(key.jwk).encode(),
        key.jwk.get("n", key.jwk.get("x", "")).encode(),
    ):
        for algorithm in ("HS256", "HS384", "HS512", name):
            assert reason(verifier, hs256(CLAIMS, secret, alg=algorithm, kid=name))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, ["RS256"], {}])
def test_a_token_without_an_algorithm_is_refused(verifier: Verifier, algorithm: object) -> None:
    for signature in ("", "eA"):
        head = encoded({"alg": algorithm, "kid": "RS256"})
        assert reason(verifier, f"{head}.{encoded(CLAIMS)}.{signature}") == (
            f"Wrong algorithm: found alg {algorithm!r}, expected RS256"
        )


# Algorithm and members. Made by the test: to make an RSA key takes long, and every worker imports.
UNUSABLE_KEYS: dict[str, tuple[str, dict[str, object]]] = {
    "an RSA key named ES256": ("RS256", {"alg": "ES256"}),
    "an RSA key named EdDSA": ("RS256", {"alg": "EdDSA"}),
    "an RSA key named HS256": ("RS256", {"alg": "HS256"}),
    "an RSA key named none": ("RS256", {"alg": "none"}),
    "an RSA key for encryption by its name": ("RS256", {"alg": "RSA-OAEP"}),
    "an RSA key for encryption by its use": ("RS256", {"use": "enc"}),
    "an RSA key with a list of names": ("RS256", {"alg": ["RS256"]}),
    "an RSA key with a curve": ("RS256", {"crv": "P-256"}),
    "a P-256 key named RS256": ("ES256", {"alg": "RS256"}),
    "a P-256 key named RS384": ("ES256", {"alg": "RS384"}),
    "a P-256 key named ES384": ("ES256", {"alg": "ES384"}),
    "a P-256 key named P-384": ("ES256", {"crv": "P-384"}),
    "a P-384 key named ES256": ("ES384", {"alg": "ES256"}),
    "an Ed25519 key named ES256": ("EdDSA", {"alg": "ES256"}),
    "an RSA key of 1024 bits": ("RS256 of 1024 bits", {}),
    "a secret": ("EdDSA", {"kty": "oct", "crv": None, "x": None, "k": "c2VjcmV0", "alg": "HS256"}),
    "a certificate only": ("RS256", {"n": None, "e": None, "x5c": ["MIIB"]}),
}


@pytest.mark.parametrize("name", UNUSABLE_KEYS)
def test_a_set_without_a_usable_key_is_a_503_that_says_so(
    issuer: Issuer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tasks.jwks")
    algorithm, members = UNUSABLE_KEYS[name]
    key = Key(algorithm, "1", **members)
    issuer.publish(key)
    with pytest.raises(ServiceUnavailable) as refusal:
        KeySet(issuer.url).find("1")
    assert refusal.value.description == UNUSABLE
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tasks.jwks"]
    found = [key.jwk.get(member) for member in ("kty", "crv", "alg", "use")]
    said = line.replace('"', "'").replace("\\'", "'")
    assert f"no usable key (RSA: of 2048 bits or more), found [{found}]" in said
    issuer.say(b"<!doctype html>")
    with pytest.raises(ServiceUnavailable) as refusal:
        KeySet(issuer.url).find("1")
    assert refusal.value.description == UNREACHABLE


@pytest.mark.parametrize(
    "member",
    [
        *(None, 1, "x", [], {}, {"kty": ["RSA"]}, {"kty": "RSA", "n": 1, "e": 1}),
        {"kty": "RSA", "n": "AQ", "e": "AQ"},
        {"kty": "EC", "crv": "P-256", "x": "A", "y": "A"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
    ],
    ids=str,
)
def test_a_member_that_cannot_be_read_does_not_hide_a_key(issuer: Issuer, member: object) -> None:
    key = Key("EdDSA", "1")
    issuer.say(json.dumps({"keys": [member, key.jwk]}).encode())
    assert new_verifier(issuer).verify(key.sign(CLAIMS)) == "ann"
    issuer.say(json.dumps({"keys": [member]}).encode())
    with pytest.raises(ServiceUnavailable, match=UNUSABLE):
        KeySet(issuer.url).find("1")


def test_the_answer_and_the_log_say_that_no_key_is_usable(issuer: Issuer, tmp_path: Path) -> None:
    key = Key("RS256", "1", alg="RSA-OAEP")
    issuer.publish(key)
    token = key.sign(CLAIMS, "RS256")
    with Server(tmp_path, JWT_JWKS_URL=issuer.url) as server, User(server, "ann", token) as ann:
        answer = ann.get("/tasks")
        assert (answer.status_code, answer.json()["detail"]) == (503, UNUSABLE)
        assert answer.headers["Retry-After"] == "1"
    lines = [line["message"] for line in server.log() if line["level"] == "warning"]
    assert lines and all("found [['RSA', None, 'RSA-OAEP', None]]" in line for line in lines)


def test_what_is_found_is_cut_in_the_log(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tasks.jwks")
    issuer.publish(*(Key("EdDSA", "1", kty="\ud800\n" * 99) for _ in range(99)))
    with pytest.raises(ServiceUnavailable):
        KeySet(issuer.url).find("1")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tasks.jwks"]
    assert line.isprintable() and line.isascii() and len(line) < 3000


def test_the_only_key_without_an_id_is_meant_by_any_id(issuer: Issuer) -> None:
    key, other = Key("ES256", None), Key("EdDSA", None)
    issuer.publish(key)
    verifier = new_verifier(issuer)
    assert verifier.verify(key.sign(CLAIMS)) == "ann"
    for kid in ("", "1", "anything"):
        assert verifier.verify(key.sign(CLAIMS, kid=kid)) == "ann"
        assert reason(verifier, Key("ES256", None).sign(CLAIMS, kid=kid))
        assert reason(verifier, other.sign(CLAIMS, kid=kid))
    assert issuer.requests == 1


def test_a_key_without_an_id_beside_another_is_meant_by_none(issuer: Issuer) -> None:
    key, named = Key("ES256", None), Key("ES256", "1")
    issuer.publish(key, named)
    verifier = new_verifier(issuer)
    assert verifier.verify(named.sign(CLAIMS)) == "ann"
    for signer in (key, named):
        for kid in (None, "", "anything"):
            found = f"found kid {kid!r}, expected ['1']"
            assert reason(verifier, signer.sign(CLAIMS, kid=kid)) == f"Unknown key: {found}"


def test_the_only_id_of_a_set_is_meant_by_no_other_id(issuer: Issuer) -> None:
    key = Key("ES256", "1")
    issuer.publish(key)
    verifier = new_verifier(issuer)
    assert verifier.verify(key.sign(CLAIMS, kid=None)) == "ann"
    assert reason(verifier, key.sign(CLAIMS, kid="2")).startswith("Unknown key: ")
