"""Joining: how a node that is alone becomes a member of a cluster, without two clusters coming out of it.

Owns the attempts of this node (an operator's `cluster join`, `cluster.discovery`, and introducing itself again to a
member that doesn't know it) and the answer to others' attempts. It knows nothing of members' liveness or frames:
`mesh` packs what is sent and adopts what is welcomed.

Theory of operation
-------------------
    IDLE --OpenJoin--> CONNECTING --handshake done, Hello sent--> ASKING --Welcome, Refused or timeout--> IDLE

Two clusters that both have several members can't be merged, so that no two may ever be founded:

- A Welcome is an invitation: it is the joiner who decides, by committing the cluster's id. Only when it then says
  Hello with its own key is it a member at the acceptor. An invitation nobody took up ends by itself.
- A node that is alone never asks while it has an invitation out, and never invites while it is ASKING (it says BUSY).
  So it can't adopt a cluster after somebody adopted its own.
- Among nodes that found each other by `cluster.discovery` one founds the cluster: the smallest name of those that can
  be reached. A node invites automatic joiners only after a full round over its candidates in which every smaller name
  failed to connect and nobody was BUSY; hearing a smaller name ends that. Others answer ALONE. A node whose round
  found a member of a cluster with several members has joined it by then. What is left are networks in which nodes
  that start for the first time can't reach each other: two clusters may be founded there, as by two operators.
- A node without `cluster.discovery` never asks by itself and so invites whoever asks.
- An operator's join doesn't need a founder: the node named is asked until it is free.

Of names that are looked up only addresses are known. They are looked up anew at the beginning of each round; a node at
an address that nobody is known by is first asked for its name, and is then a candidate like others. A look-up that
fails leaves the round inconclusive, one that finds nobody does not: the first node of a cluster is found by no name.

After a round the next begins after a pause that differs with the place of the own name in the list, so that nodes
that began together don't go on asking each other at the same moments.
"""

import math
from enum import IntEnum
from typing import Final, final

from cluster.commands import CloseJoin, MeshCommand, OpenJoin
from cluster.frames import Hello, Refusal

# An operator hears within 10 s that a cookie is wrong or nobody answers.
CONNECT_TIMEOUT_S: Final = 8.0
ANSWER_TIMEOUT_S: Final = 8.0
# Candidates of discovery may be down for long; one must not hold up the others.
CANDIDATE_TIMEOUT_S: Final = 3.0
JOIN_TIMEOUT_S: Final = 30.0
# An invitation ends well after an asking node gave up waiting for it.
INVITATION_S: Final = 2 * ANSWER_TIMEOUT_S

# Looking up a name takes no longer, or has failed.
LOOK_UP_TIMEOUT_S: Final = 5.0

ROUND_PAUSE_S: Final = 1.0
ROUND_PAUSE_STEP_S: Final = 0.37
RETRY_S: Final = 0.3
RETRY_STEP_S: Final = 0.5

# Automatic joiners that are not in the own list are learnt up to this number.
CANDIDATES_MAX: Final = 256


class JoinState(IntEnum):
    """Where the own attempt stands."""

    IDLE = 0
    CONNECTING = 1
    ASKING = 2


class Purpose(IntEnum):
    """Why this node asks."""

    OPERATOR = 0
    DISCOVERY = 1
    INTRODUCTION = 2


@final
class JoinResult:
    """How an operator's join ended."""

    __slots__ = ("joined", "text")

    def __init__(self, joined: bool, text: str) -> None:
        self.joined = joined
        self.text = text

    def __repr__(self) -> str:
        return f"JoinResult({self.joined}, {self.text!r})"


@final
class Joining:
    """The attempts of this node to join, and whether it lets others."""

    def __init__(self, name: str, candidates: list[tuple[str, str]], lookups: list[str] | None = None) -> None:
        self.name = name
        self.state = JoinState.IDLE
        self.purpose = Purpose.OPERATOR
        self.target = ""
        self.address = ""
        self.commands: list[MeshCommand] = []
        self.notes: list[str] = []
        # The operator's wish, until `settle`.
        self.operator_target = ""
        self.operator_address = ""
        self.operator_until = math.inf
        self.failure = ""
        self._candidates: dict[str, str] = {node: address for node, address in candidates if node != name}
        # What has to be looked up for a round, for the shell to take; what it has not answered yet.
        self.lookups: list[str] = []
        self._lookups = lookups or []
        self._looking: set[str] = set()
        # Address -> the node that answered there, which may be this node itself, or "" while that isn't known.
        self._found: dict[str, str] = {}
        self._addresses: set[str] = set()
        self._configured = bool(self._candidates or self._lookups)
        # Node name and address; the name is "" where it has to be asked for.
        self._round: list[tuple[str, str]] = []
        self._conclusive = True
        # The names of the round to come are being looked up, or are.
        self._begun = False
        self._smaller_reached = False
        self._founder = not self._configured
        self._until = math.inf
        self._next_at = 0.0
        self._introduce: dict[str, str] = {}
        self._noted: dict[str, str] = {}

    def join(self, node: str, address: str, now: float) -> None:
        """An operator wants this node to join the cluster of `node`."""
        self.operator_target = node
        self.operator_address = address
        self.operator_until = now + JOIN_TIMEOUT_S
        self.failure = ""
        self._next_at = min(self._next_at, now)

    def looked_up(self, entry: str, addresses: list[str] | None, now: float) -> None:
        """The addresses (host:port) that a name has now; None if nobody could say."""
        if entry not in self._looking:
            return
        self._looking.discard(entry)
        if addresses is None:
            self._conclusive = False
        else:
            self._addresses.update(addresses[:CANDIDATES_MAX])
        if not self._looking:
            self._next_at = now

    def named(self, name: str, now: float) -> None:
        """The node that was asked who it is said so."""
        if self.state != JoinState.ASKING or self.target:
            return
        self._found[self.address] = name
        if name == self.name:
            self._close(now)
        else:
            self._begin(Purpose.DISCOVERY, name, self.address, now)

    def introduce(self, node: str, address: str) -> None:
        """A fellow member refuses this node's key: say Hello to it with the join key."""
        self._introduce[node] = address

    def introduces(self) -> bool:
        """Say whether this node asks a fellow member that refuses its key, or is about to."""
        return bool(self._introduce) or (self.state != JoinState.IDLE and self.purpose == Purpose.INTRODUCTION)

    def settle(self) -> None:
        """The operator's join is decided."""
        self.operator_target = ""
        self.operator_until = math.inf
        self.failure = ""

    def may_invite(self, hello: Hello, alone: bool, hosting: bool) -> Refusal | None:
        """Return None if the sender of an acceptable Hello may be invited, else what to answer."""
        if not alone:
            return None
        if self.state == JoinState.ASKING:
            return Refusal.BUSY
        if not hello.automatic:
            return None
        if self._configured:
            if hello.name not in self._candidates and len(self._candidates) < CANDIDATES_MAX:
                self._candidates[hello.name] = hello.address
            if hello.name < self.name:
                self._founder = False
                # It counts for the round under way as well.
                self._smaller_reached = True
        if self._founder:
            return None
        return Refusal.BUSY if hosting else Refusal.ALONE

    def invited_somebody(self, now: float) -> None:
        """An invitation is out: give up an attempt that has not asked yet."""
        if self.state == JoinState.CONNECTING and self.purpose != Purpose.INTRODUCTION:
            self._conclusive = False
            self._close(now)

    def connected(self, hosting: bool, alone: bool, now: float) -> bool:
        """The join connection is up; true if the caller has to send Hello on it now."""
        if self.state != JoinState.CONNECTING:
            return False
        if self.purpose != Purpose.INTRODUCTION and (hosting or not alone):
            self._conclusive = False
            self._close(now)
            return False
        self.state = JoinState.ASKING
        self._until = now + ANSWER_TIMEOUT_S
        return True

    def failed(self, text: str, now: float) -> None:
        """The join connection can't be had."""
        if self.state == JoinState.IDLE:
            return
        if self.state == JoinState.ASKING:
            # It was reached and may have heard the Hello.
            self._conclusive = False
        if self.purpose == Purpose.OPERATOR:
            self.failure = f"{self.target} at {self.address}: {text}"
        elif self.purpose == Purpose.DISCOVERY:
            self._found.pop(self.address, None)
            self._note(f"discovery: {self.target or 'a node'} at {self.address}: {text}")
        self._close(now)

    def refused(self, reason: int, text: str, now: float) -> None:
        """The node that was asked said no."""
        if self.state != JoinState.ASKING:
            return
        next_at = now
        if self.purpose == Purpose.OPERATOR:
            if reason in (Refusal.FINAL, Refusal.REMOVED):
                self.failure = f"{self.target} refused: {text}"
            else:
                # Two operators who join two nodes to each other must not ask at the same moments for ever.
                next_at = now + (RETRY_S if self.name > self.target else RETRY_S + RETRY_STEP_S)
        elif self.purpose == Purpose.DISCOVERY:
            if reason != Refusal.ALONE:
                self._conclusive = False
            if self.target < self.name:
                self._smaller_reached = True
            if reason in (Refusal.FINAL, Refusal.REMOVED):
                self._note(f"discovery: {self.target} refused: {text}")
        else:
            self._note(f"{self.target} does not know this node as a member and refused it: {text}")
        self._close(next_at)

    def welcomed(self, now: float) -> None:
        """The node that was asked invited this node, and it adopted the cluster."""
        self._round = []
        self._close(now)

    def tick(self, alone: bool, hosting: bool, now: float) -> None:
        """Begin what is due, end what takes too long."""
        if self.state != JoinState.IDLE:
            if now >= self._until:
                self.failed("no answer", now)
            return
        if now < self._next_at:
            return
        if self._introduce:
            node = min(self._introduce)
            self._begin(Purpose.INTRODUCTION, node, self._introduce.pop(node), now)
        elif self.operator_target and not self.failure and alone:
            if not hosting:
                self._begin(Purpose.OPERATOR, self.operator_target, self.operator_address, now)
        elif alone and not hosting and (self._candidates or self._lookups):
            self._next_candidate(now)

    def deadline(self, alone: bool, hosting: bool) -> float:
        """Return when `tick` has something to do."""
        if self.state != JoinState.IDLE:
            return self._until
        wants = bool(self.operator_target or self._candidates or self._lookups)
        if self._introduce or (alone and not hosting and wants):
            return self._next_at
        return math.inf

    def _next_candidate(self, now: float) -> None:
        if not self._round:
            if self._lookups and not self._begun:
                self._look_up(now)
                return
            self._begin_round(now)
            if not self._round:
                self._end_round(now)
                return
        node, address = self._round.pop(0)
        self._begin(Purpose.DISCOVERY, node, address, now)

    def _look_up(self, now: float) -> None:
        """Have every name looked up; the round begins when all are, or none any more."""
        self._begun = True
        self._conclusive = True
        self._addresses = set()
        self._looking = set(self._lookups)
        self.lookups = list(self._lookups)
        self._next_at = now + LOOK_UP_TIMEOUT_S

    def _begin_round(self, now: float) -> None:
        if not self._lookups:
            self._conclusive = True
        elif self._looking:
            self._conclusive = False
            self._looking = set()
        self._begun = False
        self._smaller_reached = False
        self._found = {address: self._found.get(address, "") for address in sorted(self._addresses)}
        known = dict(self._candidates)
        asked = []
        for address, node in self._found.items():
            if node == "" and address not in known.values():
                asked.append(("", address))
            elif node not in ("", self.name):
                known[node] = address
        self._round = sorted(known.items()) + asked

    def _begin(self, purpose: Purpose, node: str, address: str, now: float) -> None:
        self.purpose = purpose
        self.target = node
        self.address = address
        self.state = JoinState.CONNECTING
        self._until = now + (CONNECT_TIMEOUT_S if purpose == Purpose.OPERATOR else CANDIDATE_TIMEOUT_S)
        self.commands.append(OpenJoin(node, address))

    def _close(self, next_at: float) -> None:
        self.commands.append(CloseJoin())
        self.state = JoinState.IDLE
        self._until = math.inf
        self._next_at = next_at
        if self.purpose == Purpose.DISCOVERY and not self._round:
            self._end_round(next_at)

    def _end_round(self, next_at: float) -> None:
        self._founder = self._conclusive and not self._smaller_reached
        nodes = {*self._candidates, *self._found.values()} - {""}
        place = len([node for node in nodes if node < self.name])
        self._next_at = next_at + ROUND_PAUSE_S + ROUND_PAUSE_STEP_S * place

    def _note(self, text: str) -> None:
        # A candidate that stays down is worth one line, not one a second.
        if self._noted.get(self.target or self.address) != text:
            self._noted[self.target or self.address] = text
            self.notes.append(text)
