"""What the tests and the benchmark both need: a PostgreSQL to break, and a token issuer."""
