"""Versions for those who look at MLflow: a run each, and a version of a registered model."""

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from star_jax.config import InputError
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.registry.state import Version
from star_jax.pipeline.releases.gather import METRICS

_DIGEST = "star_jax.digest"
_REF = "star_jax.version"
_PARAM_LENGTH = 500  # Characters; MLflow refuses 6000 and shows few.


def log(registry: Registry, ref: str, tracking_uri: str, experiment: str | None) -> str:
    """Logs config, metrics, lineage and the record of a version; logged before, moves its aliases.

    The registry stays what decides: nothing is read back. Aliases follow its own each time.

    Args:
      registry: Holds the version.
      ref: Which.
      tracking_uri: Of MLflow: a server's, or `sqlite:///mlflow.db`, whose files MLflow puts below
        the working directory; a folder where MLFLOW_ALLOW_FILE_STORE=true.
      experiment: Its name. None: that of the version.

    Returns:
      A line that says where it is.

    Raises:
      InputError: MLflow is not installed, or refuses.
    """
    try:
        library = importlib.import_module("mlflow")
    except ModuleNotFoundError as error:
        raise InputError(
            "star registry mlflow needs MLflow; install the extra: pip install 'star_jax[mlflow]'"
        ) from error
    version = registry.version(ref)
    try:
        client = library.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        model_version, run_id = _log(client, registry, version, experiment or version.name)
    except library.exceptions.MlflowException as error:
        raise InputError(f"MLflow at {tracking_uri}: {error}") from error
    return f"{version.ref} is version {model_version} of {version.name}, run {run_id}"


def _log(client: Any, registry: Registry, version: Version, experiment: str) -> tuple[str, str]:
    """The version of the registered model, and its run."""
    if not client.search_registered_models(f"name = '{version.name}'"):
        client.create_registered_model(version.name)
    known = [
        each
        for each in client.search_model_versions(f"name = '{version.name}'")
        if each.tags.get(_REF) == version.ref and each.tags.get(_DIGEST) == version.digest
    ]
    if known:
        model_version, run_id = str(known[0].version), known[0].run_id
    else:
        run_id = _log_run(client, registry, version, experiment)
        source = f"{registry.url}/objects/{version.digest}"
        tags = {_REF: version.ref, _DIGEST: version.digest}
        made = client.create_model_version(version.name, source, run_id, tags=tags)
        model_version = str(made.version)
    _move_aliases(client, registry, version, model_version)
    client.set_model_version_tag(version.name, model_version, "star_jax.state", version.state)
    return model_version, run_id


def _log_run(client: Any, registry: Registry, version: Version, experiment: str) -> str:
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    record, reports = registry.record(version.ref), registry.reports(version.ref)
    tags = {_REF: version.ref, _DIGEST: version.digest, "star_jax.kind": version.kind}
    tags |= {f"star_jax.parent.{role}": digest for role, digest in version.parents.items()}
    tags |= {"star_jax.code": " ".join(filter(None, (record["star_jax"], record["code"])))}
    run_id = client.create_run(experiment_id, run_name=version.ref, tags=tags).info.run_id
    try:
        for name, value in _leaves(record["config"] or {}, ""):
            client.log_param(run_id, name, str(value)[:_PARAM_LENGTH])
        for task, values in reports.get(METRICS, {"tasks": {}})["tasks"].items():
            for name, value in values.items():
                if isinstance(value, float):
                    client.log_metric(run_id, f"{task}/{name.replace('@', '_at_')}", value)
        client.log_dict(run_id, record, "record.json")
        for name, content in reports.items():
            client.log_text(run_id, json.dumps(content, indent=1), f"{name}.json")
    except BaseException:  # Also on Ctrl-C: a run that is not whole says so.
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _move_aliases(client: Any, registry: Registry, version: Version, model_version: str) -> None:
    """Gives the model's version the aliases that ours has now, and takes others away."""
    model = client.get_registered_model(version.name)
    own = registry.state().aliases.get(version.name, {})
    wanted = {alias for alias, ref in own.items() if ref == version.ref}
    for alias, number in model.aliases.items():
        if str(number) == model_version and alias not in wanted:
            client.delete_registered_model_alias(version.name, alias)
    for alias in sorted(wanted):
        client.set_registered_model_alias(version.name, alias, model_version)


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
