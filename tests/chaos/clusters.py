"""Clusters of Ray nodes on this machine, each node a raylet of its own, in a process that the test can end.

``python -m tests.chaos.clusters`` starts a head and obeys JSON lines: {"add": options}, {"remove": number}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.chaos.jobs import Driver, wait_until

__all__ = ["RayCluster", "ray_cluster"]

_START_SECONDS = 180.0
_STARTS = 3  # Ray gives itself half a minute, which a busy machine can exceed
_NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


class RayCluster:
    """A running cluster: its address, and the process ids of its nodes' raylets, the head's first."""

    def __init__(self, process: Driver) -> None:
        self._process = process
        self.raylets = [self._next("node", 0)["raylet"]]
        self.address = str(process.events[0]["address"])

    def add(self, **options: Any) -> int:
        """Another node; its number."""
        self._process.say(json.dumps({"add": options}))
        number = len(self.raylets)
        self.raylets.append(self._next("node", number)["raylet"])
        return number

    def remove(self, number: int) -> None:
        """Take a node away as a power cut does."""
        gone = sum(event["event"] == "gone" for event in self._process.events)
        self._process.say(json.dumps({"remove": number}))
        self._next("gone", gone)

    def _next(self, name: str, number: int) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [event for event in self._process.events if event["event"] == name]

        wait_until(lambda: len(found()) > number, _START_SECONDS, f"cluster: {name}", self._process)
        return found()[number]


@contextmanager
def ray_cluster(environment: Mapping[str, str], **head: Any) -> Iterator[RayCluster]:
    """A cluster with only a head yet, of these options."""
    command = [sys.executable, "-m", "tests.chaos.clusters", json.dumps(head)]
    with Driver({}, environment, command=command) as process:
        yield RayCluster(process)


def _main(head: dict[str, Any]) -> None:
    from tests.chaos.driver import tell

    cluster = _started(head)
    nodes = [cluster.head_node]

    def told(node: Any) -> None:
        raylet = node.all_processes["raylet"][0].process.pid
        tell("node", address=cluster.address, raylet=raylet)

    told(nodes[0])
    for line in sys.stdin:
        request = json.loads(line)
        if "add" in request:
            nodes.append(cluster.add_node(**{**_NODE, **request["add"]}))
            told(nodes[-1])
        else:
            cluster.remove_node(nodes[request["remove"]], allow_graceful=False)
            tell("gone")


def _started(head: dict[str, Any]) -> Any:
    from ray.cluster_utils import Cluster

    for _ in range(_STARTS - 1):
        try:
            return Cluster(initialize_head=True, head_node_args={**_NODE, **head})
        except Exception as error:  # Ray raises the bare class here
            print(f"no cluster yet: {error}", flush=True)
    return Cluster(initialize_head=True, head_node_args={**_NODE, **head})


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
