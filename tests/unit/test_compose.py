"""docker-compose.yml: valid by the Compose specification, and as careful as the fleet needs it to be.

The parser is that of the compose-spec package, which knows every key and every unit. No container is started.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
WORKERS = ("worker-cpu", "worker-cuda", "worker-npu")


def parsed(text: str) -> dict[str, Any]:
    """Interpolated with the defaults it names, anchors merged, and checked."""
    plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    compose = compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(plain)))
    compose.validate()
    return compose.to_dict()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return parsed(TEXT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stop_grace_period: 150s", "stop_grace_period: 150sec"),
        ("restart: unless-stopped", "restart: sometimes"),
        ("shm_size: 1gb", "shm_sizee: 1gb"),
        ("secrets: [redis_password]", "secrets: [redis_passwd]"),
    ],
)
def test_the_parser_refuses_mistakes(right: str, wrong: str) -> None:
    assert right in TEXT
    with pytest.raises(ValueError, match=r"not|must|unknown"):
        parsed(TEXT.replace(right, wrong))


def test_a_worker_for_each_kind_of_device(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name: services[name].get("profiles") for name in services} == {
        "redis": None,
        "seaweedfs": None,
        "flower": None,
        "prometheus": None,
        "grafana": None,
        "worker-cpu": ["cpu"],
        "worker-cuda": ["cuda"],
        "worker-npu": ["npu"],
    }


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_longer_to_stop_than_it_drains(compose: dict[str, Any], name: str) -> None:
    worker = compose["services"][name]
    drain = float(worker["environment"]["LONGHAUL_DRAIN_SECONDS"])
    assert drain == Settings.model_fields["drain_seconds"].default
    assert compose_spec.parse_duration(worker["stop_grace_period"]) >= drain + 30
    assert worker["stop_signal"] == "SIGTERM"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_waits_for_healthy_services_and_knows_its_settings(
    compose: dict[str, Any], name: str
) -> None:
    worker = compose["services"][name]
    assert {on: how["condition"] for on, how in worker["depends_on"].items()} == {
        "redis": "service_healthy",
        "seaweedfs": "service_healthy",
    }
    secrets = [secret.upper() for secret in worker["secrets"]]
    for variable in [*worker["environment"], *secrets]:
        assert variable.removeprefix("LONGHAUL_").lower() in Settings.model_fields, variable
    assert set(secrets) >= {
        "LONGHAUL_REDIS_URL",
        "LONGHAUL_S3_ACCESS_KEY_ID",
        "LONGHAUL_S3_SECRET_ACCESS_KEY",
    }


def test_each_worker_gets_its_devices(compose: dict[str, Any]) -> None:
    cuda, npu = compose["services"]["worker-cuda"], compose["services"]["worker-npu"]
    (reserved,) = cuda["deploy"]["resources"]["reservations"]["devices"]
    assert reserved["driver"] == "nvidia"
    assert reserved["capabilities"] == ["gpu"]

    devices = {device.split(":")[0] for device in npu["devices"]}
    assert {f"/dev/davinci{number}" for number in range(8)} <= devices
    assert {"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"} <= devices
    mounts = {volume.split(":")[0] for volume in npu["volumes"]}
    assert {"/usr/local/Ascend/driver", "/usr/local/dcmi", "/usr/local/bin/npu-smi"} <= mounts
    # Which rank sees which device is the worker's to say, group by group.
    assert "ASCEND_RT_VISIBLE_DEVICES" not in npu["environment"]
    assert npu["environment"]["LONGHAUL_DEVICE_GROUPS"].startswith("npu:")


def test_every_service_restarts_is_pinned_and_stays_on_this_host(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), service["image"]
        if "build" in service:
            containerfile = ROOT / service["build"]["context"] / service["build"]["dockerfile"]
            assert "latest" not in containerfile.read_text(), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_stores_are_healthy_only_when_they_answer_and_keep_their_data(compose: dict[str, Any]) -> None:
    for name, volume in {
        "redis": "redis-data:/data",
        "seaweedfs": "s3-data:/data",
        "prometheus": "prometheus-data:/prometheus",
        "grafana": "grafana-data:/var/lib/grafana",
    }.items():
        service = compose["services"][name]
        assert service["healthcheck"]["test"], name
        assert volume in service["volumes"]
        assert volume.split(":")[0] in compose["volumes"]


def test_redis_forgets_nothing() -> None:
    lines = (ROOT / "ops" / "redis" / "redis.conf").read_text().splitlines()
    settings = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert "requirepass" not in settings


def test_secrets_come_from_files_that_are_not_in_the_repository(compose: dict[str, Any]) -> None:
    for name, secret in compose["secrets"].items():
        path = ROOT / secret["file"]
        assert path.parent == ROOT / "ops" / "secrets"
        assert path.with_name(f"{name}.example").is_file()
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("__FILE"):
                assert value in {f"/run/secrets/{secret}" for secret in service["secrets"]}, variable
            else:
                assert not re.search("PASSWORD|SECRET|KEY|REDIS_URL", variable), f"{name}: {variable}"
            assert "@" not in str(value), f"{name}: {variable}"


def test_the_secrets_are_made_once(compose: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(ROOT / "ops" / "secrets" / "create", tmp_path)
    made = []
    for _ in range(2):
        subprocess.run(["./create"], cwd=tmp_path, check=True, capture_output=True)
        made.append({name: (tmp_path / name).read_text() for name in compose["secrets"]})
    assert made[0] == made[1]
    assert len(set(made[0].values())) == len(made[0])
    assert made[0]["redis_password"].strip() in made[0]["longhaul_redis_url"]


def test_what_is_mounted_from_ops_is_there(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./ops/")
    ]
    assert len(mounted) >= 5
    for path, _, mode in mounted:
        assert (ROOT / path).exists(), path
        assert mode == "ro", path


def test_git_ignores_the_secrets_and_keeps_their_examples(compose: dict[str, Any]) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for name in compose["secrets"]:
        for file, ignored in ((name, True), (f"{name}.example", False)):
            path = f"ops/secrets/{file}"
            asked = subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=ROOT, check=False)
            assert (asked.returncode == 0) is ignored, path
