from typing import final

DEVICES: dict[int, str]

@final
class Lease: ...

@final
class Exported: ...
