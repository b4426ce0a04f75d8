"""Crop, flip, resize and colour of clips: pure functions of a clip's augmentation seed."""
