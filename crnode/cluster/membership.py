"""Edits of the cluster document. Pure: a document and a wish in, a new document (version + 1) or a refusal
out.

Only the master makes edits; the other nodes decide with :func:`accept` whether what they were sent is an edit
of the master (rules 85 and 88). `now` is wall clock time in nanoseconds since 1970.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import pathspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crnode.cluster.document import (
    MAX_DOCUMENT_BYTES,
    MAX_MEMBERS,
    MAX_PATHS,
    MAX_PATTERNS,
    MAX_TOMBSTONES,
    TOMBSTONE_KEEP_NS,
    ClusterDocument,
    Mode,
    Node,
    ReplicationSet,
    Role,
    Takeover,
    Target,
    Thresholds,
    Tombstone,
    refusal,
    sentence,
    split_address,
)
from crnode.cluster.keep import MAX_RUNGS, Rung, check_rungs, parse_rung
from crnode.cluster.moves import why_it_cannot_move
from crnode.errors import CrnodeError, ExitCode

_UNCHANGED = "Nothing was changed."
GENERATIONS_MOST = 16  # that a node may have missed
Change = Callable[[ClusterDocument], ClusterDocument]  # what another document is made of the present one by


class SetSpec(BaseModel):
    """The wish of `crnode set add`: what a person says about a new set, before the rules are applied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    paths: Annotated[list[str], Field(min_length=1, max_length=MAX_PATHS)]
    to: list[str] = []  # each 'NODE' or 'NODE:DESTINATION'
    archive_to: list[str] = []  # the same, for targets that keep everything whatever `mode` says
    mode: Mode = Mode.MIRROR
    template: str = "files"
    include: Annotated[list[str], Field(max_length=MAX_PATTERNS)] = []
    exclude: Annotated[list[str], Field(max_length=MAX_PATTERNS)] = []
    page_files: Annotated[list[str], Field(max_length=MAX_PATTERNS)] = []
    adopt: bool = False
    privileged: bool = False
    brake_percent: Annotated[int, Field(ge=0, le=100)] = 50
    keep: Annotated[list[str], Field(max_length=MAX_RUNGS)] = []  # rungs, each 'PERIOD:COUNT' or with an age

    @classmethod
    def parse(cls, args: dict[str, Any]) -> SetSpec:
        """From the arguments of the control call. CrnodeError(USAGE) when they do not fit."""
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            raise CrnodeError(
                "The set was not added.", sentence(error), _UNCHANGED, ExitCode.USAGE
            ) from error


def _refuse(what: str, why: str, hint: str = _UNCHANGED) -> CrnodeError:
    return CrnodeError(what, why, hint, ExitCode.REFUSED)


def _edited(document: ClusterDocument, what: str, **changes: Any) -> ClusterDocument:
    """`document` with `changes` and the next version, checked as a whole; `what` opens the sentence of a
    refusal.
    """
    fields = {name: getattr(document, name) for name in ClusterDocument.model_fields}
    fields.update(changes)
    fields["version"] = document.version._replace(version=document.version.version + 1)
    try:
        edited = ClusterDocument.model_validate(fields)
    except ValidationError as error:
        raise refusal(what, error) from error
    if len(edited.to_bytes()) > MAX_DOCUMENT_BYTES:
        raise _refuse(
            what,
            f"The cluster document would exceed {MAX_DOCUMENT_BYTES} bytes; use fewer paths and patterns.",
        )
    return edited


def add_node(document: ClusterDocument, node: Node, now: int) -> ClusterDocument:
    """Admit `node`. Refused: a name, address or certificate that is taken, a ninth node, a second master.
    A node that was lost comes back under its name; what lies in its folders is set aside first (rule 46)."""
    known = document.node(node.name)
    if known is not None and known.lost:
        sets = tuple(
            item.model_copy(
                update={
                    "targets": {
                        name: target.model_copy(update={"adopt": True}) if name == node.name else target
                        for name, target in item.targets.items()
                    }
                }
            )
            for item in document.sets
        )
        placed = node.model_copy(update={"added_at_ns": now})
        nodes = tuple(placed if item is known else item for item in document.nodes)
        return _edited(document, f"'{node.name}' was not added.", nodes=nodes, sets=sets)
    if known is not None:
        raise _refuse(
            f"'{node.name}' was not added.",
            "The cluster has a node of that name already.",
            f"Choose another name, or remove the old one first: crnode node remove {node.name}",
        )
    placed = node.model_copy(update={"added_at_ns": now})
    return _edited(document, f"'{node.name}' was not added.", nodes=(*document.nodes, placed))


def remove_node(
    document: ClusterDocument, name: str, now: int, lose: bool = False, only_holder_of: Sequence[str] = ()
) -> ClusterDocument:
    """Put `name` out of the cluster: its certificate counts no more, and it leaves every set's targets.

    Refused for the master and for the source of a set. Without `lose` it is refused too when a set would be
    left with no other target, or with no other archive (an archive keeps deleted files that no mirror has),
    and for the sets in `only_holder_of`, of whose images the caller knows no other holder (rule 90).
    """
    node = document.need_node(name)
    what = f"'{name}' was not removed."
    if node.role is Role.MASTER:
        raise _refuse(
            what,
            "It is the master, which owns the cluster's configuration.",
            "A cluster ends with its master.",
        )
    if document.takeover is not None and name in document.takeover.voters:
        raise _refuse(
            what,
            "It votes on who is active.",
            f"Say first who votes without it: crnode takeover set, without --voter {name}",
        )
    if sources := [item.name for item in document.sets_from(name)]:
        raise _refuse(
            what,
            f"It is the source of: {', '.join(sources)}.",
            f"Remove these sets first: crnode set remove {sources[0]}",
        )
    if not lose and (losses := _losses(document, name, only_holder_of)):
        raise _refuse(what, *losses)
    sets = tuple(
        item.model_copy(
            update={"targets": {key: value for key, value in item.targets.items() if key != name}}
        )
        for item in document.sets
    )
    stone = Tombstone(kind="node", name=name, at_ns=now, keep_until_ns=now, fingerprint=node.fingerprint)
    return _edited(
        document,
        what,
        nodes=tuple(item for item in document.nodes if item.name != name),
        sets=sets,
        tombstones=_bury(document, stone),
    )


def _losses(document: ClusterDocument, name: str, only_holder_of: Sequence[str]) -> tuple[str, str] | None:
    """(what would be lost with that target, what to do), or None when others hold all of it."""
    alone, archives = set(only_holder_of), set()
    for item in document.sets_to(name):
        if len(item.targets) == 1:
            alone.add(item.name)
        elif [key for key, target in item.targets.items() if target.mode is Mode.ARCHIVE] == [name]:
            archives.add(item.name)
    archives -= alone
    reasons, ways = [], []
    if alone:
        reasons.append(
            "It holds the only copy that exists outside the source, versions included, of: "
            f"{', '.join(sorted(alone))}."
        )
        ways.append("Add another target and wait until it is in sync")
    if archives:
        reasons.append(
            "It is the only archive, and files that were deleted at the source are kept nowhere else, of: "
            f"{', '.join(sorted(archives))}."
        )
        ways.append("Copy the deleted files that are still needed from it")
    if not reasons:
        return None
    return " ".join(reasons), f"{'; '.join(ways)}; or repeat with --lose to give them up."


def parse_target(text: str, mode: Mode, adopt: bool) -> Target:
    """'NODE' or 'NODE:/destination' -> Target. ValidationError when node or destination cannot be used."""
    node, colon, destination = text.partition(":")
    return Target(node=node, destination=destination if colon else None, mode=mode, adopt=adopt)


def _check_patterns(what: str, spec: SetSpec) -> None:
    """CrnodeError(USAGE) for a pattern that capture could not read: the set would never run."""
    for option, patterns in (
        ("--include", spec.include),
        ("--exclude", spec.exclude),
        ("--page-files", spec.page_files),
    ):
        for pattern in patterns:
            try:
                pathspec.GitIgnoreSpec.from_lines([pattern])
            except (ValueError, re.error) as error:
                raise CrnodeError(
                    what,
                    f"The pattern '{pattern}' of {option} cannot be read: {error}.",
                    "Write it like a line of .gitignore: '*.tmp', '/cache/', '!keep.tmp'.",
                    ExitCode.USAGE,
                ) from error


def add_set(document: ClusterDocument, spec: SetSpec, now: int, uuid: str) -> ClusterDocument:
    """Protect something new. `uuid` is 32 hex digits never used before; the name may be one of old."""
    what = f"The set '{spec.name}' was not added."
    if spec.template != "files":  # a word that did nothing would be taken for protection
        raise _refuse(what, f"The template '{spec.template}' is not known.", "Only 'files' exists so far.")
    _check_patterns(what, spec)
    try:
        targets = _targets(what, [(text, spec.mode) for text in spec.to], spec.archive_to, spec.adopt)
        for name in (spec.source, *targets):
            document.need_node(name)
        item = ReplicationSet(
            name=spec.name,
            uuid=uuid,
            source=spec.source,
            paths=tuple(spec.paths),
            include=tuple(spec.include),
            exclude=tuple(spec.exclude),
            template=spec.template,
            page_files=tuple(spec.page_files),
            targets=targets,
            privileged=spec.privileged,
            keep=parse_rungs(what, spec.keep),
            brake_percent=spec.brake_percent,
            created_at_ns=now,
        )
    except ValidationError as error:
        raise refusal(what, error) from error
    return _edited(document, what, sets=(*document.sets, item))


class GroupSpec(BaseModel):
    """The wish of `crnode group add`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    members: Annotated[list[str], Field(max_length=MAX_MEMBERS)]
    to: list[str] = []  # each 'NODE' or 'NODE:DESTINATION'
    archive_to: list[str] = []
    adopt: bool = False
    brake_percent: Annotated[int, Field(ge=0, le=100)] = 50
    keep: Annotated[list[str], Field(max_length=MAX_RUNGS)] = []

    @classmethod
    def parse(cls, args: dict[str, Any]) -> GroupSpec:
        """From the arguments of the control call. CrnodeError(USAGE) when they do not fit."""
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            raise CrnodeError(
                "The group was not added.", sentence(error), _UNCHANGED, ExitCode.USAGE
            ) from error


def add_group(document: ClusterDocument, spec: GroupSpec, now: int, uuid: str) -> ClusterDocument:
    """Bundle sets of several sources into one workspace, at targets that receive all of them."""
    what = f"The group '{spec.name}' was not added."
    for name in spec.members:
        document.need_set(name)
    try:
        targets = _targets(what, [(text, Mode.MIRROR) for text in spec.to], spec.archive_to, spec.adopt)
        for name in targets:
            document.need_node(name)
        item = ReplicationSet(
            name=spec.name,
            uuid=uuid,
            source="",
            paths=(),
            members=tuple(spec.members),
            targets=targets,
            keep=parse_rungs(what, spec.keep),
            brake_percent=spec.brake_percent,
            created_at_ns=now,
        )
    except ValidationError as error:
        raise refusal(what, error) from error
    return _edited(document, what, sets=(*document.sets, item))


def change_members(
    document: ClusterDocument, name: str, add: Sequence[str], drop: Sequence[str]
) -> ClusterDocument:
    """The group `name` with other members. What a member leaves behind stays in the group's versions."""
    what = f"The members of '{name}' were not changed."
    item = need_group(document, name)
    for member in add:
        document.need_set(member)
    if strange := [member for member in drop if member not in item.members]:
        raise CrnodeError(
            what,
            f"'{strange[0]}' is no member of it; its members are: {', '.join(item.members)}.",
            _UNCHANGED,
            ExitCode.USAGE,
        )
    members = (*(m for m in item.members if m not in drop), *(m for m in add if m not in item.members))
    try:
        changed = ReplicationSet.model_validate({**dict(item), "members": members})
    except ValidationError as error:
        raise refusal(what, error) from error
    return _edited(document, what, sets=tuple(changed if s.uuid == item.uuid else s for s in document.sets))


def need_group(document: ClusterDocument, name: str) -> ReplicationSet:
    """The group of that name. CrnodeError(USAGE) when it is none."""
    item = document.need_set(name)
    if not item.members:
        groups = ", ".join(other.name for other in document.sets if other.members) or "there are none"
        raise CrnodeError(
            f"'{name}' is a set, not a group.", f"Groups: {groups}.", "See: crnode group list", ExitCode.USAGE
        )
    return item


def _targets(
    what: str, wanted: Sequence[tuple[str, Mode]], archive_to: Sequence[str], adopt: bool
) -> dict[str, Target]:
    """Node -> target of what people wrote as NODE or NODE:DIRECTORY."""
    targets: dict[str, Target] = {}
    for text, mode in [*wanted, *((text, Mode.ARCHIVE) for text in archive_to)]:
        target = parse_target(text, mode, adopt)
        if target.node in targets:
            raise _refuse(what, f"It names the target '{target.node}' twice, and a node keeps a set once.")
        targets[target.node] = target
    if not targets:
        raise CrnodeError(
            what,
            "It names no target.",
            "Say where it goes, with --to or --archive-to: NODE or NODE:DIRECTORY.",
            ExitCode.USAGE,
        )
    return targets


def parse_rungs(what: str, texts: Sequence[str]) -> tuple[Rung, ...] | None:
    """Rungs as people write them; None for none. CrnodeError(USAGE), opened by `what`, for no ladder."""
    try:
        return check_rungs(tuple(parse_rung(text) for text in texts)) or None
    except ValidationError as error:
        raise CrnodeError(what, sentence(error), _UNCHANGED, ExitCode.USAGE) from error
    except ValueError as error:
        raise CrnodeError(what, str(error), _UNCHANGED, ExitCode.USAGE) from error


def keep_versions(
    document: ClusterDocument, name: str, texts: Sequence[str], target: str | None
) -> ClusterDocument:
    """Say which versions of `name` stay, at all of its targets or at one; no rungs: the usual ladder again,
    or at one target what the set says."""
    what = f"What is kept of '{name}' was not changed."
    item = document.need_set(name)
    rungs = parse_rungs(what, texts)
    if target is None:
        changed = item.model_copy(update={"keep": rungs})
    elif target in item.targets:
        there = item.targets[target].model_copy(update={"keep": rungs})
        changed = item.model_copy(update={"targets": {**item.targets, target: there}})
    else:
        raise CrnodeError(
            what,
            f"It does not go to '{target}', but to: {', '.join(item.targets) or 'no node'}.",
            "Name one of its targets, or none for all of them.",
            ExitCode.USAGE,
        )
    return _edited(document, what, sets=tuple(changed if s.uuid == item.uuid else s for s in document.sets))


def set_thresholds(document: ClusterDocument, warn: float | None, error: float | None) -> ClusterDocument:
    """From how many seconds behind on a target is a warning, and from how many an error; None: as it is."""
    what = "The thresholds were not changed."
    now = document.thresholds
    try:
        changed = Thresholds(
            safe_lag_s=now.safe_lag_s if warn is None else warn,
            error_lag_s=now.error_lag_s if error is None else error,
        )
    except ValidationError as problem:
        raise CrnodeError(what, sentence(problem), _UNCHANGED, ExitCode.USAGE) from problem
    return _edited(document, what, thresholds=changed)


def set_brake(document: ClusterDocument, name: str, percent: int) -> ClusterDocument:
    """From which share of its files on, in percent, a change within an hour is held back; 0: never."""
    what = f"The brake of '{name}' was not changed."
    item = document.need_set(name)
    changed = item.model_copy(update={"brake_percent": percent})
    try:
        changed = ReplicationSet.model_validate(dict(changed))
    except ValidationError as error:
        raise refusal(what, error) from error
    return _edited(document, what, sets=tuple(changed if s.uuid == item.uuid else s for s in document.sets))


class TakeoverSpec(BaseModel):
    """The wish of `crnode takeover set`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    voters: list[str]
    candidates: list[str] = []  # none: master and secondary, without a secondary all voters
    network: str = "lan"
    address: str | None = None
    interface: str = ""
    services: list[dict[str, Any]] = []  # as the document has them
    sets: list[str] = []  # names
    leave: list[str] = []  # of sets that moved, and are to move no more
    max_loss_s: int = 900
    active_port: int | None = None
    address_hook: str = ""
    fence_hook: str = ""
    failback_s: int | None = None
    validate_s: float = 30.0
    watchdog: str = ""
    veto: str = ""


def set_takeover(document: ClusterDocument, spec: TakeoverSpec, incarnation: str) -> ClusterDocument:
    """Say who votes on who is active, and what moves with it. `incarnation` (hex) is that of the vote file
    of the master, whose keeper begins."""
    what = "What takes over was not set."
    for name in (*spec.voters, *spec.candidates):
        document.need_node(name)
    known = document.takeover
    try:
        takeover = Takeover.model_validate(
            {
                "voters": tuple(spec.voters),
                "candidates": tuple(spec.candidates or _candidates(document, spec.voters)),
                "founder": known.founder if known is not None else document.master.name,
                "founder_incarnation": known.founder_incarnation if known is not None else incarnation,
                "network": spec.network,
                "address": spec.address,
                "interface": spec.interface,
                "services": tuple(
                    {**one, "command": tuple(one.get("command", ())), "needs": tuple(one.get("needs", ()))}
                    for one in spec.services
                ),
                "active_port": spec.active_port,
                "address_hook": spec.address_hook,
                "fence_hook": spec.fence_hook,
                "failback_s": spec.failback_s,
                "validate_s": spec.validate_s,
                "watchdog": spec.watchdog,
                "veto": spec.veto,
                "sets": tuple(spec.sets),
                "max_loss_s": spec.max_loss_s,
            }
        )
    except ValidationError as error:
        raise refusal(what, error) from error
    if takeover.founder not in takeover.voters:
        raise _refuse(what, f"'{takeover.founder}' is the first to vote; it has to stay one of the voters.")
    if why := _taken_already(document, takeover):
        raise _refuse(what, why)
    for name in takeover.sets:
        why = why_it_cannot_move(document, document.need_set(name), takeover.candidates)
        if why:
            raise _refuse(what, why)
    return _edited(document, what, takeover=takeover)


def _taken_already(document: ClusterDocument, takeover: Takeover) -> str:
    """What of the cluster stands against it: an address or a port that is in use by it. '' for nothing."""
    floating = ipaddress.ip_interface(takeover.address).ip if takeover.address is not None else None
    for node in document.nodes:
        host, port = split_address(node.address)
        with contextlib.suppress(ValueError):  # a name
            if floating is not None and ipaddress.ip_address(host) == floating:
                return f"{floating} is the address of {node.name} itself; the floating one has to be free."
        if takeover.active_port in (port, port + 1) and node.name in takeover.candidates:
            whose = "agent" if takeover.active_port == port else "keeper"
            return f"On port {takeover.active_port} listens the {whose} of {node.name}; choose another one."
    for service in takeover.services:
        if service.probe is not None and service.probe.expect and service.probe.kind != "http":
            return f"Only a page is looked through for words, and the probe of {service.name} asks for none."
    return ""


def _candidates(document: ClusterDocument, voters: Sequence[str]) -> list[str]:
    """Who of the voters may be active when nobody says it: master and secondary, else all of them."""
    roles = {name: document.need_node(name).role for name in voters}
    if Role.SECONDARY not in roles.values():
        return list(voters)
    return [name for name, role in roles.items() if role in (Role.MASTER, Role.SECONDARY)]


def go_on_without(
    document: ClusterDocument, me: str, lost: Mapping[str, str], now: int, generation: int = 0
) -> ClusterDocument:
    """A later generation of the document, in which `me` goes on without the nodes that `lost` names; each
    with 32 bytes in hex that are no certificate's fingerprint. Their sets stay as they are, and are restored
    from where they went. It is later than `generation`."""
    what = f"{me} does not go on alone."
    assert document.takeover is not None
    nodes, stones = [], document.tombstones
    for node in document.nodes:
        role = Role.MASTER if node.name == me and document.master.name in lost else node.role
        if node.name in lost and not node.lost:
            stone = Tombstone(
                kind="node", name=node.name, at_ns=now, keep_until_ns=now, fingerprint=node.fingerprint
            )
            stones = _bury(document.model_copy(update={"tombstones": stones}), stone)
            update = {"fingerprint": lost[node.name], "lost": True}
            node = node.model_copy(update=update)
        if node.name in lost and role is Role.MASTER:
            role = Role.REPLI_MASTER
        nodes.append(node.model_copy(update={"role": role}))
    takeover = document.takeover.model_copy(update={"founder": me})
    edited = _edited(document, what, nodes=tuple(nodes), tombstones=stones, takeover=takeover)
    later = max(document.version.generation, generation) + 1
    version = edited.version._replace(generation=later)
    return edited.model_copy(update={"version": version})


def remove_set(document: ClusterDocument, name: str, now: int, forget: bool = False) -> ClusterDocument:
    """Stop replicating `name`. Its versions stay 30 days on the targets (rule 47), or go at once with
    `forget`.
    """
    item = document.need_set(name)
    if groups := document.groups_with(name):
        raise _refuse(
            f"The set '{name}' was not removed.",
            f"It is a member of the group '{groups[0].name}'.",
            f"Take it out first: crnode group members {groups[0].name} --drop {name}",
        )
    keep_until = now if forget else now + TOMBSTONE_KEEP_NS
    stone = Tombstone(kind="set", name=name, uuid=item.uuid, at_ns=now, keep_until_ns=keep_until)
    return _edited(
        document,
        f"The set '{name}' was not removed.",
        sets=tuple(other for other in document.sets if other.uuid != item.uuid),
        tombstones=_bury(document, stone),
    )


def _bury(document: ClusterDocument, stone: Tombstone) -> tuple[Tombstone, ...]:
    """The tombstones with one more; beyond the bound those go first that ended the longest ago."""
    stones = sorted((*document.tombstones, stone), key=lambda item: item.keep_until_ns)
    return tuple(stones[-MAX_TOMBSTONES:])


def accept(
    current: ClusterDocument | None,
    offered: ClusterDocument,
    sender: str,
    holder: str | None = None,
    hears: Collection[str] = (),
) -> ClusterDocument:
    """The document to go by after `sender` (an authenticated node name) offered one; `current` if it is no
    news.

    `holder` is the node that is known to hold the epoch when that is not the master; `hears` are the nodes
    that answer here. A candidate may offer a later generation, in which it goes on by force without nodes
    that do not answer here either (rule 28). Refused (CrnodeError): another cluster, a sender that is
    neither, an older document, and another text under the same id. Whether the offered document still
    contains this very node is for the caller to look at.
    """
    what = f"The cluster document from '{sender}' was not taken."
    if current is None:
        return offered
    if offered.id != current.id:
        raise _refuse(
            what,
            f"It belongs to the cluster '{offered.name}' ({offered.id[:8]}), not to '{current.name}'.",
            "",
        )
    if _is_forced(current, offered, sender):
        lost = {node.name for node in offered.nodes if node.lost}
        here = sorted(name for name in lost - {n.name for n in current.nodes if n.lost} if name in hears)
        if here:
            raise _refuse(
                what,
                f"{sender} goes on by force as if {here[0]} were switched off, and {here[0]} answers here:"
                " two nodes may be active.",
                f"Switch {here[0]} off, or take {sender} from the network.",
            )
    elif sender not in (current.master.name, holder):
        raise _refuse(
            what, f"Only the master '{current.master.name}' makes changes; this node is not it.", ""
        )
    if offered.version < current.version or offered.epoch < current.epoch:
        mine, theirs = _spoken(current), _spoken(offered)
        raise _refuse(what, f"It is older ({theirs}) than the one in force here ({mine}).", "")
    if offered.version == current.version:
        if offered != current:
            raise _refuse(
                what,
                f"It has the same number ({_spoken(current)}) as the one here but says something else.",
                "The master's data directory was probably restored from a backup; join this node anew.",
            )
        return current
    return offered


def _is_forced(current: ClusterDocument, offered: ClusterDocument, sender: str) -> bool:
    candidates = current.takeover.candidates if current.takeover is not None else ()
    later = 0 < offered.version.generation - current.version.generation <= GENERATIONS_MOST
    lost = {node.name for node in offered.nodes if node.lost}
    same = offered.master.name == current.master.name
    takes_over = offered.master.name == sender and current.master.name in lost
    return later and sender in candidates and (same or takes_over)


def _spoken(document: ClusterDocument) -> str:
    generation, epoch, version = document.version
    return f"generation {generation}, epoch {epoch}, version {version}"


def move_node(document: ClusterDocument, name: str, address: str) -> ClusterDocument:
    """The document with another address for `name`; the same document when that is its address already."""
    what = f"The address of '{name}' was not changed."
    node = document.need_node(name)
    if node.address == address:
        return document
    try:
        moved = Node.model_validate({**dict(node), "address": address})
    except ValidationError as error:
        raise refusal(what, error) from error
    return _edited(
        document, what, nodes=tuple(moved if item.name == name else item for item in document.nodes)
    )
