"""How the readers of files say no: with a code, which ``sentences`` puts into words."""

from __future__ import annotations


class Refused(Exception):
    """Something that is not taken.

    Args:
        code: Stable name of the reason.
        params: Values for the sentence that explains it.
    """

    def __init__(self, code: str, **params: object) -> None:
        super().__init__(code)
        self.code, self.params = code, params
