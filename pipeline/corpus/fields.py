"""Values of a manifest's row, or of the JSON beside a shard's video: checked, and turned into a ref's."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timezone
from typing import Any

from pipeline.config import CorpusConfig, too_long
from pipeline.records import Question

__all__ = ["FieldError", "Fields", "shortened", "text_of"]

MAX_TEXT_CHARS = 8192  # of a uri
MAX_ID_CHARS = 512
MAX_QUESTIONS = 1000
MAX_SHOWN_CHARS = 200
# How a list of questions begins in JSON, or in what Python prints; "{what} is this?" and "[1] …" do not.
_JSON = re.compile(r"""[\s\ufeff]*(\[\s*(["'{\[\]]|null|(None|nan|True|False)\s*[,\]])|\{\s*["'}])""")
_NO_VALUES = ("nan", "none", "null", "<na>", "nat")  # how other tools write an empty cell as text
_TRUE, _FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


class FieldError(Exception):
    """A value that breaks a rule. The text names the column, the value and the rule."""

    def __init__(self, column: str, value: object, rule: str) -> None:
        super().__init__(f"{column}={shortened(value)}: {rule}")


def shortened(value: object) -> str:
    """A value as it may stand in a message: its repr, cut after 200 characters."""
    shown = repr(value[: MAX_SHOWN_CHARS * 2] if isinstance(value, str | bytes) else value)
    shown = shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + "…"
    return shown.encode("utf-8", "backslashreplace").decode()


class Fields:
    """What the settings want of a row, by the names of its columns. Every method raises FieldError."""

    def __init__(self, config: CorpusConfig) -> None:
        self.names = config.manifest
        self.columns = config.columns
        self._max_question_chars = config.max_question_chars

    def address(self, values: Mapping[str, Any]) -> str:
        """The uri as written."""
        name = self.names.uri_column
        value = values.get(name)
        uri = "" if value is None else text_of(name, value)
        if not uri.strip():
            raise FieldError(name, value, "a row must name its video")
        if "\0" in uri or len(uri) > MAX_TEXT_CHARS:
            raise FieldError(name, uri, f"must have at most {MAX_TEXT_CHARS} characters, none of them NUL")
        return uri

    def video_id(self, values: Mapping[str, Any]) -> str | None:
        """The row's own id, if it has one; whole numbers are ids too."""
        name = self.names.id_column
        value = values.get(name)
        if value is None:
            return None
        video_id = str(value) if _is_whole(value) else text_of(name, value)
        if not 0 < len(video_id) <= MAX_ID_CHARS:
            raise FieldError(
                name, video_id, f"must have 1 to {MAX_ID_CHARS} characters; leave it null for none"
            )
        return video_id

    def version(self, values: Mapping[str, Any]) -> str | None:
        """The row's own version, if it has one."""
        name = self.names.version_column
        value = _given(values.get(name))
        if value is None:
            return None
        version = value if isinstance(value, bytes | str) else str(value)
        version = text_of(name, version)
        if not 0 < len(version) <= MAX_ID_CHARS:
            raise FieldError(
                name, version, f"must have 1 to {MAX_ID_CHARS} characters; leave it null for none"
            )
        return version

    def size_bytes(self, values: Mapping[str, Any]) -> int | None:
        """The size, if the row names it."""
        name = self.names.size_column
        value = values.get(name)
        if value is None:
            return None
        size = _whole(name, value)
        if size < 0:
            raise FieldError(name, value, "must be a number of bytes, not negative")
        return size

    def clip(self, values: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """Start and end in seconds from the start of the file; None: not given."""
        start = self._seconds(self.names.start_column, values)
        end = self._seconds(self.names.end_column, values)
        if end is not None and (start or 0.0) >= end:
            raise FieldError(self.names.end_column, end, f"must be greater than the start, {start or 0.0:g}")
        return start, end

    def _seconds(self, name: str, values: Mapping[str, Any]) -> float | None:
        value = values.get(name)
        if value is None:
            return None
        seconds = _number(name, value, "must be a number of seconds, such as 70.5")
        if not math.isfinite(seconds) or seconds < 0:
            raise FieldError(name, value, "must be seconds from the start of the file: finite, not negative")
        return seconds + 0.0  # -0.0 is 0.0

    def questions(self, values: Mapping[str, Any]) -> tuple[Question, ...]:
        """The row's own questions: a text, a list of texts or of {id, text}, or that list as JSON.

        A text that begins as JSON does ('["', '[{', '{"' …) must be JSON, and one that is a list or an object
        in JSON is taken for that ('[1, 2]'); any other is the question itself. An empty text or list is none,
        NaN too; the word "nan" and its like are refused: who writes them means no question.
        """
        name = self.names.questions_column
        value = _given(values.get(name))
        if isinstance(value, str | bytes):
            text = text_of(name, value)
            value = self._from_text(name, text) if text.strip() else None
        if value is None:
            return ()
        items = [value] if isinstance(value, Mapping) else value
        if not isinstance(items, list) or len(items) > MAX_QUESTIONS:
            raise FieldError(name, value, f"must be a text or a list of at most {MAX_QUESTIONS} questions")
        found = tuple(self._question(name, item, number) for number, item in enumerate(items, start=1))
        if len({question.question_id for question in found}) < len(found):
            raise FieldError(name, value, "the ids of a row's questions must differ")
        return found

    def _from_text(self, column: str, text: str) -> Any:
        if _JSON.match(text):
            return _from_json(column, text)
        if text.strip().lower() in _NO_VALUES:
            rule = 'says that there is no value; leave the field empty, or to ask just this: ["…"]'
            raise FieldError(column, text, rule)
        if text.lstrip().startswith(("[", "{")):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(text)
        return [text]

    def _question(self, column: str, item: Any, number: int) -> Question:
        fields = dict(item) if isinstance(item, Mapping) else {"text": item}
        text = fields.pop("text", None)
        own = [fields.pop(name, None) for name in ("id", "question_id")]
        question_id = next((one for one in own if one is not None), f"own{number}")
        if fields or not isinstance(text, str | bytes) or not text.strip():
            raise FieldError(column, item, "a question is a text or {id, text}")
        if _is_whole(question_id):
            question_id = str(question_id)
        question = Question(text_of(column, question_id), text_of(column, text))
        if len(question.question_id) > MAX_ID_CHARS:
            raise FieldError(column, question_id, f"an id must have at most {MAX_ID_CHARS} characters")
        if len(question.text) > self._max_question_chars:
            raise FieldError(
                column, question.text[:40] + "…", too_long(question.text, self._max_question_chars)
            )
        return question

    def extra(self, values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The columns to carry over, as (name, value of the type asked for or None)."""
        return tuple((name, _convert(name, values.get(name), kind)) for name, kind in self.columns.items())


def _given(value: Any) -> Any:
    """None for NaN, which is how pandas, and JSON of its rows, say that there is no text."""
    return None if isinstance(value, float) and math.isnan(value) else value


def text_of(column: str, value: Any) -> str:
    """A value that must be text. Raises FieldError."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise FieldError(column, value, "must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FieldError(column, value, "must be UTF-8") from None
    return value


def _from_json(column: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        rule = f'begins as JSON does, and is none: {error}; to ask just this, put it into a list: ["…"]'
        raise FieldError(column, value, rule) from None


def _convert(column: str, value: Any, kind: str) -> Any:
    value = _given(value) if kind == "string" else value
    return None if value is None else _CONVERTERS[kind](column, value)


def _string(column: str, value: Any) -> str:
    if isinstance(value, str | bytes):
        return text_of(column, value)
    if isinstance(value, Mapping | list | bool):
        try:
            return text_of(column, json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError):
            raise FieldError(column, value, "cannot be written as text") from None
    return str(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(column: str, value: Any) -> int:
    try:
        if isinstance(value, bool | Mapping | list) or (isinstance(value, str) and "_" in value):
            raise ValueError
        number = int(value)
        if (
            number != (value if not isinstance(value, str | bytes) else number)
            or not -(2**63) <= number < 2**63
        ):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise FieldError(column, value, "must be a whole number of 64 bits") from None
    return number


def _number(column: str, value: Any, rule: str = "must be a number") -> float:
    try:
        if isinstance(value, bool | Mapping | list) or (isinstance(value, str) and "_" in value):
            raise ValueError
        return float(value)
    except (ValueError, TypeError, OverflowError):
        raise FieldError(column, value, rule) from None


def _flag(column: str, value: Any) -> bool:
    word = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if word not in _TRUE + _FALSE:
        raise FieldError(column, value, f"must be one of {', '.join(_TRUE + _FALSE)}")
    return word in _TRUE


def _moment(column: str, value: Any) -> datetime:
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip().replace("Z", "+00:00").replace("z", "+00:00"))
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if not isinstance(value, datetime):
            raise ValueError
        aware = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return aware.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        rule = "must be a time as in 2026-05-01T12:30:00Z; without a zone it is UTC"
        raise FieldError(column, value, rule) from None


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    "string": _string,
    "int64": _whole,
    "float64": _number,
    "bool": _flag,
    "timestamp": _moment,
}
