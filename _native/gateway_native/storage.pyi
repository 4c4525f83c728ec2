FILESYSTEMS: dict[int, tuple[str, bool]]

class StorageTable:
    @property
    def name(self) -> str: ...

def filesystem(path: str) -> tuple[str, bool]: ...
