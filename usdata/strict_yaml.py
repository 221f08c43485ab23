"""YAML as a person reads it: no key twice, `no` is the word no, no aliases, no Python objects."""

import re
from typing import Any

import yaml

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe loading with YAML 1.2's few implicit types; PyYAML's own turn `no` into false and 12:30 into 750."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used here", mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^(?:0|[-+]?[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_yaml(content: bytes) -> Any:
    """The one document in `content` (UTF-8) as dicts, lists, strings, numbers, booleans and None.

    Raises:
        yaml.YAMLError: not YAML, a key given twice, an alias, a tag.
        UnicodeDecodeError: not UTF-8.
        ValueError: larger than a megabyte.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
