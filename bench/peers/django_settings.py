"""The settings of the Django peers: what an API needs, no pages and no sessions."""

import os

from psycopg.conninfo import conninfo_to_dict

database = conninfo_to_dict(os.environ["DATABASE_URL"])

ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "for measuring"
TIME_ZONE = "UTC"
ROOT_URLCONF = os.environ["PEER_URLS"]
INSTALLED_APPS = {
    "django_rest": ["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"],
    "django_ninja": ["ninja"],
}[ROOT_URLCONF]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database["dbname"],
        "USER": database["user"],
        "PASSWORD": database["password"],
        "HOST": database["host"],
        "PORT": database["port"],
        # A connection belongs to a thread; gthread's live as long as their worker.
        "CONN_MAX_AGE": None,
    }
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}
