"""``gateway verify --repair``: make again what verify found wrong beside the log. No log is touched.

Indexes, summaries and manifests are replaced as a whole; a damaged watermark is removed, which makes the next start
walk the last segment. Damage in a log stays, and readers go on passing over it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gateway.log import maintenance
from gateway.log.files import FILES
from gateway.log.key_index import key_index_path
from gateway.log.key_index_build import build_key_index
from gateway.log.layout import MANIFEST_FILE, WATERMARK_FILE, read_meta, segment_name
from gateway.log.lock import DataLock
from gateway.log.verify import Progress, Repairable, Report, verify


def repair(
    path: str | Path, *, streams: Collection[str] = (), deep: bool = False, progress: Progress | None = None
) -> tuple[Report, list[str]]:
    """Verify, repair, verify again: what is left, and a sentence for each thing that was made again.

    LockedError while a gateway, or another repair, has the directory; otherwise as `verify`. OSError if something
    cannot be written: what was made again until then stays.
    """
    data = Path(path)
    read_meta(data)
    with DataLock(data):
        found = verify(data, streams=streams, deep=deep, progress=progress)
        done = [sentence for each in found.repairable for sentence in _repair_partition(each)]
        if not done:
            return found, done
        return verify(data, streams=streams, deep=deep, progress=progress), done


def _repair_partition(found: Repairable) -> list[str]:
    done = []
    for base in sorted(found.segments):
        if base < found.limit.segment_base:
            maintenance.rebuild_segment(found.directory, base)
            done.append(f"{found.directory / segment_name(base)}: made its indexes and its summary again.")
        elif found.marked and base == found.limit.segment_base:
            position, offset = found.limit.position, found.limit.offset
            maintenance.rebuild_active_indexes(found.directory, base, position, offset, sealed=found.closed)
            done.append(f"{found.directory / segment_name(base)}: made its indexes again.")
    for base in sorted(found.key_indexes):
        build_key_index(found.directory, base)
        done.append(f"{key_index_path(found.directory, base)}: made again.")
    if found.manifest:
        count = maintenance.rebuild_manifest(found.directory, found.limit.segment_base)
        done.append(f"{found.directory / MANIFEST_FILE}: made again, with {count:,} segments.")
    if found.watermark:
        FILES.unlink(found.directory / WATERMARK_FILE)
        FILES.sync_directory(found.directory)
        done.append(
            f"{found.directory / WATERMARK_FILE}: removed, being damaged; the next start walks the last segment."
        )
    return done
