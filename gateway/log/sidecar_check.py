"""Compare a sealed segment's summary, and its entry in the manifest, with the segment. FORMAT.md, section 6."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway_native import batch, summary, watermark
from gateway_native.summary import Summary
from gateway_native.watermark import Watermark

from gateway.log import key_frames
from gateway.log.files import FILES
from gateway.log.index_check import REBUILD, OnDamage, OnNote
from gateway.log.key_index import KeyIndex, KeyIndexDamaged, key_index_path
from gateway.log.layout import (
    INDEX_SUFFIX,
    KEY_FRAMES_SUFFIX,
    MANIFEST_FILE,
    SUMS_SUFFIX,
    TIME_SUFFIX,
    segment_name,
)
from gateway.log.manifest import ENTRY_BYTES, Manifest
from gateway.log.segment import Damage


class Walked(NamedTuple):
    """What walking a whole segment found."""

    base_offset: int
    log_bytes: int
    next_offset: int
    first_timestamp: int
    max_timestamp: int
    sound: bool
    """No batch was damaged, so all of these are known."""


class SidecarCheck:
    """Checks summaries and the manifest of one partition, segment by segment, in ascending order."""

    def __init__(self, directory: Path, active_base: int, on_damage: OnDamage, on_note: OnNote) -> None:
        self._directory = directory
        self._on_damage = on_damage
        self._on_note = on_note
        self._path = directory / MANIFEST_FILE
        self._manifest = self._load(active_base)
        self._without_entry = 0
        self.to_rebuild: list[int] = []
        """Segments whose indexes or summary are to be made again."""
        self.keys_to_rebuild: list[int] = []
        """Segments whose key index is damaged."""
        self.manifest_is_wrong = self._manifest is None or self._manifest.unsound > 0 or self._manifest.contradicts

    def _load(self, active_base: int) -> Manifest | None:
        try:
            data = FILES.read_bytes(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = f"the manifest cannot be read: {error.strerror}; {REBUILD}"
            self._on_damage(Damage(self._path, 0, problem, "readable bytes", "an error"))
            return None
        found = Manifest(data, below=active_base)
        for position in range(0, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
            if summary.parse(data, position) is None:
                problem = f"the manifest's entry is damaged; {REBUILD}"
                self._on_damage(Damage(self._path, position, problem, "a sound CRC", "none", None, ENTRY_BYTES))
        if found.contradicts:
            position = (len(found) + found.unsound) * ENTRY_BYTES
            problem = f"the manifest's entry begins before the one before it ends; {REBUILD}"
            self._on_damage(Damage(self._path, position, problem, "ascending offsets", "others", None, ENTRY_BYTES))
        return found

    def segment(self, walked: Walked) -> None:
        """A sealed segment was walked."""
        path = self._directory / segment_name(walked.base_offset, SUMS_SUFFIX)
        found = self._read(path)
        if found is None:
            self.to_rebuild.append(walked.base_offset)
        else:
            self._compare(path, 0, found, walked, "summary")
            self._check_indexes(path, found, walked.base_offset)
        self._check_keys(walked.base_offset)
        self._check_entry(walked)

    def key_frames(self, base: int) -> None:
        """The index of key frames, if there is one, is sound. It is a help that readers do without."""
        path = self._directory / segment_name(base, KEY_FRAMES_SUFFIX)
        try:
            if key_frames.parse(FILES.read_bytes(path)) is not None:
                return
            problem = "is damaged"
        except FileNotFoundError:
            return
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        self._on_note(path, f"{problem}; readers do without it. Delete it, and the gateway makes it again")

    def active(self, mark: Watermark) -> None:
        """The active segment's indexes begin with what the watermark vouches for."""
        if not mark.flags & watermark.INDEXES_WHOLE:
            return
        expected = ((INDEX_SUFFIX, mark.index_bytes, mark.index_crc), (TIME_SUFFIX, mark.time_bytes, mark.time_crc))
        for suffix, size, wanted in expected:
            path = self._directory / segment_name(mark.segment_base, suffix)
            try:
                data = FILES.read_bytes(path)[:size]
            except OSError:  # the check of its entries has said so
                self.to_rebuild.append(mark.segment_base)
                continue
            if len(data) < size or batch.crc32c(data) != wanted:
                self.to_rebuild.append(mark.segment_base)
                problem = f"the index's first {size} bytes are not those that the watermark speaks of; {REBUILD}"
                self._on_damage(Damage(path, 0, problem, f"0x{wanted:08x}", f"0x{batch.crc32c(data):08x}"))

    def finish(self) -> None:
        """All segments were walked."""
        if self._without_entry:
            self.manifest_is_wrong = True
            what = "is missing" if self._manifest is None else f"lacks {self._without_entry} segments"
            self._on_note(self._path, f"{what}, so opening the log takes longer; the gateway completes it")

    def _read(self, path: Path) -> Summary | None:
        try:
            data = FILES.read_bytes(path)
        except FileNotFoundError:
            self._on_note(path, "is missing; the gateway makes it again")
            return None
        except OSError as error:
            problem = f"the summary cannot be read: {error.strerror}; {REBUILD}"
            self._on_damage(Damage(path, 0, problem, "readable bytes", "an error"))
            return None
        found = summary.parse(data)
        if found is None or len(data) != summary.BYTES:
            self._on_damage(Damage(path, 0, f"the summary is damaged; {REBUILD}", "a sound CRC", "none"))
            return None
        return found

    def _compare(self, path: Path, position: int, found: Summary, walked: Walked, what: str) -> bool:
        fields = ("base_offset", "log_bytes", "next_offset", "first_timestamp", "max_timestamp")
        for name in fields if walked.sound else fields[:1]:
            says, is_so = getattr(found, name), getattr(walked, name)
            if says != is_so:
                problem = f"the {what} says {name.replace('_', ' ')} {says}, the log {is_so}; {REBUILD}"
                self._on_damage(Damage(path, position, problem, str(is_so), str(says)))
                if what == "summary":
                    self.to_rebuild.append(walked.base_offset)
                return False
        return True

    def _check_indexes(self, path: Path, found: Summary, base: int) -> None:
        if not found.flags & summary.INDEXES_WHOLE:
            self.to_rebuild.append(base)
            self._on_note(path, "says that the segment's indexes are not whole; the gateway makes them again")
        for suffix, expected in ((INDEX_SUFFIX, found.index_crc), (TIME_SUFFIX, found.time_crc)):
            index = self._directory / segment_name(base, suffix)
            try:
                crc = batch.crc32c(FILES.read_bytes(index))
            except OSError:  # the check of its entries has said so
                self.to_rebuild.append(base)
                continue
            if crc != expected:
                self.to_rebuild.append(base)
                problem = f"the index has the CRC-32C 0x{crc:08x}, its summary says 0x{expected:08x}; {REBUILD}"
                self._on_damage(Damage(index, 0, problem, f"0x{expected:08x}", f"0x{crc:08x}"))

    def _check_keys(self, base: int) -> None:
        """The key index, if there is one: many segments have none. Whether it fits the log is seen when it is used."""
        try:
            with KeyIndex(self._directory, base) as index:
                index.check()
        except FileNotFoundError:
            return
        except (KeyIndexDamaged, OSError) as error:
            self.keys_to_rebuild.append(base)
            problem = f"the key index is damaged ({error}); {REBUILD}"
            self._on_damage(Damage(key_index_path(self._directory, base), 0, problem, "sound CRCs", "others"))

    def _check_entry(self, walked: Walked) -> None:
        number = self._manifest.at(walked.base_offset) if self._manifest is not None else -1
        entry = self._manifest[number] if self._manifest is not None and number >= 0 else None
        if entry is None or entry.base_offset != walked.base_offset:
            self._without_entry += 1
        elif not self._compare(self._path, number * ENTRY_BYTES, entry, walked, "manifest"):
            self.manifest_is_wrong = True
