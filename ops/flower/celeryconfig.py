"""What Flower must know to watch Longhaul's queues: where the broker is, and under which key prefix."""

import os
from pathlib import Path

broker_url = Path("/run/secrets/longhaul_redis_url").read_text().strip()
broker_transport_options = {"global_keyprefix": os.environ.get("LONGHAUL_REDIS_PREFIX", "longhaul") + ":"}
accept_content = ["json"]
