"""What the OpenAPI document says about every operation alike."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; for programs."},
        "detail": {"type": "string", "description": "For people, in the request's language."},
        "hint": {"type": "string"},
        "errors": {
            "type": "object",
            "additionalProperties": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                },
            },
        },
    },
    "required": ["title", "status", "code", "detail"],
}
VERBS = ("get", "post", "put", "patch", "delete")


class BearerScheme(OpenApiAuthenticationExtension):
    """Describe API tokens."""

    target_class = "studio_project.api.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme."""
        return {"type": "http", "scheme": "bearer"}


class TokenAsPasswordScheme(OpenApiAuthenticationExtension):
    """Describe API tokens in HTTP Basic."""

    target_class = "studio_project.api.TokenAsPasswordAuthentication"
    name = "basicToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme."""
        description = "Username, and an API token as the password."
        return {"type": "http", "scheme": "basic", "description": description}


class SessionScheme(OpenApiAuthenticationExtension):
    """Describe the browser's session."""

    target_class = "studio_project.api.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


def add_problem_responses(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Give every operation the one shape all errors have (a drf-spectacular hook).

    An operation that says how it refuses keeps its word: the dialects have shapes of their own.
    """
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    answer = {
        "description": "Refused.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    for operations in result.get("paths", {}).values():
        for verb in VERBS:
            if verb in operations:
                operations[verb].setdefault("responses", {}).setdefault("default", answer)
    return result
