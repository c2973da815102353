"""The Redis of docker-compose.yml, started by its own command line on our server binary."""

import shlex
from pathlib import Path

import pytest
import redis
import yaml

from tests.services import end, free_port, spawn, tail, valkey_binary, wait_until

ROOT = Path(__file__).parents[2]


def test_the_composed_redis_asks_for_its_password_and_forgets_nothing(tmp_path: Path) -> None:
    port = free_port()
    data = tmp_path / "data"
    data.mkdir()
    conf = tmp_path / "redis.conf"
    text = (ROOT / "ops" / "redis" / "redis.conf").read_text()
    for there, here in {
        "port 6379": f"port {port}",
        "dir /data": f"dir {data}",
        "bind * -::*": "bind 127.0.0.1",
    }.items():
        assert there in text
        text = text.replace(there, here)
    conf.write_text(text)
    (tmp_path / "redis_password").write_text("right\n")
    (tmp_path / "docker-entrypoint.sh").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "docker-entrypoint.sh").chmod(0o755)
    (tmp_path / "redis-server").symlink_to(valkey_binary())

    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    shell, flag, script = services["redis"]["command"]
    script = script.replace("$$", "$").replace("/run/secrets/", f"{tmp_path}/")
    script = script.replace("/usr/local/etc/redis/redis.conf", str(conf))
    server = spawn(
        [shell, flag, f"PATH={shlex.quote(str(tmp_path))}:$PATH\n{script}"], log=tmp_path / "redis.log"
    )
    try:
        with redis.Redis(port=port, password="right") as client:  # noqa: S106 - made up just above

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return server.poll() is not None

            wait_until(answers, seconds=20, what="Redis")
            assert server.poll() is None, tail(tmp_path / "redis.log")
            settings = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save")
            assert settings == {
                "appendonly": "yes",
                "appendfsync": "everysec",
                "maxmemory-policy": "noeviction",
                "save": "",
            }
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password="wrong") as stranger:  # noqa: S106, SIM117 - made up as well
            with pytest.raises(redis.AuthenticationError):
                stranger.ping()
    finally:
        end(server)
