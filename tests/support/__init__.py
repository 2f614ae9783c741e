"""What the tests share: servers, users, databases and networks that fail."""
