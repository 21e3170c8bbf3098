"""How do bytes come and go?

In: addresses on any fsspec store. Out: listings, ranges and local copies of inputs, and output files that
appear whole or not at all; what may pass is tried again. Start with addresses.py; inputs.py reads what
others own, storage.py writes what is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.stores.addresses import (
        NO_VERSION,
        TAR_URI,
        canonical_uri,
        glob_pattern,
        has_wildcard,
        local_path_of,
        remote_uri,
        split_glob,
        text_of_path,
        without_query,
    )
    from pipeline.stores.filesystems import open_filesystem
    from pipeline.stores.inputs import Hosts, ask_store, content_version, open_store, reason_of
    from pipeline.stores.local_files import exchange, stage, sync_folder, temporary_name
    from pipeline.stores.retrying import StorageDownError, is_passing, retry, steady_seconds, telling
    from pipeline.stores.spooling import Spool
    from pipeline.stores.storage import Storage, StorageWarning, StoredFile
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "addresses": [
                "NO_VERSION",
                "TAR_URI",
                "canonical_uri",
                "glob_pattern",
                "has_wildcard",
                "local_path_of",
                "remote_uri",
                "split_glob",
                "text_of_path",
                "without_query",
            ],
            "filesystems": ["open_filesystem"],
            "inputs": ["Hosts", "ask_store", "content_version", "open_store", "reason_of"],
            "local_files": ["exchange", "stage", "sync_folder", "temporary_name"],
            "retrying": ["StorageDownError", "is_passing", "retry", "steady_seconds", "telling"],
            "spooling": ["Spool"],
            "storage": ["Storage", "StorageWarning", "StoredFile"],
        },
    )

__all__ = [
    "NO_VERSION",
    "TAR_URI",
    "Hosts",
    "Spool",
    "Storage",
    "StorageDownError",
    "StorageWarning",
    "StoredFile",
    "ask_store",
    "canonical_uri",
    "content_version",
    "exchange",
    "glob_pattern",
    "has_wildcard",
    "is_passing",
    "local_path_of",
    "open_filesystem",
    "open_store",
    "reason_of",
    "remote_uri",
    "retry",
    "split_glob",
    "stage",
    "steady_seconds",
    "sync_folder",
    "telling",
    "temporary_name",
    "text_of_path",
    "without_query",
]
