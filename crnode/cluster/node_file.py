"""What a node knows of itself (`node.json`), and whether a data directory may be used at all.

`node.json` is written last by `init` and `join`: a directory without it is not a node, whatever else lies in
it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from crnode.cluster.document import (
    ClusterDocument,
    Hex16,
    Name,
    Role,
    parse_document,
    sentence,
    split_address,
)
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, boot_id, machine_id

NODE_FILE = "node.json"
DOCUMENT_FILE = "cluster.json"
LOCK_FILE = "lock"
KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.pem"
CA_CERTIFICATE_FILE = "ca/ca.pem"
CA_KEY_FILE = "ca/ca.key"
TOKENS_FILE = "tokens.json"
CONTROL_SOCKET = "control.sock"

MINIMUM_QUOTA = 64 << 20
"""Bytes below which a quota leaves no room to work."""

FORMAT_LEVEL = 1
"""The newest on-disk format that this program writes."""

_UNFINISHED = frozenset({LOCK_FILE, KEY_FILE, CERTIFICATE_FILE, DOCUMENT_FILE, TOKENS_FILE, "ca"})
"""What an interrupted `init` or `join` may leave; anything else in a directory without node.json is not ours.
"""


def _address(text: str) -> str:
    split_address(text)  # ValueError with a sentence
    return text


class ProofPlan(BaseModel):
    """How this node proves the versions of a set: by what, how often, and how long it may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    command: Annotated[str, Field(max_length=4096)] = ""  # run in what was restored; '': it is only read back
    every_s: Annotated[int, Field(ge=0, le=366 * 86_400)] = 86_400  # 0: never
    timeout_s: Annotated[int, Field(ge=1, le=7 * 86_400)] = 3600


class NodeFile(BaseModel):
    """The node's own identity and settings. Never sent anywhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    name: Name
    role: Role
    cluster: Hex16
    incarnation: Hex16
    machine_id: str  # where this directory was made; elsewhere it is a copy (rule 90)
    listen: Annotated[str, AfterValidator(_address)]  # host:port to bind
    advertise: Annotated[str, AfterValidator(_address)]  # host:port that the others call
    destinations: tuple[str, ...] = ()  # where live trees may lie; empty: anywhere but in the system's places
    hash_seed: Annotated[int, Field(ge=0, lt=2**64)]  # secret seed of the block hashes
    quota: Annotated[int, Field(ge=MINIMUM_QUOTA)] | None = None  # bytes of packs and catalogs (rule 40)
    proofs: dict[Name, ProofPlan] = Field(default_factory=dict)  # by set; others are read back each day
    format_level: Annotated[int, Field(ge=1)] = FORMAT_LEVEL

    def write(self, data: Path) -> None:
        """Store it durably as DATA/node.json."""
        atomic_write(data / NODE_FILE, self.model_dump_json(indent=1).encode())

    def is_this_machine(self) -> bool:
        """False when the data directory was copied here from another machine: the agent then needs a new
        incarnation.
        """
        return self.machine_id == machine_id()


def read_node_file(data: Path) -> NodeFile:
    """DATA/node.json. CrnodeError(REFUSED) when there is none, FAILED when it cannot be read as one."""
    path = data / NODE_FILE
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise CrnodeError(
            f"'{data}' is not the data directory of a node.",
            "It has no node.json.",
            "Make a new cluster with 'crnode init', or join one with 'crnode join TOKEN'.",
            ExitCode.REFUSED,
        ) from None
    except OSError as error:
        raise CrnodeError(
            f"'{path}' cannot be read.", _because(error), "Run crnode as the owner of it."
        ) from error
    try:
        node = NodeFile.model_validate_json(body)
    except ValidationError as error:
        raise CrnodeError(
            f"'{path}' cannot be used.", sentence(error), "Restore it from a backup, or join anew."
        ) from error
    if node.format_level > FORMAT_LEVEL:
        raise CrnodeError(
            f"'{data}' was written by a newer crnode.",
            f"It has format level {node.format_level}, this program knows {FORMAT_LEVEL}.",
            "Install the newer version again.",
            ExitCode.REFUSED,
        )
    return node


def read_document(data: Path) -> ClusterDocument:
    """DATA/cluster.json. CrnodeError when it is missing, cannot be read, or is no cluster document."""
    path = data / DOCUMENT_FILE
    try:
        body = path.read_bytes()
    except OSError as error:
        raise CrnodeError(
            f"'{path}' cannot be read.",
            _because(error),
            "Copy it again from another node of the cluster, or restore it from a backup."
            if isinstance(error, FileNotFoundError)
            else "Run crnode as the owner of it.",
        ) from error
    return parse_document(body, f"'{path}'")


def check_data_dir(data: Path) -> None:
    """Refuse a data directory that others can look into or that belongs to another user.
    CrnodeError(REFUSED).
    """
    try:
        info = data.stat()
    except FileNotFoundError:
        raise CrnodeError(
            f"There is no data directory '{data}'.",
            "",
            "Give the right one with --data, or make one with 'crnode init' or 'crnode join'.",
            ExitCode.REFUSED,
        ) from None
    except OSError as error:
        raise CrnodeError(
            f"'{data}' cannot be looked at.", _because(error), "Run crnode as the owner of it."
        ) from error
    if not stat.S_ISDIR(info.st_mode):
        raise CrnodeError(
            f"'{data}' is not a directory.", "", "Give the right one with --data.", ExitCode.REFUSED
        )
    if info.st_uid != os.geteuid():
        raise CrnodeError(
            f"'{data}' belongs to another user (number {info.st_uid}).",
            "A node's keys are for one user alone.",
            "Run crnode as that user.",
            ExitCode.REFUSED,
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise CrnodeError(
            f"Others may look into '{data}'.",
            f"Its mode is {stat.S_IMODE(info.st_mode):04o}, and it holds the node's private key.",
            f"Run: chmod 700 {data}",
            ExitCode.REFUSED,
        )


def check_fresh(data: Path) -> None:
    """Refuse to make a node in a directory that holds anything but what an interrupted attempt left."""
    if (data / NODE_FILE).exists():
        node = read_node_file(data)
        raise CrnodeError(
            f"'{data}' belongs to the node '{node.name}' already.",
            "A data directory is one node of one cluster.",
            "Choose another directory with --data, or delete that one if the node is no longer needed.",
            ExitCode.REFUSED,
        )
    try:
        names = [entry.name for entry in data.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise CrnodeError(
            f"'{data}' cannot be used as a data directory.", _because(error), "Choose another with --data."
        ) from error
    foreign = sorted(name for name in names if name not in _UNFINISHED and not name.endswith(".tmp"))
    if foreign:
        raise CrnodeError(
            f"'{data}' is not empty.",
            f"It holds '{foreign[0]}', which crnode did not put there.",
            "Choose an empty or a new directory with --data.",
            ExitCode.REFUSED,
        )


class DataLock:
    """Holds DATA/lock (flock) so that one process at a time works in a data directory (rule 90). A context
    manager.
    """

    def __init__(self, data: Path) -> None:
        """Take the lock at once, or raise CrnodeError(REFUSED) saying who has it."""
        path = data / LOCK_FILE
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 200).decode(errors="replace").split()
            os.close(self._fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise CrnodeError(
                    f"'{path}' cannot be locked.", _because(error), "Use a local file system."
                ) from error
            by = f"process {holder[0]}" if holder and holder[0].isdigit() else "another process"
            raise CrnodeError(
                f"'{data}' is in use.",
                f"{by[:1].upper()}{by[1:]} works in it, and two agents on one data directory would "
                "damage it.",
                "Stop that one first.",
                ExitCode.REFUSED,
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()} {boot_id()}\n".encode(), 0)

    def release(self) -> None:
        """Give the directory free; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _because(error: OSError) -> str:
    return f"The system says: {error.strerror or error}."
