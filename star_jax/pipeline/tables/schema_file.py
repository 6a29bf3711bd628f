"""Schema files: a Python file with `get_schema()`, or JSON with the fields of `Schema`."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from star_jax.config import InputError, call_in_file
from star_jax.pipeline.tables.schema import Schema


def read_schema(path: Path) -> Schema:
    """Reads a schema file.

    Raises:
      InputError: Naming the file and the field that is wrong.
    """
    if not path.is_file():
        raise InputError(f"schema {path} does not exist, needed a .py or .json file")
    if path.suffix == ".json":
        try:
            return TypeAdapter(Schema).validate_json(path.read_bytes())
        except ValidationError as error:
            raise InputError(f"schema {path}: {_first(error)}") from error
    schema = call_in_file(path, "get_schema", "schema")
    if not isinstance(schema, Schema):
        raise InputError(
            f"schema {path}: get_schema() returned {type(schema).__name__}, needed a Schema"
        )
    return schema


def schema_json(schema: Schema) -> str:
    """The schema as a JSON file that `read_schema` takes."""
    return TypeAdapter(Schema).dump_json(schema, indent=1).decode()


def _first(error: ValidationError) -> str:
    """The first mistake; an unknown name comes first, for it explains the missing one."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Unexpected keyword argument", "is no field of a schema")
    return f"{path}: {message}" if path else message
