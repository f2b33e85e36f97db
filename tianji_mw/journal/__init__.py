"""The write-ahead journal that nothing durable is lost from: records on disk before they are delivered anywhere."""

from tianji_mw.journal.entries import Entry
from tianji_mw.journal.journal import Journal
from tianji_mw.journal.places import Position, Subscriber
from tianji_mw.journal.segments import JournalFull

__all__ = ["Entry", "Journal", "JournalFull", "Position", "Subscriber"]
