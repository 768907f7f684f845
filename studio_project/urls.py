"""Every page and every API route, by app."""

from __future__ import annotations

from csp.decorators import csp_update
from django.contrib import admin
from django.urls import include, path, re_path
from django.views.i18n import JavaScriptCatalog
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

import datasets_app.urls
import generation_app.urls
import models_app.urls
import training_app.urls
from studio_project import health, invitations, site_api, views

handler400 = "studio_project.views.bad_request"

api_urls = [
    *datasets_app.urls.api_urls,
    *models_app.urls.api_urls,
    *training_app.urls.api_urls,
    *generation_app.urls.api_urls,
    re_path(r"^tokens/?$", site_api.TokenList.as_view(), name="token-list"),
    re_path(r"^tokens/(?P<pk>\d+)/?$", site_api.TokenDetail.as_view(), name="token-detail"),
    re_path(r"^ws-ticket/?$", site_api.Ticket.as_view(), name="ws-ticket"),
    re_path(r"^options/?$", site_api.Options.as_view(), name="options"),
    re_path(r"^queue/?$", site_api.Queue.as_view(), name="queue-api"),
    re_path(r"^schema/events/?$", site_api.EventSchemas.as_view(), name="event-schemas"),
    re_path(r"^schema/?$", SpectacularAPIView.as_view(), name="schema"),
    re_path(
        r"^docs/?$",
        # Swagger UI sets style attributes; only this page may.
        csp_update({"style-src": ["'self'", "'unsafe-inline'"]})(
            SpectacularSwaggerSplitView.as_view(url_name="schema")
        ),
        name="api-docs",
    ),
    re_path(r"", site_api.Unknown.as_view(), name="unknown-api"),
]
urlpatterns = [
    path("", views.home, name="home"),
    re_path(r"^queue/?$", views.queue, name="queue"),
    re_path(r"^account/?$", views.account_settings, name="account_settings"),
    re_path(r"^account/language/?$", views.set_language, name="set_language"),
    re_path(r"^account/theme/?$", views.set_theme, name="set_theme"),
    *datasets_app.urls.page_urls,
    *models_app.urls.page_urls,
    *training_app.urls.page_urls,
    *generation_app.urls.page_urls,
    path("accounts/", include("allauth.urls")),
    path("invite/<str:secret>/", invitations.accept, name="invitation"),
    path("jsi18n/", JavaScriptCatalog.as_view(domain="djangojs"), name="javascript-catalog"),
    path("admin/", admin.site.urls),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("api/", include(api_urls)),
    path("sdapi/v1/", include(generation_app.urls.a1111_urls)),
    path("v1/", include(generation_app.urls.openai_urls)),
]
