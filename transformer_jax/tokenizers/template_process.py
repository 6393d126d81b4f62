"""Process that renders chat templates in jinja2's sandbox, with limits on time, memory and output.

A template is a program from an untrusted folder. jinja2's sandbox keeps it from Python's internals, and the limits of
a process of its own keep it from taking all time or memory. The environment is that of the reference library
(transformers, utils/chat_template_utils.py). One JSON object on stdin, one JSON list on stdout: see `render_chats` in
chat_template.py. Run as a script, without the package, so that it starts quickly.
"""

import datetime
import json
import resource
import sys
from collections.abc import Callable, Iterator

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30  # bytes
Span = tuple[int, int]


class Generation(jinja2.ext.Extension):
    """Tag `{% generation %}`: the answers in a text, which `spans` collects as [start, end) of their characters."""

    tags = {"generation"}
    num_characters = 0  # written before the block
    spans: list[Span] = []

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse a block until endgeneration."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        self.spans.append((self.num_characters, self.num_characters + len(text)))
        return text


class Namespace(jinja2.utils.Namespace):
    """`namespace()` of templates; it takes no name that begins with "_"."""

    def __init__(*args: object, **kwargs: object):
        self, *rest = args
        values = dict(*rest, **kwargs)  # type: ignore[call-overload]
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)  # type: ignore[arg-type]

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace takes no name that begins with an underscore: {name!r:.80}")


class Dict:
    """`dict()` of templates, without the attributes of Python's class."""

    def __call__(self, *args: object, **kwargs: object) -> dict:
        """A dict."""
        return dict(*args, **kwargs)  # type: ignore[call-overload]

    def fromkeys(self, *args: object) -> dict:
        """A dict of keys with one value."""
        return dict.fromkeys(*args)  # type: ignore[call-overload]


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _environment(date: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    # One time for all chats, so that two renders of one chat are the same.
    now = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment


def _render(template: jinja2.Template, variables: dict[str, object], room: int) -> dict[str, object]:
    """The text of one chat, of at most `room` characters, and the spans of its answers."""
    generation = template.environment.extensions[Generation.identifier]
    assert isinstance(generation, Generation), "its identifier"
    generation.num_characters = 0
    generation.spans = []
    blocks = []
    for block in template.generate(**variables):
        blocks.append(block)
        generation.num_characters += len(block)
        if generation.num_characters > room:
            raise MemoryError(f"more than {room:,} characters")
    return {"text": "".join(blocks), "spans": generation.spans}


def _results(asked: dict, room: int) -> Iterator[dict[str, object]]:
    environment = _environment(asked["date"])
    templates: dict[str, jinja2.Template] = {}
    for chat in asked["chats"]:
        source = asked["templates"][chat["template"]]
        try:
            template = templates[source] = templates.get(source) or environment.from_string(source)
            result = _render(template, chat["variables"], room)
            room -= len(str(result["text"]))
        except Exception as error:  # whatever the template did
            result = {"error": f"{str(error) or type(error).__name__:.300}"}
        yield result


def main() -> None:
    """Render the chats on stdin under the limits."""
    data = sys.stdin.buffer.read()
    asked = json.loads(data)
    for limit, value in ((resource.RLIMIT_CPU, asked["seconds"]), (resource.RLIMIT_AS, MEMORY + 16 * len(data))):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):  # a system without this limit has the others
            continue
    json.dump(list(_results(asked, 2**24 + 16 * len(data))), sys.stdout)


if __name__ == "__main__":
    main()
