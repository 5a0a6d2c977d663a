"""The kustomizations, as Kubernetes's own tool renders them."""

import subprocess

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from pipeline_poc_tests.unit.test_kubernetes import FOLDER, KEDA_KINDS, KUBERNETES_VERSIONS


@pytest.mark.parametrize(("folder", "least"), [("config", 8), ("storage", 1), ("app", 8)])
def test_kubernetes_takes_what_is_rendered(kubectl: str, folder: str, least: int) -> None:
    """The kustomization renders, all in one namespace, and fits Kubernetes' schemas without a field too many."""
    done = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / folder)], capture_output=True, text=True, check=True, timeout=60
    )
    rendered = list(yaml.safe_load_all(done.stdout))
    assert len(rendered) >= least
    for manifest in rendered:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "pipeline-poc", manifest
        if manifest["kind"] not in KEDA_KINDS:
            for version in KUBERNETES_VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)
