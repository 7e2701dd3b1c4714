"""The keys of the configuration file as Markdown, from its JSON Schema."""

import re
from collections.abc import Iterator
from typing import Any

from deepseek_hpf.config import PrecisionConfig

Schema = dict[str, Any]

# Headings of sections, in the order of the page. Others follow, under the name of their class.
SECTIONS = {
    "PrecisionRule": "A rule, in `rules`",
    "LossScaleConfig": "`loss_scale`",
    "GlobalNormConfig": "`clipping` of kind `global_norm`",
    "ValueConfig": "`clipping` of kind `value`",
    "AdaptiveConfig": "`clipping` of kind `adaptive`",
    "AnomalyConfig": "`clipping` of kind `anomaly`",
    "ActivationsConfig": "`activations`",
    "DynamicConfig": "`dynamic`",
    "SchedulePhase": "A phase, in `dynamic`'s `schedule`",
}


def configuration_reference() -> str:
    """Returns the keys of the configuration file, section by section, as Markdown."""
    schema = PrecisionConfig.json_schema()
    definitions: Schema = schema["$defs"]
    names = sorted(definitions, key=lambda name: [*SECTIONS, name].index(name))
    parts = ["### The whole file", *_keys(schema)]
    for name in names:
        parts += [f"### {_heading(name)}", _prose(definitions[name]), *_keys(definitions[name])]
    return "\n\n".join(parts)


def _heading(name: str) -> str:
    return SECTIONS.get(name, f"`{name.removesuffix('Config').lower()}`")


def _prose(section: Schema) -> str:
    """The description up to its example, which is in Python and belongs to the API."""
    text = str(section.get("description", ""))
    return " ".join(text.partition("\n\nExample:")[0].split())


def _keys(section: Schema) -> Iterator[str]:
    required = section.get("required", [])
    lines = ["| key | value | default | what it is |", "| --- | --- | --- | --- |"]
    for key, found in section["properties"].items():
        default = "required" if key in required else _default(found)
        what = found.get("description", "").replace("\n", " ")
        if key == "kind":
            default, what = "required", "Which clipping this is."
        lines.append(f"| `{key}` | {_values(found)} | {default} | {_escaped(what)} |")
    yield "\n".join(lines)


def _default(found: Schema) -> str:
    if "default" not in found:
        return "its defaults" if "$ref" in found else ""
    value = found["default"]
    plain = {None: "`null`", True: "`true`", False: "`false`"}
    if value is None or isinstance(value, bool):
        return plain[value]
    return f'`"{value}"`' if isinstance(value, str) else f"`{_number(value)}`"


def _values(found: Schema) -> str:
    """What a key may be, in words."""
    if "anyOf" in found or "oneOf" in found:
        return " or ".join(_values(each) for each in found.get("anyOf") or found["oneOf"])
    if "$ref" in found:
        return _link(found["$ref"])
    if "enum" in found:
        return ", ".join(f'`"{value}"`' for value in found["enum"])
    if "const" in found:
        return f'`"{found["const"]}"`'
    if found["type"] == "array":
        return f"list of {_values(found['items'])}s"
    return _bounded(found)


def _bounded(found: Schema) -> str:
    names = {"null": "`null`", "boolean": "`true`, `false`"}
    kind = names.get(found["type"], found["type"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    # Bounds that only say "it has to fit into 32 bits" would hide the others.
    bounds = [f"{s} {_number(found[b])}" for b, s in signs.items() if abs(found.get(b, 1e9)) < 1e9]
    return f"{kind} {', '.join(bounds)}".strip()


def _link(reference: str) -> str:
    """The section, named by the kind of clipping where it is one."""
    heading = _heading(reference.rpartition("/")[2])
    words = heading.rpartition(" ")[2] if " of kind " in heading else "object"
    anchor = re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
    return f"[{words}](#{anchor})"


def _number(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _escaped(text: str) -> str:
    return re.sub(r"([*\[\]|])", r"\\\1", text)
