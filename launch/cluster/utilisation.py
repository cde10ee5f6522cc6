"""How busy the roles of a distributed run are: for TensorBoard, for Ray's dashboard, and as a table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray.util.metrics import Gauge

from launch.cluster.pool import Member, Pool
from rollout.actor import SyncInfo


@dataclass
class _Total:
    worked: float = 0.0
    available: float = 0.0
    calls: int = 0
    last: float = 0.0
    depths: list[int] = field(default_factory=list)


class RoleUsage:
    """Usage since the start of the run, and since the last call of `metrics`."""

    def __init__(self, run: str, members: Mapping[str, Sequence[Member]], pools: Mapping[str, Pool]) -> None:
        self._members, self._pools = members, pools
        self._totals = {role: _Total() for role in members}
        self._since = time.perf_counter()
        self._syncs: list[SyncInfo] = []
        self._sync_seconds, self._sync_bytes, self._sync_count = 0.0, 0, 0
        self._started = self._since
        tags = ("run", "role")
        self._gauges = {
            name: Gauge(f"stylevar_{name}", description=text, tag_keys=tags)
            for name, text in (
                ("busy_share", "share of the last step that the workers of a role worked"),
                ("queue_depth", "units waiting for a role whenever one of its workers took one, mean of the last step"),
                ("restarts", "workers of a role that were replaced since the start"),
                ("staleness", "age in updates of the weights that sampled the last step"),
                ("sync_seconds", "seconds that rollout workers spent on new weights in the last step"),
            )
        }
        self._run = run

    def synced(self, info: SyncInfo) -> None:
        """Record that a rollout worker has loaded new weights."""
        self._syncs.append(info)
        self._sync_seconds += info.seconds
        self._sync_bytes += info.nbytes
        self._sync_count += 1

    def metrics(self, staleness: int, restarts: Mapping[str, int]) -> dict[str, float]:
        """TensorBoard scalars for the time since the last call."""
        now = time.perf_counter()
        wall, self._since = now - self._since, now
        values = {"policy/staleness": float(staleness)}
        for role, members in self._members.items():
            total = self._totals[role]
            worked = sum(member.worked for member in members)
            busy = (worked - total.last) / (len(members) * wall)
            total.last, total.worked = worked, worked
            total.available += len(members) * wall
            values |= {f"busy/{role}": busy, f"idle/{role}": max(0.0, 1 - busy)}
            values[f"restarts/{role}"] = float(restarts[role])
            if role in self._pools:
                depths, self._pools[role].queue_depths = self._pools[role].queue_depths, []
                total.depths += depths
                values[f"queue/{role}"] = sum(depths) / len(depths) if depths else 0.0
        values["sync/seconds"] = sum(info.seconds for info in self._syncs)
        values["sync/bytes"] = float(sum(info.nbytes for info in self._syncs))
        self._syncs = []
        self._publish(values)
        return values

    def table(self, restarts: Mapping[str, int]) -> str:
        """A table of the run so far, one line per role."""
        head = f"{'role':10}{'workers':>8}{'calls':>8}{'busy':>8}{'idle':>8}{'queue':>8}{'restarts':>10}"
        lines = [head]
        for role, members in self._members.items():
            total = self._totals[role]
            busy = total.worked / total.available if total.available else 0.0
            queue = f"{sum(total.depths) / len(total.depths):.1f}" if total.depths else "-"
            calls = sum(member.calls for member in members)
            lines.append(f"{role:10}{len(members):8}{calls:8}{busy:8.0%}{1 - busy:8.0%}{queue:>8}{restarts[role]:10}")
        wall = time.perf_counter() - self._started
        lines.append(
            f"sync: {self._sync_count} times, {self._sync_bytes / 1e6:.1f} MB, {self._sync_seconds:.1f} s of {wall:.0f} s"
        )
        return "\n".join(lines)

    def _publish(self, values: Mapping[str, float]) -> None:
        names = {"busy": "busy_share", "queue": "queue_depth", "restarts": "restarts"}
        for tag, value in values.items():
            kind, _, role = tag.partition("/")
            if kind in names:
                self._gauges[names[kind]].set(value, {"run": self._run, "role": role})
        self._gauges["staleness"].set(values["policy/staleness"], {"run": self._run, "role": "learner"})
        self._gauges["sync_seconds"].set(values["sync/seconds"], {"run": self._run, "role": "rollout"})
