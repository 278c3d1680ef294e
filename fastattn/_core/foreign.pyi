DEVICES: dict[int, str]
