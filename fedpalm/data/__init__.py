"""Images in: readers, checks, splits, loading, augmentation, and synthetic palms. Torch-free."""
