"""What of a file could not be decoded, or only with parts made up: counted, judged and said.

A packet counts once, however often it is read: windows decode on from the same keyframe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from pipeline.decoding.timeline import Timeline
from pipeline.errors import Reason, Stage, VideoError

__all__ = ["TOLERATED_DAMAGE", "Damage", "damage_note", "hole_finder", "refuse_ruins"]

# A file with more undecodable packets and damaged pictures than this is called corrupt; below it is used.
TOLERATED_DAMAGE = 0.05
# Where few packets of a file are looked at: as many of the sampled pictures may be touched, or one.
_TOLERATED_PICTURES = 0.1
_HOLE = bytes(64)
# By so many packets may libav's parsers set the mark of what is incomplete too early.
_JOIN_PACKETS = 2
_READ_OVER_HOLES = frozenset({"hevc", "vvc", "vp8", "vp9"})  # arithmetic coding without a check


@dataclass
class Damage:
    """What went wrong in all reads of one file so far.

    packets: all of the file where it was walked through, else 0. seen: packets given to a decoder, some more
    than once. lost_places: where the container cannot be read. ``incomplete``: packets that their container
    says it does not hold whole. ``failed``: packets that raised an error. ``flagged``: pictures that libav
    says it made up in parts. ``complained``: packets about which a decoder complained that flags nothing.
    ``touched`` of ``sampled`` pictures were flagged, are missing, or build upon what is damaged.
    """

    packets: int = 0
    seen: int = 0
    lost_places: int = 0
    sampled: int = 0
    touched: int = 0
    incomplete: set[Any] = field(default_factory=set)
    failed: set[Any] = field(default_factory=set)
    flagged: set[Any] = field(default_factory=set)
    complained: set[Any] = field(default_factory=set)
    _doubtful: deque[Any] = field(default_factory=deque)  # the last packets walked over; None: surely whole
    _has_begun: bool = False
    _last_dts: Any = None
    _step: int = 0  # between the decode times of the last two packets
    _since_key: list[int] = field(
        default_factory=list
    )  # decode times of bad packets that pictures build upon

    @property
    def total(self) -> int:
        """Packets of the file, as far as they are known."""
        return max(self.packets or self.seen, self.bad)

    @property
    def bad(self) -> int:
        """Packets that gave no picture or a damaged one."""
        return len(self.failed) + len(self.flagged)

    @property
    def is_any(self) -> bool:
        return bool(self.failed or self.flagged or self.complained)

    def walk_over(self, packet: Any) -> None:
        """Heed what the container says of a packet; of all, in the order in which they are stored.

        Where segments were put together MPEG-TS seems to have lost something; but a keyframe follows there,
        and follows in time.
        """
        step = 0 if None in (packet.dts, self._last_dts) else packet.dts - self._last_dts
        if packet.is_keyframe:
            self._has_begun = True
            if packet.dts is not None and step <= 2 * self._step:
                self._doubtful.clear()
        self._last_dts, self._step = packet.dts, step
        self._doubtful.append(_name(packet, 0) if packet.is_corrupt and self._has_begun else None)
        if len(self._doubtful) > _JOIN_PACKETS:
            self.incomplete |= {self._doubtful.popleft()} - {None}

    def end_walk(self, num_lost: int) -> None:
        """All packets were walked over; in so many places something else stood."""
        self.incomplete |= set(self._doubtful) - {None}
        self.lost_places += num_lost

    def restart(self) -> None:
        """Decoding goes on elsewhere: nothing that comes builds upon what was read before."""
        self._since_key.clear()

    def add_failed(self, packet: Any, place: int) -> None:
        """A packet that could not be decoded, the ``place``-th since decoding began."""
        self.failed.add(_name(packet, place))
        self._since_key.append(packet.dts or 0)

    def add_complaint(self, packet: Any, place: int) -> None:
        """A packet at which the decoder complained."""
        self.complained.add(_name(packet, place))
        self._since_key.append(packet.dts or 0)

    def add_hole(self, packet: Any, place: int) -> None:
        """A packet of which a part is missing, see ``hole_finder``."""
        self.flagged.add(("packet", _name(packet, place)))
        self._since_key.append(packet.dts or 0)

    def add_picture(self, frame: Any, place: int) -> None:
        """A picture that came out, the ``place``-th since decoding began, counted where it is flagged."""
        at = frame.dts
        if frame.key_frame:
            self._since_key = [bad for bad in self._since_key if at is not None and bad >= at]
        if frame.is_corrupt:
            self.flagged.add(place if frame.pts is None else ("pts", frame.pts))
            self._since_key.append(at or 0)

    def touches(self, frame: Any) -> bool:
        """Whether a picture that just came out is damaged or builds upon what is."""
        at = frame.dts
        return bool(frame.is_corrupt or any(at is None or bad <= at for bad in self._since_key))


def hole_finder(stream: Any, incomplete: Set[Any] = frozenset()) -> Callable[[Any], bool]:
    """Whether a part of a packet is missing: in zeros, as a disk or a download leaves what was never written,
    or of one of those that are known to be ``incomplete``.

    Looked for where decoders read over holes as over anything, and say nothing.
    """
    if stream.codec_context.name not in _READ_OVER_HOLES:
        return lambda packet: False
    return lambda packet: _name(packet, 0) in incomplete or _HOLE in bytes(packet)


def _name(packet: Any, place: int) -> Any:
    """What a packet is known by, be it read once or ten times."""
    return place if packet.pos is None and packet.dts is None else (packet.pos, packet.dts)


def refuse_ruins(damage: Damage, *, num_pictures: int, num_touched: int, is_whole: bool) -> None:
    """Raise VideoError (corrupt) where too much of a file is damaged for a row about it.

    Damage is held against the packets of the file. Of a file looked at in few places (``is_whole``: all that
    will be), what was decoded speaks for the rest, unless hardly a sampled picture is touched by it.
    """
    if damage.bad > TOLERATED_DAMAGE * damage.total:
        message = f"{damage.bad} of {damage.total} packets cannot be decoded, or only in parts"
        raise VideoError(Stage.DECODING, Reason.CORRUPT, message)
    is_rotten = damage.bad > TOLERATED_DAMAGE * damage.seen
    if is_whole and is_rotten and num_touched > max(1, _TOLERATED_PICTURES * num_pictures):
        message = (
            f"{damage.bad} of the {damage.seen} packets that were read cannot be decoded, or only in parts; "
            f"{num_touched} of {num_pictures} pictures suffer"
        )
        raise VideoError(Stage.DECODING, Reason.CORRUPT, message)


def damage_note(claimed_end_seconds: float, timeline: Timeline, damage: Damage | None = None) -> str | None:
    """What was wrong with a file that was read all the same, or None."""
    end = timeline.duration_seconds
    is_cut = claimed_end_seconds > end * 1.05 + 1.0
    notes = [] if damage is None else _counts(damage, is_cut)
    if timeline.note:
        notes.append(timeline.note)
    if timeline.clock is not None and timeline.note is None:
        num = len(timeline.clock.starts)
        notes.append(f"its timestamps jump in {num} place{'s' if num > 1 else ''}, over which times run on")
    elif is_cut:
        notes.append(f"ends at {end:.1f} s of {claimed_end_seconds:.1f} s")
    return "; ".join(notes) or None


def _counts(damage: Damage, is_cut: bool) -> list[str]:
    of = f"of {damage.total}"
    counts = (
        (len(damage.failed), f"{of} packets could not be decoded"),
        (len(damage.flagged), f"{of} pictures could be decoded only in parts"),
        (len(damage.complained - damage.failed), f"{of} packets were decoded with errors"),
        (damage.touched, f"of {damage.sampled} sampled pictures may show the damage"),
    )
    notes = [f"{number} {what}" for number, what in counts if number]
    if len(damage.incomplete) > max(damage.bad, is_cut):  # the last of a cut file is none
        notes.append(f"{len(damage.incomplete)} {of} packets came incomplete")
    if damage.lost_places:
        places = f"{damage.lost_places} place{'s' if damage.lost_places > 1 else ''}"
        notes.append(f"the file cannot be read in {places}: what was there is missing")
    return notes
