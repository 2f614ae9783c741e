"""CPU time of verifying a token, in microseconds. Run it with `make bench-tokens`."""

import time
from dataclasses import replace
from statistics import median

import jwt

from auth import Verifier
from testbed.issuer import Issuer, Key
from testbed.settings import SETTINGS

ROUNDS, TOKENS = 7, 500
BY_SECRET = replace(
    SETTINGS,
    jwt_secret="a secret of more than 32 bytes, for measuring",
    jwt_issuer="https://issuer.example/",
    jwt_audience=("api",),
)
CLAIMS = {
    "sub": "ann",
    "exp": int(time.time()) + 3600,
    "iss": BY_SECRET.jwt_issuer,
    "aud": "api",
}


def cost(verifier: Verifier, token: str) -> float:
    """The median over the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(TOKENS):
            verifier.verify(token)
        rounds.append((time.process_time() - start) / TOKENS * 1e6)
    return median(rounds)


def main() -> None:
    token = jwt.encode(CLAIMS, BY_SECRET.jwt_secret)
    print(f"HS256 {cost(Verifier(BY_SECRET), token):4.0f}")
    for algorithm in ("EdDSA", "ES256", "RS256"):
        key = Key(algorithm, "1")
        issuer = Issuer(key)
        settings = replace(BY_SECRET, jwt_secret="", jwt_jwks_url=issuer.url)
        verifier = Verifier(settings)
        print(f"{algorithm} {cost(verifier, key.sign(CLAIMS)):4.0f}")
        issuer.close()


if __name__ == "__main__":
    main()
