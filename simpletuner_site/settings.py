"""Django settings. ``environment.py`` parses the environment variables; everything else is fixed here."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from environments.moments import FORMAT
from simpletuner_site import __version__
from simpletuner_site.environment import read_environment
from simpletuner_site.security.secret_key import load_secret_key

PROCESS = read_environment()
HOME: Path = PROCESS.home
CONFIG_DIR: Path = HOME / "config"
STATE_DIR: Path = HOME / "state"
SLOTS: int = PROCESS.slots

SECRET_KEY = PROCESS.secret_key or load_secret_key(STATE_DIR)
DEBUG = False
NEEDS_TOKEN = PROCESS.needs_token
LISTED_HOSTS = [host.rsplit(":", 1)[0] for host in PROCESS.allowed_hosts]
# With a token, the guard in front of Django also accepts addresses, which Django cannot describe.
ALLOWED_HOSTS = ["*"] if NEEDS_TOKEN else ["localhost", "127.0.0.1", "[::1]", *LISTED_HOSTS]
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in PROCESS.allowed_hosts]  # a proxy in front of the server may encrypt
ROOT_URLCONF = "simpletuner_site.urls"
ASGI_APPLICATION = "simpletuner_site.asgi.application"
APPEND_SLASH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False
FORMAT_MODULE_PATH = "simpletuner_site.formats"

INSTALLED_APPS = [
    "simpletuner_site",  # first, so that its templates win over those of other packages
    "daphne",
    "simpletuner_site.admin_site.OperatorAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "django_q",
    "environments",
    "training",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "simpletuner_site.security.middleware.ContentPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "simpletuner_site.security.middleware.LocalOperatorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# ---- data ----
# DEFERRED transactions (Django's default) end in "database is locked" as soon as two processes write; IMMEDIATE ones wait.
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": str(STATE_DIR / "simpletuner.sqlite3"),
    "TEST": {"NAME": str(STATE_DIR / "test.sqlite3")},  # a file, so that threads and processes of a test share one database
    "OPTIONS": {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    },
}


def _databases() -> dict[str, Any]:
    if not PROCESS.database_url:
        return {"default": SQLITE}
    import dj_database_url

    return {"default": dj_database_url.parse(PROCESS.database_url, conn_max_age=60, conn_health_checks=True)}


DATABASES = _databases()

# ---- tasks ----
# django-q2 delivers a task again after `retry` seconds, even while it runs: a slice must end well before.
FOLLOW_SLICE = timedelta(seconds=15)
EXTRA_TASK_WORKERS = 2
PRUNE: dict[str, float] = dict(PROCESS.prune)
"""What is removed of ended runs, and when: fields of ``training.upkeep.prune.PrunePolicy``."""
Q_CLUSTER: dict[str, Any] = {
    "name": "training",
    "label": "Tasks",
    "workers": SLOTS + EXTRA_TASK_WORKERS,
    "timeout": 60,
    "retry": 90,
    "poll": 0.1,
    "max_attempts": 5,
    "ack_failures": True,
    "catch_up": False,
    "save_limit": 100,
    "log_level": "WARNING",
    **({"redis": PROCESS.redis_url} if PROCESS.redis_url else {"orm": "default"}),
}

# ---- HTTP ----
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer", "environments.api.pages.ApiPageRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "rest_framework.parsers.JSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "DEFAULT_AUTHENTICATION_CLASSES": [],  # the guard in front of Django controls access
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.AllowAny"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "simpletuner_site.errors.answer_exception",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
    "URL_FORMAT_OVERRIDE": "format",
    "VIEW_NAME_FUNCTION": "environments.api.pages.view_name",
}
BIGGEST_BODY_BYTES = 8 * 1024 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = BIGGEST_BODY_BYTES
UPLOAD_BYTES: int = PROCESS.upload_bytes
KEPT_FREE_BYTES = 1 << 30  # space on a disk that no upload takes: a run needs it for a checkpoint, the system for its logs
FILE_UPLOAD_HANDLERS = [
    "django.core.files.uploadhandler.MemoryFileUploadHandler",  # for bodies of at most 2.5 MB
    "simpletuner_site.edge.upload_files.FileUploads",
]
FILE_UPLOAD_TEMP_DIR = STATE_DIR  # on the disk of the home: ``/tmp`` may lie in memory
DATA_UPLOAD_MAX_NUMBER_FIELDS = 5_000

SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "SimpleTuner",
    "VERSION": __version__,
    "DESCRIPTION": "Train diffusion models over HTTP: configure, start and watch runs.",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "CONTACT": {"name": "SimpleTuner"},
    "SERVERS": [{"url": "/", "description": "The server that serves this schema."}],
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "PREPROCESSING_HOOKS": ["environments.api.schema.without_last_slash", "environments.api.schema.without_second_addresses"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "environments.api.schema.with_required_bodies",
        "environments.api.schema.with_security",
    ],
    "SCHEMA_PATH_PREFIX": r"/api/",
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "TAGS": [
        {"name": "configurations", "description": "Environments, their files and their history."},
        {"name": "training", "description": "Runs: validate, start, watch, stop."},
    ],
}

# ---- places and hooks of runs ----
ROOTS: tuple[Path, ...] = PROCESS.roots
HUB_FOLDERS: tuple[Path, ...] = PROCESS.hub_folders
HOOK_FOLDERS: tuple[Path, ...] = PROCESS.hooks
ALLOW_SCRIPTS = PROCESS.allow_scripts
HOOKS_ARE_OFF = NEEDS_TOKEN
USUAL_ROOTS_ARE_OPEN = not NEEDS_TOKEN
SCRIPT_VARIABLES: tuple[str, ...] = PROCESS.hooks_env

# ---- webhooks ----
WEBHOOKS_TO_LOOPBACK = not NEEDS_TOKEN  # whoever reaches the server is on this machine anyway
WEBHOOKS_TO_PRIVATE = PROCESS.private_webhooks

# ---- machines of one run, and datasets ----
TRAINING_MACHINES: tuple[str, ...] = PROCESS.machines
DOWNLOAD_BYTES = PROCESS.download_bytes

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # no collectstatic: static files are served from the packages

SESSION_COOKIE_SAMESITE = "Strict"
CSRF_COOKIE_SAMESITE = "Lax"  # a link that opens a page must not replace the token of open pages
SESSION_COOKIE_NAME = "simpletuner_session"
CSRF_COOKIE_NAME = "simpletuner_csrf"
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"

# ---- logging ----
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{", "datefmt": FORMAT}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": PROCESS.log_level},
    "loggers": {
        "django": {"handlers": [], "level": PROCESS.log_level, "propagate": True},
        "django.request": {"level": "ERROR"},
        "daphne": {"level": "WARNING"},
        "django-q": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},  # it logs URLs, which may contain passwords
        "httpcore": {"level": "WARNING"},
    },
}
