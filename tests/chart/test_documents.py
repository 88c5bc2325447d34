"""The chart's README: its table of values is made from the schema and the defaults, its commands render.

`python tests/chart/test_documents.py` prints the table."""

import json
import re

import yaml

from harness import CHART, render

README = CHART / "README.md"
BEGIN, END = "<!-- values -->", "<!-- /values -->"


def table():
    """The values as Markdown: one row for each that is no section."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def resolve(node):
        for part in node.get("allOf", []):
            if "$ref" in part:
                return schema["definitions"][part["$ref"].rsplit("/", 1)[1]]
        return node

    def rows(node, defaults, path):
        for name, sub in node["properties"].items():
            if name in ("global", "controlPlane", "agent") and not path:
                continue
            where = f"{path}.{name}".lstrip(".")
            default = defaults.get(name) if isinstance(defaults, dict) else None
            inner = resolve(sub)
            section = inner.get("properties") and isinstance(inner.get("additionalProperties"), bool)
            if section and isinstance(default, dict) and default and not where.endswith(("esources",)):
                yield f"| **`{where}`** | | {sub['description']} |"
                yield from rows(inner, default, where)
            else:
                shown = json.dumps(default, ensure_ascii=False) if default not in (None, "", {}, []) else ""
                shown = f"`{shown}`".replace('`"', "`").replace('"`', "`") if shown else ""
                yield f"| `{where}` | {shown} | {sub['description']} |"

    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows(schema, values, "")])


def test_the_table_of_values_is_the_schemas():
    text = README.read_text()
    written = text.split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert written == table(), "python tests/chart/test_documents.py prints the table"


def test_values_in_the_readme_are_taken():
    blocks = re.findall(r"```yaml\n(# values\.yaml.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 2
    for block in blocks:
        render(yaml.safe_load(block))


if __name__ == "__main__":
    print(table())
