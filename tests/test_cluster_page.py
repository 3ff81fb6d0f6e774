"""The examples in docs/cluster.md are complete: shell that parses, a manifest as the operator expects."""

import re
import subprocess

from ruamel.yaml import YAML


def blocks(repository, language):
    return re.findall(rf"```{language}\n(.*?)```", (repository / "docs/cluster.md").read_text(), re.DOTALL)


def test_shell_lines_parse(repository):
    scripts = blocks(repository, "bash")
    assert len(scripts) == 4
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_manifest_starts_one_process_per_gpu(repository):
    (manifest,) = blocks(repository, "yaml")
    spec = YAML(typ="safe").load(manifest)["spec"]
    for replica in (spec["pytorchReplicaSpecs"][name] for name in ("Master", "Worker")):
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert container["command"] == ["torchrun", "-m", "pipeline.train"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
        volumes = {volume["name"] for volume in replica["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
