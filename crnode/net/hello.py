"""What a node says first on every connection."""

from __future__ import annotations

from crnode.cluster.document import ClusterDocument
from crnode.cluster.node_file import NodeFile
from crproto.limits import FORMAT_LEVEL, MIB, PROTOCOL_VERSION
from crproto.messages import Hello

WINDOW = 16 * MIB
"""Bytes of bulk that a peer may send ahead of what we have processed: 20 ms round trips at 800 MB/s."""


def node_hello(
    node: NodeFile,
    document: ClusterDocument,
    now_ns: int,
    credit: int = WINDOW,
    features: tuple[str, ...] = (),
) -> Hello:
    """The Hello of a node of the cluster; `now_ns` is its wall clock."""
    return Hello(
        version_min=PROTOCOL_VERSION,
        version_max=PROTOCOL_VERSION,
        features=features,
        cluster=bytes.fromhex(node.cluster),
        node=node.name,
        incarnation=bytes.fromhex(node.incarnation),
        format_level=FORMAT_LEVEL,
        document=(document.version.generation, document.version.epoch, document.version.version),
        time_ns=now_ns,
        credit=credit,
    )


def joining_hello(now_ns: int) -> Hello:
    """The Hello of a machine that is nobody yet."""
    return Hello(
        version_min=PROTOCOL_VERSION,
        version_max=PROTOCOL_VERSION,
        features=(),
        cluster=b"",
        node="",
        incarnation=b"",
        format_level=FORMAT_LEVEL,
        document=(0, 0, 0),
        time_ns=now_ns,
        credit=0,
    )
