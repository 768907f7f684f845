"""All settings, read from environment names that begin with STUDIO_.

Production-safe by default: debug is off, a wrong value stops the start with one sentence, and the
secret key is either given or generated with mode 0600 in the data directory. What each name means
stands in the configuration table of the README.
"""

from __future__ import annotations

import os
import secrets
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _
from environs import Env, EnvError

BASE_DIR = Path(__file__).resolve().parent.parent
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")

env = Env(prefix="STUDIO_")


def _read(kind: str, name: str, default: Any) -> Any:
    """Read one typed value, or stop with a sentence that names the variable."""
    try:
        return getattr(env, kind)(name, default)
    except EnvError as error:
        raise ImproperlyConfigured(f"STUDIO_{name} is not usable: {error}") from error


def _at_least(name: str, value: float, minimum: float) -> None:
    if value < minimum:
        raise ImproperlyConfigured(f"STUDIO_{name} is {value}; it must be at least {minimum}.")


def _private_file(path: Path, make: Any) -> str:
    """Return the text of a file only this user may read, making it on first use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        text: str = make()
        file.write(text)
    return text


# --- where things are -------------------------------------------------------------------------
DATA_DIR = Path(_read("str", "DATA_DIR", str(BASE_DIR / "data"))).expanduser().resolve()
STUDIO_HOST = _read("str", "HOST", "127.0.0.1")
STUDIO_PORT = _read("int", "PORT", 8000)
STUDIO_BASE_URL = _read("str", "BASE_URL", f"http://{STUDIO_HOST}:{STUDIO_PORT}").rstrip("/")
STUDIO_WORK_DIR = Path(_read("str", "WORK_DIR", str(DATA_DIR / "work")))
_base = urlsplit(STUDIO_BASE_URL)
if _base.scheme not in ("http", "https") or not _base.hostname:
    raise ImproperlyConfigured(
        f"STUDIO_BASE_URL is {STUDIO_BASE_URL!r}; give it as http(s)://host[:port]."
    )
IS_LOOPBACK = STUDIO_HOST in LOOPBACK_HOSTS and _base.hostname in ("127.0.0.1", "localhost", "::1")

# --- security ---------------------------------------------------------------------------------
DEBUG = _read("bool", "DEBUG", False)
STUDIO_DATABASE_URL = _read("str", "DATABASE_URL", "")
IS_EMBEDDED = not STUDIO_DATABASE_URL or STUDIO_DATABASE_URL.startswith("sqlite")
SECRET_KEY = _read("str", "SECRET_KEY", "")
if not SECRET_KEY:
    if not IS_EMBEDDED:
        raise ImproperlyConfigured(
            "STUDIO_SECRET_KEY is not set. With a database server every machine must share one: "
            "give all of them the same long random text."
        )
    SECRET_KEY = _private_file(DATA_DIR / "secret_key", lambda: secrets.token_urlsafe(64))
ALLOWED_HOSTS = sorted({_base.hostname, *(LOOPBACK_HOSTS if IS_LOOPBACK else ())} - {"::1"})
CSRF_TRUSTED_ORIGINS = [f"{_base.scheme}://{_base.netloc}"]
_secure = _base.scheme == "https"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _secure
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
LANGUAGE_COOKIE_SAMESITE: Literal["Lax"] = "Lax"
SECURE_SSL_REDIRECT = _secure and _read("bool", "SSL_REDIRECT", True)
SECURE_HSTS_SECONDS = 31_536_000 if _secure else 0
STUDIO_BEHIND_PROXY = _read("bool", "BEHIND_PROXY", False)
if STUDIO_BEHIND_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Limits count by address: behind a proxy the visitor's is the last one the proxy added.
ALLAUTH_TRUSTED_PROXY_COUNT = 1 if STUDIO_BEHIND_PROXY else 0
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:", "blob:"],
        "connect-src": ["'self'"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
        "form-action": ["'self'"],
    }
}
# A request is at most 64 MB and 200 files (the chunked way is for more); files over 1 MB go to disk
# while they arrive, so a large upload never stands in memory twice.
STUDIO_MAX_REQUEST_BYTES = _read("int", "MAX_REQUEST_BYTES", 64 * 1024**2)
STUDIO_MAX_REQUEST_FILES = _read("int", "MAX_REQUEST_FILES", 200)
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024**2
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = STUDIO_MAX_REQUEST_FILES
FILE_UPLOAD_MAX_MEMORY_SIZE = 1024**2
FILE_UPLOAD_TEMP_DIR = str(DATA_DIR / "uploads")
Path(FILE_UPLOAD_TEMP_DIR).mkdir(parents=True, exist_ok=True)
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# --- apps -------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "daphne",
    "studio_project.apps.StudioConfig",
    "datasets_app.apps.DatasetsAppConfig",
    "models_app.apps.ModelsAppConfig",
    "training_app.apps.TrainingAppConfig",
    "generation_app.apps.GenerationAppConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "channels",
    "csp",
    "django_dramatiq",
    "django_filters",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "studio_project.middleware.RequestLimits",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "studio_project.middleware.UserLanguage",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "csp.middleware.CSPMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "studio_project.urls"
ASGI_APPLICATION = "studio_project.asgi.application"
APPEND_SLASH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.template.context_processors.i18n",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True
WHITENOISE_MAX_AGE = 0 if DEBUG else 60

# --- database ---------------------------------------------------------------------------------
if STUDIO_DATABASE_URL:
    DATABASES = {"default": _read("dj_db_url", "DATABASE_URL", "")}
else:
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA_DIR / "studio.sqlite3"}
    }
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # IMMEDIATE takes the write lock at BEGIN, so two writers wait for each other (busy timeout)
    # instead of failing in the middle; WAL lets readers go on meanwhile.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
# In the database, so that limits hold across processes and a dead Redis cannot lock anyone out.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "studio_cache",
    }
}

# --- Redis: doorbells and events --------------------------------------------------------------
_redis_file = DATA_DIR / "redis.url"
STUDIO_REDIS_URL = _read("str", "REDIS_URL", "") or (
    _redis_file.read_text().strip() if _redis_file.exists() else "redis://127.0.0.1:6379/0"
)
DRAMATIQ_BROKER = {
    "BROKER": "studio_project.doorbell.BlockingRedisBroker",
    # Two seconds: a frozen Redis may delay a page by that, never by the library's five. The broker
    # reads them from the URL only.
    "OPTIONS": {
        "url": f"{STUDIO_REDIS_URL}{'&' if '?' in STUDIO_REDIS_URL else '?'}"
        "socket_timeout=2&socket_connect_timeout=2"
    },
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.ShutdownNotifications",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
DRAMATIQ_AUTODISCOVER_MODULES = ("actors",)
CHANNEL_LAYERS = {
    "default": {
        # It survives FLUSHALL and a restart of Redis; the other layer does not.
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        # No socket timeout: a subscription that is silent for long is not broken.
        "CONFIG": {"hosts": [{"address": STUDIO_REDIS_URL, "socket_timeout": None}]},
    }
}

# --- files ------------------------------------------------------------------------------------
STUDIO_STORAGE_URL = _read("str", "STORAGE_URL", "")
STUDIO_ACCEL_PREFIX = _read("str", "ACCEL_PREFIX", "")
STUDIO_MIN_FREE_BYTES = _read("int", "MIN_FREE_BYTES", 1024**3)
STUDIO_CACHE_MAX_BYTES = _read("int", "CACHE_MAX_BYTES", 20 * 1024**3)
STUDIO_MAX_PIXELS = _read("int", "MAX_PIXELS", 50_000_000)
MEDIA_ROOT = DATA_DIR / "files"
STORAGES: dict[str, Any] = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": MEDIA_ROOT, "file_permissions_mode": 0o640},
    },
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
if STUDIO_STORAGE_URL:
    _storage = urlsplit(STUDIO_STORAGE_URL)
    if _storage.scheme != "s3" or not _storage.netloc:
        raise ImproperlyConfigured(
            f"STUDIO_STORAGE_URL is {STUDIO_STORAGE_URL!r}; give it as s3://bucket?endpoint=https://…"
        )
    _query = parse_qs(_storage.query)
    # Pictures are answered with a redirect to a signed URL there.
    _endpoint = urlsplit(_query.get("endpoint", ["https://*.amazonaws.com"])[0])
    for _directive in ("img-src", "connect-src"):
        CONTENT_SECURITY_POLICY["DIRECTIVES"][_directive].append(
            f"{_endpoint.scheme}://{_endpoint.netloc}"
        )
    STORAGES["default"] = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": _storage.netloc,
            "endpoint_url": _query.get("endpoint", [None])[0],
            "region_name": _query.get("region", [None])[0],
            "location": _storage.path.strip("/"),
            "default_acl": "private",
            "querystring_auth": True,
            "querystring_expire": 300,
            "file_overwrite": True,
        },
    }

# --- people -----------------------------------------------------------------------------------
AUTH_USER_MODEL = "studio.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
STUDIO_SIGNUP = _read("str", "SIGNUP", "open" if IS_LOOPBACK else "invite")
if STUDIO_SIGNUP not in ("open", "invite", "closed"):
    raise ImproperlyConfigured(f"STUDIO_SIGNUP is {STUDIO_SIGNUP!r}; it is open, invite or closed.")
STUDIO_ADMIN_USERNAME = _read("str", "ADMIN_USERNAME", "")
STUDIO_ADMIN_PASSWORD = _read("str", "ADMIN_PASSWORD", "")
STUDIO_EMAIL_URL = _read("str", "EMAIL_URL", "")
_email = _read("dj_email_url", "EMAIL_URL", "console://")
EMAIL_BACKEND = _email["EMAIL_BACKEND"]
for _name in ("EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD"):
    globals()[_name] = _email.get(_name)
EMAIL_USE_TLS, EMAIL_USE_SSL = _email.get("EMAIL_USE_TLS"), _email.get("EMAIL_USE_SSL")
DEFAULT_FROM_EMAIL = _read("str", "FROM_EMAIL", f"studio@{_base.hostname}")
ACCOUNT_ADAPTER = "studio_project.accounts.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "optional" if STUDIO_EMAIL_URL else "none"
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = True
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
STUDIO_TOKEN_DAYS = _read("int", "TOKEN_DAYS", 90)

# --- language ---------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("fr", "Français")]
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_I18N = USE_TZ = True
TIME_ZONE = "UTC"

# --- API --------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "studio_project.api.BearerAuthentication",
        "studio_project.api.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["studio_project.json_parser.StrictJSONParser"],
    "DEFAULT_PAGINATION_CLASS": "studio_project.api.KeyPagination",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_THROTTLE_RATES": {"tokens": "20/min", "ws-ticket": "60/min"},
    "EXCEPTION_HANDLER": "studio_project.api.problem_response",
    "NON_FIELD_ERRORS_KEY": "body",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "NUM_PROXIES": 1 if STUDIO_BEHIND_PROXY else 0,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Studio",
    "DESCRIPTION": "Train diffusion models on your own pictures and generate with them.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {
        "DatasetType": "datasets_app.models.Dataset.Type",
        "ModelType": "models_app.models.DiffusionModel.Type",
        "TrainingType": "training_app.models.TrainingJob.Type",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "studio_project.schema.add_problem_responses",
    ],
}

# --- workers and jobs -------------------------------------------------------------------------
STUDIO_DEVICES = _read("str", "DEVICES", "auto")
STUDIO_HUB_TOKEN = _read("str", "HUB_TOKEN", "")
STUDIO_HUB_ENDPOINT = _read("str", "HUB_ENDPOINT", "")
STUDIO_LEASE_SECONDS = _read("float", "LEASE_SECONDS", 45.0)
STUDIO_HEARTBEAT_SECONDS = _read("float", "HEARTBEAT_SECONDS", 10.0)
STUDIO_CONTROL_SECONDS = _read("float", "CONTROL_SECONDS", 0.5)
STUDIO_SWEEP_SECONDS = _read("float", "SWEEP_SECONDS", 10.0)
STUDIO_CHECKPOINT_SECONDS = _read("float", "CHECKPOINT_SECONDS", 120.0)
STUDIO_CHILD_SILENCE_SECONDS = _read("float", "CHILD_SILENCE_SECONDS", 1800.0)
# After it a training lets another user's waiting one go first; 0 = never.
STUDIO_TRAINING_SLICE_MINUTES = _read("float", "TRAINING_SLICE_MINUTES", 60.0)
_at_least("HEARTBEAT_SECONDS", STUDIO_HEARTBEAT_SECONDS, 0.05)
_at_least("LEASE_SECONDS", STUDIO_LEASE_SECONDS, 2 * STUDIO_HEARTBEAT_SECONDS)
# What a worker may use of its device (0 = all), and the turns taken where that holds one job only.
STUDIO_DEVICE_MEMORY_MB = _read("int", "DEVICE_MEMORY_MB", 0)
STUDIO_TURN_SECONDS = _read("float", "TURN_SECONDS", 15.0)
for _name in ("TRAINING_SLICE_MINUTES", "DEVICE_MEMORY_MB", "TURN_SECONDS"):
    _at_least(_name, globals()[f"STUDIO_{_name}"], 0)
STUDIO_DIALECT_WAIT_SECONDS = _read("float", "DIALECT_WAIT_SECONDS", 600.0)  # longest answer
STUDIO_TICKET_SECONDS = 60
STUDIO_IDEMPOTENCY_AGE = timedelta(hours=24)

# --- log --------------------------------------------------------------------------------------
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "plain", "stream": sys.stderr}
    },
    "root": {"handlers": ["console"], "level": _read("str", "LOG_LEVEL", "INFO").upper()},
    "loggers": {name: {"level": "WARNING"} for name in ("daphne", "django.channels.server")},
}
SITE_NAME = _("Studio")
