"""The cluster document: nodes, sets and thresholds, as one versioned value that every node holds. Pure.

The master alone makes new ones (:mod:`crnode.cluster.membership`); everybody else takes what the master
sends. A document that exists is valid: every rule that can be read from the document alone is checked here,
so that no later code meets two masters, a set without a source, or two sets that write into one folder (rules
47, 64, 85).

Every violation is a ValueError with one sentence: what is wrong, why that matters, what to do.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from crnode.cluster.keep import MAX_RUNGS, Rung, check_rungs
from crnode.errors import CrnodeError, ExitCode
from crproto.ids import check_name

MAX_NODES = 8
"""Nodes of a cluster: the promise made to users, and what the status table is laid out for."""
MAX_SETS = 256
"""Sets of a cluster: each costs a catalog, a watcher and a session per target."""
MAX_PATHS = 64
"""Paths of one set; more belong into a common parent folder with exclude patterns."""
MAX_MEMBERS = 32
"""Sets of one group: each is looked up for every path that another one changed."""
MAX_PATTERNS = 1024
"""Include, exclude or page-file patterns of one set; each is tried against every path."""
MAX_TOMBSTONES = 512
"""Remembered removals; the oldest are forgotten first."""
MAX_PATH_BYTES = 4096
"""Length of a path in bytes (PATH_MAX of Linux)."""
MAX_DOCUMENT_BYTES = 768 * 1024
"""Size of the document's JSON: it travels inside one message of at most 1 MiB."""
DEFAULT_PORT = 7400
"""TCP port of the agents unless told otherwise."""
TOMBSTONE_KEEP_NS = 30 * 86_400 * 1_000_000_000
"""How long versions of a removed set are kept (rule 47), in nanoseconds."""

_HEX16 = r"^[0-9a-f]{32}$"
_HEX32 = r"^[0-9a-f]{64}$"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
T = TypeVar("T")
_WILDCARDS = frozenset({"0.0.0.0", "::", "0", "*"})


def fingerprint(certificate: bytes) -> str:
    """The name under which the document knows a certificate (DER bytes): its SHA-256 in lower-case hex."""
    return hashlib.sha256(certificate).hexdigest()


def split_address(text: str) -> tuple[str, int]:
    """'host:port' or '[v6]:port' -> (host, port 0..65535); a missing port means 7400. ValueError with a
    sentence.
    """
    text = text.strip()
    host, colon, number = text.rpartition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(
                f"The address '{text}' is not of the form [address]:port; write it as [fe80::1]:7400."
            )
        number = rest[1:]
        colon = rest[:1]
    elif not colon:
        host, number = text, ""
    elif ":" in host:
        raise ValueError(
            f"The address '{text}' has several colons; write an IPv6 address in brackets: [{text}]:7400."
        )
    if not _names_a_host(host, bracketed=text.startswith("[")):
        raise ValueError(
            f"The address '{text}' names no host; write a name or an IP address and a port: "
            "192.168.1.10:7400."
        )
    if colon and not (re.fullmatch(r"[0-9]{1,5}", number) and int(number) <= 65535):
        raise ValueError(
            f"The address '{text}' has no port number of 0 to 65535; write it as "
            f"{join_address(host, DEFAULT_PORT)}."
        )
    return host, int(number) if number else DEFAULT_PORT


def _names_a_host(host: str, *, bracketed: bool) -> bool:
    """Whether `host` can be looked up at all: an IP address as it is written, or a name of DNS labels."""
    try:
        if bracketed:
            return bool(ipaddress.IPv6Address(host))
        if host not in _WILDCARDS and re.fullmatch(r"[0-9.]+", host):
            return bool(ipaddress.IPv4Address(host))
    except ValueError:
        return False
    return len(host) <= 253 and _HOST.fullmatch(host) is not None


def join_address(host: str, port: int) -> str:
    """(host, port) -> 'host:port', with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(text: str) -> str:
    host, port = split_address(text)
    if host in _WILDCARDS:
        raise ValueError(
            f"The address '{text}' means 'every interface', which nobody can call; give the machine's "
            "own address."
        )
    if port == 0:
        raise ValueError(
            f"The address '{text}' has port 0, which nobody can call; give the real port, as in {host}:7400."
        )
    return join_address(host, port)


def valid_name(text: str) -> str:
    """`text` itself if a node, set or cluster may be called so; else ValueError with a sentence."""
    try:
        return check_name(text)
    except ValueError as error:
        raise ValueError(
            f"The name '{text}' cannot be used: names have 1 to 63 of a-z, 0-9 and '-', and begin with a "
            "letter or "
            f"digit; choose one like 'shop-1'."
        ) from error


def _absolute(text: str) -> str:
    if "\x00" in text or len(text.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise ValueError(
            f"The path '{text[:60]!r}' is too long or has a NUL character; no file system can hold it."
        )
    if not text.startswith("/"):
        raise ValueError(
            f"The path '{text}' is not absolute, so it depends on where crnode was started; begin it "
            "with '/'."
        )
    parts = text.split("/")[1:]
    if parts[-1] == "":
        parts.pop()
    if not parts:
        raise ValueError(
            "The path '/' is the whole machine, system and crnode itself included; name the folders to "
            "protect."
        )
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"The path '{text}' contains '.', '..' or '//', so it is not clear what it means; write it out."
        )
    return "/" + "/".join(parts)


def _pattern(text: str) -> str:
    if not text.strip() or "\x00" in text or "\n" in text or len(text) > MAX_PATH_BYTES:
        raise ValueError(
            f"The pattern {text[:60]!r} is empty or too long; write it like a line of .gitignore: '*.tmp'."
        )
    return text


def overlap(one: str, other: str) -> bool:
    """Whether two absolute paths are equal or one lies inside the other (by their letters, not on disk)."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,240}\.service")

Name = Annotated[str, AfterValidator(valid_name)]
Address = Annotated[str, AfterValidator(_reachable)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Hex16 = Annotated[str, Field(pattern=_HEX16)]
Hex32 = Annotated[str, Field(pattern=_HEX32)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Rungs = Annotated[tuple[Rung, ...], Field(min_length=1, max_length=MAX_RUNGS), AfterValidator(check_rungs)]


class Role(StrEnum):
    """What a node is in its cluster."""

    MASTER = "master"
    REPLI_MASTER = "repli-master"
    REPLICA = "replica"
    SECONDARY = "secondary"


class Mode(StrEnum):
    """What a target does with deletions: follow them, or keep everything it ever received."""

    MIRROR = "mirror"
    ARCHIVE = "archive"


class DocumentId(NamedTuple):
    """Orders documents: a later generation (repair by a person), then epoch (takeover), then version (edit)
    wins.
    """

    generation: Count
    epoch: Count
    version: Count


class _Value(BaseModel):
    """A part of the document: never changes, knows all of its fields, converts nothing silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Node(_Value):
    """One machine of the cluster."""

    name: Name
    role: Role
    address: Address  # where the others reach it
    fingerprint: Hex32  # SHA-256 of its certificate: this, not the CA, admits it (rule 26)
    incarnation: Hex16  # changes when its data directory is made anew
    added_at_ns: Count  # wall clock
    machine: Annotated[str, Field(max_length=256)] = ""  # machine-id, for people and for clones
    lost: bool = False  # switched off, as a person said by force: it comes back by joining (rule 28)


class Target(_Value):
    """Where one set goes on one node."""

    node: Name
    destination: AbsolutePath | None = None  # None: DATA/trees/<name of the set>
    mode: Mode = Mode.MIRROR
    paused: bool = False
    throttle_bytes_s: Annotated[int, Field(ge=1024)] | None = None  # None: as fast as the line allows
    adopt: bool = False  # the destination may hold files already; they are moved aside first (rule 64)
    keep: Rungs | None = None  # which versions stay there; None: as the set says


class ReplicationSet(_Value):
    """What is replicated as one unit; or, with `members`, a group: sets of several sources in one workspace,
    which each of its targets makes of what it receives of them."""

    name: Name
    uuid: Hex16  # the set *is* its uuid; the name is for people (rule 47)
    source: Name | Literal[""]  # '': a group has several
    paths: Annotated[tuple[AbsolutePath, ...], Field(max_length=MAX_PATHS)]
    members: Annotated[tuple[Name, ...], Field(max_length=MAX_MEMBERS)] = ()  # names of sets, of a group
    include: Annotated[tuple[Pattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    exclude: Annotated[tuple[Pattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    template: Name = "files"
    page_files: Annotated[
        tuple[Pattern, ...], Field(max_length=MAX_PATTERNS)
    ] = ()  # cut at fixed 16 KiB borders
    targets: dict[str, Target] = Field(default_factory=dict)
    privileged: bool = False  # may carry setuid bits and files of other owners to its targets
    keep: Rungs | None = None  # which versions stay at its targets; None: the usual ladder
    brake_percent: Annotated[int, Field(ge=0, le=100)] = 50  # of its files, changed within an hour; 0: none
    settle_ms: Annotated[int, Field(ge=1, le=60_000)] = 20  # quiet that ends a burst of writes
    max_wait_ms: Annotated[int, Field(ge=1, le=3_600_000)] = (
        1000  # a path written without pause is taken this often
    )
    file_size_limit: Annotated[int, Field(ge=1, lt=2**63)] = (
        16 * 2**40
    )  # bytes; larger files are reported, not taken
    term: Annotated[int, Field(ge=1, lt=2**63)] = 1  # rises whenever the source changes
    created_at_ns: Count

    def kept_at(self, node: str) -> tuple[Rung, ...] | None:
        """The rungs in force for the versions at that target; None: the usual ladder."""
        target = self.targets.get(node)
        return target.keep if target is not None and target.keep is not None else self.keep

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.members:
            self._check_group()
        elif not self.source or not self.paths:
            raise ValueError(
                f"Set '{self.name}' names no {'paths' if self.source else 'source'}, so there is nothing to "
                "copy; name the node that has the files, and the folders."
            )
        for first, second in _pairs(self.paths):
            if overlap(first, second):
                raise ValueError(
                    f"The paths '{first}' and '{second}' of set '{self.name}' lie in one another, so "
                    "files would be taken "
                    f"twice; keep the outer one."
                )
        if self.max_wait_ms < self.settle_ms:
            raise ValueError(
                f"Set '{self.name}' waits {self.settle_ms} ms for quiet but at most {self.max_wait_ms} "
                "ms altogether; "
                f"make max_wait_ms the larger one."
            )
        for key, target in self.targets.items():
            if key != target.node:
                raise ValueError(
                    f"A target of set '{self.name}' is filed under '{key}' but names node "
                    f"'{target.node}'; make them equal."
                )
            if target.node == self.source:
                raise ValueError(
                    f"Set '{self.name}' would copy from '{self.source}' to itself, which protects "
                    "nothing; choose another node."
                )
        return self


    def _check_group(self) -> None:
        if self.source or self.paths or self.include or self.exclude or self.page_files:
            raise ValueError(
                f"The group '{self.name}' has a source, paths or patterns of its own; its members have those."
            )
        if self.privileged:
            raise ValueError(
                f"The group '{self.name}' would carry setuid bits into a workspace of several people; only "
                "a set of one source may."
            )
        if len(self.members) < 2 or _twice(self.members) is not None:
            raise ValueError(
                f"The group '{self.name}' needs two sets at least, each named once; name its members."
            )


class Tombstone(_Value):
    """A removal that nodes which were away must still learn of."""

    kind: Literal["set", "node"]
    name: Name
    uuid: Hex16 | Literal[""] = ""  # of the set
    at_ns: Count
    keep_until_ns: Count  # versions of a removed set go after this moment
    fingerprint: Hex32 | Literal[""] = ""  # of the node's certificate


class Thresholds(_Value):
    """From when on a figure is a warning, and from when on an error."""

    safe_lag_s: Annotated[float, Field(gt=0, le=86_400, strict=False)] = 5.0  # a target may be so far behind
    error_lag_s: Annotated[float, Field(gt=0, le=86_400, strict=False)] = 300.0  # more is no protection

    def level(self, lag_s: float | None) -> Literal["ok", "warning", "error"]:
        """What a target is that is so far behind; None: not known, which says nothing."""
        if lag_s is None or lag_s <= self.safe_lag_s:
            return "ok"
        return "warning" if lag_s <= self.error_lag_s else "error"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.error_lag_s < self.safe_lag_s:
            raise ValueError(
                f"An error from {self.error_lag_s:g} s on would come before the warning from "
                f"{self.safe_lag_s:g} s on; let the warning come first."
            )
        return self


def _is_page(text: str) -> bool:
    try:
        url = urllib.parse.urlsplit(text)
        printable = text.isprintable() and " " not in text
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and printable
    except ValueError:  # a port that is none
        return False


def _has_port(url: str) -> bool:
    """Whether what stands where a port may stand is one, or nothing."""
    try:
        return urllib.parse.urlsplit(url).port != 0
    except ValueError:
        return False


class ProbeSpec(_Value):
    """How a service is asked whether it serves, and what its answers mean."""

    kind: Literal["tcp", "http", "sql", "command"]
    target: Annotated[str, Field(min_length=1, max_length=2000)]  # HOST:PORT, a URL, or a shell command
    expect: Annotated[str, Field(max_length=500)] = ""  # what a page has to contain
    interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 1.0
    rise: Annotated[int, Field(ge=1, le=100)] = 1  # successes in a row after which the service is up
    fall: Annotated[int, Field(ge=1, le=100)] = 2  # failures in a row after which it is down

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        port = self.target.rpartition(":")[2]
        if self.kind == "tcp" and not (port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"'{self.target}' names no port; write the probe as tcp:HOST:PORT.")
        if self.kind == "http" and not _is_page(self.target):
            raise ValueError(f"'{self.target}' is no address of a page; write it as http://HOST:PORT/PATH.")
        databases = ("postgresql://", "postgres://", "mysql://", "mariadb://", "mssql://")
        if self.kind == "sql" and not self.target.startswith(databases):
            raise ValueError(f"'{self.target}' is no database that is known; begin it with {databases[0]}.")
        if self.kind == "sql" and not _has_port(self.target):
            raise ValueError(f"'{self.target}' names a port that is none.")
        if "\0" in self.target:
            raise ValueError("A probe cannot contain a null character.")
        return self


class ServiceSpec(_Value):
    """A program that runs where the lease is: a command in the foreground, a unit of systemd, commands that
    start and stop it, or a service of Windows; one of these."""

    name: Name
    command: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    unit: Annotated[str, Field(max_length=256)] = ""
    start: Annotated[str, Field(max_length=2000)] = ""  # by the shell; what it leaves behind is the service
    stop: Annotated[str, Field(max_length=2000)] = ""
    # ends with 0 while it serves: its probe, without another
    status: Annotated[str, Field(max_length=2000)] = ""
    windows: Annotated[str, Field(max_length=256)] = ""
    needs: Annotated[tuple[Name, ...], Field(max_length=31)] = ()  # services, named before it
    probe: ProbeSpec | None = None  # None: it serves as long as it runs
    restarts: Annotated[int, Field(ge=0, le=100)] = 1  # here, within ten minutes, before another node serves
    start_s: Annotated[float, Field(ge=0.1, le=3600)] = 30.0  # until its probe succeeds first
    stop_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0  # until what has not stopped is killed
    # PostgreSQL: INT, or it waits for its clients
    stop_signal: Literal["TERM", "INT", "QUIT", "HUP"] = "TERM"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [kind for kind in (self.command, self.unit, self.start, self.windows) if kind]
        if len(kinds) != 1:
            raise ValueError(
                f"The service '{self.name}' needs one of: a command, unit:UNIT, start:COMMAND, windows:NAME."
            )
        if self.unit and not _UNIT.fullmatch(self.unit):
            raise ValueError(f"'{self.unit}' is no unit of systemd; write it as in: nginx.service.")
        if (self.stop or self.status) and not self.start:
            raise ValueError(f"The service '{self.name}' has a stop or a status command, and no"
            f" start:COMMAND.")
        return self


class Takeover(_Value):
    """Who votes, who may be active, and what moves with it."""

    voters: Annotated[tuple[Name, ...], Field(min_length=1, max_length=5)]
    candidates: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_NODES)]
    founder: Name  # whose keeper begins, as the only voter
    founder_incarnation: Hex16  # of its vote file: one that lost it founds nothing (rule 8)
    network: Literal["lan", "wan"] = "lan"
    address: str | None = None  # the floating one, with its prefix: 192.0.2.10/24
    interface: Annotated[str, Field(max_length=15)] = ""
    services: Annotated[tuple[ServiceSpec, ...], Field(max_length=32)] = ()
    sets: Annotated[tuple[Name, ...], Field(max_length=MAX_SETS)] = ()  # the active node is their source
    max_loss_s: Annotated[int, Field(ge=0, lt=2**31)] = 900  # how far a takeover may go back by itself
    active_port: Annotated[int, Field(ge=1, le=65535)] | None = None  # where /active is answered
    # by the shell: moves a name, or a cloud's address
    address_hook: Annotated[str, Field(max_length=2000)] = ""
    # switches CRNODE_NODE off before another one serves
    fence_hook: Annotated[str, Field(max_length=2000)] = ""
    # home was able for so long; None: by people
    failback_s: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    # for a newest version that nothing has judged yet
    validate_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    watchdog: Annotated[str, Field(max_length=200)] = ""  # /dev/watchdog, armed while active
    veto: Annotated[str, Field(max_length=64)] = ""  # who does not reach it does not take over: a gateway

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = (("voters", self.voters), ("candidates", self.candidates), ("sets", self.sets))
        for what, names in named:
            if (name := _twice(names)) is not None:
                raise ValueError(f"'{name}' is named twice among the {what}; name it once.")
        if strangers := sorted(set(self.candidates) - set(self.voters)):
            raise ValueError(
                f"'{strangers[0]}' may become active and does not vote; a candidate has to be a voter, too."
            )
        if self.address is not None:
            try:
                ipaddress.ip_interface(self.address)
            except ValueError as error:
                raise ValueError(
                    f"'{self.address}' is no address with a prefix; write it as 192.0.2.10/24."
                ) from error
            where = ipaddress.ip_interface(self.address).ip
            if "/" not in self.address or where.is_loopback or where.is_multicast or where.is_unspecified:
                raise ValueError(
                    f"'{self.address}' cannot move; write an address of your network as 192.0.2.10/24."
                )
            if not _INTERFACE.fullmatch(self.interface) or self.interface in (".", ".."):
                raise ValueError("The floating address needs the name of an interface, as in: eth0.")
        elif self.interface:
            raise ValueError(f"The interface {self.interface} is named, and no address that would be on it.")
        if (name := _twice(service.name for service in self.services)) is not None:
            raise ValueError(f"Two services are called '{name}'; give one of them another name.")
        before: set[str] = set()
        for service in self.services:
            if missing := [name for name in service.needs if name not in before]:
                raise ValueError(
                    f"'{service.name}' needs '{missing[0]}', which is not started before it; name that first."
                )
            before.add(service.name)
        if self.veto:
            try:
                ipaddress.ip_address(self.veto)
            except ValueError as error:
                raise ValueError(f"'{self.veto}' is no IP address; write that of your gateway.") from error
        if self.watchdog and not self.watchdog.startswith("/dev/"):
            raise ValueError(f"'{self.watchdog}' is no device; write it as /dev/watchdog.")
        return self


class ClusterDocument(_Value):
    """The whole truth about a cluster's make-up; immutable, ordered by `version`."""

    format: Literal[1] = 1
    id: Hex16
    name: Name
    version: DocumentId
    epoch: Count = 0
    nodes: tuple[Node, ...]
    sets: Annotated[tuple[ReplicationSet, ...], Field(max_length=MAX_SETS)] = ()
    tombstones: Annotated[tuple[Tombstone, ...], Field(max_length=MAX_TOMBSTONES)] = ()
    thresholds: Thresholds = Thresholds()
    takeover: Takeover | None = None

    @property
    def master(self) -> Node:
        """The one node with the role master."""
        return next(node for node in self.nodes if node.role is Role.MASTER)

    def keepers(self, spec: ReplicationSet) -> tuple[str, ...]:
        """The nodes that keep versions of a set: its targets, and its source where the set moves."""
        moves = self.takeover is not None and spec.name in self.takeover.sets
        return (spec.source, *spec.targets) if moves else tuple(spec.targets)

    def node(self, name: str) -> Node | None:
        """The node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    def node_by_fingerprint(self, mark: str) -> Node | None:
        """The node whose certificate has that SHA-256 (hex), or None."""
        return next((node for node in self.nodes if node.fingerprint == mark), None)

    def set_named(self, name: str) -> ReplicationSet | None:
        """The set of that name, or None."""
        return next((item for item in self.sets if item.name == name), None)

    def need_node(self, name: str) -> Node:
        """The node of that name; CrnodeError(USAGE) naming the known ones when there is none."""
        if (found := self.node(name)) is None:
            names = ", ".join(node.name for node in self.nodes)
            raise CrnodeError(
                f"There is no node '{name}'.", f"Nodes: {names}.", "See: crnode node list", ExitCode.USAGE
            )
        return found

    def need_set(self, name: str) -> ReplicationSet:
        """The set of that name; CrnodeError(USAGE) naming the known ones when there is none."""
        if (found := self.set_named(name)) is None:
            names = ", ".join(item.name for item in self.sets) or "there are none"
            raise CrnodeError(
                f"There is no set '{name}'.", f"Sets: {names}.", "See: crnode set list", ExitCode.USAGE
            )
        return found

    def set_by_uuid(self, uuid: str) -> ReplicationSet | None:
        """The set of that uuid (hex), or None."""
        return next((item for item in self.sets if item.uuid == uuid), None)

    def sets_from(self, node: str) -> tuple[ReplicationSet, ...]:
        """The sets whose source is `node`."""
        return tuple(item for item in self.sets if item.source == node)

    def groups_with(self, name: str) -> tuple[ReplicationSet, ...]:
        """The groups that the set of that name is a member of."""
        return tuple(item for item in self.sets if name in item.members)

    def sets_to(self, node: str) -> tuple[ReplicationSet, ...]:
        """The sets that have `node` as a target."""
        return tuple(item for item in self.sets if node in item.targets)

    def to_bytes(self) -> bytes:
        """The form on disk and on the wire: JSON, the same bytes for the same document."""
        return self.model_dump_json(indent=1).encode()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def parse_document(body: bytes, where: str = "the cluster document") -> ClusterDocument:
    """Read :meth:`ClusterDocument.to_bytes` back. Raises CrnodeError(FAILED) naming `where` it came from."""
    if len(body) > MAX_DOCUMENT_BYTES:
        raise CrnodeError(
            f"{where} cannot be used.",
            f"It has {len(body)} bytes; at most {MAX_DOCUMENT_BYTES} are read.",
            "Copy it again from another node of the cluster, or restore it from a backup.",
        )
    try:
        return ClusterDocument.model_validate_json(body)
    except ValidationError as error:
        raise CrnodeError(
            f"{where} cannot be used.",
            sentence(error),
            "Copy it again from another node of the cluster, or restore it from a backup.",
        ) from error


def sentence(error: ValidationError) -> str:
    """The first problem of a pydantic error as one sentence for a person."""
    first = error.errors(include_url=False, include_input=False)[0]
    text = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":
        return text
    place = ".".join(str(part) for part in first["loc"]) or "the text"
    return f"In '{place}': {text[:1].lower()}{text[1:]}."


def refusal(what: str, error: ValidationError) -> CrnodeError:
    """An edit that would break a rule of the document: nothing was changed."""
    return CrnodeError(what, sentence(error), "Nothing was changed.", ExitCode.REFUSED)


def _pairs(items: Iterable[T]) -> Iterator[tuple[T, T]]:
    known: list[T] = []
    for item in items:
        for other in known:
            yield other, item
        known.append(item)


def _twice(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _problems(document: ClusterDocument) -> Iterator[str]:
    """Every rule that spans several parts of the document, broken ones as sentences."""
    yield from _node_problems(document)
    yield from _set_problems(document)
    yield from _place_problems(document)
    if document.version.epoch > document.epoch:
        yield (
            f"The document was made in epoch {document.version.epoch} but says that epoch "
            f"{document.epoch} is in force, "
            f"so it is not what any master wrote; take the master's copy."
        )


def _node_problems(document: ClusterDocument) -> Iterator[str]:
    nodes = document.nodes
    if not 1 <= len(nodes) <= MAX_NODES:
        yield f"A cluster has 1 to {MAX_NODES} nodes, this one would have {len(nodes)}; remove a node first."
    if (name := _twice(node.name for node in nodes)) is not None:
        yield f"Two nodes would be called '{name}', and nobody could tell them apart; choose another name."
    if (mark := _twice(node.fingerprint for node in nodes)) is not None:
        yield (
            f"Two nodes would share the certificate {mark[:16]}…, so one could pose as the other; join "
            "the second anew."
        )
    if (address := _twice(node.address for node in nodes)) is not None:
        yield (
            f"Two nodes would be reached at {address}, but only one agent can listen there; give one "
            "another port."
        )
    masters = [node.name for node in nodes if node.role is Role.MASTER]
    if len(masters) != 1:
        names = ", ".join(masters) or "none"
        yield (
            f"A cluster has exactly one master, this one would have {len(masters)} ({names}); invite "
            "it as repli-master."
        )
    seconds = [node.name for node in nodes if node.role is Role.SECONDARY]
    if len(seconds) > 1:
        yield (
            f"A cluster has at most one secondary, this one would have {', '.join(seconds)}; invite it "
            "as replica."
        )
    buried = {stone.fingerprint for stone in document.tombstones if stone.fingerprint}
    for node in nodes:
        if node.fingerprint in buried:
            yield (
                f"Node '{node.name}' shows a certificate that was removed from the cluster; invite it "
                "again for a new one."
            )


def _set_problems(document: ClusterDocument) -> Iterator[str]:
    roles = {node.name: node.role for node in document.nodes}
    known = ", ".join(sorted(roles))
    if (name := _twice(item.name for item in document.sets)) is not None:
        yield (
            f"There is a set called '{name}' already, and names tell sets apart; choose another or "
            "remove the old one."
        )
    stones = (stone.uuid for stone in document.tombstones if stone.uuid)
    if (uuid := _twice([*(item.uuid for item in document.sets), *stones])) is not None:
        yield f"The set identity {uuid} is used twice, so two histories would mix; make the set anew."
    if document.takeover is not None:
        for name in document.takeover.voters:
            if name not in roles:
                yield f"'{name}' votes on who is active and is no node here; choose one of: {known}."
        for name in document.takeover.sets:
            if document.set_named(name) is None:
                yield (
                    f"The set '{name}' moves with the lease; let it stay at home first: crnode takeover set"
                    f" … --leave {name}"
                )
    for item in document.sets:
        if item.members:
            yield from _group_problems(document, item)
        elif item.source not in roles:
            yield (
                f"Set '{item.name}' has the source '{item.source}', which is no node here; choose one "
                f"of: {known}."
            )
        elif roles[item.source] not in (Role.MASTER, Role.REPLI_MASTER):
            yield (
                f"Set '{item.name}' has the source '{item.source}', but a {roles[item.source]} only "
                "receives; "
                f"use a master or repli-master as the source."
            )
        for target in item.targets.values():
            if target.node not in roles:
                yield (
                    f"Set '{item.name}' has the target '{target.node}', which is no node here; choose "
                    f"one of: {known}."
                )


def _group_problems(document: ClusterDocument, group: ReplicationSet) -> Iterator[str]:
    """A target makes the group of what it receives itself: it has to be a target of every member."""
    for name in group.members:
        member = document.set_named(name)
        if member is None:
            yield f"The group '{group.name}' has the member '{name}', which is no set here; name sets."
        elif member.members:
            yield f"The group '{group.name}' has the member '{name}', which is a group itself; name sets."
        elif lacking := ", ".join(sorted(group.targets.keys() - member.targets.keys())):
            yield (
                f"The group '{group.name}' goes to '{lacking}', which does not receive its member '{name}'; "
                f"let that set go there, too, or the group elsewhere."
            )


def _place_problems(document: ClusterDocument) -> Iterator[str]:
    """Rule 64: on one node destinations are apart from each other and from what is a source there."""
    for node in document.nodes:
        taken = [
            (target.destination, item.name)
            for item in document.sets
            for target in item.targets.values()
            if target.node == node.name and target.destination is not None
        ]
        for (one, first), (other, second) in _pairs(taken):
            if overlap(one, other):
                yield (
                    f"On '{node.name}' the sets '{first}' and '{second}' would both write to '{other}', "
                    "and each would "
                    f"delete the other's files; give one of them another destination."
                )
        for place, name in taken:
            for item in document.sets_from(node.name):
                for path in item.paths:
                    if overlap(place, path):
                        yield (
                            f"On '{node.name}' set '{name}' would write to '{place}', which set "
                            f"'{item.name}' reads as its "
                            f"source '{path}': copies of copies without end; choose another destination."
                        )
